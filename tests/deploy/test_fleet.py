"""Roll-outs to devices that run the real workflow, over a real broker; their machines and trials are played."""

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Mosquitto, until
from shop import Make, Run, Shop

from benchmarks import fleet as played
from benchmarks.fleet import Crowd, Kind
from deploy import fleet
from deploy import publish as publishing
from deploy.ledger import Ledger, Rollout
from deploy.plant import Plant
from deploy.rollout import Member, Plan
from edge.errors import AmissError, GateError, UsageError


@pytest.fixture
def day_s() -> float:
    """In it all devices live a day."""
    return 0.5


slowly = pytest.mark.parametrize("day_s", [2.0])


@pytest.fixture
def kinds() -> dict[str, Kind]:
    return {}


@pytest.fixture
def crowd(
    mosquitto: Mosquitto, tmp_path: Path, kinds: dict[str, Kind], day_s: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Crowd]:
    """Twenty devices of two groups."""
    monkeypatch.setattr(played, "HEALTH_S", 0.1)
    with Crowd(20, tmp_path / "devices", mosquitto.port, kinds, speed=24 * 3600 / day_s) as crowd:
        yield crowd


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(str(tmp_path / "fleet.db"))) as ledger:
        yield ledger


Roll = Callable[..., tuple[Rollout, list[Member], list[str]]]


@pytest.fixture
def roll(mosquitto: Mosquitto, tmp_path: Path, crowd: Crowd, kinds: dict[str, Kind], ledger: Ledger) -> Roll:
    """Roll a model of that kind out, to the end."""

    def roll(kind: Kind, version: int = 1, *, resume: bool = False, **plan: Any) -> tuple[Rollout, list[Member], list[str]]:
        offer, path = played.bundle(tmp_path, str(version))
        if offer.digest not in kinds:
            kinds[offer.digest] = kind
            crowd.offer(offer, path)
        said: list[str] = []
        wanted = Plan(model=f"pump-{version}", number=version, digest=offer.digest, **plan)
        with Plant(mosquitto.config(), watch=True) as plant:
            rollout = fleet.begin(ledger, plant, wanted, plant.chosen((), ()), resume=resume)
            done = fleet.Controller(ledger, plant, rollout, said=said.append).drive()
        return done, ledger.members(done.id), said

    return roll


def places(members: list[Member]) -> dict[str, int]:
    return dict(Counter(member.place for member in members))


def running(crowd: Crowd) -> dict[int, int]:
    return dict(Counter(device.updates.progress.number for device in crowd.devices))


def test_a_good_model_reaches_all_of_them_the_canaries_first(roll: Roll, crowd: Crowd, day_s: float) -> None:
    done, members, said = roll("good")
    assert (done.state, places(members), running(crowd)) == ("done", {"kept": 20}, {1: 20})
    assert [line.split(",")[0] for line in said] == [f"pump-1: stage {i} of 3" for i in (1, 2, 3)] + ["pump-1: done"]
    asked = [[member.asked_s or 0.0 for member in members if member.stage == stage] for stage in range(3)]
    assert [len(one) for one in asked] == [2, 4, 14]
    assert max(asked[0]) + day_s <= min(asked[1])
    assert max(asked[1]) + day_s <= min(asked[2])
    assert all(member.hours_before > 300 for member in members)
    assert all(member.hours_after > 0 for member in members if member.stage < 2)
    again = roll("good")
    assert (again[0].id, again[2]) == (done.id, [said[-1]]), "it is done, and nothing is done again"


def test_one_that_the_canaries_refuse_reaches_nobody_else(roll: Roll, crowd: Crowd) -> None:
    roll("good")
    done, members, _ = roll("refused", 2, stages=(0.3, 1.0))
    assert done.state == "reverted"
    assert "did not keep it; 10% may" in done.reason
    assert places(members)["waiting"] == 14
    assert running(crowd) == {1: 20}
    with pytest.raises(UsageError, match=r"was taken back .*publish a new version"):
        roll("refused", 2)


