"""Read a signed repository, in a process of its own: `python -m edge.updating.fetch`, one request in, one reply out.

    agent ──Request──▶ stdin │ limits │ TUF ◀── Fetcher ◀── folder, HTTPS, MQTT │ stdout ──Reply──▶ agent

TUF, cryptography and urllib3 are 20 MB that an agent needs for a second an hour, and what they read comes from anybody. So they
live in a child that cannot take more memory, processor time, disk or seconds than it is given, and of which the agent believes
one line of JSON of 64 kB at most.

python-tuf 7 judges signatures, versions, hashes and expiry. What it leaves to others is done here:

- it reads 400 kB before a limit counts: our fetchers give it 16 kB at a time, and limits are those of a small repository;
- it knows no least speed, and urllib3's time-outs begin anew with every byte: one alarm ends everything, wherever it hangs;
- errors of a connection that breaks pass through it as they are: here they become `DownloadError`;
- it keeps nothing of a download that was cut: bundles grow in `incoming` and go on from there; a hash is taken of the whole;
- it never syncs, and it fails for ever when something odd lies in its folder: that folder may be lost at any time (the floor is
  not kept in it), so it is emptied and the work done anew;
- it believes the clock: `Request.time_floor_s` is the least it may be (`edge.updating.rules`);
- it follows delegations: in a repository of ours there are none.
"""

import contextlib
import importlib.util
import math
import os
import resource
import shutil
import signal
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

import msgspec

from edge.config import MqttConfig
from edge.errors import UntrustedError
from edge.updating.offer import TARGET_PATH, Offer, from_custom

if TYPE_CHECKING:
    from types import FrameType

    import paho.mqtt.client as paho
    import urllib3
    from tuf.api.metadata import TargetFile
    from tuf.ngclient import FetcherInterface

CHUNK = 16 * 1024
"""Bytes read at once; no more than that is read beyond a limit."""
MOST_MEMORY_BYTES = 256 * 1024 * 1024
"""Of address space; a check takes 90 MB of it, and 36 MB of memory."""
MOST_CPU_S = 60
MOST_REPLY_BYTES = 64 * 1024
GAP_S = 20.0
"""Longest silence of a server. Shorter than the deadline, so that the reply can say which of the two it was."""
MQTT_PATIENCE_S = 1.0
"""After the broker has confirmed a subscription: what it has retained begins to come at once or not at all."""
MQTT_MOST_BYTES = 256 * 1024
SIGNED_FIELD, DAYS_FIELD = "x-amiss-signed", "x-amiss-days"
"""In timestamp and targets: when it was signed, RFC 3339. In root: role → days that a signature lasts."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of each file of metadata, and how many of them may be asked for. A repository of ours needs a tenth of it."""

    root: int = 16 * 1024
    timestamp: int = 4 * 1024
    snapshot: int = 8 * 1024
    targets: int = 64 * 1024
    rotations: int = 64
    """New roots in one go; with more the next check goes on from there."""
    delegations: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent wants. Paths are absolute."""

    repository: str
    root: str
    folder: str
    """Where TUF keeps what it has seen. Ours alone; may be lost."""
    deadline_s: float
    time_floor_s: float = 0.0
    now_s: float | None = None
    """Instead of the clock, epoch seconds."""
    ca: str | None = None
    mqtt: MqttConfig = MqttConfig()
    node: str = "node"
    take: str | None = None
    """Path of a target to download; None: only say what there is."""
    digest: str = ""
    """Of that target: SHA-256."""
    into: str = ""
    """File for it."""
    max_bytes: int = 32 * 1024 * 1024


State = Literal["ok", "stale", "away", "untrusted", "disk", "config"]


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of it."""

    state: State
    """`stale`: expired; `away`: not reached, not complete or too slow, try again; `untrusted`: not what was signed, or not by
    whom it has to be; `disk`, `config`: of this device."""
    reason: str = ""
    """Cause in one line; empty: all went well."""
    offers: tuple[Offer, ...] = ()
    skipped: tuple[str, ...] = ()
    """Targets that are no offers, and why."""
    offline_s: float = 0.0
    """Newest time that an offline key has signed, epoch seconds,"""
    online_s: float = 0.0
    """and that the online key has."""
    version: int = 0
    """Of the timestamp."""


