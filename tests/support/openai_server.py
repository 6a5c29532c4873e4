"""A real HTTP server on loopback that speaks enough of OpenAI's chat completions to hold a client to the protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Policy = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def serve(policy: Policy) -> Iterator[str]:
    """Serves a policy (request -> assistant message) and gives the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            problem = complaint(request)
            status, body = (400, {"error": {"message": problem}}) if problem else (200, _completion(policy(request)))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def complaint(request: dict[str, Any]) -> str | None:
    """What OpenAI's API would refuse in a request, or None."""
    extra = set(request) - {"model", "messages", "tools"}
    if extra:
        return f"unknown keys {extra}"
    if request.get("tools") == []:
        return "tools must not be empty"
    open_ids: list[str] = []
    for message in request["messages"]:
        role = message["role"]
        if open_ids and role != "tool":
            return f"calls {open_ids} have no answer"
        if role == "tool":
            if message["tool_call_id"] not in open_ids:
                return f"answer to no call: {message['tool_call_id']}"
            open_ids.remove(message["tool_call_id"])
        if not isinstance(message["content"], str):
            return "content must be a string"
        for call in message.get("tool_calls", ()):
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                return "arguments must be a JSON object"
            open_ids.append(call["id"])
    return f"calls {open_ids} have no answer" if open_ids else None


def _completion(message: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
