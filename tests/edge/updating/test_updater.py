"""The agent's side, with the real child process: what comes of a repository on a stick, on a web server, at a broker."""

import asyncio
import contextlib
import hashlib
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from mosquitto import Authority, Mosquitto
from paho.mqtt.enums import CallbackAPIVersion
from test_fetch import odd_folder
from tuf_repository import (
    IN_SOCKETS,
    NOW,
    Answer,
    Tuf,
    cut_after,
    dripping,
    dripping_headers,
    endless,
    make_offer,
    redirecting,
    serving,
)

from edge.channel import ChannelSpec
from edge.config import DeviceConfig, MqttConfig, StreamConfig, UpdateConfig
from edge.errors import AmissError, ConfigError, RepositoryAwayError, StorageError, UnfitError, UntrustedError
from edge.updating import fetch as fetching
from edge.updating import updater
from edge.updating.offer import Facts
from edge.updating.store import RESERVE_BYTES, Models

FACTS = Facts(
    node="pump-7",
    group="",
    channels=(ChannelSpec("x"),),
    rate_hz=50.0,
    schema=1,
    agent=(0, 1, 0),
    runtimes=("onnxruntime",),
)
MODEL = random.Random(4).randbytes(100_000)


@pytest.fixture
def tuf() -> Tuf:
    made = Tuf()
    made.offer(1, MODEL)
    made.publish()
    return made


@contextlib.contextmanager
def device(place: Path) -> Iterator[Models]:
    place.mkdir(exist_ok=True)
    (place / "factory.amiss").write_bytes(b"factory")
    models = Models(place / "models", place / "factory.amiss", free_bytes=lambda folder: 1 << 40)
    try:
        yield models
    finally:
        models.close()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Models]:
    with device(tmp_path / "device") as found:
        yield found


def config(tuf: Tuf, place: Path, repository: str, mqtt: MqttConfig | None = None, **changes: object) -> DeviceConfig:
    root = place / "root.json"
    if not root.exists():
        root.write_bytes(tuf.first_root)
    update: dict[str, object] = {"repository": repository, "root": str(root), "deadline_s": 20.0, **changes}
    return DeviceConfig(
        node="pump-7",
        bundle="factory.amiss",
        streams={"pump": StreamConfig(port="/dev/null")},
        mqtt=mqtt or MqttConfig(),
        update=UpdateConfig(**update),  # type: ignore[arg-type]
    )


def install(models: Models, settings: DeviceConfig) -> None:
    found = updater.check(settings, FACTS, models)
    assert found.chosen is not None, found
    updater.fetch(settings, found.chosen, models)
    models.stage(found.chosen)
    models.switch()
    models.commit()


