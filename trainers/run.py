"""One training on disk: where its files lie, and its stages, each of which reads files and writes files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fate_gym.chat import Json
from fate_gym.errors import RunError
from fate_gym.storage import encode_line, file_digest, folder_digest, make_folder, records, replace_file
from fate_gym.trainers import collect, examples, repair, selection
from fate_gym.trainers.config import MAY_CHANGE, RULE_OF, TrainConfig
from fate_gym.trainers.episodes import Episode, Item, TaskPool, TaskSet
from fate_gym.trainers.ledger import Ledger, mark
from fate_gym.trainers.progress import Watch
from fate_gym.trainers.scoring import Row, score, volume
from fate_gym.trainers.stages import Stage, read_stage


class Run:
    """A training in its folder. As a context manager it holds the folder against other writers.

    Args:
        config: The settings.
        out: The folder.
        watch: Told what goes on.
        shared: Where the base policy and its scores lie, if other trainings share them; else `out`.

    Raises:
        RunMismatchError: The folder holds a training of other settings.
    """

    def __init__(
        self, config: TrainConfig, out: Path, watch: Watch | None = None, *, shared: Path | None = None
    ) -> None:
        self.config, self.out, self.watch = config, out, watch or Watch()
        self.shared = shared or out
        self._ledger = Ledger(self.out)

    def __enter__(self) -> Run:
        self._ledger.open(self.config.to_json(), may_change=MAY_CHANGE)
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.close()

    def seconds(self) -> float:
        """Wall-clock seconds of the stages so far, over all starts."""
        return self._ledger.seconds()

    def folder(self, number: int) -> Path:
        """The folder of a round, counted from 1."""
        return self.out / f"round-{number}"

    # What the policy is, at each point.

    @property
    def base(self) -> str:
        """The policy before training."""
        return self.config.policy or str(self.shared / "base")

    def make_base(self) -> None:
        """Makes the tiny base policy, if that is what the settings begin with, and it is not there yet."""
        if self.config.base is None:
            return
        from fate_gym.trainers.tiny.base import build_base, read_base

        folder = self.shared / "base"
        made = read_base(folder)
        if made is not None and made.digest == self.config.tiny.digest():
            return
        with self._ledger.timed("base"), self.watch.stage("base", self.config.tiny.steps):
            build_base(
                folder,
                self.config.tiny,
                on_progress=lambda step, steps, loss: self.watch.advance(f"loss {loss:.3f}"),
            )

    def policy(self, number: int) -> str:
        """The policy that a round begins with."""
        return self.base if number == 1 else self.result(number - 1)

    def result(self, number: int) -> str:
        """The policy that a round ends with.

        Raises:
            RunError: The round has not come to its end.
        """
        return self._after(number, "pfpo" if self._optimises else "warmup")

    def _after(self, number: int, stage: str) -> str:
        """The policy after a stage; where there was nothing to learn, the one before it."""
        folder = self.folder(number) / stage
        if (folder / "numbers.json").exists():
            return str(folder)
        if (folder / "skipped.json").exists():
            return self.policy(number)
        raise RunError(f"there is no policy in {folder}: run stage {stage} of round {number} first")

    @property
    def _warms_up(self) -> bool:
        return self.config.method not in RULE_OF and (self.config.warmup is not None or self.config.method == "dpo")

    @property
    def _optimises(self) -> bool:
        return self.config.pfpo is not None and (self.config.method == "fate" or self.config.method in RULE_OF)

    @property
    def _repairs(self) -> bool:
        return self._warms_up and self.config.method != "rft"

    # The tasks.

    @functools.cached_property
    def tiny_exclude(self) -> tuple[str, ...]:
        """Tasks that the tiny policy is not made for."""
        return self.config.tiny.exclude if self.config.base else ()

    def pool(self, number: int) -> TaskPool:
        """The training tasks, with seeds of the round."""
        sets = [dataclasses.replace(task_set, exclude=self._exclude(task_set)) for task_set in self.config.train]
        return TaskPool(sets, self._seed(number, "collect"), purpose="training")

    def _exclude(self, task_set: TaskSet) -> tuple[str, ...]:
        return (*task_set.exclude, *self.tiny_exclude)

    def items(self, pool: TaskPool) -> list[Item]:
        """The episodes to collect: without the tasks that doing nothing passes."""
        if not self.config.collect.leave_out_noop:
            return list(pool.items)
        noop = collect.noop_tasks(pool)
        kept = [item for item in pool.items if pool.task(item).cluster not in noop]
        if not kept:
            raise ValueError("doing nothing passes all training tasks: set collect.leave_out_noop=false to use them")
        return kept

    # The stages.

    def collect(self, number: int) -> Stage:
        """Stage 1: failures F_t, and successes."""
        pool = self.pool(number)
        with self._ledger.timed("collect", number), self._agent(self.policy(number), number, "collect") as agent:
            return collect.collect(
                pool,
                agent,
                self.items(pool),
                self.config.collect,
                self.folder(number) / "collect.jsonl",
                inputs=self._inputs(number),
                concurrency=self.config.concurrency,
                watch=self.watch,
            )

    def repair(self, number: int) -> Stage | None:
        """Stage 2: K candidates for each failure, executed and scored. None where the method learns from no repairs."""
        if not self._repairs:
            return None
        failures, _ = self._collected(number)
        with self._ledger.timed("repair", number), self._agent(self.policy(number), number, "repair") as agent:
            return repair.repair(
                self.pool(number),
                agent,
                failures,
                self.config.repair,
                self.folder(number) / "repairs.jsonl",
                inputs={**self._inputs(number), "collect": self._digest(number, "collect.jsonl")},
                concurrency=self.config.concurrency,
                watch=self.watch,
            )

    def select(self, number: int) -> Stage | None:
        """Stage 3: one repair a* for each failure that has one, and why the others were turned away."""
        if not self._repairs:
            return None
        failures, _ = self._collected(number)
        stage = selection.select(
            failures,
            read_stage(self.folder(number) / "repairs.jsonl", repair.SCHEMA),
            self.config.select,
            self.folder(number) / "selected.jsonl",
            inputs={"repairs": self._digest(number, "repairs.jsonl")},
            seed=self._seed(number, "select"),
        )
        for mode, counts in stage.header["counts"]["modes"].items():
            told = "{repaired} of {failures} {mode} failures repaired, {accepted} of {candidates} candidates accepted"
            self.watch.say(f"round {number}: {told.format(mode=mode, **counts)}")
        return stage

    def warm_up(self, number: int) -> dict[str, Any] | None:
        """Stage 4: supervised learning, or the method "dpo". None where the method has none, or nothing to learn."""
        if not self._warms_up:
            return None
        out, config = self.folder(number) / "warmup", self.config
        options: dict[str, Any] = {"lora": config.lora, "attention": config.attention}
        seed = self._seed(number, "warmup")
        failures, successes = self._collected(number)
        repaired = self._repaired(number) if self._repairs else {}
        chosen = list(repaired.values())
        if config.method == "dpo":
            failed = {failure.key: failure for failure in failures}
            data: Any = examples.pairs(chosen, [failed[key] for key in repaired])
        elif config.method == "rft":
            data = examples.from_successes(successes)
        else:
            wanted = dataclasses.replace(config.examples, anchor=0.0) if config.method == "sft" else config.examples
            data = examples.from_repairs(chosen, successes, wanted, seed)
        if not data:
            self._skip(number, out, "nothing was there to learn from")
            return None
        with self._ledger.timed("warmup", number), self._learning("warmup", out) as on_step:
            from fate_gym.trainers.preferences import dpo
            from fate_gym.trainers.warmup import warm_up

            if config.method == "dpo":
                settings: Any = dataclasses.replace(config.dpo, seed=seed)
                numbers = dpo(self.policy(number), data, settings, out, on_step=on_step, **options)
            else:
                settings = dataclasses.replace(config.warmup, seed=seed)  # type: ignore[type-var]
                numbers = warm_up(self.policy(number), data, settings, out, on_step=on_step, **options)
        self._mark(number, out, [*chosen, *successes])
        return numbers

    def pfpo(self, number: int) -> dict[str, Any] | None:
        """Stage 5: policy optimisation on x, from the warmed policy. None where the method has none."""
        config, settings = self.config, self.config.pfpo
        if not self._optimises or settings is None:
            return None
        from fate_gym.trainers.pfpo import optimise

        out, pool = self.folder(number) / "pfpo", self.pool(number)
        items = {(item.variant, item.task_id): item for item in reversed(self.items(pool))}
        rule = RULE_OF.get(config.method, settings.rule)
        settings = dataclasses.replace(settings, rule=rule, seed=self._seed(number, "pfpo"))
        begin = self._after(number, "warmup") if self._warms_up else self.policy(number)
        with self._ledger.timed("pfpo", number), self._learning("pfpo", out, settings.steps) as on_step:
            numbers = optimise(
                begin,
                pool,
                list(reversed(items.values())),
                settings,
                out,
                lora=config.lora,
                agent_options=config.agent,
                attention=config.attention,
                on_step=on_step,
            )
        failures, successes = self._collected(number)
        self._mark(number, out, [*failures, *successes])
        return numbers

    def score(self, number: int) -> Row:
        """The dev row of the policy that a round ends with, `hypervolume` beside its metrics; 0 is the base."""
        policy = self.base if number == 0 else self.result(number)
        where = self.out if number else self.shared
        dev = self.config.evaluate.dev
        task_set = dataclasses.replace(dev, exclude=self._exclude(dev))
        row = self._score(policy, task_set, where / "eval" / f"dev-{number}")
        row["hypervolume"] = {"value": volume(row)}
        if number:
            replace_file(self.folder(number) / "dev.json", encode_line(row))
        return row

    def test(self, when: str, policy: str) -> dict[str, Row]:
        """Rows of a policy on every test set, without the pairs that the tiny base has been shown.

        Args:
            when: "before" or "after".
            policy: The policy.
        """
        where = self.shared if when == "before" else self.out
        rows = {}
        for name, task_set in self.config.evaluate.test.items():
            exclude = (*self._exclude(task_set), *self._shown)
            folder = where / "eval" / f"{when}-{name.replace('/', '-')}"
            rows[name] = self._score(policy, dataclasses.replace(task_set, exclude=exclude), folder)
        return rows

    @functools.cached_property
    def _shown(self) -> tuple[str, ...]:
        """Attacked pairs that the tiny base was cloned on."""
        if self.config.base is None:
            return ()
        from fate_gym.trainers.tiny.base import read_base

        report = read_base(self.shared / "base")
        return tuple(report.seen) if report else ()

    # What the stages share.

    def _score(self, policy: str, task_set: TaskSet, out: Path) -> Row:
        with self._ledger.timed("score"):
            return score(
                policy,
                task_set,
                out,
                agent=self.config.agent,
                temperature=self.config.evaluate.temperature,
                seed=self.config.seed,
                concurrency=self.config.concurrency,
                watch=self.watch,
            )

    @contextmanager
    def _agent(self, policy: str, number: int, stage: str) -> Iterator[Any]:
        from fate_gym.agents.local import LocalAgent

        options: dict[str, Any] = {"attention": self.config.attention, **self.config.agent}
        agent = LocalAgent(policy, temperature=1.0, seed=self._seed(number, stage), **options)
        try:
            yield agent
        finally:
            import asyncio

            asyncio.run(agent.aclose())

    @contextmanager
    def _learning(self, stage: str, out: Path, total: int | None = None) -> Iterator[Any]:
        done = sum(1 for _ in records(out / "steps.jsonl"))
        with self.watch.stage(stage, total or 0, done):
            yield lambda step: self.watch.advance(_line(step))

    def _collected(self, number: int) -> tuple[list[Episode], list[Episode]]:
        return collect.split_failures(read_stage(self.folder(number) / "collect.jsonl", collect.SCHEMA))

    def _repaired(self, number: int) -> dict[str, Episode]:
        """Key of a failure -> its repair."""
        selected = read_stage(self.folder(number) / "selected.jsonl", selection.SCHEMA)
        candidates = read_stage(self.folder(number) / "repairs.jsonl", repair.SCHEMA)
        failed = [line["failure"] for line in selected.records if line["verdict"] == selection.CHOSEN]
        return dict(zip(failed, selection.repairs(selected, candidates), strict=True))

    def _inputs(self, number: int) -> dict[str, Json]:
        policy = self.policy(number)
        weights = folder_digest(Path(policy)) if Path(policy).is_dir() else policy
        return {"policy": weights, "seed": self.config.seed, "round": number, "agent": self.config.agent}

    def _digest(self, number: int, name: str) -> str:
        path = self.folder(number) / name
        if not path.exists():
            raise RunError(f"there is no {path}: run the stage that writes it first")
        return file_digest(path)

    def _skip(self, number: int, out: Path, reason: str) -> None:
        make_folder(out)
        replace_file(out / "skipped.json", encode_line({"reason": reason}))
        self.watch.say(f"round {number}: no {out.name}, {reason}")

    def _mark(self, number: int, out: Path, learned: list[Episode]) -> None:
        """Marks a checkpoint with what it has learned from, earlier marks included."""
        told = {"base": self.base, "method": self.config.method, "round": number}
        mark(out, learned, earlier=(self.policy(number), self.folder(number) / "warmup"), told=told)

    def _seed(self, *place: object) -> int:
        text = "/".join(map(str, (self.config.seed, *place)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _line(step: Mapping[str, Any]) -> str:
    """A training step for people: the axes of its rollouts, whose loss says little, or else its loss."""
    if step.get("vector"):
        return f"{collect.axes_line(step['vector'])} signal {step['signal']:.2f}"
    return f"loss {step['loss']:.3f}"
