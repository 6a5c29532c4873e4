"""The results of a training: a record per round, the summary, and pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fate_gym.agents.marks import contamination
from fate_gym.storage import encode_line, make_folder, replace_file
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.processes import is_first_process
from fate_gym.trainers.round import FILES, Round
from fate_gym.trainers.stage_file import read_stage
from fate_gym.trainers.stages.select import CHOSEN, decision_of
from fate_gym.trainers.study.records import RoundRecord, Row, Summary

if TYPE_CHECKING:
    from fate_gym.trainers.study import plots

SCHEMA = "fate-gym/train-summary/2"


def record_of(this_round: Round, dev: Row) -> RoundRecord:
    """Returns the record of a round that is over."""
    return {
        "round": this_round.number,
        "collected": this_round.outcome("collect"),
        "repaired": this_round.outcome("repair"),
        "selected": this_round.outcome("select"),
        "warmup": this_round.outcome("warmup"),
        "pfpo": this_round.outcome("pfpo"),
        "dev": dev,
    }


def volume_of(record: RoundRecord) -> float:
    """Returns the dev hypervolume of a round, by which rounds are compared."""
    return float(record["dev"]["hypervolume"]["value"])


def describe(record: RoundRecord) -> str:
    """Returns the dev row of a round as one line."""
    names = ("ASR", "TSR", "BRR", "earned_utility", "validity", "reached")
    values = [f"{name} {record['dev'][name]['value']:.2f}" for name in names if name in record["dev"]]
    return f"round {record['round']}, dev: {'  '.join(values)}  hypervolume {volume_of(record):.3f}"


def write_rounds(rounds: Sequence[RoundRecord], folder: TrainingFolder) -> None:
    """Writes `rounds.jsonl`."""
    if is_first_process():
        replace_file(folder.out / "rounds.jsonl", b"".join(map(encode_line, rounds)))


def summarise(
    rounds: Sequence[RoundRecord],
    best: int,
    policy: str,
    before: Mapping[str, Row],
    after: Mapping[str, Row],
    folder: TrainingFolder,
) -> Summary:
    """Writes `best` and `summary.json`, and returns the summary.

    Args:
        rounds: The records of all rounds, that of the base policy first.
        best: The number of the best round.
        policy: The policy of that round.
        before: The base policy's row on each test set.
        after: The row of `policy` on each test set.
        folder: The training.
    """
    main = folder.config.evaluate.main
    summary = {
        "schema": SCHEMA,
        "method": folder.config.method,
        "main": main,
        "before": before.get(main),
        "after": after.get(main),
        "splits": {name: {"before": before[name], "after": row} for name, row in after.items() if name != main},
        "best": {"round": best, "policy": policy},
        "rounds": list(rounds),
        "budget": _budget(rounds, folder),
        "contaminated_by": list(contamination(policy)),
    }
    if is_first_process():
        replace_file(folder.out / "best", f"{policy}\n".encode())
        replace_file(folder.out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    return summary


def _budget(rounds: Sequence[RoundRecord], folder: TrainingFolder) -> dict[str, Any]:
    """The cost of a training.

    `rollouts` and repair `candidates` that were sampled, and policy `tokens` in them; `limit`, the tokens that it might
    sample; `learner_tokens`, those of the sequences that updates read, prompts included, over all passes; `seconds`.
    """
    spent: Counter[str] = Counter({"rollouts": 0, "candidates": 0, "tokens": 0, "learner_tokens": 0})
    for record in rounds[1:]:
        repairs, pfpo, warmup = (record[stage] or {} for stage in ("repaired", "pfpo", "warmup"))
        spent["rollouts"] += record["collected"]["records"] + pfpo.get("rollouts", 0)
        spent["candidates"] += repairs.get("records", 0)
        spent["tokens"] += tokens_of(record)
        spent["learner_tokens"] += warmup.get("tokens", 0) + pfpo.get("learned", 0)
    return {**spent, "limit": folder.config.budget, "seconds": folder.seconds()}


def tokens_of(record: RoundRecord) -> int:
    """Returns the policy tokens that a round sampled."""
    return sum((record.get(stage) or {}).get("tokens", 0) for stage in ("collected", "repaired", "pfpo"))


def draw(rounds: Sequence[RoundRecord], folder: TrainingFolder) -> None:
    """Draws the curves of a training, if matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return
    from fate_gym.trainers.study import plots

    path = folder.out / "plots"
    make_folder(path)
    rows = [{name: value for name, value in record["dev"].items() if isinstance(value, dict)} for record in rounds]
    plots.metrics_over_rounds(path / "metrics.png", rows)
    selected = [record["selected"]["modes"] for record in rounds[1:] if record["selected"]]
    if any(selected):
        plots.acceptance(path / "acceptance.png", selected)
        plots.fronts(path / "fronts.png", [_candidates(Round(folder, record["round"])) for record in rounds[1:]])


def _candidates(this_round: Round) -> list[plots.Candidate]:
    from fate_gym.trainers.study import plots

    name, schema = FILES["select"]
    return [
        plots.Candidate(
            line.numbers("vector"), [active is True for active in line.items("mask")], decision_of(line) == CHOSEN
        )
        for line in read_stage(this_round.path / name, schema).records
    ]
