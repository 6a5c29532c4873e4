"""A campaign of disk faults against one small evaluation or training: `python crashes.py WHAT [MOST]`.

For every point at which the action changes a file, and every fault, the action is done in a fork and meets the fault;
then it is done again on a sound disk. Whatever was reported as finished must still be there, and the end must be
that of an action that met no fault. It runs in a process of its own, since forks of a process with threads may hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import disk_faults
from disk_faults import FAULTS, Outcome, visit


def evaluation(root: Path, *, absent: bool = False) -> None:
    """Evaluates a clerk on the toy shop; each episode that is on disk is also noted beside the folder.

    Args:
        root: The run folder.
        absent: Whether the clerk is away twice, so that two episodes fail.
    """
    import parcels  # noqa: F401 (read before the disk fails)
    import shop_plugin  # noqa: F401 (registers the toy benchmark)

    from fate_gym.evaluation import EvalConfig, run_evaluation
    from fate_gym.evaluation.finished import Finished

    asked = itertools.count()

    async def clerk(observation: dict[str, Any]) -> Any:
        if absent and next(asked) in (2, 9):
            raise ConnectionError("nobody at the counter")
        return "Shipped." if observation["messages"][-1]["role"] == "tool" else _SHIP

    config = EvalConfig(env="toy/Parcels-v0", agent="clerk", out=root, repeats=4, concurrency=2)
    with _notes(root).open("a") as notes:

        def note(episode: Finished) -> None:
            if episode.result.status == "ok":
                notes.write(f"{episode.key}\n")
                notes.flush()

        asyncio.run(run_evaluation(config, clerk, on_done=note))


_SHIP = {"tool_calls": [{"function": {"name": "ship", "arguments": {"parcel": 1}}}]}


def _notes(root: Path) -> Path:
    return root.with_name(f"{root.name}-notes")


def state_of_run(root: Path) -> Any:
    """What must be the same whatever happened on the way."""
    from fate_gym.evaluation import RunFolder

    run = RunFolder.read(root)
    episodes = sorted(
        ({**episode.to_json(), "seconds": None} for episode in run.episodes()), key=lambda entry: entry["key"]
    )
    summary = run.summary()
    for group in summary["groups"]:
        group["mean_seconds"] = None
    return json.loads(json.dumps([episodes, summary["episodes"], summary["groups"]]))


def finished_keys(root: Path) -> set[str]:
    """Episodes that were reported as finished."""
    return set(_notes(root).read_text().split("\n")) - {""} if _notes(root).exists() else set()


def stored_keys(root: Path) -> list[str]:
    from fate_gym.evaluation import RunFolder

    return [episode.key for episode in RunFolder.read(root).episodes()] if (root / "manifest.json").exists() else []


def verified(root: Path, plugin: str = "shop_plugin") -> list[str]:
    """What `verify` complains of."""
    from fate_gym.leaderboards.verification import verify

    return [f"{entry.where}: {entry.what}" for entry in verify(root, trusted=plugin).differences]


class Campaign:
    """Visits points of one action and keeps what went wrong.

    Args:
        action: Done first, on the disk that fails; in a sound one it succeeds.
        again: Done afterwards, on a sound disk.
        check: Returns what is wrong with a folder after `again`.
        lost: Returns what was reported as finished and is not there, after `action`.
    """

    def __init__(
        self,
        action: Callable[[Path], None],
        again: Callable[[Path], None],
        check: Callable[[Path], list[str]],
        lost: Callable[[Path], list[str]],
    ) -> None:
        self._action, self._again, self._check, self._lost = action, again, check, lost
        self.ended: Counter[str] = Counter()
        self.problems: list[str] = []
        self._base = Path(tempfile.mkdtemp(prefix="crashes-"))

    def run(self, most: int) -> dict[str, Any]:
        """Visits at most so many pairs of point and fault, and a fifth as many resumes that meet a fault of their own.

        All points are visited once before any is visited by another fault.
        """
        points = disk_faults.count(self._action, self._fresh())
        rounds = _rounds(points)
        pairs = list(itertools.chain(*rounds))
        some = [rounds[0][number - 1] for number in disk_faults.every(len(points), most)]
        chosen = pairs[:most] if most >= len(points) else some
        for at, fault in chosen:
            self._visit([(at, fault)])
        draw = random.Random(0)
        twice = [[draw.choice(pairs), draw.choice(pairs)] for _ in range(len(chosen) // 5)]
        for faults in twice:
            self._visit(faults)
        shutil.rmtree(self._base)
        return {
            "points": len(points),
            "points_visited": len({at for at, _ in chosen}),
            "calls": dict(Counter(point.split()[0] for point in points)),
            "visits": len(chosen),
            "visits_with_two_faults": len(twice),
            "ended": dict(sorted(self.ended.items())),
            "problems": self.problems,
        }

    def _fresh(self) -> Path:
        shutil.rmtree(self._base)
        self._base.mkdir()
        return self._base / "out"

    def _visit(self, faults: list[tuple[int, disk_faults.Fault]]) -> None:
        root = self._fresh()
        name = " then ".join(f"{fault} at {at}" for at, fault in faults)
        for number, (at, fault) in enumerate(faults):
            outcome = visit(self._action if number == 0 else self._again, root, fault, at)
            self.ended[f"{fault}: {outcome.ended}"] += 1
            self._judge(name, outcome)
            self.problems += [f"{name}: {lost}" for lost in self._lost(root)]
        outcome = visit(self._again, root)
        if outcome.ended != "done":
            self.problems.append(f"{name}: it does not go on: {outcome.message}")
            return
        self.problems += [f"{name}: {problem}" for problem in self._check(root)]

    def _judge(self, name: str, outcome: Outcome) -> None:
        if outcome.ended == "bug" or (outcome.ended == "error" and "\n" in outcome.message):
            self.problems.append(f"{name}: {outcome.message}")


def _rounds(points: list[str]) -> list[list[tuple[int, disk_faults.Fault]]]:
    """Returns all pairs of point and fault, each point once a round, its faults by turns."""
    rounds: list[list[tuple[int, disk_faults.Fault]]] = [[] for _ in FAULTS]
    for at, point in enumerate(points, start=1):
        faults = [fault for fault in FAULTS if _applies(fault, point)]
        for number in range(len(faults)):
            rounds[number].append((at, faults[(at + number) % len(faults)]))
    return rounds


def _applies(fault: disk_faults.Fault, point: str) -> bool:
    """Only a write can be short; a full disk refuses only what grows."""
    call = point.split()[0]
    return {"short": call == "write", "full": call in disk_faults.GROWING}.get(fault, True)


def evaluations() -> Campaign:
    """The campaign against an evaluation."""
    reference = Path(tempfile.mkdtemp(prefix="crashes-")) / "out"
    evaluation(reference)
    expected = state_of_run(reference)
    shutil.rmtree(reference.parent)

    def check(root: Path) -> list[str]:
        problems = verified(root)
        if state_of_run(root) != expected:
            problems.append("the episodes or the summary are not those of a run that met no fault")
        return problems

    def lost(root: Path) -> list[str]:
        stored = stored_keys(root)
        missing = finished_keys(root) - set(stored)
        twice = len(stored) - len(set(stored))
        return [*(f"{key} was finished and is lost" for key in sorted(missing)), *(["episodes twice"] if twice else [])]

    return Campaign(lambda root: evaluation(root, absent=True), evaluation, check, lost)


def training(root: Path) -> None:
    """Trains one round of FATE on the toy depot, from a policy that lies beside the folder's own."""
    import depot
    import torch
    from matplotlib.figure import Figure

    from fate_gym.trainers.config import read_config
    from fate_gym.trainers.fate import train

    # Forks of a process whose libraries have threads may hang.
    torch.set_num_threads(1)
    few = {"env": "toy/Depot-v0", "tasks": ["depot/*/0"]}
    tasks = {"env": "toy/Depot-v0", "tasks": ["depot/*/0", "depot/*/1"]}
    pfpo = {"steps": 1, "groups": 1, "group_size": 2, "refills": 0, "save_every": 1, "learning_rate": 1e-3}
    settings = depot.settings(_policy(), concurrency=2, train=[tasks], pfpo=pfpo, evaluate={"dev": few})
    config = root.with_name("settings.yaml")
    config.write_text(json.dumps(settings))
    Figure.savefig = _save_nothing
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        train(read_config(str(config)), root)


