"""No bytes at any boundary do more than they may: hypothesis over every target, and what fuzzing has found so far."""

from __future__ import annotations

import os
from pathlib import Path

import mutations
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from targets import BY_NAME, TARGETS, Target

FINDINGS = sorted(Path(__file__).parent.joinpath("findings").glob("*/*"))
NAMES = [target.name for target in TARGETS]

# Seeds of run folders are large: to shrink them takes minutes. The time that an example takes says nothing.
RELAXED = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def attack(target: Target, examples: int, *, same: bool) -> None:
    """Draws examples, the same each time or others."""

    @given(mutations.changed(target.seeds()))
    @settings(RELAXED, max_examples=examples, derandomize=same)
    def withstands(data: bytes) -> None:
        target.check(data)

    withstands()


@pytest.mark.parametrize("name", NAMES)
def test_well_formed_bytes_are_read(name: str) -> None:
    for seed in BY_NAME[name].seeds():
        BY_NAME[name].check(seed)


@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes_are_withstood(name: str) -> None:
    attack(BY_NAME[name], 40, same=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_bytes_are_withstood(name: str) -> None:
    attack(BY_NAME[name], 400, same=os.environ.get("CI") == "true")


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: Path) -> None:
    BY_NAME[path.parent.name].check(path.read_bytes())


@given(st.data())
@settings(RELAXED, max_examples=30)
def test_mutations_reach_beyond_their_seeds(data: st.DataObject) -> None:
    seeds = [b'{"a": [1, {"b": null}]}\n']
    assert isinstance(data.draw(mutations.changed(seeds)), bytes)
