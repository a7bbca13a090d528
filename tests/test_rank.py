from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from srlm.estimators.rank import kendall_tau


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("responses", [2, 3, 8])
def test_agrees_with_scipy_row_by_row(levels: int, responses: int) -> None:
    a, b = np.random.default_rng(levels + responses).integers(0, levels, size=(2, 50, responses)).astype(float)
    expected = [float(np.asarray(kendalltau(x, y))[0]) for x, y in zip(a, b, strict=True)]
    assert kendall_tau(a, b) == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_orders_minus_infinity() -> None:
    a = np.array([[-math.inf, -2.0, -1.0, -math.inf]])
    assert kendall_tau(a, np.exp(a)) == pytest.approx(1.0)
    assert kendall_tau(a, -np.exp(a)) == pytest.approx(-1.0)
    assert kendall_tau(a, a) == pytest.approx(1.0) and kendall_tau(a, -a) == pytest.approx(-1.0)


def test_leaves_out_rows_where_it_is_undefined() -> None:
    a = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, math.nan, 3.0]])
    b = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert kendall_tau(a, b) == pytest.approx(1.0)
    assert math.isnan(kendall_tau(a[1:], b[1:]))
    assert math.isnan(kendall_tau(np.empty((0, 3)), np.empty((0, 3))))
    assert math.isnan(kendall_tau(np.ones((2, 1)), np.ones((2, 1))))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"two arrays \[P, K\]"):
        kendall_tau(np.ones((2, 3)), np.ones((2, 4)))
