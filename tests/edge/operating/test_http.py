"""Who may ask the device's own page for what: real sockets, and attacks that succeed where the check is left out."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

from benchmarks.page import MadeView
from edge.config import WebConfig
from edge.errors import AccessError, ConfigError
from edge.operating import http
from edge.operating.http import CHECKS, Check, Server, Service
from edge.operating.web import Page, routes

TOKEN = "0123456789abcdef"
BODY = json.dumps({"stream": "pump", "minutes": 60}).encode()


@dataclass
class Heard:
    status: int
    headers: dict[str, str]
    body: bytes


def heard(raw: bytes) -> Heard:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return Heard(int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body)


def said(service: Service, raw: bytes) -> bytes:
    """What is answered when `raw` is sent and then nothing more; through a real socket, without a port being used up."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(raw)
        ours.shutdown(socket.SHUT_WR)
        service.converse(theirs)
        theirs.close()
        return b"".join(iter(lambda: ours.recv(65536), b""))


def post(path: str = "/api/request/maintenance", body: bytes = BODY, host: str = "localhost:8642", **headers: str) -> bytes:
    named = {"Host": host, "Content-Type": "application/json", "Content-Length": str(len(body))}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def get(path: str = "/api/now", host: str = "localhost:8642") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")


def service(view: MadeView, token: str | None = None, checks: Sequence[Check] = CHECKS, **more: float) -> Service:
    config = WebConfig(token=token)
    server = Server("web", "127.0.0.1", 0, routes(config, view), names=(), token=token, checks=checks, **more)  # type: ignore[arg-type]  # limits
    return server.service


def without(check: Check) -> tuple[Check, ...]:
    return tuple(other for other in CHECKS if other is not check)