class Fetcher(Protocol):
    """What python-tuf's `FetcherInterface` is, and a way to go on with a file."""

    def _fetch(self, url: str) -> Iterator[bytes]: ...

    def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
        """Chunks of up to `CHUNK` bytes from `at` on, or from an earlier place; which one it is comes first."""
        ...


class DeadlineError(BaseException):
    """Time is up. Not an Exception, or whoever tries something else after every one of those would."""


class Repository:
    """A repository as far as a root of trust reaches.

    `bootstrap` is that root; None: the one in `folder`. `reference_s` is what time it is, epoch seconds. Everything raises what
    python-tuf does (`tuf.api.exceptions`), or OSError of this device's disk.
    """

    def __init__(
        self,
        fetcher: "FetcherInterface",
        metadata_url: str,
        targets_url: str,
        folder: Path,
        *,
        bootstrap: bytes | None,
        reference_s: float,
        limits: Limits | None = None,
    ) -> None:
        from tuf.ngclient import Updater, UpdaterConfig

        limits = limits or Limits()
        folder.mkdir(parents=True, exist_ok=True)
        self._fetcher, self._targets_url = fetcher, targets_url.rstrip("/")
        self._updater = Updater(
            str(folder),
            metadata_url,
            fetcher=fetcher,
            config=UpdaterConfig(
                max_root_rotations=limits.rotations,
                max_delegations=limits.delegations,
                root_max_length=limits.root,
                timestamp_max_length=limits.timestamp,
                snapshot_max_length=limits.snapshot,
                targets_max_length=limits.targets,
            ),
            bootstrap=bootstrap,
        )
        # Not offered by python-tuf as an argument; the tests notice when it goes.
        self._set = self._updater._trusted_set
        self._set.reference_time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=reference_s)

    def refresh(self) -> None:
        """Fetch and verify root, timestamp, snapshot and targets. Once."""
        self._updater.refresh()

    def target(self, path: str) -> "TargetFile | None":
        return self._updater.get_targetinfo(path)

    def offers(self, max_offers: int = 256) -> tuple[list[Offer], list[str]]:
        """What is offered, highest number first; and the targets that are no offers, with the reason."""
        found, skipped = [], []
        for path, target in self._set.targets.targets.items():
            try:
                offer = from_custom(target.custom)
                if not (path == offer.path and target.length == offer.size and target.hashes.get("sha256") == offer.digest):
                    raise ValueError("its offer is of another file")
            except (msgspec.ValidationError, ValueError) as error:
                skipped.append(f"{path[:100]}: {str(error)[:200]}")
                continue
            found.append(offer)
        return sorted(found, key=lambda offer: (-offer.number, offer.digest))[:max_offers], skipped[:8]

    def signed_s(self) -> tuple[float, float]:
        """Newest times that offline keys and the online key have signed; epoch seconds, 0 where nothing tells."""
        from tuf.api.metadata import Timestamp

        targets, stamp = self._set.targets, self._set.timestamp
        offline = max(
            [_epoch_s(targets.unrecognized_fields.get(SIGNED_FIELD)), *(_epoch_s(o.created) for o in self.offers()[0])]
        )
        online = _epoch_s(stamp.unrecognized_fields.get(SIGNED_FIELD))
        if not online:
            days = self._set.root.unrecognized_fields.get(DAYS_FIELD)
            lasts = days.get(Timestamp.type) if isinstance(days, dict) else None
            if isinstance(lasts, int | float | str):
                with contextlib.suppress(ValueError, OverflowError):
                    online = (stamp.expires - timedelta(days=float(lasts))).timestamp()
        # Nobody signs what has expired already, and nothing is newer than the timestamp that leads to it: a bundle that was
        # built by a clock that is ahead says a time that nobody has seen yet.
        online = min(online, stamp.expires.timestamp())
        return min(offline, online or math.inf, targets.expires.timestamp()), online

    @property
    def version(self) -> int:
        return int(self._set.timestamp.version)

    def download(self, target: "TargetFile", into: Path) -> None:
        """The target at `into`, verified and synced. A part of it at `into`.part is gone on with; what is cut stays there."""
        from tuf.api.exceptions import DownloadLengthMismatchError, LengthOrHashMismatchError

        folder, slash, name = target.path.rpartition("/")
        if self._set.root.consistent_snapshot:
            name = f"{next(iter(target.hashes.values()))}.{name}"
        url = f"{self._targets_url}/{folder}{slash}{name}"
        draft = into.with_name(f"{into.name}.part")
        for again in (True, False):
            at = draft.stat().st_size if draft.exists() else 0
            if at > target.length:
                draft.unlink()
                at = 0
            if at < target.length or at == 0:
                # `_interface` gave it that; its class cannot be named where TUF is not loaded.
                begun, chunks = self._fetcher.resume(url, at)  # type: ignore[attr-defined]
                if begun > at:
                    raise DownloadLengthMismatchError("the server left out the middle of a file")
                with draft.open("r+b" if draft.exists() else "xb", buffering=0) as file:
                    file.truncate(begun)
                    file.seek(begun)
                    length = begun
                    for chunk in chunks:
                        length += len(chunk)
                        if length > target.length:
                            draft.unlink()
                            raise DownloadLengthMismatchError(f"{target.path}: more than its {target.length} bytes")
                        file.write(chunk)
                if length < target.length:
                    raise _broken(f"{target.path}: ended after {length} of {target.length} bytes")
            try:
                with draft.open("rb") as whole:
                    target.verify_length_and_hashes(whole)
                    os.fsync(whole.fileno())
            except LengthOrHashMismatchError:
                draft.unlink()
                if at and again:  # it may be the part from an earlier time that is wrong
                    continue
                raise
            break
        os.replace(draft, into)


