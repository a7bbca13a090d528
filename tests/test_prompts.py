from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm.answers import normalise
from srlm.config import SelfRewardConfig
from srlm.errors import UserError
from srlm.prompts.select import PromptSet
from srlm.prompts.sources import load_prompts
from srlm.types import Prompts

DATA = Path(__file__).parents[1] / "data"
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 3 + 4?", "answer": "007"},
    {"prompt": ' "Quoted", with comma\nand\u2028lines ', "answer": "Kyïv"},
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of Italy?"}]
Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def jsonl(*rows: Any) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def numbered(tmp_path: Path, count: int, distinct: int = 1000) -> PromptSet:
    path = tmp_path / "numbered.jsonl"
    path.write_text(jsonl(*({"prompt": f"prompt {i % distinct}", "answer": i} for i in range(count))))
    return load_prompts(path)


# Sources


def test_every_source_gives_the_same_prompts(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([{**row, "unused": 1} for row in ROWS])
    table.with_format("numpy").save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "splits"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or table)
    csv = '\ufeffprompt,answer\r\nWhat is 3 + 4?,007\r\n\r\n" ""Quoted"", with comma\nand\u2028lines ",Kyïv\r\n'
    sources = [
        write("rows.jsonl", "\ufeff" + jsonl(ROWS[0]) + "\r\n\r\n" + jsonl(ROWS[1]) + "\r\n"),
        write("rows.JSON", json.dumps(ROWS)),
        write("rows.csv", csv),
        tmp_path / "rows.parquet",
        tmp_path / "saved",
        tmp_path / "splits",
        "someone/some.data-set",
    ]
    for source in sources:
        loaded = load_prompts(source)
        assert loaded.prompts.items == tuple(row["prompt"] for row in ROWS), source
        assert loaded.answers == (("007",), ("Kyïv",)), source
        assert loaded.source == str(source)
        assert loaded.fingerprint == load_prompts(sources[0]).fingerprint
    assert asked == [("someone/some.data-set", "train")]
    assert len(load_prompts(tmp_path / "splits", split="test").prompts) == 1
    with pytest.raises(UserError, match=r"splits has no split 'dev'; choose one of train, test"):
        load_prompts(tmp_path / "splits", split="dev")


def test_bare_strings(write: Write) -> None:
    assert load_prompts(write("a.txt", "one\r\n\n  two \n")).prompts.items == ("one", "two")
    assert load_prompts(write("a.json", '["one", "two"]')).prompts.items == ("one", "two")
    loaded = load_prompts(write("a.jsonl", '"one"\n"two"'))
    assert loaded.prompts.items == ("one", "two") and loaded.answers is None
    assert loaded.prompts.weight.tolist() == [0.5, 0.5]


def test_columns(write: Write, tmp_path: Path) -> None:
    path = write("a.jsonl", jsonl({"question": "q", "messages": CHAT, "target": ["a", 1]}))
    loaded = load_prompts(path, prompt_column="question", answer_column="target")
    assert loaded.prompts.items == ("q",) and loaded.answers == (("a", "1"),)
    assert load_prompts(path).prompts.items == (tuple(CHAT),)
    with pytest.raises(UserError, match=r"has no 'query' \(columns found: 'question', 'messages', 'target'\)"):
        load_prompts(path, prompt_column="query")  # a named column is never replaced by another
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"has no 'prompt' or 'messages' \(columns found: 'text', 'label'\)"):
        load_prompts(tmp_path / "a.parquet")


def test_conversations(write: Write, tmp_path: Path) -> None:
    rows = [{"messages": [{**turn, "name": None} for turn in CHAT]}, {"prompt": CHAT[:1]}]
    assert load_prompts(write("a.jsonl", jsonl(*rows))).prompts.items == (tuple(CHAT), tuple(CHAT[:1]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": CHAT}]), tmp_path / "a.parquet")
    assert load_prompts(tmp_path / "a.parquet").prompts.items == (tuple(CHAT),)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        *(("Rome", ("Rome",)), (7, ("7",)), (7.0, ("7",)), (0.5, ("0.5",)), (["a", 2, None, ""], ("a", "2"))),
        (10**400, (f"1{'0' * 400}",)),
    ],
)
def test_answers(write: Write, answer: Any, accepted: tuple[str, ...]) -> None:
    assert load_prompts(write("a.jsonl", jsonl({"prompt": "p", "answer": answer}))).answers == (accepted,)


