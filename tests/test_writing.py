"""Prompts that a policy writes: how they are asked for, which are kept, and that a run meets the same ones again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasketch import MinHashLSH
from pyarrow import parquet
from support import (
    HELD_OUT,
    alive,
    command,
    learned,
    records,
    refused,
    run_and_die,
    table,
    train_words,
    tree,
    words,
    write_rows,
)

from srlm.errors import UserError
from srlm.harvest import texts_of
from srlm.prompts.columns import blank
from srlm.prompts.presets import PRESETS
from srlm.prompts.select import prompt_set
from srlm.prompts.sources import load_prompts
from srlm.starting import beginning
from srlm.training.writing import Writer
from srlm.types import Prompts
from srlm.writing.filters import FILTERS, Filters, scripts, spread
from srlm.writing.near import MARGIN, PERMUTATIONS, Near, Quoted
from srlm.writing.settings import ATTEMPTS, WritingSettings
from srlm.writing.write import Pool, write

SEEDS = [
    f"Tell me about the {word} of the {place}." for word in ("colour", "size", "age") for place in ("sky", "sea", "sun")
]
HOW = WritingSettings(written_examples=3)


class Author:
    """Goes on with what it is told to: number of the prompt -> text and whether it ended."""

    def __init__(self, says) -> None:
        self.says, self.asked, self.count, self.seeds = says, list[tuple[str, str]](), 0, list[int]()

    def fits(self, item: str, spare: int, *, drawn: bool = False) -> bool:
        return len(item) + spare < 100_000

    def written(self, items: Sequence[str], openings: Sequence[str], number: int, seeds, *, stop, **how):
        self.asked += zip(items, openings, strict=True)
        self.how = how
        self.seeds += seeds
        said = [self.says(self.count + n) for n in range(len(items))]
        self.count += len(items)
        cut = [text.split(stop[-1])[0] for text, _ in said]
        return SimpleNamespace(
            texts=[[text] for text in cut],
            finished=torch.tensor([[over] for _, over in said]),
            log_prob=torch.full((len(said), 1), -2.0),
        )


def harvest(says, number: int = 4, seed: int = 0, round: int = 0, settings: WritingSettings = HOW, **more):
    pool = Pool(SEEDS, settings.written_examples, "seeds")
    author = Author(says)
    return write(author, pool, number, Filters(settings, SEEDS, **more), settings, seed=seed, round=round), author


def different(n: int) -> tuple[str, bool]:
    return f"What is {n * 7919 % 1000} plus {n * 104729 % 1000}, {'abcdefghij'[n % 10] * 6}?", True


def test_what_is_asked_shows_the_examples_and_stops_before_the_next() -> None:
    made, author = harvest(different)
    assert len(made.prompts) == 4
    for one, (item, opening) in zip(made.prompts, author.asked, strict=False):
        assert "list of 4 different tasks" in item
        expected = "".join(f"Task {n}:\n{SEEDS[i]}\n\n" for n, i in enumerate(one.examples, 1)) + "Task 4:\n"
        assert opening == expected and len({*one.examples}) == 3
        assert one.prompt == different(one.draw)[0] and one.log_prob == -2.0
    assert len({one.examples for one in made.prompts}) > 1


def test_talk_behind_a_blank_line_is_cut_unless_examples_have_some() -> None:
    said = "Why is the sky so blue today?\n\nI hope this helps!", True
    assert harvest(lambda n: said, 1)[0].prompts[0].prompt == said[0][:29]
    assert Pool(["a\n\nb", "c"], 2, "s").stop == ("\nTask ",)


def test_a_task_that_is_left_empty_is_not_the_heading_of_the_next() -> None:
    """The line break before it is the last of the opening, where nobody looks for a stop string."""
    said = {
        0: ("Task 5:\nName three kinds of apples that keep well.", True),
        1: ("Task lists: how long may they be?", True),
    }
    made = harvest(lambda n: said.get(n, different(n)), 2)[0]
    assert made.prompts[0].prompt == said[1][0] and made.dropped["length"] == 1


def test_the_same_seed_writes_the_same_and_another_round_does_not() -> None:
    one, other, later = (harvest(different, seed=s, round=t) for s, t in ((0, 0), (0, 0), (0, 1)))
    assert one[0] == other[0] and one[1].seeds == other[1].seeds and len({*one[1].seeds}) == len(one[1].seeds)
    assert [p.examples for p in later[0].prompts] != [p.examples for p in one[0].prompts]
    assert not {*later[1].seeds} & {*one[1].seeds}


def test_how_it_is_written_is_as_asked() -> None:
    how = WritingSettings(written_examples=2, written_tokens=5, written_temperature=0.3, written_top_p=0.4)
    made, author = harvest(different, settings=how)
    assert author.how == {"max_new_tokens": 5, "temperature": 0.3, "top_p": 0.4} and len(made.prompts[0].examples) == 2
    text, other = "What do bees do in the long winter?", "What do bees do in the cold winter?"
    for threshold, wrong in ((0.5, "near_written"), (0.9, None)):
        filters = Filters(WritingSettings(written_near=threshold), SEEDS, written=[text])
        assert filters.wrong(other, True) == wrong


def test_the_context_is_to_hold_the_examples_with_the_most_tokens() -> None:
    """Not those with the most characters."""
    seeds = ["a" * 40 + f" {n}" for n in range(3)] + ["x y z w " * 4 + f"{n}" for n in range(3)]

    class Short(Author):
        def fits(self, item: str, spare: int, *, drawn: bool = False) -> bool:
            return len(item.split()) + spare < 60

    settings = WritingSettings(written_examples=2, written_tokens=5)
    pool = Pool(seeds, 2, "seeds")
    with pytest.raises(UserError, match="no room for 2 examples"):
        write(Short(different), pool, 4, Filters(settings, seeds), settings, seed=0)


def test_each_filter_counts_what_it_drops() -> None:
    held_out = ["Name the river that runs through the city of Prague in Bohemia."]
    said = [
        ("Tell me about the weight of a feather", False),
        ("Hm?", True),
        ("Расскажи мне, почему небо синее?", True),
        ("I'm sorry, but I cannot help with that.", True),
        ("Sure! Here is another task for you", True),
        ("Tell me about the colour of the sky!", True),
        ("What do bees do in the long winter?", True),
        ("what do bees do in the long winter", True),
        ("Name the river that runs through the city of Prague.", True),
        ("Where do all those swallows go?", True),
        ("Too long for what is left, that one", True),
    ]
    made, _ = harvest(
        lambda n: said[n] if n < len(said) else different(n),
        3,
        held_out=held_out,
        overlong=lambda t: t.startswith("Too"),
    )
    assert [one.prompt for one in made.prompts][:2] == [said[6][0], said[9][0]] and len(made.prompts) == 3
    expected = dict.fromkeys(FILTERS, 1) | {"refusal": 2}
    assert made.dropped == expected and tuple(made.dropped) == FILTERS
    assert made.drawn == len(made.prompts) + sum(made.dropped.values())


def test_who_repeats_himself_is_not_asked_for_ever() -> None:
    made, author = harvest(lambda n: ("What do bees do in the long winter?", True), 4)
    assert len(made.prompts) == 1 and made.drawn == author.count == ATTEMPTS * 4
    assert made.dropped["near_written"] == made.drawn - 1


def test_prompts_of_earlier_rounds_are_not_written_again() -> None:
    filters = Filters(HOW, SEEDS, written=["What do bees do in the long winter?"])
    assert filters.wrong("What do bees do in the long winter", True) == "near_written"
    assert filters.wrong("What do cows do in the long summer?", True) is None


def test_near_is_the_exact_similarity_and_the_index_overlooks_hardly_any() -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert text.upper() + "!" in Near(1.0, [text])
    pieces = {text[i : i + 5] for i in range(len(text) - 4)}
    other = "the quick brown fox jumps over the lazy cat"
    theirs = {other[i : i + 5] for i in range(len(other) - 4)}
    share = len(pieces & theirs) / len(pieces | theirs)
    assert other in Near(share, [text]) and other not in Near(share + 1e-9, [text])
    for threshold in (0.3, 0.5, 0.7, 0.9, 1.0):
        index = MinHashLSH(threshold=max(0.1, threshold - MARGIN), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        assert (1 - threshold**index.r) ** index.b < 1e-3


def test_a_quote_is_eight_words_that_examples_have_not_or_a_whole_short_prompt() -> None:
    long = "Why do cats purr when they sleep on a warm stove in winter?"
    quoted = Quoted([long, "Capital of Mali?"], ["Why do cats purr when they sleep on a bed?"])
    assert quoted.by("Is it so that they sleep on a warm stove in winter, or not?")
    assert quoted.by("What is the capital of Mali, please?") and not quoted.by("What is the capital of Chad?")
    assert not quoted.by("Why do cats purr when they sleep on a mat?")  # what all begin with


def test_scripts_and_lengths_are_those_of_the_examples() -> None:
    assert scripts(["ab", "вг"]) == {"Latin": 0.5, "Cyrillic": 0.5} and scripts(["12 + 3"]) == {}
    assert spread(["abcd", "abcdefgh"]) == (2, 16)
    assert Filters(HOW, ["12 + 30", "7 - 4"]).wrong("5 * 9", True) is None
    assert Filters(HOW, ["?", "!"]).wrong("\x01", True) == "length"  # nothing to be seen
    assert Filters(HOW, ["これは何ですか", "東京はどこ"]).wrong("空はなぜ青いの", True) is None
    within = WritingSettings(written_length=(5, 6))
    assert [Filters(within, SEEDS).wrong("x" * n, True) for n in (4, 5, 6, 7)] == ["length", None, None, "length"]


# The command


def seeds(folder: Path, number: int = 9) -> Path:
    return write_rows(folder / "seeds.jsonl", [{"prompt": text} for text in SEEDS[:number]])


LOOSE = {"written_length": (1, 400), "written_tokens": 12, "written_examples": 2, "written_temperature": 0.5}


@pytest.fixture
def open_minded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a random model writes is in no script, and never over."""
    wrong = Filters.wrong
    monkeypatch.setattr(
        Filters, "wrong", lambda self, text, finished: "length" if blank(text) else wrong(self, "a" + text, True)
    )
    monkeypatch.setattr("srlm.writing.filters._LEAST_OF_PROMPT", 0.0)


