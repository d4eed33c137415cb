"""What the device must not load, and what it must not do behind its owner's back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "onnx",
    "onnxscript",
    "scipy",
    "sklearn",
    "pandas",
    "matplotlib",
    "pyarrow",
    "pymodbus",
    "iotcore",
    "hypothesis",
    "tuf",
    "securesystemslib",
    "cryptography",
    "urllib3",
    "trainer",
    "quantize",
)


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import edge.agent, edge.bundle, edge.operating.doctor, edge.operating.score, edge.operating.record, edge.testing",
        "import edge.operating.metrics, edge.operating.service",
        "import edge.updating.offer, edge.updating.rules, edge.updating.store, edge.updating.updater",
        "import edge.updating.trial, edge.updating.probation, edge.updating.ring",
        "import amiss",
    ],
)
def test_the_device_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code).isdisjoint(HEAVY)


def test_reading_a_recording_takes_nothing_heavy_until_it_is_parquet(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("time,a\n1,2\n")
    read = "from pathlib import Path; from edge.sensing.recordings import read_recording, write_recording; "
    assert loaded_after(f"{read}read_recording(Path({str(tmp_path / 'r.csv')!r}))").isdisjoint(HEAVY)
    convert = f"write_recording(Path({str(tmp_path / 'r.parquet')!r}), read_recording(Path({str(tmp_path / 'r.csv')!r})))"
    assert "pyarrow" in loaded_after(read + convert), "the control"


def test_updates_load_what_they_need_in_the_child_alone() -> None:
    ask = "from edge.updating.fetch import Request, answer; "
    ask += "answer(Request(repository='/nowhere', root='/dev/null', folder='/tmp/amiss-weight', deadline_s=5.0))"
    assert {"tuf", "cryptography"} <= loaded_after(ask), "the control"


def test_the_check_would_notice() -> None:
    assert "torch" in loaded_after("import torch")


def test_front_door_answers_without_numpy() -> None:
    assert loaded_after("import amiss").isdisjoint({"numpy", "onnxruntime", "paho"})


def test_the_device_install_asks_for_nothing_heavy() -> None:
    """`pip install .`: the requirements of the package itself and of everything they require."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    def needed(name: str, seen: set[str]) -> set[str]:
        for line in requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                key = requirement.name.lower().replace("_", "-")
                if key not in seen:
                    seen.add(key)
                    needed(key, seen)
        return seen

    device = needed("amiss", set())
    assert {"numpy", "onnxruntime", "paho-mqtt", "pyserial"} <= device
    assert device.isdisjoint({"torch", "onnx", "scipy", "pandas", "scikit-learn", "sympy", "pydantic", "pyarrow"})
    assert device.isdisjoint({"tuf", "securesystemslib", "cryptography", "urllib3"})


def test_onnxruntime_writes_no_telemetry(tmp_path: Path) -> None:
    """With its control, which also tells how long to wait: the same runtime without our switch does write, in its own time."""

    def files_after(first_line: str, wait_s: float, *, until_written: bool) -> tuple[list[Path], float]:
        home = tmp_path / str(len(list(tmp_path.iterdir())))
        home.mkdir()
        # Nothing else of ours: onnxruntime also keeps quiet when `CI` is set, and the control would show nothing.
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        code = f"""
{first_line}
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import pathlib, time
from small_bundle import graph, normal
import onnxruntime
session = onnxruntime.InferenceSession(graph(), providers=["CPUExecutionProvider"])
session.run(None, {{"window": normal(16)[None]}})
started = time.monotonic()
while time.monotonic() - started < {wait_s}:
    if {until_written} and any(path.is_file() for path in pathlib.Path({str(home)!r}).rglob("*")):
        break
    time.sleep(0.05)
print(time.monotonic() - started)
"""
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        return [path for path in home.rglob("*") if path.is_file()], float(done.stdout)

    control, waited_s = files_after("import os; os.environ['ORT_DISABLE_TELEMETRY'] = '0'", 60.0, until_written=True)
    assert control, "onnxruntime wrote nothing even when it was allowed to: this test can no longer fail"
    written, _ = files_after("import edge.scoring.backends", 2 * waited_s + 1.0, until_written=False)
    assert written == []
