"""A door for those who are on the device already: a socket in the state folder that takes requests without a broker.

One request a connection: a line `VERB {json}` in, a line of JSON out. Who may open the socket is a matter of its file mode,
0600: the user that runs the agent, and root.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge.delivery.topics import Response, encode
from edge.errors import SinkUnavailableError
from edge.operating.requests import MAX_BYTES

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""For the asker to say what it wants. Answers may take longer."""
ANSWER_S = 60.0
NAME = "control.sock"


class Control:
    """Listens at `folder`/control.sock, in a thread of its own. `answer` blocks until there is one."""

    def __init__(self, folder: Path, answer: Callable[[str, bytes], Response]) -> None:
        self._path, self._answer = folder / NAME, answer
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Without a door where there can be none (a file system without sockets, a path that is too long): that is told."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()  # the outbox's lock has shown that no other agent lives here
            mask = os.umask(0o177)
            try:
                listening.bind(str(self._path))
            finally:
                os.umask(mask)
            listening.listen(64)  # a full queue is told to who knocks as though nobody were there
        except OSError as error:
            listening.close()
            log.warning("%s: cannot be opened (%s); `amiss ask` will not reach this agent", self._path, error)
            return
        self._socket = listening
        threading.Thread(target=self._run, args=(listening,), name="control", daemon=True).start()

    def close(self) -> None:
        listening, self._socket = self._socket, None
        if listening is not None:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _run(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                if self._socket is None:
                    return
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(TIMEOUT_S)
                verb, _, body = _line(connection).partition(b" ")
                answer = self._answer(verb.decode("utf-8", "replace").strip(), body.strip())
                connection.sendall(encode(answer) + b"\n")


def ask(folder: Path, verb: str, body: bytes) -> Response:
    """Ask the agent whose state folder this is; raises `SinkUnavailableError` when none runs there."""
    path = folder / NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(str(path))
            connection.sendall(verb.encode() + b" " + body + b"\n")
            connection.shutdown(socket.SHUT_WR)
            answer = _line(connection, 1 << 24)
            return msgspec.json.decode(answer, type=Response)
        except PermissionError:
            raise SinkUnavailableError(
                f"{path}: may not be opened by this user; ask as the user that runs the agent, or as root"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise SinkUnavailableError(
                f"{path}: no agent answers ({error}); does `amiss run` run, with this configuration?"
            ) from None


def _line(connection: socket.socket, most: int = MAX_BYTES + 256) -> bytes:
    """Up to the first newline, or the end; one byte more than `most` at most, so that what is too long is seen to be."""
    data = b""
    while b"\n" not in data and len(data) <= most and (more := connection.recv(65536)):
        data += more
    return data.split(b"\n", 1)[0]
