"""Try a model in a process that may die of it: `python -m edge.updating.trial`, an order in, an answer out, one JSON line each.

A file with a good signature may still ask for six gigabytes, compute for ever, or end the process that loads it: more than half
of the ONNX files with a flipped bit load and run, and LiteRT can segfault on a file that is cut short. So everything that is
done with a candidate for the first time is done in the child, under limits of memory, processor time and written bytes, a
deadline, and without what the agent's environment holds. The parent reads a bounded answer and believes nothing else.

    live ─▶ open ─▶ self-test ─▶ fit ─▶ shadow ─▶ refit ─▶ shadow again

What ends the child once it has turned to the candidate is the candidate's doing, `refused`. What ends it before, or from
outside, is not: `unknown`, to be tried again. What is killed again and again, for its memory most likely, the agent gives up.
"""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

import edge
from edge.bundle import Bundle, pack_arrays, unpack_arrays
from edge.config import AlarmConfig
from edge.errors import AmissError, DataError
from edge.files import at_once
from edge.head import Head
from edge.signal import Samples
from edge.updating.ring import recorded
from edge.updating.shadow import Limits, ShadowReport, Verdict, compare, refit, unlike

MEBIBYTE = 1 << 20
MOST_ANSWER = MEBIBYTE
WRITTEN = 128 * MEBIBYTE
"""Bytes that any file of the child may have; it writes a head and nothing else."""
BUSY = 0.25
"""Share of the deadline that a child must have computed for, or it was the machine that had no time for it."""
FITTED = 2 / 3
"""Share of the recording, its older part, that a head is fitted to; the rest judges it."""
TURN = 1 / 4
"""Share of the deadline after which no more of the recording is judged, for each of the two judgements and the fit."""
Stage = Literal["start", "live", "open", "self-test", "fit", "shadow", "refit", "done"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_OURS = frozenset({"start", "live"})
_MARK = b"\x01amiss at "
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "HOME")


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is to do. Paths are absolute."""

    candidate: str
    live: str
    ring: str
    """Folder of the stream's recording (`edge.updating.ring`)."""
    live_head: str = ""
    """An .npz that this stream was commissioned with; empty: the live model's own."""
    head_out: str = ""
    """Where a head that is fitted to the recording is written; empty: none is fitted."""
    alarm: AlarmConfig = AlarmConfig()
    limits: Limits = Limits()
    memory_bytes: int = 1024 * MEBIBYTE
    """Of address space, libraries included; those take 400 MB of it."""
    open_s: int = 60
    """Of processor time, up to the end of the self-test; a large model takes some seconds on a small board."""
    cpu_s: int = 1200
    """In all. No less than the deadline: how much of the recording is judged goes by time."""
    deadline_s: float = 1200.0
    nice: int = 10


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """How the candidate is made. Bounded: the agent divides by these."""

    window: Annotated[int, Meta(ge=1, le=1 << 40)]
    hop: Annotated[int, Meta(ge=1, le=1 << 40)]
    rate_hz: Annotated[float, Meta(ge=1e-9, le=1e12)]
    scorer: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Verdict
    stage: Stage
    """Where it was decided."""
    reasons: tuple[str, ...] = ()
    digest: str = ""
    """Of the candidate, once it is open."""
    runtime: str = ""
    made: Made | None = None
    own: ShadowReport | None = None
    """With the head of its bundle."""
    refitted: ShadowReport | None = None
    """With a head fitted to the older part of the recording, judged on the rest."""
    serves: Literal["", "own", "refitted"] = ""
    """The head to switch with, when it is accepted; `refitted` is in `Order.head_out`."""
    note: str = ""
    minutes_missing: float = 0.0
    """Of signal, which have to be recorded before it can be told."""
    killed: bool = False
    """From outside, once it had turned to the candidate."""
    peak_bytes: int = 0
    """Of the child, in memory."""
    seconds: float = 0.0

    def sentence(self) -> str:
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.verdict} ({self.stage}){why}{f'; {self.note}' if self.note else ''}"


# The parent's side.


