"""Every board file is one, and a name that is none is answered with the nearest that is."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from edge.errors import ConfigError, UsageError
from quantize.target import Board, board, boards, parse

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
