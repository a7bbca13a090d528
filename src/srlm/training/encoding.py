"""Token ids of a run's prompts, made once and kept in its folder, whatever a chat template says tomorrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.prompts.select import PromptSet
from srlm.run.columns import rows
from srlm.run.folder import RunFolder
from srlm.run.ledger import Ledger
from srlm.training.columns import prompt_columns
from srlm.types import Prompts


def leave_out(
    run: RunFolder, policy: TransformerPolicy, sets: Mapping[str, PromptSet], say: Callable[[str], object]
) -> dict[str, PromptSet]:
    """The sets without prompts that are too long for the context: the manifest says which, once a run."""
    manifest, left = run.manifest, dict(sets)
    if "skipped" not in manifest:
        manifest["skipped"] = {table: policy.overlong(one.prompts) for table, one in sets.items()}
    for table, skipped in manifest["skipped"].items():
        if skipped:
            whole = sets[table]
            say(f"{len(skipped)} of {len(whole.prompts)} prompts of {whole.source} are too long: skipped")
            left[table] = whole.leave_out(skipped)
    return left


def read_prompts(
    run: RunFolder, policy: TransformerPolicy, tables: Mapping[str, Prompts], num_samples: int, *, anew: bool
) -> None:
    """Token ids of all prompts, those that the run has kept where it has, unless they are made anew; refused here if
    they do not fit.

    Raises:
        UserError: a prompt leaves no room for its response, or so many responses are more than memory holds.
    """
    for table, prompts in tables.items():
        if not anew and (kept := run.prompt_ids(table)) is not None:
            policy.encode.keep(prompts.items, rows(kept["tokens"]))
        policy.check_prompts(prompts, num_samples)


def keep_prompts(ledger: Ledger, policy: TransformerPolicy, tables: Mapping[str, Prompts]) -> None:
    for table, prompts in tables.items():
        kept = ledger.prompt_ids(table, partial(prompt_columns, policy, prompts))
        policy.encode.keep(prompts.items, rows(kept["tokens"]))
