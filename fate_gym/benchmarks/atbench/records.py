"""Rows of judged trajectories, read from JSON; what gives the label away is kept apart.

ATBench comes in three schemas. Those of 1,000 and 500 rows differ in the names of the id and of the turns; that of 300
names its third dimension `harm_type`. R-Judge and ASSEBench have the same turns, a profile of the agent instead of its
tools, and no labels in ATBench's dimensions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args

from fate_gym.benchmarks.atbench.taxonomy import DIMENSIONS, find_label
from fate_gym.chat import Json
from fate_gym.errors import DataError

Role = Literal["user", "agent", "environment"]

_ROLES: Final = get_args(Role)
_HIDDEN: Final = ("_source", "_original")
"""How the keys of a tool begin that tell where it comes from, or how it read before an injection."""

_REPLACED: Final = "dummy_token"
"""Stands in copies of the data for labels of 37 characters or more; only one risk source is that long."""

_SPELLINGS: Final = {
    "unconfirmed_or_overprivileged_action": "unconfirmed_or_over_privileged_action",
    "reputation_and_interpersonal_harm": "reputational_and_interpersonal_harm",
}
"""How the schema of 300 rows spells two labels. It is no alias in answers, which would change scores."""

_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the recorded agent had, as it was described to that agent."""

    name: str
    description: str
    parameters: Json


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. A user or the environment has `content`, an agent a thought or an action; null reads as empty."""

    role: Role
    content: str
    thought: str = ""
    action: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded trajectory.

    Attributes:
        key: A hash of what the agent may see, so that the key reveals neither the label nor the position in the file.
        profile: What the agent is, in a sentence; "" where the data does not say.
        tools: The agent's tools; None where the data does not hold them.
        conversations: Turns, in one conversation mostly.
        unsafe: The gold label of the whole trajectory.
        gold: Dimension -> gold label, of unsafe rows; None where the data has no label of the taxonomy.
    """

    key: str
    profile: str
    tools: tuple[Tool, ...] | None
    conversations: tuple[tuple[Turn, ...], ...]
    unsafe: bool
    gold: Mapping[str, str | None]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of all conversations."""
        return tuple(turn for turns in self.conversations for turn in turns)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one file.

    Attributes:
        rows: In the order of their keys, which is a fixed shuffle: files may be sorted by label.
        masked: Dimension -> number of unsafe rows without a gold label of the taxonomy.
        replaced: Number of risk sources that were put back in for a placeholder.
    """

    rows: tuple[Row, ...]
    masked: Mapping[str, int]
    replaced: int


def read_rows(path: Path, content: bytes, *, dimensions: bool = True) -> Table:
    """Reads a file's rows.

    Args:
        path: Stands in error messages.
        content: The file's bytes.
        dimensions: Whether the rows are ATBench's, with tools and labels in its dimensions.

    Raises:
        DataError: The file is not a JSON list of such records; the message names file, record and field.
    """
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} must hold a JSON list with at least one record")
    seen: set[Json] = set()
    by_key: dict[str, Row] = {}
    replaced = 0
    for number, data in enumerate(records):
        record = _Record(f"{path}, record {number}", data)
        record.identify(seen)
        try:
            row = record.row() if dimensions else record.bare_row()
        except RecursionError as error:
            raise DataError(f"{path}, record {number}, field tool_used: parameters are nested too deeply") from error
        replaced += "risk_source" in row.gold and data["risk_source"] == _REPLACED
        key, twin = row.key, 1
        while key in by_key:
            twin += 1
            key = f"{row.key}-{twin}"
        by_key[key] = dataclasses.replace(row, key=key)
    rows = tuple(by_key[key] for key in sorted(by_key))
    masked = Counter(name for row in rows for name, label in row.gold.items() if label is None)
    return Table(rows, {name: masked[name] for name in DIMENSIONS}, replaced)


