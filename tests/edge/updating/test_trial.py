"""Row 16 and twenty (and some) kinds of bad models: which gate stops which, and what a hostile one does to the agent."""

import io
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bad_models import BAD, CHANNELS, RATE_HZ, good, greedy, operated, packed, running
from mosquitto import until
from onnx import TensorProto, helper

from edge.bundle import unpack_arrays
from edge.config import AlarmConfig
from edge.head import Head
from edge.signal import Samples
from edge.updating.ring import Ring, recorded
from edge.updating.shadow import Limits
from edge.updating.trial import Order, Result, judge, try_out

LIMITS = Limits(minutes=4.0, windows=200)


def record(folder: Path, minutes: float, seed: int = 77) -> Path:
    """What a stream at 100 Hz left on the disk."""
    now_s = [0.0]
    ring = Ring(
        folder, CHANNELS, RATE_HZ, hours=24, max_bytes=1 << 28, bytes_per_day=1 << 40, stretch=256, clock=lambda: now_s[0]
    )
    x = running(round(minutes * 60 * RATE_HZ), seed)
    now_s[0] = 60.0
    for at in range(0, x.shape[1], 100):
        part = x[:, at : at + 100]
        ring.add(Samples((np.arange(at, at + part.shape[1]) * 10_000_000).astype(np.int64), part))
        now_s[0] += 1.0
    ring.close()
    assert sum(map(len, recorded(folder))) == x.shape[1]
    return folder


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A live model, and a quarter of an hour of its stream."""
    folder = tmp_path_factory.mktemp("device")
    packed(folder / "live.amiss", *good())
    record(folder / "ring", 12)
    return folder


def order(device: Path, candidate: Path, **changes: object) -> Order:
    kept: dict[str, object] = {
        "limits": LIMITS,
        "alarm": AlarmConfig(p_value=0.002),
        "cpu_s": 4,
        "deadline_s": 60.0,
        **changes,
    }
    return Order(candidate=str(candidate), live=str(device / "live.amiss"), ring=str(device / "ring"), **kept)  # type: ignore[arg-type]


def tried(device: Path, candidate: Path, **changes: object) -> Result:
    return try_out(order(device, candidate, **changes))


def test_a_good_model_is_accepted(device: Path, tmp_path: Path) -> None:
    """The control of everything below."""
    result = tried(device, packed(tmp_path / "c.amiss", *good(seed=5)))
    assert (result.verdict, result.stage, result.serves) == ("accepted", "done", "own"), result.sentence()
    assert result.own is not None
    assert result.own.candidate is not None
    assert result.own.live.windows > 10_000
    assert result.peak_bytes < 256 << 20
    print(result.sentence(), result.seconds, result.own)


@pytest.mark.parametrize("kind", list(BAD))
def test_each_kind_of_bad_model_is_stopped_where_it_is_said(device: Path, tmp_path: Path, kind: str) -> None:
    bad = BAD[kind]
    result = tried(device, packed(tmp_path / "c.amiss", *bad.build()))
    print(f"{kind:45} {result.sentence()}  [{result.seconds:.1f} s, {result.peak_bytes >> 20} MB]")
    if bad.stopped_by in ("probation", "nothing"):
        assert result.verdict == "accepted", result.sentence()
        return
    assert (result.verdict, result.stage) == ("refused", bad.stopped_by), result.sentence()
    assert bad.says in " ".join(result.reasons), result.sentence()
    assert not any("\n" in reason for reason in result.reasons)
    # Where it was killed getrusage has the last word, and begins with the size of whoever started it: this process.
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert result.peak_bytes <= max(1 << 30, ours)


# Hostile ones. The parent is this process: that the tests go on says that it lives.


def tiny(megabytes: int) -> bytes:
    """The smallest graph that asks for memory, and for nothing else."""
    made = helper.make_node("ConstantOfShape", ["s"], ["embedding"])
    model = helper.make_model(
        helper.make_graph(
            [made],
            "",
            [],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
            [helper.make_tensor("s", TensorProto.INT64, [1], [megabytes * 250_000])],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def test_a_graph_of_92_bytes_that_asks_for_six_gigabytes(device: Path, tmp_path: Path) -> None:
    manifest, members = good()
    graph = tiny(6400)
    assert len(graph) <= 92
    result = tried(device, packed(tmp_path / "c.amiss", manifest, {**members, "model.onnx": graph}))
    assert (result.verdict, result.stage) == ("refused", "open")
    assert result.peak_bytes < 256 << 20


def test_without_the_limit_a_model_would_take_what_it_asks_for(device: Path, tmp_path: Path) -> None:
    """The control: 800 MB, which this computer has, with and without."""
    members = operated(greedy(800), regolden=False)
    limited = tried(device, packed(tmp_path / "c.amiss", good()[0], members), memory_bytes=900 << 20)
    assert (limited.verdict, limited.peak_bytes < 256 << 20) == ("refused", True), limited.sentence()
    free = tried(device, tmp_path / "c.amiss", memory_bytes=8 << 30)
    assert free.peak_bytes > 800_000_000, free.sentence()


@pytest.mark.parametrize("count", [60, pytest.param(4000, marks=pytest.mark.soak)])
def test_mutants_with_a_good_digest_end_their_own_process_and_no_other(device: Path, tmp_path: Path, count: int) -> None:
    """ONNX and .tflite in turn. Each in a process of its own, forked by one that has loaded everything, to save its start."""
    record(tmp_path / "ring", 1)  # what loads and proves itself is judged on, but not for long
    template = order(device, tmp_path / "mutant.amiss", limits=Limits(minutes=0.5, windows=200))
    template = msgspec.structs.replace(template, ring=str(tmp_path / "ring"), deadline_s=120.0, cpu_s=6)
    (tmp_path / "order.json").write_bytes(msgspec.json.encode(template))
    script = Path(__file__).parents[2] / "mutants.py"
    # Beside the script lies a folder `edge`, of tests; ours has to be found before it.
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(tmp_path / "order.json"), str(count)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(told.stdout.splitlines()[-1])
    print(found)
    assert found["tried"] == count
    assert found["whole"] == "accepted", "the control of the harness"
    assert found["peak_bytes"] <= 1 << 30
    assert found["refused"] + found["died"] > count / 10, "the control: they are damaged"
    assert found["late"] == 0


@pytest.mark.parametrize(
    "name", ["../../escape", "/tmp/amiss-escape", "a/../../escape", "..\\escape", "model.onnx/../escape", "\0escape"]
)
def test_names_that_lead_elsewhere_are_refused_and_nothing_is_written(device: Path, tmp_path: Path, name: str) -> None:
    whole = packed(tmp_path / "inner" / "c.amiss", *good())
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    before = sorted(tmp_path.rglob("*"))
    result = judge(order(device, whole), at=lambda stage: None)
    assert (result.verdict, result.stage) == ("refused", "open")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/amiss-escape").exists()


def test_a_link_in_the_archive_is_a_member_and_leads_nowhere(device: Path, tmp_path: Path) -> None:
    """`head.npz` as a symbolic link: its content is the path, which is no array."""
    manifest, members = good()
    path = packed(tmp_path / "c.amiss", manifest, {**members, "head.npz": b"/etc/passwd"})
    data = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(data, "w") as new:
        for entry in old.infolist():
            content = old.read(entry.filename)
            if entry.filename == "head.npz":
                entry.external_attr = 0o120777 << 16
            new.writestr(entry, content)
    path.write_bytes(data.getvalue())
    result = judge(order(device, path), at=lambda stage: None)
    assert (result.verdict, result.stage) == ("refused", "open")


# A child that does not behave.


def played(code: str, *, deadline_s: float = 60.0, cpu_s: int = 60, stopping: Callable[[], bool] = lambda: False) -> Result:
    begin = "import os, sys, time, signal\ndef at(s): os.write(2, b'\\x01amiss at ' + s.encode() + b'\\n')\n"
    asked = Order(candidate="c", live="l", ring="r", deadline_s=deadline_s, cpu_s=cpu_s)
    return try_out(asked, command=(sys.executable, "-c", begin + code), stopping=stopping)


@pytest.mark.parametrize(
    ("code", "verdict", "says"),
    [
        ("at('open'); os.kill(os.getpid(), signal.SIGSEGV)", "refused", "SIGSEGV"),
        ("at('live'); os.kill(os.getpid(), signal.SIGSEGV)", "unknown", "SIGSEGV"),
        ("at('shadow'); os.kill(os.getpid(), signal.SIGKILL)", "unknown", "killed from outside"),
        ("at('live'); os.kill(os.getpid(), signal.SIGKILL)", "unknown", "killed from outside"),
        ("at('open'); sys.exit(3)", "refused", "exit code 3"),
        ("at('open'); print('hello')", "refused", "something else"),
        ("at('open'); os.write(1, b'{\"verdict\": \"\\xff\"}')", "refused", "something else"),
        (
            'at(\'open\'); os.write(1, b\'{"verdict": "accepted", "stage": "done", "x":\' + b\'[\' * 100_000)',
            "refused",
            "something else",
        ),
        ("at('open'); sys.stdout.write('x' * (1 << 22))", "refused", "more than an answer has"),
        ("at('open'); at('start'); os.abort()", "refused", "SIGABRT"),
    ],
)
def test_a_child_that_dies_or_says_something_else(code: str, verdict: str, says: str) -> None:
    result = played(code)
    assert (result.verdict, says in result.reasons[0]) == (verdict, True), result.sentence()
    assert result.killed == ("SIGKILL" in code and "live" not in code)


def test_the_deadline_holds_and_whose_fault_it_was_is_seen_by_what_it_computed() -> None:
    began_s = time.monotonic()
    asleep = played("at('shadow'); time.sleep(600)", deadline_s=2.0)
    # A quarter of a second of the processor is busy, in so many seconds that it is had on a busy computer too.
    busy = played("at('shadow')\nwhile True: pass", deadline_s=4.0, cpu_s=1)
    loud = played("at('shadow')\nwhile True: os.write(2, b'x' * 65536)", deadline_s=2.0)
    assert time.monotonic() - began_s < 100
    assert [one.verdict for one in (asleep, busy)] == ["unknown", "refused"]
    assert "not done after 2 s" in loud.reasons[0]
    assert "not done after 4 s" in busy.reasons[0]


def test_what_the_child_starts_goes_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    played(
        f"p = os.fork()\nif p == 0: time.sleep(600)\nopen({str(mark)!r}, 'w').write(f'{{p}}.'); time.sleep(600)",
        stopping=lambda: mark.exists() and mark.read_text().endswith("."),
    )
    state = Path(f"/proc/{mark.read_text().removesuffix('.')}/stat")

    def gone() -> bool:
        try:
            return state.read_text().split(") ")[1][0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(gone)


def test_an_agent_that_ends_does_not_wait() -> None:
    began_s = time.monotonic()
    result = played("at('shadow'); time.sleep(600)", deadline_s=600.0, stopping=lambda: True)
    assert result.verdict == "unknown"
    assert time.monotonic() - began_s < 60


def test_secrets_of_the_agent_are_not_the_childs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMISS_MQTT__PASSWORD", "geheim")
    result = played("at('open'); sys.exit(7 if 'geheim' in str(os.environ) else 8)")
    assert "exit code 8" in result.reasons[0]


# What serves.


def test_a_machine_that_was_commissioned_gets_a_head_of_its_own_for_the_new_model(device: Path, tmp_path: Path) -> None:
    head = tmp_path / "live.npz"
    head.write_bytes(good()[1]["head.npz"])
    candidate = packed(tmp_path / "c.amiss", *good(seed=5))
    out = tmp_path / "new.npz"
    result = tried(device, candidate, live_head=str(head), head_out=str(out), limits=Limits(minutes=3.0), cpu_s=30)
    assert (result.verdict, result.serves) == ("accepted", "refitted"), result.sentence()
    assert result.refitted is not None
    assert result.refitted.head == "refitted"
    Head.from_arrays(good()[0].scorer, unpack_arrays(out.read_bytes()))
    assert out.stat().st_size < 1 << 20
    short = tried(
        device, candidate, live_head=str(head), head_out=str(tmp_path / "no.npz"), limits=Limits(minutes=10.0), cpu_s=30
    )
    assert (short.verdict, short.stage) == ("unknown", "refit"), (
        "what the machine has learned is not given up for want of minutes"
    )
    assert not (tmp_path / "no.npz").exists()
    assert 17 < short.minutes_missing < 19, "of which a third is judged"


def test_a_model_whose_own_head_does_not_suit_may_serve_with_one_that_does(device: Path, tmp_path: Path) -> None:
    """Trained on a fleet that runs otherwise."""
    candidate = packed(tmp_path / "c.amiss", *BAD["alarms at everything"].build())
    alone = tried(device, candidate)
    assert alone.verdict == "refused"
    result = tried(device, candidate, head_out=str(tmp_path / "h.npz"), limits=Limits(minutes=3.0), cpu_s=30)
    assert (result.verdict, result.serves) == ("accepted", "refitted"), result.sentence()
    assert result.own is not None
    assert result.own.verdict == "refused"


def test_a_live_model_that_cannot_be_opened_is_not_the_candidates_fault(device: Path, tmp_path: Path) -> None:
    candidate = packed(tmp_path / "c.amiss", *good(seed=5))
    result = try_out(msgspec.structs.replace(order(device, candidate), live=str(tmp_path / "none.amiss")))
    assert (result.verdict, result.stage) == ("unknown", "live")


def test_nothing_recorded_yet_is_unknown(device: Path, tmp_path: Path) -> None:
    candidate = packed(tmp_path / "c.amiss", *good(seed=5))
    result = try_out(msgspec.structs.replace(order(device, candidate), ring=str(tmp_path / "none")))
    assert (result.verdict, result.stage) == ("unknown", "shadow")
    assert ("4 more are needed" in result.reasons[0], result.minutes_missing) == (True, 4.0)