@pytest.mark.parametrize("answer", [None, "", []])
def test_an_empty_answer_column_is_none(write: Write, answer: Any) -> None:
    assert load_prompts(write("a.jsonl", jsonl({"prompt": "p", "answer": answer}))).answers is None


# What can be wrong with them

GOOD = jsonl({"prompt": "p"}) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty, expected at least one prompt"),
        ("a.json", " \n", "a.json is empty"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "prompt,answer\n", "a.csv is empty"),
        ("a.txt", "\n \n", "a.txt is empty"),
        ("a.json", "[]", "a.json is empty"),
        ("a.xlsx", "", r"extension '.xlsx', expected .jsonl, .ndjson, .json, .csv, .tsv, .txt or .parquet; convert"),
        ("a", "", "a has the extension '', expected .jsonl"),
        ("a.jsonl", GOOD.encode() + '{"prompt": "é"}'.encode("latin-1"), "line 2 of .*a.jsonl is not UTF-8; save"),
        ("a.txt", "é".encode("utf-16"), "line 1 of .*a.txt is not UTF-8"),
        ("a.jsonl", GOOD + "\n{oops}", r"line 3 of .*a.jsonl is not valid JSON \(.*\), expected one object a line"),
        ("a.jsonl", "9" * 5000, "line 1 of .*a.jsonl is not valid JSON"),
        ("a.json", '[\n"a",\n"b"', "line 3 of .*a.json is not valid JSON"),
        ("a.json", GOOD * 2, r"line 2 of .*a.json is not valid JSON .*one object a line is .jsonl"),
        ("a.json", '{"prompt": "p"}', "a.json holds an object, expected a list of objects or strings"),
        ("a.json", '["a", 1]', "row 2 of .*a.json is a number, expected an object"),
        ("a.jsonl", GOOD + "[1]", 'line 2 of .*a.jsonl is a list, expected an object such as {"prompt": "..."}'),
        ("a.jsonl", "null", "line 1 of .*a.jsonl is null, expected an object"),
        ("a.jsonl", jsonl({"text": "t"}), r"line 1 of .* has no 'prompt' or 'messages' \(columns found: 'text'\)"),
        ("a.jsonl", "{}", r"line 1 of .* has no 'prompt' or 'messages' \(columns found: none\)"),
        ("a.jsonl", GOOD + jsonl({"prompt": None}), r"line 2 of .* has no 'prompt' .*\(columns found: 'prompt'\)"),
        ("a.jsonl", GOOD + jsonl({"prompt": " \t"}), "the prompt on line 2 of .*a.jsonl is empty"),
        ("a.jsonl", r'{"prompt": "\ud83d"}', "the prompt on line 1 of .*a.jsonl has half of a surrogate pair"),
        ("a.jsonl", jsonl({"prompt": 3}), "'prompt' on line 1 of .*a.jsonl is a number, expected a string"),
        ("a.jsonl", jsonl({"messages": "hi"}), r"'messages' on line 1 .* is a string, expected a list of {\"role\""),
        (
            "a.jsonl",
            jsonl({"messages": []}),
            "the conversation on line 1 .* is empty, but a prompt must end with a user",
        ),
        ("a.jsonl", jsonl({"messages": ["hi"]}), "turn 1 on line 1 .* is not a turn of a conversation, expected"),
        ("a.jsonl", jsonl({"messages": [CHAT[0], {"role": "user"}]}), "turn 2 on line 1 .* is not a turn"),
        ("a.jsonl", jsonl({"messages": [{"role": "bot", "content": "x"}]}), "turn 1 on line 1 .* is not a turn"),
        ("a.jsonl", jsonl({"messages": [{"role": ["user"], "content": "x"}]}), "turn 1 on line 1 .* is not a turn"),
        ("a.jsonl", jsonl({"messages": [{"role": "user", "content": " "}]}), "turn 1 on line 1 .* is empty"),
        (
            "a.jsonl",
            jsonl({"prompt": [*CHAT, {"role": "assistant", "content": "Rome"}]}),
            r"line 1 .* ends with an assistant turn, but a prompt must end with a user \(or system\) turn; correct",
        ),
        ("a.jsonl", jsonl(ROWS[0], {"prompt": "p"}), "line 2 of .* has no 'answer' though other rows do; give all"),
        ("a.jsonl", jsonl({"prompt": "p", "answer": []}, ROWS[0]), "line 1 of .* has no 'answer'"),
        ("a.csv", "prompt,answer\np,1\nq,\n", "line 3 of .* has no 'answer'"),
        (
            "a.jsonl",
            jsonl({"prompt": "p", "answer": {"a": 1}}),
            "an answer on line 1 .* is an object, expected a string",
        ),
        ("a.jsonl", jsonl({"prompt": "p", "answer": [True]}), "an answer on line 1 .* is a bool, expected a string"),
        ("a.jsonl", jsonl({"prompt": "p", "answer": float("nan")}), "an answer on line 1 .* expected .* finite number"),
        ("a.jsonl", jsonl({"prompt": "p", "answer": "  "}), "an answer on line 1 .* is empty"),
        ("a.csv", 'prompt,x\n"a\nb",1\nc,2,3\n', "line 4 of .* has 3 fields, expected 2 as in the header"),
        ("a.csv", 'prompt,x\n"a\nb",1\n ,2\n', "the prompt on line 4 of .* is empty"),
        ("a.csv", 'prompt\n"a\n', r"line 2 of .*a.csv is not valid CSV \(unexpected end of data\)"),
        ("a.csv", "question\nq\n", r"line 2 of .* has no 'prompt' or 'messages' \(columns found: 'question'\)"),
        ("a.parquet", "prompt", "a.parquet is not a readable Parquet file"),
    ],
)
def test_bad_files(write: Write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(write(name, content))
    assert "\n" not in str(caught.value)


def test_unreadable_sources(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("gone.jsonl", "/no/such/place", "a/b/c", "what is this?", "x" * 5000 + " "):
        with pytest.raises(UserError, match=r"there is no file .*, expected .jsonl.* or a Hub id; check the path"):
            load_prompts(missing)
    with pytest.raises(UserError, match=r"is not a folder that save_to_disk wrote .*; give such a folder or a file"):
        load_prompts(tmp_path)

    def unreachable(name: str, split: str) -> None:
        raise ConnectionError("no network.\nTraceback ...")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"^some/data is not a file here, nor .* Hub .*\(no network\); check .* 'dev'"):
        load_prompts("some/data", split="dev")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"a.txt cannot be read \(Permission denied\); check its permissions"):
        load_prompts(write("a.txt", "p"))


