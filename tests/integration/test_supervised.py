"""The agent as systemd and Prometheus see it, from start to stop."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from mosquitto import Mosquitto, free_port, until
from prometheus_client.parser import text_string_to_metric_families
from small_bundle import build

COLUMNS = 'columns = ["vibration", "y", "current", "t", "speed"]'


def scrape(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value for sample in samples}


def test_the_life_of_a_service(mosquitto: Mosquitto, tmp_path: Path) -> None:
    port, tty = free_port(), tmp_path / "tty"
    command = [sys.executable, "-m", "amiss", "simulate", "--serial", str(tty), "--seconds", "90", "--rate", "100"]
    machine = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert machine.stderr is not None
    machine.stderr.readline()
    config = tmp_path / "device.toml"
    config.write_text(
        f'node = "n"\nbundle = "{build(tmp_path / "b.amiss")}"\nstate_dir = "{tmp_path}/state"\n[streams.s]\nport = "{tty}"\n'
        f'{COLUMNS}\n[mqtt]\nhost = "127.0.0.1"\nport = {mosquitto.port}\n[metrics]\nport = {port}\n'
    )
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    environ = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    said: list[str] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # closed when the test is over
            while line := systemd.recv(4096).decode():
                said.extend(line.split("\n"))

    threading.Thread(target=listen, daemon=True).start()
    agent = subprocess.Popen([sys.executable, "-m", "amiss", "run", "--config", str(config)], env=environ)
    try:
        until(lambda: "STATUS=1 of 1 streams online, broker connected" in said)
        assert said.index("READY=1") < said.index("STATUS=1 of 1 streams online, broker connected")
        pings = said.count("WATCHDOG=1")
        until(lambda: said.count("WATCHDOG=1") >= pings + 2)

        until(lambda: scrape(port).get(("amiss_windows_total", "s"), 0) > 20)
        found = scrape(port)
        assert found["amiss_stream_online", "s"] == 1
        assert found["amiss_mqtt_connected",] == 1
        assert found["amiss_inference_duration_seconds_count", "s"] > 5
        assert 0 < found["amiss_inference_duration_seconds_sum", "s"] < 30
        assert found["amiss_outbox_dropped_total", "alert"] == 0
        assert found["amiss_last_sample_timestamp_seconds", "s"] > found["process_start_time_seconds",] - 2
        assert found["amiss_outbox_bytes",] > 0
        assert ("amiss_score", "s") in found

        agent.send_signal(signal.SIGHUP)
        until(lambda: said.count("READY=1") == 2)
        assert said.index("RELOADING=1") < len(said) - 1 - said[::-1].index("READY=1")
        until(lambda: scrape(port).get(("amiss_windows_total", "s"), 0) > 0)

        config.write_text(config.read_text().replace("port =", "prot =", 1))
        agent.send_signal(signal.SIGHUP)
        until(lambda: said.count("READY=1") == 3)
        assert scrape(port)["amiss_stream_online", "s"] == 1, "what is wrong changes nothing"

        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
        until(lambda: "STOPPING=1" in said)
    finally:
        for process in (agent, machine):
            process.kill()
            process.communicate()
        systemd.close()
