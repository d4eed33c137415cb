"""Everything that brings software and models to devices; the demo and a machine to try it on, keys and repository, cards."""