def try_out(
    order: Order,
    *,
    stopping: Callable[[], bool] = lambda: False,
    command: Sequence[str] = (sys.executable, "-m", "edge.updating.trial"),
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Blocks until the child is done, dead, or out of time; polls `stopping` to give up early. Raises nothing for what a
    candidate does."""
    began_s = clock()
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONPATH": str(Path(edge.__file__).parents[1]), "PYTHONSAFEPATH": "1", "ORT_DISABLE_TELEMETRY": "1"}
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return Result(verdict="unknown", stage="start", reasons=(f"no process could be started: {error.strerror}",))
    ended = ""
    with child:
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(msgspec.json.encode(order) + b"\n")
                child.stdin.close()
            answer, stage, ended = _listen(child, began_s + order.deadline_s, stopping, clock)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
    seconds, cpu_s = clock() - began_s, usage.ru_utime + usage.ru_stime
    if not ended and child.returncode == 0:
        try:
            return msgspec.structs.replace(msgspec.json.decode(answer, type=Result), seconds=seconds)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            ended = f"answered with something else: {error}"
    verdict: Verdict = "unknown" if stage in _OURS else "refused"
    if ended == "stopping" or (ended == "late" and cpu_s < BUSY * min(order.deadline_s, order.cpu_s)):
        verdict = "unknown"
    killed = verdict == "refused" and not ended and child.returncode == -signal.SIGKILL and cpu_s < order.cpu_s
    if killed:
        verdict = "unknown"  # somebody else, or a kernel without memory
    reason = {
        "late": f"not done after {order.deadline_s:g} s",
        "stopping": "given up because the agent ends",
        "": _death(child.returncode),
    }.get(ended, ended)
    peak_bytes = usage.ru_maxrss * 1024
    return Result(verdict=verdict, stage=stage, reasons=(reason,), killed=killed, peak_bytes=peak_bytes, seconds=seconds)


def _listen(
    child: subprocess.Popen[bytes], until_s: float, stopping: Callable[[], bool], clock: Callable[[], float]
) -> tuple[bytes, Stage, str]:
    """What it answered, how far it came, and why nobody listened on."""
    assert child.stdout is not None
    assert child.stderr is not None
    answer, said, ended = b"", b"", ""
    stage: Stage = "start"
    open_ends = {child.stdout.fileno(), child.stderr.fileno()}
    while open_ends:
        if clock() >= until_s:
            ended = "late"
        elif stopping():
            ended = "stopping"
        elif len(answer) > MOST_ANSWER:
            ended = "answered with more than an answer has"
        if ended:
            break
        for descriptor in select.select(list(open_ends), [], [], 0.2)[0]:
            data = os.read(descriptor, 65536)
            if not data:
                open_ends.discard(descriptor)
            elif descriptor == child.stdout.fileno():
                answer += data
            else:
                said = (said + data)[-66000:]
                for name in STAGES:  # in order, so that nothing it prints brings it back to where it is not to blame
                    if STAGES.index(name) > STAGES.index(stage) and _MARK + name.encode() + b"\n" in said:
                        stage = name
    return answer, stage, ended


def _death(code: int) -> str:
    if code >= 0:
        return f"ended the process that tried it, with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = {"SIGXCPU": "it computes without an end", "SIGKILL": "out of memory, or killed from outside"}.get(name, name)
    return f"ended the process that tried it: {why}"


# The child's side.


def _limit(order: Order) -> None:
    """From here on nothing that happens can cost the device more."""
    with contextlib.suppress(OSError):  # a container may forbid that; the model is tried all the same
        os.nice(order.nice)
    signal.alarm(max(1, round(order.deadline_s)) + 5)  # should the parent die first
    for kind, limit in (
        (resource.RLIMIT_AS, order.memory_bytes),
        (resource.RLIMIT_FSIZE, WRITTEN),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (most, most))
    # At the softer limit comes a signal that says why, at the harder one SIGKILL.
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = order.cpu_s + 5 if hard == resource.RLIM_INFINITY else min(order.cpu_s + 5, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (min(order.open_s, order.cpu_s, most), most))
    with contextlib.suppress(OSError):  # where memory runs out all the same, this process goes and not the agent
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> int:
    line = sys.stdin.buffer.readline(MOST_ANSWER)
    # Native libraries print where they like: what is not the answer goes the way of everything else.
    out = os.dup(1)
    os.dup2(2, 1)
    order = msgspec.json.decode(line, type=Order)
    _limit(order)

    def at(stage: str) -> None:
        if stage == "fit":
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (min(order.cpu_s, hard), hard))
        _tell(stage)

    result = msgspec.structs.replace(judge(order, at), peak_bytes=_peak_bytes())
    data = msgspec.json.encode(result) + b"\n"
    while data:
        data = data[os.write(out, data) :]
    # Not by way of exit handlers: a runtime that has been fed damaged bytes may crash when it is taken down.
    os._exit(0)


def judge(order: Order, at: Callable[[str], None] | None = None) -> Result:
    """Everything, in this process. `at` is told each stage."""
    at = at or _tell
    at("live")
    live = Bundle.open(Path(order.live))
    head = _head(order, live)
    stage: Stage = "open"
    try:
        at(stage)
        candidate = Bundle.open(Path(order.candidate))
        stage = "self-test"
        at(stage)
        candidate.self_test()
    except AmissError as error:
        return Result(verdict="refused", stage=stage, reasons=(_line(error),))
    except Exception as error:  # whatever a hostile file makes our libraries raise
        return Result(verdict="refused", stage=stage, reasons=(f"fails with {type(error).__name__}: {_line(error)}",))
    return _suited(order, live, head, candidate, at)


def _suited(order: Order, live: Bundle, head: Head | None, candidate: Bundle, at: Callable[[str], None]) -> Result:
    digest, runtime, manifest = candidate.digest, candidate.backend.name, candidate.manifest
    made = Made(window=manifest.window, hop=manifest.hop, rate_hz=manifest.rate_hz, scorer=manifest.scorer)
    at("fit")
    if why := unlike(live.manifest, manifest):
        return Result(verdict="refused", stage="fit", reasons=(why,), digest=digest, runtime=runtime)
    folder = Path(order.ring)

    cut = False  # and then it is not for want of a recording that too little was judged

    def in_time(samples: Iterator[Samples]) -> Iterator[Samples]:
        nonlocal cut
        until_s = time.monotonic() + TURN * order.deadline_s
        for part in samples:
            yield part
            if time.monotonic() > until_s:
                cut = True
                return

    def compared(samples: Iterator[Samples], candidate_head: Head | None) -> ShadowReport:
        return compare(
            live,
            candidate,
            in_time(samples),
            alarm=order.alarm,
            live_head=head,
            candidate_head=candidate_head,
            limits=order.limits,
        )

    at("shadow")
    total = sum(map(len, recorded(folder)))
    first = round(FITTED * total)
    try:
        own = compared(recorded(folder), None)
    except DataError as error:
        return Result(verdict="unknown", stage="shadow", reasons=(_line(error),), digest=digest, runtime=runtime)
    found = Result(
        verdict=own.verdict,
        stage="shadow",
        reasons=own.reasons,
        own=own,
        digest=digest,
        runtime=runtime,
        made=made,
        minutes_missing=0.0 if cut else own.minutes_missing,
    )
    if own.verdict == "accepted":
        found = msgspec.structs.replace(found, stage="done", serves="own", note="serves with the head of its bundle")
    # What the machine has taught the live model is not to be lost. A model that nobody commissioned needs no other head, unless
    # its own does not suit the machine.
    wished = head is not None or own.verdict == "refused"
    if own.failed or own.verdict == "unknown" or not wished or not order.head_out:
        return found
    at("refit")
    try:
        fitted = refit(candidate, in_time(_part(recorded(folder), 0, first)), alarm=order.alarm)
        refitted = compared(_part(recorded(folder), first, total), fitted)
        if refitted.verdict == "accepted":
            with at_once(Path(order.head_out)) as draft:
                draft.write_bytes(pack_arrays(fitted.arrays()))
    except AmissError as error:
        return msgspec.structs.replace(found, note=f"{found.note or 'refused'}; no head of this machine's own: {_line(error)}")
    found = msgspec.structs.replace(found, refitted=refitted)
    if refitted.verdict == "accepted":
        note = "serves with a head fitted to what is recorded of this machine"
        return msgspec.structs.replace(found, verdict="accepted", stage="done", reasons=(), serves="refitted", note=note)
    if refitted.verdict == "unknown":  # more of it will tell, and until then the machine keeps what it has learned
        missing = refitted.minutes_missing / (1 - FITTED)
        reason = f"{missing:.3g} more min have to be recorded before a head of this machine's own can be judged"
        return msgspec.structs.replace(
            found,
            verdict="unknown",
            stage="refit",
            reasons=(reason,),
            serves="",
            note="",
            minutes_missing=0.0 if cut else missing,
        )
    if own.verdict == "accepted":
        return msgspec.structs.replace(
            found, note=f"{found.note}; one of this machine's own does not serve: {refitted.reasons[0]}"
        )
    return msgspec.structs.replace(found, stage="refit", note="nor with a head fitted to what is recorded of this machine")


def _part(samples: Iterator[Samples], start: int, stop: int) -> Iterator[Samples]:
    """From one sample to another, counted from the first."""
    at = 0
    for part in samples:
        low, high = max(start - at, 0), min(stop - at, len(part))
        if low < high:
            yield Samples(part.time_ns[low:high], part.x[:, low:high])
        at += len(part)
        if at >= stop:
            return


def _head(order: Order, live: Bundle) -> Head | None:
    if not order.live_head:
        return None
    return Head.from_arrays(live.manifest.scorer, unpack_arrays(Path(order.live_head).read_bytes()))


def _peak_bytes() -> int:
    """The most memory that this process ever had. What getrusage says begins with the size of whoever started it."""
    with contextlib.suppress(OSError, ValueError, IndexError), Path("/proc/self/status").open("rb") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(b"VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _tell(stage: str) -> None:
    os.write(2, _MARK + stage.encode() + b"\n")


if __name__ == "__main__":
    raise SystemExit(main())
