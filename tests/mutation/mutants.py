"""Mutants of what decides scores: small changes of the code that tests must notice. `make mutants`.

Cosmic Ray makes the mutants. Its own runner starts a new Python for each and finds modules by their path, neither of
which suits this layout: here a forked process imports the mutant in place of the module, and runs the module's tests.

`python mutants.py [--most N] [NAME ...]`: N mutants of each module, all modules if none is named; prints those that
survive. `EXPLAINED` in this file says why some must.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]

MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fate_gym.pareto": ("fate_gym/pareto.py", ("tests/core/test_pareto.py",)),
    "fate_gym.evaluation.metrics": (
        "fate_gym/evaluation/metrics.py",
        ("tests/evaluation/test_metrics.py", "tests/evaluation/test_evaluate.py"),
    ),
    "fate_gym.evaluation.intervals": ("fate_gym/evaluation/intervals.py", ("tests/evaluation/test_intervals.py",)),
    "fate_gym.verifiers.validity": (
        "fate_gym/verifiers/validity.py",
        ("tests/core/test_verifiers.py", "tests/core/test_env.py"),
    ),
    "fate_gym.verifiers.refusal": (
        "fate_gym/verifiers/refusal.py",
        ("tests/core/test_verifiers.py", "tests/agentharm/test_agentharm_judge.py"),
    ),
    "fate_gym.verifiers.fence": ("fate_gym/verifiers/fence.py", ("tests/core/test_fence.py",)),
    "fate_gym.leaderboards.statistics": ("leaderboards/statistics.py", ("tests/leaderboards/test_statistics.py",)),
    "fate_gym.leaderboards.comparison": ("leaderboards/comparison.py", ("tests/leaderboards/test_comparison.py",)),
    "fate_gym.leaderboards.verification": (
        "leaderboards/verification.py",
        (
            "tests/leaderboards/test_verification.py",
            "tests/leaderboards/test_defended_runs.py",
            "tests/leaderboards/test_hostile_folders.py",
            "tests/leaderboards/test_forgeries.py",
        ),
    ),
}
"""Module -> its file, and the tests that must notice."""

EXPLAINED: dict[str, str] = {
    "if self.curve is None or estimate.value is None or estimate.low is None or estimate.high is None:": (
        "the three are None together; the line says so to the type checker"
    ),
    "@dataclass(frozen=True, slots=True)": "both keep programmers from mistakes that no test makes",
    "while (left := ranks == 0).any():": "ranks are never negative",
    "return nowhere_worse & somewhere_better": "of truth values, the product is the conjunction",
    "if points.shape[1] == 1:": "points have one axis at least",
    "one, other = (float(total[i] / total[i + 1]) if total[i + 1] else None for i in (0, 2))": (
        "i is even: i + 1 is i | 1"
    ),
    "seen = abs(float(np.diff(_means(total[None, :], curve)[:, 0])[0]))": "it is the only one",
    "re.IGNORECASE | re.VERBOSE,": "two different bits: or, exclusive or and the sum are the same",
    'elif call.outcome == "tool_error":': 'the other outcomes that come here are "ok", which is less than it',
}
"""A line of code -> why a mutant of it changes nothing that a test could see."""

SECONDS = 30
"""Processor time after which a mutant counts as noticed: it has made the tests go on for ever."""

_LIBRARIES = (
    "pytest", "hypothesis.extra.numpy", "numpy", "scipy.stats", "gymnasium", "yaml", "jinja2", "rich.console",
    "pydantic", "pymoo.indicators.hv", "pymoo.util.nds.non_dominated_sorting", "sklearn.metrics",
    "statsmodels.stats.contingency_tables",
)  # fmt: skip

_LEFT_OUT = ("ExceptionReplacer", "RemoveDecorator", "Variable", "NoOp")


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        line: Number of the line that it changes, from 1.
        before: The line.
        after: What it becomes.
        code: The whole module.
    """

    line: int
    before: str
    after: str
    code: str


def mutants(path: Path, most: int) -> list[Mutant]:
    """Makes mutants of a file: two at most for each place and kind, and a sample of them where there are too many."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    source = path.read_text()
    silent = _silent_lines(source)
    provider = OperatorProvider()
    places: dict[Any, list[tuple[Any, int]]] = defaultdict(list)
    for name in provider:
        if name.startswith(_LEFT_OUT):
            continue
        operator = provider[name]()
        positions = [place for node in ast_nodes(get_ast(source)) for place in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(positions):
            if not silent.intersection(range(start[0], end[0] + 1)):
                places[name.split("_")[0], start].append((operator, occurrence))
    rng = random.Random(0)
    chosen = [pair for pairs in places.values() for pair in rng.sample(pairs, min(2, len(pairs)))]
    rng.shuffle(chosen)
    found = {}
    for operator, occurrence in chosen[:most]:
        code = mutate_code(source, operator, occurrence)
        if code is not None and code != source and _parses(code):
            found[code] = _described(source, code)
    return list(found.values())


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _silent_lines(source: str) -> set[int]:
    """Lines of annotations that nobody evaluates, and of messages."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[Any] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.Raise):
            parts = [node.exc]
        for part in parts:
            if part is not None:
                lines.update(range(part.lineno, part.end_lineno + 1))
    return lines


def _described(source: str, code: str) -> Mutant:
    old, new = source.splitlines(), code.splitlines()
    at = next(i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1])
    return Mutant(at + 1, old[at].strip(), new[at].strip(), code)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives a mutant in place of its module."""

    def __init__(self, name: str, path: Path, code: str) -> None:
        self._name, self._path, self._code = name, str(path), code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._name else None

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:
        return self._code.encode()


def survives(name: str, path: Path, code: str, tests: Sequence[str]) -> bool:
    """Whether a module's tests pass with a mutant in its place."""
    process = os.fork()
    if process == 0:
        code_of_exit = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.alarm(SECONDS * 40)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            sys.meta_path.insert(0, _Finder(name, path, code))
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-m", "not slow"]
            code_of_exit = int(pytest.main([*options, *(str(ROOT / test) for test in tests)]))
        finally:
            os._exit(code_of_exit)
    _, status = os.waitpid(process, 0)
    return status == 0


def visit(name: str, most: int) -> Iterator[tuple[Mutant, bool]]:
    """Yields each mutant of a module and whether it survives."""
    file, tests = MODULES[name]
    path = ROOT / file
    if not survives(name, path, path.read_text(), tests):
        raise SystemExit(f"{name}: its tests fail without any mutant")
    for mutant in mutants(path, most):
        yield mutant, survives(name, path, mutant.code, tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("names", nargs="*", default=list(MODULES))
    options = parser.parse_args()
    # The same draws of hypothesis for each mutant; and heavy libraries are read once, not once a mutant.
    os.environ["CI"] = "true"
    for library in _LIBRARIES:
        importlib.import_module(library)
    survivors: list[str] = []
    counts: dict[str, Counter[str]] = {}
    for name in options.names:
        counts[name] = Counter()
        for mutant, alive in visit(name, options.most):
            explained = alive and mutant.before in EXPLAINED
            counts[name]["explained" if explained else "survived" if alive else "noticed"] += 1
            if alive and not explained:
                survivors.append(f"{MODULES[name][0]}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}")
                print(survivors[-1], flush=True)
        print(json.dumps({name: counts[name]}), flush=True)
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