# Subsets, splits and fingerprints


def test_take(tmp_path: Path) -> None:
    whole = numbered(tmp_path, 20)
    few, more = whole.take(5, seed=3), whole.take(12, seed=3)
    assert len(few.prompts) == 5 and set(few.prompts.items) < set(more.prompts.items)
    assert few.prompts.items == whole.take(5, seed=3).prompts.items
    assert few.prompts.items != whole.take(5, seed=4).prompts.items
    assert few.answers is not None
    numbers = [int(str(item).split()[1]) for item in few.prompts.items]
    assert numbers == sorted(numbers) and few.answers == tuple((str(i),) for i in numbers)
    assert whole.take(None, seed=3) is whole and whole.take(21, seed=3) is whole
    with pytest.raises(UserError, match=r"0 prompts of .* were asked for; ask for 1 or more"):
        whole.take(0, seed=3)


@given(count=st.integers(2, 30), distinct=st.integers(2, 30), held_out=st.integers(1, 29), seed=st.integers(0, 2**32))
def test_split_is_disjoint(
    tmp_path_factory: pytest.TempPathFactory, count: int, distinct: int, held_out: int, seed: int
) -> None:
    whole = numbered(tmp_path_factory.getbasetemp(), count, distinct)
    try:
        train, held = whole.split(held_out, seed)
    except UserError:
        assert held_out >= count or distinct < count  # only copies, or nothing, would be left to train on
        return
    assert len(held.prompts) == held_out and len(train.prompts) >= 1
    assert not set(train.prompts.items) & set(held.prompts.items)
    assert set(train.prompts.items) | set(held.prompts.items) == set(whole.prompts.items)
    if distinct >= count:
        assert len(train.prompts) + held_out == count
    assert held.fingerprint == whole.split(held_out, seed)[1].fingerprint


def test_split_refuses_to_leave_nothing(tmp_path: Path) -> None:
    for held_out in (0, -1, 20, 21):
        with pytest.raises(UserError, match=r"of 20 prompts \(20 distinct\) of .* cannot be held out; hold out 1 or"):
            numbered(tmp_path, 20).split(held_out, seed=0)
    with pytest.raises(UserError, match=r"3 of 4 prompts \(1 distinct\)"):
        numbered(tmp_path, 4, distinct=1).split(3, seed=0)


