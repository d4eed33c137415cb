"""Our own image: arithmetic of its disk, and what it takes over from the boot partition, here and with the real program."""

import base64
import contextlib
import grp
import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from small_bundle import build

from deploy.image import disk

TAKE_OVER = disk.OVERLAY / "usr/lib/amiss-image/take_over.py"
CONFIG = """\
node = "pump-7"
bundle = "pump.amiss"

[streams.pump]
port = "/dev/ttyUSB0"

[mqtt]
host = "broker.example.org"
password = "do not tell"
"""
BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)
KEY = f"ssh-ed25519 {base64.b64encode(BLOB).decode()} me@home\n"


class Card:
    """A boot partition and a root file system, as folders."""

    def __init__(self, folder: Path) -> None:
        self.boot, self.root = folder / "boot", folder / "root"
        self.boot.mkdir()
        self.root.mkdir()

    def put(self, name: str, data: str | bytes) -> None:
        (self.boot / name).write_bytes(data.encode() if isinstance(data, str) else data)

    def start(self) -> list[str]:
        """The next start; what the console says."""
        group = grp.getgrgid(os.getgid()).gr_name
        command = [sys.executable, TAKE_OVER, "--boot", self.boot, "--root", self.root, "--group", group]
        done = subprocess.run(
            [*map(str, command), "--amiss", sys.executable, "-m", "amiss"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    @property
    def told(self) -> str:
        path = self.boot / "amiss-error.txt"
        return path.read_text() if path.exists() else ""

    def left(self) -> list[str]:
        return sorted(path.name for path in self.boot.iterdir())


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tmp_path_factory.mktemp("bundle") / "pump.amiss").read_bytes()


def test_what_is_in_order_is_taken_over_and_gone_from_the_boot_partition(card: Card, bundle: bytes) -> None:
    card.put("README.txt", "what to put here")
    card.put("kernel8.img", b"\0")
    card.put("amiss.toml", CONFIG)
    card.put("pump.amiss", bundle)
    card.put("._pump.amiss", "what macOS writes beside it")
    card.put("root.json", '{"signed": {"_type": "root"}}')
    card.put("ca.pem", "-----BEGIN CERTIFICATE-----\n")
    said = card.start()
    assert said == [f"amiss: {name} is taken over" for name in ("amiss.toml", "ca.pem", "pump.amiss", "root.json")]
    assert card.text("etc/amiss/device.toml") == CONFIG
    assert (card.root / "etc/amiss/pump.amiss").read_bytes() == bundle
    assert card.text("etc/hostname") == "pump-7\n"
    assert "127.0.1.1 pump-7\n" in card.text("etc/hosts")
    rights = {path.name: path.stat().st_mode & 0o777 for path in (card.root / "etc/amiss").iterdir()}
    assert rights == {"device.toml": 0o640, "ca.pem": 0o640, "pump.amiss": 0o644, "root.json": 0o644}, "nothing else is left"
    assert card.left() == ["._pump.amiss", "README.txt", "kernel8.img"]
    assert card.start() == [], "nothing is new"


def test_a_wrong_configuration_is_told_where_a_person_can_read_it_and_nothing_is_taken(card: Card, bundle: bytes) -> None:
    card.put("amiss.toml", CONFIG.replace("bundle =", "bundel ="))
    card.put("pump.amiss", bundle)
    (said,) = card.start()
    assert said == "amiss: NOT taken over: amiss.toml: unknown key `bundel`; did you mean `bundle`?"
    assert (
        "amiss.toml: unknown key `bundel`; did you mean `bundle`?\r\n" in (card.boot / "amiss-error.txt").read_bytes().decode()
    )
    assert "do not tell" not in card.told
    assert not (card.root / "etc/amiss/device.toml").exists(), "the unit's condition: it does not start"
    assert not (card.root / "etc/amiss/pump.amiss").exists()
    assert card.left() == ["amiss-error.txt", "amiss.toml", "pump.amiss"], "to be mended"

    card.put("amiss.toml", CONFIG)
    card.start()
    assert card.text("etc/amiss/device.toml") == CONFIG
    assert card.left() == [], "what was wrong is not told any longer"


def test_only_a_new_file_replaces_what_is_there_and_a_wrong_one_does_not(card: Card, bundle: bytes) -> None:
    card.put("amiss.toml", CONFIG)
    card.put("pump.amiss", bundle)
    card.start()
    own = card.root / "etc/amiss/device.toml"
    own.write_text(CONFIG.replace("pump-7", "changed-by-hand"))
    card.start()
    assert "changed-by-hand" in own.read_text()
    card.put("amiss.toml", "node = 7\n")
    assert "NOT taken over" in card.start()[0]
    assert "changed-by-hand" in own.read_text()
    card.put("amiss.toml", CONFIG.replace("pump-7", "pump-8"))  # its model is on the device already
    card.start()
    assert 'node = "pump-8"' in own.read_text()
    assert card.text("etc/hostname") == "pump-8\n"


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("amiss.toml", CONFIG, "amiss.toml: bundle is pump.amiss, which is not there; put pump.amiss beside amiss.toml"),
        ("amiss.toml", CONFIG.encode("utf-16"), "amiss.toml: not UTF-8"),
        ("amiss.toml.txt", CONFIG, "amiss.toml.txt: call it amiss.toml"),
        ("pump.amiss", b"PK\x03\x04 not all of it", "pump.amiss: "),
        ("root.json", '{"signed": {"_type": "timestamp"}}', "root.json: no root of trust"),
        ("root.json", "[]", "root.json: no root of trust"),
        ("ca.pem", b"\x30\x82", "ca.pem: no PEM file"),
        ("authorized_keys", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "authorized_keys: a private key"),
        ("authorized_keys", "ssh-ed25519 AAAA me\n", "authorized_keys: key 1 is none"),
        ("authorized_keys", KEY + KEY[:40] + "\n", "authorized_keys: key 2 is none"),
        ("authorized_keys", "# nobody yet\n", "authorized_keys: no key in it"),
        ("wifi.toml", 'country = "de"\nssid = "x"\n', "wifi.toml: `country`"),
        ("wifi.toml", 'country = "DE"\nssid = ""\n', "wifi.toml: `ssid`"),
        ("wifi.toml", 'country = "DE"\nssid = "x"\npassword = "short"\n', "wifi.toml: `password`"),
        ("wifi.toml", 'country = "DE"\nssid = "x"\npsk = "longer than eight"\n', "wifi.toml: unknown key `psk`"),
        ("wifi.toml", "country = DE\n", "wifi.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_stays(card: Card, name: str, data: str | bytes, told: str) -> None:
    card.put(name, data)
    (said,) = card.start()
    assert told in said
    assert told in card.told
    assert card.left() == sorted(["amiss-error.txt", name])
    assert [path for path in card.root.rglob("*") if path.is_file()] == []


def test_as_windows_writes_it(card: Card, bundle: bytes) -> None:
    card.put("amiss.toml", b"\xef\xbb\xbf" + CONFIG.replace("\n", "\r\n").encode())
    card.put("pump.amiss", bundle)
    card.start()
    assert card.told == ""
    assert (card.root / "etc/amiss/device.toml").read_bytes().startswith(b'node = "pump-7"')


def test_the_network_and_who_may_log_in_do_not_hang_on_the_rest(card: Card) -> None:
    card.put("amiss.toml", "nonsense")
    card.put("wifi.toml", 'country = "DE"\nssid = "IEEE"\npassword = "password"\n')
    card.put("authorized_keys", f"# mine\n\n{KEY}")
    assert sum("NOT taken over" in line for line in card.start()) == 1
    network = card.text("etc/wpa_supplicant/wpa_supplicant-wlan0.conf")
    # The example of IEEE 802.11, annex J.4: not our arithmetic.
    assert "psk=f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e" in network
    assert f"ssid={b'IEEE'.hex()}\n" in network
    assert "password" not in network
    assert card.text("root/.ssh/authorized_keys") == KEY
    assert (card.root / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert card.left() == ["amiss-error.txt", "amiss.toml"]


def test_an_open_network_has_no_key(card: Card) -> None:
    card.put("wifi.toml", 'country = "DE"\nssid = "hall"\n')
    card.start()
    assert "key_mgmt=NONE" in card.text("etc/wpa_supplicant/wpa_supplicant-wlan0.conf")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, for what cannot be brought about from outside."""
    loader = SourceFileLoader("take_over", str(TAKE_OVER))
    spec = spec_from_loader("take_over", loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


def test_a_file_that_cannot_be_taken_away_is_not_new_again(card: Card, script: ModuleType) -> None:
    """A card whose file system is broken, or a write protection."""

    def keep(boot: object, name: str) -> None:
        raise OSError(30, "Read-only file system")

    card.put("authorized_keys", KEY)
    remove, script.Boot.remove = script.Boot.remove, keep
    run = lambda: list(script.run(card.boot, card.root, "root", ["amiss"], False))  # noqa: E731
    assert "cannot be taken away" in run()[0]
    (card.root / "root/.ssh/authorized_keys").write_text("changed since")
    assert run() == []
    assert card.text("root/.ssh/authorized_keys") == "changed since"
    script.Boot.remove = remove
    card.put("authorized_keys", KEY.replace("me@home", "me@work"))
    assert run() == ["authorized_keys is taken over"]


@pytest.mark.parametrize("writes", range(6))
def test_a_power_cut_at_any_write_leaves_a_whole_configuration_and_a_start_that_repeats_it(
    card: Card, script: ModuleType, writes: int
) -> None:
    """Cut before the write of this number, and before the first removal."""

    class Cut(BaseException):
        pass

    files = {"pump.amiss": b"a model", "amiss.toml": CONFIG.encode(), "authorized_keys": KEY.encode()}
    for name, data in files.items():
        card.put(name, data)
    old = card.root / "etc/amiss/device.toml"
    old.parent.mkdir(parents=True)
    old.write_text("the old one")
    done = 0
    replace = Path.replace

    def cut(path: Path, target: Path) -> Path:
        nonlocal done
        if done == writes:
            raise Cut
        done += 1
        return replace(path, target)

    group = grp.getgrgid(os.getgid()).gr_name
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Cut):
        patch.setattr(Path, "replace", cut)
        patch.setattr(script.Boot, "remove", lambda boot, name: cut(Path("/nowhere"), Path("/nowhere")))
        list(script.run(card.boot, card.root, group, ["true"], False))
    assert old.read_text() in ("the old one", CONFIG)
    assert old.read_text() == "the old one" or (old.parent / "pump.amiss").read_bytes() == b"a model", "it names the model"
    assert all((card.boot / name).read_bytes() == data for name, data in files.items()), "nothing is lost"
    list(script.run(card.boot, card.root, group, ["true"], False))
    assert old.read_text() == CONFIG
    assert card.text("root/.ssh/authorized_keys") == KEY
    assert sorted(path.name for path in old.parent.iterdir()) == ["device.toml", "pump.amiss"]
    assert card.left() == []


def test_what_is_taken_away_is_overwritten_first(card: Card, script: ModuleType) -> None:
    card.put("wifi.toml", "password")
    other = card.boot / "the-same-bytes"
    os.link(card.boot / "wifi.toml", other)
    script.Boot(card.boot, {}).remove("wifi.toml")
    assert other.read_bytes() == bytes(8)


@pytest.mark.parametrize("content", [0, 1, disk.ALIGN, 1_234_567_890])
def test_partitions_lie_on_whole_blocks_of_a_card_and_side_by_side(content: int) -> None:
    plan = disk.layout(content)
    for number in (plan.boot.start, plan.boot.size, plan.root.start, plan.root.size):
        assert number % disk.ALIGN == 0
    assert plan.boot.start >= disk.ALIGN, "the table is in front"
    assert plan.boot.start + plan.boot.size == plan.root.start
    assert plan.root.size >= content * 9 // 8 + disk.SPARE_BYTES
    assert plan.size == plan.root.start + plan.root.size


def test_the_table_is_what_sfdisk_reads() -> None:
    text = disk.Layout(disk.Partition(4 << 20, 256 << 20), disk.Partition(260 << 20, 1 << 30)).table(0xDECAF)
    assert text == (
        "label: dos\nlabel-id: 0x000decaf\nunit: sectors\n\n"
        "start=8192, size=524288, type=c, bootable\nstart=532480, size=2097152, type=83\n"
    )


HOWTO = disk.OVERLAY.parents[2] / "docs/howto/own-image.md"


def test_the_files_of_the_how_to_are_taken_over(card: Card, bundle: bytes) -> None:
    config, wifi = re.findall(r"^```toml\n(.*?)^```$", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    card.put("amiss.toml", config)
    card.put("wifi.toml", wifi)
    card.put("pump.amiss", bundle)
    card.put("root.json", '{"signed": {"_type": "root"}}')
    said = card.start()
    assert said == [f"amiss: {name} is taken over" for name in ("amiss.toml", "pump.amiss", "root.json", "wifi.toml")]


def test_every_file_that_is_taken_over_is_told_of(script: ModuleType) -> None:
    told = re.findall(r"^\| `([^`]+)` \|", HOWTO.read_text(), re.MULTILINE)
    assert [name for name in told if not script.ours(name.replace("*", "x"))] == []
    on_the_card = set(re.findall(r"^  (\S+) ", disk.README, re.MULTILINE))
    assert {name.replace("NAME", "*") for name in on_the_card} == {name.replace("*.pem", "ca.pem") for name in told}
    assert set(re.findall(r"^    (\S+) +→", script.__doc__ or "", re.MULTILINE)) == set(told)
    assert not script.ours("README.txt")
    assert not script.ours("config.txt")
