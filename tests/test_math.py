"""The rule and the answer class `math`: what a person says, what math-verify says, and what may never stop a run."""

from __future__ import annotations

import importlib.util
import time

import pytest

import srlm.answers.math
from srlm.answers import answer_classes, match_rule
from srlm.errors import UserError

needed = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")

# A response, an answer as a benchmark holds it, and whether a person says that they are the same.
SAME = [
    # numbers
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\dfrac{3}{4}}", r"\frac{3}{4}"),
    (r"\boxed{\frac12}", r"\frac{1}{2}"),
    (r"\boxed{\tfrac{-7}{3}}", r"-\frac{7}{3}"),
    (r"\boxed{1\frac{1}{2}}", r"\frac{3}{2}"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{14{,}916}", "14,916"),
    (r"\boxed{6,\!000}", "6000"),
    (r"\boxed{2 \cdot 10^3}", "2000"),
    (r"\boxed{3.0 \times 10^{8}}", "300000000"),
    (r"\boxed{5!}", "120"),
    (r"\boxed{\binom{5}{2}}", "10"),
    (r"\boxed{\log_2 8}", "3"),
    (r"\boxed{0.75}", r"\frac{3}{4}"),
    (r"\boxed{-.5}", "-0.5"),
    (r"\boxed{2^{10}}", "1024"),
    (r"\boxed{\frac{10}{4}}", r"\frac{5}{2}"),
    # roots, pi
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}"),
    (r"\boxed{\sqrt{12}}", r"2\sqrt{3}"),
    (r"\boxed{\sqrt[3]{27}}", "3"),
    (r"\boxed{\frac{\pi}{2}}", r"\dfrac{1}{2}\pi"),
    (r"\boxed{3+\sqrt{2}}", r"\sqrt{2}+3"),
    # units, money, percentages, degrees
    (r"\boxed{5\text{ cm}}", "5"),
    (r"\boxed{12 \text{ apples}}", "12"),
    (r"\boxed{\$5.00}", "5"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{25\%}", "25"),
    (r"\boxed{50\%}", r"50\%"),
    (r"\boxed{40\text{ mph}}", "40"),
    # expressions
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{2-2p}", "2(1-p)"),
    (r"\boxed{\frac{x^2-1}{x-1}}", "x+1"),
    (r"\boxed{2x+2y}", "2(x+y)"),  # to math-verify a(b+c) is a function's value, and 2c cents
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{y=2x+1}", "y=1+2x"),
    (r"\boxed{5=x}", "5"),
    (r"\boxed{2x+3y=6}", "4x+6y=12"),
    (r"\boxed{3+4i}", "4i+3"),
    (r"\boxed{-x+3}", "3-x"),
    # sets, lists, pairs, intervals, inequalities
    (r"\boxed{\{1,2\}}", r"\{2,1\}"),
    (r"\boxed{1,2}", "2, 1"),
    (r"\boxed{1} and \boxed{2}", "1,2"),
    (r"\boxed{-2} \quad \text{and} \quad \boxed{1}", "-2,1"),
    (r"\boxed{\pm 2}", "-2,2"),
    (r"\boxed{(1,2)}", r"\left(1,2\right)"),
    (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"(3,\pi/2)"),
    (r"\boxed{[0,1)}", r"\left[0, 1\right)"),
    (r"\boxed{x<5}", r"(-\infty,5)"),
    (r"\boxed{x \ge 3}", r"[3,\infty)"),
    (r"\boxed{-2 \le x \le 7}", "[-2,7]"),
    (r"\boxed{[1,3] \cup [5,7)}", r"[5,7) \cup [1,3]"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    # words and choices
    (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
    (r"\boxed{Evelyn}", r"\text{Evelyn}"),
    (r"\boxed{\text{(B)}}", "B"),
    (r"\boxed{\text{even}}", r"\text{even}"),
    (r"\boxed{\text{Monday}}", "Monday"),
    # where the answer stands
    ("She has 3+4=7 apples.\n#### 7", "7"),
    ("So she pays $15.\n#### $15", "They pay 5 * 3 = <<5*3=15>>15\n#### 15"),
    ("The answer is $\\frac{2}{3}$.", r"\frac{2}{3}"),
    ("**Answer:** 42", "42"),
    (r"We get \[\boxed{\frac{14}{3}}\]", r"\frac{14}{3}"),
    (r"First \boxed{3}, but then $x=\boxed{\frac{\sqrt{3}}{2}}$.", r"\frac{\sqrt{3}}{2}"),
    (r"<think>it is \boxed{3}</think> It is \boxed{4}.", "4"),
    (r"\boxed{\frac{\frac{1}{2}}{3}}", r"\frac{1}{6}"),
    (r"Thus the remainder is $\fbox{11}$.", "11"),
    # words, times, days
    (r"\boxed{\text{No solution}}", "No solution"),
    (r"\boxed{\text{Team A}}", "team A."),
    (r"\boxed{3:00}", "3:00"),
    (r"\boxed{20 June}", "June 20"),
]
OTHER = [
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{3}"),
    (r"\boxed{\frac{1}{2}}", "2"),
    (r"\boxed{-5}", "5"),
    (r"\boxed{\sqrt{2}}", "2"),
    (r"\boxed{2\pi}", "2"),
    (r"\boxed{x^2+1}", "(x+1)^2"),
    (r"\boxed{x+1}", "y+1"),
    (r"\boxed{[0,1)}", "(0,1)"),
    (r"\boxed{[0,9]}", "[0,1]"),
    (r"\boxed{(1,2)}", "(2,1)"),
    (r"\boxed{\{1,2\}}", r"\{1,3\}"),
    (r"\boxed{1,2}", "1"),
    (r"\boxed{x<5}", "x>5"),
    (r"\boxed{x \le 5}", "x<5"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\boxed{\text{(A)}}", r"\text{(B)}"),
    (r"\boxed{\text{even}}", r"\text{odd}"),
    (r"\boxed{10^{3}}", "103"),
    (r"\boxed{3+4i}", "3-4i"),
    (r"First \boxed{4}, no, \boxed{3}", "4"),
    (r"<think>it is \boxed{3}</think> It is \boxed{4}.", "3"),
    (r"<think>it must be \boxed{3}", "3"),
    ("She has 7 apples.\n#### 12", "7"),
    (r"\boxed{0.33}", r"\frac{1}{3}"),
    (r"\boxed{2x+3y=6}", "2x+3y=12"),
    (r"\boxed{12.5}", "125"),
    (r"\boxed{1,234}", "234"),
    ("I do not know.", "5"),
    (r"\boxed{3:00}", "4:00"),
    (r"\boxed{5:15}", "10:30"),
    (r"\boxed{June 20}", "May 20"),
]


@needed
@pytest.mark.parametrize(("response", "answer", "person"), [(*p, True) for p in SAME] + [(*p, False) for p in OTHER])
def test_judged_as_a_person_would(response: str, answer: str, person: bool) -> None:
    assert match_rule("math")(response, [answer]) is person
    one, other = map(answer_classes("math"), (response, answer))
    assert (one is not None and one == other) is person


@needed
def test_math_verify_itself_agrees() -> None:
    """On what is in a box, against the answer in a box: the extraction apart, judgements are its own."""
    from math_verify import parse, verify

    pairs = [(r, a, True) for r, a in SAME] + [(r, a, False) for r, a in OTHER]
    boxed = [(r, a, p) for r, a, p in pairs if r.startswith(r"\boxed") and r.count("boxed") == 1]
    differ = [(r, a) for r, a, p in boxed if verify(parse(rf"$\boxed{{{a}}}$"), parse(f"${r}$")) is not p]
    # It tells an inequality from the interval that it describes, unless asked not to, and 5 = x from 5; 5:15 is a
    # ratio to it, and A a letter of a choice.
    wanted = {r"(-\infty,5)", r"[3,\infty)", "[-2,7]", "5", "10:30", "team A."}
    assert len(boxed) > 70 and {answer for _, answer in differ} == wanted


@needed
def test_what_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srlm.answers.math, "PATIENCE", 0.5)
    child = srlm.answers.math.Child()
    assert child.ask("class", r"\frac{1}{2}") == "0.5"  # a fresh child takes its time to begin, and that counts not
    start = time.perf_counter()
    assert child.ask("class", "9^{9^{9^{9}}}") is None
    assert time.perf_counter() - start < 2 and child.given_up == 1
    assert child.ask("same", "1/2", "0.5") is True  # another has taken its place


@needed
def test_nobody_is_left_behind() -> None:
    """A child whose parent is gone, or that hangs with nobody to kill it, ends by itself."""
    import subprocess
    import sys

    words = [sys.executable, "-m", "srlm.answers.math_worker", "0.5"]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write('["class", "9^{9^{9^{9}}}"]\n')
    child.stdin.flush()
    assert child.wait(timeout=10) < 0


@needed
@pytest.mark.parametrize(
    "text", ["", "\\boxed{", "}{", "$" * 999, "\\frac{1}{0}", "\x00", "\ud800", "9" * 5000, "[" * 500]
)
def test_bears_any_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srlm.answers.math, "PATIENCE", 1.0)
    monkeypatch.setattr(srlm.answers.math, "CHILD", srlm.answers.math.Child())
    match_rule("math")(text, ["5"])
    answer_classes("math")(text)


@needed
def test_what_could_not_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srlm.answers.math, "PATIENCE", 0.5)
    monkeypatch.setattr(srlm.answers.math, "CHILD", srlm.answers.math.Child())
    assert srlm.answers.math.given_up() is None
    assert not match_rule("math")(r"\boxed{8^{9^{9^{9}}}}", ["5"])
    assert "1 answers took math-verify more than 0.5 s" in str(srlm.answers.math.given_up())


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else find(name))
    for get in (match_rule, answer_classes):
        with pytest.raises(UserError, match=r"needs the package math-verify: run `pip install 'srlm\[math\]'`"):
            get("math")