REFUSED: dict[str, tuple[bytes, Check, int]] = {
    "a name that was made to point here": (post(host="attacker.example:8642"), http.addressed_to_us, 421),
    "a name that looks like ours": (post(host="localhost.attacker.example"), http.addressed_to_us, 421),
    "a name with ours as its user": (post(host="localhost@attacker.example"), http.addressed_to_us, 421),
    "another web site": (post(Origin="https://attacker.example"), http.from_our_page, 403),
    "another port of this host": (post(Origin="http://localhost:80"), http.from_our_page, 403),
    "a page from nowhere": (post(Origin="null"), http.from_our_page, 403),
    "a browser that says so": (post(Sec_Fetch_Site="cross-site"), http.from_our_page, 403),
    "a form": (post(Content_Type="text/plain"), http.with_json, 415),
    "no type at all": (post(Content_Type=""), http.with_json, 415),
    "no token": (post(), http.with_token, 401),
    "a wrong token": (post(Authorization=f"Bearer {TOKEN[:-1]}X"), http.with_token, 401),
    "the token's beginning": (post(Authorization=f"Bearer {TOKEN[:-1]}"), http.with_token, 401),
    "an empty token": (post(Authorization="Bearer "), http.with_token, 401),
    "another scheme": (post(Authorization=f"Basic {TOKEN}"), http.with_token, 401),
    "a token in other letters": (post(Authorization="Bearer \xe9\xff"), http.with_token, 401),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_what_is_refused_changes_nothing(attack: str) -> None:
    raw, check, status = REFUSED[attack]
    token = TOKEN if check is http.with_token else None
    view = MadeView()
    answer = heard(said(service(view, token), raw))
    assert (answer.status, view.asked) == (status, [])
    assert json.loads(answer.body)["status"] == "error"
    said(service(view, token, without(check)), raw)
    assert view.asked == [("maintenance", {"stream": "pump", "minutes": 60})], "the control: without the check it succeeds"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8642", "192.168.1.7", "[::1]:8642", "localhost."])
def test_our_own_names_are_answered(host: str) -> None:
    assert heard(said(service(MadeView()), get(host=host))).status == 200


def test_names_may_be_added_and_the_nodes_is_known() -> None:
    page = Page(WebConfig(names=("Monitor.Example",), token=TOKEN), MadeView())
    for host in ("monitor.example", "pump-7", "pump-7.local:8642", f"{socket.gethostname()}:8642"):
        assert heard(said(page.server.service, get(host=host))).status == 200, host
    assert heard(said(page.server.service, get(host="other.example"))).status == 421


@pytest.mark.parametrize("more", [{}, {"Origin": "http://localhost:8642", "Sec_Fetch_Site": "same-origin"}])
def test_who_has_the_token_is_heard(more: dict[str, str]) -> None:
    view = MadeView()
    assert heard(said(service(view, TOKEN), post(Authorization=f"Bearer {TOKEN}", **more))).status == 200
    assert view.asked == [("maintenance", {"stream": "pump", "minutes": 60})]


def test_what_changes_something_is_a_post() -> None:
    view = MadeView()
    answer = heard(said(service(view), get("/api/request/maintenance?minutes=60")))
    assert (answer.status, answer.headers["Allow"], view.asked) == (405, "POST", [])


MALFORMED: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/2": (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: attacker.example\r\n\r\n", 400),
    "another method": (b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "a long line": (get("/" + "a" * 5000), 414),
    "many headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
    "long headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + (b"x: " + b"y" * 1000 + b"\r\n") * 20 + b"\r\n", 431),
    "a large body": (post(body=b" " * (http.BODY_BYTES + 1)), 413),
    "an endless body": (post(Content_Length="9" * 5000), 413),
    "a negative body": (post(Content_Length="-1"), 400),
    "digits of another script": (post(Content_Length="\xb2"), 400),
    "pieces": (post(Transfer_Encoding="chunked"), 411),
    "two lengths": (post(Content_Length=f"{len(BODY)}\r\nContent-Length: 0"), 400),
    "a proxy's address": (get("http://attacker.example/"), 400),
    "a way up": (get("/../../etc/passwd"), 404),
    "a hidden way up": (get("/%2e%2e/%2e%2e/etc/passwd"), 404),
    "two slashes": (get("//etc/passwd"), 404),
    "a file of ours": (get("/page.html"), 404),
    "an unknown verb": (post("/api/request/rollback"), 404),
    "many fields": (get("/api/now?" + "&".join(f"a{i}=1" for i in range(50))), 400),
    "no JSON": (post(body=b"{"), 400),
    "no object": (post(body=b"[1]"), 400),
    "deep JSON": (post(body=b"[" * 60_000), 400),
    "bytes that are no text": (post(body=b"\xff\xfe\x00"), 400),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_makes_no_sense_is_told_so(what: str, caplog: pytest.LogCaptureFixture) -> None:
    raw, status = MALFORMED[what]
    view = MadeView()
    answer = heard(said(service(view), raw))
    assert (answer.status, view.asked) == (status, [])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not caplog.records


def test_half_a_body_changes_nothing() -> None:
    view = MadeView()
    assert said(service(view), post()[:-5]) == b""
    assert view.asked == []


def test_a_mistake_of_ours_is_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    view = MadeView()
    view.states = None  # type: ignore[assignment,method-assign]
    answer = heard(said(service(view), get()))
    assert answer.status == 500
    assert b"TypeError" not in answer.body, "what went wrong inside is nobody's business"
    assert "cannot answer GET /api/now" in caplog.text


# Anything at all.

WORDS = (
    "GET", "POST", "PUT", "HTTP/1.1", "HTTP/1.0", "/", "/api/now", "/api/request/maintenance", "/api/request/feedback", "Host",
    "localhost", "127.0.0.1", "Origin", "Content-Length", "Content-Type", "application/json", "Authorization", "Bearer", "null",
    "Transfer-Encoding", "chunked", "Expect", "100-continue", ": ", "\r\n", "\n", "\r", "?", "&", "=", "%00", "..",
    "{}", "[", "\"", "0", "9", "-1",
)  # fmt: skip
LINES = some.text(some.characters(max_codepoint=255), max_size=40)
HEADERS = some.dictionaries(
    some.sampled_from(
        ["Origin", "Content_Type", "Content_Length", "Authorization", "Host", "Transfer_Encoding", "Expect", "X"]
    ),
    some.one_of(
        LINES,
        some.sampled_from(
            ["localhost", "application/json", "null", f"Bearer {TOKEN[1:]}", f"bearer  {TOKEN}x", "Bearer", "2", "100-continue"]
        ),
    ),
    max_size=4,
)
RAW = some.one_of(
    some.binary(max_size=300),
    some.lists(some.one_of(some.sampled_from(WORDS), LINES), max_size=25).map(lambda parts: "".join(parts).encode("latin-1")),
    some.builds(
        lambda path, body, headers: post(path, body, **headers),
        some.one_of(some.sampled_from(["/api/request/maintenance", "/api/request/feedback", "/api/now"]), LINES),
        some.one_of(some.binary(max_size=60), some.just(BODY)),
        HEADERS,
    ),
)


def fuzz(examples: int, checks: Sequence[Check] = CHECKS) -> None:
    """What is true of any bytes at all."""
    view, records = MadeView(), []
    asked = service(view, TOKEN, checks)
    seen = logging.Handler(logging.WARNING)
    seen.emit = records.append  # type: ignore[method-assign]

    # A failure is shown as it was found: to shrink it takes longer than to read it.
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(RAW)
    def check(raw: bytes) -> None:
        answered = said(asked, raw)
        assert records == []
        assert view.asked == [], "a change without the token"
        if answered:
            answer = heard(answered)
            assert 200 <= answer.status < 600
            assert answer.status != 500
            assert int(answer.headers["Content-Length"]) == len(answer.body)
            assert b"Traceback" not in answer.body

    logging.getLogger("amiss").addHandler(seen)
    try:
        check()
    finally:
        logging.getLogger("amiss").removeHandler(seen)


def test_whatever_is_sent_it_answers_and_changes_nothing() -> None:
    fuzz(500)


@pytest.mark.soak
def test_whatever_is_sent_it_answers_and_changes_nothing_100_000_times() -> None:
    fuzz(100_000)


def test_the_same_bytes_would_have_changed_something_without_the_check() -> None:
    with pytest.raises(AssertionError, match="a change without the token"):
        fuzz(500, without(http.with_token))


# Over the network.


@contextlib.contextmanager
def serving(**more: float) -> Iterator[tuple[str, int]]:
    server = Server("web", "127.0.0.1", 0, routes(WebConfig(), MadeView()), **more)  # type: ignore[arg-type]  # limits
    server.start()
    try:
        host, port = server.url.removeprefix("http://").rstrip("/").rsplit(":", 1)
        yield host, int(port)
    finally:
        server.close()


def hangs_up(at: tuple[str, int], drip: bytes, within_s: float) -> bool:
    """Whether the server does, on someone who sends `drip` again and again."""
    began = time.monotonic()
    with socket.create_connection(at) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        slow.settimeout(0.05)
        while time.monotonic() - began < within_s:
            try:
                slow.sendall(drip)
                if not slow.recv(100):
                    return True
            except TimeoutError:
                continue
            except ConnectionError:
                return True
    return False


def test_who_drips_is_cut_off() -> None:
    with serving(deadline_s=0.5) as at:
        assert hangs_up(at, b"x", 60)
    with serving(deadline_s=60) as at:
        assert not hangs_up(at, b"x", 2), "the control: it is the deadline that does it"


def test_who_does_not_take_the_answer_is_cut_off() -> None:
    done = threading.Event()
    server = Server("web", "127.0.0.1", 0, {("GET", "/"): lambda request: http.Answer(b"x" * 50_000_000)}, deadline_s=0.5)
    converse = server.service.converse
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(get("/"))
        threading.Thread(target=lambda: (converse(theirs), done.set()), daemon=True).start()
        assert done.wait(60)


def statuses(at: tuple[str, int]) -> int:
    with socket.create_connection(at) as other:
        other.settimeout(5)
        other.sendall(get())
        return heard(b"".join(iter(lambda: other.recv(65536), b""))).status


def test_so_many_at_once_and_no_more() -> None:
    before = threading.active_count()
    with serving(connections=8, deadline_s=2) as at, contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(socket.create_connection(at))
        time.sleep(0.2)
        assert threading.active_count() - before <= 9
        with contextlib.suppress(ConnectionError):
            assert statuses(at) == 503
        held.close()
        until = time.monotonic() + 5
        while statuses(at) != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
    with serving(connections=9, deadline_s=2) as at, contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(socket.create_connection(at))
        assert statuses(at) == 200, "the control: it is the number that does it"


def test_no_thread_is_left_when_it_is_closed() -> None:
    before = threading.active_count()
    for _ in range(5):
        with serving() as at:
            assert [statuses(at) for _ in range(4)] == [200] * 4
    until = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.02)


# What cannot be.


def test_a_taken_port_is_named_with_its_cure() -> None:
    with serving() as (host, port):
        other = Server("metrics", host, port, {})
        with pytest.raises(ConfigError, match=rf"metrics.port: 127.0.0.1:{port} is taken .* choose another port"):
            other.start()
        other.close()


def test_an_address_of_another_computer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"web.host: cannot serve at 192.0.2.1:0: .*; name an address of this computer"):
        Server("web", "192.0.2.1", 0, {}).start()


def test_a_port_of_the_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*given: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(http._Listener, "server_bind", denied)  # tests may run as root, who may
    with pytest.raises(AccessError, match=r"web.port: 127.0.0.1:80 .* choose a port from 1024 on"):
        Server("web", "127.0.0.1", 80, {}).start()


def test_it_speaks_ipv6() -> None:
    server = Server("web", "::1", 0, routes(WebConfig(), MadeView()))
    server.start()
    try:
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        assert server.url == f"http://[::1]:{port}/"
        assert statuses(("::1", port)) == 200
    finally:
        server.close()
