"""What no learner is below: the worst instance of App. D that a class has room for."""

from __future__ import annotations

import math

from srlm.theory import HardInstance, worst_case_instance


def largest_hard_instance(
    prompts: int, log_kappa0: float, log_class_size: float, draws: int, level: float, *, adaptive: bool = False
) -> HardInstance | None:
    """With this kappa_0 (margin -> 0) and as many informative prompts as log|Pi| allows, the one on which the best
    learner of n prompts with K draws fails most; None where there is no room for one, or level delta > 1/2."""
    # Its failure is that of naming one label. At most one has more than 1 - delta only up to 1/2: beyond, a policy
    # passes that shares its mass among several.
    if level > 0.5:
        return None
    # M >= kappa_0, which is no number beyond e^700.
    if not 0 < log_kappa0 <= 700:
        return None
    kappa0 = math.exp(log_kappa0)
    # d log M grows with d, and M >= kappa_0: the largest d whose worst instance has at most log|Pi|
    fits, too_many, best = 0, int(log_class_size / max(log_kappa0, math.log(2))) + 1, None
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        instance = worst_case_instance(prompts, kappa0, middle, draws, adaptive=adaptive)
        if instance.log_class_size <= log_class_size:
            fits, best = middle, instance
        else:
            too_many = middle
    return best