def test_answers_stand_behind_a_thinking_block() -> None:
    thought = "<think>Perhaps 3, or Rome.</think>\n\nIt is 4, or Paris."
    for rule, right, wrong in (("number", "4", "3"), ("contains", "Paris", "Rome"), ("auto", "Paris", "Rome")):
        assert match_rule(rule)(thought, [right]) and not match_rule(rule)(thought, [wrong])
    assert match_rule("exact")("<think>no</think> Paris", ["Paris"])
    assert not match_rule("regex")(thought, ["Rome"]) and match_rule("regex")(thought, ["Paris"])
    assert answer_classes("number")("so 3</think> It is 4") == 4  # the template has opened it
    assert answer_classes("exact")("a</think> b") == "b" and answer_classes("normalised")("a</think> B.") == "b"
    assert answer_classes(r"regex:\d")("3</think> 4") == "4"
    assert answer_classes("number")("<think>it is 3") is None  # cut off in mid-thought


@pytest.mark.parametrize("name", ["exact", "normalised", "number", "regex:(.+)"])
def test_a_thought_that_nothing_follows_is_no_answer(name: str) -> None:
    """Or else all that are cut off would agree."""
    chosen = answer_classes(name)
    assert chosen("<think>let me see 4") is None and chosen("<think>4</think>") is None
    assert chosen("<think>so</think> 4") is not None


