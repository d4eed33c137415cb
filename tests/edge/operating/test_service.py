"""What systemd is told, over a real socket; and that nobody pings for a stream that hangs, in a real process."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_bundle import build

from edge.operating.service import Heartbeat, Notifier


class Systemd:
    """The receiving end. Gives every datagram as its lines."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self, wait_s: float = 0.0) -> list[list[str]]:
        time.sleep(wait_s)
        found = []
        self._socket.setblocking(False)
        while True:
            try:
                found.append(self._socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found

    def next(self, timeout_s: float = 20.0) -> list[str]:
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(str(tmp_path / "notify") if request.param == "a path" else f"@amiss-test-{os.getpid()}")
    yield found
    found.close()


class Clock:
    s = 100.0

    def __call__(self) -> float:
        return self.s


def test_what_is_said(systemd: Systemd) -> None:
    notifier = Notifier(systemd.environ)
    notifier.ready()
    notifier.status("two\nlines")
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    notifier.stopping()
    heard = systemd.heard()
    reloading = heard.pop(2)
    assert heard == [["READY=1"], ["STATUS=two lines"], ["STOPPING=1"]]
    assert reloading[0] == "RELOADING=1"
    assert 0 <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) - before_us < 5e6


def test_the_watchdog_hears_of_us_at_half_of_its_patience_and_only_when_alive(systemd: Systemd) -> None:
    clock = Clock()
    environ = systemd.environ | {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ, clock=clock)
    assert notifier.interval_s == 30
    pings = []
    for second in range(200):
        clock.s = 100.0 + second
        notifier.turn(alive=not 95 <= second < 150)
        pings += [second for lines in systemd.heard() if lines == ["WATCHDOG=1"]]
    assert pings == [0, 30, 60, 90, 150, 180], "late, but at once when it is alive again"


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}],
    ids=["none", "off", "nonsense", "meant for another process"],
)
def test_nobody_waits_for_pings(environ: dict[str, str], systemd: Systemd) -> None:
    notifier = Notifier(systemd.environ | environ)
    notifier.turn(alive=True)
    assert notifier.interval_s is None
    assert systemd.heard() == []


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_elsewhere_it_is_silent(address: str | None) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    notifier = Notifier(environ | {"WATCHDOG_USEC": "1000000"})
    notifier.ready()
    notifier.turn(alive=True)
    assert notifier.interval_s is None


def test_a_socket_that_is_gone_is_told_once_and_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")})
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.status("x")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["systemd cannot be told READY"]


def test_a_systemd_that_does_not_read_costs_a_second_and_no_more(tmp_path: Path) -> None:
    deaf = Systemd(str(tmp_path / "notify"))
    notifier = Notifier(deaf.environ)
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            filler.sendto(b"x", deaf.environ["NOTIFY_SOCKET"])
    started_s = time.monotonic()
    notifier.status("x")
    assert time.monotonic() - started_s < 60, "for ever, without it"
    filler.close()
    deaf.close()


def test_one_late_loop_is_enough() -> None:
    clock = Clock()
    heart = Heartbeat(clock)
    assert not heart.alive(), "nothing turns yet"
    heart.beat("pump", 5)
    heart.beat("fan", 60)
    clock.s += 5
    assert heart.alive()
    clock.s += 2
    assert not heart.alive()
    assert heart.late() == {"pump": 2.0}
    heart.beat("pump", 5)
    assert heart.alive()
    clock.s += 20
    heart.end("pump")
    heart.end("pump")
    assert heart.alive(), "what has ended in good order is not waited for"
    assert heart.late() == {}


CHILD = """
import sys, threading, time
import numpy as np
from pathlib import Path
from edge.bundle import Bundle
from edge.operating.service import Heartbeat, Notifier
from edge.signal import Samples

bundle_path, beaten = sys.argv[1], sys.argv[2] == "heartbeat"
bundle = Bundle.open(Path(bundle_path))

class Hangs:
    '''The runtime, until a file says so; then as a driver that never comes back.'''
    def __init__(self, inner): self.inner = inner
    def run(self, x):
        if Path(bundle_path + ".hang").exists():
            Path(bundle_path + ".hangs").touch()
            threading.Event().wait()
        return self.inner.run(x)
    def __getattr__(self, name): return getattr(self.inner, name)

bundle.backend = Hangs(bundle.backend)
pipeline, heart, notifier = bundle.pipeline(), Heartbeat(), Notifier()

def follow():
    at_ns = 10**18
    while True:
        heart.beat("pump", 0.5)
        time_ns = at_ns + np.arange(32, dtype=np.int64) * 10_000_000
        pipeline.judge(Samples(time_ns, np.zeros((2, 32), np.float32)))
        at_ns = int(time_ns[-1]) + 10_000_000
        time.sleep(0.02)

threading.Thread(target=follow, daemon=True).start()
notifier.ready()
while True:
    notifier.turn(heart.alive() if beaten else True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("safeguard", ["heartbeat", "none"])
def test_a_process_whose_inference_hangs_is_not_pinged_for(safeguard: str, tmp_path: Path) -> None:
    """With its control: a main loop that pings for itself goes on, and systemd would never know."""
    systemd = Systemd(str(tmp_path / "notify"))
    bundle = build(tmp_path / "b.amiss")
    environ = os.environ | systemd.environ | {"WATCHDOG_USEC": "200000"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(bundle), safeguard], env=environ)
    try:
        said = systemd.next()
        while said != ["READY=1"]:  # the first ping may come before it
            said = systemd.next()
        assert [systemd.next() for _ in range(5)] == [["WATCHDOG=1"]] * 5, "it works, and is pinged for"
        (tmp_path / "b.amiss.hang").touch()
        deadline_s = time.monotonic() + 10
        while not (tmp_path / "b.amiss.hangs").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        systemd.heard(wait_s=0.8)  # its allowance, and what was under way
        pings = systemd.heard(wait_s=1.0)
        assert child.poll() is None
        assert bool(pings) is (safeguard == "none")
    finally:
        child.kill()
        child.wait()
        systemd.close()
