"""What runs on the device. Imports nothing else of ours, and never torch, onnx, scipy or pandas.

    bytes ──sensing──▶ Windows ──scoring──▶ Event ──delivery──▶ broker
            ports       windows   backends    alerts   outbox
            sources     health    scorers     explain  mqtt
            decoders              memory      drift    homeassistant
            modbus                calibrate   evidence

    broker, page, `amiss ask` ──operating──▶ the stream's thread, between two chunks
                                requests, control, web

- `signal`, `event`, `errors`, `files`, `config`, `profiles`, `tables`: the ground floor, plain values;
- `pipeline`: windows, sensor health and scoring composed, pure (read this first);
- `bundle`, `head`: what a model is, and how it proves itself; the part of it that is fitted to one machine;
- `operating.stream`: one sensor, from its bytes to events on disk (read this second);
- `agent`: run for ever: streams, delivery, and what people ask (read this third);
- `operating`: besides, what is kept of it (`heads`, `episodes`, `settings`), what is shown (`view`, `http`, `web`, `metrics`,
  `service`), and what looks at a device from outside (`doctor`, `host`, `finding`);
- `testing`: checks that every decoder, scorer and backend must pass; ships with the package.
"""

import os

# onnxruntime's Linux wheels from 1.29 on send telemetry unless told not to *before* they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# numpy's BLAS starts a thread per core, and each spins for work: with products as small as ours that doubles the CPU time and
# gains nothing. Read once, when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
