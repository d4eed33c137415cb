"""Data sets, end to end: from a web server and a repository of git on this machine, and from mirrors.

The sets are small and in the shape in which their authors publish them.
"""

import hashlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import skab
from origin import Origin, repository

from edge.errors import AccessError, DataError, NoInputError, SourceLostError, UsageError
from edge.sensing.recordings import Recording, read_recording
from trainer import datasets
from trainer.conversions import CONVERSIONS, SKAB_UNITS
from trainer.datasets import DATASETS, Fetched, fetch
from trainer.download import ATTEMPTS

CHANCE = np.random.default_rng(5)


def text(values: np.ndarray, form: str = "%.6f") -> bytes:
    out = io.BytesIO()
    np.savetxt(out, values, form, delimiter=",")
    return out.getvalue()


def arrays(**named: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **named)  # type: ignore[arg-type]
    return out.getvalue()


def small_smd() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """As published, and the same as an excerpt."""
    published, excerpt = {"README.md": b"not wanted", "ServerMachineDataset/interpretation_label/machine-1-1.txt": b"1:2"}, {}
    for machine, rows in (("machine-1-1", 30), ("machine-1-10", 31), ("machine-1-2", 32)):
        train, test = (CHANCE.random((rows + more, 4)).round(6).astype(np.float32) for more in (0, 1))
        label = (np.arange(rows + 1) > rows // 2).astype(np.int8)
        published |= {
            f"ServerMachineDataset/train/{machine}.txt": text(train),
            f"ServerMachineDataset/test/{machine}.txt": text(test),
            f"ServerMachineDataset/test_label/{machine}.txt": text(label, "%d"),
        }
        excerpt[f"smd/{machine}.npz"] = arrays(train=train, test=test, test_label=label)
    return published, excerpt


def small_cwru() -> tuple[dict[str, bytes], dict[str, bytes]]:
    published, excerpt = {"Data/1797 RPM/1797_B_7_DE12.npz": b"another rate", "Data/1750 RPM/1750_Normal.npz": b"load"}, {}
    for name, file in (("Normal", "1797_Normal"), ("IR_7_DE48", "1797_IR_7_DE48")):
        drive, fan = CHANCE.integers(-3000, 3000, (2, 500)).astype(np.int16)
        published[f"Data/1797 RPM/{file}.npz"] = arrays(DE=drive[:, None] * 0.25, FE=fan[:, None] * 0.5)
        excerpt[f"cwru_48k/{name}.npz"] = arrays(DE=drive, DE_scale=0.25, FE=fan, FE_scale=0.5, fs=48000)
    return published, excerpt


def small_femto() -> tuple[dict[str, bytes], dict[str, bytes]]:
    published, excerpt = {"Learning_set/Bearing1_2/acc_00001.csv": b"no", "Learning_set/Bearing1_1/temp_00001.csv": b"no"}, {}
    for bearing, separator in (("Bearing1_1", ","), ("Bearing2_1", ";"), ("Bearing3_1", ",")):
        x = CHANCE.integers(-2000, 2000, (20, 16, 2)).astype(np.int32)
        for number in range(20):
            moment = np.tile([9.0, 39, 39, 65664], (16, 1))
            rows = text(np.hstack([moment, x[number] * 0.001]), "%.6g").decode().replace(",", separator).encode()
            published[f"Learning_set/{bearing}/acc_{number + 1:05}.csv"] = rows
        excerpt[f"femto/{bearing}.npz"] = arrays(x=x, scale=0.001, snapshot=np.arange(1, 21), n_snapshots=20)
    return published, excerpt


def small_nab() -> tuple[dict[str, bytes], dict[str, bytes]]:
    published, excerpt = {"data/realTweets/x.csv": b"not wanted", "data/realKnownCause/deep.csv/x.csv": b"not wanted"}, {}
    windows = {"realKnownCause/a.csv": [["2014-01-02 01:00:00.000000", "2014-01-02 03:00:00.000000"]], "realTweets/x.csv": []}
    hours = [f"2014-01-0{day} {hour:02}:00:00" for day in (1, 2) for hour in range(24)]
    hours.insert(31, "2014-01-02 05:30:00")  # an hour told twice
    rows = [f"{hour},{i * 0.5}" for i, hour in enumerate(hours)]
    for base, prefix in ((published, "data/"), (excerpt, "nab/")):
        title, end = ("timestamp,value", "") if base is published else ("timestamp,value,window_label", ",0")
        base[f"{prefix}realKnownCause/a.csv"] = "\r\n".join([title, *(row + end for row in rows)]).encode()
    published["labels/combined_windows.json"] = excerpt["nab/combined_windows.json"] = json.dumps(windows).encode()
    return published, excerpt


SMALL = {"smd": small_smd, "cwru": small_cwru, "femto": small_femto, "nab": small_nab}


class Rig(SimpleNamespace):
    origin: Origin
    out: Path
    excerpt: dict[str, bytes]
    published: dict[str, bytes]

    def get(self, name: str, mirror: Path | str | None = None, out: Path | None = None) -> Fetched:
        environ = {} if mirror is None else {"AMISS_DATASETS": str(mirror)}
        return fetch(name, out or self.out, accept_license=True, say=lambda _: None, environ=environ, sleep=lambda _: None)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Rig]]:
    """Sets up one data set at a server of its own."""
    running: list[Origin] = []

    def make(name: str) -> Rig:
        published, excerpt = SMALL[name]()
        url, commit = repository(tmp_path / "repository", published)
        origin = Origin(published).__enter__()
        running.append(origin)
        here = msgspec.structs.replace(DATASETS[name], repository=url, commit=commit, url=origin.url)
        monkeypatch.setitem(DATASETS, name, here)
        return Rig(origin=origin, out=tmp_path / "out", published=published, excerpt=excerpt)

    yield make
    for origin in running:
        origin.__exit__()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def load(path: Path) -> Recording:
    if path.suffix != ".parquet":
        return read_recording(path)
    table = pq.read_table(path)
    titles = [title for title in table.column_names if title not in ("time", "label")]
    x = np.stack([table[title].to_numpy() for title in titles])
    assert x.dtype == np.float32
    label = table["label"].to_numpy() if "label" in table.column_names else None
    units = {title.split(" [")[0]: title.split(" [")[1][:-1] for title in titles if " [" in title}
    channels = tuple(title.split(" [")[0] for title in titles)
    return Recording(path.name, channels, table["time"].to_numpy().astype("datetime64[ns]").astype(np.int64), x, label, units)