def answer(request: Request) -> Reply:
    """All of it, but for the limits of the process. Raises only bugs and `DeadlineError`."""
    if importlib.util.find_spec("tuf") is None:
        return Reply(state="config", reason="updates need `pip install 'amiss[update]'`")
    from tuf.api import exceptions

    try:
        root = Path(request.root).read_bytes()
    except OSError as error:
        return Reply(state="config", reason=f"{request.root}: {error.strerror}; put the repository's first root there")
    reference_s = max(time.time() if request.now_s is None else request.now_s, request.time_floor_s)
    for again in (True, False):
        try:
            return _answer(request, root, reference_s)
        except exceptions.ExpiredMetadataError as error:
            on = f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=reference_s):%Y-%m-%d}"
            return Reply(state="stale", reason=f"{error} on {on}: nobody has signed it anew, or an old one is shown to us")
        except exceptions.DownloadLengthMismatchError as error:
            return Reply(state="untrusted", reason=f"longer than it may be: {_line(error)}")
        except exceptions.DownloadError as error:
            if isinstance(error.__cause__, ConfigTrouble):
                return Reply(state="config", reason=_line(error.__cause__))
            return Reply(state="away", reason=_line(error.__cause__ or error))
        except (exceptions.RepositoryError, UntrustedError) as error:
            return Reply(state="untrusted", reason=_line(error))
        except ConfigTrouble as error:
            return Reply(state="config", reason=_line(error))
        except (MemoryError, RecursionError) as error:
            return Reply(state="untrusted", reason=f"takes more memory than it may: {type(error).__name__}")
        except OSError as error:
            # Ours: what the fetchers meet they have named otherwise.
            if again and Path(request.folder).is_dir():
                with contextlib.suppress(OSError):
                    shutil.rmtree(request.folder)
                continue
            return Reply(state="disk", reason=f"{error.filename or request.folder}: {error.strerror or error}")
    raise AssertionError("unreachable")


class ConfigTrouble(Exception):
    """What the owner of the device has to put right."""


