"""Every field of every file of an honest run, changed in every way: `verify` notices, or lists it as unknown.

The fields are found by walking the files, so that a new one is tried as soon as a run has it. The fast run tries a
sample, the slow one everything.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from small_runs import edit_line, redigest, resummarise

from fate_gym.agents.defences import InjectionDetector, defend
from fate_gym.agents.scripted import Gullible
from fate_gym.env import Observation
from fate_gym.errors import FateGymError
from fate_gym.evaluation import EvalConfig, run_evaluation
from fate_gym.leaderboards import fields
from fate_gym.leaderboards.fields import Field, Knowledge
from fate_gym.leaderboards.verification import verify
from fate_gym.rewards import Verdict
from fate_gym.rollout import Agent, Reply, Session
from fate_gym.task import Task

Json = Any
Keys = tuple[str | int, ...]

FILES: Final = [name for name in fields.FILES if name != "recorded.jsonl"]
"""What imported runs have besides is tested where they are made."""

RAW: Final = "a place for text that no codec writes"
HUGE: Final = 10**400
SAMPLE: Final = 25


class Careless(Agent):
    """Gullible, and able to say that it needs every tool."""

    name, privileged = "careless", True

    def start(self, task: Task, seed: int) -> Session:
        return _Careless(Gullible().start(task, seed))


class _Careless:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def act(self, observation: Observation) -> Reply:
        if "filter the list of tools" in observation["messages"][-1]["content"]:
            return Reply("look, ship and cancel")
        return await self._session.act(observation)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a failure, with defences, and with everything that a record may hold."""
    run = tmp_path_factory.mktemp("honest") / "run"
    detector = InjectionDetector(lambda text: "7" in text, "sevens")
    agent = defend(Careless(), "tool_filter", "spotlighting", detector)
    config = EvalConfig("careless", env="toy/Parcels-v0", defences=agent.defences, out=run)
    asyncio.run(run_evaluation(config, agent))
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "cost_usd": 0.01, "left_out": 1}
    edit_line(run / "episodes.jsonl", lambda record: record["mode"] == "attacked", lambda r: r.update(usage=usage))
    record = json.loads((run / "episodes.jsonl").read_text().splitlines()[0])
    record |= {"status": "provider_error", "error": "out of quota", "ended": None, "actions": [], "calls": []}
    record |= {"messages": record["messages"][:1], "injection_reached": False}
    record["verdict"] = Verdict.unscored("out of quota").to_json()
    del record["shown"]
    (run / "failures.jsonl").write_text(json.dumps(record) + "\n")
    submission = {"schema": "fate-gym/submission/1", "who": "Ada", "model": "m", "date": "2026-11-23", "notes": "none"}
    (run / "submission.yaml").write_text(json.dumps({**submission, "contaminated_by": ["AgentHarm/validation"]}))
    resummarise(run)
    assert verify(run).differences == []
    return run


@dataclass(frozen=True)
class Forgery:
    """A changed value.

    Attributes:
        name: The field, as `fields` writes it, and what was done to it.
        field: Its entry in the table.
        kind: What was done.
        text: The record, as it then stands in the file.
    """

    name: str
    field: Field
    kind: str
    text: str

    @property
    def must_be_noticed(self) -> bool:
        """Whether a run that holds it can be no honest one, whatever remains the submitter's word."""
        if self.kind in ("twice", "nan", "infinity"):
            return True
        if self.field.knowledge is Knowledge.BOUNDED:
            return self.kind in ("retyped", "negative", "huge")
        return not self.field.doubt


