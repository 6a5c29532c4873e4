"""What a study trains: its replicates and arms, read from a configuration, and the settings of each training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fate_gym.evaluation.config import read_settings
from fate_gym.evaluation.plan import TaskSet
from fate_gym.trainers._settings_reader import read_dataclass
from fate_gym.trainers.config import TrainConfig, config_from, overridden
from fate_gym.trainers.study.arms import ARMS, BASELINES
from fate_gym.trainers.study.hypotheses import Hypothesis


@dataclass(frozen=True, slots=True)
class Replicate:
    """One repetition of a study, with a base policy of its own: all arms in it differ by their settings alone.

    Attributes:
        seed: The seed of cloning and of every training.
        fold: The fold of AgentDojo's split; None for version 1 of the split.
    """

    seed: int = 0
    fold: int | None = None

    @property
    def name(self) -> str:
        """Its name in folders and files."""
        return f"seed{self.seed}" if self.fold is None else f"fold{self.fold}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class StudySettings:
    """The section `study` of a configuration.

    Attributes:
        replicates: The replicates, in the order in which they are trained.
        arms: What is trained in every replicate, in this order; the first is compared with each of the others.
        ablations: What is trained in the first replicates alone, after all arms.
        ablation_replicates: How many replicates these are.
        hypotheses: What is expected of the results; the report says what was found.
    """

    replicates: tuple[Replicate, ...] = (Replicate(),)
    arms: tuple[str, ...] = BASELINES
    ablations: tuple[str, ...] = ()
    ablation_replicates: int = 2
    hypotheses: tuple[Hypothesis, ...] = ()

    def __post_init__(self) -> None:
        names = (*self.arms, *self.ablations)
        unknown = [arm for arm in names if arm not in ARMS]
        if unknown:
            raise ValueError(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
        if not self.arms or len(set(names)) != len(names):
            raise ValueError(f"give some arms, each once, not {', '.join(names) or 'none'}")
        replicates = [replicate.name for replicate in self.replicates]
        if not replicates or len(set(replicates)) != len(replicates):
            raise ValueError(f"give some replicates, each once, not {', '.join(replicates) or 'none'}")


@dataclass(frozen=True, slots=True)
class Study:
    """A study: the same trainings in several replicates.

    Attributes:
        name: Name of its configuration.
        settings: Replicates and arms.
        training: The settings that all trainings share, as YAML has them.
        overrides: What the user changed in them, strings "KEY=VALUE".
    """

    name: str
    settings: StudySettings
    training: dict[str, Any]
    overrides: tuple[str, ...] = ()

    def config(self, replicate: Replicate, arm: str) -> TrainConfig:
        """Returns the settings of one training. An arm's own overrides come last.

        Raises:
            ValueError: The settings make no sense.
        """
        return in_replicate(config_from(overridden(self.training, ARMS[arm].overrides)), replicate)

    def trainings(self, replicates: Sequence[Replicate], arms: Sequence[str]) -> list[tuple[Replicate, str]]:
        """Lists trainings in their order: replicate by replicate, and the ablations after all arms.

        Args:
            replicates: Some of the replicates; none for those of the study.
            arms: Some of the arms; none for those of the study, its ablations among them.

        Raises:
            ValueError: There is no such arm.
        """
        settings = self.settings
        chosen = tuple(replicates) or settings.replicates
        if arms:
            # Read as settings, so that a wrong name is told as it would be in the file.
            named = dataclasses.replace(settings, arms=tuple(arms), ablations=()).arms
            return [(replicate, arm) for replicate in chosen for arm in named]
        ablated = [one for one in settings.replicates[: settings.ablation_replicates] if one in chosen]
        return [(replicate, arm) for replicate in chosen for arm in settings.arms] + [
            (replicate, arm) for replicate in ablated for arm in settings.ablations
        ]


def read_study(name: str, overrides: Sequence[str] = ()) -> Study:
    """Reads a study from a configuration: that of a training, with or without the section `study`.

    Without the section, the study is one replicate with the seed of the training, and all methods.

    Args:
        name: A path, or the name of a shipped configuration.
        overrides: Strings "KEY=VALUE" for all arms, as `read_config` takes them.

    Raises:
        ValueError: The file does not exist, a key is unknown, or a value makes no sense.
    """
    training = overridden(read_settings(name), overrides)
    section = training.pop("study", None)
    if section is None:
        section = {"replicates": [{"seed": config_from(training).seed}]}
    settings: StudySettings = read_dataclass(StudySettings, section, "study")
    study = Study(Path(name).stem, settings, training, tuple(overrides))
    for replicate, arm in study.trainings((), ()):
        # Now, and not hours later, when its turn comes.
        study.config(replicate, arm)
    return study


def in_replicate(config: TrainConfig, replicate: Replicate) -> TrainConfig:
    """Returns the settings with the seed of a replicate, and with its fold in every task set that names a split."""

    def folded(task_set: TaskSet) -> TaskSet:
        if replicate.fold is None or "split" not in task_set.env_args:
            return task_set
        return dataclasses.replace(task_set, env_args={**task_set.env_args, "fold": replicate.fold})

    evaluate = config.evaluate
    return dataclasses.replace(
        config,
        seed=replicate.seed,
        base=config.base and dataclasses.replace(config.base, seed=replicate.seed, fold=replicate.fold),
        train=tuple(map(folded, config.train)),
        evaluate=dataclasses.replace(
            evaluate, dev=folded(evaluate.dev), test={name: folded(test) for name, test in evaluate.test.items()}
        ),
    )
