"""docs/theory-note.md: its formulas and numbers are those of the functions, and what it names is there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom

from srlm import theory
from srlm.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[1]
NOTE = (ROOT / "docs" / "theory-note.md").read_text(encoding="utf-8")


def read(behind: str, count: int) -> list[float]:
    """The next numbers on the page."""
    assert NOTE.count(behind) == 1, behind
    return [float(one) for one in re.findall(r"\d*\.\d+|\d+", NOTE.partition(behind)[2])[:count]]


def test_what_it_names_is_there() -> None:
    code = set(re.findall(r"`([^`\n]+)`", NOTE))
    for test in [name for name in code if name.startswith("tests/")]:
        assert (ROOT / test).is_file(), test
    functions = {
        re.sub(r"\(.*", "", name).split(".")[0] for name in code if re.fullmatch(r"[A-Za-z_.]+(\(.*\))?", name)
    }
    functions -= {"figures"}
    assert len(functions) > 15 and not [name for name in functions if not hasattr(theory, name)]
    command = re.search(r"srlm verify (.+?) --output", NOTE)
    assert command is not None
    run = command[1].split()
    named = {name for line in code if line.startswith("srlm verify ") for name in line.split()[2:]}
    assert named == set(run) <= set(EXPERIMENTS)
    figures = re.findall(r"\(figures/([^)]+)\)", NOTE)
    assert sorted(figures) == sorted(f"theory-{name}.svg" for name in run)
    assert all((ROOT / "docs" / "figures" / figure).is_file() for figure in figures)
    for anchor in re.findall(r"\(#([^)]+)\)", NOTE):
        assert anchor in {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-")
                          for line in NOTE.splitlines() if line.startswith("#")}, anchor  # fmt: skip


def test_the_paper_s_bound_of_c1_and_c4() -> None:
    said = []
    for n in (1e5, 1e6, 1e7):
        margin = math.log(0.6 / (0.4 - 1 / (4 * n)))
        said.append(
            theory.finite_class_guarantee(
                num_samples=n, rounds=1, kappa0=5 / 3, log_class_size=math.log(2), min_confidence=0.49, margin=margin,
                beta=n**-0.5, level=0.5, failure_probability=0.05,
            ).total
        )  # fmt: skip
    assert said == pytest.approx(read("The bound of Thm 5.3 with $C=1$ is ", 3), abs=0.005)
    common, rare = read("the margins are ", 2)
    assert margin == pytest.approx(common, abs=5e-4) and math.log(0.49 / (0.51 / 100)) == pytest.approx(rare, abs=0.05)
    late = theory.finite_class_guarantee(
        num_samples=1e5 / 64, rounds=64, kappa0=1e300, log_class_size=20, min_confidence=0.045, margin=0.28, beta=1,
        level=0.5, failure_probability=0.05,
    )  # fmt: skip
    as_written = late.statistical_factor * math.sqrt(1e300) * late.contraction ** (63 / 2)
    assert [math.log10(as_written)] == pytest.approx(read("its transient part is\n$10^{", 1), abs=0.1)
    assert [late.total] == pytest.approx(read("$ as written, and ", 1), abs=0.5)


def test_numbers_of_c2_and_c6_and_what_thm_4_1_can_have() -> None:
    floor = theory.worst_case_failure([32, 64, 128, 256], 3.0, 2, 2)
    assert floor == pytest.approx(read("nobody is below ", 4), abs=6e-4)
    alpha = theory.sharpening_exponent(0.7, 4)
    assert theory.sharpening_exponent(1 / (alpha - 1), 1) == pytest.approx(alpha)
    instance = theory.worst_case_instance(100_000, 1000.0, 5)
    by_bound = theory.single_step_lower_bound(1e5, math.log(1000), instance.log_class_size)
    found = by_bound, instance.bayes_failure(100_000)
    assert found == pytest.approx(tuple(read("$\\kappa=1000$, $n=10^5$: ", 2)), abs=6e-4)


def test_theorems_1_and_2_as_they_are_written() -> None:
    p, n, k, size, rho = np.array([0.9, 0.3, 0.05]), 5000, 3, 7.0, 0.05
    group = np.mean(1 / (1 - (1 - p) ** k))
    given = {"num_samples": n, "samples_per_prompt": k, "log_class_size": size, "failure_probability": rho}
    assert theory.anchored_failure_bound(**given, mode_prob=p) == pytest.approx(
        math.sqrt(group * math.log(math.exp(size) / rho) / n)
    )
    kappa, gamma, beta, rounds = float(np.mean(1 / p)), 0.4, 0.8, 3
    assert group <= 1 + (kappa - 1) / k
    b = [1 + sum(beta ** -(s + 1) for s in range(t)) for t in range(rounds + 1)]
    bars = [1 + (kappa - 1) * math.exp(-(b[t] - 1) * gamma) / k for t in range(rounds)]
    expected = sum(math.sqrt(bar * math.log(math.exp(size) * rounds / rho) / n) for bar in bars)
    bound = theory.anchored_rounds_bound(**given, rounds=rounds, beta=beta, margin=gamma, kappa0=kappa)
    assert bound == pytest.approx(expected) and theory.anchored_exponent(beta, rounds) == pytest.approx(b[-1])
    tail = (kappa - 1) * math.exp(-(b[-1] - 1) * gamma) * 0.3 / 0.7
    assert theory.sharpened_failure_bound(kappa, gamma, b[-1], 0.7) == pytest.approx(tail)


def test_corollaries_as_they_are_written() -> None:
    d, norm, eps = 4, 3.0, 0.01
    assert theory.covering_log_size(d, norm, eps) == pytest.approx(d * math.log(1 + 6 * norm / eps))
    n, k, sigma, h, size, rho = 1e6, 4, 0.5, 0.7, 3.0, 0.05
    noisy = theory.noisy_anchored_failure_bound(
        num_samples=n, log_class_size=size, failure_probability=rho, samples_per_prompt=k, noise=sigma, tolerance=h,
        mode_prob=[0.2],
    )  # fmt: skip
    group = 1 / (1 - 0.8**k)
    loud = 8 * max(1, 4 * sigma**2 * k / ((k - 1) * h**2))
    assert noisy == pytest.approx(math.sqrt(loud * group * (size + math.log(2 / rho)) / n))
    c, most = 2.1, 1.7
    by_hand = min(most, (c - 1) / k + most * math.exp(-k / (8 * c)))
    assert theory.log_partition_bias_bound(k, c, most) == pytest.approx(by_hand)


def test_theorem_3_as_it_is_written() -> None:
    n, t, k, d, kappa = 32, 4, 2, 4, 5.0
    labels, mass = 29, (kappa - 1) / 28
    visits = np.arange(n * t + 1)
    failure = mass * binom.pmf(visits, n * t, mass / d) @ np.maximum(1 - (k * visits + 1) / labels, 0)
    assert theory.HardInstance(d, labels, mass).adaptive_failure(n * t, k) == pytest.approx(failure)
    closed = 2 / (3 * math.sqrt(3)) * math.sqrt(d * (kappa - 1) / (n * t * k)) - d / (3 * n * t * k)
    assert theory.rounds_lower_bound(n, t, kappa, d, k) == pytest.approx(closed)
    said = theory.rounds_lower_bound(n, [1, 2, 4, 8, 16], kappa, d, k)
    assert said == pytest.approx(read("closed form ", 5), abs=6e-4)
    exact = theory.worst_case_failure(np.multiply(n, [1, 2, 4, 8, 16]), kappa, d, k, adaptive=True)
    assert exact == pytest.approx(read("exact floor ", 5), abs=6e-4)
    assert [2 / (3 * math.sqrt(3))] == pytest.approx(read("in the place of ", 1), abs=5e-4)
    assert [math.exp(-0.5) / math.sqrt(2)] == pytest.approx(read("$e^{-1/2}/\\sqrt2=", 1), abs=5e-4)
    # The steps of the closed form.
    for x in np.logspace(0, 3, 30):
        for y in np.linspace(x / (x + 1), 1, 30)[1:]:
            first = y - (x * y / 3 + 1) * y**2 / (x + y)
            assert first >= y - y**3 / 3 - y**2 / (x + y) - 1e-12 >= 2 / 3 - 1 / (x + 1) ** 2 - 1 / (x + 1) - 1e-9
        assert 1 / (x + 1) ** 2 + 1 / (x + 1) <= 1 / x


def test_theorems_4_and_5_as_they_are_written() -> None:
    rates = [0.05, 0.02, 0.01]
    for level in (0.2, 0.8):
        assert theory.fidelity_bound(rates, level) == pytest.approx(2 * 0.07 + 0.01 / min(level, 0.5))
    m, gamma, beta = 300, 0.25, 1.7
    written = (m + 1) * math.log((1 - 1 / m) / (1 - math.exp(-gamma))) + math.log(m) - gamma
    assert theory.share_rounds_needed(m, gamma, beta) == pytest.approx(beta * written)
    flow = quad(lambda odds: beta * (m + math.exp(odds)) / math.expm1(odds), gamma, math.log(m), epsabs=1e-10)[0]
    assert beta * written == pytest.approx(flow)
    assert math.log(1 / (1 - math.exp(-0.25))) == pytest.approx(1.51, abs=0.01)


TEX = """
Big Delta Pi Vert alpha approx ast bar beta big cdot delta dot dots epsilon frac gamma ge hat in
infty int kappa lbrace lceil le log lt max min ne notin pi prod propto qquad quad rbrace rceil rho
sigma sim sqrt sum text theta to
"""


def test_every_command_of_a_formula_is_one_of_tex() -> None:
    """A letter that runs into a command, as in \\DeltaE, leaves the formula unshown."""
    assert set(re.findall(r"\\([A-Za-z]+)", NOTE)) <= set(TEX.split())


def test_prompts_for_a_class_of_trained_bits() -> None:
    """What one round needs is linear in log|Pi| + log(2/rho), the limit of the forecast taking half of rho."""
    few, many = read("is the number of trained bits (", 2)[0] * 1000, 6.8e9
    assert NOTE.count("(16 139 prompts at 20 nats are 6.8 billion at $10^7$)") == 1
    assert many == pytest.approx(16139 * (1e7 + math.log(40)) / (20 + math.log(40)), rel=0.005) and few == 16000
