"""The pictures of a study: every replicate in the plane of ASR and TSR, paired differences, curves over the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fate_gym.trainers.study.arms import BASE
from fate_gym.trainers.study.figure import BLUE, COLOURS, VERMILION, panels
from fate_gym.trainers.study.records import Report, Result
from fate_gym.trainers.study.report_text import HEADINGS

_MARKERS: Final = "osD^vP*Xhd<>8p"
_CURVES: Final = {"ASR": "ASR (less is better)", "TSR": "TSR", "earned_utility": "benign utility"}


def plane(path: Path, report: Report) -> None:
    """Draws ASR and TSR on each attacked test set: small points for replicates, a large one for their mean."""
    tests = [test for test, arms in report["scores"].items() if any("ASR" in of for of in arms.values())]
    highest = max(value for test in tests for of in report["scores"][test].values() for value in _all(of, "ASR"))
    with panels(path, len(tests), columns=2, width=4.6, height=4.2) as drawn:
        for axes, test in zip(drawn, tests, strict=True):
            for number, (arm, of) in enumerate(report["scores"][test].items()):
                if "ASR" not in of or "TSR" not in of:
                    continue
                style: dict[str, Any] = {"color": _colour(arm, number), "marker": _MARKERS[number % len(_MARKERS)]}
                both = of["ASR"]["values"].keys() & of["TSR"]["values"].keys()
                points = [(of["ASR"]["values"][name], of["TSR"]["values"][name]) for name in sorted(both)]
                axes.scatter(*zip(*points, strict=True), s=14, alpha=0.5, linewidth=0, **style)
                label = "before" if arm == BASE else arm
                axes.scatter(of["ASR"]["mean"], of["TSR"]["mean"], s=70, label=label, zorder=3, **style)
            axes.set(title=f"Test set {test}", xlabel="ASR (less is better)", ylabel="TSR", ylim=(-0.03, 1.03))
            axes.set_xlim(-0.02, max(0.1, 1.05 * highest))
        drawn[0].legend(loc="best")


def differences(path: Path, report: Report) -> None:
    """Draws the paired differences of the first arm to each other one, a panel for each test set and metric."""
    wanted = [
        (test, name)
        for test, arms in report["differences"].items()
        for name in (("ASR", "TSR") if any("ASR" in of for of in arms.values()) else ("earned_utility", "BRR"))
    ]
    most = max(len(report["differences"][test]) for test, _ in wanted)
    shown = [of[name] for test, name in wanted for of in report["differences"][test].values() if name in of]
    # One scale for all panels: else the smallest difference would look as large as the largest.
    reach = 1.1 * max(0.1, *(abs(one[part] or 0.0) for one in shown for part in ("low", "mean", "high")))
    with panels(path, len(wanted), columns=2, width=4.6, height=0.9 + 0.24 * most) as drawn:
        for axes, (test, name) in zip(drawn, wanted, strict=True):
            arms = {arm: of[name] for arm, of in report["differences"][test].items() if name in of}
            axes.axvline(0, color="0.6", linewidth=1)
            for row, one in enumerate(arms.values()):
                if one["low"] is not None:
                    axes.plot([one["low"], one["high"]], [row, row], color=BLUE)
                axes.plot(one["mean"], row, "o", color=BLUE)
            axes.set_yticks(range(len(arms)), ["before" if arm == BASE else arm for arm in arms])
            axes.invert_yaxis()
            axes.set(title=f"{HEADINGS.get(name, name)} on {test}", xlabel=f"{report['reference']} minus the arm")
            axes.set_xlim(-min(1.05, reach), min(1.05, reach))


def curves(path: Path, results: Sequence[Result]) -> None:
    """Draws dev scores over the tokens sampled so far: thin lines for replicates, thick ones for the arms' means."""
    trained: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for result in results:
        if result["arm"] != BASE:
            trained.setdefault(result["arm"], []).append(result["dev"])
    with panels(path, len(_CURVES), columns=3, width=4.0, height=3.6) as drawn:
        for axes, (name, title) in zip(drawn, _CURVES.items(), strict=True):
            for number, (arm, all_points) in enumerate(trained.items()):
                colour = _colour(arm, number)
                lines = [[(p["tokens"], p[name]["value"]) for p in points if name in p] for points in all_points]
                for line in filter(None, lines):
                    axes.plot(*zip(*line, strict=True), color=colour, alpha=0.25, linewidth=0.8)
                means = [
                    tuple(sum(part) / len(part) for part in zip(*of, strict=True)) for of in zip(*lines, strict=False)
                ]
                if means:
                    marker = _MARKERS[number % len(_MARKERS)]
                    axes.plot(*zip(*means, strict=True), color=colour, marker=marker, markersize=4, label=arm)
            axes.set(title=title, xlabel="sampled policy tokens", ylim=(-0.03, 1.03))
        drawn[0].legend(loc="best")


def _all(of: Mapping[str, Any], name: str) -> Iterable[float]:
    return of[name]["values"].values() if name in of else ()


def _colour(arm: str, number: int) -> str:
    return "0.5" if arm == BASE else VERMILION if arm == "fate" else COLOURS[number % len(COLOURS)]
