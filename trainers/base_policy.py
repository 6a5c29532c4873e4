"""The policy before training: given in the settings, or the tiny one, which is made from nothing."""

from __future__ import annotations

from fate_gym.errors import UsageError
from fate_gym.trainers.folder import TrainingFolder


def base_policy(folder: TrainingFolder) -> str:
    """Returns the base policy, after making it if the settings say so and it is not there yet.

    Raises:
        UsageError: A package of the extra `train` is not installed.
    """
    config = folder.config
    if config.base is None:
        return folder.base
    from fate_gym.trainers.tiny.base import build_base, read_base

    made = read_base(folder.shared / "base")
    if made is None or made.digest != config.tiny.digest():
        with folder.timed("base"), folder.progress.stage("base", config.tiny.steps):
            try:
                build_base(
                    folder.shared / "base",
                    config.tiny,
                    on_progress=lambda step, steps, loss: folder.progress.advance(f"loss {loss:.3f}"),
                )
            except ModuleNotFoundError as error:
                raise UsageError(f"training needs {error.name}: pip install 'fate-gym[train]'") from error
    return folder.base


def cloned_pairs(folder: TrainingFolder) -> tuple[str, ...]:
    """Returns the attacked pairs that the tiny base policy was cloned on: a score on them would mean nothing."""
    if folder.config.base is None:
        return ()
    from fate_gym.trainers.tiny.base import read_base

    report = read_base(folder.shared / "base")
    return tuple(report.seen) if report else ()
