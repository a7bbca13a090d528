"""A model writes prompts into a file, once, outside of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from srlm import tasks
from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.errors import UserError
from srlm.prompts.presets import Source
from srlm.prompts.select import PromptSet
from srlm.prompts.sources import prompts_of
from srlm.run.files import check_new_file, write_atomically
from srlm.starting import policy_asked
from srlm.writing.filters import Filters
from srlm.writing.write import Harvest, Pool, asked, write


def write_prompts(
    model: str,
    seeds: str | Path | PromptSet,
    number: int,
    output: str | Path,
    held_out: str | Path | PromptSet | None = None,
    *,
    written_examples: int = 8,
    written_near: float = 0.7,
    written_length: tuple[int, int] | None = None,
    written_tokens: int = 128,
    written_temperature: float = 0.8,
    written_top_p: float = 0.95,
    prompt_column: str = "prompt",
    split: str | None = None,
    dataset_config: str | None = None,
    instruction: str | None = None,
    raw_prompts: bool = False,
    chat_template_kwargs: Sequence[str] = (),
    adapter: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    trust_remote_code: bool = False,
    token_budget: int | Literal["auto"] = "auto",
    seed: int = 0,
    display: Display | None = None,
) -> Harvest:
    """Up to `number` prompts that a model writes from examples among `seeds`, as JSON lines in the new file `output`,
    which `load_prompts` reads; beside it `.about.json`. The options are those of `srlm prompts`.

    Raises:
        UserError: too few seeds, a file that exists, or no prompt that passes the filters.
    """
    display, output = display or Display(), Path(output)
    config = SelfRewardConfig(  # refuses the values that training refuses
        written_examples=written_examples,
        written_near=written_near,
        written_length=written_length,
        written_tokens=written_tokens,
        written_temperature=written_temperature,
        written_top_p=written_top_p,
        prompt_column=prompt_column,
        split=split,
        dataset_config=dataset_config,
        instruction=instruction if _brings_instruction(str(seeds)) else None,
        raw_prompts=raw_prompts,
        chat_template_kwargs=tuple(chat_template_kwargs),
        adapter=adapter,
        dtype=dtype,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
        token_budget=token_budget,
        max_new_tokens=written_tokens,
        seed=seed,
    )
    about = output.with_suffix(".about.json")
    for path in (output, about):
        check_new_file(path)
    given = prompts_of(seeds, config)
    pool = Pool(given.prompts.items, written_examples, given.source, ending_of(given.source, instruction))
    kept_out = None if held_out is None else prompts_of(held_out, config)
    for note in dict.fromkeys(one.note for one in (given, kept_out) if one is not None and one.note):
        display.say(note)
    policy, round = policy_asked(model, config)
    filters = Filters(
        config,
        pool.texts,
        held_out=[] if kept_out is None else texts_of(kept_out, instruction),
        overlong=lambda text: not policy.fits(text, 1),
    )
    with display.stage("written") as report:
        made = write(policy, pool, number, filters, config, seed=seed, progress=report)
    display.say(f"{len(made.prompts)} prompts of {made.drawn} that were written; dropped: {made.losses()}")
    if not made.prompts:
        raise UserError(
            f"none of {made.drawn} prompts that {model} wrote passed the filters ({made.losses()}), expected some: "
            "give other --seeds, a --written-length that suits or a model that can write more like them"
        )
    if len(made.prompts) < number:
        display.say(f"{number} were asked for: give more --seeds, or a model that repeats itself less, for the others")
    from_ = {"model": model, "seed": seed} | ({} if round is None else {"round": round})
    lines = [
        {"prompt": one.prompt, "examples": list(one.examples), "draw": one.draw, "log_prob": one.log_prob} | from_
        for one in made.prompts
    ]
    settings = {name: value for name, value in vars(config).items() if name.startswith("written_")}
    facts = from_ | {
        "seeds": {"source": given.source, "number": len(given.prompts), "fingerprint": given.fingerprint},
        "held_out": None if kept_out is None else {"source": kept_out.source, "fingerprint": kept_out.fingerprint},
        "settings": {name: value for name, value in settings.items() if name != "written_prompts"},
        "asked_for": number,
        "kept": len(made.prompts),
        "drawn": made.drawn,
        "dropped": made.dropped,
    }
    _save(about, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    _save(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return made


def ending_of(source: str, instruction: str | None) -> str | None:
    """What every prompt of a source ends with, if something does: it is no part of what examples show."""
    preset = None if tasks.is_task(source) else Source.of(source).preset
    return instruction if instruction is not None or preset is None else preset.instruction


def _brings_instruction(source: str) -> bool:
    """Whose place another takes; of a file's own prompts it is what they end with already."""
    return tasks.is_task(source) or Source.of(source).preset is not None


def texts_of(asking: PromptSet, instruction: str | None) -> list[str]:
    """What they ask, without what all of them end with, as far as that is one turn of text."""
    ending = ending_of(asking.source, instruction)
    return [text for item in asking.prompts.items if (text := asked(item, f"\n{ending}" if ending else ""))]


def _save(path: Path, text: str) -> None:
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
