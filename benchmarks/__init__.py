"""How fast, how late, how large: `make bench`. Figures, not tests: nothing here fails because a machine is slow."""