@needed
def test_small_numbers_are_not_nothing() -> None:
    math_class, same = answer_classes("math"), match_rule("math")
    for one, other in (("10^{-20}", "10^{-15}"), ("0", r"1.6\times 10^{-19}"), (r"6.6\times 10^{-34}", "0")):
        assert not same(rf"\boxed{{{one}}}", [other]) and math_class(one) != math_class(other)
    assert math_class("2.9999999999999") == math_class("3") and math_class(r"\sin(\pi)") == math_class("0")
    assert same(r"\boxed{\sqrt{2}\sqrt{3}-\sqrt{6}}", ["0"])


def test_a_sentence_that_mentions_a_day_or_a_time_is_none() -> None:
    assert match_rule("math")("We may write the sum as $\\frac{2}{3}$.", ["\\frac{2}{3}"])
    one, other = (f"From 8:00 to 9:30 it runs, so it takes ${{{n}}}$ minutes" for n in (90, 80))
    of = answer_classes("math")
    assert of(one) is not None and of(one) == of(one.replace("8:00", "7:00")) != of(other)
    assert match_rule("math")("\\boxed{May 5}", ["5 May"]) and not match_rule("math")("\\boxed{May 5}", ["5"])


def test_a_heading_is_no_answer() -> None:
    of = answer_classes("math")
    assert of("#### Conclusion\nIt is $18$.") != of("#### Conclusion\nIt is $19$.")
