"""Judges: models that grade. Question and answer are kept as evidence; a judge that cannot be asked gives no score."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from fate_gym.actions import read_action
from fate_gym.errors import JudgeError, NoReplyError, ProviderError, UsageError
from fate_gym.plugins import load_plugin

if TYPE_CHECKING:
    from fate_gym.serving import ChatClient, RetryPolicy

T = TypeVar("T")

Asker: TypeAlias = Callable[[str], str]
"""Any function from a question to an answer; raises `JudgeError` (or anything) if it has none."""

JudgeSpec: TypeAlias = str | Mapping[str, Any]
"""A judge in a setting: "openai:MODEL"; a mapping of `model`, "openai:MODEL", and options of `ModelJudge`; or
"module:function"."""

_PREFIX = "openai:"


class ModelJudge:
    """A model behind any server that speaks chat completions.

    It serves many threads at once: requests run on an event loop in a thread of the judge's own, so that all share
    connections, limits and answers. Each question is asked once in the judge's life; the thread ends with the judge.

    Args:
        model: The model's name at the server.
        base_url: The server; None for OpenAI's own.
        temperature: None leaves it to the server, as newer models demand.
        max_tokens: Tokens of one answer, so that no text can make a judge write without end; sent as
            `max_completion_tokens` to OpenAI. None leaves it to the server.
        timeout: Seconds for one whole request.
        max_attempts: Requests for one answer, the first included.
        requests_per_minute: Limit over all questions, or None.
        extra_body: Further fields of each request; they win over all others.
        api_key_env: Environment variable that holds the key; a server of one's own may need none.
        backoff_seconds: Bound of the first wait between attempts.

    Attributes:
        name: Name of the judge, which stands in verdicts.

    Raises:
        ValueError: An argument makes no sense, or the key is missing.
        UsageError: The openai package is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 4096,
        timeout: float = 120.0,
        max_attempts: int = 6,
        requests_per_minute: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        backoff_seconds: float = 1.0,
    ) -> None:
        from fate_gym.serving import ChatClient, RetryPolicy, check_positive, given

        if not model:
            raise ValueError("the judge needs a name, as in openai:gpt-4o-mini")
        check_positive(timeout=timeout, max_attempts=max_attempts, requests_per_minute=requests_per_minute)
        self.name = f"{_PREFIX}{model}"
        options = given(temperature=temperature, **{"max_tokens" if base_url else "max_completion_tokens": max_tokens})
        self._body = {"model": model, **options, **(extra_body or {})}
        self._policy = RetryPolicy(max_attempts, backoff_seconds)
        # Each process has a client of its own; making one here finds a missing key now.
        self._make_client = partial(
            ChatClient, base_url, api_key_env=api_key_env, timeout=timeout, requests_per_minute=requests_per_minute
        )
        self._make_client()
        self._lock = threading.Lock()
        self._answers: dict[bytes, Future[str]] = {}
        self._worker: _Worker | None = None

    def __call__(self, question: str) -> str:
        """Answers a question.

        Raises:
            JudgeError: No answer came, after all attempts or for good, or one without text; in one line, without
                secrets.
        """
        key = hashlib.sha256(question.encode()).digest()
        with self._lock:
            worker = self._running()
            asked = self._answers.get(key)
            if asked is None:
                asked = self._answers[key] = worker.begin(_ask(worker.client, self._policy, self._body, question))
        try:
            answer = asked.result()
        except Exception as failure:
            with self._lock:
                self._answers.pop(key, None)
            # A text that no context holds, or that makes the judge write without end, is the agent's doing.
            provoked = isinstance(failure, NoReplyError) and not isinstance(failure, ProviderError)
            raise JudgeError(f"the judge {self.name} gave no answer: {failure}", answered=provoked) from None
        if not answer.strip():
            raise JudgeError(f"the judge {self.name} gave an answer without text", answered=True)
        return answer

    def _running(self) -> _Worker:
        """The worker; a process that was forked from another one's has to start its own."""
        if self._worker is None or self._worker.process != os.getpid():
            self._worker = _Worker(self._make_client())
            self._answers.clear()
            weakref.finalize(self, self._worker.stop)
        return self._worker


