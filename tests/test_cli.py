"""The front door: exit codes, one line for every mistake, help that a newcomer understands."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from modbus_slave import Slave
from mosquitto import Authority, Mosquitto
from small_bundle import CHANNELS, build, normal

import amiss
from deploy.deb import released
from deploy.machine import SerialPort
from edge.sensing.recordings import Recording, read_recording, write_recording

Run = Callable[..., tuple[int, str, str]]
VERBS = [
    "demo",
    "simulate",
    "record",
    "train",
    "quantize",
    "search",
    "inspect",
    "rollback",
    "fleet",
    "score",
    "evaluate",
    "run",
    "check",
    "doctor",
    "config",
    "datasets",
    "keys",
    "publish",
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`amiss …` in this process → exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amiss", *map(str, arguments)])
        code = 0
        try:
            amiss.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle") / "small.amiss")


def recording(path: Path, rows: int = 600, fault_at: int | None = None, period_ns: int = 10_000_000) -> Path:
    x = normal(rows, seed=3)
    label = None
    if fault_at is not None:
        x[1, fault_at:] += 4
        label = (np.arange(rows) >= fault_at).astype(np.int8)
    time_ns = 10**18 + np.arange(rows, dtype=np.int64) * period_ns
    write_recording(path, Recording(path.name, CHANNELS, time_ns, x, label))
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def device(folder: Path, bundle: Path, port: object, broker: str) -> Path:
    return write(
        folder / "device.toml",
        f'node = "n"\nbundle = "{bundle}"\nstate_dir = "{folder}/state"\n[streams.s]\nport = "{port}"\n[mqtt]\n{broker}\n',
    )


# Help


def test_the_front_door_works_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "amiss", "--help"], capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert re.search(rf"^\s+{verb}\s+\w", done.stdout, re.MULTILINE), f"{verb} is not explained"


@pytest.mark.parametrize(
    "verb",
    [
        *VERBS,
        "config schema",
        "config check",
        "config show",
        "datasets fetch",
        "keys init",
        "keys list",
        "keys sign",
        "keys rotate",
        "keys revoke",
    ],
)
def test_every_verb_explains_itself_and_each_of_its_options(verb: str, run: Run) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    options = re.findall(r"^  (-\S+.*)$", out, re.MULTILINE)
    assert options
    for line in options:
        assert re.search(r"\s{2,}\S", line) or len(line) > 20, f"{verb}: {line!r} is not explained"


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["score"], ["simulate"], ["simulate", "--out", "x.csv", "--fault", "gremlins"], ["train"], ["--no"]],
)
def test_usage_mistakes_are_2(arguments: list[str], run: Run) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert err.strip()


# Configuration


def test_config(run: Run, tmp_path: Path, bundle: Path) -> None:
    code, out, _ = run("config", "schema")
    assert code == 0
    assert json.loads(out)["$schema"].endswith("2020-12/schema")
    code, example, _ = run("config", "show", "--example")
    assert code == 0
    config = write(tmp_path / "device.toml", example)
    assert run("config", "check", "--config", config)[0] == 0
    assert run("config", "show", "--config", config)[1] == example
    code, out, _ = run("config", "show", "--config", config, "--effective")
    assert json.loads(out)["mqtt"]["keepalive_s"] == 30
    write(config, example.replace("port", "prot"))
    code, _, err = run("config", "check", "--config", config)
    assert code == 78
    assert "did you mean `port`?" in err


# Bundles and recordings


def test_inspect(run: Run, bundle: Path) -> None:
    code, out, _ = run("inspect", bundle, "--verify")
    assert code == 0
    assert "self-test    golden scores within 0" in out
    assert "false alarms default: p ≤ 0.001 is strange; in 3.2 minutes of normal running counting alone promises at most" in out
    assert "false alarms 1/week: at most 1 a week estimated from the tail of 3.2 minutes of normal running; counting" in out
    code, out, _ = run("inspect", bundle, "--verify", "--json")
    assert json.loads(out)["false_alarms"]["1/week"]["asked"] == 1
    data = json.loads(out)
    assert data["digest"] == subprocess.run(["sha256sum", bundle], capture_output=True, text=True, check=True).stdout.split()[0]
    assert data["self_test"]["worst"] == 0


def test_score_writes_one_row_per_input_row(run: Run, bundle: Path, tmp_path: Path) -> None:
    source = recording(tmp_path / "r.csv", 601, fault_at=400)
    assert run("score", bundle, source, "--out", tmp_path / "s.csv")[0] == 0
    rows = table(tmp_path / "s.csv")
    assert list(rows[0]) == ["time", "score", "p_value", "alarm", *CHANNELS]
    assert [row["time"] for row in rows] == [row["time"] for row in table(source)]
    score = np.array([float(row["score"]) for row in rows])
    assert np.median(score[420:]) > 3 * np.median(score[:380])
    alarm = np.array([int(row["alarm"]) for row in rows])
    assert alarm[:395].sum() == 0
    assert alarm[450:].all()
    assert all(float(row["vibration"]) + float(row["current"]) == pytest.approx(1, abs=1e-3) for row in rows)


def test_score_leaves_gaps_blank_and_newest_never_looks_ahead(run: Run, bundle: Path, tmp_path: Path) -> None:
    source = recording(tmp_path / "r.csv", 600, fault_at=400)
    lines = source.read_text().splitlines()
    write(source, "\n".join(lines[:201] + lines[261:]) + "\n")
    assert run("score", bundle, source, "--out", tmp_path / "s.csv", "--newest")[0] == 0
    rows = table(tmp_path / "s.csv")
    assert len(rows) == 540
    assert all(row["score"] == "" for row in rows[:15])
    assert rows[15]["score"] != ""
    at_fault = 400 - 60
    before, after = (np.array([float(row["score"]) for row in part]) for part in (rows[300:at_fault], rows[at_fault + 20 :]))
    assert after.min() > before.max()
    assert float(rows[at_fault - 1]["score"]) <= before.max()


BAD_RECORDINGS = {
    "empty": ("", "empty", 65),
    "header only": ("time,vibration,current\n", "no rows", 65),
    "no time": ("a,b\n1,2\n", "no time column", 65),
    "not a number": ("time,vibration,current\n1,0.1,0.2\n2,abc,0.3\n", "r.csv:3: column vibration: 'abc' is not a number", 65),
    "backwards": ("time,vibration,current\n2,0.1,0.2\n1,0.1,0.3\n", "r.csv:3: time does not increase", 65),
    "other channels": ("time,vibration,pressure\n" + "".join(f"{i / 100},1,2\n" for i in range(99)), "no column current", 65),
    "ragged": ("time,vibration,current\n1,0.1\n", "r.csv:2: 2 values, the header names 3", 65),
    "shorter than a window": ("time,vibration,current\n0.01,1,2\n0.02,1,2\n", "2 rows; one window of this model is 16", 65),
    "all missing": ("time,vibration,current\n" + "".join(f"{i / 100},,2\n" for i in range(99)), "too many gaps", 65),
    "another rate": ("time,vibration,current\n" + "".join(f"{i},1,2\n" for i in range(99)), "sampled at 1 Hz", 65),
}


@pytest.mark.parametrize("name", BAD_RECORDINGS)
def test_a_bad_recording_is_one_line_and_nothing_is_written(name: str, run: Run, bundle: Path, tmp_path: Path) -> None:
    text, says, expected = BAD_RECORDINGS[name]
    out = write(tmp_path / "s.csv", "what was there before")
    code, _, err = run("score", bundle, write(tmp_path / "r.csv", text), "--out", out)
    assert (code, err.count("\n")) == (expected, 1)
    assert says in err
    assert out.read_text() == "what was there before"
    assert {path.name for path in tmp_path.iterdir()} == {"r.csv", "s.csv"}


def test_missing_and_foreign_files(run: Run, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    assert run("score", bundle, tmp_path / "none.csv", "--out", out)[0] == 66
    assert run("inspect", tmp_path / "none.amiss")[0] == 66
    code, _, err = run("inspect", recording(tmp_path / "r.csv"))
    assert code == 65
    assert "not a bundle" in err
    assert run("score", bundle, tmp_path / "r.csv", "--out", "/proc/none/s.csv")[0] == 73
    assert run("train", "--data", tmp_path / "none", "--out", tmp_path / "run")[0] == 66


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--window", "5000"], 65, "longer than the longest recording"),
        (["--set", "training.stepps=3"], 78, "did you mean `steps`"),
        (["--set", "window=abc"], 78, "window"),
    ],
)
def test_training_mistakes(arguments: list[str], code: int, says: str, run: Run, tmp_path: Path) -> None:
    source = recording(tmp_path / "r.csv")
    found, _, err = run("train", "--data", source, "--out", tmp_path / "run", *arguments)
    assert found == code
    assert says in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_what_is_wrong_and_trains_nothing(run: Run, tmp_path: Path) -> None:
    source, out = recording(tmp_path / "r.csv", rows=2000), tmp_path / "run"
    whole = read_recording(source)
    whole.x[1] = 7
    write_recording(source, whole)
    code, text, err = run("train", "--data", source, "--out", out, "--dry-run")
    assert code == 0
    assert "r.csv: current: always 7 [warned]" in text
    assert re.search(r"^window = \d+: .*; --window or `window` in a recipe says otherwise$", err, re.MULTILINE)
    refuse = ("--window", "32", "--set", "quality.constant=refuse")
    code, text, err = run("train", "--data", source, "--dry-run", "--json", *refuse)
    assert (code, err.count("\n")) == (65, 1)
    assert [(f["kind"], f["channel"], f["done"]) for f in json.loads(text)["quality"]] == [("constant", "current", "refused")]
    code, _, err = run("train", "--data", source, "--out", out, *refuse)
    assert (code, err.count("\n")) == (65, 1)
    assert "r.csv: current: always 7 [refused]" in err
    assert not out.exists()
    whole.x[1, :1500] = np.nan
    write_recording(source, whole)
    code, text, err = run("train", "--data", source, "--dry-run", "--window", "128")
    assert "r.csv: current: 75% of the values are missing [warned]" in text, "what was found is told when it is not enough, too"
    assert (code, err.count("\n")) == (65, 1)
    assert "windows to learn from" in err


def test_findings_stay_with_the_run(run: Run, tmp_path: Path) -> None:
    source, out = recording(tmp_path / "r.csv", rows=2000), tmp_path / "run"
    whole = read_recording(source)
    whole.x[0, 100] = 1e30
    write_recording(source, whole)
    code, text, _ = run("train", "--data", source, "--out", out, "--window", "32", "--set", "training.steps=2")
    assert code == 0
    assert "r.csv: vibration: 1 value like 1e+30, taken for missing [repaired]" in text
    assert [f["kind"] for f in json.loads((out / "run.json").read_text())["quality"]] == ["absurd"]


BAD_TRAINING = {
    "empty folder": ({}, "no recordings in it"),
    "an image": ({"a.csv": b"\x89PNG\r\n\x1a\n\0\0\xff"}, "not a text file"),
    "no parquet": ({"a.parquet": b"time,a\n1,2\n"}, "not a whole Parquet file"),
    "prose": ({"a.csv": b"Dear colleague,\nplease find below\n"}, "no time column"),
    "one value always": ({"a.csv": b"time,a\n" + b"".join(b"%d,nan\n" % i for i in range(900))}, "no finite value"),
    "short": ({"a.csv": b"time,a\n1,2\n2,3\n3,4\n"}, "longer than the longest recording, which has 3"),
    "one row": ({"a.csv": b"time,a\n1,2\n"}, "no recording has more than one row"),
    "rates": (
        {f"{hz}.csv": b"time,a\n" + b"".join(b"%.3f,1\n" % (i / hz) for i in range(900)) for hz in (1, 5)},
        'set resample.method = "mean"',
    ),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_what_cannot_be_learned_from_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    files, says = BAD_TRAINING[name]
    (tmp_path / "data").mkdir()
    for file, content in files.items():
        (tmp_path / "data" / file).write_bytes(content)
    code, _, err = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", "--window", "32")
    assert (code, err.count("\n")) == (65 if files else 66, 1)
    assert says in err
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize(
    ("space", "options", "code", "says"),
    [
        ("windw = [16]", [], 78, "did you mean `window`"),
        ("window = [16]", ["--data", "/none"], 66, "/none"),
        ("window = [16]", ["--storage", "x.db"], 2, "expected sqlite:///FILE"),
        ("window = [16]", ["--cost", "joules"], 2, "joules"),
    ],
)
def test_search_mistakes(space: str, options: list[str], code: int, says: str, run: Run, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.toml", f"[search]\n{space}\n")
    source = recording(tmp_path / "r.csv")
    found, _, err = run("search", recipe, "--data", source, "--out", tmp_path / "out", *options)
    assert found == code
    assert says in err
    assert not list((tmp_path / "out").glob("*"))


def test_training_on_recordings_of_different_channels(run: Run, tmp_path: Path) -> None:
    recording(tmp_path / "data" / "a.csv")
    write(tmp_path / "data" / "b.csv", "time,other\n1,2\n2,3\n")
    code, _, err = run("train", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert code == 65
    assert "b.csv" in err
    assert "other" in err


def test_a_run_that_is_none(run: Run, tmp_path: Path) -> None:
    code, _, err = run("quantize", tmp_path / "none", "--out", tmp_path / "m.amiss")
    assert code == 66
    assert "`amiss train` makes one" in err.splitlines()[-1]


def test_parquet_on_a_device_is_one_line(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = recording(tmp_path / "r.parquet"), tmp_path / "s.csv"
    assert run("score", bundle, source, "--out", out)[0] == 0, "the control"
    out.unlink()
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoPyarrow(), *sys.meta_path])
    code, _, err = run("score", bundle, source, "--out", out)
    assert (code, err.count("\n")) == (69, 1)
    assert "needs pyarrow" in err
    assert "pip install 'amiss[train]'" in err
    assert not out.exists()


class NoPyarrow:
    """As where it is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] == "pyarrow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# From recordings to a judged bundle


