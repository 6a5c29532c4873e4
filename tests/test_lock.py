"""requirements.lock fits pyproject.toml, says nothing of where it was made, and brings no CUDA."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
LOCKED = [Requirement(line.partition("#")[0]) for line in LINES if line.partition("#")[0].strip()]


# Packages of other trainers, which exclude each other: no one lock holds both. `make test-integrations` installs them.
UNLOCKED = {"openenv", "verifiers"}


def test_each_dependency_is_locked_within_its_range() -> None:
    extras = [needs for extra, needs in PROJECT["optional-dependencies"].items() if extra not in UNLOCKED]
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        needed = Requirement(text)
        if needed.name == PROJECT["name"]:
            continue
        pins = [pin for pin in LOCKED if canonicalize_name(pin.name) == canonicalize_name(needed.name)]
        assert pins, f"run `make lock`: {needed.name} is missing"
        for pin in pins:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert needed.specifier.contains(exact.version), f"run `make lock`: {pin} is outside of {needed}"


def test_the_lock_names_no_host_no_path_and_no_cuda() -> None:
    text = "\n".join(LINES)
    assert "://" not in text
    assert "--" not in text
    assert not [pin.name for pin in LOCKED if pin.name.startswith(("nvidia", "cuda", "triton"))]
