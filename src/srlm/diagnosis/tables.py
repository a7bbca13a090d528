"""The two tables that a diagnosis keeps: one row a prompt, one row a sample."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srlm.diagnosis.levels import Classes, Rights
from srlm.diagnosis.probe import Probe
from srlm.estimators.consistency import Consistency
from srlm.prompts.select import one_kind

Columns = dict[str, list[Any]]


def prompt_table(
    probe: Probe, votes: Sequence[Consistency], shares: NDArray[np.float64], right: Rights | None
) -> Columns:
    """Log-probs in nats. mode: the mode, or the best response known where `certified` is 0 (1: mode, 2: runner-up too).
    mode_log_prob_high: no response is more probable. modal_answer: of the samples, with the interval of its share."""
    found = probe.found
    columns: Columns = {
        "prompt_index": probe.indices,
        "prompt": one_kind(probe.items),
        "mode": [texts[0] for texts in probe.found_texts],
        "mode_tokens": [list(one.responses[0]) for one in found],
        "mode_log_prob": [one.mode_log_prob[0] for one in found],
        "mode_log_prob_high": [one.mode_log_prob[1] for one in found],
        "certified": [min(one.num_certified, 2) for one in found],
        "runner_up": [texts[1] if len(texts) > 1 else None for texts in probe.found_texts],
        "runner_up_log_prob": [one.log_prob[1] if len(one.log_prob) > 1 else None for one in found],
        "margin_low": [one.margin[0] for one in found],
        "margin_high": [one.margin[1] for one in found],
        "greedy": probe.greedy_texts,
        "greedy_is_mode": [
            one.responses[0] == tuple(ids) if one.num_certified else None
            for one, ids in zip(found, probe.greedy, strict=True)
        ],
        "mode_is_empty": [not texts[0] for texts in probe.found_texts],
        "prefixes": [one.prefixes for one in found],
        "entropy": probe.entropy.mean(-1).tolist(),
        "best_sample_log_prob": probe.log_prob.max(-1).tolist(),
        "modal_answer": [_words(vote.answer) for vote in votes],
        "modal_count": [vote.count for vote in votes],
        "modal_share_low": shares[:, 0].tolist(),
        "modal_share_high": shares[:, 1].tolist(),
        "agreement": [vote.agreement for vote in votes],
    }
    if right is not None:
        columns |= {
            "sampled_accuracy": right.samples.mean(-1).tolist(),
            "greedy_right": right.greedy.tolist(),
            "majority_right": right.majority.tolist(),
            "best_of_k_right": right.best_by(probe.log_prob).tolist(),
            "mode_right": right.mode.tolist(),
        }
    return columns


def sample_table(probe: Probe, classes: Classes, right: Rights | None) -> Columns:
    count, k = probe.log_prob.shape

    def flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [value for row in rows for value in row]

    columns: Columns = {
        "prompt_index": [index for index in probe.indices for _ in range(k)],
        "sample_index": list(range(k)) * count,
        "response": flat(probe.texts),
        "tokens": flat(probe.tokens),
        "finished": flat(probe.finished),
        "log_prob": probe.log_prob.flatten().tolist(),
        "entropy": probe.entropy.flatten().tolist(),
        "answer": [_words(answer) for answer in flat(classes.samples)],
    } | {f"reward_{name}": reward.flatten().tolist() for name, reward in probe.rewards.items()}
    return columns if right is None else columns | {"right": right.samples.flatten().tolist()}


def _words(answer: Hashable | None) -> str | None:
    if answer is None:
        return None
    try:
        return str(answer).encode(errors="replace").decode()
    except Exception:  # a number of thousands of digits, or a class of the user's
        return f"{type(answer).__name__} {hash(answer):x}"
