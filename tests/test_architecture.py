"""The directions of imports that docs/architecture.md draws, and that there is no circle among modules."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]

# Which layers each layer may import, besides itself.
ALLOWED = {
    "core": set(),
    "agents": {"core"},
    "trainers": {"core", "agents"},
    "leaderboards": {"core", "agents"},
    "integrations": {"core", "agents"},
    "configs": set(),
    "interface": {"core", "agents"},
    "wrappers": {"core", "agents"},
    "cli": {"core", "agents", "trainers", "leaderboards", "configs"},
}
# Who must know nothing of whom within a layer, although the direction would allow it.
STRANGERS = [
    ("fate_gym.serving", "fate_gym.evaluation"),
    ("fate_gym.storage", "fate_gym.evaluation"),
    ("fate_gym.verifiers", "fate_gym.benchmarks"),
]

HEAVY = {
    "agentdojo",
    "aiohttp",
    "datasets",
    "inspect_ai",
    "inspect_evals",
    "openai",
    "openenv",
    "peft",
    "ray",
    "torch",
    "transformers",
    "trl",
    "verifiers",
}


def _sources() -> dict[str, Path]:
    """The file of each module, by the name under which it is imported."""
    modules = {}
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join([package, *parts]).removesuffix(".__init__")] = path
    return modules


SOURCES = _sources()


def _imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, at once or inside of functions, but not for the type checker alone."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [name if (name := f"{node.module}.{part}") in SOURCES else str(node.module) for part in names]
        yield from (name for name in names if name in SOURCES)


GRAPH = {module: set(_imports(path)) - {module} for module, path in SOURCES.items()}


def _layer(module: str) -> str:
    second = [*module.split("."), ""][1]
    if second == "__main__":
        return "cli"
    return second if second in ALLOWED else "core"


def test_imports_go_one_way() -> None:
    wrong = {
        f"{module} -> {imported}"
        for module, imports in GRAPH.items()
        for imported in imports
        if _layer(imported) not in {_layer(module), *ALLOWED[_layer(module)]}
    }
    assert not wrong


@pytest.mark.parametrize(("package", "stranger"), STRANGERS)
def test_parts_of_the_core_that_do_not_know_each_other(package: str, stranger: str) -> None:
    wrong = {
        f"{module} -> {imported}"
        for module, imports in GRAPH.items()
        for imported in imports
        if f"{module}.".startswith(f"{package}.") and f"{imported}.".startswith(f"{stranger}.")
    }
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter(GRAPH).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_each_folder_with_code_is_a_package_of_the_wheel() -> None:
    packages = {module for module, path in SOURCES.items() if path.name == "__init__.py"}
    assert packages == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("module", ["fate_gym.agents", "fate_gym.cli"])
def test_importing_loads_neither_a_benchmark_nor_anything_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint(HEAVY)
    assert not [name for name in loaded if name.startswith("fate_gym.benchmarks.")]


def test_importing_the_package_adds_a_little_to_gymnasium_and_no_third_party() -> None:
    code = "import sys, gymnasium; print(*sys.modules); import fate_gym; print(*sys.modules); print(*dir(fate_gym))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    gymnasium, both, names = (set(line.split()) for line in done.stdout.splitlines())
    added = both - gymnasium
    assert len(added) <= len(gymnasium) / 4
    assert {name.partition(".")[0] for name in added} - sys.stdlib_module_names == {"fate_gym"}
    # What is loaded later is there for completion all the same.
    import fate_gym

    assert set(fate_gym.__all__) <= names
    assert all(hasattr(fate_gym, name) for name in fate_gym.__all__)
