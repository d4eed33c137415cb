"""Every board file is one; a name that is none is answered with the nearest that is; what is shipped for a board suits it.

Instructions come from a small class here; tests/arm64 has the real ones.
"""

import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import onnx
import pytest

from edge.bundle import Bundle, members_of
from edge.errors import ConfigError, GateError, UsageError
from edge.signal import Float32
from quantize import quantize
from quantize.choice import choose
from quantize.emulation import EmulationError, Emulator
from quantize.parity import Parity
from quantize.target import Board, Instructions, board, boards, parse, refusals, thousands
from trainer.recipe import Budget

BOARDS = Path(__file__).parents[2] / "firmware-configs" / "boards"
PI4 = tomllib.loads((BOARDS / "raspberry-pi-4.toml").read_text())


def test_every_file_is_a_board_and_every_name_means_one() -> None:
    known = boards()
    assert set(known) == {file.stem for file in BOARDS.iterdir()}, "quantize/boards is not firmware-configs/boards"
    assert {"raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5"} <= set(known)
    names = [name for each in known.values() for name in (each.name, *each.aliases)]
    assert len(names) == len(set(names)), "a name means two boards"
    for each in known.values():
        assert all(board(name) == each for name in (each.name, *each.aliases))


def test_short_names() -> None:
    assert [board(name).processor for name in ("pi3", "pi4", "pi5", "orin", "pc")] == [
        "cortex-a53",
        "cortex-a72",
        "cortex-a76",
        "cortex-a76",
        None,
    ]


@pytest.mark.parametrize(("name", "meant"), [("pi44", "pi4"), ("raspbery-pi-5", "raspberry-pi-5"), ("Jetson", "jetson")])
def test_the_nearest_name_is_offered(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean `{meant}`") as caught:
        board(name)
    assert caught.value.exit_code == 2
    assert "known: generic-arm64" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_near_is_nothing_offered() -> None:
    with pytest.raises(UsageError, match="unknown target 'toaster'; known: ") as caught:
        board("toaster")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"procesor": "cortex-a72"}, "unknown key `procesor`; did you mean `processor`"),
        ({"processor": "cortex-a9"}, "processor: invalid enum value 'cortex-a9'"),
        ({"processor": None}, "processor: none does not go with aarch64"),
        ({"architecture": "x86_64"}, "processor: cortex-a72 does not go with x86_64"),
        ({"memory_mb": 1}, "memory_mb: "),
        ({"cores": 0}, "cores: "),
        ({"runtimes": []}, "runtimes: "),
        ({"activations": "float"}, "activations: "),
        ({"flips": 3.0}, "flips: "),
        ({"title": ""}, "title: "),
        ({"name": "pi"}, "name: a board is called as its file is"),
        ({"aliases": ["Pi 4"]}, "aliases"),
    ],
)
def test_a_wrong_file_is_refused_by_key(change: dict[str, object], said: str) -> None:
    assert isinstance(parse(PI4, "raspberry-pi-4"), Board), "the control"
    with pytest.raises(ConfigError) as caught:
        parse({key: value for key, value in {**PI4, **change}.items() if value is not None}, "raspberry-pi-4")
    assert str(caught.value).startswith("boards/raspberry-pi-4.toml: ")
    assert said in str(caught.value)


def test_a_board_that_says_too_little_is_refused() -> None:
    for key in ("title", "architecture", "cores", "memory_mb", "runtimes", "activations"):
        with pytest.raises(ConfigError, match=key):
            parse({name: value for name, value in PI4.items() if name != key}, "raspberry-pi-4")


def test_boards_are_values() -> None:
    with pytest.raises(AttributeError):
        board("pi4").cores = 8  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(board("pi4")), type=Board) == board("pi4")


ANYTHING = Budget(embedding_error=1e9, rank_correlation=-1, flips=0, auroc_loss=1)
"""But for time and verdicts: of them the board says what is allowed."""
PARITY = Parity(
    windows=100,
    embedding_error=0.01,
    rank_correlation=0.999,
    flips=0.01,
    p_value=0.001,
    float_us=100.0,
    int8_us=50.0,
    float_p99_us=200.0,
    int8_p99_us=100.0,
    float_bytes=2,
    int8_bytes=1,
)


PI5 = msgspec.structs.replace(board("pi5"), flips=1.0)


class Told:
    """An emulator that has been told what to say."""

    def __init__(self, float32: int, int8: int) -> None:
        self._said = {"float32": {1: float32}, "int8": {1: int8}}
        self.asked: list[tuple[str, ...]] = []

    def __call__(self) -> Emulator:
        return self

    def instructions(
        self, models: Mapping[str, bytes], windows: Float32, processor: str, batches: Sequence[int] = (1,)
    ) -> dict[str, dict[int, int]]:
        assert windows.ndim == 3
        self.asked.append((processor, *models))
        return self._said


class Broken(Told):
    def instructions(
        self, models: Mapping[str, bytes], windows: Float32, processor: str, batches: Sequence[int] = (1,)
    ) -> dict[str, dict[int, int]]:
        raise EmulationError("it fell over")


def absent() -> Emulator:
    raise EmulationError("qemu-aarch64 is not installed: do this and that")


def counted(float32: int, int8: int) -> Instructions:
    return Instructions(processor="cortex-a72", float32=float32, int8=int8)


