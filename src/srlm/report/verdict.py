"""What a folder says, in words: the verdict first, then what improved, what got worse, and what else changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from srlm.errors import UserError
from srlm.guard.settings import GuardSettings
from srlm.guard.signals import alarms
from srlm.report.folders import Folder, Record, measured_at
from srlm.report.text import number

# record key, what it is, unit, which way is better (0: neither), decimals
Metric = tuple[str, str, str, int, int]
METRICS: tuple[Metric, ...] = (
    ("accuracy_sampled", "sampled accuracy", "", 1, 3),
    ("accuracy_greedy", "greedy accuracy", "", 1, 3),
    ("log10_kappa_upper", "log10 κ, training prompts (upper estimate)", "", -1, 2),
    ("log10_kappa_upper_held_out", "log10 κ, held-out prompts (upper estimate)", "", -1, 2),
    ("token_likelihood_rank", "rank of the responses' likelihood per token under π₀ among its own", "", 1, 2),
    ("mode_fidelity", "mode fidelity", "", 1, 2),
    ("achieved", "share achieved of the gain asked for", "", 1, 2),
    ("leak", "leak of mass", "nats", 1, 2),
    ("fidelity_r2", "fit to the exact update, R²", "", 1, 2),
    ("j0_gap", "J₀ gap", "nats", -1, 2),
    ("truncation_rate", "responses cut at the maximal length", "", -1, 2),
    ("mean_length", "mean length", "tokens", 0, 1),
    ("entropy", "next-token entropy", "nats", 0, 2),
    ("distinct_2", "distinct-2", "", 0, 2),
    ("unanimous", "prompts whose samples all give one answer", "", 0, 2),
    ("gain", "gain of the logits", "", 0, 2),
    ("unparsed_reward_rollouts", "judgements without a grade", "", -1, 2),
    ("unparsed_pairs_reward_rollouts", "comparisons without a verdict", "", -1, 2),
    ("unparsed_meta_reward_rollouts", "comparisons of judgements without a verdict", "", -1, 2),
    ("seconds", "time of a round", "s", 0, 0),
)


def metrics(records: Sequence[Record]) -> list[Metric]:
    """With pass@k and maj@k for the largest k behind the accuracies."""
    at_k: list[Metric] = [
        (f"{kind}_at_{k}", f"{kind}@{k}", "", 1, 3) for kind in ("pass", "maj") for k in measured_at(records, kind)[-1:]
    ]
    return [*METRICS[:2], *at_k, *METRICS[2:]]


@dataclass(frozen=True)
class Verdict:
    """tone: good, bad, open or busy; never told by colour alone, since `headline` says it."""

    tone: str
    headline: str
    improved: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def verdict(folder: Folder) -> Verdict:
    if folder.kind == "run":
        return _of_run(folder)
    if folder.kind == "diagnosis":
        found = folder.diagnosis.get("verdict")
        kind, reason = (found.get("kind"), found.get("reason")) if isinstance(found, dict) else (None, None)
        tone = {"worth it": "good", "hopeless": "bad"}.get(str(kind), "open")
        return Verdict(tone, f"{str(kind or 'unreadable').capitalize()}: {reason or 'the diagnosis has no verdict'}")
    if folder.kind == "experiments":
        return _of_experiments(folder)
    return Verdict("busy", "Waiting: nothing has been written to this folder yet.")


def _of_experiments(folder: Folder) -> Verdict:
    known = [one for one in folder.experiments if one.holds is not None]
    failed = [one.name for one in known if not one.holds]
    if failed:
        return Verdict("bad", f"Does not hold: {', '.join(failed)} ({len(failed)} of {len(known)} experiments).")
    if not known:
        return Verdict("open", "No verdicts were kept: whether each bound held is what srlm verify said.")
    count, unknown = len(known), len(folder.experiments) - len(known)
    more = f" {unknown} more without a verdict." if unknown else ""
    return Verdict("good", f"{'Holds' if count == 1 else f'All {count} experiments hold'}.{more}")


def change(first: Record, last: Record, key: str) -> tuple[float, float, float] | None:
    """Difference of two proportions and its 95 % interval from those of each (Newcombe 1998, method 10), which takes
    them as independent: cautious where the prompts are the same."""
    values = [[number(record.get(key + end)) for end in ("", "_low", "_high")] for record in (first, last)]
    if any(value is None for row in values for value in row):
        return None
    (p, low, high), (q, below, above) = [[v for v in row if v is not None] for row in values]
    return q - p, q - p - math.hypot(q - below, high - p), q - p + math.hypot(above - q, p - low)


def _of_run(folder: Folder) -> Verdict:
    records, state = folder.records, str(folder.manifest.get("state", "waiting"))
    if not records:
        stopped = state not in ("running", "finished", "waiting")
        return Verdict("bad", _sentence(state)) if stopped else Verdict("busy", "Waiting for the first record.")
    thresholds = _thresholds(folder)
    improved, worse, other = _changes(records, thresholds)
    rounds = _config(folder, "rounds")
    where = f"round {records[-1].get('round')}" + (f" of {rounds:g}" if rounds is not None else "")
    tone, headline = _judgement(records, thresholds)
    if state == "running":
        return Verdict("busy", f"Not finished: {where} is recorded. So far: {headline}", improved, worse, other)
    if (earlier := _earlier(folder)) is not None:
        chosen, reason = earlier
        kept = records[: chosen + 1]
        improved, worse, other = _changes(kept, thresholds)
        tone, said = _judgement(kept, thresholds) if chosen else ("open", "that is the model it began with.")
        headline = f"model/ is that of round {chosen}; {said}"
        if reason is None:
            headline = f"Saturated, and an earlier round was better: {headline}"
        else:
            tone, headline = "bad", f"Rolled back by the guard: {headline} Why: {reason}."
        return Verdict(tone, headline, improved, worse + _warnings(records[chosen + 1 :], thresholds), other)
    if state not in ("finished", "waiting"):
        return Verdict("bad", f"{_sentence(state)} {headline}", improved, worse, other)
    return Verdict(tone, headline, improved, worse, other)


def _sentence(state: str) -> str:
    return f"{state[:1].upper()}{state[1:]}."


def _earlier(folder: Folder) -> tuple[int, str | None] | None:
    """The round whose model was kept, if it is not the last one, and why the guard went back to it, if it did: a run
    that was saturated keeps its best round, too."""
    found = folder.manifest.get("guard")
    events, chosen = (found.get("events"), number(found.get("chosen"))) if isinstance(found, dict) else (None, None)
    if not isinstance(events, list) or chosen is None or not 0 <= chosen < len(folder.records) - 1:
        return None
    reasons = [e.get("reason") for e in events if isinstance(e, dict) and e.get("action") == "roll back"]
    return int(chosen), str(reasons[-1]) if reasons else None


def _thresholds(folder: Folder) -> GuardSettings:
    """The run's own, where it has some that can be read."""
    config = folder.manifest.get("config")
    given = config if isinstance(config, dict) else {}
    names = [name for name in given if name.startswith("guard_") and hasattr(GuardSettings, name)]
    try:
        return GuardSettings(**{name: given[name] for name in names if number(given[name]) is not None})
    except UserError:
        return GuardSettings()


