import os

# Before torch is loaded: with more threads than idle processors, small models take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
