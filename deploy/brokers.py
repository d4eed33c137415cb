"""An MQTT broker for the length of a demo: one from PyPI that needs no installation, or a real Mosquitto."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import SinkUnavailableError, StorageError

START_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def embedded(folder: Path) -> Iterator[int]:
    """iotcore (rumqttd) on a free port of the loopback, MQTT 5; gives the port."""
    from iotcore import Broker

    port = free_port()
    settings = folder / "broker.toml"
    # Written out because only a file can open an MQTT 5 listener and raise the payload limit (20 kB by default).
    settings.write_text(
        f"""\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
""",
        "utf-8",
    )
    with Broker(config_path=str(settings)):
        yield port


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """A Mosquitto of its own on a free port of the loopback; gives the port.

    Raises `SinkUnavailableError` when it is not installed or does not start.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SinkUnavailableError("the Mosquitto broker is not installed: sudo apt-get install -y mosquitto")
    port = free_port()
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", "utf-8")
    with (folder / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(settings)], stdout=log, stderr=log)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(START_S)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StorageError(f"the broker ended at once with exit code {process.returncode}; see its log")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SinkUnavailableError(f"the broker does not answer on port {port} after {START_S:g} s")