class _Record:
    """One record of a file: reads its fields, and says which one is wrong.

    Args:
        where: The file and the record's number, from 0.
        data: The record.
    """

    def __init__(self, where: str, data: Json) -> None:
        self._where = where
        if not isinstance(data, dict):
            raise DataError(f"{where}: must be an object, not {type(data).__name__}")
        self._data: dict[str, Any] = data

    def identify(self, seen: set[Json]) -> None:
        """Checks that the record has an id, and that none before it has the same."""
        field = "conv_id" if "conv_id" in self._data and "id" not in self._data else "id"
        value = self._get(self._data, field, field)
        if isinstance(value, bool) or not isinstance(value, int | str):
            self._fail(field, f"must be a number or a string, not {type(value).__name__}")
        if value in seen:
            self._fail(field, f"another record has {json.dumps(value)[:80]} as well")
        seen.add(value)

    def row(self) -> Row:
        """Reads a row of ATBench's schemas."""
        data = self._data
        listed = self._list(self._get(data, "tool_used", "tool_used"), "tool_used")
        tools = tuple(self._tool(tool, f"tool_used[{i}]") for i, tool in enumerate(listed))
        conversations, unsafe = self._conversations(), self._unsafe()
        fields = {name: name for name in DIMENSIONS}
        if "harm_type" in data and "real_world_harm" not in data:
            fields["real_world_harm"] = "harm_type"
        named = {name: self._text(data, field, field) for name, field in fields.items()}
        gold = {name: _gold(name, given) for name, given in named.items()} if unsafe else {}
        return Row(_key(tools, conversations), "", tools, conversations, unsafe, gold)

    def bare_row(self) -> Row:
        """Reads a row of R-Judge or ASSEBench; what else it says of its risk gives the label away."""
        profile = self._text(self._data, "profile", "profile") if "profile" in self._data else ""
        conversations = self._conversations()
        return Row(_key(profile, conversations), profile, None, conversations, self._unsafe(), {})

    def _conversations(self) -> tuple[tuple[Turn, ...], ...]:
        data = self._data
        field = "content" if "content" in data and "contents" not in data else "contents"
        conversations = tuple(
            tuple(self._turn(turn, f"{field}[{i}][{j}]") for j, turn in enumerate(self._list(turns, f"{field}[{i}]")))
            for i, turns in enumerate(self._list(self._get(data, field, field), field))
        )
        if not any(conversations):
            self._fail(field, "holds no turn")
        return conversations

    def _unsafe(self) -> bool:
        label = self._get(self._data, "label", "label")
        if type(label) is not int or label not in (0, 1):
            self._fail("label", f"must be 0 or 1, not {json.dumps(label)[:80]}")
        return bool(label)

    def _tool(self, tool: Json, field: str) -> Tool:
        tool = self._object(tool, field)
        name = self._text(tool, "name", f"{field}.name")
        description = self._text(tool, "description", f"{field}.description")
        return Tool(name, description, _shown(tool.get("parameters")))

    def _turn(self, turn: Json, field: str) -> Turn:
        turn = self._object(turn, field)
        role = self._get(turn, "role", f"{field}.role")
        if role not in _ROLES:
            self._fail(f"{field}.role", f"must be one of {', '.join(_ROLES)}, not {json.dumps(role)[:80]}")
        if role != "agent":
            return Turn(role, self._text(turn, "content", f"{field}.content"))
        names = [name for name in ("content", "thought", "action") if name in turn]
        if not names:
            self._fail(field, "an agent's turn needs a thought or an action")
        return Turn(role, **{"content": "", **{name: self._text(turn, name, f"{field}.{name}") for name in names}})

    def _get(self, data: Mapping[str, Any], name: str, field: str) -> Any:
        if name not in data:
            self._fail(field, "is missing")
        return data[name]

    def _text(self, data: Mapping[str, Any], name: str, field: str) -> str:
        value = self._get(data, name, field)
        if value is not None and not isinstance(value, str):
            self._fail(field, f"must be a string, not {type(value).__name__}")
        return value or ""

    def _list(self, value: Any, field: str) -> list[Any]:
        if not isinstance(value, list):
            self._fail(field, f"must be a list, not {type(value).__name__}")
        return value

    def _object(self, value: Any, field: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(field, f"must be an object, not {type(value).__name__}")
        return value

    def _fail(self, field: str, problem: str) -> NoReturn:
        raise DataError(f"{self._where}, field {field}: {problem}")


def _gold(dimension: str, given: str) -> str | None:
    if dimension == "risk_source" and given == _REPLACED:
        (label,) = (label for label in DIMENSIONS[dimension] if len(label) >= 37)
        return label
    return find_label(dimension, _SPELLINGS.get(given, given))


def _shown(value: Json) -> Json:
    """Leaves out what the recorded agent did not see of a tool."""
    if isinstance(value, dict):
        return {name: _shown(item) for name, item in value.items() if not name.startswith(_HIDDEN)}
    return [_shown(item) for item in value] if isinstance(value, list) else value


def _key(agent: tuple[Tool, ...] | str, conversations: tuple[tuple[Turn, ...], ...]) -> str:
    """Hashes what is shown: the agent's tools or its profile, and the turns."""
    visible = [
        agent if isinstance(agent, str) else [[tool.name, tool.description, tool.parameters] for tool in agent],
        [[[turn.role, turn.content, turn.thought, turn.action] for turn in turns] for turns in conversations],
    ]
    return hashlib.sha256(json.dumps(visible, sort_keys=True).encode()).hexdigest()[:_DIGITS]
