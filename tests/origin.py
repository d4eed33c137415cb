"""Where data sets come from, on this machine: a web server with bad habits, and a repository of git."""

import re
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote


class Origin:
    """Serves `files` (path → content). What it does wrong is set from outside, request by request."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.asked: list[tuple[str, str | None]] = []
        """(path, Range) of each request, in order."""
        self.cuts: list[int] = []
        """Each of the next answers breaks off after so many bytes."""
        self.refusals: list[tuple[int, dict[str, str]]] = []
        """Each of the next requests gets this status and these headers instead."""
        self.ranges = True
        """False: takes no notice of Range, and sends the whole."""
        self.misplaced = False
        """True: answers a Range with the bytes from the start, as 206."""
        origin = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                origin._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = unquote(request.path.lstrip("/")), request.headers.get("Range")
        self.asked.append((path, wanted))
        status, headers = self.refusals.pop(0) if self.refusals else (200, {})
        content = self.files.get(path)
        if status == 200 and content is None:
            status = 404
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0  # type: ignore[index]
        if status == 200 and start and content is not None and start >= len(content):
            status = 416
        if status != 200 or content is None:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        first = 0 if self.misplaced else start
        body = content[first:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


def repository(folder: Path, files: Mapping[str, bytes]) -> tuple[str, str]:
    """A repository with one commit of `files` → its URL and the commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    git("init", "-q")
    git("config", "core.autocrlf", "false")
    git("config", "uploadpack.allowFilter", "true")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    git("add", "--force", ".")
    git("commit", "-q", "-m", "data")
    return folder.as_uri(), git("rev-parse", "HEAD")
