"""Ask the repository, from the agent's side: a child process does it (`edge.updating.fetch`), and all that is believed of it is
one line of JSON. Loads nothing of TUF.

Both calls block, up to the configured deadline and 5 s more, or until `stopping` says so; call them from a thread that has
nothing else to do.
"""

import contextlib
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

import edge
from edge.config import DeviceConfig, UpdateConfig
from edge.errors import ConfigError, RepositoryAwayError, StorageError, UnfitError, UntrustedError
from edge.updating import rules
from edge.updating.fetch import MOST_REPLY_BYTES, Reply, Request
from edge.updating.offer import Facts, Offer
from edge.updating.store import Models

log = logging.getLogger(__name__)

POLL_S = 0.2
GRACE_S = 5.0
"""Beyond its own deadline: a child that starts on a busy board, or that hangs in a call which no alarm ends."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the repository said. Everything but `ok` is ordinary life: the model that runs goes on running."""

    state: Literal["ok", "stale", "away", "untrusted", "disk", "config"]
    reason: str = ""
    """Why it is not `ok`; cause in one line."""
    offers: tuple[Offer, ...] = ()
    """All that are signed, highest number first."""
    chosen: Offer | None = None
    """What to fetch. None: nothing newer is for this device."""
    unfit: tuple[tuple[Offer, str], ...] = ()
    """Newer than what runs or asked for, and not for this device: why."""
    skipped: tuple[str, ...] = ()
    """Targets of the repository that are no offers, and why."""


def _never() -> bool:
    return False


def check(
    config: DeviceConfig,
    facts: Facts,
    models: Models,
    *,
    now_s: float | None = None,
    stopping: Callable[[], bool] = _never,
) -> Checked:
    """Which model is there for this device? Notes the newest signed time in `models`.

    `now_s`: instead of the clock, epoch seconds. Raises `StorageError` of `models` and nothing else.
    """
    update = _section(config)
    reply = _run(_request(config, update, models, now_s=now_s), stopping)
    if reply.state != "ok":
        return Checked(reply.state, reply.reason)
    now = time.time() if now_s is None else now_s
    floor_s = models.state.time_s
    models.note_time(rules.time_floor(floor_s, now, offline_s=reply.offline_s, online_s=reply.online_s))
    bad, floor, lost = models.bad, models.floor, models.lost
    active = None if models.active is None else models.active.digest
    unfit = []
    for offer in reply.offers:
        if offer.number > floor or (offer.number == facts.asked and offer.digest != active):  # who asked is to hear why not
            try:
                if offer.digest in bad:
                    raise UnfitError(f"model {offer.number} was found bad here: {bad[offer.digest]}")
                if offer.number <= floor:
                    raise UnfitError(f"model {offer.number} is not newer than {floor}, which was committed here")
                rules.fits(offer, facts, update.max_bytes)
            except UnfitError as error:
                unfit.append((offer, str(error)))
    chosen = rules.choose(reply.offers, facts, floor, bad, max_bytes=update.max_bytes, active=active, lost=lost)
    return Checked("ok", "", reply.offers, chosen, tuple(unfit), reply.skipped)


def fetch(
    config: DeviceConfig,
    offer: Offer,
    models: Models,
    *,
    now_s: float | None = None,
    stopping: Callable[[], bool] = _never,
) -> Path:
    """Download what was offered into the store; returns its file there. What is cut goes on from there the next time.

    Raises `RepositoryAwayError` (try again), `UntrustedError`, `ConfigError` or `StorageError`.
    """
    update = _section(config)
    if offer.size > update.max_bytes:
        raise UnfitError(f"model {offer.number} has {offer.size} bytes; `update.max_bytes` is {update.max_bytes}")
    if models.holds(offer.digest):
        return models.path(offer.digest)
    into = models.incoming / f"{offer.digest}.amiss"
    part = into.with_name(f"{into.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    models.room_for(max(0, offer.size - have))
    request = msgspec.structs.replace(
        _request(config, update, models, now_s=now_s), take=offer.path, digest=offer.digest, into=str(into)
    )
    reply = _run(request, stopping)
    if reply.state != "ok":
        where = f"{update.repository}: {reply.reason}"
        match reply.state:
            case "away" | "stale":
                raise RepositoryAwayError(where)
            case "config":
                raise ConfigError(reply.reason)
            case "disk":
                raise StorageError(reply.reason)
        raise UntrustedError(where)
    try:
        return models.put(into, offer.digest)
    finally:
        into.unlink(missing_ok=True)


def _section(config: DeviceConfig) -> UpdateConfig:
    if config.update is None:
        raise ConfigError("there is no section [update]; docs/howto/receive-a-model.md says what belongs there")
    return config.update


def _request(config: DeviceConfig, update: UpdateConfig, models: Models, *, now_s: float | None) -> Request:
    return Request(
        repository=update.repository,
        root=str(Path(update.root).absolute()),
        folder=str((models.folder / "tuf").absolute()),
        deadline_s=update.deadline_s,
        time_floor_s=models.state.time_s,
        now_s=now_s,
        ca=update.ca,
        mqtt=config.mqtt,
        node=config.node,
        max_bytes=update.max_bytes,
    )


def _run(request: Request, stopping: Callable[[], bool]) -> Reply:
    """One child, from start to end. Never raises for what the child does."""
    # Not the agent's secrets: a password that it needs is in the request. Nor modules from wherever the agent was started.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AMISS_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(Path(edge.__file__).parents[1]), "PYTHONSAFEPATH": "1", "MALLOC_ARENA_MAX": "1"}
    until_s = time.monotonic() + request.deadline_s + GRACE_S
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "edge.updating.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:  # no memory or no process left: ordinary on a small board
        return Reply(state="away", reason=f"no process can be started to ask it: {error.strerror}")
    with child:
        try:
            out, complaint = _talk(child, msgspec.json.encode(request), until_s, stopping)
        finally:
            child.kill()
    if out is None and stopping():
        return Reply(state="away", reason="given up because the agent ends")
    if out is None:
        return Reply(state="away", reason=f"took longer than {request.deadline_s:g} s")
    try:
        return msgspec.json.decode(out, type=Reply)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        last = complaint.decode(errors="replace").strip().splitlines()
        if last:
            log.error("edge.updating.fetch: %s", "\n".join(last[-20:]))
        why = last[-1][:200] if last else f"exit {child.returncode}"
        return Reply(state="untrusted", reason=f"reading the repository ended with an accident: {why}")


def _talk(
    child: "subprocess.Popen[bytes]", question: bytes, until_s: float, stopping: Callable[[], bool]
) -> tuple[bytes | None, bytes]:
    """What it said on standard output (None: it came to no end in time, or the agent ends) and on standard error; bounded."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        child.stdin.write(question)  # fewer bytes than a pipe holds
        child.stdin.close()
    except BrokenPipeError:
        pass
    heard = {child.stdout: b"", child.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for stream in heard:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() or child.poll() is None:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or stopping():
                return None, heard[child.stderr]
            if not selector.get_map():  # it has said all, and is about to end
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(min(left_s, POLL_S))
                continue
            for key, _ in selector.select(min(left_s, POLL_S)):
                stream = child.stdout if key.fileobj is child.stdout else child.stderr
                chunk = os.read(stream.fileno(), 4096)
                if not chunk:
                    selector.unregister(stream)
                elif len(heard[stream]) <= MOST_REPLY_BYTES:
                    heard[stream] += chunk
                elif stream is child.stdout:
                    return b"", heard[child.stderr]
    return heard[child.stdout], heard[child.stderr]
