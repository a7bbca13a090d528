"""Thinking blocks: what a model writes to itself before it answers."""

from __future__ import annotations

OPENS, CLOSES = "<think>", "</think>"


def spoken(text: str) -> str:
    """What stands behind the last thinking block; nothing, if that is not over. A template may have opened it."""
    _, closes, after = text.rpartition(CLOSES)
    return "" if OPENS in after else after.strip() if closes else text


def unclosed(text: str, opened: bool) -> str:
    """A response as those that read answers are to see it. opened: its prompt ends in an open block, which stands
    before a response that does not close it."""
    return f"{OPENS}\n{text}" if opened and CLOSES not in text else text


def in_thought(text: str) -> bool:
    """Is a block open at the end of a text?"""
    return text.rfind(OPENS) > text.rfind(CLOSES)