def test_the_command_writes_a_file_that_can_be_trained_on(tiny, tmp_path, open_minded) -> None:
    given = {"model": tiny, "seeds": seeds(tmp_path), "number": 3, "dtype": "fp32"} | LOOSE
    outcome = command("prompts", *words(**given, output=tmp_path / "a.jsonl"), "--quiet")
    assert outcome.code == 0, outcome
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    about = json.loads((tmp_path / "a.about.json").read_text())
    assert len(rows) == about["kept"] == 3 and about["drawn"] == 3 + sum(about["dropped"].values())
    assert {"prompt", "examples", "draw", "log_prob", "model", "seed"} == {*rows[0]}
    assert all(len(row["examples"]) == 2 and row["log_prob"] < 0 for row in rows)
    assert load_prompts(tmp_path / "a.jsonl").prompts.items == tuple(row["prompt"] for row in rows)
    assert command("prompts", *words(**given, output=tmp_path / "b.jsonl"), "--quiet").code == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    before = tree(tmp_path)
    assert "exists and is never overwritten" in refused("prompts", *words(**given, output=tmp_path / "a.jsonl"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"written_examples": 10},
            "has 9 different prompts of one turn, expected at least the 10 of --written-examples",
        ),
        ({"seeds": ""}, "name a file or dataset with --seeds"),
        ({"output": ""}, "name a new .jsonl file with --output"),
        ({"output": "x.csv"}, "expected the name of a new .jsonl file"),
        ({"number": 0}, "--number is 0, expected at least 1"),
        ({"written_near": 0}, "--written-near is 0"),
        ({"written_length": (5, 4)}, "--written-length is (5, 4)"),
        ({"written_examples": 9, "written_tokens": 400}, "the context of the model has no room for 9 examples"),
        ({"written_length": (399, 400)}, "none of 10 prompts that"),
    ],
)
def test_what_cannot_be_written_from_is_one_sentence(tiny, tmp_path, options, says) -> None:
    given = {"model": tiny, "seeds": seeds(tmp_path), "number": 1, "output": tmp_path / "o.jsonl", "quiet": True}
    given |= {"dtype": "fp32", **LOOSE}
    before = tree(tmp_path)
    assert says in refused("prompts", *words(**given | options))
    assert tree(tmp_path) == before


