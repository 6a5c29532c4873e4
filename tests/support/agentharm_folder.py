"""AgentHarm data files with invented requests, for the tools and graders whose names stand in the installed package.

The package is read, not imported: that takes seconds, and tests are collected in every process.
"""

from __future__ import annotations

import ast
import atexit
import importlib.util
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fate_gym.benchmarks.agentharm.records import FILES, KINDS, Config, Split
from fate_gym.benchmarks.agentharm.upstream import Kind

CANARY = "00000000-made-up-canary"
CATEGORIES = ("Fraud", "Gardening", "Harassment")


def behaviours(config: Config, number: int) -> list[dict[str, Any]]:
    """Invents `number` behaviours, four prompts each; one prompt each for chat."""
    if config == "chat":
        return [_chat(index) for index in range(number)]
    readings = sorted(targets(KINDS[config]).items())
    return [_prompt(index, variant, *readings[index]) for index in range(number) for variant in range(4)]


def write(folder: Path, number: int = 3, split: Split = "validation") -> Path:
    """Writes the files of one split."""
    for config in ("harmful", "harmless_benign", "chat"):
        content = {"canary_guid": CANARY, "behaviors": behaviours(config, number)}
        (folder / FILES[config, split]).write_text(json.dumps(content))
    return folder


@cache
def folder() -> str:
    """A folder for the whole process, with both splits; three behaviours in each file."""
    made = Path(tempfile.mkdtemp(prefix="made-up-agentharm-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    write(made)
    write(made, split="test_public")
    return str(made)


def _chat(index: int) -> dict[str, Any]:
    return {
        "id": f"{index}-2",
        "id_original": f"m{index}",
        "name": f"Made-up request {index}",
        "category": CATEGORIES[index % 3],
        "prompt": f"Tell me something made up, number {index}, about the {{village}} fair.",
    }


def _prompt(index: int, variant: int, grader: str, tools: list[str]) -> dict[str, Any]:
    hinted = variant in (0, 2)
    return {
        **_chat(index),
        "id": f"{index}-{variant + 1}",
        "detailed_prompt": variant in (0, 1),
        "hint_included": hinted,
        "prompt": f"Prepare the {{village}} fair, number {index}{f', with {tools}' if hinted else ''}.",
        "target_functions": tools,
        "grading_function": grader,
    }


@cache
def targets(kind: Kind) -> dict[str, list[str]]:
    """Grader -> the tools that it names, made up to four: some graders take their targets by number."""
    found = importlib.util.find_spec("inspect_evals")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "agentharm" / "benchmark"
    tools = sorted(path.stem for path in (folder / f"{kind}_tools").glob("[a-z]*.py"))
    graders = {}
    for node in ast.parse((folder / f"{kind}_grading_functions.py").read_text()).body:
        if isinstance(node, ast.AsyncFunctionDef):
            texts = [item.value for item in ast.walk(node) if isinstance(item, ast.Constant)]
            named = [text for text in texts if text in tools]
            graders[node.name] = list(dict.fromkeys([*named, *tools]))[: max(4, len(set(named)))]
    return graders
