"""The base policy of a training."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from fate_gym.errors import UsageError
from fate_gym.trainers.base_policy import base_policy
from fate_gym.trainers.config import read_config
from fate_gym.trainers.folder import TrainingFolder


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    needs = r"training needs transformers: pip install 'fate-gym\[train\]'"
    with TrainingFolder(read_config("fate-tiny-ci", []), tmp_path) as folder, pytest.raises(UsageError, match=needs):
        base_policy(folder)
