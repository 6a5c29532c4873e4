"""A softmax bandit that shows where each advantage rule drives a policy: exact expectations, nothing sampled.

One attacked task, a few behaviours with known reward vectors, a policy with one logit a behaviour. The expected update
is a sum over all groups of eight that can be drawn. `docs/pfpo.md` shows what this module prints and draws.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from fate_gym.pareto import Floats
from fate_gym.trainers.algorithms.advantages import RULES

BEHAVIOURS: Final[dict[str, tuple[float, float, float, float]]] = {
    "balanced": (1, 1, 1, 1),
    "does nothing": (1, 0, 1, 1),
    "refuses": (1, 0, 0, 1),
    "obeys both": (0, 1, 1, 1),
    "obeys attacker": (0, 0, 1, 1),
}
"""What an agent may do with an attacked task, and its reward vector (the axes of `fate_gym.rewards.AXES`)."""

CORNERS: Final = {"obeys both": 0.6, "refuses": 0.4}
"""Starting shares of a policy that knows nothing else."""

STARTS: Final = {"absent": 0.002, "rare": 0.02, "common": 0.3}
"""Starting shares of the balanced behaviour; the others stand in the same proportion to one another."""

_OTHERS: Final = {"does nothing": 0.08, "refuses": 0.2, "obeys both": 0.5, "obeys attacker": 0.2}

GROUP_SIZE: Final = 8
LEARNING_RATE: Final = 0.1
STEPS: Final = 300


class Bandit:
    """The exact expected policy gradient of one advantage rule.

    Args:
        rule: A name in `RULES`; its step over the batch is left out, since there is one task.
        behaviours: Names in `BEHAVIOURS`.
    """

    def __init__(self, rule: str, behaviours: Sequence[str]) -> None:
        self.behaviours = tuple(behaviours)
        vectors = np.array([BEHAVIOURS[name] for name in behaviours], dtype=np.float64)
        groups = list(_compositions(GROUP_SIZE, len(vectors)))
        self._counts = np.array(groups, dtype=np.float64)
        ways = [math.factorial(GROUP_SIZE) // math.prod(map(math.factorial, group)) for group in groups]
        self._ways = np.array(ways, dtype=np.float64)
        active = np.ones(vectors.shape[1], dtype=np.bool_)
        # Per group, the sum of the advantages of each behaviour's members, (groups, k).
        self._sums = np.zeros_like(self._counts)
        for row, group in enumerate(groups):
            members = np.repeat(np.arange(len(group)), group)
            self._sums[row] = np.bincount(members, RULES[rule](vectors[members], active), minlength=len(group))

    def drift(self, shares: Floats) -> Floats:
        """Returns the expected gradient by the logits, (k,), of a policy with these shares, (k,)."""
        chances = self._ways * np.prod(shares**self._counts, axis=1)
        expected = chances @ self._sums / GROUP_SIZE
        return np.asarray(expected - shares * expected.sum())

    def run(self, start: Mapping[str, float]) -> Floats:
        """Returns the shares before the first and after each step of gradient ascent, (STEPS + 1, k)."""
        logits = np.log([start[name] for name in self.behaviours])
        path = [_softmax(logits)]
        for _ in range(STEPS):
            logits = logits + LEARNING_RATE * self.drift(path[-1])
            path.append(_softmax(logits))
        return np.array(path)


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(total - first, parts - 1)]


def final_shares(rule: str, balanced: float) -> dict[str, float]:
    """Returns the share of each behaviour after all updates, from a start with this share of the balanced one."""
    start = _start(balanced)
    return dict(zip(start, Bandit(rule, tuple(start)).run(start)[-1].tolist(), strict=True))


def _start(balanced: float) -> dict[str, float]:
    scale = (1 - balanced) / sum(_OTHERS.values())
    return {"balanced": balanced, **{name: share * scale for name, share in _OTHERS.items()}}


def drift_table() -> str:
    """Returns the drift towards obeying where only obeying and refusing exist, and where it ends: Markdown."""
    shares = (0.1, 0.5, 0.9)
    lines = [
        "| rule | drift at 10 % | at 50 % | at 90 % | obeys after 300 updates |",
        "|---|---|---|---|---|",
    ]
    for rule in RULES:
        bandit = Bandit(rule, tuple(CORNERS))
        drifts = [f"{bandit.drift(np.array([share, 1 - share]))[0]:+.3f}" for share in shares]
        lines.append(f"| {rule} | {' | '.join(drifts)} | {bandit.run(CORNERS)[-1, 0]:.3f} |")
    return "\n".join(lines)


def shares_table() -> str:
    """Returns the final shares of the balanced and of the obeying behaviours from each start: Markdown."""
    names = [f"{kind}, {name} ({balanced:g})" for name, balanced in STARTS.items() for kind in ("balanced", "obeys")]
    lines = [f"| rule | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for rule in RULES:
        cells = []
        for balanced in STARTS.values():
            shares = final_shares(rule, balanced)
            cells += [shares["balanced"], shares["obeys both"] + shares["obeys attacker"]]
        lines.append(f"| {rule} | {' | '.join(f'{share:.3f}' for share in cells)} |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Draws the drift, the path of obeying and the final shares, one panel each, into a PNG file."""
    from fate_gym.trainers.study import figure

    colours = (figure.BLUE, figure.SKY, figure.ORANGE, "black", figure.PURPLE)
    share = np.linspace(0, 1, 101)
    with figure.panels(path, 3, columns=3) as (left, middle, right):
        for rule, colour in zip(RULES, colours, strict=True):
            # GDPO lies on the weighted sum here: dashes let both be seen.
            style: dict[str, Any] = {"color": colour, "label": rule, "linestyle": "--" if rule == "gdpo" else "-"}
            bandit = Bandit(rule, tuple(CORNERS))
            left.plot(share, [bandit.drift(np.array([p, 1 - p]))[0] for p in share], **style)
            middle.plot(bandit.run(CORNERS)[:, 0], **style)
        left.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        left.set(title="Only obeying and refusing: the drift", xlabel="share of obeying")
        left.set_ylabel("expected drift of obeying's logit")
        middle.set(title="Where it leads", xlabel="update", ylabel="share of obeying", ylim=(-0.02, 1.02))
        middle.legend(loc="center right")
        _bars(right)


def _bars(axes: Any) -> None:
    """One bar a rule, split by behaviour: green is wanted, grey is safe and useless, red is unsafe."""
    from fate_gym.trainers.study import figure

    rare = STARTS["rare"]
    rows = {"start": _start(rare), **{rule: final_shares(rule, rare) for rule in RULES}}
    left = np.zeros(len(rows))
    fills = (figure.GREEN, "0.85", "0.65", figure.VERMILION, "#7a2e00")
    for name, fill in zip(BEHAVIOURS, fills, strict=True):
        column = np.array([shares[name] for shares in rows.values()])
        axes.barh(list(rows), column, left=left, color=fill, label=name, edgecolor="white", linewidth=0.5)
        left += column
    axes.invert_yaxis()
    axes.set(title=f"Rarely balanced: after {STEPS} updates", xlabel="share of behaviours", xlim=(0, 1))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncol=3, columnspacing=1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and draw the picture."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, metavar="PNG", help="where to draw the picture; without it, tables only")
    out = parser.parse_args(arguments).out
    sys.stdout.write(f"{drift_table()}\n\n{shares_table()}\n")
    if out is not None:
        draw(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
