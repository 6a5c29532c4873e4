"""The policy before training: the one that is given in the settings, or one that cloning makes."""

from __future__ import annotations

from fate_gym.errors import UsageError
from fate_gym.trainers.folder import TrainingFolder
from fate_gym.trainers.processes import first_alone


def base_policy(folder: TrainingFolder) -> str:
    """Returns the base policy, after making it if the settings say so and it is not there yet.

    Raises:
        UsageError: A package of the extra `train` is not installed.
    """
    settings = folder.config.base
    if settings is None:
        return folder.base
    from fate_gym.trainers.cloning.base import build_base, read_base

    with first_alone():
        made = read_base(folder.shared / "base")
        if made is None or made.digest != settings.digest():
            with folder.timed("base"), folder.progress.stage("base", settings.steps):
                try:
                    build_base(
                        folder.shared / "base",
                        settings,
                        on_progress=lambda step, steps, loss: folder.progress.advance(f"loss {loss:.3f}"),
                    )
                except ModuleNotFoundError as error:
                    raise UsageError(f"training needs {error.name}: pip install 'fate-gym[train]'") from error
    return folder.base


def cloned_pairs(folder: TrainingFolder) -> tuple[str, ...]:
    """Returns the attacked pairs that the base policy was cloned on: a score on them would mean nothing."""
    if folder.config.base is None:
        return ()
    from fate_gym.trainers.cloning.base import read_base

    report = read_base(folder.shared / "base")
    return tuple(report.seen) if report else ()
