"""An MQTT broker for the length of a demo: one from PyPI that needs no installation, or a real Mosquitto."""

import shutil
import signal
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


class Mosquitto:
    """A Mosquitto of its own on a free port of the loopback. What it had on its disk outlives `kill`: each change is there
    within a second.

    Raises `SinkUnavailableError` when it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise SinkUnavailableError("the Mosquitto broker is not installed: sudo apt-get install -y mosquitto")
        self.port = free_port()
        self._log = folder / "mosquitto.log"
        settings = folder / "mosquitto.conf"
        self._command = [program, "-c", str(settings)]
        self._process: subprocess.Popen[bytes] | None = None
        # Started by root it would become `mosquitto`, who may not write to the folder.
        settings.write_text(
            f"user root\npersistence true\npersistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n"
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n",
            "utf-8",
        )

    def start(self) -> None:
        """Raises `SinkUnavailableError` or `StorageError` when it does not start."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        _wait_for(self.port, self._process)

    def kill(self) -> None:
        """As a crash would: nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_S)
            self._process = None


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """One that runs; gives the port. Raises what `Mosquitto` and its `start` do."""
    broker = Mosquitto(folder)
    try:
        broker.start()
        yield broker.port
    finally:
        broker.stop()


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
