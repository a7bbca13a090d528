"""Where a policy begins: a model by its name, or a round of a run, held against what the run wrote down of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.processes import silent
from srlm.policies.transformer.responses import Responses
from srlm.run.files import verify
from srlm.run.folder import RunFolder
from srlm.run.manifest import read_manifest
from srlm.run.rounds import is_run, round_of, run_and_round
from srlm.run.tables import Table

SAME = 0.05  # nats a token: bf16 and another layout move a response by a fifth of it, another model by far more
PACKED = 1.0  # where one of the two is packed: 4 bits move SmolLM2 by .36, 8 by .04
LOOKED_AT = 16  # responses that a policy is recognised by


def beginning(model: str) -> tuple[str, RunFolder | None, int]:
    """Of `--model`: what to load, and, where RUN or RUN@2 was given, the run and the round that it is of.

    Raises:
        UserError: the run has not come to that round, or what it left is damaged.
    """
    folder, asked = run_and_round(model)
    if not is_run(folder):
        return model, None, 0
    manifest = read_manifest(folder, "--model")
    round = round_of(folder, manifest, asked, f"the round of --model {model}")
    run = RunFolder(folder, manifest)
    if asked is None and (folder / "model").is_dir():
        return str(folder / "model"), run, round
    if round == 0:
        return beginning(str(manifest["model"]))[0], run, 0
    kept = folder / f"round-{round:03d}"
    weights = next(kept / name for name in ("adapter", "weights") if (kept / name).is_dir())
    verify(weights)
    return str(weights), run, round


def as_trained(name: str, run: RunFolder | None, adapter: str = "auto", quantize: str = "none") -> dict[str, Any]:
    """How to load `name`, of which `beginning` found the run, without training it. A base that was packed is packed
    again, and the adapter lies on it; else an adapter is merged, or what was asked for.

    Raises:
        UserError: a run is to be packed otherwise than it was trained.
    """
    config = {} if run is None else run.manifest["config"]
    packed = config.get("quantize", "none")
    if run is not None and quantize != "none":
        refuse_packed_otherwise(quantize, packed, run.path)
    if run is not None and packed != "none":
        adapter = config["adapter"] if name == beginning(str(run.manifest["model"]))[0] else "continue"
    quantize = packed if run is not None else quantize
    on = quantize != "none" and adapter == "continue"  # nothing is merged into packed weights
    return {"adapter": adapter, "quantize": quantize, "lora_rank": int(on)}


def refuse_packed_otherwise(quantize: str, packed: str, run: Path) -> None:
    """
    Raises:
        UserError: a run is to be packed otherwise than it was trained.
    """
    if quantize != packed:
        raise UserError(
            f"--quantize is {quantize!r}, but {run} was trained with {packed!r}, expected the same: leave it out, or "
            "give a model instead of a run"
        )


def load_policy(model: str, config: SelfRewardConfig, *, trained: bool = True) -> TransformerPolicy:
    """model: RUN or RUN@2 is a run's policy of the round, else as `TransformerPolicy.load` takes it."""
    how = {"adapter": config.adapter, "quantize": config.quantize, "lora_rank": config.lora_rank}
    return _load(*beginning(model), config, how, trained=trained)


def policy_asked(model: str, config: SelfRewardConfig) -> tuple[TransformerPolicy, int | None]:
    """The policy of a model that is asked and not trained, and of which round of a run it is, if of any."""
    name, run, round = beginning(model)
    policy = _load(name, run, round, config, as_trained(name, run, config.adapter, config.quantize), trained=False)
    return policy, None if run is None else round


def _load(
    name: str, run: RunFolder | None, round: int, config: SelfRewardConfig, how: dict[str, Any], *, trained: bool
) -> TransformerPolicy:
    policy = TransformerPolicy.load(
        name,
        **how,
        trained=trained,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        lora_alpha=config.lora_alpha,
        gain=config.gain_learning_rate > 0,
        seed=config.seed,
        gradient_checkpointing=config.gradient_checkpointing,
        max_new_tokens=config.max_new_tokens,
        stop=config.stop,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        raw_prompts=config.raw_prompts,
        chat_template_kwargs=config.chat_template_kwargs,
        prompts_per_step=config.prompts_per_step,
        token_budget=config.token_budget,
    )
    if run is not None:
        refuse_another(policy, run, round)
    return policy


def refuse_another(policy: TransformerPolicy, run: RunFolder, round: int) -> None:
    """
    Raises:
        UserError: responses of the round are not as probable as the run found them.
    """
    table = Table(run.path / f"round-{round:03d}" / "rollouts.parquet")
    ids = run.prompt_ids("rollouts")
    if ids is None or "log_prob" not in table.names():
        return
    piece = next(table.pieces(["prompt_index", "tokens", "log_prob"])).slice(0, LOOKED_AT)
    rows = piece.to_pylist()
    length = torch.tensor([[len(row["tokens"])] for row in rows])
    tokens = torch.zeros(len(rows), 1, int(length.max()), dtype=torch.int32)
    for row, into in zip(rows, tokens, strict=True):
        into[0, : len(row["tokens"])] = torch.tensor(row["tokens"])
    prompts = _ids_at(run, round, ids["tokens"], piece["prompt_index"].to_pylist())
    responses = Responses(tokens, length, torch.ones_like(length, dtype=torch.bool))
    now = policy.scorer.score(policy.scorer.groups(prompts, responses), None, silent)[0][:, 0].cpu()
    then = torch.tensor([row["log_prob"] for row in rows])
    far = float(((now - then).abs() / length[:, 0].clamp_min(1)).median())
    most = SAME if policy.quantised == run.manifest["config"].get("quantize", "none") else PACKED
    if not far <= most:
        raise UserError(
            f"the model {run.manifest['model']} with the weights of round {round} of {run.path} gives its responses "
            f"log-probs that are {far:.2g} nats a token from those that the run wrote down, expected at most {most}: "
            "put back the model that the run began with"
        )


def _ids_at(run: RunFolder, round: int, given: pa.ChunkedArray, numbers: Sequence[int]) -> list[list[int]]:
    """Token ids of prompts by their numbers: of those given, or behind them of those that the round wrote."""
    written = run.table(round, "written")
    own = written.read(["prompt_index", "tokens"]).to_pylist() if written.names() else []
    of_round = {row["prompt_index"]: row["tokens"] for row in own}
    return [of_round[n] if n in of_round else given[n].as_py() for n in numbers]
