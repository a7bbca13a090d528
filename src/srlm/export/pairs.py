"""Responses of a round as training data of others: preferences for DPO, best responses for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from srlm.errors import UserError
from srlm.export.source import Source

Row = dict[str, Any]


@dataclass
class Count:
    """What became of the responses: rows written, prompts that gave any, responses left out since they were cut off."""

    rows: int = 0
    prompts: int = 0
    given: int = 0
    unfinished: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = f"{self.rows} rows of {self.given} of {self.prompts} prompts"
        if self.unfinished:
            said += f"; {self.unfinished} responses that were cut off are left out (--unfinished keeps them)"
        return "; ".join([said, *self.notes])


def preferences(
    source: Source, count: Count, *, pairs: str = "best_worst", margin: float = 0.0, unfinished: bool = False
) -> Iterator[Row]:
    """TRL's `prompt`, `chosen`, `rejected`, with what is known of both: score (the reward that the objective saw),
    log pi_t in nats, EOS included once where a response has one, and margin = score_chosen - score_rejected.

    Prompts and responses are turns of a conversation where the policy read a chat template, and plain text where it did
    not: TRL then trains on the tokens that were sampled. Two responses make a pair if their texts differ and
    score_chosen - score_rejected > margin: of each prompt the best against the worst, or all of them. What the run told
    its chat template stands in `chat_template_kwargs`, which TRL tells it too.
    """
    for rows in _groups(source, count, unfinished):
        rising = sorted(rows, key=lambda row: row["reward"])  # of one text in several tokens the best one counts
        ordered = sorted({row["response"]: row for row in rising}.values(), key=lambda row: -row["reward"])
        found = product(ordered[:1], ordered[-1:]) if pairs == "best_worst" else product(ordered, ordered)
        kept = [(one, other) for one, other in found if one["reward"] - other["reward"] > margin]
        count.given += bool(kept)
        count.rows += len(kept)
        for chosen, rejected in kept:
            yield {
                "prompt": _prompt(source, chosen["prompt"]),
                "chosen": _response(source, chosen),
                "rejected": _response(source, rejected),
                "score_chosen": chosen["reward"],
                "score_rejected": rejected["reward"],
                "margin": chosen["reward"] - rejected["reward"],
                "log_prob_chosen": chosen["log_prob"],
                "log_prob_rejected": rejected["log_prob"],
                "prompt_index": chosen["prompt_index"],
                "round": source.round,
                **source.template,
            }


def best_responses(source: Source, count: Count, *, messages: bool = False, unfinished: bool = False) -> Iterator[Row]:
    """Of each prompt the response of the highest score, as `prompt` and `completion`, or as `messages`.

    Raises:
        UserError: `messages` of prompts that were no conversations.
    """
    if messages and not source.chat:
        raise UserError(
            f"{source.folder} read its prompts as plain text, expected a chat template for --messages: leave it out"
        )
    for rows in _groups(source, count, unfinished):
        best = max(rows, key=lambda row: row["reward"])
        count.given += 1
        count.rows += 1
        prompt, said = _prompt(source, best["prompt"]), _response(source, best)
        about = {"score": best["reward"], "log_prob": best["log_prob"]}
        about |= {"prompt_index": best["prompt_index"], "round": source.round, **source.template}
        yield ({"messages": [*prompt, *said]} if messages else {"prompt": prompt, "completion": said}) | about


def _groups(source: Source, count: Count, unfinished: bool) -> Iterator[Sequence[Row]]:
    """Responses of each prompt that may be learned from."""
    for rows in source.groups(("prompt", "response", "finished", "log_prob", "reward")):
        count.prompts += 1
        whole = rows if unfinished else [row for row in rows if row["finished"]]
        count.unfinished += len(rows) - len(whole)
        if whole:
            yield whole


def _prompt(source: Source, item: Any) -> Any:
    if source.chat and isinstance(item, str):
        return [{"role": "user", "content": item}]
    return item


def _response(source: Source, row: Row) -> Any:
    talk = source.chat or not isinstance(row["prompt"], str)
    return [{"role": "assistant", "content": row["response"]}] if talk else row["response"]