def test_simulate_train_quantize_inspect_score_evaluate(run: Run, tmp_path: Path) -> None:
    """Too few steps to learn much; enough to walk the road with every verb."""
    for name, options in {"normal": [], "live": ["--fault", "imbalance", "--fault-at", "20", "--seed", "0"]}.items():
        assert run("simulate", "--out", tmp_path / f"{name}.csv", "--seconds", "40", "--rate", "200", *options)[0] == 0
    assert read_recording(tmp_path / "live.csv").label is not None
    train = [
        "train",
        "--data",
        tmp_path / "normal.csv",
        "--out",
        tmp_path / "run",
        "--window",
        "64",
        "--set",
        "training.steps=40",
    ]
    code, out, err = run(*train, "--json")
    assert code == 0, err
    assert json.loads(out)["window"] == 64
    code, _, err = run(*train)
    assert code == 73, "an existing run is not replaced by mistake"
    assert "--overwrite" in err
    quantize = ["quantize", tmp_path / "run", "--out", tmp_path / "m.amiss", "--report", tmp_path / "small"]
    code, out, err = run(*quantize, "--json")
    assert code == 0, err
    assert json.loads((tmp_path / "small" / "quantize.json").read_text("utf-8"))["quantized"] == json.loads(out)
    assert (tmp_path / "small" / "quantize.html").is_file()
    code, _, err = run(*quantize)
    assert code == 73, "nor a report"
    assert "--overwrite" in err
    assert run(*quantize[:4], "--overwrite")[0] == 2
    assert run("inspect", tmp_path / "m.amiss", "--verify")[0] == 0
    assert run("score", tmp_path / "m.amiss", tmp_path / "live.csv", "--out", tmp_path / "s.csv")[0] == 0
    code, out, err = run("evaluate", tmp_path / "m.amiss", tmp_path / "live.csv", "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["auroc"] <= 1


def test_a_report(run: Run, bundle: Path, tmp_path: Path) -> None:
    live, out = recording(tmp_path / "live.csv", 900, fault_at=700), tmp_path / "report"
    command = ("evaluate", bundle, live, "--normal", recording(tmp_path / "normal.csv", 1200), "--report", out)
    code, text, err = run(*command)
    assert code == 0, err
    assert str(out / "report.html") in text
    assert "evaluate" in err
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
    code, _, err = run(*command)
    assert code == 73
    assert "--overwrite" in err
    code, text, _ = run(*command, "--overwrite", "--json")
    assert code == 0
    assert json.loads(text) == json.loads((out / "report.json").read_text("utf-8"))
    code, _, err = run("evaluate", bundle, live, "--normal", live)
    assert code == 2
    assert "--report" in err


# The device


def test_check_names_every_trouble_and_its_cure(run: Run, bundle: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "check", "--config", device(tmp_path, bundle, tmp_path / "tty", 'host = "127.0.0.1"\nport = 1'), "--json"
    )
    findings = {finding["what"]: finding for finding in json.loads(out)}
    assert code == 69
    assert findings["model"]["ok"]
    assert findings["state folder"]["ok"]
    assert "no such port" in findings["port of s"]["message"]
    assert findings["port of s"]["repair"]
    assert "refuses" in findings["broker"]["message"]


def test_check_of_a_healthy_device(run: Run, bundle: Path, tmp_path: Path, mosquitto: Mosquitto) -> None:
    port = SerialPort(tmp_path / "tty")
    machine = subprocess.Popen(
        [sys.executable, "-m", "amiss", "simulate", "--serial", str(tmp_path / "tty2"), "--seconds", "30", "--rate", "100"],
        stderr=subprocess.PIPE,
    )
    try:
        assert machine.stderr is not None
        machine.stderr.readline()
        config = device(tmp_path, bundle, tmp_path / "tty2", f'host = "127.0.0.1"\nport = {mosquitto.port}')
        config.write_text(config.read_text().replace("[mqtt]", 'columns = ["vibration", "y", "current", "t", "speed"]\n[mqtt]'))
        code, out, _ = run("check", "--config", config)
        assert code == 0, out
        assert "FAULT" not in out
        assert "no fault, 7 ok" in out
        assert "p ≤ 0.001 is strange; in 3.2 minutes of normal running" in out
    finally:
        machine.kill()
        machine.communicate()
        port.close()


def test_check_wrong_password_wrong_authority_busy_and_silent_port(run: Run, bundle: Path, tmp_path: Path) -> None:
    port = SerialPort(tmp_path / "tty")
    with Mosquitto(tmp_path / "broker", password=("me", "right")) as broker:
        config = device(
            tmp_path, bundle, port.name, f'host = "127.0.0.1"\nport = {broker.port}\nusername = "me"\npassword = "wrong"'
        )
        code, out, _ = run("check", "--config", config)
    assert code == 69, "the port is silent"
    assert "nothing arrives at all" in out
    assert re.search(r"FAULT    broker .*(password|not authori)", out, re.IGNORECASE | re.DOTALL)
    assert "wrong" not in out.split("FAULT    broker")[1], "no secret in any message"
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    with Mosquitto(tmp_path / "tls", tls=ours) as broker:
        config = device(
            tmp_path, bundle, port.name, f'host = "localhost"\nport = {broker.port}\n[mqtt.tls]\nca = "{theirs.ca}"'
        )
        _, out, _ = run("check", "--config", config)
        assert re.search(r"FAULT    broker .*certificate", out, re.DOTALL)
        write(config, config.read_text().replace(theirs.ca, ours.ca))
        assert re.search(r"ok       broker ", run("check", "--config", config)[1]), "the control"
    port.close()


def test_record_what_a_sensor_sends(run: Run, tmp_path: Path) -> None:
    machine = subprocess.Popen(
        [sys.executable, "-m", "amiss", "simulate", "--serial", str(tmp_path / "tty"), "--seconds", "20", "--rate", "100"],
        stderr=subprocess.PIPE,
    )
    try:
        assert machine.stderr is not None
        machine.stderr.readline()
        names = "vibration_x,vibration_y,current,temperature,speed"
        out = tmp_path / "r.csv"
        code, _, err = run(
            "record", "--port", tmp_path / "tty", "--columns", names, "--rate", "100", "--seconds", "2", "--out", out
        )
        assert code == 0, err
    finally:
        machine.kill()
        machine.communicate()
    found = read_recording(out)
    assert found.channels == tuple(names.split(","))
    assert len(found.time_ns) > 120
    assert found.rate_hz == pytest.approx(100, rel=0.05)


def test_record_from_a_port_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("record", "--port", tmp_path / "no", "--columns", "a", "--rate", "1", "--out", tmp_path / "r.csv")
    assert code == 69
    assert "no such port" in err
    assert not (tmp_path / "r.csv").exists()


def test_record_a_device_that_has_to_be_asked(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "device.toml"
    config.write_text(
        f"""\
node = "n"
bundle = "not-there-yet.amiss"
[streams.oven]
port = "{tmp_path}/tty"
format = "modbus"
[streams.oven.modbus]
parity = "none"
registers = [{{channel = "t", address = 0, scale = 0.1}}, {{channel = "p", address = 1}}]
"""
    )
    out = tmp_path / "r.csv"
    record = ("record", "--rate", "20", "--seconds", "1", "--out", out)
    with Slave(tmp_path / "tty", registers={("holding", 0): 215, ("holding", 1): 7}):
        code, _, err = run(*record, "--config", config)
    assert code == 0, err
    found = read_recording(out)
    assert found.channels == ("t", "p")
    assert len(found.time_ns) > 12
    assert set(found.x[0].tolist()) == {21.5}
    for wrong, says in (
        ((), "either --port"),
        (("--config", config, "--stream", "x"), "one of: oven"),
        (("--port", tmp_path / "tty"), "--columns"),
        (("--port", "usb:1:2", "--columns", "a"), "four hexadecimal digits"),
    ):
        code, _, err = run(*record, *wrong)
        assert code == 2
        assert says in err


def test_check_names_the_register_that_is_refused(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "device.toml"
    config.write_text(
        f"""\
node = "n"
bundle = "{build(tmp_path / "small.amiss")}"
state_dir = "{tmp_path}/state"
[streams.s]
port = "{tmp_path}/tty"
format = "modbus"
[streams.s.modbus]
parity = "none"
registers = [{{channel = "current", address = 0}}, {{channel = "vibration", address = 40}}]
[mqtt]
host = "127.0.0.1"
port = 1
"""
    )
    with Slave(tmp_path / "tty", registers={("holding", 0): 215}):
        _, out, err = run("check", "--config", config, "--json")
    assert re.search(
        r"modbus of 2 channels, but no value of vibration, \d+ damaged: unit 1 refuses holding register 40: no such register",
        out + err,
    )


def test_it_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "amiss", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"amiss {released()}\n")
