"""Who draws responses. Whoever it is, prompts come and responses go as token ids, and `log_prob.py` scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from srlm.policies.transformer.policy import TransformerPolicy
    from srlm.policies.transformer.processes import Progress
    from srlm.policies.transformer.responses import Responses
    from srlm.policies.transformer.sample import Decoding


@dataclass(frozen=True)
class SyncReport:
    """What was found after the weights of pi_t had gone to an engine.

    difference: mean |log-prob by the engine - log-prob by us| of `tokens` tokens, in nats; None where both are one.
    """

    difference: float | None = None
    tokens: int = 0
    facts: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Draws responses from a policy whose weights it was given."""

    @property
    def context(self) -> float:
        """Most tokens of a prompt and its response; infinite where it has no limit of its own."""
        ...

    def sync(self, policy: TransformerPolicy) -> SyncReport:
        """From now on draw from the policy as it is.

        Raises:
            UserError: the weights did not arrive.
        """
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_samples: int,
        how: Decoding,
        seeds: Sequence[int] | None,
        progress: Progress,
    ) -> Responses:
        """K responses to each of P prompts.

        seeds: [P] below 2^62, one for each prompt, so that neither batches nor who else is asked change what is drawn,
            as far as the engine can do that; None: greedy ones, of the word that is most probable at every step.

        Raises:
            UserError: the engine cannot, or does not answer what it was asked.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
