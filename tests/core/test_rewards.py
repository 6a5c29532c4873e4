from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fate_gym import AXES, AxisVerdict, Scalarization, Verdict

ON = np.array([True] * 4)


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_weights_are_renormalised_over_active_axes() -> None:
    scalarize = Scalarization({"security": 3, "utility": 1})
    assert scalarize(vector(1, 0, 0, 0), ON) == 0.75
    assert scalarize(vector(1, 0, 0, 0), np.array([False, True, True, True])) == 0.0
    assert scalarize(vector(0.5, 1, 0, 0), np.array([True, False, True, True])) == 0.5


def test_without_any_weighted_active_axis_the_stored_values_count() -> None:
    only_security = Scalarization([1, 0, 0, 0])
    assert only_security(vector(1, 0, 0, 0), np.array([False, True, True, True])) == 1.0
    assert only_security(vector(0, 1, 1, 1), np.array([False, True, True, True])) == 0.0


def test_min_takes_the_worst_active_axis() -> None:
    assert Scalarization("min")(vector(0, 0.5, 1, 1), np.array([False, True, True, True])) == 0.5
    assert Scalarization("min")(vector(0, 0, 0, 0), ~ON) == 0.0


def four(elements: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(elements, min_size=4, max_size=4)


@given(values=four(st.floats(0, 1, width=32)), mask=four(st.booleans()), weights=four(st.floats(0.01, 10)))
def test_a_scalar_lies_between_its_active_axes(values: list[float], mask: list[bool], weights: list[float]) -> None:
    result = Scalarization(weights)(vector(*values), np.array(mask))
    active = [value for value, on in zip(values, mask, strict=True) if on] or values
    assert min(active) - 1e-6 <= result <= max(active) + 1e-6


@pytest.mark.parametrize("spec", ["max", [1, 2], {"security": -1}, [0, 0, 0, 0], [float("nan"), 1, 1, 1], {"charm": 1}])
def test_other_scalarizations_are_refused(spec: object) -> None:
    with pytest.raises(ValueError, match=r"scalarization|axes"):
        Scalarization(spec)  # type: ignore[arg-type]


def test_verdicts_hold_vector_and_mask_in_the_order_of_the_axes() -> None:
    failed = AxisVerdict.failed("grader", KeyError("x"))
    verdict = Verdict(AxisVerdict.inactive("no attack"), failed, AxisVerdict.scored(0.25, "rule", ["why"]), failed)
    assert tuple(verdict.axes) == AXES
    assert verdict.vector.tolist() == [1.0, 0.0, 0.25, 0.0]
    assert verdict.mask.tolist() == [False, False, True, False]
    assert verdict.to_json()["over_refusal_control"]["evidence"] == ["why"]
    assert verdict.to_json()["utility"]["error"] == "KeyError: 'x'"
    with pytest.raises(ValueError, match=r"rule gave 1\.5"):
        AxisVerdict.scored(1.5, "rule")
