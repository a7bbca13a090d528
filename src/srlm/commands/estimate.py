"""What a run will cost, beforehand: memory by part, and FLOPs, bytes, tokens and seconds of every stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields

from srlm.commands import train
from srlm.commands.options import Parser, taken
from srlm.errors import UserError
from srlm.estimate.settings import Asked

FIRST = (
    *(field.name for field in fields(Asked)),
    *("model", "prompts", "held_out", "rounds", "num_samples", "max_new_tokens", "epochs", "prompts_per_step"),
    *("token_budget", "gradient_checkpointing", "lora_rank", "dtype", "engine"),
)


def parser(words: Sequence[str]) -> Parser:
    made = Parser(
        "estimate",
        f"{__doc__}\nTakes every option of srlm train.",
        "--prompts FILE | --num-prompts N [options]",
        first=FIRST,
        every=not {"-h", "--help"} & set(words),
    )
    made.before("--resume", "DIR", "Of the unfinished run in DIR.")
    made.add("Estimate", Asked)
    train.add_options(made)
    return made


def run(words: Sequence[str]) -> None:
    # What only says where a run goes on, or that its options be printed, changes nothing of what one costs.
    first, rest = taken(words, "resume", "from-round", "config")
    _, chosen, settings = train.read(parser, rest, first["config"], first["resume"])
    asked = Asked(**{field.name: chosen[field.name] for field in fields(Asked)})
    if asked.table:
        from srlm.training.sizes_table import table

        print(table(settings, asked))
        return
    if not chosen["prompts"] and asked.num_prompts is None:
        raise UserError("no prompts were given: name a file or dataset with --prompts, or how many with --num-prompts")
    from srlm.console import Display
    from srlm.estimate.view import lines
    from srlm.training.beforehand import estimated

    prompts = chosen["prompts"] or None
    arms = len(train.arms_of(chosen["compare"], settings)) * chosen["seeds"] if chosen["compare"] else 1
    made = estimated(chosen["model"], settings, prompts, chosen["held_out"], asked)
    if arms > 1:
        made.assumed.append(f"this is one of {arms} runs of --compare, which have round 0 in common")
    if asked.json:
        print(json.dumps(made.plain(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    display = Display(chosen["quiet"])
    for line in lines(made):
        display.say(line)
