"""Who is on the device needs no broker to be heard."""

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.delivery.topics import Response
from edge.errors import SinkUnavailableError
from edge.operating.control import NAME, Control, ask
from edge.operating.requests import MAX_BYTES


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[list[tuple[str, bytes]]]:
    heard: list[tuple[str, bytes]] = []

    def answer(verb: str, body: bytes) -> Response:
        heard.append((verb, body))
        return Response(status="ok", data=len(heard))

    control = Control(tmp_path, answer)
    control.start()
    yield heard
    control.close()
    assert not (tmp_path / NAME).exists()


def test_a_request_and_its_answer(tmp_path: Path, heard: list[tuple[str, bytes]]) -> None:
    assert ask(tmp_path, "ping", b'{"transaction": 1}') == Response(status="ok", data=1)
    assert heard == [("ping", b'{"transaction": 1}')]


def test_only_its_owner_may_knock(tmp_path: Path, heard: list[tuple[str, bytes]]) -> None:
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_who_says_nothing_or_too_much_keeps_nobody_out(tmp_path: Path, heard: list[tuple[str, bytes]]) -> None:
    for said in (b"", b"\n", b"\xff\xfe {}\n", b"x" * (4 * MAX_BYTES)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
            rude.connect(str(tmp_path / NAME))
            rude.sendall(said)
            rude.shutdown(socket.SHUT_WR)
    assert ask(tmp_path, "ping", b"{}").status == "ok"
    assert max(len(body) + len(verb) for verb, body in heard) <= 2 * MAX_BYTES + 65536


def test_several_at_once(tmp_path: Path, heard: list[tuple[str, bytes]]) -> None:
    answers: list[Response] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(tmp_path, "ping", b"{}"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.data for answer in answers) == list(range(1, 9))


def test_nobody_home(tmp_path: Path) -> None:
    with pytest.raises(SinkUnavailableError, match="no agent answers"):
        ask(tmp_path, "ping", b"{}")


def test_what_an_agent_left_that_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as old:
        old.bind(str(tmp_path / NAME))
    control = Control(tmp_path, lambda verb, body: Response(status="ok"))
    control.start()
    assert ask(tmp_path, "ping", b"{}").status == "ok"
    control.close()


def test_no_socket_is_no_reason_not_to_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    control = Control(deep, lambda verb, body: Response(status="ok"))
    control.start()
    control.close()
    assert "amiss ask" in caplog.text
