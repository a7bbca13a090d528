"""Floor 0: floats and arrays in, floats out. Never imports torch.

Scalar arguments give floats; arrays broadcast. Whatever is out of range or no number, NaN and text included, raises
ValueError. Where a function takes log_kappa0, kappa_0 may be given by its logarithm; a kappa that it returns then is
one, too.
docs/theory.md maps equations to these functions and their tests.
"""

from srlm.theory.anchored import (
    anchored_failure_bound,
    log_group_condition_number,
    log_partition_bias_bound,
    noisy_anchored_failure_bound,
)
from srlm.theory.anchored_rounds import anchored_exponent, anchored_rounds_bound
from srlm.theory.condition import condition_number, log_condition_number, mode_margin
from srlm.theory.dimension import (
    covering_log_size,
    effective_dimension,
    exponential_spectrum_bound,
    polynomial_spectrum_bound,
    spiked_spectrum_bound,
)
from srlm.theory.fidelity import fidelity_bound, fidelity_guarantee
from srlm.theory.greedy_trap import GreedyTrap, greedy_trap
from srlm.theory.guarantee import Guarantee, finite_class_guarantee, linear_softmax_guarantee
from srlm.theory.lower_bound import (
    HardInstance,
    rounds_lower_bound,
    samples_needed,
    single_step_lower_bound,
    single_step_lower_bound_asymptotic,
    worst_case_failure,
    worst_case_failure_closed_form,
    worst_case_instance,
)
from srlm.theory.recursion import (
    contraction_factor,
    iterations_to_forget,
    kappa_bound,
    kappa_fixed_point,
    kappa_recursion,
    relaxation_factor,
    tail_integral,
    tail_integral_recursion,
)
from srlm.theory.share_rewards import log_share_from_samples, share_rounds_needed, sharpen_by_share
from srlm.theory.sharpening import (
    sharpen,
    sharpened_failure_bound,
    sharpened_kappa_bound,
    sharpened_log_odds,
    sharpened_mode_bracket,
    sharpening_exponent,
)

__all__ = [
    "GreedyTrap",
    "Guarantee",
    "HardInstance",
    "anchored_exponent",
    "anchored_failure_bound",
    "anchored_rounds_bound",
    "condition_number",
    "contraction_factor",
    "covering_log_size",
    "effective_dimension",
    "exponential_spectrum_bound",
    "fidelity_bound",
    "fidelity_guarantee",
    "finite_class_guarantee",
    "greedy_trap",
    "iterations_to_forget",
    "kappa_bound",
    "kappa_fixed_point",
    "kappa_recursion",
    "linear_softmax_guarantee",
    "log_condition_number",
    "log_group_condition_number",
    "log_partition_bias_bound",
    "log_share_from_samples",
    "mode_margin",
    "noisy_anchored_failure_bound",
    "polynomial_spectrum_bound",
    "relaxation_factor",
    "rounds_lower_bound",
    "samples_needed",
    "share_rounds_needed",
    "sharpen",
    "sharpen_by_share",
    "sharpened_failure_bound",
    "sharpened_kappa_bound",
    "sharpened_log_odds",
    "sharpened_mode_bracket",
    "sharpening_exponent",
    "single_step_lower_bound",
    "single_step_lower_bound_asymptotic",
    "spiked_spectrum_bound",
    "tail_integral",
    "tail_integral_recursion",
    "worst_case_failure",
    "worst_case_failure_closed_form",
    "worst_case_instance",
]
