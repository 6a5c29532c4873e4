"""Run folders made by hand: episodes with whatever texts a test needs, in the shape that a run writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fate_gym.episode import Episode
from fate_gym.leaderboards import build as build_boards
from fate_gym.leaderboards import find_runs, load_runs
from fate_gym.leaderboards.exports import write_exports
from fate_gym.leaderboards.site import build_site
from fate_gym.rewards import AXES

Record = dict[str, Any]

HOSTILE = (
    "</script><script>window.pwned=1</script>"
    '"><img src=x onerror="window.pwned=1"><svg onload=window.pwned=1><style>*{display:none}</style>'
    '<a href="javascript:window.pwned=1">x</a><iframe src="http://example.invalid/"></iframe>'
    "' onmouseover='window.pwned=1' {{ 7*7 }} {% raw %}"
    "\u202egnp.exe\u202c \u2066\x1b[31mred\x1b]0;title\x07 \x00\u2028\u200b\ud800"
)
"""What a stranger may put into any text."""


def axis(value: float | None, rule: str = "rule/1", **more: Any) -> Record:
    return {"value": 1.0 if value is None else value, "active": value is not None, "rule": rule, **more}


def call(name: str = "send", arguments: str = "{}", id: str = "call_0_0") -> Record:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def record(task: str = "shop/user_task_1/injection_task_0", **fields: Any) -> Record:
    """An episode that went well; `values` are those of the axes, in their order."""
    values = fields.pop("values", (1.0, 1.0, 1.0, 1.0))
    made: Record = {
        "schema": "fate-gym/episode/1",
        "key": f"attack/{task}#0",
        "repeat": 0,
        "task_id": task,
        "mode": "attacked",
        "suite": "shop",
        "cluster": task.rpartition("/")[0],
        "attack": "attack",
        "metadata": {},
        "seed": 1,
        "status": "ok",
        "error": None,
        "ended": "answer",
        "truncated": False,
        "verdict": {name: axis(value) for name, value in zip(AXES, values, strict=True)},
        "injections": {},
        "injection_reached": False,
        "messages": [{"role": "user", "content": "Do it."}, {"role": "assistant", "content": "Done."}],
        "actions": [],
        "calls": [],
        "usage": {},
        "attempts": 1,
        "seconds": {"total": 0.1, "agent": 0.1},
    }
    made |= fields
    Episode.from_json(made)
    return made


def benign(task: str, **fields: Any) -> Record:
    return record(
        task, **{"key": f"none/{task}#0", "mode": "benign", "attack": None, "values": (None, 1, 1, 1), **fields}
    )


def write_run(
    folder: Path,
    episodes: Sequence[Mapping[str, Any]],
    *,
    failures: Iterable[Mapping[str, Any]] = (),
    agent: str = "made-up",
    env: str = "fate/Shop-v0",
    **config: Any,
) -> Path:
    folder.mkdir(parents=True)
    failed = list(failures)
    manifest = {
        "schema": "fate-gym/run/1",
        "config": {"agent": agent, "agent_args": {}, "defences": [], "env": env, "env_args": {}, **config},
        "digest": f"digest of {agent}",
        "versions": {"fate-gym": "0.1.0"},
    }
    summary = {"episodes": {"planned": len(episodes) + len(failed)}}
    for name, lines in (
        ("manifest.json", [manifest]),
        ("summary.json", [summary]),
        ("episodes.jsonl", episodes),
        ("failures.jsonl", failed),
    ):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def build(paths: Sequence[Path], out: Path, *, private: bool = False) -> Path:
    """Does what `fate-gym leaderboard build` does."""
    runs = load_runs(find_runs(paths))
    boards = build_boards(runs)
    write_exports(boards, out)
    build_site(boards, runs, out, private=private)
    return out


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def ids(self) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get("id"))]

    @property
    def links(self) -> list[str]:
        return [value for _, attrs in self.tags for name in ("href", "src") if (value := attrs.get(name))]


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def hostile_run(folder: Path, *, long: int = 5_000_000) -> Path:
    """A run in which every text that a stranger writes is an attack."""
    bad = {"role": "assistant", "content": HOSTILE, "tool_calls": [call(HOSTILE, HOSTILE, HOSTILE)]}
    answered = {"role": "tool", "tool_call_id": HOSTILE, "content": f"before {HOSTILE} after"}
    everything = record(
        HOSTILE,
        key=f"{HOSTILE}#0",
        suite=HOSTILE,
        attack=HOSTILE,
        ended=HOSTILE,
        values=(0.0, 0.5, 0.0, 0.25),
        injections={HOSTILE: HOSTILE},
        injection_reached=True,
        messages=[{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}, bad, answered, bad],
        calls=[{"turn": 0, "id": HOSTILE, "name": HOSTILE, "outcome": "ok"}],
    )
    everything["verdict"]["security"] |= {
        "rule": HOSTILE,
        "evidence": [f"call {HOSTILE}: {HOSTILE}", HOSTILE],
        "measures": {HOSTILE: 1.0},
    }
    everything["verdict"]["utility"] |= {"error": HOSTILE}
    failed = (1.0, 0.0, 1.0, 1.0)
    unbroken = record("long/unbroken/x", values=failed, messages=[{"role": "assistant", "content": "W" * long}])
    hidden = {"role": "tool", "tool_call_id": "x", "content": "\u202e" * 400_000}
    escapes = record("long/escapes/x", values=failed, messages=[hidden])
    requests = [call("t" * 300, '{"x": NaN}', f"c{i}") for i in range(3000)]
    calls = record(
        "many/calls/x", values=failed, messages=[{"role": "assistant", "content": "", "tool_calls": requests}] * 3
    )
    odd = record("odd/odd/x")
    odd["verdict"]["security"]["value"] = 1.5
    broken = record("error/error/x", status="env_error", error=HOSTILE * 100)
    return write_run(
        folder,
        [everything, unbroken, escapes, calls, odd],
        failures=[broken, broken],
        agent=HOSTILE,
        env=f"fate/{HOSTILE}-v0",
        defences=[HOSTILE, HOSTILE],
        agent_args={HOSTILE: HOSTILE * 1000},
    )
