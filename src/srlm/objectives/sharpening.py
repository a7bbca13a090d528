"""When exact updates sharpen, pi_{t+1} = pi_t^(1 + 1/beta) / Z, as every forecast of a run takes for granted."""

from __future__ import annotations

from collections.abc import Mapping

SHARPENING = {
    "reward": "log_likelihood",
    "objective": "regression",
    "nll": 0.0,
    "length_penalty": 0.0,
    "kl_initial": 0.0,
    "truncated": "keep",
}
"""Settings that make an update another one where they are not these (Eqs. 1-3)."""


def departure(config: Mapping[str, object]) -> str | None:
    """Why a run of these settings, as its manifest keeps them, does not sharpen; None where it does. A manifest of
    before a setting came has not got it, and was without."""
    for name, plain in SHARPENING.items():
        value = config.get(name, plain)
        if value != plain:
            shown, expected = (f"{given:g}" if isinstance(given, float) else given for given in (value, plain))
            return f"its {name.replace('_', ' ')} is {shown}, not {expected}"
    return None
