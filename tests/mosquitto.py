"""The real broker, on a free port of this machine, to be started, killed and starved in tests; and somebody who listens."""

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import trustme
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.config import MqttConfig, TlsConfig


def executable(name: str) -> str:
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/homebrew/sbin:/opt/homebrew/bin")
    if found is None:
        raise AssertionError(f"{name} is not installed: apt-get install mosquitto")
    return found


PATIENCE_S = 60.0
"""For what has to come some time: a computer that is busy with other tests is no mistake of what is tested."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Authority:
    """A certificate authority of its own, with files in `folder`: `ca`, and pairs by `issue`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str) -> tuple[str, str]:
        """Files of the certificate and of its key."""
        leaf = self._ca.issue_cert(name)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        return str(cert), str(key)


class Mosquitto:
    """`tls` makes it speak TLS as `localhost`, `client_certificates` demand one; `password` is (user, password); `acl` the
    text of an ACL file; `options` more lines of mosquitto.conf. Sessions and retained messages outlive `kill`, when saved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: Authority | None = None,
        client_certificates: bool = False,
        password: tuple[str, str] | None = None,
        acl: str | None = None,
        options: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._conf = folder / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            "per_listener_settings false",
            "user root",  # started by root it would become `mosquitto`, who may not read a test's folder
            "persistence true",
            f"persistence_location {folder}/",
            "log_type all",
            "log_dest stderr",
            options,
            f"listener {self.port} 127.0.0.1",
        ]
        if tls is not None:
            cert, key = tls.issue("localhost")
            lines += [f"cafile {tls.ca}", f"certfile {cert}", f"keyfile {key}"]
            lines += ["require_certificate true"] if client_certificates else []
        if password is not None:
            users = folder / "users"
            users.touch(0o600)
            subprocess.run([executable("mosquitto_passwd"), "-b", users, *password], check=True, capture_output=True)
            lines += [f"password_file {users}"]
        lines += [f"allow_anonymous {'false' if password else 'true'}"]
        if acl is not None:
            (folder / "acl").write_text(acl)
            (folder / "acl").chmod(0o600)
            lines += [f"acl_file {folder / 'acl'}"]
        self._conf.write_text("\n".join(lines) + "\n")

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([executable("mosquitto"), "-c", self._conf], stderr=log, stdout=log)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return self
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError(f"mosquitto does not answer: {self.log.read_text()}")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash would: nothing is saved, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def save(self) -> None:
        """Sessions and what waits for them, to disk."""
        self.signal(signal.SIGUSR1)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self._end(signal.SIGKILL)

    def config(self, **options: Any) -> MqttConfig:
        """For a client of this broker; `tls` takes a `TlsConfig`."""
        host = "localhost" if isinstance(options.get("tls"), TlsConfig) else "127.0.0.1"
        return MqttConfig(**{"host": host, "port": self.port, **options})


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: bytes
    retained: bool
    properties: Properties | None


class Listener:
    """A subscriber. With `name` the broker keeps for it what it misses."""

    def __init__(self, port: int, topic: str = "#", *, name: str = "", user: tuple[str, str] | None = None) -> None:
        self.heard: list[Heard] = []
        self._changed = threading.Condition()
        self.sessions = 0
        """How often it has subscribed: once, and again for each time the broker came back."""
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
        if user is not None:
            self._client.username_pw_set(*user)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *rest: client.subscribe(topic, qos=1)
        self._client.on_subscribe = self._on_subscribe
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600 if name else 0
        properties.ReceiveMaximum = 65535
        self._client.connect("127.0.0.1", port, 60, clean_start=not name, properties=properties)
        self._client.loop_start()
        until(lambda: self.sessions)

    def _on_subscribe(self, *rest: Any) -> None:
        self.sessions += 1

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.heard.append(Heard(message.topic, bytes(message.payload), message.retain, message.properties))
            self._changed.notify_all()

    def payloads(self, topic: str) -> list[bytes]:
        with self._changed:
            return [heard.payload for heard in self.heard if heard.topic == topic]

    def wait(self, condition: Callable[[list[Heard]], Any], timeout_s: float = PATIENCE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.heard), timeout_s), f"heard only {self.heard[-20:]}"

    def wait_for_session(self, number: int) -> None:
        until(lambda: self.sessions >= number)

    def wait_for_different(self, number: int) -> None:
        self.wait(lambda heard: len({one.payload for one in heard}) >= number)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
