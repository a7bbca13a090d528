"""One short script per statement of the theory: run() -> rows, check(rows) -> verdict, draw(rows, axes)."""

from types import ModuleType

from srlm.experiments import (
    anchored_rounds,
    assumptions,
    concentrability,
    contraction,
    fidelity,
    finite_sample,
    greedy_trap,
    guarantee,
    linear_softmax,
    lower_bound,
    mass_leak,
    one_round,
    rounds_lower_bound,
    sandwich,
    share_rewards,
    single_vs_iterated,
)

EXPERIMENTS: dict[str, ModuleType] = {
    "lower-bound": lower_bound,
    "greedy-trap": greedy_trap,
    "one-round": one_round,
    "contraction": contraction,
    "finite-sample": finite_sample,
    "guarantee": guarantee,
    "single-vs-iterated": single_vs_iterated,
    "linear-softmax": linear_softmax,
    "assumptions": assumptions,
    "mass-leak": mass_leak,
    "concentrability": concentrability,
    "sandwich": sandwich,
    "rounds-lower-bound": rounds_lower_bound,
    "anchored-rounds": anchored_rounds,
    "fidelity": fidelity,
    "share-rewards": share_rewards,
}
