"""The parts of pages that the code writes: one function a part, which returns Markdown."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fate_gym.arguments import Argument

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"

LINE: Final = 94
"""Characters of a line of code that a wide screen shows without scrolling."""

SITE_PAGES: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "leaderboards/README.md": "leaderboards.md",
}
"""Files of the repository that are pages of the site, and where."""

_COMMENT: Final = re.compile(r"^<!-- generated: (\S+)((?: \S+)*) -->$", re.MULTILINE)
_LINK: Final = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def expand(text: str, page: str) -> str:
    """Replaces each comment `<!-- generated: PART ARGUMENTS -->` by its part, and links to files by links to pages.

    Args:
        text: The page.
        page: Its name in the site, such as "tutorials/loop".
    """
    folder = (DOCS / page).parent
    text = site_links(text, folder, folder)
    return _COMMENT.sub(lambda match: PARTS[match[1]](*match[2].split()), text)


def site_links(text: str, folder: Path, page_folder: Path) -> str:
    """Makes the relative links of a file lead to pages of the site; what is no page loses its link.

    Args:
        text: The file.
        folder: Where it lies.
        page_folder: Where the page lies that it becomes.
    """

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if not target or not (folder / target).exists():
            return match[0]
        name = os.path.relpath(folder / target, ROOT)
        page = DOCS / SITE_PAGES[name] if name in SITE_PAGES else ROOT / name
        return f"[{label}]({os.path.relpath(page, page_folder)}{anchor})" if page.is_relative_to(DOCS) else label

    return _LINK.sub(link, text)


def file(name: str) -> str:
    """A file of the repository as a page."""
    return site_links((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent, DOCS)


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; line breaks and bars in cells are harmless."""
    lines = [list(titles), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Text between backticks, more of them than the text has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def command_line() -> str:
    """Every command with every option, as `--help` shows them."""
    from fate_gym.cli.main import make_parser

    return "\n\n".join(_commands(make_parser()))


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser.formatter_class(parser.prog, width=LINE)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    usage = formatter.format_help().strip()
    yield f"## `{parser.prog}`\n\n{_paragraphs(parser.description)}\n\n```text\n{usage}\n```"
    commands: dict[str, argparse.ArgumentParser] = {}
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                commands.update(action.choices)
            elif not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
                rows.append((code(formatter._format_action_invocation(action)), _help(formatter, action)))
        if rows:
            yield table((str(group.title), "meaning"), rows)
    if parser.epilog:
        yield f"```text\n{parser.epilog.rstrip()}\n```"
    for command in commands.values():
        yield from _commands(command)


def _help(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    return formatter._expand_help(action) if action.help else ""


def _paragraphs(text: str | None) -> str:
    return " ".join((text or "").split())


def environment(env_id: str) -> str:
    """An environment's arguments, as `fate-gym envs ID` lists them."""
    from fate_gym.catalogue import environment_page

    page = environment_page(env_id)
    return "\n\n".join(
        [
            _arguments(page.arguments),
            "Every environment also takes the arguments of the episode loop; the defaults are those of this one.",
            _arguments(page.loop_arguments),
        ]
    )


def agent(spec: str) -> str:
    """The options of an agent, as `--agent-arg` takes them."""
    from fate_gym.agents import describe_agent

    return _arguments(describe_agent(spec).arguments)


def _arguments(arguments: Iterable[Argument]) -> str:
    rows = [
        (code(each.name), each.type, code(each.default) if each.default is not None else "required", _meaning(each))
        for each in arguments
    ]
    return table(("argument", "type", "default", "meaning"), rows)


def _meaning(argument: Argument) -> str:
    accepted = ", ".join(map(code, argument.accepted))
    return f"{argument.meaning} Accepts {accepted}." if accepted else argument.meaning


def names(of: str) -> str:
    """What there is of a kind: agents, defences or attacks."""
    from fate_gym.agents import SPECS
    from fate_gym.agents.defences import DEFENCES
    from fate_gym.benchmarks.agentdojo.attacks import DESCRIPTIONS, attack_names

    listed: Mapping[str, str] = {
        "agents": SPECS,
        "defences": DEFENCES,
        "attacks": {name: DESCRIPTIONS.get(name, "") for name in attack_names()},
    }[of]
    return table((of.removesuffix("s"), "what it does"), ((code(name), text) for name, text in listed.items()))


def metrics(mode: str) -> str:
    """The metrics of a mode, in the order of tables."""
    from fate_gym.evaluation.metrics import METRICS

    better = {"up": "higher", "down": "lower", "": "neither"}
    rows = ((code(each.name), each.meaning, better[each.direction]) for each in METRICS[mode])
    return table(("metric", "meaning", "better"), rows)


def methods() -> str:
    """FATE and its baselines."""
    from fate_gym.trainers.methods import METHODS

    return table(("method", "what it learns from"), ((code(name), each.summary) for name, each in METHODS.items()))


def grader_notes() -> str:
    """AgentDojo's tasks whose graders are in doubt, and why."""
    from fate_gym.benchmarks.agentdojo import grader_notes as known
    from fate_gym.benchmarks.agentdojo.upstream import suites

    tasks: dict[str, list[str]] = {note: [] for note in known.MEANING}
    for name, suite in suites("v1.2.2").items():
        for task_id in (*suite.user_tasks, *suite.injection_tasks):
            for note in known.notes(name, task_id):
                tasks[note].append(f"{name}/{task_id}")
    rows = ((code(note), meaning, ", ".join(tasks[note])) for note, meaning in known.MEANING.items())
    return table(("note", "meaning", "tasks"), rows)


def schema(name: str) -> str:
    """The fields of a file, from its JSON Schema."""
    folder = ROOT / "leaderboards" if name.startswith("submission") else DOCS / "schemas"
    described = json.loads((folder / name).read_text(encoding="utf-8"))
    rows = [(code(path), kind, meaning) for path, kind, meaning in _fields(described, described, "")]
    return f"{described['description']}\n\n{table(('field', 'type', 'meaning'), rows)}"


def _fields(whole: Mapping[str, Any], part: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    for name, field in part.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        target = _resolved(whole, field)
        meaning = field.get("description") or target.get("description", "")
        required = "" if name in part.get("required", ()) else " (optional)"
        yield place, f"{_kind(whole, field)}{required}", meaning
        inner = _resolved(whole, target.get("items", {})) if "items" in target else target
        yield from _fields(whole, inner, f"{place}[]" if "items" in target else place)


def _resolved(whole: Mapping[str, Any], field: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in field:
        return field
    resolved: Mapping[str, Any] = whole["$defs"][field["$ref"].rpartition("/")[2]]
    return resolved


def _kind(whole: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    field = _resolved(whole, field)
    if "const" in field:
        return code(field["const"])
    if "enum" in field:
        return " or ".join(code(str(value)) for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_kind(whole, choice) for choice in field["anyOf"])
    kinds = field.get("type", "anything")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    return f"{kind} of {_kind(whole, field['items'])}" if "items" in field else kind


def api(package: str) -> str:
    """The public names of a package, from its docstrings; what `fate_gym` has too is described there alone."""
    module, top = importlib.import_module(package), importlib.import_module("fate_gym")
    above = [name for name in module.__all__ if module is not top and name in top.__all__]
    parts = [f"See `fate_gym` for {', '.join(map(code, above))}."] if above else []
    parts += [
        f"```{{eval-rst}}\n{_directive(package, name, module)}\n```" for name in module.__all__ if name not in above
    ]
    return "\n\n".join(parts)


def _directive(package: str, name: str, module: ModuleType) -> str:
    value = getattr(module, name)
    if inspect.isclass(value):
        members = "" if issubclass(value, BaseException) else "\n   :members:"
        return f".. autoclass:: {package}.{name}{members}"
    if inspect.isroutine(value):
        return f".. autofunction:: {package}.{name}"
    # What a value means stands beside its definition, where Sphinx looks for it.
    shown = "" if len(repr(value)) < LINE else "\n   :no-value:"
    return f".. autodata:: {_home(module, name)}.{name}{shown}"


def _home(module: ModuleType, name: str) -> str:
    """Returns the module from which a package takes a name."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return str(node.module)
    return module.__name__


PARTS: Final[Mapping[str, Callable[..., str]]] = {
    "agent": agent,
    "api": api,
    "command-line": command_line,
    "environment": environment,
    "file": file,
    "grader-notes": grader_notes,
    "methods": methods,
    "metrics": metrics,
    "names": names,
    "schema": schema,
}
