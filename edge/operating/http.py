"""A very small HTTP server for the device's own page and its metrics: fixed routes, one answer per connection, strict limits.

What a request may do is decided here and nowhere else, before a route sees it:

1. It is addressed to this device: the name in `Host` is one of ours or a bare address. A web site whose name was made to
   point here (DNS rebinding) has another one.
2. What changes something is a POST, comes from the page itself or from no browser (`Origin`, `Sec-Fetch-Site`), is JSON (a
   browser never sends that to a stranger without asking), and brings the token where one is set.
3. Headers and bodies have limits; a connection that has not said everything by its deadline is closed, however it drips.

No route reads a file by a name from outside, so there is no path to walk up.
"""

import contextlib
import errno
import io
import ipaddress
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edge.errors import AccessError, ConfigError

log = logging.getLogger("amiss")

LINE_BYTES = 2048
HEADER_BYTES = 16 * 1024
"""All headers of a request together. A browser sends about 1 kB."""
BODY_BYTES = 64 * 1024
CONNECTIONS = 8
"""At once. Each has a thread, and lives for one answer only: a page that asks every second takes part of one."""
DEADLINE_S = 10.0
"""From the first byte of a request to its last, and for the answer to be taken."""

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: bytes = b""

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Answer]
Routes = Mapping[tuple[str, str], Route]
"""(method, path) → what answers it."""


def refusal(status: int, reason: str, **headers: str) -> Answer:
    return Answer(json.dumps({"status": "error", "error": reason}).encode(), status, headers=headers)