def test_from_a_stick(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    tuf.offer(2, schema=9)
    tuf.offer(3, devices=("pump-8",))
    tuf.publish()
    tuf.write(tmp_path / "stick")
    settings = config(tuf, tmp_path, str(tmp_path / "stick"))
    found = updater.check(settings, FACTS, models)
    assert (found.state, found.reason, found.chosen) == ("ok", "", make_offer(1, MODEL))
    assert [(offer.number, why.split(" ")[3:5]) for offer, why in found.unfit] == [(3, ["3)", "is"]), (2, ["2)", "is"])]
    assert found.chosen is not None
    path = updater.fetch(settings, found.chosen, models)
    assert path.read_bytes() == MODEL
    assert list(models.incoming.iterdir()) == []
    shutil.rmtree(tmp_path / "stick/targets")
    assert updater.fetch(settings, found.chosen, models) == path, "what is there is not fetched again"
    install(models, settings)
    assert updater.check(config(tuf, tmp_path, f"file://{tmp_path}/stick"), FACTS, models).chosen is None


def test_who_asks_for_one_that_is_older_than_what_was_committed_hears_why_not(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    tuf.offer(2, held=True)
    tuf.offer(3)
    tuf.publish()
    tuf.write(tmp_path / "stick")
    settings = config(tuf, tmp_path, str(tmp_path / "stick"))
    install(models, settings)
    for asked, unfit in ((None, []), (3, []), (2, ["model 2 is not newer than 3, which was committed here"])):
        found = updater.check(settings, msgspec.structs.replace(FACTS, asked=asked), models)
        assert (found.chosen, [why for _, why in found.unfit]) == (None, unfit)


def test_from_a_web_server_with_a_certificate_of_ones_own(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    import ssl

    authority = Authority(tmp_path / "ca")
    with serving(tuf.files) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("localhost"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        found = updater.check(config(tuf, tmp_path, url), FACTS, models)
        assert (found.state, "certificate" in found.reason.lower()) == ("away", True), found.reason
        settings = config(tuf, tmp_path, url, ca=authority.ca)
        install(models, settings)
        assert models.serve().path.read_bytes() == MODEL
        found = updater.check(config(tuf, tmp_path, url, ca=str(tmp_path / "none")), FACTS, models)
        assert found.state == "config"


def publish_retained(broker: Mosquitto, tuf: Tuf) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for name, data in tuf.files.items():
        client.publish(f"amiss-models/pumps/{name}", data, qos=1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_from_a_broker(tuf: Tuf, models: Models, tmp_path: Path, version: str) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        publish_retained(broker, tuf)
        mqtt = MqttConfig(host="127.0.0.1", port=broker.port, version=version)  # type: ignore[arg-type]
        settings = config(tuf, tmp_path, "mqtt:pumps", mqtt)
        install(models, settings)
        assert models.serve().path.read_bytes() == MODEL
        if version == "3.1.1":
            return
        tuf.rotate("timestamp", "another")
        tuf.offer(2)
        tuf.publish()
        publish_retained(broker, tuf)
        found = updater.check(settings, FACTS, models)
        assert found.chosen is not None, found.reason
        assert found.chosen.number == 2
        assert updater.check(config(tuf, tmp_path, "mqtt:others", mqtt), FACTS, models).state == "away"
    found = updater.check(settings, FACTS, models)
    assert (found.state, "refused" in found.reason) == ("away", True)


@contextlib.contextmanager
def slow_line(port: int, bytes_per_s: float) -> Iterator[int]:
    """To this port of this computer; what comes back is slow."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        while data := await reader.read(1024):
            await asyncio.sleep(len(data) * wait)
            writer.write(data)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        both = [asyncio.create_task(copy(reader, back, 0.0)), asyncio.create_task(copy(there, writer, 1 / bytes_per_s))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task, end in zip(both, (writer, back), strict=True):
                task.cancel()
                end.close()

    async def serve() -> None:
        stopped = asyncio.Event()
        async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
            opened.put((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), stopped))
            await stopped.wait()

    opened: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))  # which ends what is still copied
    thread.start()
    here, loop, stopped = opened.get(timeout=10)
    try:
        yield here
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)


def test_from_a_broker_on_a_slow_line(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    """A model is longer on its way than the broker takes to say that there is none."""
    seconds = 3.0
    assert seconds > 2 * fetching.MQTT_PATIENCE_S
    with Mosquitto(tmp_path / "broker") as broker, slow_line(broker.port, len(MODEL) / seconds) as port:
        publish_retained(broker, tuf)
        began_s = time.monotonic()
        install(models, config(tuf, tmp_path, "mqtt:pumps", MqttConfig(host="127.0.0.1", port=port)))
        assert time.monotonic() - began_s > seconds, "the line was slow"
        assert models.serve().path.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("odd", "where", "limit"),
    [
        (dripping, "timestamp.json", fetching.Limits().timestamp),
        (dripping, "targets/", len(MODEL)),
        (dripping_headers, "2.root.json", fetching.Limits().root),
        (endless, "2.root.json", fetching.Limits().root),
        (endless, "timestamp.json", fetching.Limits().timestamp),
        (endless, "targets/", len(MODEL)),
    ],
)
def test_who_drips_or_never_ends_takes_a_deadline_and_no_more(
    tuf: Tuf, models: Models, tmp_path: Path, odd: Answer, where: str, limit: int
) -> None:
    """At most limit + 16 kB are read, and what a socket holds; 120 s by default, two here; without it, for ever."""
    with serving(tuf.files) as server:
        settings = config(tuf, tmp_path, server.url)
        assert settings.update is not None
        settings = msgspec.structs.replace(settings, update=msgspec.structs.replace(settings.update, deadline_s=2.0))
        found = updater.check(settings, FACTS, models) if where == "targets/" else None
        server.odd[where] = odd
        server.sent = 0
        begun = time.monotonic()
        if found is not None:
            assert found.chosen is not None, found
            with pytest.raises((RepositoryAwayError, UntrustedError)):
                updater.fetch(settings, found.chosen, models)
        else:
            assert updater.check(settings, FACTS, models).state in ("away", "untrusted")
        assert time.monotonic() - begun < 60.0
        assert 0 < server.sent <= limit + 16384 + IN_SOCKETS
        assert models.serve().role == "factory"


def test_an_agent_that_ends_waits_for_no_repository(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    with serving(tuf.files) as server:
        settings = config(tuf, tmp_path, server.url)
        chosen = updater.check(settings, FACTS, models).chosen
        assert chosen is not None
        asked = [False, False, False, True, True]
        server.odd["t"] = lambda request: time.sleep(8)
        begun = time.monotonic()
        found = updater.check(settings, FACTS, models, stopping=lambda: asked.pop(0))
        assert (found.state, found.reason) == ("away", "given up because the agent ends")
        with pytest.raises(RepositoryAwayError, match="the agent ends"):
            updater.fetch(settings, chosen, models, stopping=lambda: True)
        assert time.monotonic() - begun < 4


def test_no_more_is_read_than_the_limit_and_16_kb(tuf: Tuf, tmp_path: Path) -> None:
    """Counted where the bytes leave the socket, for every file that may be endless. The control: python-tuf's own fetcher."""
    from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

    class Counted:
        def __init__(self, inner: fetching.Fetcher) -> None:
            self.inner, self.read = inner, 0

        def _fetch(self, url: str) -> Iterator[bytes]:
            return self.resume(url, 0)[1]

        def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
            begun, chunks = self.inner.resume(url, at)
            return begun, self._counted(chunks)

        def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
            for chunk in chunks:
                self.read += len(chunk)
                yield chunk

    def read_by(inner: fetching.Fetcher, url: str, limit: int) -> int:
        counted = Counted(inner)
        with pytest.raises(Exception, match="exceeding"):
            fetching._interface(counted).download_bytes(url, limit)
        return counted.read

    class Theirs:
        def __init__(self) -> None:
            self._inner = Urllib3Fetcher()

        def _fetch(self, url: str) -> Iterator[bytes]:
            return self._inner.fetch(url)

        def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
            return 0, self._fetch(url)

    with serving(tuf.files) as server:
        server.odd["timestamp"] = endless
        url = f"{server.url}/metadata/timestamp.json"
        for limit in (4096, 8192, 16384, 65536):
            assert read_by(fetching._Http(__import__("ssl").create_default_context()), url, limit) <= limit + 16384
        assert read_by(Theirs(), url, 4096) > 4096 + 16384


def test_a_download_that_is_cut_by_the_deadline_goes_on(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    with serving(tuf.files) as server:
        settings = config(tuf, tmp_path, server.url)
        chosen = updater.check(settings, FACTS, models).chosen
        assert chosen is not None
        server.odd["targets/"] = cut_after(40_000)
        with pytest.raises(RepositoryAwayError):
            updater.fetch(settings, chosen, models)
        server.odd.clear()
        assert updater.fetch(settings, chosen, models).read_bytes() == MODEL
        assert server.ranges == ["bytes=40000-"]


def test_redirections_end(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    with serving(tuf.files) as server:
        server.odd["metadata/"] = redirecting(f"{server.url}/metadata/again")
        found = updater.check(config(tuf, tmp_path, server.url), FACTS, models)
        assert (found.state, len(server.asked)) == ("away", 4)


def test_a_server_that_finds_every_range_wrong_is_asked_no_second_time(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    with serving(tuf.files) as server:
        server.odd["timestamp"] = lambda request: request.send_error(416)
        found = updater.check(config(tuf, tmp_path, server.url), FACTS, models)
        assert found.state == "away"
        assert len([path for path in server.asked if "timestamp" in path]) == 1


def test_trouble_by_its_name(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    offer = make_offer(1, MODEL)
    settings = config(tuf, tmp_path, str(tmp_path / "stick"))
    with pytest.raises(RepositoryAwayError, match="is the stick in"):
        updater.fetch(settings, offer, models)
    tuf.write(tmp_path / "stick")
    with pytest.raises(RepositoryAwayError, match="no longer offered"):
        updater.fetch(settings, make_offer(2, MODEL), models)
    with pytest.raises(UnfitError, match="max_bytes"):
        updater.fetch(config(tuf, tmp_path, str(tmp_path / "stick"), max_bytes=65536), offer, models)
    models._free_bytes = lambda folder: RESERVE_BYTES + 10
    with pytest.raises(StorageError, match="do not fit"):
        updater.fetch(settings, offer, models)
    models._free_bytes = lambda folder: 1 << 40
    (tmp_path / "root.json").unlink()
    with pytest.raises(ConfigError, match="first root"):
        updater.fetch(msgspec.structs.replace(settings), offer, models)
    with pytest.raises(ConfigError, match="no section"):
        updater.check(msgspec.structs.replace(settings, update=None), FACTS, models)


@pytest.mark.parametrize("seeds", [3, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_replay_brings_nothing_even_with_tufs_folder_wiped_or_zeroed(tuf: Tuf, tmp_path: Path, seeds: int) -> None:
    """The control is in test_fetch.py: raw python-tuf accepts it."""
    old = dict(tuf.files)
    tuf.offer(2)
    tuf.publish()
    tuf.write(tmp_path / "new")
    tuf.files = old
    tuf.write(tmp_path / "old")
    with device(tmp_path / "before") as models:
        install(models, config(tuf, tmp_path, str(tmp_path / "new")))
        assert models.floor == 2
    settings = config(tuf, tmp_path, str(tmp_path / "old"))
    for seed in range(seeds):
        shutil.copytree(tmp_path / "before", tmp_path / "device")
        chance = random.Random(seed)
        folder = tmp_path / "device/models/tuf"
        match seed % 3:
            case 0:
                shutil.rmtree(folder)
            case 1:
                for path in folder.rglob("*.json"):
                    path.write_bytes(bytes(path.stat().st_size))
            case 2:
                odd_folder(folder, chance)
        if seed >= 3 and chance.random() < 0.5:
            (tmp_path / "device/models" / chance.choice(["models.db", "models.json"])).write_bytes(bytes(4096))
        with device(tmp_path / "device") as models:
            found = updater.check(settings, FACTS, models)
            assert found.chosen is None, seed
            assert found.state == "ok" or seed % 3 == 2, found
            with pytest.raises(AmissError):
                models.stage(make_offer(1, MODEL))
            assert (models.floor, models.serve().number) == (2, 2)
        shutil.rmtree(tmp_path / "device")


def test_a_lost_model_is_fetched_again(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    tuf.write(tmp_path / "stick")
    settings = config(tuf, tmp_path, str(tmp_path / "stick"))
    install(models, settings)
    tuf.offer(2, MODEL)  # once more
    tuf.publish()
    tuf.write(tmp_path / "stick")
    assert updater.check(settings, FACTS, models).chosen is None, "it runs"
    models.path(make_offer(1, MODEL).digest).unlink()
    assert models.serve().role == "factory"
    chosen = updater.check(settings, FACTS, models).chosen
    assert chosen is not None
    updater.fetch(settings, chosen, models)
    assert models.serve().role == "active"


def test_time_is_noted_and_a_clock_set_back_revives_nothing(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    day_s = 86400.0
    tuf.timestamp.unrecognized_fields["x-amiss-signed"] = NOW.isoformat()
    tuf.publish()
    tuf.write(tmp_path / "stick")
    settings = config(tuf, tmp_path, str(tmp_path / "stick"))
    install(models, settings)
    running = models.serve()
    assert (running.role, running.number) == ("active", 1)
    assert models.state.time_s == NOW.timestamp()
    late = Tuf(expires=NOW)
    tuf.timestamp.expires = tuf.snapshot.expires = late.expires
    tuf.publish()
    tuf.write(tmp_path / "stick")
    found = updater.check(settings, FACTS, models, now_s=NOW.timestamp() - 3650 * day_s)
    assert (found.state, found.chosen) == ("stale", None)
    assert models.serve() == running
    assert running.path.read_bytes() == MODEL
    with device(tmp_path / "other") as without:
        found = updater.check(settings, FACTS, without, now_s=NOW.timestamp() - 3650 * day_s)
        assert found.state == "ok", "the control: who has seen no signed time believes the clock"


def child(code: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)


def test_the_child_is_held_to_what_it_may_take() -> None:
    begin = "from edge.updating.fetch import *; limit(Request(repository='', root='', folder='', deadline_s=1.0)); "
    assert b"MemoryError" in child(begin + "x = bytearray(600 << 20)").stderr
    assert b"DeadlineError" in child(begin + "time.sleep(60)").stderr
    assert b"File too large" in child(begin + "open('/tmp/amiss-too-large', 'wb').write(bytes(40 << 20))").stderr
    Path("/tmp/amiss-too-large").unlink()
    assert child("x = bytearray(600 << 20)").returncode == 0, "the control"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit -11"),
        ("raise ValueError('odd')", "odd"),
        ("print('{}' * 100_000)", "accident"),
        ('import sys; sys.stderr.write(\'x\' * 1_000_000); print(\'{"state": "ok", "offers": [1]}\')', "accident"),
        ("import time; time.sleep(60)", "took longer than"),
        ("import sys; sys.stdin.close(); sys.stdout.close(); sys.stderr.close(); import time; time.sleep(60)", "took longer"),
    ],
)
def test_a_child_that_goes_wrong_costs_the_agent_nothing(
    models: Models, tmp_path: Path, tuf: Tuf, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(updater, "GRACE_S", 0.5)
    settings = config(tuf, tmp_path, str(tmp_path))
    assert settings.update is not None
    settings = msgspec.structs.replace(settings, update=msgspec.structs.replace(settings.update, deadline_s=0.5))
    found = updater.check(settings, FACTS, models)
    assert found.state in ("away", "untrusted")
    assert reason in found.reason


def test_what_a_check_costs(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    """Figures for docs/adr/0018; asserted is only what a small board cannot do without."""
    for number in range(2, 40):
        tuf.offer(number, note="x" * 200)
    tuf.publish()
    assert len(tuf.files[f"metadata/{tuf.targets.version}.targets.json"]) < 65536
    with serving(tuf.files) as server:
        settings = config(tuf, tmp_path, server.url)
        assert settings.update is not None
        asked = msgspec.json.encode(updater._request(settings, settings.update, models, now_s=None))
        # Not ru_maxrss, which begins with the memory of whoever forked.
        code = "from edge.updating import fetch; import sys, time; fetch.main()\n"
        code += "sys.stderr.write(open('/proc/self/status').read() + f'CPU: {time.process_time()}')"
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, check=True)
        wall_s = time.monotonic() - begun
        assert len(msgspec.json.decode(done.stdout, type=fetching.Reply).offers) == 39
        told = dict(line.split(":", 1) for line in done.stderr.decode().splitlines())
        memory_mb, space_mb = (int(told[name].split()[0]) / 1024 for name in ("VmHWM", "VmPeak"))
        print(f"a check: {wall_s:.2f} s, {float(told['CPU']):.2f} s of CPU, {server.sent} bytes", end="")
        print(f", {memory_mb:.0f} MB of memory, {space_mb:.0f} MB of address space")
        assert memory_mb < 64
        assert 2 * space_mb * 2**20 < fetching.MOST_MEMORY_BYTES


def test_no_secret_of_the_agent_is_in_the_childs_environment(
    tuf: Tuf, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nenv > {seen}\n")
    script.chmod(0o755)
    monkeypatch.setenv("AMISS_MQTT__PASSWORD", "hunter2")
    monkeypatch.setattr(sys, "executable", str(script))
    updater.check(config(tuf, tmp_path, str(tmp_path)), FACTS, models)
    assert "PATH=" in seen.read_text()
    assert "hunter2" not in seen.read_text()


def test_hostile_files_on_a_stick(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    """Path tricks, links and other things that are no bundle: nothing outside the store is ever written."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    for path in ("../../../outside", "/etc/amiss", "..", "a/../../x.amiss", "x.amiss/../y"):
        content = path.encode()
        made = make_offer(50, content)
        target = tuf.add(content, made, path="pump-50.amiss")
        del tuf.targets.targets["pump-50.amiss"]
        target.path = path
        tuf.targets.targets[path] = target
    tuf.publish()
    tuf.write(tmp_path / "stick")
    before = {path for path in tmp_path.rglob("*") if "device" not in path.parts}
    settings = config(tuf, tmp_path, str(tmp_path / "stick"))
    found = updater.check(settings, FACTS, models)
    assert [offer.number for offer in found.offers] == [1]
    for name in ("../../../outside", "/etc/amiss"):
        offer = make_offer(50, name.encode(), name=name)
        with pytest.raises((ValueError, AmissError)):
            updater.fetch(settings, offer, models)
    bundle = tmp_path / "stick/targets" / f"{make_offer(1, MODEL).digest}.pump-1.amiss"
    bundle.unlink()
    bundle.symlink_to(outside)
    with pytest.raises((UntrustedError, RepositoryAwayError)):
        updater.fetch(settings, make_offer(1, MODEL), models)
    assert outside.read_bytes() == b"untouched"
    assert {path for path in tmp_path.rglob("*") if "device" not in path.parts} - before <= {tmp_path / "root.json"}
    assert list(models.store.iterdir()) == []


def test_a_bomb_of_json_stays_in_the_child(tuf: Tuf, models: Models, tmp_path: Path) -> None:
    with serving(tuf.files) as server:
        settings = config(tuf, tmp_path, server.url)
        for bomb in (b"[" * 4000, b'{"a":' * 800, b"9" * 4000, b"\xff" * 4000, b'"\\ud800"'):
            server.files = {**tuf.files, "metadata/timestamp.json": bomb}
            assert updater.check(settings, FACTS, models).state == "untrusted"
    assert hashlib.sha256(MODEL).hexdigest() not in os.listdir(models.store)
