"""What a run leaves: model, adapter, card and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm.config import SelfRewardConfig
from srlm.console import Display
from srlm.guard.decision import history
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.report import report_or_reason
from srlm.report.card import card_or_reason
from srlm.report.plot import plot
from srlm.run.files import verify, write_atomically
from srlm.run.folder import RunFolder
from srlm.run.ledger import Ledger
from srlm.run.rounds import rounds_of
from srlm.types import Record


@dataclass(frozen=True)
class TrainResult:
    """model: folder of the trained model, the policy of `round`. records: one per round, t = 0..T, or up to the round
    after which the guard stopped."""

    output: Path
    model: Path
    records: list[Record]
    round: int

    def plot(self, figure: str = "kappa") -> Any:
        """A Plotly figure of the run by round, which a notebook shows: `kappa`, `accuracy`, ... (see
        `srlm.report.plot`)."""
        return plot([self.output], figure)

    @classmethod
    def of(cls, run: RunFolder) -> TrainResult:
        records = run.records()
        chosen = run.manifest.get("guard", {}).get("chosen", len(records) - 1)
        return cls(run.path, run.path / "model", records, chosen)


def become(policy: TransformerPolicy, run: RunFolder, config: SelfRewardConfig, round: int) -> None:
    """Put the weights of a round, or the untouched ones, into the policy of the last that was made."""
    if round == 0:
        policy.reset()
    elif round < rounds_of(run.path)[-1]:
        kept = run.round(round) / config.weights_folder
        verify(kept)
        policy.load_weights(kept)


def leave(
    policy: TransformerPolicy,
    ledger: Ledger,
    config: SelfRewardConfig,
    display: Display,
    state: str,
    chosen: int | None = None,
) -> None:
    """chosen: the round that the policy is of, if the run is over; by default that of the last record."""
    run = ledger.run
    records = run.records()
    chosen = max(0, len(records) - 1) if chosen is None else chosen
    said = {"events": history(records, config) if config.guard else [], "chosen": chosen}

    def save_model(folder: Path) -> None:
        policy.save_model(folder)
        # The card speaks of this model, not of what came after.
        if reason := card_or_reason(folder, run.manifest | {"state": state}, records[: chosen + 1]):
            display.say(reason)

    def commit() -> None:
        write_atomically(run.path / "model", save_model)
        if config.lora_rank:
            write_atomically(run.path / "adapter", policy.save_weights)
        if state == "finished":
            run.forget_optimizer()
        run.save_manifest(state=state, guard=said)

    for t in range(len(records)):
        ledger.close(t)
    policy.weights.collect(model=True)
    if config.lora_rank:
        policy.weights.collect()
    ledger.write(commit)
    if policy.processes.is_main_process:
        display.say(report_or_reason(run.path))
        if config.push_to_hub and state == "finished":
            push(run, config.push_to_hub, display)


def saved(policy: TransformerPolicy, folder: Path) -> str:
    """What to say of the model of the run in `folder`."""
    if policy.quantised == "none":
        return f"model saved in {folder / 'model'}"
    return (
        f"adapter saved in {folder / 'model'}, on {policy.weights.name} ({policy.quantised} here); a whole model: "
        f"srlm export {folder} --merged --output DIR"
    )


def push(run: RunFolder, repository: str, display: Display) -> None:
    """Upload the model of a run, once, and say so. Never fails the run."""
    from huggingface_hub import HfApi

    model = run.path / "model"
    if run.manifest.get("pushed") == repository:
        return
    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=model)
        run.save_manifest(pushed=repository)
        display.say(f"model pushed to {repository}")
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        display.say(
            f"the model was not pushed to {repository} ({reason}); it is kept in {model}, and --resume {run.path} "
            "tries again"
        )
