"""The fast loader of AgentDojo's environments.

AgentDojo parses and validates a suite's whole environment for every episode. A `SuiteTemplate` parses it once and
keeps the few strings that hold a placeholder as source text; for each set of injections it reads those alone,
validates once, and keeps the environment packed, from which an episode starts in well under a millisecond.
"""

import functools
import importlib.resources
import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from agentdojo.functions_runtime import TaskEnvironment
from agentdojo.task_suite.task_suite import InjectionVector, TaskSuite
from agentdojo.yaml_loader import ImportLoader

from fate_gym.benchmarks.agentdojo.emails import remembered_emails
from fate_gym.benchmarks.agentdojo.packed import PackedEnvironment
from fate_gym.benchmarks.agentdojo.placement import PlacementError, read_quoted

_CACHED_ENVIRONMENTS = 1024
# libyaml's parser reads PyYAML's own dump ten times faster. Injected texts go through the Python one, as in AgentDojo.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Prepare = Callable[[TaskEnvironment], TaskEnvironment]


class SuiteTemplate:
    """Makes the initial environments of a suite, equal to `TaskSuite.load_and_inject_default_environment`.

    One template may serve several threads.

    Args:
        suite: Any task suite, AgentDojo's own or one with a `data_path`.

    Raises:
        ValueError: If AgentDojo's loader could not format the suite's environment either.
    """

    def __init__(self, suite: TaskSuite) -> None:
        self.vectors: dict[str, str] = {
            vector: InjectionVector.model_validate(info).default
            for vector, info in yaml.load(_read_suite_file(suite, "injection_vectors.yaml"), _SafeLoader).items()  # noqa: S506
        }
        self._environment_type: type[TaskEnvironment] = suite.environment_type
        self._data, self._holes = _parse(_read_suite_file(suite, "environment.yaml"))
        self._packed = functools.lru_cache(_CACHED_ENVIRONMENTS)(self._pack)

    def environment(self, injections: Mapping[str, str], prepare: Prepare | None = None) -> PackedEnvironment:
        """Returns an initial environment.

        Args:
            injections: Injection vector -> raw text, as AgentDojo takes them; other vectors keep their default.
            prepare: The task's own `init_environment`, where it has one.

        Raises:
            ValueError: If a vector is unknown, or its text cannot be placed; the message names the vector.
        """
        if unknown := sorted(injections.keys() - self.vectors.keys()):
            raise ValueError(f"unknown injection vectors {unknown}; this suite has {sorted(self.vectors)}")
        return self._packed(tuple(sorted(injections.items())), prepare)

    def _pack(self, injections: tuple[tuple[str, str], ...], prepare: Prepare | None) -> PackedEnvironment:
        injected = dict(injections)
        values = {**self.vectors, **injected}
        texts = {hole: hole.read(values, injected) for hole in self._holes}
        with remembered_emails():
            environment = self._environment_type.model_validate(_fill(self._data, texts))
        return PackedEnvironment.pack(environment if prepare is None else prepare(environment))


class _Hole:
    """A double-quoted string of the environment that holds placeholders."""

    def __init__(self, source: str, key: bool) -> None:
        self.source = source
        self.key = key
        self.vectors = [name for _, name, _, _ in string.Formatter().parse(source) if name]

    def read(self, values: Mapping[str, str], injected: Mapping[str, str]) -> str:
        try:
            return read_quoted(self.source.format(**values), key=self.key)
        except PlacementError as error:
            guilty = [vector for vector in self.vectors if vector in injected]
            raise ValueError(f"injection vector {' or '.join(guilty)}: {error}") from None


class _TemplateLoader(_SafeLoader):  # type: ignore[misc]
    """A YAML loader that leaves a `_Hole` where a string holds placeholders."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source
        self.holes: list[_Hole] = []

    def construct_text(self, node: yaml.ScalarNode) -> Any:
        end = node.end_mark.index
        source = self.source[node.start_mark.index : end]
        if "{" not in source and "}" not in source:
            return self.construct_scalar(node)
        self.holes.append(_Hole(source, key=self.source[end] == ":"))
        return self.holes[-1]


_TemplateLoader.add_constructor("tag:yaml.org,2002:str", _TemplateLoader.construct_text)


def _parse(source: str) -> tuple[Any, list[_Hole]]:
    loader = _TemplateLoader(source)
    try:
        data = loader.get_single_data()
    finally:
        loader.dispose()
    if sum(map(source.count, "{}")) != sum(hole.source.count(brace) for hole in loader.holes for brace in "{}"):
        raise ValueError("AgentDojo cannot load this suite: its environment.yaml holds an empty mapping, `{}`")
    return data, loader.holes


def _fill(data: Any, texts: Mapping[_Hole, str]) -> Any:
    if isinstance(data, _Hole):
        return texts[data]
    if isinstance(data, dict):
        return {_fill(key, texts): _fill(value, texts) for key, value in data.items()}
    if isinstance(data, list):
        return [_fill(item, texts) for item in data]
    return data


def _read_suite_file(suite: TaskSuite, name: str) -> str:
    """`agentdojo.task_suite.task_suite.read_suite_file`, which reads in the locale's encoding, in UTF-8."""
    if suite.data_path is not None:
        data = _read_yaml(suite.data_path / name)
    else:
        resource = importlib.resources.files("agentdojo") / "data" / "suites" / suite.name / name
        with importlib.resources.as_file(resource) as path:
            data = _read_yaml(path)
    return str(yaml.dump(data, default_flow_style=False))


def _read_yaml(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, _Utf8ImportLoader)  # noqa: S506 - a safe loader


class _Utf8ImportLoader(ImportLoader):  # type: ignore[misc]
    """AgentDojo's loader of `!include`, in UTF-8."""

    def construct_include(self, node: yaml.ScalarNode) -> Any:
        path = Path(self._root, str(self.construct_scalar(node)))
        match path.suffix:
            case ".yaml" | ".yml":
                return _read_yaml(path)
            case ".json":
                return json.loads(path.read_text(encoding="utf-8"))
        return path.read_text(encoding="utf-8")


_Utf8ImportLoader.add_constructor("!include", _Utf8ImportLoader.construct_include)