def recordings(folder: Path) -> dict[str, Recording]:
    return {
        f"{path.parent.name}/{path.stem}": load(path)
        for part in ("train", "test", "whole")
        for path in sorted((folder / part).glob("*"))
    }


@pytest.mark.parametrize("name", SMALL)
def test_from_source_to_recordings(name: str, rig: Callable[[str], Rig]) -> None:
    it = rig(name)
    result = it.get(name)
    found = recordings(it.out / name)
    assert result.proven
    assert {path.rsplit(".", 1)[0] for path in result.files} == set(found)
    for key, recording in found.items():
        assert np.all(np.diff(recording.time_ns) > 0)
        assert np.isfinite(recording.x).all()
        assert (recording.label is not None) == key.startswith("test/")
    readme = (it.out / name / "README.md").read_text()
    for fact in (DATASETS[name].license, DATASETS[name].cite, DATASETS[name].commit, "every file compared with it"):
        assert fact in readme
    asked = {path for path, _ in it.origin.asked}
    assert asked < set(it.published)  # and nothing that is not wanted
    assert b"not wanted" not in {it.published[path] for path in asked}


@pytest.mark.parametrize("name", SMALL)
def test_a_mirror_gives_the_same_recordings_published_or_as_an_excerpt(
    name: str, rig: Callable[[str], Rig], tmp_path: Path
) -> None:
    it = rig(name)
    it.get(name)
    expected = recordings(it.out / name)
    published = write(tmp_path / "m1", {f"{name}/{path}": content for path, content in it.published.items()})
    excerpt = write(tmp_path / "m2", it.excerpt)
    for number, mirror in enumerate((str(published), excerpt.as_uri(), str(it.out))):
        it.origin.asked.clear()
        result = it.get(name, mirror, tmp_path / f"from{number}")
        assert not result.proven
        assert "on trust" in (tmp_path / f"from{number}/{name}/README.md").read_text()
        assert it.origin.asked == []
        found = recordings(tmp_path / f"from{number}" / name)
        assert set(found) == set(expected)
        for key, recording in found.items():
            assert recording.channels == expected[key].channels
            assert recording.units == expected[key].units
            np.testing.assert_array_equal(recording.time_ns, expected[key].time_ns)
            np.testing.assert_allclose(recording.x, expected[key].x, rtol=1e-6)
            np.testing.assert_array_equal(recording.label, expected[key].label)


