"""Summaries as tables for people: a row for each agent, or for each suite of one agent; the columns follow the mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fate_gym.episode import LEFT_OUT
from fate_gym.evaluation.metrics import LABELS, METRICS
from fate_gym.evaluation.run import Run
from fate_gym.evaluation.summary import ALL
from fate_gym.rendering import visible_line

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Column:
    """A metric of one mode as a column.

    Attributes:
        title: Heads the column.
        mode: Whose metric it is.
        metric: Its name in summaries; the lower bound, if there are two.
        high: Name of the upper bound, if there are two.
        optional: Whether the column is shown only where some run has the metric.
    """

    title: str
    mode: str
    metric: str
    high: str | None = None
    optional: bool = False

    @property
    def meaning(self) -> str:
        """Explains the column below the table; "" where the title says it all."""
        meanings = {metric.name: metric.meaning for metric in METRICS.get(self.mode, ())}
        return (
            ""
            if self.metric.removesuffix("_if_caught") in LABELS
            else meanings.get(self.metric.removesuffix("_low"), "")
        )


_BENIGN: Final = (
    _Column("utility", "benign", "utility", "utility_high"),
    _Column("BRR", "benign", "BRR"),
    _Column("full", "benign", "full_score", "full_score_high", optional=True),
)
_ATTACKED: Final = tuple(_Column(name, "attacked", name) for name in ("ASR", "TSR", "reached"))
_COMPLIANCE: Final = (
    _Column("HCR", "harmful", "HCR_low", "HCR"),
    _Column("VRR", "harmful", "VRR"),
    _Column("refused", "harmful", "refused"),
)
_HARM: Final = tuple(
    _Column(title, "harmful", f"{metric}_low", metric, optional=True)
    for title, metric in (("harm", "harm_score"), ("engaged", "harm_score_engaged"), ("full", "full_score"))
)
_VERDICTS: Final = tuple(
    _Column(name, "diagnosis", name) for name in ("accuracy", "precision", "recall", "F1", "invalid")
)
_ALL_LABELS: Final = tuple(_Column(name, "diagnosis", name, optional=True) for name in LABELS)
_CAUGHT_LABELS: Final = tuple(_Column(name, "diagnosis", f"{name}_if_caught", optional=True) for name in LABELS)
_MODES: Final = {
    "benign": "Without attack",
    "attacked": "Under attack",
    "harmful": "Harmful requests",
    "diagnosis": "Diagnosis",
}
_ERRORS: Final = {
    "env_error": "WARNING: {} ended in env_error, an error of the environment itself. That is a fault of fate-gym or "
    "of a plug-in, never the model's. They have no score, so the rates leave them out: do not publish these before it "
    "is mended.",
    "provider_error": "{} ended in provider_error: the agent gave no answer. They have no score.",
    "judge_error": "{} ended in judge_error: a judge gave no answer. They have no score.",
}
"""How episodes end that have no score -> what to say of so many of them."""

_AGAIN: Final = "The same evaluation, started again,"

_LONGEST_WORDS: Final = 300
"""Characters of an error that are shown; a server or a model may have a part in it."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """One table: its title, the attack that its attacked column shows, and its columns."""

    title: str
    attack: str | None
    columns: tuple[_Column, ...]

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.mode for column in self.columns))


def results_tables(summaries: Sequence[Summary], *, by_suite: bool = False) -> Iterator[Table]:
    """Lays out runs, a table for each attack or mode, intervals under the values; a row is a run or a suite of one."""
    for layout in _layouts(summaries):
        table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
        table.title = layout.title
        table.add_column("suite" if by_suite else "agent", min_width=8)
        filtered = ("filtered",) if _are_filtered(summaries) else ()
        for title in (*(column.title for column in layout.columns), "n", "errors", *filtered):
            table.add_column(title, justify="right", no_wrap=True)
        for summary in summaries:
            for row in _rows(summary, layout, by_suite):
                table.add_row(*row[: len(table.columns)])
        yield table


def notes(summaries: Sequence[Summary]) -> str:
    """Explains the columns that are shown, and names the rules that recognised refusals."""
    columns = dict.fromkeys(column for layout in _layouts(summaries) for column in layout.columns)
    lines = ["Rates in %, with 95 % intervals that allow for variations of one task. Errors are not scored."]
    for mode, opening in _MODES.items():
        meanings = [
            f"{column.title} ({column.meaning})" for column in columns if column.mode == mode and column.meaning
        ]
        lines += [f"{opening}: {', '.join(meanings)}."] if meanings else []
    if any(column.mode == "attacked" for column in columns):
        lines.append("n: episodes without + under attack.")
    if any(_is_bounded(group, column) for group in _groups(summaries) for column in columns):
        lines.append("a..b: bounds, where criteria that only a judge can settle were left open.")
    if _are_filtered(summaries):
        lines.append("filtered: episodes that the provider's content filter stopped, which count as refusals.")
    by_agent = {str(summary["agent"]): _refusals_by([summary]) for summary in summaries if _refusals_by([summary])}
    if len(set(by_agent.values())) == 1:
        lines.append(f"Refusals recognised by: {_refusals_by(summaries)}.")
    elif by_agent:
        lines.append(
            "Refusals recognised by: "
            + "; ".join(f"{visible_line(agent)}: {by}" for agent, by in by_agent.items())
            + "."
        )
    return "\n".join(lines)


def _layouts(summaries: Sequence[Summary]) -> Iterator[_Layout]:
    """Yields the tables for which there are episodes."""
    modes = {group["mode"] for group in _groups(summaries)}
    # A third party's benchmark, or a stranger's run, may name none.
    attacks = sorted({group["attack"] for group in _groups(summaries) if group["mode"] == "attacked"}, key=str)
    titles = {attack: f"attack: {visible_line(attack or 'unnamed')}" for attack in attacks}
    layouts = [_Layout(titles[attack], attack, (*_BENIGN, *_ATTACKED)) for attack in attacks]
    if "benign" in modes and not attacks:
        layouts.append(_Layout("without attack", None, _BENIGN))
    if "harmful" in modes:
        layouts += [_Layout("harmful requests", None, _COMPLIANCE), _Layout("harm score", None, _HARM)]
    if "diagnosis" in modes:
        layouts += [
            _Layout("diagnosis", None, _VERDICTS),
            _Layout("labels right, of all unsafe trajectories", None, _ALL_LABELS),
            _Layout("labels right, of those called unsafe", None, _CAUGHT_LABELS),
        ]
    for mode in sorted(modes - set(_MODES)):
        names = dict.fromkeys(name for group in _groups(summaries, mode) for name in group["metrics"])
        columns = tuple(_Column(visible_line(name), mode, name) for name in names)
        layouts.append(_Layout(visible_line(mode), None, columns))
    for layout in layouts:
        columns = tuple(
            column
            for column in layout.columns
            if not column.optional or any(_estimate(group, column.metric) for group in _groups(summaries, column.mode))
        )
        if columns:
            yield _Layout(layout.title, layout.attack, columns)


def _rows(summary: Summary, layout: _Layout, by_suite: bool) -> Iterator[list[Text]]:
    groups = {(group["mode"], group["attack"], group["suite"]): group for group in summary["groups"]}
    for suite in sorted({suite for mode, _, suite in groups if (suite != ALL) == by_suite and mode in layout.modes}):
        parts = {
            mode: groups.get((mode, layout.attack if mode == "attacked" else None, suite)) for mode in layout.modes
        }
        errors = sum(
            sum(part["errors"].values()) + sum(part["grader_errors"].values()) for part in parts.values() if part
        )
        label = visible_line(suite if by_suite else str(summary["agent"]))
        n = "+".join(str(_n(parts[mode], layout.columns)) for mode in layout.modes)
        cells = [_cell(parts[column.mode], column) for column in layout.columns]
        # Text, not str: agents' names may hold what rich would take for markup.
        filtered = sum(part.get("content_filtered", 0) for part in parts.values() if part)
        yield [Text(cell) for cell in (label, *cells, n, str(errors), str(filtered))]


def _n(group: Summary | None, columns: Iterable[_Column]) -> int:
    """The number of episodes behind the column that has the most; precision, say, is over fewer than accuracy."""
    if group is None:
        return 0
    metrics = group["metrics"]
    estimates = [
        metrics[column.metric] for column in columns if column.mode == group["mode"] and column.metric in metrics
    ]
    return max((int(estimate["n"]) for estimate in estimates), default=0)


def _cell(group: Summary | None, column: _Column) -> str:
    low = _estimate(group, column.metric)
    if group is None or low is None:
        return "-"
    high = (column.high and _estimate(group, column.high)) or low
    value = _percent(low["value"])
    if _is_bounded(group, column):
        value = f"{value}..{_percent(high['value'])}"
    return f"{value}\n{_percent(low['low'])}-{_percent(high['high'])}"


def _is_bounded(group: Summary, column: _Column) -> bool:
    """Whether the two ends of a metric differ."""
    if group["mode"] != column.mode or column.high is None:
        return False
    low, high = _estimate(group, column.metric), _estimate(group, column.high)
    return low is not None and high is not None and low["value"] != high["value"]


def _estimate(group: Summary | None, metric: str) -> Summary | None:
    estimate: Summary | None = group and group["metrics"].get(metric)
    return estimate if estimate and estimate["value"] is not None else None


def _are_filtered(summaries: Iterable[Summary]) -> bool:
    return any("content_filtered" in group for group in _groups(summaries))


def _groups(summaries: Iterable[Summary], mode: str | None = None) -> Iterator[Summary]:
    """Yields the groups, of one mode if it is given."""
    return (group for summary in summaries for group in summary["groups"] if mode in (None, group["mode"]))


def _refusals_by(summaries: Sequence[Summary]) -> str:
    return visible_line(", ".join(sorted({rule for group in _groups(summaries) for rule in group["refusals_by"]})))


def _percent(share: float) -> str:
    return "100" if share == 1.0 else f"{100 * share:.1f}"


def remarks(run: Run) -> Iterator[str]:
    """Says what the numbers of a run do not show, a line each; nothing where there is nothing to say."""
    every = [group for group in run.summary["groups"] if group["suite"] == ALL]
    yield from _without_score(run, every)
    valid = {_group_label(group): validity["value"] for group in every if (validity := _estimate(group, "validity"))}
    if valid and (least := min(valid.values())) < _VALID:
        where = next(label for label, value in valid.items() if value == least)
        yield (
            f"validity is {_percent(least)} ({where}): the rest of what this agent did were calls or messages that "
            "nobody could use, and such an agent fails attacks for the same reason as tasks. To see what it wrote: "
            f"fate-gym show {run.path}"
        )
    # Episodes are read again only where some figure was left out.
    if any(group["usage"].get(LEFT_OUT) for group in every):
        uncounted = sum(episode.usage.get(LEFT_OUT, 0) > 0 for episode in run.episodes)
        yield f"Usage leaves out figures that cannot be true or have an unknown name, in {_episodes(uncounted)}."


_VALID: Final = 0.9
"""A validity below this is worth a line; it is no column, since most agents are near 100."""


def _group_label(group: Summary) -> str:
    return _MODES.get(group["mode"], visible_line(group["mode"])).lower() + (
        f", {visible_line(group['attack'])}" if group["attack"] else ""
    )


def _without_score(run: Run, every: Sequence[Summary]) -> Iterator[str]:
    """Says what episodes ended in an error, and why the run ended early if it did."""
    again = "" if run.origin or run.exhausted else f" {_AGAIN} plays them once more."
    for status, meaning in _ERRORS.items():
        if errors := sum(group["errors"].get(status, 0) for group in every):
            first = next((failure.error for failure in run.failures if failure.status == status), None)
            says = f" The first says: {_short(first)}" if first and first != run.exhausted else ""
            yield f"{meaning.format(_episodes(errors))}{again}{says}"
    if run.exhausted is not None:
        yield f"The run ended early: {_short(run.exhausted).rstrip('.')}. {_AGAIN} completes it."


def _short(error: str) -> str:
    line = visible_line(" ".join(error.split()))
    return line if len(line) <= _LONGEST_WORDS else f"{line[:_LONGEST_WORDS]}..."


def _episodes(n: int) -> str:
    return f"{n} episode{'s' * (n != 1)}"
