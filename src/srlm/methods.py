"""Published methods by name: `srlm train --method ttrl`. Each is an assembly of settings.

What makes the method stands in `is_`, and an option that says otherwise is refused. How large it is run stands in
`usual`, as published unless a comment says why not, and gives way to any option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from srlm.errors import UserError

# Published with all weights trained and no separate gain. Some train on one set of samples, by steps whose sum bf16 may
# round away; most draw each step's samples anew, which here is a round of one epoch of --prompts-per-round prompts (all
# of them unless that is given): the optimiser goes on from round to round.
_ALL = {"gain_learning_rate": 0.0, "lora_rank": 0}
_WHOLE = {"dtype": "fp32"} | _ALL
_ONLINE = {"epochs": 1, "carry_optimizer": True} | _ALL


@dataclass(frozen=True)
class Method:
    """source: where it is published."""

    source: str
    is_: Mapping[str, Any]
    usual: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    # Samples at a high temperature, truncated, and imitates all of them, once. Nothing is rewarded.
    "ssd": Method(
        "arXiv 2604.01193",
        {"objective": "imitation", "rounds": 1},
        {"temperature": 1.6, "top_k": 20, "top_p": 0.8, "learning_rate": 5e-6, "epochs": 1} | _WHOLE,
    ),
    # The commonest of 64 answers is taken for right; 32 of the responses are learned from.
    "ttrl": Method(
        "arXiv 2504.16084",
        {"reward": "hard_majority", "objective": "grpo"},
        {"votes": 64, "num_samples": 32, "learning_rate": 5e-7, "max_new_tokens": 3072} | _ONLINE,
    ),
    # 58 steps of 128 prompts x 7. The paper's KL term, .005 a token, is left out, as grpo leaves out all of theirs.
    "intuitor": Method(
        "arXiv 2505.19590",
        {"reward": "self_certainty", "objective": "grpo"},
        {"num_samples": 7, "prompts_per_round": 128, "prompts_per_step": 128, "rounds": 58}
        | {"learning_rate": 3e-6, "max_new_tokens": 3072}
        | _ONLINE,
    ),
    # The share of an answer's meaning among the samples; prompts of too little or too much entropy teach nothing. The
    # band is one of shares here, where the paper's is one of entropies whose bounds depend on the data: give your own.
    "empo": Method(
        "arXiv 2504.05812",
        {"reward": "majority", "objective": "grpo"},
        {"num_samples": 7, "consistency_band": (0.2, 0.9), "learning_rate": 1e-6, "max_new_tokens": 2048} | _ONLINE,
    ),
    # Sure of every next token. Its rate is that of the token entropy beside TTRL, the length is TTRL's.
    "rent": Method(
        "arXiv 2505.22660",
        {"reward": "negative_entropy", "objective": "grpo"},
        {"learning_rate": 1e-6, "max_new_tokens": 3072} | _ONLINE,
    ),
    # The most against the least voted response, with a term that holds the former up, where the vote is of half at
    # least (the paper's second round: .7). The paper also weighs a pair by the difference of its votes; here all pairs
    # weigh alike.
    "scpo": Method(
        "arXiv 2411.04109",
        {"reward": "majority", "objective": "dpo", "pairs": "best_worst", "nll": 1.0},
        {"rounds": 2, "beta": 0.5, "consistency_band": (0.5, 1.0), "learning_rate": 5e-6, "epochs": 10}
        | {"max_new_tokens": 512}
        | _WHOLE,
    ),
    # DPO's own implicit reward, smoothed by how far this round's ranking and the last one's agree. The paper's first
    # ranking is by a model that was fine-tuned before; where there is none, as here, log-likelihood breaks the tie. The
    # paper asks both rewards of this round's responses, prompt by prompt or over all; here they are asked, over all, of
    # the held-out ones of the last round, which costs no further pass. With nothing held out it is hardly smoothed.
    "cream": Method(
        "arXiv 2410.12735",
        {"reward": "implicit + 0.001*mean_log_likelihood", "objective": "dpo", "label_smoothing": "consistency"}
        | {"pairs": "best_worst"},
        {"beta": 0.1, "learning_rate": 1e-6, "epochs": 1, "num_samples": 5, "temperature": 0.8, "top_p": 0.95}
        | {"max_new_tokens": 768}
        | _WHOLE,
    ),
}


def method(name: str) -> Method:
    """
    Raises:
        UserError: there is none of this name.
    """
    if name not in METHODS:
        raise UserError(f"--method is {name!r}, expected one of {', '.join(METHODS)}: correct it")
    return METHODS[name]


def refuse_contradiction(name: str, chosen: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: an option says otherwise than the method.
    """
    for key, value in method(name).is_.items():
        if chosen[key] != value:
            option = key.replace("_", "-")
            raise UserError(
                f"--{option} is {chosen[key]} beside --method {name}, which is {value} ({METHODS[name].source}), "
                "expected one of the two: leave one out"
            )