def test_smd_keeps_each_machine_to_itself_and_its_time_going(rig: Callable[[str], Rig]) -> None:
    it = rig("smd")
    it.get("smd")
    found = recordings(it.out / "smd")
    for machine, rows in (("machine-1-1", 30), ("machine-1-10", 31), ("machine-1-2", 32)):
        train, test = found[f"train/{machine}"], found[f"test/{machine}"]
        assert train.channels == ("metric_01", "metric_02", "metric_03", "metric_04")
        source = np.loadtxt(io.BytesIO(it.published[f"ServerMachineDataset/test/{machine}.txt"]), delimiter=",")
        np.testing.assert_allclose(test.x, source.T, rtol=1e-6)
        assert test.label is not None
        assert test.label.sum() == rows + 1 - rows // 2 - 1
        assert test.time_ns[0] - train.time_ns[-1] == 60_000_000_000


def test_cwru_divides_the_good_bearing_in_time(rig: Callable[[str], Rig]) -> None:
    it = rig("cwru")
    it.get("cwru")
    found = recordings(it.out / "cwru")
    assert set(found) == {"train/Normal", "test/Normal", "test/IR_7"}
    assert [len(found[key].time_ns) for key in ("train/Normal", "test/Normal")] == [300, 200]
    assert found["train/Normal"].units == {"DE": "g", "FE": "g"}
    assert found["train/Normal"].time_ns[-1] == round(299e9 / 48000)
    assert [np.unique(found[key].label).tolist() for key in ("test/Normal", "test/IR_7")] == [[0], [1]]
    with np.load(io.BytesIO(it.published["Data/1797 RPM/1797_Normal.npz"])) as source:
        joined = np.concatenate([found["train/Normal"].x, found["test/Normal"].x], axis=1)
        np.testing.assert_allclose(joined[0], source["DE"][:, 0], rtol=1e-6)


