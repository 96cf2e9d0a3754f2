"""A small Hugging Face Hub of our own, on loopback: what fetching a model asks of the real one.

Statuses, headers and error codes are those that https://huggingface.co answers with: a model that
an anonymous caller may not see does not exist (401), a bad token is refused whatever it asks for,
the files of a gated model are listed but not given, weights lie on another host.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote

Files = dict[str, bytes]
Kind = Literal["api", "file", "cdn"]
# What goes wrong with an answer: its status, a login page in its place, or only three quarters of
# it arrive and the connection is cut, or stands still until the Hub is told to go on.
Trouble = int | Literal["page", "cut", "stall"] | None

TOKEN = "hf_good"
_ROUTES: dict[Kind, re.Pattern[str]] = {
    "api": re.compile(r"/api/models/(?P<name>.+?)(?:/revision/(?P<revision>[^/]+))?"),
    "cdn": re.compile(r"/cdn/(?P<etag>[^/]+)/(?P<file>.+)"),
    "file": re.compile(r"/(?P<name>.+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
}
_PATIENCE_SECONDS = 30
# The real Hub has its client print this.
_WARNING = {"X-HF-Warning": "unauthenticated; You are sending unauthenticated requests to the Hub."}


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, and with what."""

    kind: Kind
    method: str
    path: str
    fields: dict[str, str]  # of the path: name, revision, file, etag
    range: str | None
    token: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, its headers, and the whole content."""

    status: int
    headers: dict[str, str]
    content: bytes = b""


@dataclass(slots=True)
class Model:
    """A repository: its commits, and the branches and tags that name some of them."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False


class Hub:
    """Models, those who ask for them, and what goes wrong."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.models: dict[str, Model] = {}
        self.renamed: dict[str, str] = {}
        self.troubles: dict[Kind, Iterator[Trouble]] = {}  # of the next answers of a kind
        self.log: list[Request] = []
        self.go_on = threading.Event()
        self._cdn = f"http://localhost:{port}/cdn"  # the same machine under another name
        self._large: Files = {}

    def publish(self, name: str, files: Files, *, branch: str = "main") -> str:
        """Put a commit with these files on a branch and give its hash; the model may be new."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        model = self.models.setdefault(name, Model())
        model.commits[commit] = files
        model.branches[branch] = commit
        return commit

    def asked(self, kind: Kind) -> int:
        """How many requests of this kind there were."""
        return sum(request.kind == kind for request in self.log)

    def sent(self) -> list[str]:
        """The names of the files whose contents were asked for, in order."""
        got = [request for request in self.log if request.method == "GET"]
        return [request.fields["file"] for request in got if request.kind != "api"]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a client that runs at the same time is about to do."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def answer(self, request: Request) -> Answer:
        """What the real Hub would say."""
        if request.kind == "cdn":  # its addresses are signed: it looks at no token
            return Answer(200, {"Accept-Ranges": "bytes"}, self._large[request.fields["etag"]])
        if request.token not in (None, f"Bearer {TOKEN}"):
            return _refusal(401, "Invalid credentials in Authorization header")
        name, revision = request.fields["name"], request.fields.get("revision", "main")
        if name in self.renamed:
            path = request.path.replace(name, self.renamed[name], 1)
            return Answer(307, {"Location": path})
        model = self.models.get(name)
        if model is None or (model.private and request.token is None):
            if request.token is None:
                return _refusal(401, "Invalid username or password.", code="RepoNotFound")
            return _refusal(404, "Repository not found", code="RepoNotFound")
        commit = model.branches.get(revision, revision)
        if commit not in model.commits:
            return _refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        files = model.commits[commit]
        if request.kind == "api":
            listing = {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": model.private,
                "gated": "manual" if model.gated else False,
                "tags": [],
                "siblings": [{"rfilename": file} for file in files],
            }
            return Answer(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        if model.gated:
            status = 401 if request.token is None else 403
            return _refusal(status, f"Access to model {name} is restricted.", code="GatedRepo")
        if request.fields["file"] not in files:
            return _refusal(404, "Entry not found", code="EntryNotFound")
        return self._resolve(request.fields["file"], files[request.fields["file"]], commit)

    def _resolve(self, file: str, content: bytes, commit: str) -> Answer:
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not file.endswith(".safetensors"):
            return Answer(200, headers | {"ETag": f'"{etag}"'}, content)
        self._large[etag] = content
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        return Answer(302, headers | linked | {"Location": f"{self._cdn}/{etag}/{file}"})


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub without models, as long as the block runs."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.hub
        finally:
            server.hub.go_on.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.hub = Hub(self.server_port)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has gone
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub, request = self.server.hub, self._request()
        hub.log.append(request)
        trouble = next(hub.troubles.get(request.kind, iter(())), None)
        if isinstance(trouble, int):
            answer = _refusal(trouble, "Something is broken")
        elif trouble == "page":
            answer = Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
        else:
            answer = _in_range(hub.answer(request), request.range)
        self.send_response(answer.status)
        for header, value in (answer.headers | _WARNING).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if request.method == "HEAD":
            return
        rest = b""
        if trouble in ("cut", "stall"):
            rest = answer.content[len(answer.content) * 3 // 4 :]
        self.wfile.write(answer.content.removesuffix(rest))
        if trouble == "cut":
            self.close_connection = True
        elif trouble == "stall":
            hub.go_on.wait(_PATIENCE_SECONDS)
            self.wfile.write(rest)

    def _request(self) -> Request:
        path = self.path.partition("?")[0]
        for kind, route in _ROUTES.items():
            if match := route.fullmatch(path):
                given = {key: unquote(value) for key, value in match.groupdict().items() if value}
                return Request(
                    kind=kind,
                    method=self.command,
                    path=path,
                    fields=given,
                    range=self.headers["Range"],
                    token=self.headers["Authorization"],
                )
        raise AssertionError(f"nobody should ask for {self.path}")


def _in_range(answer: Answer, wanted: str | None) -> Answer:
    """The part of a content that begins where a broken download is taken up."""
    if wanted is None or answer.status != 200:
        return answer
    size, first = len(answer.content), int(wanted.removeprefix("bytes=").removesuffix("-"))
    headers = answer.headers | {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
    return Answer(206, headers, answer.content[first:])


def _refusal(status: int, message: str, *, code: str | None = None) -> Answer:
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return Answer(status, headers, json.dumps({"error": message}).encode())
