"""Several trainings from one base policy, side by side: FATE, the baselines, the ablations.

Each arm is a few overrides of one configuration, and trains in a folder of its own. The baselines may sample as many
episodes as FATE did, each by the one setting that it has for that. The final cost of an arm stands beside its scores.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fate_gym.errors import FateGymError
from fate_gym.rendering import visible
from fate_gym.storage import make_folder, replace_file
from fate_gym.trainers.config import TrainConfig, read_config
from fate_gym.trainers.gate import NotCompetentError
from fate_gym.trainers.methods import METHODS
from fate_gym.trainers.study.records import Comparison, Row, Summary
from fate_gym.trainers.study.tables import METRICS, estimate_cell, main_name

SCHEMA = "fate-gym/comparison/1"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        about: One line for people.
        overrides: Strings "KEY=VALUE", as `read_config` takes them.
    """

    about: str
    overrides: tuple[str, ...] = ()


_ABLATIONS: Final[Mapping[str, tuple[str, str]]] = {
    "fate-safe-tchebycheff": ("PFPO by the safe-first value", "pfpo.rule=safe-tchebycheff"),
    "fate-safe-ranks": ("PFPO by safe-first ranks", "pfpo.rule=safe-ranks"),
    "fate-weighted-sum": ("FATE with GRPO's advantages", "pfpo.rule=weighted-sum"),
    "fate-gdpo": ("FATE with GDPO's advantages", "pfpo.rule=gdpo"),
    "fate-security-only": ("FATE with advantages of security", "pfpo.rule=security-only"),
    "no-warmup": ("FATE without warm-up", "warmup=null"),
    "weighted-selection": ("repairs by weighted sum", "select.rule=weighted-sum"),
    "random-selection": ("repairs at random", "select.rule=random"),
    "no-over-refusal": ("over-refusal not looked at", "select.over_refusal=false"),
    "no-rescoring": ("repairs taken unverified", "select.rescore=false"),
}
"""FATE with one setting changed, by name: one line for people, and the override."""

ARMS: Final[Mapping[str, Arm]] = {
    **{name: Arm(method.summary, (f"method={name}",)) for name, method in METHODS.items()},
    **{name: Arm(about, ("method=fate", override)) for name, (about, override) in _ABLATIONS.items()},
}
"""Everything that can be compared, by name: the methods, FATE with each advantage rule, and ablations."""

BASELINES: Final = tuple(METHODS)
"""What is compared unless other arms are asked for: the methods."""

Train = Callable[[str, TrainConfig, Path], Summary]
"""Trains an arm (its name, settings and folder) and returns its summary, as `fate.train` does."""