def _judgement(records: Sequence[Record], thresholds: GuardSettings) -> tuple[str, str]:
    first, last = records[0], records[-1]
    if len(records) == 1:
        return "open", "one record; there is nothing to compare it with yet."
    found = alarms(records, thresholds)
    sampled = change(first, last, "accuracy_sampled")
    pair = _pair(first, last, "accuracy_sampled", 3)
    moved = "" if sampled is None else f": sampled accuracy {pair}, {_gain(sampled)}"
    if sampled is not None and sampled[2] < 0:
        return "bad", f"Got worse{moved}."
    if found:
        return "bad", f"Damaged{moved}; {found[0]}."
    if sampled is None:
        kappa = _pair(first, last, "log10_kappa_upper", 2)
        said = f"Sharpened: log10 κ {kappa}. " if (change_of(records, "log10_kappa_upper") or 0) < 0 else ""
        return "open", f"{said}Whether the answers got better was not measured: there are no labels."
    if sampled[1] > 0:
        return "good", f"Improved{moved}."
    return "open", f"No clear change{moved}."


def change_of(records: Sequence[Record], key: str) -> float | None:
    first, last = number(records[0].get(key)), number(records[-1].get(key))
    return None if first is None or last is None else last - first


def _changes(records: Sequence[Record], thresholds: GuardSettings) -> tuple[list[str], list[str], list[str]]:
    improved: list[str] = []
    worse: list[str] = []
    other: list[str] = []
    if len(records) < 2:
        return improved, worse, other
    first, last = records[0], records[-1]
    for key, name, unit, better, digits in metrics(records):
        if (moved := change_of(records, key)) is None or key in ("seconds", "mode_fidelity"):
            continue
        text = f"{name} {_pair(first, last, key, digits)}{' ' + unit if unit else ''}"
        if (interval := change(first, last, key)) is not None:
            clear = interval[1] > 0 or interval[2] < 0
            text += f", {_gain(interval)}"
            (improved if clear and moved > 0 else worse if clear else other).append(text)
        elif better and moved:
            (improved if moved * better > 0 else worse).append(text)
        else:
            other.append(text)
    worse += _warnings(records, thresholds)
    best = max(records, key=lambda record: number(record.get("accuracy_sampled")) or -1.0)
    if best is not last and (peak := number(best.get("accuracy_sampled"))) is not None:
        end = number(last.get("accuracy_sampled"))
        if end is not None and end < peak:
            other.append(f"sampled accuracy was highest in round {best.get('round')}: {peak:.3f}, the last {end:.3f}")
    return improved, worse, other


def _warnings(records: Sequence[Record], thresholds: GuardSettings) -> list[str]:
    """What the guard has to say of each round."""
    said = [alarms(records[: t + 1], thresholds) for t in range(len(records))]
    return [f"round {record.get('round')}: {why}" for record, some in zip(records, said, strict=True) for why in some]


def _pair(first: Record, last: Record, key: str, digits: int) -> str:
    before, after = number(first.get(key)), number(last.get(key))
    return "–" if before is None or after is None else f"{before:.{digits}f} → {after:.{digits}f}"


def _gain(interval: tuple[float, float, float]) -> str:
    middle, low, high = interval
    return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


def _config(folder: Folder, key: str) -> float | None:
    config = folder.manifest.get("config")
    return number(config.get(key)) if isinstance(config, dict) else None


def differences(folders: Sequence[Folder]) -> dict[str, Any]:
    """The last records of several runs: heading, and rows of the first run's values and the others' differences."""
    rows = []
    for key, name, unit, _, digits in metrics([record for folder in folders for record in folder.records[-1:]]):
        values = [number(folder.records[-1].get(key)) if folder.records else None for folder in folders]
        if all(value is None for value in values):
            continue
        base = values[0]
        cells = ["–" if base is None else f"{base:.{digits}f}"]
        for value in values[1:]:
            apart = "" if base is None or value is None else f" ({value - base:+.{digits}f})"
            cells.append("–" if value is None else f"{value:.{digits}f}{apart}")
        rows.append([f"{name}{', ' + unit if unit else ''}", *cells])
    return {"heading": ["last round", *(folder.name for folder in folders)], "rows": rows}
