"""How fast, how late, how large: `make bench`. Figures, not tests: nothing here fails because a machine is slow."""

import edge  # noqa: F401  # first, as in the agent: it sets what numpy and onnxruntime read from the environment once