def _answer(request: Request, root: bytes, reference_s: float) -> Reply:
    with fetcher_for(request) as (fetcher, base):
        there = Repository(
            fetcher, f"{base}/metadata/", f"{base}/targets/", Path(request.folder), bootstrap=root, reference_s=reference_s
        )
        there.refresh()
        if request.take is not None:
            target = there.target(request.take) if TARGET_PATH.fullmatch(request.take) else None
            if target is None or target.hashes.get("sha256") != request.digest:
                raise _broken(f"{request.take} is no longer offered as it was")
            if target.length > request.max_bytes:
                raise UntrustedError(f"{request.take} has {target.length} bytes; {request.max_bytes} may be fetched")
            there.download(target, Path(request.into))
        offers, skipped = there.offers()
        offline_s, online_s = there.signed_s()
    return Reply(
        state="ok",
        offers=tuple(offers),
        skipped=tuple(skipped),
        offline_s=offline_s,
        online_s=online_s,
        version=there.version,
    )


# Fetchers. python-tuf's base class is met when they are made, so that this module can be imported without it.


@contextlib.contextmanager
def fetcher_for(request: Request) -> Iterator[tuple["FetcherInterface", str]]:
    """And the address of the repository, without a slash at the end."""
    where = request.repository.rstrip("/")
    kind = where.partition(":")[0]
    if kind in ("http", "https"):
        yield http_fetcher(request.ca), where
    elif kind == "mqtt":
        with _MqttSession(request.mqtt, f"amiss-{request.node}-models") as session:
            yield _interface(session), f"mqtt://{where.partition(':')[2]}"
    else:
        folder = Path(unquote(urlsplit(where).path) if kind == "file" else where)
        yield _interface(_Folder(folder)), f"file://{folder}"


def http_fetcher(ca: str | None = None) -> "FetcherInterface":
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigTrouble(f"update.ca: {ca}: no PEM file that can be used ({error})") from None
    return _interface(_Http(context))


