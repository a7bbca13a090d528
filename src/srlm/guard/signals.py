"""What tells of a damaged policy, and what of one that has learned all it will."""

from __future__ import annotations

from collections.abc import Sequence

from srlm.estimators.intervals import wilson
from srlm.guard.settings import GuardSettings
from srlm.types import Record


def alarms(records: Sequence[Record], config: GuardSettings) -> list[str]:
    """Why the last of `records` is one of a damaged policy: one reason per signal.

    Thresholds lie outside of what 14 healthy runs of three rounds on SmolLM2 ever reached (docs/evidence.md; their
    extremes stand behind each signal), whether with clip and anchor or without; those that tell most lie inside of
    what three runs on the random reward did (mode fidelity to 0, displacement to -4.1, leak to -2.05, entropy x 3.3):
    mode_fidelity >= .83, displacement >= -.15 (held out -.09), leak >= -1.5 (held out -1.0), accuracy within .06 of its
    best, entropy <= .25 of its start, finished lengths within 5 %, truncation never rose, repeated_ngrams
    rose by at most .008 and same_response not at all, kendall_tau >= .74, log_ratio_max_abs <= 5.4 nats a token,
    distinct_2 >= 1.5 times its start over K. An unclipped run that collapsed had mode fidelity .40 and displacement
    -6.6. In 39 more healthy runs, of two families and tasks (docs/methods.md): self_consistency at most .035 under its
    best, mode_surprisal_held_out at most .62 nats above its forecast, upper end of auroc >= .62, displacement >= -.41.
    """
    start, now, found = records[0], records[-1], []

    def check(name: str, value: float | None, bad: bool, limit: str, note: str = "") -> None:
        if value is not None and bad:
            found.append(f"{name.replace('_', ' ')} is {value:.3g}{note}, {limit}")

    def below(name: str, limit: float) -> None:
        value = figure(now, name)
        check(name, value, value is not None and value < limit, f"below {limit:g}")

    def rose(name: str, most: float) -> None:
        value, first = figure(now, name), figure(start, name) or 0.0
        check(
            name, value, value is not None and value > first + most, f"more than {most:g} above round 0's {first:.3g}"
        )

    if len(records) == 1:
        return []
    fidelity, number = figure(now, "mode_fidelity"), figure(now, "held_out_prompts")
    if fidelity is not None:
        upper = wilson(round(fidelity * number), int(number))[1] if number else fidelity
        limit = config.guard_mode_fidelity
        check("mode_fidelity", fidelity, upper < limit, f"below {limit:g}", f" (at most {upper:.3g})" if number else "")
    for part in ("", "_held_out"):
        below(f"displacement{part}", config.guard_displacement)
        below(f"leak{part}", config.guard_leak)
    agreed = max(figure(record, "self_consistency") or 0.0 for record in records)
    consistency = figure(now, "self_consistency")
    if consistency is not None and number:  # of few prompts chance alone makes it fall
        below_best = wilson(consistency * number, number)[1] < wilson(agreed * number, number)[0]
        less = below_best and consistency < agreed - config.guard_consistency
        check("self_consistency", consistency, less, f"down from {agreed:.3g}")
    surprisal, forecast = figure(now, "mode_surprisal_held_out"), figure(now, "mode_surprisal_forecast")
    if surprisal is not None and forecast is not None:
        exact = f"more than {config.guard_kappa:g} above the exact update's {forecast:.3g}"
        rose_too = surprisal > (figure(records[-2], "mode_surprisal_held_out") or 0.0)  # slow learning is no damage
        check("mode_surprisal_held_out", surprisal, rose_too and surprisal > forecast + config.guard_kappa, exact)
    entropy, first = figure(now, "entropy"), figure(start, "entropy")
    if entropy is not None and first is not None:
        above = f"above {config.guard_entropy:g} times round 0's {first:.3g}"
        check("entropy", entropy, entropy > config.guard_entropy * first, above)
    length, first = (_finished_length(record, config.max_new_tokens) for record in (now, start))
    if length is not None and first is not None:
        drifted = max(length / first, first / length) > config.guard_length
        far = f"more than a factor of {config.guard_length:g} from round 0's {first:.3g}"
        check("length of finished responses", length, drifted, far)
    rose("truncation_rate", config.guard_truncation)
    rose("repeated_ngrams", config.guard_repetition)
    rose("same_response", config.guard_same_response)
    below("kendall_tau", config.guard_kendall)
    ratio, most = figure(now, "log_ratio_max_abs"), config.guard_log_ratio * config.max_new_tokens
    check("log_ratio_max_abs", ratio, ratio is not None and ratio > most, f"above {most:g} nats")
    below("distinct_2", config.guard_distinct_2 * (figure(start, "distinct_2") or 0.0) / config.num_samples)
    _, best = max((figure(r, "accuracy_sampled") or 0.0, t) for t, r in enumerate(records))
    accuracy, reach = figure(now, "accuracy_sampled"), figure(now, "accuracy_sampled_high")
    top, least = figure(records[best], "accuracy_sampled"), figure(records[best], "accuracy_sampled_low")
    if accuracy is not None and reach is not None and top is not None and least is not None:
        fell = reach < least and accuracy < top - config.guard_accuracy_drop
        check("accuracy_sampled", accuracy, fell, f"down from {top:.3g} in round {best}")
    auroc, highest = figure(now, "auroc"), figure(now, "auroc_high")
    if auroc is not None and highest is not None:
        wrong = f"below {config.guard_auroc:g}: the self-reward prefers wrong responses"
        check("auroc", auroc, highest < config.guard_auroc, wrong, f" (at most {highest:.3g})")
    return found


def settled(records: Sequence[Record], config: GuardSettings) -> bool:
    """The last update changed little: displacement (on held-out prompts if there are any) and, where it is measured,
    the step of the J_0 gap are both within guard_saturated nats. In the 14 healthy runs it holds in round 3 alone."""
    if len(records) == 1:
        return False
    gain = held_out(records[-1], "displacement")
    gaps = [figure(record, "j0_gap") for record in records[-2:]]
    step = 0.0 if gaps[0] is None or gaps[1] is None else gaps[1] - gaps[0]
    return gain is not None and abs(gain) < config.guard_saturated and abs(step) < config.guard_saturated


def figure(record: Record, name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def held_out(record: Record, name: str) -> float | None:
    value = figure(record, f"{name}_held_out")
    return figure(record, name) if value is None else value


def _finished_length(record: Record, longest: int) -> float | None:
    """Mean tokens of the responses that were not cut off: those that were have `longest` each. Thus a model that learns
    to end is not one whose answers shrink."""
    length, share = figure(record, "mean_length"), figure(record, "eos_rate")
    return None if length is None or not share else max(1.0, (length - (1 - share) * longest) / share)
