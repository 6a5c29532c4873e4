"""The bandit: its exact expectations, and that the documentation says what it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fate_gym.trainers.algorithms.advantages import RULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))

import pfpo_bandit as bandit  # noqa: E402


def test_the_page_says_and_shows_what_the_command_gives(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    first, second = tmp_path / "new" / "first.png", tmp_path / "second.png"
    assert bandit.main(["--out", str(first)]) == 0
    page = (DOCS / "pfpo.md").read_text(encoding="utf-8")
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page
    assert "(pfpo-drift.png)" in page
    assert (DOCS / "pfpo-drift.png").read_bytes().startswith(b"\x89PNG")
    # The picture is no noise: drawn again it is the same, and it is one.
    bandit.draw(second)
    assert first.read_bytes() == second.read_bytes()
    assert 20_000 < first.stat().st_size < 150_000


def test_without_a_name_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert bandit.main([]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rule", ["weighted-sum", "safe-ranks"])
def test_the_expectation_is_that_of_sampled_groups(rule: str):
    names = tuple(bandit.BEHAVIOURS)
    vectors = np.array([bandit.BEHAVIOURS[name] for name in names], dtype=np.float64)
    shares = np.array([0.1, 0.2, 0.2, 0.3, 0.2])
    rng = np.random.default_rng(0)
    gradients = []
    for _ in range(1500):
        drawn = rng.choice(len(names), size=8, p=shares)
        found = RULES[rule](vectors[drawn], np.ones(4, dtype=bool))
        gradients.append(((np.eye(len(names))[drawn] - shares) * found[:, None]).mean(axis=0))
    sampled, error = np.mean(gradients, axis=0), np.std(gradients, axis=0) / np.sqrt(1500)
    assert (np.abs(bandit.Bandit(rule, names).drift(shares) - sampled) < 4.5 * error).all()


def test_shares_stay_shares_and_begin_at_the_start():
    path = bandit.Bandit("gdpo", tuple(bandit.CORNERS)).run(bandit.CORNERS)
    assert path.shape == (bandit.STEPS + 1, 2)
    assert path[0] == pytest.approx(list(bandit.CORNERS.values()))
    assert path.sum(axis=1) == pytest.approx(np.ones(len(path)))


@pytest.mark.parametrize("rule", ["safe-tchebycheff", "safe-ranks"])
def test_the_safe_first_rules_end_safe_from_every_start(rule: str):
    for balanced in bandit.STARTS.values():
        shares = bandit.final_shares(rule, balanced)
        assert shares["obeys both"] + shares["obeys attacker"] < 0.25
    assert bandit.final_shares(rule, 0.02)["balanced"] > 0.9
