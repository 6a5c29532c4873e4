"""Several trainings from one base policy, side by side: FATE, the baselines, the ablations.

Each arm is a few overrides of one configuration, and trains in a folder of its own. The baselines may sample as many
episodes as FATE did, each with the one knob it has for that; what an arm cost in the end stands beside what it reached.
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
from fate_gym.trainers.config import RULE_OF, TrainConfig, read_config
from fate_gym.trainers.fate import NotCompetentError

SCHEMA = "fate-gym/comparison/1"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        about: One line for people.
        overrides: Texts "KEY=VALUE", as `read_config` takes them.
    """

    about: str
    overrides: tuple[str, ...] = ()


ARMS: Final[dict[str, Arm]] = {
    "fate": Arm("the configuration as it is", ("method=fate",)),
    "fate-safe-tchebycheff": Arm("PFPO by the safe-first value", ("method=fate", "pfpo.rule=safe-tchebycheff")),
    "fate-safe-ranks": Arm("PFPO by safe-first ranks", ("method=fate", "pfpo.rule=safe-ranks")),
    "fate-weighted-sum": Arm("FATE with GRPO's advantages", ("method=fate", "pfpo.rule=weighted-sum")),
    "fate-gdpo": Arm("FATE with GDPO's advantages", ("method=fate", "pfpo.rule=gdpo")),
    "fate-security-only": Arm("FATE with advantages of security", ("method=fate", "pfpo.rule=security-only")),
    "sft": Arm("supervised, on repairs alone", ("method=sft",)),
    "rft": Arm("supervised, on successes alone", ("method=rft",)),
    "dpo": Arm("DPO on (repair, failure)", ("method=dpo",)),
    "grpo": Arm("GRPO from the base, weighted sum", ("method=grpo",)),
    "gdpo": Arm("GDPO from the base", ("method=gdpo",)),
    "security-only": Arm("GRPO from the base, security alone", ("method=security-only",)),
    "no-warmup": Arm("FATE without warm-up", ("method=fate", "warmup=null")),
    "weighted-selection": Arm("repairs by weighted sum", ("method=fate", "select.rule=weighted-sum")),
    "random-selection": Arm("repairs at random", ("method=fate", "select.rule=random")),
    "no-over-refusal": Arm("over-refusal not looked at", ("method=fate", "select.over_refusal=false")),
    "no-rescoring": Arm("repairs taken unverified", ("method=fate", "select.rescore=false")),
}
"""Arms by name: the method with each advantage rule, the baselines, the ablations."""

BASELINES: Final = ("fate", "sft", "rft", "dpo", "grpo", "gdpo", "security-only")
"""What is compared unless other arms are asked for."""

Train = Callable[[str, TrainConfig, Path], Mapping[str, Any]]
"""Arm, settings and run folder -> the run's summary, as of `fate.train`; an interrupted run goes on."""


