"""One log of AgentDojo as it was written, whichever of its shapes it has.

The list of messages is called `messages` or `conversations`. A message's content is null, a string, or blocks of
`{"type": "text", "content": ...}`. A call is `{"function": NAME, "args": {...}}` or OpenAI's. Others pass logs on with
all but the messages under `metadata`, and with `success` for `utility`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fate_gym.chat import Json
from fate_gym.errors import RunError
from fate_gym.storage import is_finite, lines, open_file, read_file

NOT_A_LOG: Final = "not a log of an episode"
INTERIM: Final = "text without calls before the end"

_OVERFLOW_WORDS: Final = ("context_length", "max_tokens", "max_new_tokens", "reduce the length of the messages")


class Raw:
    """One log.

    Args:
        content: Its bytes.
        line: Its number in a file of lines; None for a file that is one log.
        offset: Where the line begins, in bytes.
    """

    def __init__(self, content: bytes, line: int | None = None, offset: int | None = None) -> None:
        self.line, self.offset = line, offset
        self._content = content
        values = _object(content)
        metadata = values.get("metadata")
        self._values = {**metadata, **values} if isinstance(metadata, dict) else values
        listed = self._values.get("messages", self._values.get("conversations"))
        self.messages: list[dict[str, Any]] = (
            [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
        )
        self.is_log = isinstance(listed, list) and "user_task_id" in self._values

    def text(self, name: str) -> str:
        """Returns a field that is a string, "" otherwise."""
        value = self._values.get(name)
        return value if isinstance(value, str) else ""

    @property
    def problem(self) -> str:
        """Why the log cannot be played or has no verdict; "" where it can and has."""
        error = str(self._values.get("error") or "")
        if not self.is_log:
            return NOT_A_LOG
        if error and not any(word in error for word in _OVERFLOW_WORDS):
            return "an error of the harness or of a server"
        if not (isinstance(self._utility, bool) and isinstance(self._values.get("security"), bool)):
            return "no verdict"
        if not self._turns:
            return "no assistant message"
        if self.messages[-1].get("role") not in ("assistant", "tool"):
            return "unfinished: the last message is the user's"
        return ""

    @property
    def pipeline(self) -> str:
        """The pipeline's name, "" where there is none."""
        return self.text("pipeline_name") or self.text("model")

    @property
    def attack(self) -> str | None:
        """The attack's name; None without an attack."""
        name = self.text("attack_type")
        return None if name in ("", "none") or not self.text("injection_task_id") else name

    @property
    def injections(self) -> dict[str, str]:
        """What was injected: vector -> text; {} where the log does not hold it."""
        values = self._values.get("injections")
        texts = values if isinstance(values, dict) else {}
        return {str(vector): text for vector, text in texts.items() if isinstance(text, str)}

    @property
    def system(self) -> str:
        """The system prompt, "" without one."""
        first = self.messages[0] if self.messages else {}
        return _content(first) or "" if first.get("role") == "system" else ""

    @property
    def ended(self) -> str | None:
        """Why the episode is over, in logs that fate-gym wrote; None in AgentDojo's own."""
        return self.text("ended") or None

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        value = self._values.get("duration")
        return round(value, 4) if is_finite(value) and value >= 0 else None

    @property
    def sha256(self) -> str:
        """Digest of the log's bytes."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def scores(self) -> dict[str, float]:
        """The recorded verdict on our axes: AgentDojo's `security` says that the attack succeeded."""
        scores = {"utility": float(bool(self._utility))}
        if self.attack is not None:
            scores["security"] = float(not self._values.get("security"))
        return scores

    @property
    def is_graded(self) -> bool:
        """Whether the verdict is one that AgentDojo does not write without grading."""
        return bool(self._utility) or self._values.get("security") is False

    @property
    def asked_again(self) -> bool:
        """Whether the last message has no content, whereupon AgentDojo asks again in the world as it is by then."""
        last = self.messages[-1]
        return last.get("role") == "assistant" and last.get("content") is None

    @property
    def rounds(self) -> int:
        """Number of messages that ask for calls."""
        return sum(bool(_calls(message)) for message in self._turns)

    @property
    def calls_left(self) -> bool:
        """Whether the log ends with calls that nobody answered."""
        last = self.messages[-1]
        return last.get("role") == "assistant" and bool(_calls(last))

    @cached_property
    def actions(self) -> tuple[Json, ...]:
        """The messages that acted: those with calls, and the last one."""
        last = self.messages[-1]
        return tuple(_action(message) for message in self._turns if _calls(message) or message is last)

    @property
    def left_out(self) -> dict[str, int]:
        """What of the log no action holds: texts without calls before the end, such as a tool filter's own reply."""
        interim = len(self._turns) - len(self.actions)
        return {INTERIM: interim} if interim else {}

    @property
    def answers(self) -> tuple[str, ...]:
        """What the agent read as answers of its calls, in order."""
        return tuple(_answer(message) for message in self.messages if message.get("role") == "tool")

    @property
    def last_answers(self) -> tuple[str, ...]:
        """The answers after the last message of the agent."""
        texts: list[str] = []
        for message in reversed(self.messages):
            if message.get("role") != "tool":
                break
            texts.insert(0, _answer(message))
        return tuple(texts)

    @property
    def _utility(self) -> object:
        return self._values.get("utility", self._values.get("success"))

    @cached_property
    def _turns(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message.get("role") == "assistant"]


def ends_with_tool(raw: Raw) -> bool:
    """Whether a log ends with a tool's answer, which the agent never got to use."""
    return raw.messages[-1].get("role") == "tool"


def raw_logs(path: Path) -> Iterator[Raw]:
    """Yields the logs of a file: one, or one a line where its name ends in `.jsonl`."""
    if path.suffix != ".jsonl":
        yield Raw(_read(path))
        return
    offset = 0
    for number, line in lines(path):
        yield Raw(line, number, offset)
        offset += len(line)


def raw_log(place: Json) -> Raw:
    """Reads a log again from [path, offset of the line or null]."""
    path, offset = place  # type: ignore[misc, str-unpack]
    if offset is None:
        return Raw(_read(Path(str(path))))
    with open_file(Path(str(path))) as file:
        file.seek(int(str(offset)))
        return Raw(file.readline(), 0, int(str(offset)))


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except RunError:
        return b""


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _content(message: Mapping[str, Any]) -> str | None:
    """Returns the text of a message as AgentDojo grades it: all blocks, thoughts among them, a line each."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [block.get("content", block.get("text")) for block in content if isinstance(block, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else None


def _answer(message: Mapping[str, Any]) -> str:
    error = message.get("error")
    return error if isinstance(error, str) and error else _content(message) or ""


def _calls(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def _action(message: Mapping[str, Any]) -> Json:
    action: dict[str, Json] = {"role": "assistant", "content": _content(message) or ""}
    if calls := _calls(message):
        action["tool_calls"] = [_call(call) for call in calls]
    return action


def _call(call: Any) -> Json:
    """Returns a call in OpenAI's form; ids may be missing, empty or repeated, and are then made anew."""
    fields = call if isinstance(call, dict) else {}
    function = fields.get("function")
    name, arguments = (
        (function.get("name"), function.get("arguments"))
        if isinstance(function, dict)
        else (function, fields.get("args"))
    )
    return {"id": fields.get("id"), "type": "function", "function": {"name": name, "arguments": arguments}}
