"""What a person is told before the first round."""

from __future__ import annotations

from srlm.config import SelfRewardConfig
from srlm.policies.transformer.bits import elements
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.rewards.table import judges, of_itself, votes


def _roles(config: SelfRewardConfig) -> str:
    """Who does what in a round."""
    said, voted, judged = "reference and sampler of round t: π_t itself", votes(config.reward), judges(config.reward)
    if config.objective == "imitation" and not config.nll:
        return f"{said}; nothing is rewarded"
    if config.teacher != "live" and (voted or judged):
        whose = "π_0" if config.teacher == "initial" else f"an average of its weights ({config.teacher})"
        return f"{said}; {'judge' if judged else 'voter'}: {whose}"
    if not of_itself(config.reward):
        return f"{said}; reward: {config.reward}"
    return "reference, reward model and sampler of round t: π_t itself"


def headline(name: str, policy: TransformerPolicy, config: SelfRewardConfig, given: tuple[int, int], begun: str) -> str:
    """given: how many prompts are learned from, and how many held out. begun: the engine that the run began with."""
    model, (prompts, held_out) = policy.model, given
    trained = sum(p.numel() for p in policy.trainable().values())
    whole = sum(elements(p) for p in model.parameters())
    packed = "" if policy.quantised == "none" else f" on layers of {policy.quantised}"
    held = f"{held_out or 'none'} held out"
    each = f", {config.prompts_per_round} a round," if config.prompts_per_round is not None else ""
    each += f" and {config.written_prompts} written" if config.written_prompts else ""
    exploring = (
        ""
        if config.temperature == 1 and config.top_p == 1 and not config.top_k
        else f"; sampling at temperature {config.temperature:g}, top-p {config.top_p:g}"
        f"{f', top-k {config.top_k}' if config.top_k else ''} (scores at 1)"
    )
    drawn = "" if config.engine == "builtin" == begun else f"; responses drawn by {config.engine}"
    if config.engine != begun:
        drawn += f" (the run began with {begun})"
    stops = f"; {', '.join(map(repr, config.stop))} ends a response" if config.stop else ""
    return (
        f"{name} · {whole / 1e6:.0f}M parameters, {trained / 1e6:.1f}M trained, {str(model.dtype)[6:]}"
        f"{packed}, {model.device} · {prompts} prompts{each} × {config.num_samples}, "
        f"{held}{exploring}{stops}{drawn}\n"
        f"{_roles(config)}"
    )