def other(value: Json) -> Json:
    """Another value of the same type, such as a forger would choose."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value != 1 else 0
    if value is None:
        return "something"
    if isinstance(value, str):
        return f"{value}x"
    return ["something", *value] if isinstance(value, list) else {"something": 1}


def retyped(value: Json) -> Json:
    return {"a": 1} if isinstance(value, str | list) or value is None else "text"


def negative(value: Json) -> Json:
    return -abs(value) - 1


def is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


CHANGES: Final[Mapping[str, tuple[Callable[[Json], bool], Callable[[Json], Json]]]] = {
    "other": (lambda value: True, other),
    "retyped": (lambda value: True, retyped),
    "null": (lambda value: value is not None, lambda value: None),
    "negative": (is_number, negative),
    "huge": (is_number, lambda value: HUGE),
}
"""Kind -> which values it is for, and what they become."""


def forgeries(record: Mapping[str, Json], name: str, table: Mapping[str, Field]) -> Iterator[Forgery]:
    """Yields all changes of all fields of a record.

    Args:
        record: The record.
        name: Its file.
        table: What is known of its fields.
    """
    nan, infinity = (".nan", ".inf") if name.endswith("yaml") else ("NaN", "1e999")
    for path, keys, value in fields_of(record):
        entry = field_of(path, table)
        assert entry is not None, f"{name} has a field {path} that is in no table"
        for kind, (fits, change) in CHANGES.items():
            if fits(value):
                yield Forgery(f"{path}: {kind}", entry, kind, json.dumps(replaced(record, keys, change(value))))
        for kind, raw in (("nan", nan), ("infinity", infinity)):
            if is_number(value):
                text = json.dumps(replaced(record, keys, RAW)).replace(json.dumps(RAW), raw)
                yield Forgery(f"{path}: {kind}", entry, kind, text)
        yield Forgery(f"{path}: removed", entry, "removed", json.dumps(removed(record, keys)))
        if isinstance(keys[-1], str):
            twice = f"{json.dumps(other(value))}, {json.dumps(keys[-1])}: {json.dumps(value)}"
            text = json.dumps(replaced(record, keys, RAW)).replace(json.dumps(RAW), twice)
            yield Forgery(f"{path}: twice", entry, "twice", text)
        if isinstance(value, dict):
            more = replaced(record, keys, {**value, "certified": True})
            yield Forgery(f"{path}: added", entry, "added", json.dumps(more))
    yield Forgery("added", Field(Knowledge.RECOMPUTED), "added", json.dumps({**record, "certified": True}))


def fields_of(record: Mapping[str, Json]) -> Iterator[tuple[str, Keys, Json]]:
    """Yields each field once: of a list's entries of one kind, the first that has it."""
    seen = set()
    for path, keys, value in places(record):
        kind = re.sub(r"\[\d+\]", "[]", path), type(value)
        if kind not in seen:
            seen.add(kind)
            yield path, keys, value


def places(value: Json, name: str = "", keys: Keys = ()) -> Iterator[tuple[str, Keys, Json]]:
    """Yields (path as `fields` writes it, keys, value) of everything inside a value."""
    entries: Json = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        below = f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}" if name else key
        yield below, (*keys, key), entry
        yield from places(entry, below, (*keys, key))


def field_of(path: str, table: Mapping[str, Field]) -> Field | None:
    """Returns the entry that covers a path; for a part of the record that several cover, the weakest of them."""
    below = [table[name] for name in table if name == path or name.startswith(f"{path}.")]
    if below:
        return max(below, key=lambda entry: bool(entry.doubt))
    names = [name for name in table if path == name or path.startswith((f"{name}.", f"{name}["))]
    return table[max(names, key=len)] if names else None


def replaced(record: Mapping[str, Json], keys: Keys, new: Json) -> Json:
    twin, place = _at(record, keys)
    place[keys[-1]] = new
    return twin


def removed(record: Mapping[str, Json], keys: Keys) -> Json:
    twin, place = _at(record, keys)
    del place[keys[-1]]
    return twin


def _at(record: Mapping[str, Json], keys: Keys) -> tuple[Json, Json]:
    """Returns a copy of a record, and what holds the last of the keys in it."""
    twin = json.loads(json.dumps(record))
    place = twin
    for key in keys[:-1]:
        place = place[key]
    return twin, place


def unnoticed(run: Path, name: str, most: int | None) -> list[str]:
    """Forges the fields of one file; returns what `verify` neither notices nor lists."""
    path = run / name
    records = [json.loads(line) for line in path.read_text().splitlines()]
    # The first attacked episode has an injection, and a call for it.
    chosen = 0 if len(records) == 1 else next(i for i, r in enumerate(records) if r["mode"] == "attacked")
    found = list(forgeries(records[chosen], name, fields.FILES[name]))
    if most is not None:
        found = random.Random(0).sample(found, min(most, len(found)))
    before = {file: file.read_text() for file in run.iterdir() if file.is_file()}
    missed = []
    for forgery in found:
        lines = [json.dumps(record) for record in records]
        lines[chosen] = forgery.text
        path.write_text("\n".join(lines) + "\n")
        careful(run, name, forgery)
        if not is_known(run, forgery):
            missed.append(forgery.name)
        for file, text in before.items():
            file.write_text(text)
    return missed


def careful(run: Path, name: str, forgery: Forgery) -> None:
    """Makes what follows from a forged field follow, as a careful forger does."""
    if name == "manifest.json" and not forgery.name.startswith("digest") and forgery.kind in ("other", "added"):
        manifest = json.loads(forgery.text)
        if "env_args" in manifest["config"]:
            redigest(manifest)
            (run / name).write_text(json.dumps(manifest))
            resummarise(run)
    elif name.endswith(".jsonl"):
        resummarise(run)


def is_known(run: Path, forgery: Forgery) -> bool:
    try:
        report = verify(run)
    except FateGymError:
        return True
    return not report.ok or (not forgery.must_be_noticed and forgery.field.doubt in report.unknown)


@pytest.mark.parametrize("name", FILES)
def test_a_sample_of_forged_fields_is_noticed_or_listed(name: str, honest: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(honest, tmp_path / "run"))
    assert unnoticed(run, name, SAMPLE) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_forged_field_is_noticed_or_listed(name: str, honest: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(honest, tmp_path / "run"))
    assert unnoticed(run, name, None) == []