@pytest.mark.parametrize(("kind", "why"), [("noisy", "alarms in"), ("slow", "times as long as before")])
def test_one_that_every_device_would_keep_is_taken_back_for_what_all_of_them_show(
    roll: Roll, crowd: Crowd, kind: Kind, why: str
) -> None:
    done, members, said = roll(kind, stages=(0.5, 1.0))
    assert done.state == "reverted"
    assert why in done.reason
    assert running(crowd) == {0: 20}
    assert places(members).keys() <= {"returned", "waiting"}
    assert said[-1] == f"pump-1: taken back, {done.reason}"
    assert "is being taken back" in said[-2]


def test_without_the_gate_it_would_have_reached_all_of_them(roll: Roll, crowd: Crowd) -> None:
    done, _, _ = roll("noisy", stages=(0.5, 1.0), times=1e6)
    assert (done.state, running(crowd)) == ("done", {1: 20})


def test_halted_and_not_taken_back_where_that_is_wanted(roll: Roll, crowd: Crowd) -> None:
    done, members, _ = roll("slow", stages=(0.5, 1.0), revert=False)
    assert (done.state, places(members)["waiting"]) == ("halted", 10)
    assert set(running(crowd)) == {0, 1}
    with pytest.raises(UsageError, match=r"was halted \(a window takes .*--resume"):
        roll("slow", stages=(0.5, 1.0), revert=False)
    with pytest.raises(UsageError, match="with the stages 50%,100%; they stay"):
        roll("slow", stages=(0.6, 1.0), revert=False, resume=True)
    done, members, _ = roll("slow", stages=(0.5, 1.0), slower=10.0, resume=True)
    assert (done.state, done.plan.slower, running(crowd)) == ("done", 10.0, {1: 20}), "with the gates that are given now"


def test_one_that_is_off_holds_nobody_up_for_ever(roll: Roll, crowd: Crowd) -> None:
    deaf = crowd.devices[7]
    deaf.client.unsubscribe(f"amiss/{deaf.node}/request/+")
    time.sleep(0.3)
    done, members, said = roll("good", stages=(1.0,), patience_h=3 / 3600)
    assert (done.state, places(members)) == ("done", {"kept": 19, "absent": 1})
    assert any(line.startswith(f"{deaf.node}: absent: had not decided after") for line in said)
    assert said[-1] == "pump-1: done, 19 of 20 devices keep it"


def test_two_roll_outs_do_not_meet_on_one_device(roll: Roll, ledger: Ledger, mosquitto: Mosquitto) -> None:
    others = Plan(model="pump-9", number=9, digest="c" * 64)
    ledger.begin(others, "another broker", [Member(device="d-0001", group="group-1", stage=0)])
    here = ledger.begin(others, f"broker 127.0.0.1:{mosquitto.port}", [Member(device="d-0001", group="group-1", stage=0)])
    with pytest.raises(UsageError, match="pump-9 is being rolled out to d-0001"):
        roll("good")
    ledger.note(here.id, state="halted")
    assert roll("good")[0].state == "done", "of another plant's devices nobody knows the names"


def test_to_one_first_and_then_to_all(crowd: Crowd, ledger: Ledger, mosquitto: Mosquitto, tmp_path: Path, roll: Roll) -> None:
    kinds: dict[str, Kind] = crowd.devices[0]._kinds
    offer, path = played.bundle(tmp_path, "1")
    kinds[offer.digest] = "good"
    crowd.offer(offer, path)
    plan = Plan(model="pump-1", number=1, digest=offer.digest, stages=(1.0,))
    with Plant(mosquitto.config(), watch=True) as plant:
        first = fleet.begin(ledger, plant, plan, ["d-0007"])
        done = fleet.Controller(ledger, plant, first, said=lambda line: None, audience=lambda node, group: False).drive()
    assert (done.state, running(crowd)) == ("done", {0: 19, 1: 1})
    done, members, _ = roll("good")
    assert done.id != first.id
    assert (places(members), running(crowd)) == ({"kept": 20}, {1: 20})


