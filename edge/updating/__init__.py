"""How a new model is trusted, tried and taken back.

Nothing in this package but `fetch` and `conformance`, which run in a process of their own, loads TUF and what it needs.
"""