def test_instructions_decide_where_they_were_counted() -> None:
    slow_here = msgspec.structs.replace(PARITY, int8_us=1e6)
    assert refusals(board("pi4"), slow_here, counted(1000, 999), Budget()) == []
    assert refusals(board("pi4"), slow_here, counted(1000, 1000), Budget()) == []
    (reason,) = refusals(board("pi4"), PARITY, counted(500_000, 612_345), Budget())
    assert reason == "610 thousand instructions a window in int8, 500 in float on cortex-a72"


def test_time_here_decides_where_they_were_not() -> None:
    slow_here = msgspec.structs.replace(PARITY, float_us=10.0, int8_us=11.0)
    assert refusals(board("pi4"), PARITY, "no QEMU", Budget()) == []
    (reason,) = refusals(board("pi4"), slow_here, "no QEMU", Budget())
    assert "slower than float on the machine that built it" in reason
    assert not any(digit in reason for digit in "0123456789"), "a clock's figure would be another one each time"


def test_a_board_says_how_many_verdicts_may_differ() -> None:
    strict, lenient = (msgspec.structs.replace(board("pi4"), flips=share) for share in (0.005, 0.02))
    assert refusals(lenient, PARITY, counted(2, 1), Budget(flips=0)) == []
    assert "verdicts differ" in refusals(strict, PARITY, counted(2, 1), Budget(flips=1))[0]


def test_the_third_digit_is_not_told() -> None:
    assert [thousands(n) for n in (607_301, 606_620, 1_234_567, 8_113)] == ["610", "610", "1200", "8.1"]


def activations(path: Path) -> set[str]:
    graph = onnx.load_from_string(members_of(path)["model.onnx"]).graph
    zeros = {each.name: onnx.numpy_helper.to_array(each).dtype for each in graph.initializer}
    return {str(zeros[node.input[2]]) for node in graph.node if node.op_type == "QuantizeLinear"}


def test_int8_that_is_faster_there_is_shipped(run: Path, tmp_path: Path) -> None:
    told = Told(607_000, 470_000)
    result = quantize(run, tmp_path / "x.amiss", budget=ANYTHING, target=PI5, arm64=told)
    manifest = Bundle.open(tmp_path / "x.amiss").manifest
    assert told.asked == [("cortex-a76", "float32", "int8")]
    assert (manifest.target, manifest.precision) == ("raspberry-pi-5", "int8")
    assert "470 thousand instructions a window in int8, 610 in float on cortex-a76" in manifest.precision_reason
    assert "µs" not in manifest.precision_reason
    assert activations(tmp_path / "x.amiss") == {"int8"}
    assert any("emulated" in line for line in result.lines())
    assert result.instructions == {"onnxruntime": Instructions(processor="cortex-a76", float32=607_000, int8=470_000)}


def test_it_says_when_nothing_was_counted(run: Path, tmp_path: Path) -> None:
    """Then int8 is unsigned: signed is slower than float here, and where only the clock can tell it would always be refused."""
    patient = msgspec.structs.replace(ANYTHING, slower=1e9)
    result = quantize(run, tmp_path / "x.amiss", budget=patient, target=PI5, arm64=absent)
    assert (result.precision, result.instructions) == ("int8", {})
    assert any("instructions were not counted: qemu-aarch64 is not installed: do this" in line for line in result.lines())
    assert Bundle.open(tmp_path / "x.amiss").manifest.precision_reason.endswith("instructions were not counted")
    assert activations(tmp_path / "x.amiss") == {"uint8"}


def test_int8_that_is_slower_there_is_refused(run: Path, tmp_path: Path) -> None:
    told = Told(568_000, 607_000)
    quantize(run, tmp_path / "x.amiss", budget=ANYTHING, target=PI5, arm64=told)
    manifest = Bundle.open(tmp_path / "x.amiss").manifest
    assert (manifest.target, manifest.precision) == ("raspberry-pi-5", "float32")
    assert manifest.precision_reason.startswith("int8 is not for raspberry-pi-5: 610 thousand instructions")


def test_int8_that_was_asked_for_is_refused_too() -> None:
    assert choose(PARITY, "int8", Budget(), (PI5, counted(2, 1)))[0] == "int8"
    assert choose(PARITY, "auto", Budget(), (PI5, counted(1, 2)))[0] == "float32"
    with pytest.raises(GateError, match="int8 is not for raspberry-pi-5: "):
        choose(PARITY, "int8", Budget(), (PI5, counted(1, 2)))


def test_what_training_did_is_said_for_a_board_too() -> None:
    assert choose(PARITY, "auto", Budget(), (PI5, counted(2, 1)), "; trained again")[1].endswith("; trained again")
    assert choose(PARITY, "auto", Budget(), (PI5, counted(1, 2)), "; trained again")[1].endswith("; trained again")
    assert "trained again" not in choose(PARITY, "auto", Budget(), (PI5, counted(2, 1)))[1]


def test_when_the_emulator_fails_the_bundle_is_made_all_the_same(run: Path, tmp_path: Path) -> None:
    result = quantize(run, tmp_path / "x.amiss", target=board("pi4"), arm64=Broken(2, 1))
    assert result.not_counted == "it fell over"
    assert Bundle.open(tmp_path / "x.amiss").manifest.target == "raspberry-pi-4"


def test_an_unknown_target_is_usage(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amiss", "quantize", run, "--out", tmp_path / "x.amiss", "--target", "pi44"]
    done = subprocess.run([*map(str, command)], cwd=BOARDS.parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("amiss: unknown target 'pi44'; did you mean `pi4`?")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.amiss").exists()
