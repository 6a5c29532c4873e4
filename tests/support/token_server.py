"""A server double for training: a real tiny model behind `/v1/completions`, in token ids, with adapters by name.

It does what vLLM does, under the same paths and fields; `TokenServer` lets a test look on, and misbehave.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from fate_gym.agents._generation import Generator
from fate_gym.agents._token_agent import GenerationRequest
from fate_gym.trainers.policy import quiet

transformers.logging.set_verbosity_error()


class TokenServer:
    """What the server knows, and what was asked of it.

    Args:
        folder: The model that it starts with; its name at the server.

    Attributes:
        url: Its address.
        loaded: Names and paths of adapters, in the order in which they were loaded.
        asked: The `model` of each completion, in their order.
        noise: Added to every log-probability that it reports.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.loaded: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.noise = 0.0
        self.says: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Forgets the adapters, as a new process would."""
        self._models = {str(self.folder): _load(self.folder)}

    def replace(self, folder: Path) -> None:
        """Loads other whole weights under the same name."""
        with self._lock:
            self._models = {str(self.folder): _load(folder)}

    def load_lora_adapter(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Loads an adapter."""
        name, path = body["lora_name"], body["lora_path"]
        if name in self._models:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        with quiet():
            self._models[name] = peft.PeftModel.from_pretrained(_load(self.folder), path).eval()
        self.loaded.append((name, path))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Completes a prompt of token ids."""
        assert body["return_token_ids"]
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0.0, 1.0)
        model = self._models.get(body["model"])
        if model is None:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        self.asked.append(body["model"])
        run = Generator(
            model,
            stop_ids=body["stop_token_ids"],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            cache_bytes=0,
            may_learn=False,
        )
        (made,) = run([GenerationRequest(tuple(body["prompt"]), body["seed"])])
        choice = {
            "index": 0,
            "text": "",
            "token_ids": made.token_ids,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": [logprob + self.noise for logprob in made.logprobs]},
        }
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice], **self.says}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Answers a request, one at a time."""
        with self._lock:
            if path == "/v1/load_lora_adapter":
                return self.load_lora_adapter(body)
            return self.completions(body) if path == "/v1/completions" else (404, {})


@contextmanager
def serve_tokens(folder: Path) -> Iterator[TokenServer]:
    """Serves a model on loopback."""
    state = TokenServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = state.answer(self.path, request)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
