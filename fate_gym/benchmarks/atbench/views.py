"""The two views of a trajectory: whole in one message, or read page by page through tools."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from types import MappingProxyType
from typing import Any, Final

from fate_gym.benchmark import ToolOutcome, World
from fate_gym.benchmarks.atbench.answers import Diagnosis, InvalidAnswerError, full_prompt, paged_prompt, read_answer
from fate_gym.benchmarks.atbench.paged_tools import PAGE, problem_with, schemas
from fate_gym.benchmarks.atbench.records import Row
from fate_gym.benchmarks.atbench.rendering import render_tool, render_turn
from fate_gym.benchmarks.atbench.taxonomy import DIMENSIONS
from fate_gym.chat import ToolSchema
from fate_gym.transcript import Transcript

_PREVIEW: Final = 80
_MAX_HITS: Final = 20
_CONTEXT: Final = 60
_NO_TOOLS: Final[list[ToolSchema]] = []


class TrajectoryWorld(World):
    """A trajectory to be judged; nothing in it changes.

    Args:
        row: The trajectory.
        labels: Whether a diagnosis of unsafe needs its three labels.
    """

    injections = MappingProxyType[str, str]({})
    payloads = ()

    def __init__(self, row: Row, *, labels: bool) -> None:
        self.row = row
        self.labels = labels

    @abstractmethod
    def diagnosis(self, transcript: Transcript) -> Diagnosis:
        """Returns the diagnosis of a finished episode.

        Raises:
            InvalidAnswerError: The agent gave none.
        """


class FullView(TrajectoryWorld):
    """The published protocol: one message with all of it, answered by one message."""

    def __init__(self, row: Row, *, labels: bool) -> None:
        super().__init__(row, labels=labels)
        self.opening = [{"role": "user", "content": full_prompt(row, labels=labels)}]
        self.tools = _NO_TOOLS

    def diagnosis(self, transcript: Transcript) -> Diagnosis:
        """Reads the final answer."""
        if transcript.ended != "answer":
            raise InvalidAnswerError("the episode ended without an answer")
        return read_answer(transcript.final_text, labels=self.labels)

    def call(self, name: str, arguments: dict[str, Any]) -> ToolOutcome:
        """Refuses: there are no tools."""
        return ToolOutcome("unknown_tool", "There are no tools here: answer in text.", arguments)

    def dump(self) -> bytes:
        """Returns no bytes, since nothing changes."""
        return b""

    def load(self, state: bytes) -> None:
        """Accepts the empty state.

        Raises:
            ValueError: The state is not empty.
        """
        if state:
            raise ValueError("the full view has no state")


class PagedView(TrajectoryWorld):
    """Tools that read the trajectory out in pages; `submit_verdict` ends the episode."""

    def __init__(self, row: Row, *, labels: bool) -> None:
        super().__init__(row, labels=labels)
        self.opening = [{"role": "user", "content": paged_prompt(row, labels=labels)}]
        self.tools = schemas(labels)
        self._parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}
        self._turns = row.turns
        self._submitted: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether a diagnosis has been submitted."""
        return self._submitted is not None

    def diagnosis(self, transcript: Transcript) -> Diagnosis:
        """Returns what was submitted."""
        if self._submitted is None:
            raise InvalidAnswerError("submit_verdict was not called with a verdict")
        unsafe = self._submitted["safety"] == "unsafe"
        labels = {name: self._submitted[name] for name in DIMENSIONS} if unsafe and self.labels else {}
        return Diagnosis(unsafe, labels, tuple(self._submitted.get("evidence_turns", ())))

    def call(self, name: str, arguments: dict[str, Any]) -> ToolOutcome:
        """Runs a tool."""
        if name not in self._parameters:
            known = ", ".join(self._parameters)
            return ToolOutcome("unknown_tool", f"There is no such tool; there are {known}.", arguments)
        if problem := problem_with(arguments, self._parameters[name]):
            return ToolOutcome("bad_arguments", problem, arguments)
        outcome: ToolOutcome = getattr(self, f"_{name}")(arguments)
        return outcome

    def dump(self) -> bytes:
        """Returns the diagnosis, the only thing that changes."""
        return json.dumps(self._submitted).encode()

    def load(self, state: bytes) -> None:
        """Restores a submitted diagnosis, or that there is none yet.

        Raises:
            ValueError: The state is neither.
        """
        submitted = json.loads(state)
        if submitted is not None and (
            not isinstance(submitted, dict) or problem_with(submitted, self._parameters["submit_verdict"])
        ):
            raise ValueError("the world's state must be what submit_verdict took, or null")
        self._submitted = submitted

    def _list_turns(self, arguments: dict[str, Any]) -> ToolOutcome:
        lines = [f"{len(self._turns)} turns, with their lengths in characters and how they begin:"]
        number = 0
        for index, turns in enumerate(self.row.conversations, start=1):
            if len(self.row.conversations) > 1:
                lines.append(f"conversation {index}:")
            for turn in turns:
                number += 1
                text = render_turn(turn)
                lines.append(f"{number} {turn.role}, {len(text)}: {_one_line(text[:_PREVIEW])}")
        if self.row.profile:
            lines.append(f"Profile of the agent: {self.row.profile}")
        names = "not recorded" if self.row.tools is None else ", ".join(tool.name for tool in self.row.tools) or "none"
        lines.append(f"Tools of the agent: {names}")
        return ToolOutcome("ok", "\n".join(lines), arguments)

    def _read_turn(self, arguments: dict[str, Any]) -> ToolOutcome:
        number = arguments["turn"]
        if not 1 <= number <= len(self._turns):
            return ToolOutcome("tool_error", f"There is no turn {number}, only 1 to {len(self._turns)}.", arguments)
        turn = self._turns[number - 1]
        return _page(f"turn {number}, {turn.role}", render_turn(turn), arguments)

    def _read_tool(self, arguments: dict[str, Any]) -> ToolOutcome:
        matches = [render_tool(tool) for tool in self.row.tools or () if tool.name == arguments["name"]]
        if not matches:
            return ToolOutcome("tool_error", "The agent had no such tool; list_turns names its tools.", arguments)
        return _page("tool", "\n\n".join(matches), arguments)

    def _search(self, arguments: dict[str, Any]) -> ToolOutcome:
        pattern = re.compile(re.escape(arguments["text"]), re.IGNORECASE)
        places = [(f"turn {number}", render_turn(turn)) for number, turn in enumerate(self._turns, start=1)]
        places += [(f"tool {tool.name}", render_tool(tool)) for tool in self.row.tools or ()]
        hits = [(place, text, match) for place, text in places for match in pattern.finditer(text)]
        lines = [f"{len(hits)} places; shown: {min(len(hits), _MAX_HITS)}"]
        for place, text, match in hits[:_MAX_HITS]:
            excerpt = text[max(0, match.start() - _CONTEXT) : match.end() + _CONTEXT]
            lines.append(f"{place}, offset {match.start()}: {_one_line(excerpt)}")
        return ToolOutcome("ok", "\n".join(lines), arguments)

    def _submit_verdict(self, arguments: dict[str, Any]) -> ToolOutcome:
        if self._submitted is not None:
            return ToolOutcome("tool_error", "A verdict has been submitted already; the first one counts.", arguments)
        missing = [name for name in DIMENSIONS if self.labels and name not in arguments]
        if arguments["safety"] == "unsafe" and missing:
            return ToolOutcome("bad_arguments", f"An unsafe verdict needs {', '.join(missing)}.", arguments)
        unknown = [n for n in arguments.get("evidence_turns", ()) if not 1 <= n <= len(self._turns)]
        if unknown:
            return ToolOutcome("bad_arguments", f"evidence_turns must be 1 to {len(self._turns)}.", arguments)
        self._submitted = arguments
        return ToolOutcome("ok", "The verdict is submitted.", arguments)


def _page(title: str, text: str, arguments: dict[str, Any]) -> ToolOutcome:
    start = arguments.get("offset", 0)
    if start and start >= len(text):
        return ToolOutcome("tool_error", f"It has {len(text)} characters only.", arguments)
    end = min(start + PAGE, len(text))
    more = f" (go on with offset {end})" if end < len(text) else ""
    place = f"{title}, characters {start} to {end} of {len(text)}{more}"
    return ToolOutcome("ok", f"{place}:\n{text[start:end]}", arguments)


def _one_line(text: str) -> str:
    return " ".join(text.split())
