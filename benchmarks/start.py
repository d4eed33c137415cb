"""Where the time from `exec` to the first score goes: `python -m benchmarks.start MONOTONIC_S device.toml`, JSON on stdout."""

import sys
import time

now = [float(sys.argv[1])]
spent_ms: dict[str, float] = {}


def lap(name: str) -> None:
    now.append(time.monotonic())
    spent_ms[name] = round(1e3 * (now[-1] - now[-2]), 1)


lap("interpreter")
import amiss  # noqa: E402, F401

lap("import amiss (the front door, with typer)")
import numpy  # noqa: E402, F401

lap("import numpy")
import edge.agent  # noqa: E402, F401

lap("import edge.agent (paho, pyserial, msgspec, sqlite3)")
import onnxruntime  # noqa: E402, F401

lap("import onnxruntime")
import json  # noqa: E402
from pathlib import Path  # noqa: E402

from edge import config as configs  # noqa: E402
from edge.bundle import Bundle  # noqa: E402
from edge.delivery.mqtt import MqttSink  # noqa: E402
from edge.delivery.outbox import Outbox  # noqa: E402

config = configs.load(Path(sys.argv[2]))
lap("read device.toml")
bundle = Bundle.open(Path(config.bundle))
lap("open the bundle (digests, arrays, session)")
bundle.self_test()
lap("self-test")
outbox = Outbox(config.state_path() / "outbox.db", device="start", boot="start")
lap("open the outbox")
sink = MqttSink(config.mqtt, "start")
sink.connect()
lap("connect to the broker")
sink.disconnect()
outbox.close()
print(json.dumps(spent_ms))
