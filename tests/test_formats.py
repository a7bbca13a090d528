"""Files as other tools leave them: recognised by their columns, and never guessed between two readings."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from support import command, refused, train_words, write_rows

from srlm.errors import UserError
from srlm.prompts import files
from srlm.prompts.sources import load_prompts


def turns(*texts: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, str]]:
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def human(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


READINGS: dict[str, tuple[dict[str, Any], Any, str | None]] = {
    "plain": ({"prompt": "p", "id": 3}, "p", None),
    "openai": ({"messages": turns("a", "b", "c", "d")}, turns("a", "b", "c"), "OpenAI messages"),
    "openai, no reply": ({"messages": turns("a", "b", "c")}, turns("a", "b", "c"), None),
    "sharegpt": ({"id": "x", "conversations": human("a", "b")}, turns("a"), "ShareGPT"),
    "sharegpt, no reply": ({"conversations": human("a", "b", "c")}, turns("a", "b", "c"), "ShareGPT"),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "Alpaca"),
    "alpaca, no input": ({"instruction": "Hi.", "input": "", "output": "Ho."}, "Hi.", "Alpaca"),
    "trl": ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p", None),
    "trl, implicit": ({"chosen": turns("a", "b"), "rejected": turns("a", "c")}, turns("a"), "TRL preferences"),
    "ultrafeedback": (
        {"prompt": "a", "messages": turns("a", "b"), "chosen": turns("a", "b"), "rejected": turns("a", "c")},
        "a",
        None,
    ),
}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz", "dataset"])
def test_readings(name, kind, tmp_path):
    row, expected, format = READINGS[name]
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist([row, row]), path)
    elif kind == "dataset":
        datasets.Dataset.from_list([row, row]).save_to_disk(path)
    else:
        text = "".join(json.dumps(row) + "\n" for _ in range(2)).encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    found = load_prompts(path)
    assert [item if isinstance(item, str) else list(item) for item in found.prompts.items] == [expected] * 2
    assert found.answers is None
    assert (found.note or "").startswith(f"{path} is read as {format}: " if format else "")
    assert bool(found.note) == bool(format)


def test_an_answer_column_stays_one(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "", "output": "3", "answer": 4}])
    assert load_prompts(file).answers == (("4",),)
    assert load_prompts(file, answer_column="output").answers == (("3",),)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b", "messages": turns("c", "d")},
        {"conversations": human("a", "b"), "messages": turns("c", "d")},
        {"prompt": "a", "messages": turns("c", "d")},
        {"prompt": "a", "instruction": "c", "output": "d"},
    ],
)
def test_two_readings_are_refused_with_the_way_out(row, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(
        UserError, match=r"line 1 of .* can be read as .* and as .*, which are different prompts; name "
    ):
        load_prompts(file)
    name = next(iter(row))
    if name != "prompt" and name != "conversations":
        assert load_prompts(file, prompt_column=name).prompts.items == (row[name],)


def test_what_two_readings_agree_on_is_no_guess(tmp_path):
    row = {"instruction": "a", "output": "b", "messages": turns("a", "b")}
    assert load_prompts(write_rows(tmp_path / "a.jsonl", [row])).prompts.items == (tuple(turns("a")),)


def test_a_turn_of_nobody_is_refused(tmp_path):
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]}
    with pytest.raises(UserError, match=r"line 1 of .* has a turn from 'tool', expected system, human"):
        load_prompts(write_rows(tmp_path / "a.jsonl", [row]))


def test_conversations_that_are_all_reply_have_no_prompt(tmp_path):
    with pytest.raises(UserError, match=r"the conversation on line 1 of .* ends with an assistant turn"):
        load_prompts(write_rows(tmp_path / "a.jsonl", [{"messages": turns("a", roles=("assistant", "user"))}]))


def test_a_folder_of_files_is_all_of_them(tmp_path):
    write_rows(tmp_path / "b.jsonl", [{"prompt": "2"}, {"prompt": "3"}])
    (tmp_path / "a.tsv").write_text("prompt\tx\n1\ty\n")
    (tmp_path / "README.txt").write_text("not a prompt\n")
    assert load_prompts(tmp_path).prompts.items == ("1", "2", "3")


@pytest.mark.parametrize("name", ["test.jsonl", "x-held-out.jsonl", "my_val.jsonl"])
def test_a_folder_with_what_is_measured_on_is_refused(tmp_path, name):
    write_rows(tmp_path / "train.jsonl", [{"prompt": "2"}])
    write_rows(tmp_path / name, [{"prompt": "3"}])
    with pytest.raises(
        UserError, match=f"holds train.jsonl and {name}, of which one looks as if it was to be measured"
    ):
        load_prompts(tmp_path)


def test_damaged_or_endless_compressed_files_end_in_a_sentence(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(json.dumps({"prompt": "p" * 5000}).encode())
    for content in (b"no gzip", whole[:-12]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is not a readable gzip file"):
            load_prompts(file)
    monkeypatch.setattr(files, "MOST_BYTES", 4000)
    file.write_bytes(whole)
    with pytest.raises(UserError, match=r"holds more than 0\.0 GB, expected less: split it"):
        load_prompts(file)


def test_prompts_of_a_run(tmp_path, tiny):
    prompts = write_rows(tmp_path / "a.jsonl", [{"instruction": f"Say {n}", "output": ""} for n in range(4)])
    words = train_words(model=tiny, prompts=prompts, output=tmp_path / "run", rounds=1, held_out_share=0)
    outcome = command(*words)
    assert outcome.code == 0, outcome
    assert outcome.out.count(f"{prompts} is read as Alpaca: instruction and input are the prompt") == 1
    expected = tuple(f"Say {n}" for n in range(4))
    assert load_prompts(tmp_path / "run").prompts.items == expected
    found = load_prompts(tmp_path / "run" / "round-001" / "rollouts.parquet")
    assert found.prompts.items == expected and "each of its prompts is read once" in str(found.note)
    assert command("export", tmp_path / "run", "--output", tmp_path / "out", "--rollouts").code == 0
    assert load_prompts(tmp_path / "out" / "rollouts.parquet").prompts.items == expected


def test_said_once_and_refused_before_any_work(tmp_path, tiny):
    file = write_rows(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b", "messages": turns("c")}])
    said = refused(*train_words(model=tiny, prompts=file, output=tmp_path / "run"))
    assert "Alpaca (instruction, output)" in said and not (tmp_path / "run").exists()
    assert Path(file).exists()


def test_a_part_of_what_has_none_is_refused(tmp_path):
    write_rows(tmp_path / "all.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(tmp_path / "one")
    for name in ("all.jsonl[test]", "all.jsonl:main[test]", "one[test]"):
        with pytest.raises(UserError, match=r"names a part of .*, expected its name alone"):
            load_prompts(tmp_path / name)
    assert len(load_prompts(tmp_path / "one").prompts) == 1


def test_parts_of_a_folder_of_any_kind(tmp_path):
    for name, prompt in (("train", "a"), ("test", "b")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"prompt": prompt}]))
    with pytest.raises(UserError, match=r"or a part as in .*\[train\]"):
        load_prompts(tmp_path)
    assert load_prompts(f"{tmp_path}[test]").prompts.items == ("b",)


@pytest.mark.parametrize("name", ["evaluation.jsonl", "heldout.jsonl", "hold-out.jsonl", "tests.jsonl"])
def test_what_looks_held_out_is_not_trained_on(tmp_path, name):
    for file in ("train.jsonl", name):
        write_rows(tmp_path / file, [{"prompt": file}])
    with pytest.raises(UserError, match="looks as if it was to be measured"):
        load_prompts(tmp_path)


def test_a_file_about_a_folder_is_no_prompt_file(tmp_path):
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", [{"prompt": "a"}])
    assert load_prompts(tmp_path).prompts.items == ("a",)


def test_the_column_of_conversations_can_be_named(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    write_rows(tmp_path / "x.jsonl", [{"prompt": "other", "messages": turns}])
    found = load_prompts(tmp_path / "x.jsonl", prompt_column="messages")
    assert found.prompts.items == (({"role": "user", "content": "q"},),) and "OpenAI messages" in found.note


def test_all_columns_are_listed_where_none_is_a_prompt(tmp_path):
    table = pa.table({"question": ["q"], "answer": ["a"], "level": [1], "input": ["i"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="question"):
        load_prompts(tmp_path / "x.parquet")


def test_a_row_of_responses_that_is_none_is_said(tmp_path):
    write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "prompt_index": 0, "sample_index": 0}, 3])
    with pytest.raises(UserError, match=r"line 2 .* is a number"):
        load_prompts(tmp_path / "x.jsonl")


def test_who_learns_sees_no_reply(tmp_path):
    write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "answer": "b", "solution": "c", "level": 3}])
    assert load_prompts(tmp_path / "x.jsonl", keep_columns=True).columns == ({"level": 3},)
