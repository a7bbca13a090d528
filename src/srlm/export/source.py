"""What is exported: a round of a run, its tables, and the policy that the round is of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.policies.transformer.settings import named_values
from srlm.run.files import damaged, verify
from srlm.run.folder import RunFolder
from srlm.run.manifest import read_manifest, refuse_code, run_config
from srlm.run.rounds import round_of, run_and_round
from srlm.run.tables import Table

if TYPE_CHECKING:
    from srlm.policies.transformer.policy import TransformerPolicy


@dataclass(frozen=True)
class Source:
    """Round `round` of the run in `folder`."""

    folder: Path
    round: int
    manifest: dict[str, Any]
    config: SelfRewardConfig

    @classmethod
    def of(cls, run: str | Path) -> Source:
        """RUN, which is the round of its model, or RUN@2.

        Raises:
            UserError: there is no such run, or it has not come to that round.
        """
        folder, asked = run_and_round(str(run))
        manifest = read_manifest(folder, "srlm export")
        return cls(folder, round_of(folder, manifest, asked), manifest, run_config(manifest, folder)[0])

    def __str__(self) -> str:
        return f"round {self.round} of {self.folder}"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder, self.manifest)

    @property
    def table(self) -> Table:
        """Of the responses to the prompts that were trained on.

        Raises:
            UserError: the round has none with rewards yet.
        """
        table = Table(self.folder / f"round-{self.round:03d}" / "rollouts.parquet")
        if "reward" not in table.names():
            raise UserError(
                f"{self} has no rewards yet, expected responses and what they scored: let the run go on, or name an "
                "earlier round with @"
            )
        return table

    def groups(self, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """The responses to one prompt after another, as rows; few are held at a time."""
        rows = (row for piece in self.table.pieces(["prompt_index", *names]) for row in piece.to_pylist())
        return (list(group) for _, group in groupby(rows, itemgetter("prompt_index")))

    @cached_property
    def chat(self) -> bool:
        """Did the policy read a string as one user turn?"""
        if self.config.raw_prompts:
            return False
        folder = self.folder / "model"
        if not folder.is_dir():
            raise UserError(f"{self.folder} has no model/ yet, which tells how prompts are read: let the run finish")
        if (folder / "chat_template.jinja").is_file():
            return True
        try:
            return bool(json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template"))
        except (OSError, ValueError, AttributeError) as error:
            raise damaged(folder / "tokenizer_config.json", "it is not what a tokenizer leaves") from error

    @property
    def template(self) -> dict[str, Any]:
        """What the run told its chat template, as a column that TRL reads; none where it told nothing."""
        told = named_values(self.config.chat_template_kwargs)
        return {"chat_template_kwargs": told} if told and self.chat else {}

    def prompts(self) -> list[str]:
        """Texts that were trained on, turns of conversations one by one."""
        kept = self.run.prompt_ids("rollouts")
        items = [] if kept is None else kept["prompt"].to_pylist()
        return [text for item in items for text in ([item] if isinstance(item, str) else [t["content"] for t in item])]

    def layout(self, given: dict[str, Any]) -> Any:
        """The config of the run's model, of which nothing else is read. given: as of `policy`.

        Raises:
            UserError: the run's code was not asked for, or there is no such model by now.
        """
        from srlm.policies.transformer.anatomy import config_of
        from srlm.starting import beginning

        refuse_code(self.folder, self.needs_code, given)
        name, _, _ = beginning(self.manifest["model"])
        own = self.config
        return config_of(name, adapter=own.adapter, trust_remote_code=own.trust_remote_code).get_text_config()

    def policy(self, given: dict[str, Any], dtype: str = "fp32") -> TransformerPolicy:
        """The policy of the round, held against what the run wrote down of it; on the base as it was, if the run packed
        that.

        given: what the user asked for now, of settings that run code.

        Raises:
            UserError: the run's code was not asked for, or its model is another one by now.
        """
        from srlm.run.columns import rows
        from srlm.starting import load_policy, refuse_another

        refuse_code(self.folder, self.needs_code, given)
        config = dataclasses.replace(self.config, dtype=dtype, quantize="none")
        policy = load_policy(self.manifest["model"], config, trained=False)
        if self.round:
            kept = self.folder / f"round-{self.round:03d}" / self.config.weights_folder
            verify(kept)
            policy.load_weights(kept)
        refuse_another(policy, self.run, self.round)
        if (ids := self.run.prompt_ids("rollouts")) is not None:
            policy.encode.keep(ids["prompt"].to_pylist(), rows(ids["tokens"]))
        return policy

    @property
    def needs_code(self) -> SelfRewardConfig:
        """The configuration without what an export does not run: rewards and rules."""
        return dataclasses.replace(self.config, reward="log_likelihood", answers="normalised", match="auto")
