"""Kinds of exports -> one new folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import srlm
from srlm.console import Display
from srlm.errors import UserError
from srlm.export.pairs import Count, Row, best_responses, preferences
from srlm.export.rollouts import write_rollouts
from srlm.export.settings import KINDS, Export
from srlm.export.source import Source
from srlm.run.files import dump, remove, write_atomically
from srlm.run.folder import RunFolder

if TYPE_CHECKING:
    from srlm.policies.transformer.policy import TransformerPolicy

PREFERENCES, SFT, ROLLOUTS = "preferences.jsonl", "sft.jsonl", "rollouts.parquet"
ADAPTER, ADAPTER_GGUF, BASE, MERGED, GGUF = "adapter", "adapter.gguf", "base", "merged", "model.gguf"
ABOUT = "export.json"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be


def export(
    run: str | Path,
    output: str | Path,
    *kinds: str,
    pairs: str = "best_worst",
    margin: float = 0.0,
    messages: bool = False,
    unfinished: bool = False,
    gain: str = "temperature",
    merged_dtype: str | None = None,
    trust_remote_code: bool = False,
    display: Display | None = None,
) -> Path:
    """Write some `kinds` of what a run made into the new folder `output`, which appears whole or not at all.

    run: RUN, whose model's round is meant, or RUN@2. kinds:
        preferences   preferences.jsonl for DPO, see `srlm.export.pairs.preferences` (pairs, margin, unfinished)
        sft           sft.jsonl, the best response of each prompt, as `messages` or prompt and completion
        rollouts      rollouts.parquet, all responses of all rounds, see `srlm.export.rollouts`
        adapter       adapter/ and adapter.gguf: LoRA layers alone; the gain is a `temperature`, or in a base/'s `norm`
        merged        merged/, a whole model in `merged_dtype` (fp32, bf16 or fp16; by default the run's)
        gguf          model.gguf, in that dtype
    trust_remote_code: of the run's model, if it needs it.

    Raises:
        UserError: nothing to write, a used folder, or a run that does not have what was asked for.
    """
    display = display or Display()
    folder = Path(output)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"{unknown[0]!r} is no kind of export, expected some of {', '.join(KINDS)}: choose one")
    if not kinds:
        raise UserError(f"nothing to export was named: choose some of {', '.join(f'--{kind}' for kind in KINDS)}")
    how: dict[str, Any] = {"pairs": pairs, "margin": margin, "messages": messages, "unfinished": unfinished}
    how |= {"gain": gain, "merged_dtype": merged_dtype}
    asked: dict[str, Any] = how | dict.fromkeys(kinds, True)
    Export(output=str(output), **asked)  # refuses what the command refuses
    source = Source.of(run)
    refuse_used(folder)
    if "gguf" in kinds:  # before the work
        from srlm.policies.transformer.save.gguf import refuse_unwritten

        refuse_unwritten(source.manifest["model"], source.layout({"trust_remote_code": trust_remote_code}))
    folder = folder.resolve()
    said: dict[str, str] = {}

    def write(scratch: Path) -> None:
        scratch.mkdir()
        if "preferences" in kinds:
            made = partial(preferences, source, pairs=pairs, margin=margin, unfinished=unfinished)
            said[PREFERENCES] = _lines(scratch / PREFERENCES, source, made)
        if "sft" in kinds:
            made = partial(best_responses, source, messages=messages, unfinished=unfinished)
            said[SFT] = _lines(scratch / SFT, source, made)
        if "rollouts" in kinds:
            said[ROLLOUTS] = f"{write_rollouts(source.run, scratch / ROLLOUTS)} responses of all rounds"
        if {"adapter", "merged", "gguf"} & set(kinds):
            dtype = source.config.dtype if merged_dtype is None else "fp32"
            policy = source.policy({"trust_remote_code": trust_remote_code}, dtype)
            if "adapter" in kinds:
                said[ADAPTER] = _adapter(policy, source, scratch, folder, gain)
            if "merged" in kinds:
                said[MERGED] = _merged(policy, scratch, merged_dtype)
            if "gguf" in kinds:
                said[GGUF] = _gguf(policy, source, scratch, merged_dtype)
        about = {"srlm": srlm.__version__, "run": str(source.folder), "round": source.round, "files": said}
        about |= {"settings": how, "model": source.manifest["model"]}
        (scratch / ABOUT).write_text(dump(about), encoding="utf-8")

    write_atomically(folder, write)
    for name, what in said.items():
        first, *more = what.split("\n")
        display.say("\n".join([f"{Path(output) / name} · {first}", *(f"    {line}" for line in more)]))
    return Path(output)


def refuse_used(folder: Path) -> None:
    """Before the work, not after it.

    Raises:
        UserError: something is in the folder already, or it cannot be written.
    """
    RunFolder.refuse_used(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        probe = folder.parent / f".partial-{folder.name}"
        remove(probe)  # what an export that was killed has left
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(f"output {folder} cannot be written ({error.strerror}): choose another --output") from error


def _lines(file: Path, source: Source, make: Callable[..., Iterator[Row]]) -> str:
    count = Count()
    with file.open("w", encoding="utf-8") as handle:
        for row in make(count=count):
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    if not count.rows:
        raise UserError(
            f"{source} leaves nothing for {file.name} ({count}): keep what was cut off with --unfinished, lower "
            "--margin, or choose another round"
        )
    stops = source.config.stop
    ends = f"; responses are cut before {', '.join(map(repr, stops))}, which ended them" if stops else ""
    return f"{count}, round {source.round}{ends}"


def _adapter(policy: TransformerPolicy, source: Source, scratch: Path, folder: Path, gain: str) -> str:
    from srlm.policies.transformer.save.gguf_adapter import save_gguf_adapter
    from srlm.policies.transformer.save.pure_lora import save_pure_lora

    if source.round == 0:
        raise UserError(f"{source} is the model that the run began with, which has no adapter: choose a later round")
    base = scratch / BASE if gain == "norm" else None
    made = save_pure_lora(
        *(policy, scratch / ADAPTER),
        adapter=source.config.adapter,
        base_folder=base,
        base_name=str(folder / BASE) if base else None,
    )
    name = folder / ADAPTER
    rank = next((most for most in VLLM_RANKS if most >= made.rank), made.rank)
    vllm = f"vllm serve {made.base} --enable-lora --max-lora-rank {rank} --lora-modules run={name}"
    llama_cpp = f"llama-cli -m BASE.gguf --lora {folder / ADAPTER_GGUF}"
    try:
        save_gguf_adapter(policy, scratch / ADAPTER, scratch / ADAPTER_GGUF)
    except UserError as error:
        (scratch / ADAPTER_GGUF).unlink(missing_ok=True)
        llama_cpp = f"no {ADAPTER_GGUF}: {error}"
    about = f"LoRA of rank {made.rank} on {made.base}"
    if made.temperature is None:
        return "\n".join(
            [
                f"{about}, whose final norm holds the gain of {made.gain:.4g}",
                vllm,
                f"{llama_cpp}, with BASE.gguf made of {BASE}/",
            ]
        )
    degrees = f"{1 / made.gain:.4g}"
    said = [
        f"{about}; the gain of {made.gain:.4g} is temperature {degrees}, at which it is the trained policy (up to "
        f"{abs(made.apart):.1g} nats a token); greedy needs nothing",
        "log-probs, beam search and whoever sets another temperature see it without the gain: --gain norm is for them",
        f"{vllm} --generation-config {name}",
        f"{llama_cpp} --temp {degrees}, and --top-k 0 --top-p 1 --min-p 0 for the full distribution",
    ]
    if made.ignored:
        said[1:1] = [
            f"{made.base} holds an adapter that the run ignored, and others put on: serve a copy of it without its "
            "adapter_* files, or the base/ that --gain norm writes"
        ]
    if made.own:
        own = ", ".join(f"{key} {value:g}" for key, value in made.own.items())
        said[1:1] = [
            f"its generation_config.json samples as the base does ({own}), at temperature {made.temperature:.4g} for "
            "the gain: what the whole model gives by default, which is not the policy"
        ]
    return "\n".join(said)


def _merged(policy: TransformerPolicy, scratch: Path, dtype: str | None) -> str:
    from srlm.policies.transformer.save.merged import save_merged

    return f"whole model, {save_merged(policy, scratch / MERGED, dtype)}"


def _gguf(policy: TransformerPolicy, source: Source, scratch: Path, dtype: str | None) -> str:
    from srlm.policies.transformer.save.gguf import save_gguf

    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    kind = dtype or names[str(policy.model.dtype)[6:]]
    prompts = source.prompts()
    return f"whole model, {kind}; {save_gguf(policy, scratch / GGUF, kind, prompts)}"


def about(folder: Path) -> dict[str, Any]:
    """What an export says of itself."""
    return dict(json.loads((folder / ABOUT).read_bytes()))
