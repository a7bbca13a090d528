"""Where the tokens of a response end in its text, against decoding every prefix anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from srlm.policies.transformer import text
from srlm.policies.transformer.text import Texts


def spaced() -> PreTrainedTokenizerFast:
    """As Llama 2: words begin with a sign that the first one loses, and bytes stand for what is no word."""
    words = ["<s>", "▁", "▁a", "b", "▁the", "漢", ".", "▁."]
    core = Tokenizer(models.BPE({w: i for i, w in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}, []))
    trimmed = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(trimmed)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<s>")


def pieces() -> PreTrainedTokenizerFast:
    """As BERT."""
    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(["[UNK]", "do", "##n", "'", "t", ".", "a", "##é"])}))
    core.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[UNK]")


TOKENIZERS = {"bytes": make_tokenizer(), "spaced": spaced(), "pieces": pieces()}
SAID = "naïve 漢字 👩‍👩‍👧 \ufffd ok."


def of_prefixes(texts: Texts, ids: Sequence[int]) -> list[int]:
    size = len(texts.text(ids))
    reached = (min(len(texts.text(ids[: i + 1]).rstrip("\ufffd")), size) for i in range(len(ids)))
    return list(itertools.accumulate(reached, max))


def as_sampled(texts: Texts, ids: list[int]) -> list[int]:
    ends = (i for i in range(1, len(ids) + 1) if texts.stop and texts.text(ids[:i]) != texts._decoded(ids[:i]))
    return ids[: next(ends, len(ids))]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("stop", [(), ("ab", " a", ".")])
@given(st.data())
def test_token_ends_are_those_of_prefixes(name: str, stop: tuple[str, ...], data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    texts = Texts(tokenizer, stop, frozenset())
    some = st.integers(0, len(tokenizer) - 1)
    if name == "bytes":
        written = st.sampled_from([tokenizer(SAID[i:])["input_ids"] for i in range(len(SAID))])
        ids = data.draw(
            st.lists(st.one_of(some.map(lambda i: [i]), written), max_size=4).map(lambda x: [*itertools.chain(*x)])
        )
    else:
        usual = st.integers(0, min(9, len(tokenizer) - 1))
        ids = data.draw(st.lists(st.one_of(usual, some), max_size=24))
    ids = as_sampled(texts, ids)
    assert texts.token_ends(ids) == of_prefixes(texts, ids)


@pytest.mark.parametrize("name", ["bytes", "spaced"])
def test_token_ends_take_a_decoded_window_a_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS[name]
    decode = tokenizer.decode
    seen: list[int] = []
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **said: seen.append(len(ids)) or decode(ids, **said))
    never = tokenizer.convert_tokens_to_ids({"bytes": "ÿ", "spaced": "<0xFF>"}[name])  # no character begins so
    broken = [never] * (3 * text.LONGEST_PIECES)
    for ids in (list(range(3, 9)) * 200, [*broken, 3, 4] * 2):
        seen.clear()
        assert len(Texts(tokenizer, (), frozenset()).token_ends(ids)) == len(ids)
        assert sum(seen) < 5 * len(ids) * (1 if ids[0] == 3 else text.LONGEST_PIECES)


@pytest.mark.parametrize("stop", [("ab", " a", "."), (" ", "漢"), ("'t", "é"), ("\n",)])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.data())
def test_a_stop_string_is_seen_with_the_token_that_completes_it(
    name: str, stop: tuple[str, ...], data: st.DataObject
) -> None:
    """Although text is made only after tokens that may have completed one."""
    tokenizer = TOKENIZERS[name]
    texts, made = Texts(tokenizer, stop, frozenset()), len(tokenizer)
    usual = st.sampled_from(sorted({i for i in range(made) if "<" not in tokenizer.decode([i])}))
    ids = data.draw(st.lists(st.one_of(usual, st.integers(0, made - 1)), min_size=1, max_size=12))
    prefixes = [ids[:n] for n in range(1, len(ids) + 1)]
    there = (p for p in prefixes if any(one in tokenizer.decode(p[-texts.window :]) for one in stop))
    seen = (p for p in prefixes if texts.stopped(p))
    assert next(seen, None) == next(there, None)


def test_most_tokens_are_not_decoded_for_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = make_tokenizer(), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **said: seen.append(len(ids)) or decode(ids, **said))
    texts = Texts(tokenizer, ("x\n",), frozenset())
    ids = tokenizer.encode("the words of a line, and again the words of a line ")
    assert not any(texts.stopped(ids[:n]) for n in range(1, len(ids) + 1))
    assert len([size for size in seen if size > 1]) == sum(i == ids[-1] for i in ids)  # spaces, which may be trimmed


def test_a_stop_string_may_end_with_a_piece_of_a_character() -> None:
    tokenizer = make_tokenizer()
    texts, ids = Texts(tokenizer, ("é",), frozenset()), tokenizer.encode("a é")
    assert [texts.stopped(ids[:n]) for n in range(1, len(ids) + 1)] == [False] * (len(ids) - 1) + [True]


def test_what_ends_a_response_is_no_part_of_its_text() -> None:
    """Not every tokenizer calls the end of a turn special."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|over|>"])
    end = tokenizer.convert_tokens_to_ids("<|over|>")
    texts = Texts(tokenizer, (), frozenset([end]))
    ids = tokenizer("Paris")["input_ids"]
    assert texts.text([*ids, end]) == "Paris" == texts.text(ids) and texts.text([end]) == ""
    assert texts.token_ends([*ids, end]) == [*texts.token_ends(ids), 5] and texts.token_ends([end]) == [0]
    assert texts.text([end, *ids]) == "<|over|>Paris"  # one in between is what was said