def test_femto_is_labelled_by_the_life_of_the_bearing(rig: Callable[[str], Rig]) -> None:
    it = rig("femto")
    it.get("femto")
    found = recordings(it.out / "femto")
    train, test, whole = (found[f"{part}/Bearing2_1"] for part in ("train", "test", "whole"))
    snapshots = [np.unique(recording.time_ns // 10_000_000_000) + 1 for recording in (train, test, whole)]
    assert snapshots[0].tolist() == list(range(1, 5))
    assert snapshots[1].tolist() == [*range(5, 9), *range(11, 21)]
    assert snapshots[2].tolist() == list(range(1, 21))
    assert test.label is not None
    np.testing.assert_array_equal(test.label, test.time_ns >= 10 * 10_000_000_000)
    assert abs(train.rate_hz / 25600 - 1) < 1e-4


def test_nab_leaves_out_rows_that_go_back_and_labels_by_the_windows(rig: Callable[[str], Rig]) -> None:
    it = rig("nab")
    it.get("nab")
    found = recordings(it.out / "nab")
    train, test = found["train/a"], found["test/a"]
    assert len(train.time_ns) == int(48 * 0.15)
    assert len(train.time_ns) + len(test.time_ns) == 48
    assert 15.5 not in test.x  # the row told twice
    assert test.label is not None
    hours = (test.time_ns[test.label > 0] // 3_600_000_000_000) % 24
    assert hours.tolist() == [1, 2, 3]


def test_a_second_call_asks_for_nothing(rig: Callable[[str], Rig]) -> None:
    it = rig("smd")
    first = it.get("smd")
    it.origin.asked.clear()
    assert it.get("smd") == first
    assert it.origin.asked == []


def test_a_lost_or_changed_recording_is_made_again_without_a_download(rig: Callable[[str], Rig]) -> None:
    it = rig("smd")
    it.get("smd")
    file = it.out / "smd/test/machine-1-2.parquet"
    whole = file.read_bytes()
    it.origin.asked.clear()
    for damage in (lambda: file.unlink(), lambda: file.write_bytes(whole[:-1] + b"?")):
        damage()
        it.get("smd")
        assert file.read_bytes() == whole
    assert it.origin.asked == []


def test_what_came_before_the_line_broke_is_not_asked_for_again(rig: Callable[[str], Rig]) -> None:
    it = rig("smd")
    lost = "ServerMachineDataset/train/machine-1-10.txt"
    content = it.origin.files.pop(lost)
    with pytest.raises(SourceLostError, match=r"machine-1-10\.txt: the source answers 404"):
        it.get("smd")
    assert datasets.fetched("smd", it.out) is None
    assert not (it.out / "smd/train").exists()
    it.origin.files[lost] = content
    there = {path.relative_to(it.out / "smd").as_posix() for path in (it.out / "smd").rglob("*.txt")}
    it.origin.asked.clear()
    it.get("smd")
    assert there.isdisjoint(path for path, _ in it.origin.asked)
    assert datasets.fetched("smd", it.out) is not None


def test_a_tampered_file_stops_it_and_leaves_what_was_there(rig: Callable[[str], Rig]) -> None:
    it = rig("nab")
    it.get("nab")
    before = (it.out / "nab/test/a.csv").read_bytes()
    it.origin.files["data/realKnownCause/a.csv"] = it.origin.files["data/realKnownCause/a.csv"].replace(b"0.5", b"9.5")
    (it.out / "nab/data/realKnownCause/a.csv").unlink()
    (it.out / "nab/test/a.csv").write_bytes(before + b"?")
    with pytest.raises(DataError, match=r"a\.csv: git .*expected"):
        it.get("nab")
    assert not (it.out / "nab/data/realKnownCause/a.csv").exists()
    assert (it.out / "nab/test/a.csv").read_bytes() == before + b"?"


def test_files_that_cannot_be_turned_into_recordings_leave_the_old_ones(rig: Callable[[str], Rig], tmp_path: Path) -> None:
    it = rig("nab")
    it.get("nab")
    before = {path: path.read_bytes() for path in it.out.rglob("*") if path.is_file()}
    broken = {**it.excerpt, "nab/realKnownCause/a.csv": b"timestamp,value\nnever,1\n"}
    with pytest.raises(DataError, match="nab: not as its authors publish it"):
        it.get("nab", write(tmp_path / "mirror", broken))
    assert {path: path.read_bytes() for path in it.out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "path", "content"),
    [
        ("smd", "smd/machine-1-1.npz", b"no zip"),
        ("smd", "smd/machine-1-1.npz", arrays(train=np.ones((3, 2)))),
        ("smd", "smd/machine-1-1.npz", arrays(train=np.ones((3, 2)), test=np.ones((3, 2)), test_label=np.ones(2))),
        ("smd", "smd/machine-1-1.npz", arrays(train=np.array([{}], object))),
        ("cwru", "cwru_48k/Normal.npz", arrays(DE=np.ones(3), FE=np.ones(2))),
        ("femto", "femto/Bearing1_1.npz", arrays(x=np.ones((1, 2, 2)))),
    ],
)
def test_damaged_originals_are_one_line(
    name: str, path: str, content: bytes, rig: Callable[[str], Rig], tmp_path: Path
) -> None:
    it = rig(name)
    mirror = write(tmp_path / "mirror", it.excerpt)
    it.get(name, mirror)  # the control
    write(mirror, {path: content})
    with pytest.raises(DataError):
        it.get(name, mirror, tmp_path / "again")
    assert not list((tmp_path / "again").rglob("*.parquet"))


def test_going_over_to_a_smaller_mirror_leaves_no_recording_behind(rig: Callable[[str], Rig], tmp_path: Path) -> None:
    it = rig("smd")
    it.get("smd")
    (it.out / "smd/train/mine.txt").write_text("mine")
    del it.excerpt["smd/machine-1-10.npz"]
    it.get("smd", write(tmp_path / "mirror", it.excerpt))
    assert {path.stem for path in (it.out / "smd/train").iterdir()} == {"machine-1-1", "machine-1-2", "mine"}


def test_a_set_that_is_listed_file_by_file_needs_no_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rig: Callable[[str], Rig]
) -> None:
    it = rig("nab")
    row = "2020-01-01 00:{:02}:{:02};1;2;3;4;5;6;7;8"
    header = ";".join(["datetime", *SKAB_UNITS])
    free = "\n".join([header, *(row.format(i // 60, i % 60) for i in range(90))])
    valve = "\n".join(
        [f"{header};anomaly;changepoint", *(f"{row.format(i // 60, i % 60)};{i > 450:.1f};0.0" for i in range(500))]
    )
    files = {"anomaly-free/anomaly-free.csv": free.encode(), "valve1/0.csv": valve.encode()}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    it.origin.files |= files
    monkeypatch.setitem(DATASETS, "skab", msgspec.structs.replace(DATASETS["skab"], files=digests, url=it.origin.url))
    monkeypatch.setenv("PATH", "")
    assert it.get("skab").proven
    found = recordings(it.out / "skab")
    assert {key: len(r.time_ns) for key, r in found.items()} == {
        "train/anomaly-free": 90,
        "train/valve1-0": 400,
        "test/valve1-0": 100,
    }
    assert found["test/valve1-0"].units["Pressure"] == "bar"
    assert found["test/valve1-0"].label is not None
    assert found["test/valve1-0"].label.sum() == 49
    for mirror in (it.out, it.out.as_uri()):  # what was fetched is a mirror for others
        assert it.get("skab", mirror, tmp_path / "again").proven
    (it.out / "skab/valve1/0.csv").write_text("tampered")
    with pytest.raises(DataError, match=r"SHA-256 .* the mirror is damaged"):
        it.get("skab", it.out, tmp_path / "tampered")
    (it.out / "skab/valve1/0.csv").unlink()
    with pytest.raises(NoInputError, match="AMISS_DATASETS"):
        it.get("skab", it.out, tmp_path / "tampered")


def test_nothing_happens_before_the_license_is_accepted(rig: Callable[[str], Rig]) -> None:
    it = rig("smd")
    with pytest.raises(AccessError, match=r"\(MIT\) is not accepted.*--accept-license"):
        fetch("smd", it.out, environ={})
    assert not it.out.exists()
    assert it.origin.asked == []


def test_errors_are_one_line(rig: Callable[[str], Rig], tmp_path: Path) -> None:
    it = rig("smd")
    with pytest.raises(UsageError, match="skab"):
        it.get("skabb")
    with pytest.raises(NoInputError, match=r"the mirror has no smd: neither .*machine-\*\.npz; AMISS_DATASETS"):
        it.get("smd", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="folder or a file:// URL"):
        it.get("smd", "https://example.org/mirror")
    it.origin.cuts = [0] * 100 * ATTEMPTS
    with pytest.raises(SourceLostError, match="connection was cut"):
        it.get("smd")


def test_a_commit_without_the_files_is_one_line(
    rig: Callable[[str], Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = rig("smd")
    url, commit = repository(tmp_path / "other", {"README.md": b"moved"})
    monkeypatch.setitem(DATASETS, "smd", msgspec.structs.replace(DATASETS["smd"], repository=url, commit=commit))
    with pytest.raises(DataError, match=r"nothing in .* matches ServerMachineDataset/train/machine-\*\.txt"):
        it.get("smd")


# The verbs


def amiss(*arguments: str | Path, mirror: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amiss", "datasets", *map(str, arguments)]
    environ = {**os.environ, "AMISS_DATASETS": str(mirror)}
    return subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 77), ("\n", 77)])
def test_on_a_terminal_it_asks_and_waits(answer: str, code: int, tmp_path: Path) -> None:
    mirror, out = write(tmp_path / "mirror", small_nab()[1]), tmp_path / "out"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "amiss", "datasets", "fetch", "nab", "--out", str(out)]
    environ = {**os.environ, "AMISS_DATASETS": str(mirror)}
    with subprocess.Popen(command, env=environ, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as running:
        try:
            shown = ""
            until_s = time.monotonic() + 20
            while "[y/N]" not in shown:
                assert time.monotonic() < until_s, shown  # a bar that swallows the question goes on drawing for ever
                assert select.select([ours], [], [], 20)[0], shown
                shown += os.read(ours, 4096).decode()
            assert "license  MIT" in shown
            assert not out.exists()
            os.write(ours, answer.encode())
            stdout, _ = running.communicate(timeout=30)
        finally:
            running.kill()
            os.close(ours)
            os.close(theirs)
    assert (running.returncode, stdout) == (code, b"")
    assert (out / "nab/train/a.csv").exists() == (code == 0)


def test_elsewhere_it_wants_the_option_and_the_list_says_what_is_there(tmp_path: Path) -> None:
    mirror, out = write(tmp_path / "mirror", small_nab()[1]), tmp_path / "out"
    refused = amiss("fetch", "nab", "--out", out, mirror=mirror)
    assert (refused.returncode, out.exists()) == (77, False)
    assert "license  MIT" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert amiss("fetch", "nab", "--out", out, "--accept-license", mirror=mirror).returncode == 0
    rows = json.loads(amiss("list", "--out", out, "--json", mirror=mirror).stdout)
    assert {row["name"]: row["fetched"] for row in rows} == {name: name == "nab" for name in DATASETS}
    (out / "nab/test/a.csv").unlink()
    assert datasets.fetched("nab", out) is None


# What is known


def test_every_set_is_described_and_can_be_converted() -> None:
    assert set(DATASETS) == set(CONVERSIONS) == {"skab", "smd", "cwru", "femto", "nab"}
    for dataset in DATASETS.values():
        assert len(dataset.commit) == 40
        assert f"/{dataset.commit}" in dataset.url
        assert dataset.url.startswith("https://")
        assert bool(dataset.files) != bool(dataset.patterns)
        assert dataset.format in ("csv", "parquet")
    skab_files = DATASETS["skab"].files
    assert len(skab_files) == 35
    assert all(len(digest) == 64 for digest in skab_files.values())
    assert not any(Path(path).is_absolute() or ".." in path for path in skab_files)


@pytest.mark.parametrize(
    ("name", "count", "rows"),
    [("skab", 68, 46406), ("smd", 8, 189557), ("cwru", 15, 2782629), ("femto", 9, 8640000), ("nab", 14, 69538)],
)
def test_from_the_real_mirror(name: str, count: int, rows: int, tmp_path: Path) -> None:
    environ = {"AMISS_DATASETS": str(skab.folder().parent)}
    if name != "skab" and not any(skab.folder().parent.glob(DATASETS[name].excerpt[0])):
        pytest.skip(f"{name} is not at {skab.folder().parent}: NOT TESTED on the real one")
    result = fetch(name, tmp_path, accept_license=True, say=lambda _: None, environ=environ)
    assert (len(result.files), result.rows) == (count, rows)
    for recording in recordings(tmp_path / name).values():
        assert np.all(np.diff(recording.time_ns) > 0)
        assert np.isfinite(recording.x).all()
