from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.answers import match_rule, normalise
from srlm.errors import UserError

contains, exact, number, regex = map(match_rule, ("contains", "exact", "number", "regex"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  The capital — of France: PARIS!\n", "the capital of france paris"),
        ("Yaoundé, Chișinău, Reykjavík", "yaounde chisinau reykjavik"),
        ("N'Djamena / N’Djamena", "n djamena n djamena"),
        ("STRASSE straße ﬁn Ｒｏｍｅ", "strasse strasse fin rome"),
        ("İstanbul", "istanbul"),
        ("Москва́ и Αθήνα", "москва и αθηνα"),
        ("שָׁלוֹם مَرْحَبًا", "שלום مرحبا"),
        ("दिल्ली", "दिल्ली"),
        ("서울은 한국", "서울은 한국"),
        ("首都是北京。", "首 都 是 北 京"),
        ("かが", "か が"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("❤\ufe0f ?!", ""),
    ],
)
def test_normalise(text: str, words: str) -> None:
    assert normalise(text) == unicodedata.normalize("NFC", words)


@given(st.text())
def test_normalise_is_idempotent_and_ignores_the_unicode_form(text: str) -> None:
    words = normalise(text)
    assert normalise(words) == words
    assert normalise(unicodedata.normalize("NFD", text)) == words


@pytest.mark.parametrize(
    ("response", "answers", "right"),
    [
        ("The capital of Italy is Rome.", ["Rome"], True),
        ("I like Romero and Jerome.", ["Rome"], False),
        ("Nigeria", ["Niger"], False),
        ("It is la paz, I think", ["Sucre", "La Paz"], True),
        ("La Grande Paz", ["La Paz"], False),
        ("BRASILIA", ["Brasília"], True),
        ("Washington, D.C.", ["Washington DC"], False),
        ("Washington, D.C.", ["washington d c"], True),
        ("法国的首都是巴黎。", ["巴黎"], True),
        ("Столица — Москва.", ["москва"], True),
        ("really?!", ["?!"], False),
        ("", [""], False),
        ("Rome", [], False),
    ],
)
def test_contains(response: str, answers: list[str], right: bool) -> None:
    assert contains(response, answers) is right


@given(st.text("ab c", max_size=8), st.text("ab c", max_size=4))
def test_contains_is_a_run_of_whole_words(response: str, answer: str) -> None:
    said, wanted = response.split(), answer.split()
    runs = [said[i : i + len(wanted)] for i in range(len(said))]
    assert contains(response, [answer]) is (bool(wanted) and wanted in runs)


@pytest.mark.parametrize(
    ("response", "answers", "right"),
    [
        ("  rome. ", ["Paris", "Rome"], True),
        ("It is Rome", ["Rome"], False),
        ("?!", ["?!"], False),
        ("", [], False),
    ],
)
def test_exact(response: str, answers: list[str], right: bool) -> None:
    assert exact(response, answers) is right


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("1,234.5", "1234.5"),
        ("First 7, so the answer is 42.", "42"),
        ("x = -3", "-3"),
        ("\u22123", "-3"),
        ("-$3.50!", "-3.5"),
        ("$12.00", "12"),
        ("$-12.00", "-12"),
        ("50%", "50"),
        ("a score of 3-5", "5"),
        ("COVID-19", "19"),
        ("3/4", "0.75"),
        ("1/0", "1"),
        ("or .5", "0.5"),
        ("1.5e-3", "0.0015"),
        ("1e-07", "0.0000001"),
        ("in 1,2345", "2345"),
        ("12,34", "34"),
        ("答案是42。", "42"),
    ],
)
def test_number_reads_the_last_number(response: str, value: str) -> None:
    assert number(response, ["none", value])
    assert number(f"It is {value}", [response])
    assert not number(response, [f"{float(value) + 1}"])


def test_number_bears_more_digits_than_int_accepts() -> None:
    assert number("9" * 5000, ["9" * 5000])
    assert not number("9" * 5000, ["9" * 5001])
    assert not number("1e999999999", ["1"])


@given(st.integers(), st.integers(min_value=0, max_value=99))
def test_number_sees_one_value_however_it_is_written(whole: int, cents: int) -> None:
    plain = f"{whole}.{cents:02d}"
    assert number(f"So it costs {whole:,}.{cents:02d}0 dollars.", [plain])
    assert not number(f"So it costs {whole:,}.{cents:02d}1 dollars.", [plain])


def test_number_needs_a_number_on_both_sides() -> None:
    assert not number("twelve", ["twelve"])
    assert not number("12", ["twelve"])
    assert not number("12", [])


def test_regex() -> None:
    assert regex("Kyiv", ["Paris", "^K[iy]+e?v$"])
    assert not regex("kyiv", ["^K"])
    with pytest.raises(UserError, match=r"'\(' is not a regular expression \(.+\).* correct it"):
        regex("Kyiv", ["Kyiv", "("])


def test_own_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rules.py").write_text(
        "limit = 3\n"
        "def longer(response, answers):\n    assert isinstance(answers, tuple)\n    return len(response) > limit\n"
        "def forgets(response, answers):\n    response in answers\n"
    )
    (tmp_path / "broken_rules.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    longer = match_rule("own_rules:longer")
    assert longer("Rome", ["x"]) is True and longer("Rom", ["x"]) is False
    with pytest.raises(UserError, match="own_rules:forgets returned None, expected True or False"):
        match_rule("own_rules:forgets")("Rome", ["Rome"])
    with pytest.raises(UserError, match="own_rules:limit is not a function"):
        match_rule("own_rules:limit")
    with pytest.raises(UserError, match=r"own_rules:shorter cannot be imported \(AttributeError"):
        match_rule("own_rules:shorter")
    with pytest.raises(UserError, match=r"no_such_rules:f cannot be imported \(ModuleNotFoundError"):
        match_rule("no_such_rules:f")
    with pytest.raises(UserError, match=r"broken_rules:f cannot be imported \(ZeroDivisionError"):
        match_rule("broken_rules:f")


@pytest.mark.parametrize("name", ["contain", "", "module:", ":function"])
def test_unknown_rule(name: str) -> None:
    with pytest.raises(UserError, match="expected contains, exact, number, regex or module:function"):
        match_rule(name)