def _interface(ours: Fetcher) -> "FetcherInterface":
    from tuf.ngclient import FetcherInterface

    class Interface(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            return ours._fetch(url)

        def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
            try:
                return ours.resume(url, at)
            except (OSError, ValueError) as error:  # as `fetch` of the base class does: it is not our disk that fails
                raise _broken(f"{url}: {_cause(error)}") from error

    return Interface()


def _broken(message: str) -> Exception:
    from tuf.api.exceptions import DownloadError

    return DownloadError(message)


def _missing(url: str, status: int = 404) -> Exception:
    from tuf.api.exceptions import DownloadHTTPError

    return DownloadHTTPError(f"{url}: {'not there' if status in (403, 404) else f'the server says {status}'}", status)


class _Folder:
    """A disk, a stick, a share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.resume(url, 0)[1]

    def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
        path = url.removeprefix("file://")
        try:
            # Not waited for: a pipe on somebody's stick would never open.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            if not self._folder.is_dir():
                raise _broken(f"{self._folder}: not there; is the stick in?") from None
            raise _missing(path) from None
        except OSError as error:
            raise _broken(f"{path}: cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _broken(f"{path}: no file")
        return at, self._chunks(path, descriptor, at)

    def _chunks(self, path: str, descriptor: int, at: int) -> Iterator[bytes]:
        try:
            while chunk := os.pread(descriptor, CHUNK, at):
                yield chunk
                at += len(chunk)
        except OSError as error:
            raise _broken(f"{path}: cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)


class _Http:
    """A web server; the proxy of the environment is used. Nothing is decoded, and a redirection is followed three times."""

    def __init__(self, context: ssl.SSLContext) -> None:
        import urllib3

        self._context = context
        self._retries = urllib3.Retry(total=3, connect=0, read=0, status=0, other=0, redirect=3)
        self._pools: dict[str, urllib3.PoolManager] = {}

    def _pool(self, url: str) -> "urllib3.PoolManager":
        from urllib.request import getproxies, proxy_bypass

        import urllib3

        parts = urlsplit(url)
        proxy = getproxies().get(parts.scheme, "")
        if proxy and proxy_bypass(parts.netloc):
            proxy = ""
        if proxy not in self._pools:
            options: dict[str, Any] = {"ssl_context": self._context, "num_pools": 2, "maxsize": 1}
            self._pools[proxy] = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        return self._pools[proxy]

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.resume(url, 0)[1]

    def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
        import urllib3

        headers = {"Accept-Encoding": "identity", "User-Agent": "amiss"}
        if at:
            headers["Range"] = f"bytes={at}-"
        try:
            response = self._pool(url).request(
                "GET", url, headers=headers, preload_content=False, retries=self._retries, timeout=urllib3.Timeout(GAP_S)
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _broken(f"{url}: {_cause(error)}") from None
        if response.status == 416 and at:  # shorter than what we have: begin anew
            response.close()
            return self.resume(url, 0)
        begun = 0
        if response.status == 206:
            said = _range_begin(response.headers.get("Content-Range", ""))
            if said is None or said > at:
                response.close()
                if at:
                    return self.resume(url, 0)
                raise _broken(f"{url}: the server sends a part of it that nobody has asked for")
            begun = said
        elif response.status != 200:
            response.close()
            raise _missing(url, response.status)
        return begun, self._chunks(url, response)

    def _chunks(self, url: str, response: "urllib3.BaseHTTPResponse") -> Iterator[bytes]:
        import urllib3

        whole = False
        try:
            # What has arrived, not what would fill a chunk: so a drip can be seen dripping.
            while chunk := response.read1(CHUNK, decode_content=False):
                yield chunk
            whole = True
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _broken(f"{url}: {_cause(error)}") from None
        finally:
            if whole:
                response.release_conn()
            else:
                response.close()


def _range_begin(text: str) -> int | None:
    unit, _, rest = text.partition(" ")
    begin = rest.partition("-")[0]
    return int(begin) if unit == "bytes" and begin.isascii() and begin.isdigit() and len(begin) < 16 else None


class _MqttSession:
    """What a broker has retained under `amiss-models/<repository>/`. Nothing retained is a file that is not there."""

    def __init__(self, config: MqttConfig, client_id: str) -> None:
        self._config, self._client_id = config, client_id
        self._where = f"broker {config.host}:{config.port or (8883 if config.tls else 1883)}"
        self._client: paho.Client | None = None
        self._welcome: Any = None
        self._confirmed: dict[int, bool] = {}  # packet id of a SUBSCRIBE → whether we may; of an UNSUBSCRIBE → True
        self._payloads: dict[str, bytes] = {}

    def __enter__(self) -> "_MqttSession":
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            with contextlib.suppress(OSError, ValueError):
                self._client.disconnect()

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.resume(url, 0)[1]

    def resume(self, url: str, at: int) -> tuple[int, Iterator[bytes]]:
        topic = f"amiss-models/{unquote(url.removeprefix('mqtt://'))}"
        if any(mark in topic for mark in "+#\0"):
            raise _missing(topic)
        client = self._connected()
        error, packet = client.subscribe(topic, qos=1)
        if error or packet is None:
            raise _broken(f"{self._where}: the connection was lost")
        if not self._turn(GAP_S, lambda: packet in self._confirmed):
            raise _broken(f"{self._where}: does not answer")
        if not self._confirmed[packet]:
            raise _missing(topic, 403)
        arrived = self._turn(MQTT_PATIENCE_S, lambda: topic in self._payloads)
        _, packet = client.unsubscribe(topic)
        if not arrived:
            # On a slow line it is still coming, and what was asked last is answered behind it. The deadline ends this, too.
            self._turn(math.inf, lambda: topic in self._payloads or packet in self._confirmed)
        payload = self._payloads.pop(topic, b"")
        if not payload:
            raise _missing(topic)
        return at, (payload[begin : begin + CHUNK] for begin in range(at, len(payload), CHUNK))

    def _connected(self) -> "paho.Client":
        if self._client is not None:
            return self._client
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        config, fifth = self._config, self._config.version == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if fifth else MQTTProtocolVersion.MQTTv311,
            clean_session=None if fifth else True,
            reconnect_on_failure=False,
        )
        if config.username is not None or config.password is not None:
            client.username_pw_set(config.username or "", config.password)
        if config.tls is not None:
            try:
                context = ssl.create_default_context(cafile=config.tls.ca)
                if config.tls.cert is not None:
                    context.load_cert_chain(config.tls.cert, config.tls.key)
            except (OSError, ssl.SSLError) as error:
                raise ConfigTrouble(f"mqtt.tls: cannot be used: {error}") from None
            client.tls_set_context(context)
        options: dict[str, Any] = {}
        if fifth:
            options = {"clean_start": True, "properties": Properties(PacketTypes.CONNECT)}  # type: ignore[no-untyped-call]
            options["properties"].MaximumPacketSize = MQTT_MOST_BYTES + 1024

        def on_connect(client: object, userdata: object, flags: object, reason: Any, properties: object) -> None:
            self._welcome = reason

        def on_subscribe(client: object, userdata: object, packet: int, reasons: list[Any], properties: object) -> None:
            self._confirmed[packet] = not any(reason.is_failure for reason in reasons)

        def on_message(client: object, userdata: object, message: paho.MQTTMessage) -> None:
            if message.retain:
                self._payloads[message.topic] = bytes(message.payload[: MQTT_MOST_BYTES + 1])

        def on_unsubscribe(client: object, userdata: object, packet: int, reasons: object, properties: object) -> None:
            self._confirmed[packet] = True

        client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
        client.on_unsubscribe = on_unsubscribe
        try:
            client.connect(config.host, config.port or (8883 if config.tls else 1883), config.keepalive_s, **options)
        except (OSError, ValueError) as error:
            raise _broken(f"{self._where}: {_cause(error)}") from None
        self._client = client
        if not self._turn(GAP_S, lambda: self._welcome is not None):
            raise _broken(f"{self._where}: does not answer")
        if self._welcome.is_failure:
            raise _broken(f"{self._where}: does not let us in ({self._welcome})")
        return client

    def _turn(self, seconds: float, done: Any) -> bool:
        assert self._client is not None
        until_s = time.monotonic() + seconds
        while not done():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            if self._client.loop(min(left_s, 0.5)):
                raise _broken(f"{self._where}: the connection was lost")
        return True


# The process.


def limit(request: Request) -> None:
    """What this process may take; the deadline raises `DeadlineError` wherever it is."""
    most = max(request.max_bytes, 1 << 20) + CHUNK
    _limit(resource.RLIMIT_AS, MOST_MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, MOST_CPU_S)
    _limit(resource.RLIMIT_FSIZE, most)  # Python ignores the signal, so it is an OSError
    _limit(resource.RLIMIT_CORE, 0)

    def out_of_time(number: int, frame: "FrameType | None") -> None:
        raise DeadlineError

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, request.deadline_s)


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def main() -> int:
    data = sys.stdin.buffer.read(MOST_REPLY_BYTES)
    request = msgspec.json.decode(data, type=Request)
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        limit(request)
        reply = answer(request)
    except DeadlineError:
        reply = Reply(state="away", reason=f"took longer than {request.deadline_s:g} s")
    signal.setitimer(signal.ITIMER_REAL, 0)
    line = msgspec.json.encode(reply)
    while len(line) >= MOST_REPLY_BYTES and reply.offers:  # those of old are not needed
        reply = msgspec.structs.replace(reply, offers=reply.offers[: len(reply.offers) // 2])
        line = msgspec.json.encode(reply)
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _epoch_s(text: object) -> float:
    """RFC 3339 → epoch seconds; 0 for what is none."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        return found.timestamp() if found is not None and found.tzinfo is not None else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _cause(error: BaseException) -> str:
    """The innermost reason: urllib3 wraps several times."""
    seen = {id(error)}
    while True:
        inner = getattr(error, "reason", None)
        inner = inner if isinstance(inner, BaseException) else error.__cause__
        if inner is None or id(inner) in seen:
            break
        seen.add(id(inner))
        error = inner
    return str(getattr(error, "strerror", None) or error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