def test_fingerprint_is_of_the_prompts_alone(write: Write) -> None:
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    first = load_prompts(write("a.jsonl", jsonl(*rows))).fingerprint
    assert first == hashlib.sha256(b'"a"\n"b"').hexdigest()
    assert first == load_prompts(write("b.txt", "a\nb")).fingerprint
    assert first != load_prompts(write("c.txt", "b\na")).fingerprint
    turns = load_prompts(write("d.jsonl", jsonl({"messages": [{"content": "a", "role": "user"}]}, "b"))).fingerprint
    assert (
        turns
        == load_prompts(write("e.jsonl", jsonl({"messages": [{"role": "user", "content": "a"}]}, "b"))).fingerprint
    )
    assert turns != first


def test_training_cannot_reach_an_answer(write: Write) -> None:
    secret = "an answer nobody else has written"
    loaded = load_prompts(
        write("a.jsonl", jsonl({"messages": CHAT, "answer": secret}, {"prompt": "p", "answer": secret}))
    )
    handed = loaded.without_answers()
    assert type(handed) is Prompts
    reached: list[Any] = [handed.items, handed.weight]
    for thing in reached:  # grows as it goes
        if isinstance(thing, (tuple, list, dict)):
            reached.extend(gc.get_referents(thing))
    assert set(vars(handed)) == {"items", "weight"}
    assert "Be brief." in reached and secret not in reached


# The capitals


def test_capitals() -> None:
    train, held_out = (load_prompts(DATA / f"capitals-{part}.jsonl") for part in ("train", "held-out"))
    prompts = [*train.prompts.items, *held_out.prompts.items]
    assert len(prompts) == len(set(prompts)) == 195
    assert (len(train.prompts), len(held_out.prompts)) == (98, 97)
    assert all(
        prompt.startswith("What is the capital of ") and prompt.endswith("? Answer with one short sentence.")
        for prompt in prompts
    )
    assert all(set(json.loads(line)) == {"prompt"} for line in (DATA / "capitals-train.jsonl").open("rb"))
    assert train.answers is None and held_out.answers is not None
    for prompt, answers in zip(held_out.prompts.items, held_out.answers, strict=True):
        country = set(normalise(str(prompt).removeprefix("What is the capital of ")).split())
        assert answers and all(normalise(answer) for answer in answers)
        assert not country & {word for answer in answers for word in normalise(answer).split()}, prompt


# The cities


def test_cities() -> None:
    train, held_out = (load_prompts(DATA / f"cities-{part}.jsonl") for part in ("train", "held-out"))
    prompts = [*train.prompts.items, *held_out.prompts.items]
    assert len(prompts) == len(set(prompts)) == 209
    assert (len(train.prompts), len(held_out.prompts)) == (105, 104)
    before, after = "Which country is the city of ", " in? Answer with one short sentence."
    assert all(prompt.startswith(before) and prompt.endswith(after) for prompt in prompts)
    assert all(set(json.loads(line)) == {"prompt"} for line in (DATA / "cities-train.jsonl").open("rb"))
    assert train.answers is None and held_out.answers is not None
    for prompt, answers in zip(held_out.prompts.items, held_out.answers, strict=True):
        city = set(normalise(str(prompt).removeprefix(before).removesuffix(after)).split())
        assert answers and all(normalise(answer) for answer in answers)
        assert not city & {word for answer in answers for word in normalise(answer).split()}, prompt
    most = max(Counter(answers[0] for answers in held_out.answers).values())
    assert most <= 3  # saying the same of every city is no way to be right


# Files as other tools leave them

LEFT = {
    "old-mac.jsonl": ('{"prompt": "p"}\r{"prompt": "q"}\r', ["p", "q"]),
    "old-mac.txt": ("one\rtwo\r", ["one", "two"]),
    "windows.jsonl": ('{"prompt": "p"}\r\n{"prompt": "q"}\r\n', ["p", "q"]),
    "spaces.csv": ("prompt, answer\np, a\n", ["p"]),
    "tabs.tsv": ("prompt\tanswer\np, q\ta\n", ["p, q"]),
    "lines.ndjson": ('{"prompt": "p"}\n', ["p"]),
    "long.csv": (f'prompt,answer\n"{"word " * 40000}",a\n', [("word " * 40000)]),
    "parts.jsonl": (
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]}',
        [({"role": "user", "content": "hi"},)],
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_files_as_other_tools_leave_them(tmp_path, name):
    content, items = LEFT[name]
    (tmp_path / name).write_bytes(content.encode())
    found = load_prompts(tmp_path / name)
    assert list(found.prompts.items) == items
    if name in ("spaces.csv", "tabs.tsv"):
        assert found.answers == (("a",),)