def _save_nothing(figure: Any, path: Path, **options: Any) -> None:
    """Takes the place of drawing, which takes most of the time of so small a training."""
    path.write_bytes(b"a picture")


@cache
def _policy() -> Path:
    import shop_plugin  # noqa: F401 (registers the toy benchmark)
    import shop_policy

    return shop_policy.make_shop_policy(Path(tempfile.mkdtemp(prefix="crashes-policy-")))


def state_of_training(root: Path) -> Any:
    """The episodes, token by token, the candidates, and the choice among them; and how the base policy scores."""
    from fate_gym.storage import records

    stages = {}
    for path in sorted((root / "round-1").glob("*.jsonl")):
        lines = [record for _, record in records(path)][1:]
        for line in lines:
            # Their last decimal depends on who shared a batch.
            (line.get("trajectory") or {}).pop("logprobs", None)
            line.pop("seconds", None)
        stages[path.name] = lines
    dev = sorted(records(root / "eval" / "dev-0" / "episodes.jsonl"), key=lambda entry: entry[1]["key"])
    return stages, [episode["verdict"] for _, episode in dev]


def trainings() -> Campaign:
    """The campaign against a training."""
    # One policy for all forks, and the libraries that the first training would load in each of them.
    _policy()
    for module in disk_faults.modules(training, Path(tempfile.mkdtemp(prefix="crashes-")) / "out"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()
    reference = Path(tempfile.mkdtemp(prefix="crashes-")) / "out"
    outcome = visit(training, reference)
    assert outcome.ended == "done", outcome.message
    expected = state_of_training(reference)
    shutil.rmtree(reference.parent)

    def check(root: Path) -> list[str]:
        problems = [f"{run.name}: {line}" for run in (root / "eval").iterdir() for line in verified(run, "depot")]
        if state_of_training(root) != expected:
            problems.append("episodes, candidates or choice are not those of a training that met no fault")
        left = [str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in (".part", ".tmp")]
        return [*problems, *(f"{name} is left over" for name in left)]

    return Campaign(training, training, check, lambda root: [])


CAMPAIGNS: dict[str, Callable[[], Campaign]] = {"evaluation": evaluations, "training": trainings}


def main(what: str, most: str = "100000") -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    report = CAMPAIGNS[what]().run(int(most))
    print(json.dumps(report, indent=1))
    sys.exit(1 if report["problems"] else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
