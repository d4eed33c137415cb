"""Troubles of a device, made for real where that can be done: each is found with its repair, and without it nothing is said."""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.publish as publish
import pytest
import trustme
from mosquitto import Authority, Listener, Mosquitto, executable, until
from scripted import Scripted, puback
from small_bundle import build

from deploy.machine import SerialPort
from edge.delivery import rights, topics
from edge.delivery.outbox import Outbox, look
from edge.errors import AmissError, ConfigError, StorageError
from edge.operating.doctor import examine
from edge.operating.finding import Finding, as_data, exit_code, fault, ok, table, warning
from edge.operating.host import Host
from edge.sensing import sources
from edge.updating.store import Model, Models

COLUMNS = 'columns = ["vibration", "y", "current", "t", "speed"]'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle") / "small.amiss")


@pytest.fixture
def sensor(tmp_path: Path) -> Iterator[Path]:
    name = tmp_path / "tty"
    command = [sys.executable, "-m", "amiss", "simulate", "--serial", str(name), "--seconds", "60", "--rate", "100"]
    machine = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert machine.stderr is not None
    machine.stderr.readline()
    yield name
    machine.kill()
    machine.communicate()


def device(folder: Path, bundle: Path, port: object, mqtt: str = 'host = "127.0.0.1"\nport = 1', more: str = "") -> Path:
    path = folder / "device.toml"
    path.write_text(
        f'node = "n"\nbundle = "{bundle}"\nstate_dir = "{folder}/state"\n{more}\n'
        f'[streams.s]\nport = "{port}"\n{COLUMNS}\n[mqtt]\n{mqtt}\n'
    )
    path.chmod(0o600)
    return path


def by_what(findings: list[Finding]) -> dict[str, Finding]:
    """The worst of each."""
    order = {"ok": 0, "warning": 1, "fault": 2}
    return {one.what: one for one in sorted(findings, key=lambda one: order[one.severity])}


class Sandbox(Host):
    """This computer, without its own troubles: only its processes and mounts are looked at."""

    def __init__(self) -> None:
        super().__init__(run=lambda command: "")

    def text(self, path: str) -> str:
        return super().text(path) if path == "proc/mounts" or path.endswith("/comm") else ""

    def glob(self, pattern: str) -> list[str]:
        return super().glob(pattern) if pattern.startswith("proc/") else []


def doctor(path: Path, environ: dict[str, str] | None = None, **options: object) -> dict[str, Finding]:
    return by_what(examine(path, host=Sandbox(), environ=environ or {}, **options))  # type: ignore[arg-type]