def arm_configs(name: str, overrides: Sequence[str] = (), arms: Sequence[str] = BASELINES) -> dict[str, TrainConfig]:
    """Returns the settings of each arm.

    Args:
        name: The configuration that all arms share: a YAML file or a shipped one.
        overrides: Further strings "KEY=VALUE" for all arms; an arm's own overrides come last.
        arms: Names in `ARMS`.

    Raises:
        ValueError: An arm does not exist or is given twice, or its settings make no sense.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise ValueError(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    if not arms or len(set(arms)) != len(arms):
        raise ValueError(f"give some arms, each once, not {', '.join(arms) or 'none'}")
    return {arm: read_config(name, [*overrides, *ARMS[arm].overrides]) for arm in arms}


def compare(configs: Mapping[str, TrainConfig], out: Path, train: Train) -> Comparison:
    """Trains each arm in `out/arms/NAME`, and writes `out/comparison.json` after each.

    The first arm that is FATE sets the budget of the baselines after it (`at_cost_of`). If an arm fails, its row says
    why, and the other arms are trained all the same; the same call tries it again.

    Args:
        configs: The settings of each arm, by its name; all should start from the same policy.
        out: The folder.
        train: Trains one arm.

    Returns:
        `schema`, and `arms`: by name `about`, `overrides`, and `summary` or `error`.

    Raises:
        NotCompetentError: The base policy, which all arms share, does not pass the gate.
    """
    comparison: Comparison = {"schema": SCHEMA, "arms": {}}
    reference: Summary | None = None
    for name, config in configs.items():
        row: dict[str, Any] = {"about": ARMS[name].about, "overrides": list(ARMS[name].overrides)}
        try:
            settings = config if reference is None else at_cost_of(config, reference)
            summary = train(name, settings, out / "arms" / name)
        except NotCompetentError:
            # No other arm could do better: all of them start from this policy.
            raise
        except (FateGymError, ValueError) as error:
            row["error"] = str(error)
        else:
            row["summary"] = dict(summary)
            reference = summary if reference is None and config.method == "fate" else reference
        # After every arm, so that an interrupt loses none of those that are trained.
        comparison["arms"][name] = row
        make_folder(out)
        replace_file(out / "comparison.json", json.dumps(comparison, indent=2).encode() + b"\n")
    return comparison


def at_cost_of(config: TrainConfig, summary: Summary) -> TrainConfig:
    """Returns settings with which a round of a baseline samples about as many episodes as a round of FATE did.

    Policy optimisation takes more steps, learning from successes repeats each task more often, and learning from
    repairs samples more candidates per failure. FATE and its ablations stay as they are. The exact number depends on
    how many failures there will be, and how many groups are refilled.

    Args:
        config: The settings of the baseline.
        summary: The summary of FATE.
    """
    rounds = summary["rounds"][1:]
    each = (summary["budget"]["rollouts"] + summary["budget"]["candidates"]) / len(rounds)
    collected = statistics.fmean(row["collected"]["records"] for row in rounds)
    if METHODS[config.method].rule is not None and config.pfpo is not None:
        # The cost of a step, refills included, is known if FATE optimised too.
        optimised = [row["pfpo"] for row in rounds if row["pfpo"]] or [
            {"rollouts": config.pfpo.groups * config.pfpo.group_size, "steps": 1}
        ]
        of_step = sum(row["rollouts"] for row in optimised) / sum(row["steps"] for row in optimised)
        steps = _at_least_one((each - collected) / of_step)
        return dataclasses.replace(config, pfpo=dataclasses.replace(config.pfpo, steps=steps))
    if config.method == "rft":
        more = _at_least_one(each / collected)
        sets = tuple(dataclasses.replace(one, repeats=one.repeats * more) for one in config.train)
        return dataclasses.replace(config, train=sets)
    if config.method in ("sft", "dpo") and summary["budget"]["candidates"]:
        tried = summary["budget"]["candidates"] / len(rounds)
        candidates = _at_least_one(config.repair.candidates * (each - collected) / tried)
        return dataclasses.replace(config, repair=dataclasses.replace(config.repair, candidates=candidates))
    return config


def _at_least_one(number: float) -> int:
    return max(1, round(number))


def tables(comparison: Comparison) -> Iterator[Table]:
    """Lays out a comparison: the main test set, the costs of the arms, each other test set; intervals under values."""
    arms = comparison["arms"]
    done = {name: row["summary"] for name, row in arms.items() if "summary" in row}
    main = main_name(next(iter(done.values()), {}))
    yield _scores(f"test set: {main}", done)
    yield _costs(arms)
    for split in dict.fromkeys(split for summary in done.values() for split in summary.get("splits", {})):
        parts = {name: summary.get("splits", {}).get(split, {}) for name, summary in done.items()}
        yield _scores(f"test set: {split}", parts)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    table.title = title
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    return table


def _scores(title: str, parts: Mapping[str, Mapping[str, Row]]) -> Table:
    """Returns the table of one test set: a row for the base policy, and one for each arm."""
    table = _table(title, ("arm", *METRICS.values(), "n"))
    if parts:
        # All arms start from one policy, so each of them has its scores.
        _add(table, "before", next(iter(parts.values())).get("before") or {})
    for name, part in parts.items():
        _add(table, name, part.get("after") or {})
    return table


def _costs(arms: Mapping[str, Any]) -> Table:
    """Returns the table of costs; it also shows which arms failed."""
    table = _table("cost", ("arm", "rollouts", "candidates", "tokens", "min"))
    for name, row in arms.items():
        budget = row.get("summary", {}).get("budget", {})
        counts = [f"{budget[cost]:,}" if cost in budget else "-" for cost in ("rollouts", "candidates", "tokens")]
        minutes = f"{budget['seconds'] / 60:.1f}" if "seconds" in budget else "-"
        table.add_row(*map(Text, [name, *counts, minutes] if "summary" in row else [name, "failed"]))
    return table


def failures(comparison: Comparison) -> list[str]:
    """Returns a line for each arm that failed."""
    return [visible(f"{name}: {row['error']}") for name, row in comparison["arms"].items() if "error" in row]


def _add(table: Table, name: str, row: Row) -> None:
    counts = [str((row.get(metric) or {}).get("n", 0)) for metric in ("earned_utility", "ASR")]
    cells = [name, *(estimate_cell(row.get(metric)) for metric in METRICS), "+".join(counts)]
    # Text, not str: rich would read parts of a name as markup.
    table.add_row(*map(Text, cells))
