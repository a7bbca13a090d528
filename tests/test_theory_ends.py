"""Ranges of the theory's arguments, end by end: what belongs to a range is taken, what does not is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from srlm import theory
from srlm.theory.fidelity import fidelity_bound, fidelity_guarantee

INF, TINY = math.inf, 1e-300
WHOLE = ([1], [0, -1, INF, math.nan, 1.5])  # [1, inf), whole
COUNT = ([1, 1.5], [0.99, 0, -1, INF, math.nan])  # [1, inf)
POSITIVE = ([TINY], [0, -1, INF, math.nan])  # (0, inf)
FROM_ZERO = ([0], [-TINY, INF, math.nan])  # [0, inf)
INSIDE = ([1e-9, 1 - 1e-9], [0, 1, math.nan])  # (0, 1)
SHARE = ([0, 1], [-1e-9, 1 + 1e-9, math.nan])  # [0, 1]
ABOVE_ZERO = ([1e-9, 1], [0, 1 + 1e-9, math.nan])  # (0, 1]

SAMPLE = {"num_samples": 100.0, "log_class_size": 2.0, "failure_probability": 0.1}
SAMPLE_ENDS = {"num_samples": COUNT, "log_class_size": FROM_ZERO, "failure_probability": INSIDE}
PAPER = SAMPLE | {"rounds": 2, "kappa0": 3.0, "min_confidence": 0.4, "margin": 1.0, "beta": 0.1, "level": 0.5}
PAPER_ENDS = SAMPLE_ENDS | {"rounds": WHOLE, "kappa0": COUNT, "min_confidence": ABOVE_ZERO, "beta": FROM_ZERO}
PAPER_ENDS |= {"margin": ([1e-3], [0, -1, INF]), "level": INSIDE, "constant": ([1e-9], [0, -1, INF])}
HARD = {"num_samples": 50, "kappa": 3.0, "num_prompts": 2, "samples_per_prompt": 2}
HARD_ENDS = {"num_samples": WHOLE, "kappa": COUNT, "num_prompts": WHOLE, "samples_per_prompt": WHOLE}


def by_modes(**given: Any) -> object:
    return theory.anchored_failure_bound(**given)


ENDS: dict[Any, tuple[dict[str, Any], dict[str, tuple[list[float], list[float]]]]] = {
    theory.anchored_failure_bound: (
        SAMPLE | {"samples_per_prompt": 2, "log_condition": 1.0},
        SAMPLE_ENDS | {"samples_per_prompt": WHOLE, "log_condition": FROM_ZERO},
    ),
    theory.noisy_anchored_failure_bound: (
        SAMPLE | {"samples_per_prompt": 2, "log_condition": 1.0, "noise": 0.5, "tolerance": 0.5},
        SAMPLE_ENDS
        | {"samples_per_prompt": ([2], [1, 2.5, INF]), "noise": FROM_ZERO, "tolerance": ([1e-9], [0, -1, INF])}
        | {"log_condition": FROM_ZERO},
    ),
    by_modes: (SAMPLE | {"mode_prob": [0.5]}, {"mode_prob": ([[0.0, 1.0]], [[-0.1], [1.1], [math.nan]])}),
    theory.log_partition_bias_bound: (
        {"samples_per_prompt": 4, "concentrability": 2.0, "largest_log_ratio": 1.0},
        {"samples_per_prompt": WHOLE, "concentrability": COUNT, "largest_log_ratio": FROM_ZERO},
    ),
    theory.anchored_exponent: ({"beta": 1.0, "rounds": 2}, {"beta": POSITIVE, "rounds": ([0], [-1, 0.5, INF])}),
    theory.anchored_rounds_bound: (
        SAMPLE | {"rounds": 2, "margin": 1.0, "beta": 1.0, "samples_per_prompt": 2, "kappa0": 3.0},
        SAMPLE_ENDS
        | {"rounds": WHOLE, "margin": POSITIVE, "beta": POSITIVE, "samples_per_prompt": WHOLE, "kappa0": COUNT},
    ),
    theory.finite_class_guarantee: (PAPER, PAPER_ENDS),
    theory.linear_softmax_guarantee: (
        {name: value for name, value in PAPER.items() if name != "log_class_size"} | {"dimension": 3, "norm_bound": 2},
        {name: ends for name, ends in PAPER_ENDS.items() if name != "log_class_size"}
        | {"dimension": ([1e-9], [0, -1, INF]), "norm_bound": ([1e-9], [0, -1, INF])},
    ),
    fidelity_guarantee: (PAPER, PAPER_ENDS),
    fidelity_bound: ({"round_rate": [0.1, 0.2], "level": 0.5}, {"level": INSIDE}),
    theory.samples_needed: (
        {"failure": 0.1, "log_kappa": 1.0, "log_class_size": 2.0},
        {"failure": ABOVE_ZERO, "log_kappa": FROM_ZERO, "log_class_size": POSITIVE, "constant": POSITIVE},
    ),
    theory.single_step_lower_bound: (
        {"num_samples": 10.0, "log_kappa": 1.0, "log_class_size": 2.0},
        {"num_samples": COUNT, "log_kappa": FROM_ZERO, "log_class_size": POSITIVE, "constant": POSITIVE},
    ),
    theory.single_step_lower_bound_asymptotic: (
        {"num_samples": 10.0, "log_kappa": 1.0, "log_class_size": 2.0},
        {
            "num_samples": ([10.0], [0, -1, INF]),
            "log_kappa": FROM_ZERO,
            "log_class_size": POSITIVE,
            "constant": POSITIVE,
        },
    ),
    theory.worst_case_instance: (HARD, HARD_ENDS),
    theory.HardInstance(2, 3, 0.5).bayes_failure: (
        {"num_samples": 10, "samples_per_prompt": 2},
        {"num_samples": WHOLE, "samples_per_prompt": WHOLE},
    ),
    theory.worst_case_failure: (HARD, HARD_ENDS),
    theory.worst_case_failure_closed_form: (HARD, HARD_ENDS),
    theory.rounds_lower_bound: (HARD | {"rounds": 2}, HARD_ENDS | {"rounds": WHOLE}),
    theory.HardInstance: (
        {"num_prompts": 2, "num_labels": 4, "informative_mass": 0.5, "margin": 0.1},
        {
            "num_prompts": WHOLE,
            "num_labels": ([2], [1, 2.5, INF]),
            "informative_mass": SHARE,
            "margin": ([0, 2.99], [-1e-9, 3, math.nan]),
        },
    ),
    theory.sharpened_kappa_bound: (
        {"kappa0": 3.0, "margin": 1.0, "exponent": 2.0},
        {"kappa0": COUNT, "margin": POSITIVE, "exponent": ([1, INF], [0.99, math.nan])},
    ),
    theory.sharpened_failure_bound: (
        {"kappa0": 3.0, "margin": 1.0, "exponent": 2.0, "level": 0.5},
        {"kappa0": COUNT, "margin": POSITIVE, "exponent": ([1, INF], [0.99, math.nan]), "level": INSIDE},
    ),
    theory.sharpening_exponent: ({"beta": 1.0, "rounds": 2}, {"beta": POSITIVE, "rounds": FROM_ZERO}),
    theory.sharpened_log_odds: (
        {"log_odds": 1.0, "beta": 1.0, "rounds": 2},
        {
            "log_odds": ([0, INF], [-1e-9, math.nan]),
            "beta": POSITIVE,
            "rounds": ([0], [-1, 0.5]),
            "clip": ([1e-9, INF], [0, -1]),
        },
    ),
    theory.sharpen: (
        {"log_prob": [0.0, -1.0], "exponent": 1.0},
        {"exponent": POSITIVE, "log_prob": ([[-INF, 0.0]], [[math.nan], [INF]])},
    ),
    theory.sharpened_mode_bracket: (
        {"known_log_prob": [-1.0], "unknown_mass": 0.7, "largest_unknown_log_prob": -2.0, "exponent": 2.0},
        {
            "known_log_prob": ([[-1.0, -INF]], [[0.1], [math.nan]]),
            "unknown_mass": ([0.7], [-0.1, 1.1]),
            "largest_unknown_log_prob": ([-2.0], [0.1]),
            "exponent": ([2.0], [0, -1]),
        },
    ),
    theory.share_rounds_needed: (
        {"num_rivals": 5, "margin": 1.0, "beta": 1.0},
        {"num_rivals": WHOLE, "margin": POSITIVE, "beta": POSITIVE},
    ),
    theory.log_share_from_samples: (
        {"log_share": -1.0, "num_samples": 3},
        {"log_share": ([0, -INF], [1e-9, math.nan]), "num_samples": WHOLE},
    ),
    theory.sharpen_by_share: (
        {"log_share": [math.log(0.6), math.log(0.4)], "beta": 1.0, "rounds": 1},
        {"beta": POSITIVE, "rounds": ([0], [-1, 0.5, INF])},
    ),
    theory.tail_integral: (
        {"failure_rate": 0.1, "confidence": 0.3},
        {"failure_rate": FROM_ZERO, "confidence": ABOVE_ZERO},
    ),
    theory.tail_integral_recursion: (
        {"kappa0": 3.0, "rounds": 2, "statistical_rate": 0.1, "beta_rate": 0.1, "confidence": 0.3},
        {
            "kappa0": COUNT,
            "rounds": ([0], [-1, 0.5, INF]),
            "statistical_rate": FROM_ZERO,
            "beta_rate": FROM_ZERO,
            "confidence": ABOVE_ZERO,
        },
    ),
    theory.kappa_recursion: (
        {"kappa0": 3.0, "rounds": 2, "baseline": 1.0, "sqrt_coefficient": 0.1, "log_coefficient": 0.1},
        {
            "kappa0": COUNT,
            "rounds": ([0], [-1, 0.5, INF]),
            "baseline": COUNT,
            "sqrt_coefficient": FROM_ZERO,
            "log_coefficient": FROM_ZERO,
        },
    ),
    theory.relaxation_factor: (
        {"smallest_failure_rate": 0.1, "confidence": 0.3},
        {"smallest_failure_rate": POSITIVE, "confidence": ABOVE_ZERO},
    ),
    theory.kappa_fixed_point: (
        {"baseline": 1.0, "coefficient": 0.5},
        {"baseline": COUNT, "coefficient": FROM_ZERO},
    ),
    theory.contraction_factor: (
        {"baseline": 1.0, "coefficient": 0.5},
        {"baseline": COUNT, "coefficient": FROM_ZERO},
    ),
    theory.kappa_bound: (
        {"kappa0": 3.0, "rounds": 2, "baseline": 1.0, "coefficient": 0.5},
        {"kappa0": COUNT, "rounds": ([0], [-1, 0.5]), "baseline": COUNT, "coefficient": FROM_ZERO},
    ),
    theory.iterations_to_forget: (
        {"kappa0": 3.0, "baseline": 1.0, "coefficient": 0.5},
        {"kappa0": COUNT, "baseline": COUNT, "coefficient": FROM_ZERO},
    ),
    theory.exponential_spectrum_bound: (
        {"scale": 1.0, "decay": 1.0, "ridge": 1.0},
        {"scale": POSITIVE, "decay": POSITIVE, "ridge": ([1e-9], [0, -1, INF])},
    ),
    theory.polynomial_spectrum_bound: (
        {"scale": 1.0, "power": 2.0, "ridge": 1.0},
        {"scale": POSITIVE, "power": ([1.01], [1, INF]), "ridge": ([1e-9], [0, -1, INF])},
    ),
    theory.spiked_spectrum_bound: (
        {"num_spikes": 2, "tail_mass": 1.0, "ridge": 1.0},
        {"num_spikes": ([0], [-1, 0.5, INF]), "tail_mass": FROM_ZERO, "ridge": ([1e-9], [0, -1, INF])},
    ),
    theory.greedy_trap: (
        {"vocab_size": 3, "length": 2, "mode_prob": 0.3},
        {"vocab_size": ([3], [2, 3.5, INF]), "length": ([2], [1, 2.5, INF]), "mode_prob": ([0.21, 0.49], [0.2, 0.5])},
    ),
    theory.condition_number: (
        {"mode_prob": [0.5, 0.2]},
        {"mode_prob": ([[0.0, 1.0]], [[-1e-9, 1.0], [1 + 1e-9, 1.0]]), "weight": ([[0, 1]], [[-0.1, 1.1], [0.5, 0.4]])},
    ),
    theory.mode_margin: (
        {"log_prob": [-1.0, -2.0]},
        {"log_prob": ([[0.0, -INF], [-1.0, -1.0]], [[1e-9, -1.0], [-1.0], [-INF, -INF], [[-1, -2], [-INF, -INF]]])},
    ),
    theory.log_group_condition_number: (
        {"mode_log_prob": [-1.0, -2.0], "samples_per_prompt": 2},
        {"mode_log_prob": ([[0.0, -INF]], [[1e-9, -1.0]]), "samples_per_prompt": WHOLE},
    ),
    theory.effective_dimension: (
        {"eigenvalues": [1.0, 0.5], "ridge": 0.1},
        {"ridge": POSITIVE, "eigenvalues": ([[0.0, 1.0]], [[-0.1], [math.nan], [INF]])},
    ),
    theory.covering_log_size: (
        {"dimension": 2.0, "norm_bound": 1.0, "resolution": 0.1},
        {"dimension": POSITIVE, "norm_bound": POSITIVE, "resolution": POSITIVE},
    ),
}


def cases() -> Iterator[Any]:
    for function, (given, ends) in ENDS.items():
        for name, (taken, refused) in ends.items():
            yield pytest.param(function, given, name, taken, refused, id=f"{function.__name__}-{name}")


@pytest.mark.parametrize(("function", "given", "name", "taken", "refused"), cases())
def test_every_range_has_the_ends_that_it_names(function, given, name: str, taken, refused) -> None:
    for value in taken:
        function(**given | {name: value})
    one_number = all(np.ndim(value) == 0 for value in refused)
    for value in [*refused, math.nan] if one_number else refused:
        said = f"in .*[\\[(].*got {re.escape(str(value))}" if one_number else ".*got "
        with pytest.raises(ValueError, match=rf"^{name} must .*{said}"):
            function(**given | {name: value})


def test_text_is_no_number_and_what_has_no_repr_is_named() -> None:
    given = SAMPLE | {"samples_per_prompt": 2, "log_condition": 1.0}
    for value in ("3", ["3"], b"3", None, [[1.0], [1.0, 2.0]], 10**400, [10**400]):
        with pytest.raises(ValueError, match="num_samples must be in"):
            theory.anchored_failure_bound(**given | {"num_samples": value})
    with pytest.raises(ValueError, match="a number beyond the floats"):
        theory.anchored_failure_bound(**given | {"num_samples": 10**5000})
    with pytest.raises(ValueError) as long:
        theory.anchored_failure_bound(**given | {"num_samples": "3" * 500})
    assert len(str(long.value)) < 120 and str(long.value).endswith("...")
    with pytest.raises(ValueError, match=re.escape("got '33'")):
        theory.anchored_failure_bound(**given | {"num_samples": "33"})


def test_one_of_two_is_given() -> None:
    given = {"margin": 1.0, "exponent": 2.0}
    with pytest.raises(ValueError, match="kappa0 or log_kappa0 must be given, got neither"):
        theory.sharpened_kappa_bound(None, **given)
    with pytest.raises(ValueError, match="kappa0 or log_kappa0 must be given, got both"):
        theory.sharpened_kappa_bound(3.0, **given, log_kappa0=1.0)
    with pytest.raises(ValueError, match="mode_prob or log_condition must be given, got neither"):
        theory.anchored_failure_bound(**SAMPLE)
    with pytest.raises(ValueError, match="mode_prob or log_condition must be given, got both"):
        theory.anchored_failure_bound(**SAMPLE, mode_prob=[0.5], log_condition=1.0)
    with pytest.raises(ValueError, match="weight must be given with mode_prob only"):
        theory.anchored_failure_bound(**SAMPLE, log_condition=1.0, weight=[1.0])
    with pytest.raises(ValueError, match="samples_per_prompt must be one"):
        theory.anchored_failure_bound(**SAMPLE, mode_prob=[0.5], samples_per_prompt=[1, 2])


def test_every_row_of_a_batch_is_looked_at() -> None:
    known = [[-1.0, -INF], [-1.0, -2.0]]
    mass = [1 - math.exp(-1), 1 - math.exp(-1) - math.exp(-2)]
    low, high = theory.sharpened_mode_bracket(known, mass, [-0.5, -0.5], 2.0)
    assert low.shape == high.shape == (2,) and (low <= high).all()
    for largest in ([-INF, -0.5], [-0.5, -INF]):
        with pytest.raises(ValueError, match="largest_unknown_log_prob must be in"):
            theory.sharpened_mode_bracket(known, mass, largest, 2.0)
    with pytest.raises(ValueError, match="known_log_prob must be"):
        theory.sharpened_mode_bracket([known[0], [-INF, -INF]], [mass[0], 1.0], [-0.5, -0.5], 2.0)
