"""Under systemd: say how we are, and let it end us when a stream's loop stands still.

    stream's thread ──beat──▶ Heartbeat ──alive?──▶ Notifier ──WATCHDOG=1──▶ systemd
                                main thread

systemd restarts what has not pinged for `WatchdogSec`. A timer thread would ping for ever while inference hangs, so the ping
depends on every stream's loop having turned lately. The protocol is one datagram of `KEY=value` lines (sd_notify(3)).
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

ALLOWANCE_S = 30.0
"""A stream's loop turns every 0.5 s at the latest, every 5 s while its sensor is away. A window takes milliseconds."""
_PATIENCE_S = 1.0
"""systemd that is busy may let us wait this long; the caller has other things to do."""


class Notifier:
    """Tells systemd what it asks for in `environ`, and nothing where there is none. `clock` is monotonic seconds.

    Nothing is raised: that systemd cannot be told does not keep the agent from its work.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic, pid: int | None = None
    ) -> None:
        self._clock = clock
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._complained = False
        self.interval_s = _interval_s(environ, os.getpid() if pid is None else pid) if self._address else None
        """How often it wants to hear from us: half of its patience. None: there is no watchdog."""
        self._ping_due_s = clock()

    def ready(self) -> None:
        """The start, or a reload, is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text:
            self._send(f"STATUS={' '.join(text.split())}")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        # Compared with systemd's own clock, so ours must be the same and not an injected one.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def turn(self, alive: bool) -> None:
        """Call it every second or so: pings the watchdog when that is due, and only when we are alive."""
        if alive and self._clock() >= self._ping_due_s:
            self.ping()

    def ping(self) -> None:
        """Now, because something begins that bears no `turn` for a while: a reload, a stop."""
        if self.interval_s is not None:
            self._ping_due_s = self._clock() + self.interval_s
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(_PATIENCE_S)
                out.sendto("\n".join(lines).encode(), self._address)
            self._complained = False
        except OSError as error:
            if not self._complained:
                log.warning("systemd cannot be told %s: %s", lines[0].partition("=")[0], error)
            self._complained = True


class Heartbeat:
    """Which loops turn? Each beats from its own thread; whoever looks may be another. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._due_s: dict[str, float] = {}

    def beat(self, loop: str, allowance_s: float = ALLOWANCE_S) -> None:
        """`loop` turns, and will again within `allowance_s`. The first beat makes it one that is waited for."""
        due_s = self._clock() + allowance_s
        with self._lock:
            self._due_s[loop] = due_s

    def end(self, loop: str) -> None:
        """It has ended in good order: a recording is over, a stream was taken out of the configuration."""
        with self._lock, contextlib.suppress(KeyError):
            del self._due_s[loop]

    def late(self) -> dict[str, float]:
        """Loops that have not beaten within their allowance, and by how many seconds they are late."""
        with self._lock:
            now_s = self._clock()
            return {loop: now_s - due_s for loop, due_s in self._due_s.items() if now_s > due_s}

    def alive(self) -> bool:
        """At least one loop is there, and none is late."""
        with self._lock:
            now_s = self._clock()
            return bool(self._due_s) and all(now_s <= due_s for due_s in self._due_s.values())


def _address(path: str) -> str | None:
    """Abstract sockets are written with an @. Other kinds (vsock:…, of virtual machines) are not for us."""
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else None


def _interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None  # meant for the process that started us
    try:
        patience_s = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    return patience_s / 2 if patience_s > 0 else None