MISTAKEN = {
    "twice.csv": ("prompt,prompt\np,q\n", "has the column 'prompt' twice"),
    "twice.jsonl": ('{"prompt": "p", "prompt": "q"}\n', "'prompt' stands twice"),
    "unseen.jsonl": ('{"prompt": "\u200b\u200b"}\n', "is empty"),
    "image.jsonl": ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n', "is not a turn"),
    "gsm8k.jsonl": ('{"question": "q", "answer": "a"}\n', "name the right one with --prompt-column"),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_what_would_be_misread_is_refused(tmp_path, name):
    content, said = MISTAKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        load_prompts(tmp_path / name)


def test_columns_can_be_named(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "2+2?", "solution": "4"}\n')
    found = load_prompts(tmp_path / "gsm8k.jsonl", prompt_column="question", answer_column="solution")
    assert (found.prompts.items, found.answers) == (("2+2?",), (("4",),))


def test_a_dataset_is_streamed_no_further_than_it_is_asked_for(tmp_path):
    home = tmp_path / "data"
    home.mkdir()
    rows = [json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(20)]
    (home / "train-0.jsonl").write_text("".join(rows))
    (home / "train-1.jsonl").write_text("not looked at\n")
    assert load_prompts(home, streaming=5).prompts.items == tuple(f"Say {n}" for n in range(5))
    (home / "train-1.jsonl").write_text("".join(rows).replace("Say", "Spell"))
    shuffled = load_prompts(home, streaming=12, streaming_buffer=10)
    items = shuffled.prompts.items
    assert shuffled.note == f"{home} is streamed: 12 rows, shuffled in a buffer of 10" and len(set(items)) == 12
    assert items == load_prompts(home, streaming=12, streaming_buffer=10).prompts.items
    in_files = [load_prompts(home / f"train-{n}.jsonl").prompts.items for n in range(2)]
    assert all(items != (one + other)[:12] for one, other in (in_files, in_files[::-1]))
    with pytest.raises(UserError, match="beside prompts that a program hands over"):
        load_prompts(["a"], streaming=1, streaming_buffer=1)
    with pytest.raises(UserError, match="--streaming-buffer is 3 without --streaming"):
        SelfRewardConfig(streaming_buffer=3)
    with pytest.raises(UserError, match="no dataset that could be streamed"):
        load_prompts(home / "train-0.jsonl", streaming=5)
    with pytest.raises(UserError, match=r"not a dataset that can be streamed .* check the split 'dev'"):
        load_prompts(home, split="dev", streaming=5)


def test_conversations_come_back_as_they_went() -> None:
    chat = load_prompts([[{"role": "user", "content": "a"}], "b"])
    assert load_prompts(list(chat.prompts.items)).fingerprint == chat.fingerprint


def test_a_column_of_single_precision_holds_what_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    values = pyarrow.array([0.1, 2.5, 3.0, 1e-3], pyarrow.float32())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b", "c", "d"], "answer": values}), file)
    assert load_prompts(file).answers == (("0.1",), ("2.5",), ("3",), ("0.001",))
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["a", "b"], "answer": pyarrow.array([1 / 3, 1e300], pyarrow.float64())}), file
    )
    assert load_prompts(file).answers == ((str(1 / 3),), (str(int(1e300)),))


def test_numbers_that_somebody_wrote_stay_as_they_are() -> None:
    for value in (1234567.25, Decimal("1234567.25"), 131072.125):
        assert load_prompts([{"prompt": "p", "answer": value}]).answers == ((str(value),),)


def test_a_tenth_is_set_aside_and_at_most_64(tmp_path: Path) -> None:
    sizes = {1000: (936, 64), 640: (576, 64), 40: (36, 4), 10: (9, 1)}
    for number, (train, held) in sizes.items():
        made = numbered(tmp_path, number).set_aside(0.1, 0)
        assert made[1] is not None and (len(made[0].prompts), len(made[1].prompts)) == (train, held)
    assert numbered(tmp_path, 9).set_aside(0.1, 0)[1] is None
