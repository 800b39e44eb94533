"""An OpenAI-compatible server with troubles on purpose; in a thread, or as a process that can be killed.

Every answer it gives is a function of the request. Which trouble a request meets is a function of the request too, and
of how often it was asked: after its troubles it is answered. Each answer is written to a ledger before it is sent, as
the bill of a real server would be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "scripted"
_TEXT = re.compile(r"\[(?:Discharge summary|Case report) begin\]\n(.*?)\n\[", re.DOTALL)


class ScriptedServer(ThreadingHTTPServer):
    """A server on loopback.

    Parameters
    ----------
    ledger : Path
        One line for each answer: the seed of its request, which is another one for each key.
    troubles : sequence of str
        Of ``429``, ``500``, ``503``, ``hang``, ``reset``, ``broken``, ``empty``, ``307``, ``400``, ``401``, ``404``.
    share : float
        Of the requests, those that meet a trouble, each one drawn by its content.
    times : int
        How often such a request meets it before it is answered; -1 for always.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        ledger: Path,
        troubles: Sequence[str] = (),
        share: float = 1.0,
        times: int = 1,
        port: int = 0,
        delay: float = 0.0,
        hang: float = 30.0,
        retry_after: str = "0.2",
        answer: Any = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.ledger, self.troubles, self.share, self.times = ledger, tuple(troubles), share, times
        self.delay, self.hang, self.retry_after = delay, hang, retry_after
        self.answer = answer or answer_to
        self.met: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times_asked: list[float] = []
        self.gone = False
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()

    def __enter__(self) -> ScriptedServer:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gone = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the play."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def trouble(self, digest: str) -> str | None:
        """Return the trouble of a request that is asked for the n-th time."""
        with self.lock:
            self.asked[digest] += 1
            asked = self.asked[digest]
        number = int(digest[:8], 16)
        if not self.troubles or number % 1000 >= 1000 * self.share:
            return None
        if self.times >= 0 and asked > self.times:
            return None
        return self.troubles[(number // 1000 + asked) % len(self.troubles)]

    def pay(self, seed: int) -> None:
        with self.lock, self.ledger.open("a", encoding="utf-8") as file:
            file.write(f"{seed}\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            self._answer()
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _answer(self) -> None:
        server = self.server
        if server.gone:
            self.close_connection = True
            return
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(raw)
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times_asked.append(time.monotonic())
        trouble = server.trouble(hashlib.sha256(raw).hexdigest())
        if trouble:
            with server.lock:
                server.met[trouble] += 1
        time.sleep(server.delay)
        if trouble == "429":
            self._send(
                429, {"error": {"message": body["messages"][-1]["content"]}}, {"Retry-After": server.retry_after}
            )
        elif trouble in {"400", "401", "404", "500", "503"}:
            self._send(int(trouble), {"error": {"message": body["messages"][-1]["content"], "code": "some_code"}})
        elif trouble == "307":
            self._send(307, {}, {"Location": f"{server.base_url}/elsewhere"})
        elif trouble == "hang":
            time.sleep(server.hang)
            self.close_connection = True
        elif trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif trouble == "broken":
            self._send(200, b'{"choices": [{"message": {"role": "assistant", "content": "half an ans')
        elif trouble == "empty":
            self._send(200, {"model": MODEL, "choices": []})
        else:
            text = server.answer(body)
            server.pay(body["seed"])
            self._send(200, reply(body, text))

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def reply(body: dict[str, Any], text: str) -> dict[str, Any]:
    prompt = sum(len(message["content"].split()) for message in body["messages"])
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": len(text.split()), "total_tokens": 0},
    }


def answer_to(body: dict[str, Any]) -> str:
    """Write a note, a question or an answer, as the prompt asks."""
    prompt = body["messages"][-1]["content"]
    found = _TEXT.search(prompt)
    text = found[1] if found else prompt
    if "[Case report begin]" in prompt:
        return f"DISCHARGE SUMMARY\n\nHOSPITAL COURSE:\n{text}\n\nDISPOSITION: Home in stable condition."
    if "[Instruction begin]" in prompt:
        return "The record says: " + " ".join(text.split()[:14])
    word = hashlib.sha256(str(body["seed"]).encode()).hexdigest()[:6]
    letters = "".join(chr(ord("a") + int(digit, 16)) for digit in word)
    return f"What does the record say of the finding {letters}?"


def main() -> None:
    """Serve until killed; the port is written to a file once it listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("ready", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--troubles", default="")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang", type=float, default=30.0)
    options = parser.parse_args()
    troubles = [word for word in options.troubles.split(",") if word]
    server = ScriptedServer(
        options.ledger, troubles, options.share, port=options.port, delay=options.delay, hang=options.hang
    )
    partial = options.ready.with_suffix(".partial")
    partial.write_text(str(server.server_address[1]), encoding="utf-8")
    os.replace(partial, options.ready)
    server.serve_forever()


if __name__ == "__main__":
    main()
