"""Δm and its parts, by values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyshot.training.improvement import improvements, mean_improvement, relative_improvement

POSITIVE = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(
    ("metric", "value", "baseline", "improvement"),
    [
        ("rmse", 8.0, 10.0, 0.2),  # lower is better
        ("mae", 12.0, 10.0, -0.2),
        ("log_loss", 0.5, 0.5, 0.0),
        ("roc_auc", 0.88, 0.8, 0.1),  # higher is better
        ("accuracy", 0.6, 0.8, -0.25),
        ("r2", 0.1, -0.2, 1.5),  # a negative baseline does not turn the direction
        ("r2", -0.3, -0.2, -0.5),
    ],
)
def test_the_direction_and_the_size_of_an_improvement(metric, value, baseline, improvement):
    assert relative_improvement(metric, value, baseline) == pytest.approx(improvement)


@pytest.mark.parametrize(
    ("value", "baseline"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf), (1.0, 0.0)]
)
def test_no_improvement_can_be_told_from_what_is_no_number_or_zero(value, baseline):
    assert math.isnan(relative_improvement("rmse", value, baseline))


def test_delta_m_is_the_mean_over_tasks_each_in_its_own_direction():
    baselines = {"read/rmse": 10.0, "math/rmse": 20.0, "passed/roc_auc": 0.8}
    values = {"read/rmse": 9.0, "math/rmse": 22.0, "passed/roc_auc": 0.84, "passed/f1": 0.1}
    assert improvements(values, baselines) == pytest.approx(
        {"read/rmse": 0.1, "math/rmse": -0.1, "passed/roc_auc": 0.05}
    )
    assert mean_improvement(values, baselines) == pytest.approx(0.05 / 3)


def test_delta_m_is_undefined_when_one_task_is():
    assert math.isnan(mean_improvement({"a/rmse": 1.0, "b/rmse": math.nan}, {"a/rmse": 2.0, "b/rmse": 2.0}))


@given(value=POSITIVE, baseline=POSITIVE, unit=POSITIVE)
def test_an_improvement_has_no_unit(value, baseline, unit):
    assert relative_improvement("rmse", value * unit, baseline * unit) == pytest.approx(
        relative_improvement("rmse", value, baseline), rel=1e-6, abs=1e-9
    )


@given(value=POSITIVE, baseline=POSITIVE)
def test_lower_and_higher_mirror_each_other(value, baseline):
    assert relative_improvement("rmse", value, baseline) == -relative_improvement("accuracy", value, baseline)