def test_a_device_that_is_well_and_an_agent_that_is_not_disturbed(
    bundle: Path, sensor: Path, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    config = device(tmp_path, bundle, sensor, f'host = "127.0.0.1"\nport = {mosquitto.port}')
    before = doctor(config)
    before.pop("clock", None)
    assert [one for one in before.values() if one.severity != "ok"] == []
    assert "delivers frames of 2 channels" in before["port of s"].message
    assert "both work" in before["rights"].message
    assert not (tmp_path / "state").exists(), "nothing is made"
    with Listener(mosquitto.port, "amiss/n/#") as listener:
        agent = subprocess.Popen(
            [sys.executable, "-m", "amiss", "run", "--config", str(config)], stderr=subprocess.PIPE, text=True
        )
        try:
            listener.wait(lambda heard: any(one.topic == topics.state("n", "s") for one in heard), 30)
            during = doctor(config)
            during.pop("clock", None)
            assert [one for one in during.values() if one.severity != "ok"] == []
            assert f"process {agent.pid}" in during["port of s"].message
            assert f"process {agent.pid}" in during["state folder"].message
            heard = len(listener.payloads(topics.state("n", "s")))
            until(lambda: len(listener.payloads(topics.state("n", "s"))) > heard + 1)
        finally:
            agent.terminate()
            _, log = agent.communicate(timeout=30)
    assert listener.payloads(topics.availability("n"))[-1] == b"offline"
    assert listener.payloads(topics.availability("n")).count(b"online") == 1, log
    assert "took over" not in log


# Configuration and secrets


@pytest.mark.parametrize(("text", "code"), [(None, 66), ("node = 1", 78), ('nodee = "n"', 78), ("\xff", 78), ("[[", 78)])
def test_configuration(text: str | None, code: int, tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    if text is not None:
        path.write_text(text, "latin-1")
    for quick in (True, False):
        findings = examine(path, quick=quick, host=Sandbox(), environ={})
        assert (findings[0].severity, exit_code(findings)) == ("fault", code)
        assert findings[0].message


def test_variables_that_do_nothing(bundle: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none")
    assert "environment" not in doctor(config, {"AMISS_MQTT__USERNAME": "me", "AMISS_DATA": "x", "HOME": "/"})
    found = doctor(config, {"AMISS_MQTT_PASSWORD": "x"})["environment"]
    assert "AMISS_MQTT__PASSWORD" in found.repair
    assert "telemetry" in doctor(config, {"ORT_DISABLE_TELEMETRY": "0"})["environment"].message
    assert "environment" not in doctor(config, {"ORT_DISABLE_TELEMETRY": "1"})


def test_secrets_that_others_can_read(bundle: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none", 'host = "127.0.0.1"\nport = 1\npassword = "s3cret"')
    assert doctor(config)["secrets"].severity == "ok"
    config.chmod(0o644)
    found = doctor(config)["secrets"]
    assert found.severity == "warning"
    assert found.repair == f"chmod 600 {config}"
    assert "s3cret" not in str(doctor(config))
    secret = tmp_path / "password"
    secret.write_text("s3cret")
    secret.chmod(0o640)
    found = doctor(config, {"AMISS_MQTT__PASSWORD_FILE": str(secret)})["secrets"]
    assert "its group" in found.message
    assert str(secret) in found.repair
    assert "secrets" not in doctor(device(tmp_path, bundle, tmp_path / "none")), "there is none"


# State folder and outbox


def filled(folder: Path, *, age_s: float = 0.0, parked: bool = False) -> Path:
    path = folder / "state/outbox.db"
    outbox = Outbox(path, device="n", boot="b", clock=lambda: time.time_ns() - int(age_s * 1e9))
    outbox.put("alert", topics.event("n", "s"), b"{}")
    outbox.put("telemetry", topics.event("n", "s"), b"{}")
    if parked:
        outbox.park(2, "Not authorized")
    outbox.close()
    return path


def test_what_waits_in_the_outbox(bundle: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none")
    assert "outbox" not in doctor(config)
    path = filled(tmp_path)
    files = {one.name: one.stat().st_mtime_ns for one in path.parent.iterdir()}
    assert doctor(config)["outbox"].severity == "ok"
    assert doctor(config)["outbox"].message.startswith("2 records wait")
    assert {one.name: one.stat().st_mtime_ns for one in path.parent.iterdir()} == files, "it was only looked at"
    path.unlink()
    filled(tmp_path, age_s=3 * 86400)
    assert "3 days" in doctor(config)["outbox"].message
    path.unlink()
    filled(tmp_path, parked=True)
    found = doctor(config)["outbox"]
    assert "refused 1 record: Not authorized" in found.message
    assert "ACL" in found.repair


def test_what_was_written_last_is_seen_before_it_is_in_the_database(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, device="n", boot="b")
    outbox.put("alert", topics.event("n", "s"), b"{}")
    assert look(path).waiting == 1, "from the write-ahead log, as after a power cut"
    outbox.close()
    assert look(path).waiting == 1


def test_a_damaged_outbox(bundle: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none")
    path = filled(tmp_path)
    path.with_name("outbox.db.damaged").write_bytes(b"x")
    assert "moved aside" in doctor(config)["outbox"].message
    path.with_name("outbox.db.damaged").unlink()
    path.write_bytes(b"\0" * 8192)
    with pytest.raises(StorageError, match="moves it aside"):
        look(path)
    found = doctor(config)["state folder"]
    assert (found.severity, found.exit_code) == ("fault", 74)
    assert path.read_bytes() == b"\0" * 8192, "the agent's to do"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, which takes root")
def test_a_folder_that_we_may_not_look_into(bundle: Path, tmp_path: Path) -> None:
    """As when somebody who is not root examines the service's state."""
    config = device(tmp_path, bundle, tmp_path / "none", more="")
    config.write_text(config.read_text().replace(f'"{tmp_path}/state"', f'"{tmp_path}/private/state"'))
    config.chmod(0o644)
    filled(tmp_path / "private")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "private").chmod(0o700)
    assert doctor(config)["state folder"].severity == "ok", "the control"
    os.seteuid(65534)
    try:
        found = doctor(config)["state folder"]
    finally:
        os.seteuid(0)
    assert (found.severity, found.exit_code) == ("fault", 77)
    assert found.repair == "run this with sudo"


def test_a_file_in_place_of_the_folder(bundle: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none")
    (tmp_path / "state").write_text("")
    assert doctor(config)["state folder"].severity == "fault"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else, which takes root")
def test_an_outbox_that_root_has_left_behind(bundle: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none")
    path = filled(tmp_path)
    os.chown(path.parent, 65534, 65534)
    found = doctor(config)["state folder"]
    assert found.exit_code == 77
    assert found.repair == f"sudo chown --reference={path.parent} {path}*"


# Ports


def test_a_port_that_somebody_else_reads(bundle: Path, sensor: Path, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, sensor)
    thief = subprocess.Popen(["cat", str(sensor)], stdout=subprocess.DEVNULL)
    try:
        until(lambda: any(one.pid == thief.pid for one in Host().holders(sensor)))
        found = doctor(config)["port of s"]
        assert found.exit_code == 69
        assert "cat (process" in found.message
        assert f"sudo kill {thief.pid}" in found.repair
    finally:
        thief.kill()
        thief.wait()


def test_a_port_that_is_not_there_silent_or_talks_nonsense(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TRY_S", 0.1)
    monkeypatch.setattr("edge.operating.doctor.LISTEN_S", 1.0)
    config = device(tmp_path, bundle, tmp_path / "tty")
    assert "no such port" in doctor(config)["port of s"].message
    port = SerialPort(tmp_path / "tty")
    try:
        found = doctor(config)["port of s"]
        assert "no valid sample" in found.message
        assert "nothing arrives" in found.repair
        noise = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import os, sys, time\nwhile True: os.write(int(sys.argv[1]), os.urandom(99)); time.sleep(.01)",
                str(port._master),
            ],
            pass_fds=[port._master],
        )
        try:
            found = doctor(config)["port of s"]
            assert found.exit_code == 69
            assert "baud" in found.repair
        finally:
            noise.kill()
            noise.wait()
    finally:
        port.close()


def test_a_name_that_does_not_last(bundle: Path, tmp_path: Path) -> None:
    """With a /sys and /dev as udev makes them."""
    from edge.operating.doctor import _lasting
    from edge.sensing.ports import Ports

    usb = tmp_path / "sys/devices/usb1/1-1"
    (usb / "1-1:1.0/ttyUSB0").mkdir(parents=True)
    for name, text in {"idVendor": "0403", "idProduct": "6001", "serial": "A1", "product": "FT232R"}.items():
        (usb / name).write_text(text)
    (tmp_path / "sys/class/tty/ttyUSB0").mkdir(parents=True)
    (tmp_path / "sys/class/tty/ttyUSB0/device").symlink_to(usb / "1-1:1.0/ttyUSB0")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/ttyUSB0").touch()
    ports, name = Ports(tmp_path / "sys", tmp_path / "dev"), str(tmp_path / "dev/ttyUSB0")
    (found,) = _lasting("port of s", name, name, ports)
    assert found.repair == 'port = "usb:0403:6001:A1" in device.toml'
    assert _lasting("port of s", "usb:0403:6001:A1", name, ports) == []
    assert _lasting("port of s", "/dev/serial/by-id/usb-FTDI", name, ports) == []


# The broker


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_wrong_password_and_missing_rights(version: str, bundle: Path, tmp_path: Path) -> None:
    acl = "user all\ntopic readwrite amiss/n/#\nuser reader\ntopic read amiss/n/#\n"
    with Mosquitto(tmp_path / "broker", password=("all", "right"), acl=acl) as running:
        subprocess.run(
            [executable("mosquitto_passwd"), "-b", tmp_path / "broker/users", "reader", "right"],
            check=True,
            capture_output=True,
        )
        running.stop()
        running.start()

        def ask(user: str, password: str) -> dict[str, Finding]:
            mqtt = f'host = "127.0.0.1"\nport = {running.port}\nversion = "{version}"'
            mqtt += f'\nusername = "{user}"\npassword = "{password}"'
            return doctor(device(tmp_path, bundle, tmp_path / "none", mqtt))

        assert ask("all", "right")["rights"].severity == "ok"
        wrong = ask("all", "wrong")["broker"]
        assert (wrong.severity, wrong.exit_code) == ("fault", 77)
        assert "mqtt.password" in wrong.repair
        found = ask("reader", "right")["rights"]
        assert "topic readwrite amiss/n/#" in found.repair
        if version == "5":
            assert (found.severity, found.exit_code) == ("fault", 77)
            assert "Not authorized" in found.message
        else:
            assert found.severity == "warning", "3.1.1 cannot say no"
            assert "cannot say" in found.message


def test_a_broker_that_takes_everything_and_lets_us_hear_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "PATIENCE_S", 0.5)
    with Scripted(puback) as broker:
        config = device(tmp_path, bundle, tmp_path / "none", f'host = "127.0.0.1"\nport = {broker.port}')
        assert "lets us hear nothing" in doctor(config)["rights"].message
        broker.on_subscribe = 0x87
        found = doctor(config)["rights"]
        assert (found.severity, found.message) == ("warning", "127.0.0.1 does not let us hear requests (Not authorized)")
        broker.on_publish = lambda mid, topic: b""
        broker.on_subscribe = 1
        assert doctor(config)["broker"].severity == "ok", "also when it says nothing more"


def test_another_device_of_the_same_name(bundle: Path, mosquitto: Mosquitto, tmp_path: Path) -> None:
    config = device(tmp_path, bundle, tmp_path / "none", f'host = "127.0.0.1"\nport = {mosquitto.port}')
    assert "node name" not in doctor(config)
    publish.single("amiss/n/availability", "online", 1, retain=True, hostname="127.0.0.1", port=mosquitto.port)
    found = doctor(config)["node name"]
    assert "another device has the same name" in found.message


class Ageing(Authority):
    """Issues certificates that are valid for `days`."""

    days = 365.0

    def issue(self, name: str) -> tuple[str, str]:
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=self.days)
        leaf: trustme.LeafCert = self._ca.issue_cert(name, not_after=ends)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return str(cert), str(key)


@pytest.mark.parametrize(("days", "severity"), [(365.0, "ok"), (12.5, "warning")])
def test_certificates_that_expire(days: float, severity: str, bundle: Path, tmp_path: Path) -> None:
    authority = Ageing(tmp_path / "authority")
    authority.days = days
    with Mosquitto(tmp_path / "broker", tls=authority, client_certificates=True) as running:
        cert, key = authority.issue("client")
        mqtt = f'host = "localhost"\nport = {running.port}\n[mqtt.tls]\nca = "{authority.ca}"\ncert = "{cert}"\nkey = "{key}"'
        found = examine(device(tmp_path, bundle, tmp_path / "none", mqtt), host=Sandbox(), environ={})
    told = [one for one in found if one.what == "certificate"]
    assert [one.severity for one in told] == [severity] * 2, told
    assert any("client" in one.message for one in told)
    if severity == "warning":
        assert "12 days" in told[0].message


def test_an_expired_certificate(bundle: Path, tmp_path: Path) -> None:
    authority = Ageing(tmp_path / "authority")
    authority.days = -1.0
    with Mosquitto(tmp_path / "broker", tls=authority) as running:
        mqtt = f'host = "localhost"\nport = {running.port}\n[mqtt.tls]\nca = "{authority.ca}"'
        found = doctor(device(tmp_path, bundle, tmp_path / "none", mqtt))["broker"]
    assert found.severity == "fault"
    assert "expired" in found.message


def test_until_when_a_certificate_is_valid() -> None:
    der = b"xx\x30\x1e\x17\x0d260101000000Z\x17\x0d271231235959Z"
    assert rights.valid_until(der) == datetime.datetime(2027, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    late = b"\x30\x20\x17\x0d260101000000Z\x18\x0f20601231235959Z"
    assert rights.valid_until(late) == datetime.datetime(2060, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert rights.valid_until(b"nothing") is None


# What a person reads


def test_the_table() -> None:
    cause = fault("broker", ConfigError("it is wrong; sudo " + "x" * 200))
    found = [ok("model", "well " * 40), warning("disk", "little room", "free some"), cause]
    lines = table(found, width=80)
    assert lines[0].startswith("ok       model   well")
    assert "FAULT    broker  it is wrong" in lines
    assert any(line.endswith("→ sudo " + "x" * 200) for line in lines), "a command is never broken"
    assert all(len(line) <= 80 for line in lines if "→" not in line)
    assert lines[-1] == "1 fault, 1 warning, 1 ok"
    assert not any("\033" in line for line in lines)
    coloured = table(found, colour=True, width=80)
    assert [
        line.replace("\033[32m", "").replace("\033[33m", "").replace("\033[31;1m", "").replace("\033[0m", "")
        for line in coloured
    ] == lines
    assert [one["ok"] for one in as_data(found)] == [True, True, False]
    assert exit_code(found) == 78
    assert exit_code(found[:2]) == 0
    assert table([])[-1] == "no fault, 0 ok"


@pytest.mark.parametrize(
    ("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), (None, False)]
)
def test_colour_only_for_eyes(environ: dict[str, str] | None, coloured: bool, tmp_path: Path) -> None:
    """On a real terminal, and (None) in a pipe."""
    command = [sys.executable, "-m", "amiss", "doctor", "--config", str(tmp_path / "none.toml")]
    inherited = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    if environ is None:
        done = subprocess.run(command, capture_output=True, check=False, env=inherited)
        assert done.returncode == 66
        out = done.stdout
    else:
        ours, theirs = os.openpty()
        child = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=inherited | environ)
        os.close(theirs)
        out = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
            while part := os.read(ours, 4096):
                out += part
        os.close(ours)
        assert child.wait() == 66
    assert b"FAULT" in out
    assert (b"\033[" in out) is coloured
    assert b"Traceback" not in out


def test_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amiss", "doctor", "--config", str(tmp_path / "none.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    first = json.loads(done.stdout)[0]
    assert first["severity"] == "fault"
    assert first["what"] == "configuration"
    assert "amiss config show --example" in first["repair"]


def test_every_error_of_ours_has_a_cure_or_says_it_whole() -> None:
    assert fault("x", AmissError("no cure")).message == "no cure"
    assert fault("x", AmissError("cause; cure; and more")).repair == "cure; and more"


def test_the_model_that_was_pushed_is_the_one_that_counts(tmp_path: Path, bundle: Path, sensor: Path) -> None:
    more = f'[update]\nrepository = "{tmp_path}/models"\nroot = "{tmp_path}/root.json"'
    config = device(tmp_path, bundle, sensor)
    config.write_text(config.read_text() + more + "\n")
    found = by_what(examine(config, quick=True, host=Sandbox()))
    assert "models" not in found, "nothing was pushed yet"
    pushed = build(tmp_path / "pushed.amiss", windows=1200)
    digest = hashlib.sha256(pushed.read_bytes()).hexdigest()
    with contextlib.closing(Models(tmp_path / "state" / "models", bundle)) as models:
        models.put(Path(shutil.copy(pushed, models.incoming / "3.amiss")), digest)
        models.stage(Model(digest, 3))
        models.switch()
        # An agent has the store: looking takes nothing from it.
        found = by_what(examine(config, quick=True, host=Sandbox()))
        assert found["models"].message == "number 3 of the repository runs, on probation"
        assert digest[:16] in found["model"].message
        assert found["model of last resort"].severity == "ok"
        models.path(digest).write_bytes(b"damaged")
        found = by_what(examine(config, quick=True, host=Sandbox()))
        assert found["models"].severity == "warning"
        assert "number 3 cannot be used" in found["models"].message
        assert "start the agent" in found["models"].repair
        assert digest[:16] not in found["model"].message