@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in, and with what."""

    names: Collection[str] = ()
    """Names in `Host` that mean this device, lower case; an address always does."""
    token: str | None = None


Check = Callable[[Request, Door], Answer | None]
"""None when there is nothing to object to."""


def addressed_to_us(request: Request, door: Door) -> Answer | None:
    name = _host_name(request.header("Host"))
    if name and (name in door.names or _address(name)):
        return None
    return refusal(421, "this device does not go by that name; use its address, or add the name to web.names")


def from_our_page(request: Request, door: Door) -> Answer | None:
    if request.method == "GET":
        return None
    origin = request.header("Origin")
    if origin and (not origin.startswith(("http://", "https://")) or urlsplit(origin).netloc != request.header("Host")):
        return refusal(403, "another web site asked for this, not the device's own page")
    if request.header("Sec-Fetch-Site") not in ("", "same-origin", "none"):
        return refusal(403, "another web site asked for this, not the device's own page")
    return None


def with_json(request: Request, door: Door) -> Answer | None:
    if request.method == "GET" or (request.headers.get_content_type() == JSON and "Content-Type" in request.headers):
        return None
    return refusal(415, f"send {JSON}")


def with_token(request: Request, door: Door) -> Answer | None:
    if request.method == "GET" or door.token is None:
        return None
    scheme, _, given = request.header("Authorization").partition(" ")
    # Both are encoded first: compare_digest refuses text that is not ASCII.
    right = secrets.compare_digest(given.strip().encode("utf-8", "replace"), door.token.encode())
    if scheme.lower() == "bearer" and right:
        return None
    return refusal(401, "this needs the device's token (web.token)", **{"WWW-Authenticate": "Bearer"})


CHECKS: Sequence[Check] = (addressed_to_us, from_our_page, with_json, with_token)


class Server:
    """Serves `routes` from `start` to `close`, in threads that end with the process. `section` names the configuration's."""

    def __init__(
        self,
        section: str,
        host: str,
        port: int,
        routes: Routes,
        *,
        names: Collection[str] = (),
        token: str | None = None,
        checks: Sequence[Check] = CHECKS,
        connections: int = CONNECTIONS,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`names`: further ones, beside the host's own, that `Host` may hold."""
        own = {"localhost", host.lower(), *_names_of(socket.gethostname()), *(name.lower() for name in names)}
        self._section, self._host, self._port = section, host, port
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self.service = Service(routes, Door(own, token), checks, connections, deadline_s)

    def start(self) -> None:
        """Raises `ConfigError` or `AccessError` when nobody can be served there."""
        where = f"{self._host}:{self._port}"
        try:
            self._listener = _Listener(self._host, self._port, self.service)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"{self._section}.port: {where} is taken by another program; choose another port, or end that program "
                    f"(`ss -ltnp sport = :{self._port}` names it)"
                ) from None
            if error.errno == errno.EACCES:
                raise AccessError(
                    f"{self._section}.port: {where} is for the administrator; choose a port from 1024 on"
                ) from None
            raise ConfigError(
                f"{self._section}.host: cannot serve at {where}: {error.strerror}; name an address of this computer, or "
                "0.0.0.0 for all of them"
            ) from None
        self._thread = threading.Thread(target=self._listener.serve_forever, name=self._section, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nothing is accepted any more; what is being answered may be cut off."""
        if self._listener is not None and self._thread is not None:
            self._listener.shutdown()
            self._thread.join()
            self._listener.server_close()
            self._listener = self._thread = None

    @property
    def url(self) -> str:
        """Where it is, once started; with port 0 the one that was free."""
        port = self._port if self._listener is None else self._listener.server_address[1]
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}/"


@dataclass(frozen=True, slots=True)
class Service:
    """Everything about answering that is not the listening socket."""

    routes: Routes
    door: Door
    checks: Sequence[Check]
    connections: int
    deadline_s: float

    def converse(self, connection: socket.socket) -> None:
        """Hear one request and answer it. Whatever is sent, it raises nothing."""
        _Conversation(connection, ("", 0), self)

    def objection(self, request: Request) -> Answer | None:
        return next((found for check in self.checks if (found := check(request, self.door)) is not None), None)

    def answer(self, request: Request) -> Answer:
        """Of a request that nothing is to be objected to."""
        route = self.routes.get((request.method, request.path))
        if route is not None:
            return route(request)
        if allowed := sorted({method for method, path in self.routes if path == request.path}):
            return refusal(405, f"only {' and '.join(allowed)} here", Allow=", ".join(allowed))
        return refusal(404, "there is nothing here")


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False  # newer Pythons turn it on: then a second agent would share the port instead of being told
    request_queue_size = 16

    def __init__(self, host: str, port: int, service: Service) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._service = service
        self._free = threading.BoundedSemaphore(service.connections)
        super().__init__((host, port), BaseHTTPRequestHandler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name server what the host is called, which can take half a minute without network.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            request.setblocking(False)  # the thread that accepts waits for nobody
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._service.converse(request)


class _Inlet(io.RawIOBase):
    """What a connection sends, until a moment and not for so long after each byte: one that drips is cut off too."""

    def __init__(self, connection: socket.socket, until_s: float) -> None:
        self._connection, self._until_s = connection, until_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Lines(io.BufferedReader):
    """Counts the bytes of the lines that were read, so that many short headers are no way around the limit."""

    counted = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(-1 if size is None else size)
        self.counted += len(line)
        if self.counted > HEADER_BYTES:
            raise HTTPException("too many headers")  # answered with 431 where headers are parsed
        return line


class _Conversation(BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    rfile: _Lines

    def __init__(self, connection: socket.socket, address: tuple[str, int], service: Service) -> None:
        self._service, self._answered = service, False
        super().__init__(connection, address, service)  # type: ignore[arg-type]  # it only keeps what it takes for a server

    def setup(self) -> None:
        self.connection = self.request
        self.rfile = _Lines(_Inlet(self.connection, time.monotonic() + self._service.deadline_s))
        self.close_connection = True

    def finish(self) -> None:
        self.rfile.close()

    def handle(self) -> None:
        try:
            answer = self._hear()
            if answer is not None:
                self._send(answer)
                self._drain()
        except (TimeoutError, ConnectionError):
            pass
        except OSError as error:
            log.debug("a connection to the page broke: %s", error)

    def _hear(self) -> Answer | None:
        """None when nothing was said, or something that is answered already."""
        self.raw_requestline = self.rfile.readline(LINE_BYTES + 1)
        if not self.raw_requestline:
            return None
        if len(self.raw_requestline) > LINE_BYTES:
            self.requestline = self.request_version = self.command = ""
            return refusal(414, "the address is too long")
        if not self.parse_request():
            return None
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            return refusal(505, "speak HTTP/1.1")
        if len(self.headers.get_all("Host", [])) != 1 or len(self.headers.get_all("Content-Length", [])) > 1:
            return refusal(400, "one Host and at most one Content-Length")
        if self.command not in ("GET", "POST"):
            return refusal(405, "only GET and POST here", Allow="GET, POST")
        if "Transfer-Encoding" in self.headers:
            return refusal(411, "say how long the body is: Content-Length")
        length = self.headers.get("Content-Length", "0")
        # isdecimal alone would take digits of other scripts, int alone signs and underscores.
        if not (length.isascii() and length.isdecimal()):
            return refusal(400, "Content-Length is a number")
        if len(length) > 9 or int(length) > BODY_BYTES:
            return refusal(413, f"at most {BODY_BYTES} bytes")
        target, _, query = self.path.partition("?")
        if not (target.startswith("/") and self.path.isascii() and self.path.isprintable()):
            return refusal(400, "no address of this device")
        try:
            named = dict(parse_qsl(query, max_num_fields=8))
        except ValueError:
            return refusal(400, "too many fields in the address")
        request = Request(self.command, target, named, self.headers)
        # Who may not ask is told so before his body is waited for.
        if (objection := self._service.objection(request)) is not None:
            return objection
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return None
        try:
            return self._service.answer(Request(self.command, target, named, self.headers, body))
        except Exception:
            # A bug of the page must not take the watch over the machine with it.
            log.exception("the page cannot answer %s %s", self.command, target)
            return refusal(500, "this device made a mistake; its log says more")

    def _send(self, answer: Answer) -> None:
        self._answered = True
        always = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in (always | dict(answer.headers)).items())
        reason = self.responses.get(answer.status, ("",))[0]
        self.connection.settimeout(self._service.deadline_s)  # of sendall, for all of it
        self.connection.sendall(f"HTTP/1.1 {answer.status} {reason}\r\n{head}\r\n".encode("latin-1") + answer.body)

    def _drain(self) -> None:
        """Closing with something unread resets the connection, and the answer may be lost on the way."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(0.5)
        for _ in range(8):
            if not self.connection.recv(BODY_BYTES):
                return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `parse_request` objects to; it quotes what was sent, and that is not sent back."""
        if not self._answered:
            self._send(refusal(int(code), "that is no HTTP request"))
            self._drain()

    def handle_expect_100(self) -> bool:
        return True  # nobody is asked to go on: what is allowed is read anyway, and the rest is refused

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("page: " + format, *args)


def _host_name(host: str) -> str:
    """`Host` without its port, lower case; empty when it is none."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return ""
        _ = parts.port  # raises when it is none
        return (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _names_of(host: str) -> set[str]:
    """As it is called on its own network; no name server outside can make these point here."""
    short = host.lower().partition(".")[0]
    return {short, f"{short}.local"}
