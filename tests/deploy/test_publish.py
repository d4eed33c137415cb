"""What is published, a real TUF client finds, from the folder and from the broker; and what went wrong half-way it does not."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mosquitto import Listener, Mosquitto, executable
from shop import WORDS, Make, Parts, Run, Shop
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf_device import Device

from deploy import keyfiles, keys, repository, shelf
from deploy import publish as publishing
from deploy.keyfiles import KeyRing, Passphrases
from deploy.repository import Repository, locked
from edge.bundle import ChannelSpec, write_bundle
from edge.errors import (
    AccessError,
    AmissError,
    BundleError,
    BusyError,
    CannotCreateError,
    DataError,
    NoInputError,
    SinkUnavailableError,
    UsageError,
)
from edge.updating.fetch import Reply, Request, answer

DOCS = Path(__file__).parents[2] / "docs"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_device_finds_what_the_manifest_says(shop: Shop, make: Make) -> None:
    channels = (ChannelSpec("vibration", "m/s2"), ChannelSpec("current", "A"))
    bundle = make("1.4", channels=channels)
    done = shop.publish(bundle, groups=["pumps", "fans", "pumps"], devices=["pump-7"], note="bearings")
    device = shop.device()
    offer = device.offers()["pump-1.4.amiss"]
    assert offer == done.offer
    assert (offer.number, offer.name, offer.version, offer.note) == (1, "pump", "1.4", "bearings")
    assert (offer.groups, offer.devices) == (("fans", "pumps"), ("pump-7",))
    assert (offer.channels, offer.rate_hz, offer.schema, offer.runtimes) == (channels, 100.0, 1, ("onnxruntime",))
    data = device.download("pump-1.4.amiss")
    assert data == bundle.read_bytes()
    assert (offer.digest, offer.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert list((shop.repo / "targets").iterdir()) == [shop.repo / "targets" / f"{offer.digest}.pump-1.4.amiss"]


def test_to_learn_of_a_new_version_takes_less_than_2_kb(shop: Shop, make: Make) -> None:
    channels = tuple(ChannelSpec(name, "m/s2") for name in ("axial", "radial", "current"))
    device = shop.device()
    device.offers()
    sizes = []
    for version in range(1, 12):
        done = shop.publish(
            make(f"1.{version}", channels=channels), groups=["pumps"], note="learned on what was recorded in May"
        )
        assert list(device.offers()) == [f"pump-1.{version}.amiss"], "an earlier one for the same devices is no longer offered"
        assert done.metadata_bytes == device.metadata_bytes, "what was said is what was downloaded"
        sizes.append(device.metadata_bytes)
    assert max(sizes) <= publishing.METADATA_BUDGET_BYTES
    assert max(sizes) - min(sizes) < 20, "and it does not grow with the versions there have been"


def test_the_number_grows_with_everything_that_is_said(shop: Shop, make: Make) -> None:
    one, two = make("1"), make("2")
    assert shop.number(one) == 1
    same = shop.publish(one)
    assert same.offer is not None
    assert same.offer.number == 1
    assert "already" in same.lines[0]
    assert shop.number(one, groups=["pumps"]) == 2
    assert shop.number(two) == 3
    shop.withdraw("pump-2")
    assert shop.number(two) == 4, "also when the highest is gone"
    assert shop.number(two, again=True) == 5
    assert shop.number(two, number=100) == 100
    assert shop.number(make("3"), number=7) == 101


def test_what_is_held_leaves_everything_as_it_is_and_keeps_its_number_when_it_is_let_go(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    held = shop.publish(make("2"), hold=True)
    assert held.lines[0].startswith("pump-2.amiss is held for all devices as number 2")
    offers = shop.device().offers()
    assert {path: offer.held for path, offer in offers.items()} == {"pump-1.amiss": False, "pump-2.amiss": True}
    assert "already" in shop.publish(make("2"), hold=True).lines[0]
    let_go = shop.publish(make("2"))
    assert let_go.superseded == ("pump-1.amiss",)
    offers = shop.device().offers()
    assert [(offer.number, offer.held) for offer in offers.values()] == [(2, False)], "who has it has nothing to do"
    assert shop.number(make("3")) == 3


def test_what_others_still_need_is_still_offered(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    shop.publish(make("2"), groups=["canary"])
    shop.publish(make("3"), keep=True)
    shop.publish(make("4", rate_hz=50.0))
    shop.publish(make("1", name="fan"))
    assert set(shop.device().offers()) == {f"{name}.amiss" for name in ("pump-1", "pump-2", "pump-3", "pump-4", "fan-1")}
    assert shop.publish(make("5")).superseded == ("pump-1.amiss", "pump-3.amiss")
    assert set(shop.device().offers()) == {f"{name}.amiss" for name in ("pump-2", "pump-4", "pump-5", "fan-1")}


def test_a_version_never_changes(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    before = everything(shop.repo)
    with pytest.raises(DataError, match=r"other bytes .*a higher one"):
        shop.publish(make("1", readme="other"))
    assert everything(shop.repo) == before
    shop.publish(make("2"))
    with pytest.raises(DataError, match="other bytes"):  # though 1 is no longer offered
        shop.publish(make("1", readme="other"))


def test_what_does_not_prove_itself_is_not_offered(shop: Shop, make: Make, tmp_path: Path, parts: Parts) -> None:
    before = everything(shop.repo)
    good = make("1").read_bytes()
    bad = tmp_path / "bad.amiss"
    for data in (b"", b"no zip", good[:-100], good.replace(b"0.1.0", b"9.1.0")):
        bad.write_bytes(data)
        with pytest.raises(BundleError, match=r"bad\.amiss: "):
            shop.publish(bad)
    write_bundle(bad, msgspec.structs.replace(parts[0], golden_tolerance=-1.0), parts[1])
    with pytest.raises(BundleError, match=r"bad\.amiss: self-test failed"):
        shop.publish(bad)
    with pytest.raises(NoInputError):
        shop.publish(tmp_path / "none.amiss")
    with pytest.raises(DataError, match="no name for a file"):
        shop.publish(make("1 b"))
    with pytest.raises(UsageError, match="cannot be offered like that"):
        shop.publish(make("1"), note="n" * 3000)
    assert everything(shop.repo) == before


@pytest.mark.parametrize("missing", ["targets-1", "snapshot-1", "timestamp-1"])
def test_without_a_key_nothing_is_written(shop: Shop, make: Make, missing: str) -> None:
    bundle, before = make("1"), everything(shop.repo)
    there = [name for name in ("targets-1", "snapshot-1", "timestamp-1") if name != missing]
    with pytest.raises(NoInputError, match=f"the key {missing} is not in"):
        shop.publish(bundle, shop.ring(*there))

    def slip(prompt: str) -> str:
        return "other words" if missing in prompt else WORDS

    with pytest.raises(AccessError, match=f"not the passphrase of {missing}"):
        shop.publish(bundle, KeyRing([shop.folder / "keys"], Passphrases({}, slip, lambda: True)))
    assert everything(shop.repo) == before
    shop.publish(make("1", readme="made once more meanwhile"))


def test_two_publishers_do_not_meet(shop: Shop, make: Make) -> None:
    bundle = make("1")
    with locked(shop.repo), pytest.raises(BusyError, match="try again"):
        shop.publish(bundle)
    shop.publish(bundle)


def test_a_folder_that_cannot_be_written(shop: Shop, make: Make, tmp_path: Path) -> None:
    bundle = make("1")
    (shop.repo / "targets").rmdir()
    (shop.repo / "targets").write_text("in the way")
    with pytest.raises(CannotCreateError, match="cannot be written"):
        shop.publish(bundle)
    (tmp_path / "file").write_text("")
    with pytest.raises(NoInputError, match="amiss keys init"):
        publishing.publish(bundle, tmp_path / "none", shop.ring())
    assert not (tmp_path / "none").exists()
    with pytest.raises(CannotCreateError, match="cannot be written"):
        keys.init(tmp_path / "file", tmp_path / "other", shop.passphrases)


class PowerCutError(Exception):
    pass


@contextmanager
def cut_after(writes: int) -> Iterator[list[str]]:
    """The power goes before the write after so many."""
    real, done = repository.at_once, list[str]()

    @contextmanager
    def at_once(path: Path) -> Iterator[Path]:
        if len(done) >= writes:
            raise PowerCutError(path.name)
        with real(path) as draft:
            yield draft
        done.append(path.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "at_once", at_once)
        yield done


@contextmanager
def timestamp_first() -> Iterator[None]:
    """The safeguard off: the same files, in the other order."""
    real = Repository._sign_online

    def backwards(self: Repository, targets: Any, written: dict[str, bytes], ring: KeyRing, days: Any) -> None:
        real(self, targets, written, ring, days)
        turned = dict(reversed(written.items()))
        written.clear()
        written.update(turned)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "_sign_online", backwards)
        yield


def test_a_publisher_that_dies_half_way_leaves_the_state_of_before(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    for writes in range(4):
        with cut_after(writes) as done, pytest.raises(PowerCutError):
            shop.publish(make(str(writes + 2)))
        assert len(done) == writes
        assert set(shop.device(f"device-{writes}").offers()) == {"pump-1.amiss"}
    shop.publish(make("9"))
    assert set(shop.device().offers()) == {"pump-9.amiss"}


def test_with_the_timestamp_first_it_would_not(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    with timestamp_first(), cut_after(2), pytest.raises(PowerCutError):
        shop.publish(make("2"))
    with pytest.raises((RepositoryError, DownloadError)):
        shop.device().offers()


def test_refresh_renews_what_is_due_and_no_more(tmp_path: Path, make: Make) -> None:
    now = [datetime.now(UTC) - timedelta(days=300)]
    shop = Shop(tmp_path, lambda: now[0])
    shop.publish(make("1"))

    def versions() -> tuple[int, int, int]:
        found = Repository(shop.repo, shop.clock)
        return found.targets.version, found.snapshot.version, found.timestamp.version

    server = "snapshot-1", "timestamp-1"
    assert versions() == (2, 2, 2)
    shop.refresh(*server)
    assert versions() == (2, 2, 3)
    now[0] += timedelta(days=16)
    shop.refresh(*server)
    assert versions() == (2, 3, 4)
    now[0] += timedelta(days=284)
    quiet = shop.refresh(*server)
    assert versions() == (2, 4, 5)
    assert not any("WARNING" in line for line in quiet.lines)
    assert set(shop.device().offers()) == {"pump-1.amiss"}
    now[0] += timedelta(days=20)
    warned = shop.refresh(*server)  # it has no targets key, and can only warn
    assert any("WARNING: targets: expires in 44 days" in line for line in warned.lines), warned.lines
    shop.refresh()
    assert versions()[0] == 3
    assert Repository(shop.repo, shop.clock).left("targets") > timedelta(days=364)
    shop.publish(make("2"), days={"timestamp": 0.5})
    assert Repository(shop.repo, shop.clock).left("timestamp") <= timedelta(hours=12)


def test_handed_over_it_waits_for_the_other_keys(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    done = shop.publish(make("2"), shop.ring("targets-1"), hand_over=True)
    assert "--refresh" in done.lines[0]
    assert set(shop.device().offers()) == {"pump-1.amiss"}
    assert publishing.listing(shop.repo)["waiting"] == ["pump-2.amiss"]
    shop.refresh("snapshot-1", "timestamp-1")
    device = shop.device()
    assert set(device.offers()) == {"pump-2.amiss"}
    assert device.download("pump-2.amiss") == make("2").read_bytes()


def test_handed_over_twice_under_one_version_the_last_one_counts(shop: Shop, make: Make, tmp_path: Path) -> None:
    """A laptop whose copy of the folder was old: what it signed lies where something else has been put in force."""
    shutil.copytree(shop.repo, tmp_path / "copy")
    shop.publish(make("1"))
    device = shop.device()
    assert set(device.offers()) == {"pump-1.amiss"}
    publishing.publish(make("2"), tmp_path / "copy", shop.ring("targets-1"), hand_over=True)
    shutil.copytree(tmp_path / "copy" / "targets", shop.repo / "targets", dirs_exist_ok=True)
    shutil.copy(tmp_path / "copy" / "metadata" / "2.targets.json", shop.repo / "metadata")
    with pytest.raises(RepositoryError):
        shop.device("newcomer").offers()
    shop.refresh("snapshot-1", "timestamp-1")
    assert set(shop.device("newcomer").offers()) == set(device.offers()) == {"pump-2.amiss"}


def test_what_is_withdrawn_is_gone(shop: Shop, make: Make) -> None:
    shop.publish(make("1"))
    shop.publish(make("2"), groups=["canary"])
    done = shop.withdraw("pump-2")
    assert "go on with it" in done.lines[0]
    assert set(shop.device().offers()) == {"pump-1.amiss"}
    assert [path.name.partition(".")[2] for path in (shop.repo / "targets").iterdir()] == ["pump-1.amiss"]
    with pytest.raises(NoInputError, match=r"pump-2\.amiss is not offered by .*; pump-1\.amiss is"):
        shop.withdraw("pump-2")


def test_old_metadata_goes_and_rubbish_under_high_numbers_drives_nothing_out(shop: Shop, make: Make) -> None:
    rubbish = {f"{number}.targets.json" for number in range(100, 120)}
    for name in rubbish:
        (shop.repo / "metadata" / name).write_text("rubbish")
    for version in range(1, 13):
        shop.publish(make(str(version)))
    names = {path.name for path in (shop.repo / "metadata").glob("*.targets.json")} - rubbish
    assert names == {f"{n}.targets.json" for n in range(6, 14)}
    offered = {path.name.partition(".")[2] for path in (shop.repo / "targets").iterdir()}
    assert offered == {f"pump-{n}.amiss" for n in range(5, 13)}, "what a device may just be downloading stays a while"
    assert set(shop.device().offers()) == {"pump-12.amiss"}


def test_damage_is_one_line(shop: Shop) -> None:
    for file in ("1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"):
        path = shop.repo / "metadata" / file
        good = path.read_bytes()
        hollow = b'{"signed":{"_type":"root"},"signatures":[]}'
        for bad in (b"", b"{}", b"[]", good[:-1], hollow, b"\xff" * 99, b" " * (2 << 20)):
            path.write_bytes(bad)
            with pytest.raises(AmissError) as caught:
                shop.refresh()
            assert "\n" not in str(caught.value)
        path.write_bytes(good)
    shop.refresh()


def ask(shop: Shop, source: str, **changes: Any) -> Reply:
    """Through the very code that a device runs."""
    (shop.folder / "root.json").write_bytes(shop.root)
    (shop.folder / "tuf").mkdir(exist_ok=True)
    plain: dict[str, Any] = {
        "repository": source,
        "root": str(shop.folder / "root.json"),
        "folder": str(shop.folder / "tuf"),
        "deadline_s": 30.0,
    }
    return answer(Request(**plain | changes))


def test_our_own_updater_takes_it(shop: Shop, make: Make) -> None:
    done = shop.publish(make("1"), groups=["pumps"])
    assert done.offer is not None
    taken = shop.folder / "taken"
    reply = ask(shop, str(shop.repo), take=done.offer.path, digest=done.offer.digest, into=str(taken))
    assert (reply.state, reply.offers, reply.skipped) == ("ok", (done.offer,), ())
    assert taken.read_bytes() == make("1").read_bytes()
    now_s = datetime.now(UTC).timestamp()
    assert max(abs(now_s - reply.offline_s), abs(now_s - reply.online_s)) < 60, "it learns when it was signed"
    keys.rotate(shop.repo, shop.ring(), ["targets-1", "timestamp-1", "root-2"], shop.folder / "new", shop.passphrases)
    assert ask(shop, str(shop.repo)).state == "ok"


# On a broker.


def from_broker(port: int, name: str = "plant") -> dict[str, bytes]:
    """What a device that subscribes now is given: everything retained comes before what is published afterwards."""
    import paho.mqtt.publish

    with Listener(port, f"amiss-models/{name}/#") as listener:
        mark = f"amiss-models/{name}/mark"
        paho.mqtt.publish.single(mark, b"x", qos=1, port=port, hostname="127.0.0.1")
        listener.wait(lambda heard: any(one.topic == mark for one in heard))
        return {one.topic.removeprefix(f"amiss-models/{name}/"): one.payload for one in listener.heard if one.retained}


def test_a_device_that_has_only_a_broker(shop: Shop, make: Make, mosquitto: Mosquitto) -> None:
    shop.publish(make("1"))
    with Listener(mosquitto.port, "amiss-models/#") as listener:
        done = shelf.shelve(Repository(shop.repo), "plant", mosquitto.config())
        assert (done.put, done.cleared) == (5, 0)
        listener.wait(lambda heard: any(one.topic.endswith("timestamp.json") for one in heard))
        order = [one.topic.rpartition("/")[2] for one in listener.heard if one.payload]
        assert order[1:] == ["1.root.json", "2.targets.json", "2.snapshot.json", "timestamp.json"]
        assert order[0].endswith(".pump-1.amiss")
    there = from_broker(mosquitto.port)
    device = Device(shop.folder / "device", shop.root, there.__getitem__)
    assert set(device.offers()) == {"pump-1.amiss"}
    assert device.download("pump-1.amiss") == make("1").read_bytes()
    ours = ask(shop, "mqtt:plant", mqtt=mosquitto.config())
    assert [offer.path for offer in ours.offers] == ["pump-1.amiss"]


def test_the_broker_keeps_what_is_needed_and_nothing_else(shop: Shop, make: Make, mosquitto: Mosquitto) -> None:
    def put() -> shelf.Shelved:
        return shelf.shelve(Repository(shop.repo), "plant", mosquitto.config())

    shop.publish(make("1"))
    put()
    digest = hashlib.sha256(make("1").read_bytes()).hexdigest()
    shop.publish(make("2"))
    put()
    there = from_broker(mosquitto.port)
    assert {"metadata/2.targets.json", "metadata/3.targets.json"} <= there.keys(), "for who has read the old timestamp"
    assert f"targets/{digest}.pump-1.amiss" not in there
    shop.withdraw("pump-2")
    put()
    there = from_broker(mosquitto.port)
    assert not any(name.startswith("targets/") for name in there)
    assert "metadata/2.targets.json" not in there
    assert Device(shop.folder / "device", shop.root, there.__getitem__).offers() == {}


def test_what_is_too_large_for_a_broker_is_said(
    shop: Shop, make: Make, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish(make("1"))
    monkeypatch.setattr(shelf, "MOST_BUNDLE_BYTES", 1000)
    done = shelf.shelve(Repository(shop.repo), "plant", mosquitto.config())
    assert done.left_out == ("pump-1.amiss",)
    assert "HTTPS: pump-1.amiss" in done.line("x")


def test_a_bundle_of_the_largest_size_gets_through(shop: Shop, make: Make, mosquitto: Mosquitto) -> None:
    bundle = make("1", readme="x" * (shelf.MOST_BUNDLE_BYTES - make("1").stat().st_size - 10))
    assert shelf.MOST_BUNDLE_BYTES - 20 < bundle.stat().st_size <= shelf.MOST_BUNDLE_BYTES
    shop.publish(bundle)
    assert shelf.shelve(Repository(shop.repo), "plant", mosquitto.config()).put == 5
    assert shelf.shelve(Repository(shop.repo), "plant", mosquitto.config()).put == 4, "and is seen to be there"


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("rule", ["topic read amiss-models/#", "topic write amiss-models/#"])
def test_a_broker_that_does_not_let_us_is_named(shop: Shop, make: Make, tmp_path: Path, version: str, rule: str) -> None:
    shop.publish(make("1"))
    with Mosquitto(tmp_path / "strict", acl=f"{rule}\n") as broker, pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.retained.PATIENCE_S", 1.0)
        patch.setattr(shelf, "PATIENCE_S", 1.0)
        with pytest.raises(AccessError, match="amiss-models"):
            shelf.shelve(Repository(shop.repo), "plant", broker.config(version=version))
    with pytest.raises(SinkUnavailableError):
        shelf.shelve(Repository(shop.repo), "plant", broker.config())


def test_only_the_publisher_changes_what_is_on_the_broker(shop: Shop, make: Make, tmp_path: Path) -> None:
    """With the ACL of docs/mqtt.md."""
    (acl,) = re.findall(r"^```acl\n(.*?)^```$", (DOCS / "mqtt.md").read_text("utf-8"), re.M | re.S)
    with Mosquitto(tmp_path / "strict", password=("publisher", "p"), acl=acl) as broker:
        pass
    users = tmp_path / "strict" / "users"
    subprocess.run([executable("mosquitto_passwd"), "-b", users, "pump-7", "p"], check=True, capture_output=True)
    shop.publish(make("1"))
    with broker:
        shelf.shelve(Repository(shop.repo), "plant", broker.config(username="publisher", password="p"))
        device = broker.config(username="pump-7", password="p")
        assert ask(shop, "mqtt:plant", mqtt=device).state == "ok"
        shop.withdraw("pump-1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shelf, "_there", lambda *_: {})  # a thief does not ask first
            with pytest.raises(AccessError, match=r"refuses amiss-models/plant/.*ACL"):
                shelf.shelve(Repository(shop.repo), "plant", device)
        assert [offer.path for offer in ask(shop, "mqtt:plant", mqtt=device).offers] == ["pump-1.amiss"]


# The command line, and the page that explains it.


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("publish --repo models", 2, "say one of"),
        ("publish x.amiss --repo models --refresh", 2, "say one of"),
        ("publish --repo models --refresh --group g", 2, "name the bundle"),
        ("publish --repo models --refresh --hand-over", 2, "--hand-over goes with"),
        ("publish --repo models --refresh --broker b", 2, "--mqtt NAME"),
        ("publish --repo models --mqtt A/b", 2, "lower case"),
        ("publish --repo models --mqtt a --broker localhost", 66, "amiss keys init"),
        ("publish --repo models --refresh", 66, "no such folder of keys"),
        ("publish --repo models --list", 66, "amiss keys init"),
        ("publish --repo models --mqtt a --config none.toml", 66, "none.toml"),
        ("keys init --repo models --expires-days root=x", 2, "ROLE=DAYS"),
        ("keys init --repo models --expires-days boot=3", 2, "ROLE=DAYS"),
        ("keys sign", 2, "which draft"),
        ("keys sign draft.json --keys .", 66, "no such draft"),
        ("keys rotate --repo models --keys .", 66, "amiss keys init"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: str, code: int, says: str) -> None:
    found, _, error = run(*shlex.split(arguments))
    assert (found, error.count("\n")) == (code, 1), error
    assert says in error


HOWTO = (DOCS / "howto" / "push-a-model.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", HOWTO, re.M | re.S) for line in block.splitlines()]


def test_the_page_tells_the_truth(run: Run, make: Make, mosquitto: Mosquitto, tmp_path: Path) -> None:
    make("1")
    make("2")
    (tmp_path / "broker.toml").write_text(f'[mqtt]\nhost = "127.0.0.1"\nport = {mosquitto.port}\n')
    models, seen = tmp_path / "models", list[set[str]]()

    def device(name: str) -> Device:
        return Device(tmp_path / name, (models / "metadata" / "1.root.json").read_bytes(), models)

    for line in COMMANDS:
        command, _, comment = line.partition("    #")
        wanted = int(re.findall(r"exit code (\d+)", comment)[0]) if comment else 0
        words = shlex.split(command)
        if words[0] == "amiss":
            code, out, error = run(*words[1:])
            assert code == wanted, f"{line}: {error}"
            assert WORDS not in out + error
        else:
            subprocess.run(words, check=True, cwd=tmp_path)
        # After every single command a device that has followed all along is content.
        offers = device("follower").offers()
        if not seen or seen[-1] != set(offers):
            seen.append(set(offers))
    assert seen == [set(), {"pump-1.amiss"}, {"pump-2.amiss"}, set(), {"pump-1.amiss"}]
    assert device("newcomer").offers()["pump-1.amiss"].number == 3, "devices that have number 2 come back to it"
    assert device("newcomer").download("pump-1.amiss") == (tmp_path / "pump-1.amiss").read_bytes()
    assert "metadata/timestamp.json" in from_broker(mosquitto.port)
    # What the stolen key signs is refused, even where the thief can write to the server.
    found = Repository(models)
    assert [keyfiles.name_of(found.root.keys[keyid]) for keyid in found.root.roles["targets"].keyids] == ["targets-4"]
    at = models / "metadata" / f"{found.snapshot.meta['targets.json'].version}.targets.json"
    earlier = next(
        root.signed for root in found.roots if any(keyfiles.name_of(key) == "targets-2" for key in root.signed.keys.values())
    )
    words = Passphrases({}, lambda prompt: WORDS, lambda: True)
    good = at.read_bytes()
    at.write_bytes(repository.sign(found.targets, earlier, KeyRing([tmp_path / "laptop"], words)))
    with pytest.raises(RepositoryError):
        device("another").offers()
    assert repository.sign(found.targets, found.root, KeyRing([tmp_path / "new-laptop"], words)) == good
    at.write_bytes(good)
    device("another").offers()


def test_from_the_digest_of_an_event_to_recipe_data_and_signatures(run: Run, shop: Shop, make: Make, tmp_path: Path) -> None:
    bundle = make("1", lineage={"recipe": "r" * 8, "data/may.csv": "d" * 8})
    shop.publish(bundle, groups=["pumps"], hold=True)
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    code, out, error = run("inspect", digest[:12], "--repo", "models")
    assert code == 0, error
    for line in (
        f"digest       {digest}",
        f"recipe       {'r' * 8}",
        f"data/may.csv {'d' * 8}",
        "offered      to group pumps, held, as number 1",
        "signed       root 1 by root-1, root-2",
        "signed       targets 2 by targets-1",
    ):
        assert line in out
    code, out, error = run("inspect", str(bundle), "--repo", "models", "--json")
    found = json.loads(out)
    assert (code, found["digest"], found["repository"]["number"]) == (0, digest, 1)
    assert found["repository"]["signatures"]["timestamp"]["keys"] == ["timestamp-1"]
    for asked, code, says in [
        ("0" * 12, 66, "no model of that digest"),
        (digest[:4], 66, "of that digest"),
        (str(make("2")), 66, "no model of that digest"),
        ("none.amiss", 66, "none.amiss: No such file"),
    ]:
        found_code, _, error = run("inspect", asked, "--repo", "models")
        assert (found_code, error.count("\n")) == (code, 1), error
        assert says in error
    assert run("inspect", digest)[0] == 66, "without a repository a digest is no file"