# In a run


@pytest.fixture
def writing(tiny, tmp_path, held_out_file):
    return {"model": tiny, "prompts": seeds(tmp_path), "held_out": held_out_file, "written_prompts": 2} | LOOSE


def test_a_run_trains_on_what_each_round_writes(writing, tmp_path, open_minded) -> None:
    run = tmp_path / "run"
    outcome = command(*train_words(**writing, prompts_per_round=0, output=run, quiet=True))
    assert outcome.code == 0, outcome
    texts = set[str]()
    assert not any("length_change" in record for record in records(run))
    for t, record in enumerate(records(run)):
        written, said = table(run, t, "written"), table(run, t)
        assert record["prompts"] == len(written["prompt"]) == 2 and record["drawn_write_prompts"] >= 2
        assert {f"dropped_{name}_write_prompts" for name in FILTERS} <= record.keys()
        assert written["prompt_index"] == [9 + 2 * t, 10 + 2 * t]
        assert [*dict.fromkeys(said["prompt_index"])] == written["prompt_index"]
        assert [*dict.fromkeys(said["prompt"])] == written["prompt"]
        texts |= {*written["prompt"]}
    assert len(texts) == 6 and not texts & {*SEEDS, *HELD_OUT}
    # the prompts are no responses
    assert command("export", run, "--output", tmp_path / "all", "--rollouts", "--quiet").code == 0
    rows = parquet.read_table(tmp_path / "all" / "rollouts.parquet", columns=["table", "response"]).to_pylist()
    assert {row["table"] for row in rows} == {"rollouts", "held_out", "greedy"}
    assert all(row["response"] is not None for row in rows)
    # a round of it is held against its own prompts
    assert command("export", f"{run}@1", "--output", tmp_path / "out", "--merged", "--quiet").code == 0
    assert beginning(f"{run}@1")[2] == 1


