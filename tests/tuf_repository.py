"""A TUF repository in memory, whose owner or whose attacker does anything: sign, forget to sign, mix, go back, drip."""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edge.channel import ChannelSpec
from edge.updating.offer import Offer, custom

ROLES = ("root", "timestamp", "snapshot", "targets")
NOW = datetime.now(UTC).replace(microsecond=0)


@cache
def key(name: str) -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


class Tuf:
    """`files`: what is served, by path. Nothing changes there until `publish`."""

    def __init__(self, *, expires: datetime = NOW + timedelta(days=30), consistent: bool = True) -> None:
        self.expires = expires
        self.files: dict[str, bytes] = {}
        self.signers: dict[str, list[Signer]] = {role: [key(role)] for role in ROLES}
        self.root = Root(expires=expires, consistent_snapshot=consistent)
        self.targets = Targets(expires=expires)
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        self.delegated: dict[str, Targets] = {}
        for role in ROLES:
            self.root.add_key(key(role).public_key, role)
        self.publish_root()
        self.publish()

    @property
    def first_root(self) -> bytes:
        return self.files["metadata/1.root.json"]

    def signed(self, signed: Any, *signers: Signer) -> bytes:
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def publish_root(self, *more: Signer) -> bytes:
        """The root as it is now, by its own signers and `more`."""
        data = self.signed(self.root, *self.signers["root"], *more)
        self.files[f"metadata/{self.root.version}.root.json"] = data
        return data

    def rotate(self, role: str, name: str) -> None:
        """Another key for a role, in a new root that is signed by the old keys too."""
        old = list(self.signers["root"])
        for signer in self.signers[role]:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [key(name)]
        self.root.add_key(key(name).public_key, role)
        self.root.version += 1
        self.publish_root(*(old if role == "root" else ()))

    def add(self, content: bytes, offer: Offer | None = None, *, path: str | None = None, role: str = "targets") -> TargetFile:
        """A bundle, offered with the next `publish`."""
        path = path or (offer.path if offer else "file")
        target = TargetFile.from_data(path, content, ["sha256"])
        if offer is not None:
            target.unrecognized_fields["custom"] = custom(offer)
        owner = self.targets if role == "targets" else self.delegated[role]
        owner.targets[path] = target
        folder, slash, name = path.rpartition("/")
        self.files[f"targets/{folder}{slash}{target.hashes['sha256']}.{name}"] = content
        return target

    def offer(self, number: int, content: bytes | None = None, **changes: object) -> Offer:
        """A model of that number, offered with the next `publish`."""
        content = content if content is not None else b"model %d" % number * 100
        made = make_offer(number, content, **changes)
        self.add(content, made)
        return made

    def delegate(self, role: str, paths: list[str], parent: str = "targets", *, terminating: bool = False) -> None:
        """`paths` to a role, which may be another's already; that is what it was then."""
        signer = key(role)
        owner = self.targets if parent == "targets" else self.delegated[parent]
        if owner.delegations is None:
            owner.delegations = Delegations({}, {})
        roles = cast("dict[str, DelegatedRole]", owner.delegations.roles)
        roles[role] = DelegatedRole(role, [], 1, terminating, paths)
        owner.add_key(signer.public_key, role)
        self.delegated.setdefault(role, Targets(expires=self.expires))
        self.signers.setdefault(role, [signer])

    def publish(self) -> None:
        """All but the root, one version up."""
        for signed in (self.targets, self.snapshot, self.timestamp, *self.delegated.values()):
            if "metadata/timestamp.json" in self.files:
                signed.version += 1
        for role, signed in (("targets", self.targets), *self.delegated.items()):
            data = self.signed(signed, *self.signers[role])
            self._serve(signed.version, role, data)
            self.snapshot.meta[f"{role}.json"] = _meta(signed.version, data)
        data = self.signed(self.snapshot, *self.signers["snapshot"])
        self._serve(self.snapshot.version, "snapshot", data)
        self.timestamp.snapshot_meta = _meta(self.snapshot.version, data)
        self.files["metadata/timestamp.json"] = self.signed(self.timestamp, *self.signers["timestamp"])

    def _serve(self, version: int, role: str, data: bytes) -> None:
        name = f"{quote(role, safe='')}.json"
        self.files[f"metadata/{version}.{name}" if self.root.consistent_snapshot else f"metadata/{name}"] = data

    def write(self, folder: Path) -> None:
        """What is served, as a folder."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def make_offer(number: int, content: bytes, **changes: object) -> Offer:
    plain: dict[str, object] = {
        "number": number,
        "name": "pump",
        "version": str(number),
        "schema": 1,
        "minimum_agent": "0.1.0",
        "channels": (ChannelSpec("x"),),
        "rate_hz": 50.0,
        "runtimes": ("onnxruntime",),
        "digest": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    return Offer(**{**plain, **changes})  # type: ignore[arg-type]


Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.headers.get("Range"):
            self.server.ranges.append(self.headers["Range"])
        with contextlib.suppress(OSError):
            for part, answer in self.server.odd.items():
                if part in self.path:
                    answer(self)
                    return
            self.serve()

    def serve(self) -> None:
        data = self.server.files.get(self.path.lstrip("/"))
        if data is None:
            self.send_error(404)
            return
        begin = 0
        if (asked := self.headers.get("Range", "")).startswith("bytes=") and self.server.knows_ranges:
            begin = int(asked[6:].rstrip("-"))
            if begin >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.say(data[begin:])

    def say(self, data: bytes) -> None:
        self.wfile.write(data)
        self.server.sent += len(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """`odd`: by a part of the path, what is done instead of serving the file. `asked`: paths. `sent`: bytes of bodies, and of
    headers that have no end."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.files, self.odd = files, dict[str, Answer]()
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.sent = 0
        self.knows_ranges = True
        self.stopping = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopping = True
            server.shutdown()
            thread.join()


IN_SOCKETS = 256 * 1024
"""That may have been sent and is read by nobody: what Linux has room for in a socket that receives, twice."""


def endless(request: Request) -> None:
    """Without a length, without an end. Little of it is on its way: what is sent is what was read, and `IN_SOCKETS`."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    request.send_response(200)
    request.end_headers()
    while not request.server.stopping:
        request.say(b" " * 4096)


def dripping(request: Request) -> None:
    """A byte now and then: no time-out of a socket ever fires."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    while not request.server.stopping:
        request.say(b"x")
        time.sleep(0.05)


def dripping_headers(request: Request) -> None:
    request.say(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not request.server.stopping:
        request.say(b"x")
        time.sleep(0.05)


def cut_after(length: int) -> Answer:
    """The connection ends there, in the middle of a body."""

    def answer(request: Request) -> None:
        data = request.server.files[request.path.lstrip("/")]
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.say(data[:length])
        request.close_connection = True

    return answer


def redirecting(to: str) -> Answer:
    def answer(request: Request) -> None:
        request.send_response(302)
        request.send_header("Location", to)
        request.end_headers()

    return answer
