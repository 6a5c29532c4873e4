"""Pictures of a training run: they are written, differ with the data, and survive gaps."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fate_gym.trainers.study import plots


def estimate(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value and value - 0.1, "high": value and value + 0.1}


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file, in pixels."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_metrics_over_rounds_has_a_panel_a_metric(tmp_path: Path):
    rounds = [{"ASR": estimate(0.4), "TSR": estimate(0.5)}, {"ASR": estimate(0.1), "TSR": estimate(0.7)}]
    plots.metrics_over_rounds(tmp_path / "plots" / "two.png", rounds)
    plots.metrics_over_rounds(tmp_path / "three.png", [{**row, "hypervolume": 0.3, "n": 60} for row in rounds])
    two, three = size(tmp_path / "plots" / "two.png"), size(tmp_path / "three.png")
    assert three[0] == pytest.approx(1.5 * two[0], abs=2)
    assert three[1] == two[1]


def test_a_picture_shows_its_numbers_and_nothing_else(tmp_path: Path):
    for name, value in (("a", 0.4), ("b", 0.4), ("c", 0.3)):
        plots.metrics_over_rounds(tmp_path / name, [{"ASR": estimate(value)}, {"ASR": estimate(0.1)}])
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same != other


def test_missing_values_leave_gaps(tmp_path: Path):
    rounds = [{"ASR": estimate(None)}, {"TSR": {"value": 0.5}}, {}]
    plots.metrics_over_rounds(tmp_path / "gaps.png", rounds)
    assert size(tmp_path / "gaps.png")[0] > 100


def test_acceptance_has_a_panel_a_mode(tmp_path: Path):
    attacked = {"acceptance": 0.6, "candidates": 400, "by_axis": {"security": 0.8, "utility": 0.7}}
    benign = {"acceptance": None, "candidates": 0, "by_axis": {"security": None}}
    plots.acceptance(tmp_path / "one.png", [{"attacked": attacked}])
    plots.acceptance(tmp_path / "two.png", [{"attacked": attacked, "benign": benign}, {"attacked": attacked}])
    assert size(tmp_path / "two.png")[0] == pytest.approx(2 * size(tmp_path / "one.png")[0], abs=2)


def candidate(security: float, utility: float, decision: str, *, active: bool = True) -> plots.Candidate:
    return plots.Candidate([security, utility, 1.0, 1.0], [active, True, True, True], decision == "chosen")


def test_fronts_have_a_panel_a_round_and_may_be_empty(tmp_path: Path):
    some = [candidate(1, 1, "chosen"), candidate(1, 1, "another one was chosen"), candidate(0, 0.5, "unsafe")]
    benign = candidate(1, 0.2, "chosen", active=False)
    plots.fronts(tmp_path / "one.png", [some])
    plots.fronts(tmp_path / "same.png", [[*some, benign]])
    plots.fronts(tmp_path / "two.png", [some, []])
    assert size(tmp_path / "two.png")[0] == pytest.approx(2 * size(tmp_path / "one.png")[0], abs=2)
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "one.png").read_bytes(), "benign ones have no security"


def test_nothing_to_draw_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match="no metric"):
        plots.metrics_over_rounds(tmp_path / "x.png", [{}])
    with pytest.raises(ValueError, match="no repair candidate"):
        plots.acceptance(tmp_path / "x.png", [])
    with pytest.raises(ValueError, match="no round"):
        plots.fronts(tmp_path / "x.png", [])
    assert not (tmp_path / "x.png").exists()