def test_beside_those_given(writing, tmp_path, open_minded) -> None:
    run = tmp_path / "run"
    options = writing | {"rounds": 1, "system_prompt": "Be brief.", "instruction": "Go."}
    outcome = command(*train_words(**options, prompts_per_round=3, output=run, quiet=True))
    assert outcome.code == 0, outcome
    said = [*dict.fromkeys(table(run, 1)["prompt_index"])]
    assert len(said) == 5 and said[3:] == [11, 12] and max(said[:3]) < 9
    last = table(run, 1)["prompt"][-1]
    assert [turn["role"] for turn in last] == ["system", "user"] and last[1]["content"].endswith("\nGo.")
    assert "Go." not in table(run, 1, "written")["prompt"][-1]


def killed(run: Path, options: list[str], files: int) -> None:
    import srlm.writing.filters as filters

    wrong = filters.Filters.wrong
    filters._LEAST_OF_PROMPT = 0.0
    filters.Filters.wrong = lambda self, text, finished: "length" if blank(text) else wrong(self, "a" + text, True)
    run_and_die(run, options, files)


def test_killed_and_resumed_it_ends_with_the_same(writing, tmp_path, open_minded) -> None:
    options = train_words(**writing | {"rounds": 1}, prompts_per_round=1)
    assert command(*options, "--output", tmp_path / "whole", "--quiet").code == 0
    deaths = 0
    while alive(killed, tmp_path / "run", options, 25):
        deaths += 1
    assert deaths
    assert learned(tmp_path / "run", 1) == learned(tmp_path / "whole", 1)
    assert table(tmp_path / "run", 1, "written") == table(tmp_path / "whole", 1, "written")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"written_examples": 20}, "has 9 different prompts of one turn"),
        ({"written_prompts": 0, "prompts_per_round": 0}, "--prompts-per-round is 0"),
        ({"reward": "check:builtins:len"}, "looks at a prompt's own columns or answers"),
        ({"prompts_per_round": 0, "written_length": (399, 400)}, "no prompt that the policy wrote passed the filters"),
    ],
)
def test_what_a_run_cannot_write_from_is_one_sentence(writing, tmp_path, options, says) -> None:
    assert says in refused(*train_words(**writing | options, output=tmp_path / "run", quiet=True))


