"""The JSON Schemas of the documentation say the same as the codecs of fate-gym."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from small_runs import make_run

from fate_gym.episode import SCHEMA, Call, Episode, Shown, Trajectory
from fate_gym.errors import RunError
from fate_gym.evaluation import RunFolder
from fate_gym.rewards import AXES, AxisVerdict, Verdict
from fate_gym.storage import Fields
from fate_gym.trainers.stage_file import read_header, write_stage

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
OTHERS: tuple[Any, ...] = (None, True, -1, 2.5, 3, "", "text", [], ["text"], [1], {}, {"odd": 1})
"""Values of every kind, to stand in the place of any other."""


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _full_episode() -> dict[str, Any]:
    """An episode in which every field has something to say."""
    measured = AxisVerdict(0.5, True, "rule/1", ("a call",), "KeyError: x", {"harm_low": 0.25, "seconds": 3.0})
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Ship parcel 1."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "ship", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "shipped"},
    ]
    episode = Episode(
        key="note/shop/ship#0",
        repeat=0,
        task_id="shop/ship",
        mode="attacked",
        suite="shop",
        cluster="shop/ship",
        attack="note",
        metadata={"notes": ["x"]},
        seed=7,
        status="ok",
        error="none",
        ended="answer",
        truncated=False,
        verdict=Verdict(**dict.fromkeys(AXES, measured)),
        injections={"note": "Ship parcel 9."},
        injection_reached=True,
        messages=messages,
        actions=[{"role": "assistant"}],
        calls=(Call(0, "c", "ship", "ok"),),
        usage={"prompt_tokens": 3},
        attempts=1,
        seconds={"total": 0.5, "agent": 0.25},
        shown=Shown(("d",), ("e",), ("look",)),
        trajectory=Trajectory([1], [2, 3], [1, 0], [-0.5, 0.0]),
    )
    return json.loads(json.dumps(episode.to_json(tokens=True)))  # type: ignore[no-any-return]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of everything inside a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _mutants(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the record with one thing removed, replaced or added, for each place in it."""
    for path in _paths(record):
        *parents, last = path
        removed = copy.deepcopy(record)
        del _at(removed, tuple(parents))[last]
        yield f"{path} removed", removed
        for other in OTHERS:
            changed = copy.deepcopy(record)
            _at(changed, tuple(parents))[last] = other
            yield f"{path} = {other!r}", changed
        if isinstance(_at(record, path), dict):
            added = copy.deepcopy(record)
            _at(added, path)["odd"] = "text"
            yield f"{path} with a field more", added
    yield "with a field more", {**record, "odd": 1}


def _is_read(record: dict[str, Any]) -> bool:
    try:
        Episode.from_json(record)
    except RunError:
        return False
    return True


def _lengths_differ(record: dict[str, Any]) -> bool:
    """Whether a trajectory's lists differ in length, which no schema can say."""
    tokens = record.get("trajectory")
    lists = [tokens.get(name) for name in ("completion_ids", "mask", "logprobs")] if isinstance(tokens, dict) else []
    return len({len(entry) for entry in lists if isinstance(entry, list)}) > 1


def test_an_episode_is_valid_exactly_if_it_is_read() -> None:
    valid, record = validator("episode"), _full_episode()
    assert valid.is_valid(record)
    assert _is_read(record)
    unlike = [
        f"{what}: {'read' if _is_read(changed) else 'refused'}"
        for what, changed in _mutants(record)
        if valid.is_valid(changed) != _is_read(changed) and not _lengths_differ(changed)
    ]
    assert unlike == []


def test_the_schema_of_an_episode_names_every_field() -> None:
    schema = validator("episode").schema
    assert set(schema["properties"]) == set(_full_episode())
    assert schema["properties"]["schema"]["const"] == SCHEMA


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with scored episodes, repeats and errors."""
    import shop_plugin

    from fate_gym.agents import as_agent

    calls = 0

    async def moody(observation: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ConnectionError("nobody there")
        return await shop_plugin.clerk(observation)

    settings: dict[str, Any] = {"env": "toy/Parcels-v0", "repeats": 2, "concurrency": 1}
    return make_run(tmp_path_factory.mktemp("run"), as_agent(moody), **settings)


def test_the_files_of_a_run_are_valid(run: Path) -> None:
    folder = RunFolder.read(run)
    validator("manifest").validate(folder.manifest)
    validator("summary").validate(folder.summary())
    episodes, failures = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("episodes.jsonl", "failures.jsonl")
    )
    assert episodes
    assert failures
    assert "pass_hat_k" in folder.summary()["groups"][0]
    for record in (*episodes, *failures):
        validator("episode").validate(record)


@pytest.mark.parametrize("name", ["manifest", "summary"])
def test_the_schema_of_a_file_names_every_field_that_it_has(run: Path, name: str) -> None:
    written = json.loads((run / f"{name}.json").read_text())
    assert set(validator(name).schema["properties"]) == set(written)


def test_the_schema_of_a_summary_names_every_field_of_a_group(run: Path) -> None:
    named = set(validator("summary").schema["$defs"]["group"]["properties"])
    groups = RunFolder.read(run).summary()["groups"]
    assert named - {"content_filtered"} == {field for group in groups for field in group}


def test_the_header_of_a_stage_file_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "collect.jsonl"
    write_stage(path, "fate-gym/train-collect/2", [], inputs={"seed": 0}, counts={"failed": 0})
    header: Fields = read_header(path, "fate-gym/train-collect/2")
    validator("stage-header").validate(header.values)
    assert set(validator("stage-header").schema["properties"]) == set(header.values)
