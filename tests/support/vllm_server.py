"""A real vLLM on this machine's CPU, for `make test-vllm`, which installs one. FATE_GYM_VLLM names its command."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = os.environ.get("FATE_GYM_VLLM")

_GIVEN = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def serve(model: Path, log: Path, *options: str, **environment: str) -> Iterator[str]:
    """Yields the address of a server that is ready.

    Args:
        model: A folder.
        log: Where its output goes.
        *options: Further options of `vllm serve`.
        **environment: Further variables of its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(COMMAND), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *options],
            env={**os.environ, **_GIVEN, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 (loopback)
            return answer.status == 200
    except OSError:
        return False