def arm_configs(name: str, overrides: Sequence[str] = (), arms: Sequence[str] = BASELINES) -> dict[str, TrainConfig]:
    """Returns the settings of each arm.

    Args:
        name: The configuration that all arms share: a YAML file or a shipped one.
        overrides: Further "KEY=VALUE" texts for all of them; an arm's own go last.
        arms: Names in `ARMS`.

    Raises:
        ValueError: No such arm, an arm is asked for twice, or an arm's settings make no sense.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise ValueError(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    if not arms or len(set(arms)) != len(arms):
        raise ValueError(f"give some arms, each once, not {', '.join(arms) or 'none'}")
    return {arm: read_config(name, [*overrides, *ARMS[arm].overrides]) for arm in arms}


def compare(configs: Mapping[str, TrainConfig], out: Path, train: Train) -> dict[str, Any]:
    """Trains each arm in `out/arms/NAME`, and writes `out/comparison.json` after each.

    The first arm that is FATE sets the budget of the baselines after it (`at_cost_of`). An arm that fails says why in
    its row, and the others go on; the same call tries it again.

    Args:
        configs: Arm -> settings; all should begin with the same policy.
        out: The folder.
        train: Trains one arm.

    Returns:
        `schema`, and `arms`: name -> `about`, `overrides`, and `summary` or `error`.

    Raises:
        NotCompetentError: The base policy, which all arms share, does not pass the gate.
    """
    make_folder(out)
    comparison: dict[str, Any] = {"schema": SCHEMA, "arms": {}}
    reference: Mapping[str, Any] | None = None
    for name, config in configs.items():
        row: dict[str, Any] = {"about": ARMS[name].about, "overrides": list(ARMS[name].overrides)}
        try:
            settings = config if reference is None else at_cost_of(config, reference)
            summary = train(name, settings, out / "arms" / name)
        except NotCompetentError:
            raise
        except (FateGymError, ValueError) as error:
            row["error"] = str(error)
        else:
            row["summary"] = dict(summary)
            reference = summary if reference is None and config.method == "fate" else reference
        comparison["arms"][name] = row
        replace_file(out / "comparison.json", json.dumps(comparison, indent=2).encode() + b"\n")
    return comparison


def at_cost_of(config: TrainConfig, summary: Mapping[str, Any]) -> TrainConfig:
    """Returns a baseline's settings with which a round samples about as many episodes as one of another training.

    Policy optimisation takes more steps, learning from successes collects each task more often, and learning from
    repairs tries more candidates a failure. FATE and its ablations stay as they are. The total depends on the
    number of failures, and of groups sampled anew.

    Args:
        config: The baseline's.
        summary: Of the other training, FATE's.
    """
    rounds = summary["rounds"][1:]
    each = (summary["budget"]["rollouts"] + summary["budget"]["candidates"]) / len(rounds)
    collected = statistics.fmean(row["collected"]["records"] for row in rounds)
    if config.method in RULE_OF and config.pfpo is not None:
        # What a step costs, refills included, is known where the other training optimised too.
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


_METRICS: Final = ("ASR", "TSR", "reached", "BRR", "utility", "validity")


def tables(comparison: Mapping[str, Any]) -> Iterator[Table]:
    """Lays out a comparison, intervals under the values: the main test set, what the arms cost, each other test set."""
    arms = comparison["arms"]
    done = {name: row["summary"] for name, row in arms.items() if "summary" in row}
    yield _scores("held-out test set", done)
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


def _scores(title: str, parts: Mapping[str, Mapping[str, Any]]) -> Table:
    """The rows of one test set: the base policy's, and each arm's."""
    table = _table(title, ("arm", *_METRICS, "n"))
    if parts:
        # All arms begin with one policy, so any of them has scored it.
        _add(table, "before", next(iter(parts.values())).get("before") or {})
    for name, part in parts.items():
        _add(table, name, part.get("after") or {})
    return table


def _costs(arms: Mapping[str, Any]) -> Table:
    """What each arm cost, and which failed."""
    table = _table("cost", ("arm", "rollouts", "candidates", "tokens", "min"))
    for name, row in arms.items():
        budget = row.get("summary", {}).get("budget", {})
        counts = [f"{budget[cost]:,}" if cost in budget else "-" for cost in ("rollouts", "candidates", "tokens")]
        minutes = f"{budget['seconds'] / 60:.1f}" if "seconds" in budget else "-"
        table.add_row(*map(Text, [name, *counts, minutes] if "summary" in row else [name, "failed"]))
    return table


def failures(comparison: Mapping[str, Any]) -> list[str]:
    """Returns a line for each arm that failed."""
    return [visible(f"{name}: {row['error']}") for name, row in comparison["arms"].items() if "error" in row]


def _add(table: Table, name: str, metrics: Mapping[str, Any]) -> None:
    counts = [str((metrics.get(metric) or {}).get("n", 0)) for metric in ("utility", "ASR")]
    cells = [name, *(_cell(metrics.get(metric)) for metric in _METRICS), "+".join(counts)]
    # Text, not str: names of test sets may hold what rich would take for markup.
    table.add_row(*map(Text, cells))


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate.get("value") is None:
        return "-"
    value, low, high = (100 * estimate[part] for part in ("value", "low", "high"))
    return f"{value:.1f}\n{low:.0f}-{high:.0f}"
