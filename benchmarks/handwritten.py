"""What one would write instead of the agent: pyserial, numpy, onnxruntime, paho. To compare with, not to use.

    python -m benchmarks.handwritten PORT MODEL --mqtt 1883 --channels 3 --window 256 --hop 64 --threshold 5

One line of comma-separated numbers a sample. No checksum, no clock, no gaps, no calibration, no memory of what a broker that
is away did not get; it ends with the port. `--tuned` is the same loop after its author has met a profiler: it reads what is
there instead of asking for each byte, and keeps ONNX Runtime on one thread.
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import onnxruntime
import paho.mqtt.client as mqtt
import serial
from paho.mqtt.enums import CallbackAPIVersion


def lines(port: serial.Serial) -> Iterator[bytes]:
    while True:
        yield port.readline()


def lines_in_blocks(port: serial.Serial) -> Iterator[bytes]:
    rest = b""
    while True:
        *whole, rest = (rest + port.read(port.in_waiting or 1)).split(b"\n")
        yield from whole


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("model")
    for name, kind in (("mqtt", int), ("channels", int), ("window", int), ("hop", int), ("threshold", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()

    options = onnxruntime.SessionOptions()
    if args.tuned:
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(args.model, options)
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", args.mqtt)
    client.loop_start()
    port = serial.Serial(args.port, 115200)
    print("ready", flush=True)

    window = np.zeros((1, args.channels, args.window), np.float32)
    samples = windows = 0
    try:
        for line in (lines_in_blocks if args.tuned else lines)(port):
            try:
                values = [float(value) for value in line.split(b",")]
                window[0, :, :-1] = window[0, :, 1:]
                window[0, :, -1] = values
            except ValueError:
                continue
            samples += 1
            if samples >= args.window and (samples - args.window) % args.hop == 0:
                (residual,) = session.run(["residual"], {"window": window})
                windows += 1
                if (score := float(residual.max())) > args.threshold:
                    client.publish("handwritten/event", json.dumps({"time": time.time(), "score": score}), qos=1)
    except (serial.SerialException, OSError):
        print(json.dumps({"samples": samples, "windows": windows}), flush=True)


if __name__ == "__main__":
    main()