def test_a_token_that_is_missing_speaks_against_no_model(roll: Roll, crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: played.Simulated, client: Any, userdata: Any, message: Any) -> None:
        answer = {"status": "error", "error": "`token` is missing", "transaction": json.loads(message.payload)["transaction"]}
        self._publish(f"amiss/{self.node}/response/update", json.dumps(answer).encode(), 1, retain=False)

    for device in crowd.devices:
        device.client.on_message = partial(refuse, device)
    done, _, _ = roll("good")
    assert (done.state, done.reason.split(": ")[1]) == ("halted", "`token` is missing")
    for device in crowd.devices:
        device.client.on_message = device._asked
    assert roll("good", resume=True)[0].state == "done"


def test_canaries_that_are_off_burn_no_version(roll: Roll, crowd: Crowd) -> None:
    for device in crowd.devices:
        device.client.unsubscribe(f"amiss/{device.node}/request/+")
    time.sleep(0.3)
    done, members, _ = roll("good", patience_h=1 / 3600)
    assert (done.state, places(members)["absent"]) == ("halted", 2)
    for device in crowd.devices:
        device.client.subscribe(f"amiss/{device.node}/request/+", 1)
    time.sleep(0.3)
    assert roll("good", patience_h=60 / 3600, resume=True)[0].state == "done"


def test_a_device_that_comes_later_is_of_the_last_stage(
    roll: Roll, crowd: Crowd, ledger: Ledger, mosquitto: Mosquitto, tmp_path: Path, kinds: dict[str, Kind]
) -> None:
    offer, path = played.bundle(tmp_path, "1")
    kinds[offer.digest] = "good"
    crowd.offer(offer, path)
    names = [device.node for device in crowd.devices[:19]]
    with Plant(mosquitto.config(), watch=True) as plant:
        rollout = fleet.begin(ledger, plant, Plan(model="pump-1", number=1, digest=offer.digest), names)
        done = fleet.Controller(ledger, plant, rollout, said=lambda line: None).drive()
    late = next(member for member in ledger.members(done.id) if member.device == crowd.devices[19].node)
    assert (late.stage, late.place) == (2, "kept")


# On the command line, with a repository that is signed.


Amiss = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def amiss(mosquitto: Mosquitto, shop: Shop, make: Make, crowd: Crowd, kinds: dict[str, Kind], tmp_path: Path) -> Amiss:
    """`amiss fleet …`, with `pump-2` held in the repository."""
    path = make("2")
    offer = shop.publish(path, hold=True).offer
    assert offer is not None
    kinds[offer.digest] = "good"
    crowd.offer(offer, path)
    places = {
        "rollout": ["--repo", shop.repo, "--broker", f"127.0.0.1:{mosquitto.port}"],
        "revert": ["--broker", f"127.0.0.1:{mosquitto.port}"],
    }

    def amiss(verb: str, *arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "amiss", "fleet", verb, *map(str, [*arguments, *places.get(verb, [])])]
        environment = os.environ | {"AMISS_FLEET_STATE": str(tmp_path / "fleet.db"), "PYTHONPATH": os.getcwd()}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return amiss


def expire(folder: Path) -> None:
    """The lease of who died is over."""
    with closing(sqlite3.connect(folder / "fleet.db")) as state, state:
        state.execute("UPDATE rollout SET held_until_s = 0")


