"""FATE, failure-trajectory evolution: a policy that repairs its own failures, round after round.

`evolve` is Figure 1 of the paper from top to bottom; `train` goes round until it no longer helps. Every stage reads
files and writes files (`fate_gym.trainers.run`), so that a training which was killed goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fate_gym.agents.marks import contamination
from fate_gym.errors import FateGymError, UsageError
from fate_gym.storage import encode_line, replace_file
from fate_gym.trainers.collect import competence, split_failures
from fate_gym.trainers.config import GateSettings, TrainConfig
from fate_gym.trainers.progress import Watch
from fate_gym.trainers.repair import SCHEMA as REPAIR
from fate_gym.trainers.run import Run
from fate_gym.trainers.scoring import Row
from fate_gym.trainers.selection import SCHEMA as SELECT
from fate_gym.trainers.stages import Stage, read_stage

SUMMARY = "fate-gym/train-summary/1"


class NotCompetentError(FateGymError):
    """The base policy can do too little for its safety to mean anything, or has no failures to learn from."""


def evolve(run: Run, number: int) -> dict[str, Any]:
    """One round: the policy acts, fails, repairs its failures, and learns from the repairs.

    Returns:
        What the round did, as it stands in `rounds.jsonl`.
    """
    collected = run.collect(number)  # Step 1: rollouts a ~ pi(.|x), vectors z(x, a), failures F_t.
    run.repair(number)  # Step 2: p_f from x, a and z; K candidates a'_k ~ pi(.|p_f), executed anew.
    selected = run.select(number)  # Step 3: verifiers, filter, Pareto front, one a* by R_pf.
    warmed = run.warm_up(number)  # Step 4, first half: supervised on (p_f, a*), its copy under x, benign successes.
    optimised = run.pfpo(number)  # Step 4, second half: PFPO from the warmed policy gives pi_{t+1}.
    dev = run.score(number)
    return {
        "round": number,
        "collected": collected.header["counts"],
        "selected": selected.header["counts"] if selected else None,
        "warmup": warmed,
        "pfpo": optimised,
        "dev": dev,
    }


def train(config: TrainConfig, out: Path, *, watch: Watch | None = None, shared: Path | None = None) -> dict[str, Any]:
    """Trains from the base policy to the summary; a training that was interrupted goes on.

    Args:
        config: The settings.
        out: The run folder.
        watch: Told what goes on.
        shared: Where the base policy and its scores lie, if several trainings share them.

    Returns:
        What stands in `summary.json`.

    Raises:
        NotCompetentError: The base policy does not pass the gate.
        RunMismatchError: The folder holds a training of other settings.
        RunLockedError: Another process trains in it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "several processes train in one stage alone: run `train pfpo` under torchrun, and the rest once"
        )
    with Run(config, out, watch, shared=shared) as run:
        run.make_base()
        check_competence(run.collect(1), config.gate)
        before = run.test("before", run.base)
        rounds: list[dict[str, Any]] = [{"round": 0, "dev": run.score(0)}]
        best = 0
        while len(rounds) <= config.rounds and len(rounds) - 1 - best < config.patience:
            rounds.append(evolve(run, len(rounds)))
            run.watch.say(_told(rounds[-1]))
            best = max(range(1, len(rounds)), key=lambda number: _volume(rounds[number]))
            replace_file(out / "rounds.jsonl", b"".join(map(encode_line, rounds)))
        policy = run.result(best)
        replace_file(out / "best", f"{policy}\n".encode())
        summary = _summary(run, rounds, best, before, run.test("after", policy))
        replace_file(out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        _draw(run, rounds)
    return summary


def check_competence(collected: Stage, gate: GateSettings | None) -> None:
    """Stops where the base policy cannot do its tasks, or never obeys an attack.

    Args:
        collected: The first round's rollouts, those on tasks that doing nothing passes left out.
        gate: What it must reach; None lets any pass.

    Raises:
        NotCompetentError: It does not.
    """
    if gate is None:
        return
    failures, successes = split_failures(collected)
    shown = competence([*failures, *successes])
    for name, least in (("utility", gate.utility), ("ASR", gate.attack_success)):
        value = shown[name]
        if value is not None and value < least:
            what = "does too few benign tasks" if name == "utility" else "obeys too few attacks"
            raise NotCompetentError(
                f"the base policy {what} to learn from: {name} {value:.2f}, at least {least:g} is needed "
                f"(gate; `gate=null` goes on regardless)"
            )


def _volume(row: Mapping[str, Any]) -> float:
    return float(row["dev"]["hypervolume"]["value"])


def _told(row: Mapping[str, Any]) -> str:
    """A round's dev row as a line."""
    names = ("ASR", "TSR", "BRR", "utility", "validity", "reached")
    shown = [f"{name} {row['dev'][name]['value']:.2f}" for name in names if name in row["dev"]]
    return f"round {row['round']}, dev: {'  '.join(shown)}  hypervolume {_volume(row):.3f}"


def _summary(
    run: Run, rounds: Sequence[Mapping[str, Any]], best: int, before: Mapping[str, Row], after: Mapping[str, Row]
) -> dict[str, Any]:
    main = run.config.evaluate.main
    policy = run.result(best)
    return {
        "schema": SUMMARY,
        "method": run.config.method,
        "before": before.get(main),
        "after": after.get(main),
        "splits": {name: {"before": before[name], "after": row} for name, row in after.items() if name != main},
        "best": {"round": best, "policy": policy},
        "rounds": list(rounds),
        "budget": _budget(run, rounds),
        "contaminated_by": list(contamination(policy)),
    }


def _budget(run: Run, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What training cost: episodes and candidates sampled, tokens written in them, tokens of supervised learning."""
    spent: Counter[str] = Counter({"rollouts": 0, "candidates": 0, "tokens": 0, "supervised_tokens": 0})
    for number, row in enumerate(rounds[1:], start=1):
        pfpo, warmup = row["pfpo"] or {}, row["warmup"] or {}
        spent["rollouts"] += row["collected"]["records"] + pfpo.get("rollouts", 0)
        spent["tokens"] += row["collected"]["tokens"] + pfpo.get("tokens", 0)
        spent["supervised_tokens"] += warmup.get("tokens", 0)
        if row["selected"] is not None:
            repairs = read_stage(run.folder(number) / "repairs.jsonl", REPAIR).header["counts"]
            spent["candidates"] += repairs["records"]
            spent["tokens"] += repairs["tokens"]
    return {**spent, "seconds": run.seconds()}


def _draw(run: Run, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Draws the curves, where matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return
    from fate_gym.trainers import plots

    folder = run.out / "plots"
    folder.mkdir(exist_ok=True)
    plots.metrics_over_rounds(folder / "metrics.png", [_metrics(row["dev"]) for row in rounds])
    selected = [row["selected"]["modes"] for row in rounds[1:] if row["selected"]]
    if any(selected):
        plots.acceptance(folder / "acceptance.png", selected)
        stages = [read_stage(run.folder(row["round"]) / "selected.jsonl", SELECT) for row in rounds[1:]]
        plots.fronts(folder / "fronts.png", [stage.records for stage in stages])


def _metrics(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if isinstance(value, dict)}