async def _ask(client: ChatClient, policy: RetryPolicy, body: Mapping[str, Any], question: str) -> str:
    async def request(messages: list[dict[str, str]]) -> str:
        completion = await client.request({**body, "messages": messages})
        # Read as an agent's message: text may come in parts, and thoughts in parts of their own.
        return read_action({"content": completion.message.get("content")}, turn=0).text

    answer, _ = await policy.run(request, [{"role": "user", "content": question}])
    return answer


class _Worker:
    """An event loop in a thread, and the client that is used and closed there."""

    def __init__(self, client: ChatClient) -> None:
        self.process = os.getpid()
        self.client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fate-gym-judge", daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Ends the thread; in a forked process there is none."""
        if self.process != os.getpid():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        # The garbage collector may come by in any thread, this one included.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self.client.aclose())
        finally:
            self._loop.close()


def is_model(judge: object) -> bool:
    """Returns whether a setting names a model rather than a function."""
    return isinstance(judge, Mapping) or (isinstance(judge, str) and judge.startswith(_PREFIX))


def load_model(judge: JudgeSpec, option: str) -> ModelJudge:
    """Makes a judge of "openai:MODEL", or of a mapping with `model` and options.

    Args:
        judge: The setting.
        option: Its name, for errors.

    Raises:
        ValueError: It names no model, or an option is unknown or makes no sense.
    """
    options = {"model": judge} if isinstance(judge, str) else dict(judge)
    model = options.pop("model", None)
    if not isinstance(model, str) or not model.startswith(_PREFIX):
        raise ValueError(f"{option} must name its model as openai:MODEL, got {model!r}")
    try:
        return ModelJudge(model.removeprefix(_PREFIX), **options)
    except TypeError as error:
        raise ValueError(f"{option}: {error}") from error


def load_function(judge: str, option: str) -> Callable[..., Any]:
    """Finds the function that "module:function" names.

    Raises:
        ValueError: It names none.
    """
    try:
        function: Callable[..., Any] = load_plugin(judge)
    except UsageError as error:
        raise ValueError(
            f"{option}={judge!r} names no function; write 'module:function' or 'openai:MODEL' ({error})"
        ) from error
    if not callable(function):
        raise ValueError(f"{option}={judge!r} is not callable")
    return function


def load_asker(judge: Asker | JudgeSpec | None, option: str) -> Asker | None:
    """Resolves a judge that answers questions: a model, a function, or either by name.

    Whatever goes wrong in the judge that is returned is a `JudgeError`.

    Args:
        judge: The setting, or None.
        option: Its name, for errors.

    Raises:
        ValueError: It names neither.
    """
    if judge is None or isinstance(judge, ModelJudge):
        return judge
    if isinstance(judge, str | Mapping):
        return load_model(judge, option) if is_model(judge) else _Guarded(load_function(str(judge), option))
    return _Guarded(judge)


class _Guarded:
    """A function of a user as a judge: every exception of it becomes a `JudgeError`."""

    def __init__(self, function: Asker) -> None:
        self._function = function
        self.name = name_of(function)

    def __call__(self, question: str) -> str:
        try:
            answer = self._function(question)
        except JudgeError:
            raise
        except Exception as error:
            raise JudgeError(f"the judge {self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(answer, str):
            raise JudgeError(f"the judge {self.name} gave {type(answer).__name__} instead of a text", answered=True)
        return answer


def name_of(judge: object) -> str | None:
    """Returns the name of a judge in verdicts and manifests, None for no judge."""
    if judge is None:
        return None
    return str(getattr(judge, "name", None) or getattr(judge, "__qualname__", None) or type(judge).__qualname__)