def end(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    out, complaint = process.communicate(timeout=60)
    assert process.returncode == code, complaint
    assert "Traceback" not in complaint
    return out, complaint


@slowly
def test_killed_in_the_middle_the_same_command_goes_on(amiss: Amiss, crowd: Crowd, tmp_path: Path) -> None:
    first = amiss("rollout", "pump-2")
    until(lambda: 1 in running(crowd), 30)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert running(crowd)[1] < 20
    out, complaint = end(amiss("rollout", "pump-2"), 75)
    assert "another process drives this roll-out" in complaint, "for all anybody knows it lives, for a while"
    assert json.loads(end(amiss("status", "--json"))[0])["driven"] is True
    expire(tmp_path)
    out, complaint = end(amiss("rollout", "pump-2", "--json"))
    found = json.loads(out)
    assert (found["state"], running(crowd)) == ("done", {1: 20})
    assert len(found["devices"]) == 20
    assert "stage 3 of 3" in complaint


@slowly
def test_it_is_taken_back_though_its_driver_was_killed(amiss: Amiss, crowd: Crowd, tmp_path: Path) -> None:
    first = amiss("rollout", "pump-2")
    until(lambda: 1 in running(crowd), 30)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    back = amiss("revert", "--reason", "it is Friday")
    assert back.stderr is not None
    assert "another process drives the roll-out" in back.stderr.readline(), "for all anybody knows"
    expire(tmp_path)
    out, _ = end(back)
    assert out.startswith("pump-2: taken back, it is Friday\n")
    until(lambda: running(crowd) == {0: 20})


@slowly
def test_halted_by_hand_it_goes_on_when_it_is_told_to_and_is_taken_back_when_it_is_told_to(amiss: Amiss, crowd: Crowd) -> None:
    first = amiss("rollout", "pump-2")
    until(lambda: 1 in running(crowd), 30)
    out, _ = end(amiss("halt", "--reason", "it is Friday"))
    assert out.splitlines()[0] == "pump-2: halted, it is Friday"
    out, _ = end(first, 1)
    assert running(crowd)[0] > 0
    _, complaint = end(amiss("rollout", "pump-2"), 2)
    assert "it is Friday" in complaint
    out, complaint = end(amiss("rollout", "pump-2", "--resume"))
    assert "pump-2: done, 20 of 20 devices keep it" in out
    assert "without --hold" in complaint
    out, _ = end(amiss("status", "--devices"))
    _, stages, *rows = out.splitlines()
    assert stages.split() == ["stage", "up", "to", "devices", "kept"]
    assert [row.split() for row in rows[:3]] == [["1", "5%", "2", "2"], ["2", "25%", "4", "4"], ["3", "100%", "14", "14"]]
    assert sum(row.startswith("d-00") for row in rows) == 20
    out, _ = end(amiss("revert", "--reason", "it is Monday"))
    assert running(crowd) == {0: 20}
    assert out.splitlines()[0] == "pump-2: taken back, it is Monday"
    _, complaint = end(amiss("revert"), 1)
    assert "was taken back already" in complaint
    _, complaint = end(amiss("halt"), 1)
    assert "it is reverted" in complaint


@slowly
def test_whoever_watches_sees_it_until_it_is_over(amiss: Amiss) -> None:
    rolling = amiss("rollout", "pump-2", "--stages", "10%,100%")
    assert rolling.stderr is not None
    assert "stage 1 of 2" in rolling.stderr.readline()
    out, _ = end(amiss("status", "--watch"))
    end(rolling)
    assert "pump-2: stage 1 of 2, 2 devices, up to 10% of every group" in out
    assert "\n\npump-2: done, 20 of 20 devices keep it\n" in out


def test_a_mistake_is_one_line(amiss: Amiss, shop: Shop, make: Make) -> None:
    shop.publish(make("3"), keep=True)
    for arguments, code, says in [
        (("rollout", "pump-4"), 66, "pump-4 is not offered by"),
        (("rollout", "pump-3"), 66, "publish it with --hold"),
        (("rollout", "pump-2", "--group", "fans"), 66, "no device of group fans; groups there: group-0, group-1"),
        (("rollout", "pump-2", "--stages", "50%"), 2, "end with 100%"),
        (("rollout", "pump-2", "--stages", "many,100%"), 2, "a share, such as 5%"),
        (("rollout", "pump-2", "--most-failed", "110%"), 2, "a share"),
        (("rollout", "pump-2", "--state", "/nowhere/fleet.db"), 73, "does the folder exist"),
        (("status", "--state", "/nowhere/fleet.db"), 66, "no such file"),
        (("halt", "pump-9", "--state", "/nowhere/fleet.db"), 66, "no such file"),
    ]:
        out, complaint = end(amiss(*arguments), code)
        assert (out, len(complaint.splitlines())) == ("", 1), arguments
        assert says in complaint


HOWTO = (Path(__file__).parents[2] / "docs" / "howto" / "roll-out.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", HOWTO, re.M | re.S) for line in block.splitlines()]


