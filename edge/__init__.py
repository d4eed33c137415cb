"""What runs on the device. Imports nothing else of ours, and never torch, onnx, scipy or pandas.

    bytes ──sensing──▶ Windows ──scoring──▶ Event ──delivery──▶ broker
            sources     windows   backends    alerts   outbox
            decoders              scorers     explain  mqtt
                                  memory      drift
                                  calibrate

- `signal`, `event`, `errors`, `config`: the ground floor, plain values;
- `pipeline`: windows and scoring composed, pure (read this first);
- `bundle`: what a model is, and how it proves itself;
- `agent`: run for ever (read this second);
- `testing`: checks that every decoder, scorer and backend must pass; ships with the package.
"""

import os

# onnxruntime's Linux wheels from 1.29 on send telemetry unless told not to *before* they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# numpy's BLAS starts a thread per core, and each spins for work: with products as small as ours that doubles the CPU time and
# gains nothing. Read once, when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