@pytest.mark.parametrize("at", [0, 2])
def test_a_round_without_prompts_leaves_the_model_of_the_last_record(
    writing, tmp_path, open_minded, monkeypatch, at
) -> None:
    made = Writer.__call__
    monkeypatch.setattr(
        Writer,
        "__call__",
        lambda self, policy, round: made(self, policy, round) if round != at else (Prompts.uniform([]), ()),
    )
    run, given = tmp_path / "run", train_words(**writing, prompts_per_round=0, quiet=True)
    assert f"round {at}: no prompt that the policy wrote" in refused(*given, "--output", run)
    last = max(0, at - 1)
    assert json.loads((run / "manifest.json").read_text())["guard"]["chosen"] == last
    assert beginning(str(run))[2] == last
    if at:
        name = "adapter/adapter_model.safetensors"
        assert (run / name).read_bytes() == (run / f"round-{last:03d}" / name).read_bytes()
        assert command("export", run, "--output", tmp_path / "out", "--merged", "--quiet").code == 0
    else:
        assert "\nStopped: round 0: no prompt" in (run / "model" / "README.md").read_text()
        said = refused(*given, "--output", tmp_path / "arms", "--compare", "log_likelihood, random")
        assert "round 0: no prompt that the policy wrote" in said


def test_what_held_out_prompts_end_with_keeps_none_of_them_in() -> None:
    asked = ["What is 12 + 35?", "What is 7 + 8?"]
    for source, instruction in (("held.jsonl", "Answer with one number."), ("gsm8k", None)):
        ending = instruction or PRESETS["gsm8k"].instruction
        dressed = prompt_set([f"{text}\n{ending}" for text in asked], None, source)
        assert texts_of(dressed, instruction) == asked
        filters = Filters(HOW, ["What is 1 + 2 + 3?"], held_out=texts_of(dressed, instruction))
        assert all(filters.wrong(text, True) == "held_out" for text in asked)


def test_scripts_without_spaces_hold_a_short_prompt_whole() -> None:
    quoted = Quoted(["法国的首都是哪里？", "Where is Oslo?"])
    assert quoted.by("请你告诉我法国的首都是哪里？") and not quoted.by("请你告诉我德国的首都是哪里？")
    assert not quoted.by("Nowhere is Oslow.")
    sums = Quoted(["2+3等于几？", "好"])
    assert sums.by("请问2+3等于几？") and not sums.by("12+3等于几？") and not sums.by("你好吗？")


@pytest.mark.parametrize("text", ["I'm unable to help with that.", "I’m not able to do so.", "I am unable to help."])
def test_who_is_unable_refuses(text: str) -> None:
    assert Filters(WritingSettings(), ["Name a river in France, please."] * 2).wrong(text, True) == "refusal"