def test_the_page_tells_the_truth(
    run: Run, shop: Shop, make: Make, crowd: Crowd, kinds: dict[str, Kind], mosquitto: Mosquitto, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "broker.toml").write_text(f'[mqtt]\nhost = "127.0.0.1"\nport = {mosquitto.port}\n')
    path = make("2")
    ran = []
    for line in COMMANDS:
        _, *words = shlex.split(line)
        code, out, error = run(*words)
        assert code == 0, f"{line}: {error}"
        ran.append((words[1] if words[0] == "fleet" else words[0], running(crowd)))
        if words[0] == "publish":
            offer = publishing.held(shop.repo, "pump-2")
            kinds[offer.digest] = "good"
            crowd.offer(offer, path)
            # To one of them by hand first, as the page says.
            words = [
                "push",
                "--device",
                "d-0007",
                "--version",
                "pump-2",
                "--repo",
                "models",
                "--config",
                "broker.toml",
                "--watch",
                "1",
            ]
            assert "--device pump-7 --version pump-2 --repo models --config broker.toml" in HOWTO
            code, out, error = run(*words)
            assert (code, running(crowd)) == (0, {0: 19, 1: 1}), error
        elif words[1] == "status":
            assert (
                out.splitlines()[:5] == HOWTO[HOWTO.index("pump-2: done, 20 of 20 devices keep it\nstage") :].splitlines()[:5]
            )
    assert ran == [("publish", {0: 20}), ("rollout", {1: 20}), ("status", {1: 20}), ("revert", {0: 20})]
    assert (tmp_path / "state" / "amiss" / "fleet.db").exists()


def test_who_was_asked_and_has_not_begun_is_told_to_leave_it(
    roll: Roll, crowd: Crowd, ledger: Ledger, kinds: dict[str, Kind]
) -> None:
    """Half of them cannot tell yet; then somebody takes the model back."""
    with ThreadPoolExecutor() as pool:
        rolling = pool.submit(roll, "undecided", stages=(1.0,))
        until(lambda: running(crowd).get(1, 0) > 0 and running(crowd)[1] + len(waiting(crowd)) == 20)
        undecided = waiting(crowd)
        fleet.revert(ledger, ledger.find(None), "it is Friday")
        done, members, _ = rolling.result(60)
    assert (done.state, places(members), running(crowd)) == ("reverted", {"returned": 20}, {0: 20})
    assert {member.device for member in members if member.reason == "it had not begun"} == {one.node for one in undecided}
    (digest,) = kinds
    kinds[digest] = "good"
    for device in undecided:
        device.updates.look_now()
    time.sleep(1.0)
    assert running(crowd) == {0: 20}, "nor do they take it when they look the next time"
    undecided[0].updates.look_now(1)
    until(lambda: running(crowd) == {0: 19, 1: 1})  # the control: they could


def waiting(crowd: Crowd) -> list[played.Simulated]:
    return [device for device in crowd.devices if "waits" in device.updates.progress.reason]


def test_what_is_over_is_not_halted(ledger: Ledger) -> None:
    rollout = ledger.begin(Plan(model="pump-1", number=1, digest="a" * 64), "b", [])
    ledger.note(rollout.id, state="done")
    with pytest.raises(GateError, match="is not being rolled out: it is done"):
        fleet.halt(ledger, ledger.find(None), "")
    assert issubclass(GateError, AmissError)
