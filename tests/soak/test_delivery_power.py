"""The outbox when the power goes: every record that `put` returned for is there, and the file opens."""

import random
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from powerloss import Disk, Rest, traced

from edge.delivery.outbox import Outbox

CHILD = """
import os, random, sys
from pathlib import Path
from edge.delivery.outbox import Outbox

outbox = Outbox(Path(sys.argv[1]), device="n", boot="b", max_bytes=1 << 26, group_s=3600.0, ack="application")
outbox._connection.execute("PRAGMA synchronous = " + sys.argv[2])
chance, grouped = random.Random(7), []

def tell(verb, records):
    os.write(1, b"".join(b"%s %s\\n" % (verb, record.encode()) for record in records))

os.write(1, b"ready\\n")
for i in range(int(sys.argv[3])):
    kind = chance.choice(["alert", "telemetry", "telemetry"])
    payload = lambda record: record.encode() + b" " * chance.randrange(1500)
    durable = chance.random() < 0.7
    record = outbox.put(kind, "amiss/n/pump/event", payload, durable=durable)
    grouped = [] if durable or len(grouped) == 49 else [*grouped, record]
    if not grouped:
        tell(b"accepted", [record])
    if chance.random() < 0.1:
        some = outbox.pending(10)
        tell(b"gone", [r.payload.split()[0].decode() for r in some if not r.alert])
        outbox.delivered([r.sequence for r in some])
        tell(b"accepted", grouped)
        grouped = []
    if chance.random() < 0.05:
        some = [r.payload.split()[0].decode() for r in outbox.pending(3) if r.alert]
        tell(b"gone", some)
        outbox.acknowledge(some)
        tell(b"accepted", grouped)
        grouped = []
"""


@dataclass
class Tally:
    states: int = 0
    corrupt: int = 0
    lost: int = 0
    """States in which a record is missing."""
    wrong: int = 0
    """States in which the counts do not add up."""


def crash_often(tmp_path: Path, synchronous: str, states: int, puts: int) -> Tally:
    """Crash images at calls chosen by chance, three of each: nothing, everything and some of what was not synced."""
    tmp_path.mkdir(exist_ok=True)
    folder, log, chance = tmp_path / "state", tmp_path / "calls", random.Random(synchronous)
    arguments = [sys.executable, "-c", CHILD, str(folder / "outbox.db"), synchronous, str(puts)]
    assert traced(arguments, log) == 0
    calls = sum(1 for _ in Disk(folder).replay(log))
    chosen = sorted(chance.randrange(calls) for _ in range(states // 3))
    tally, disk = Tally(), Disk(folder)
    rests: tuple[Rest, ...] = ("none", "all", "some")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as quick:
        image = Path(quick) / "state"
        for number, _ in enumerate(disk.replay(log)):
            while chosen and chosen[0] == number:
                del chosen[0]
                if "ready" in disk.told:
                    for rest in rests:
                        disk.crash(image, rest, chance)
                        judge(image, disk.told, tally)
    print(f"{synchronous}: {tally}, {calls} calls")
    return tally


def judge(image: Path, told: list[str], tally: Tally) -> None:
    tally.states += 1
    said = [line.split() for line in told]
    accepted = {words[1] for words in said if words[0] == "accepted"}
    gone = {words[1] for words in said if words[0] == "gone"}
    with closing(Outbox(image / "outbox.db", device="n", boot="c", max_bytes=1 << 26, ack="application")) as outbox:
        if (image / "outbox.db.damaged").exists():
            tally.corrupt += 1
            return
        counts = outbox.counts
        rows = outbox._connection.execute("SELECT payload, key >> 48 FROM record").fetchall()
    there = {payload.split()[0].decode() for payload, _ in rows}
    if accepted - gone - there:
        tally.lost += 1
    if (
        counts.accepted != counts.delivered + counts.waiting
        or len(rows) != counts.waiting
        or counts.awaiting != sum(1 for _, rank in rows if rank == 4)
    ):
        tally.wrong += 1


@pytest.mark.parametrize(("states", "puts"), [(210, 250), pytest.param(6000, 1500, marks=pytest.mark.soak)])
def test_no_loss_of_power_costs_an_accepted_record_or_the_file(tmp_path: Path, states: int, puts: int) -> None:
    tally = crash_often(tmp_path, "FULL", states, puts)
    assert tally.states > 0.8 * states
    assert (tally.corrupt, tally.lost, tally.wrong) == (0, 0, 0)


@pytest.mark.parametrize(("states", "puts"), [(210, 250), pytest.param(1500, 1500, marks=pytest.mark.soak)])
def test_what_the_disk_is_asked_for_is_needed(tmp_path: Path, states: int, puts: int) -> None:
    """The controls: the same, with SQLite told to sync less."""
    assert crash_often(tmp_path / "normal", "NORMAL", states, puts).lost > 0
    assert crash_often(tmp_path / "off", "OFF", states, puts).corrupt > 0
