"""As much of a W&B server as its client needs for an online run, in a thread, with the faults of a real one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["gone", "refuses", "fails", "hangs"]
STATUS = {"refuses": 404, "fails": 500}


class WandbServer:
    """Use it in a with statement; what it knows outlives its faults.

    Attributes:
        rows: the history that arrived, line by line as the client numbers them.
        finished: exit code of the run once its end has arrived.
        created: what the client said of the run.
        files: names of the uploaded files.
        fault: what goes wrong with every request from now on.
    """

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.finished: int | None = None
        self.created: dict[str, Any] = {}
        self.files: set[str] = set()
        self.fault: Fault | None = None
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process find it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0123456789" * 4}

    def __enter__(self) -> WandbServer:
        server = self

        class Handler(_Handler):
            wandb = server

        self.fault = None
        self._http = _QuietServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.fault != "gone":
            self.lose("gone")

    def lose(self, fault: Fault) -> None:
        """From now on nothing works."""
        self.fault = fault
        if fault == "gone":
            self._http.shutdown()
            self._http.server_close()

    def wait_for(self, happened: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, "W&B's client did not send what it should"
            time.sleep(0.01)

    def graphql(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """The data that answer one query; nothing for those the client can do without."""
        project = {"id": "project", "name": values.get("project"), "entity": {"id": "entity", "name": "somebody"}}
        if name == "Viewer":
            return {"viewer": {"id": "user", "entity": "somebody", "username": "somebody", "flags": "{}"}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self.known(values["name"])}}
        if name == "UpsertBucket":
            new = self.known(values["name"]) is None
            self.created |= {key: value for key, value in values.items() if value is not None}
            bucket = {**(self.known(values["name"]) or {}), "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/storage/{file}"}
                     for file in values["files"]]  # fmt: skip
            return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
        return {}

    def known(self, name: str) -> dict[str, Any] | None:
        """What a client that continues a run asks for."""
        if self.created.get("name") != name:
            return None
        tail = [json.dumps(row) for _, row in sorted(self.rows.items())[-1:]]
        return {
            "id": "bucket", "name": name, "displayName": self.created.get("displayName"), "config": "{}", "tags": [],
            # Without it a client takes the run for one that nobody has begun.
            "wandbConfig": '{"t": {}}',
            "summaryMetrics": "{}", "historyLineCount": len(self.rows), "historyTail": json.dumps(tail),
            "eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0,
        }  # fmt: skip

    def stream(self, message: dict[str, Any]) -> None:
        """A part of the history, or the end of the run."""
        history = message.get("files", {}).get("wandb-history.jsonl", {"content": []})
        for number, line in enumerate(history["content"]):
            self.rows[history["offset"] + number] = json.loads(line)
        if message.get("complete"):
            self.finished = message["exitcode"]


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    # A server that is gone is gone at once, with the connections that were open.
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Connections that break are the point."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wandb: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.wandb.fault
        if fault == "gone":
            self.connection.close()
            return
        if fault == "hangs":
            self.wandb.over.wait()
            return
        data = json.dumps(self.answer(body) if fault is None else {}).encode()
        self.send_response(200 if fault is None else STATUS[fault])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST

    def answer(self, body: bytes) -> dict[str, Any]:
        if self.path == "/graphql":
            query = json.loads(body)
            return {"data": self.wandb.graphql(query["operationName"], query.get("variables") or {})}
        if self.path.endswith("/file_stream"):
            self.wandb.stream(json.loads(body))
        if self.path.startswith("/storage/"):
            self.wandb.files.add(self.path.removeprefix("/storage/"))
        return {}

    def log_message(self, *_: Any) -> None:
        """No line on stderr."""
