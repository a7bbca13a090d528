"""What a person may bring: files, words, templates, models and folders, as good as they come or mutated."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import parquet

from benchmarks.campaign.engine import REFUSED, RIGHT, Try, called, expect, tried
from benchmarks.campaign.mutators import ODD_NUMBERS, ODD_TEXTS, dumped, odd_bytes, odd_json, odd_lines, odd_value
from benchmarks.campaign.world import DIAGNOSE, World
from srlm.answers import answer_classes, match_rule, normalise
from srlm.answers.number import last_number, only_number
from srlm.commands.train import arms_of, parser
from srlm.config import SelfRewardConfig
from srlm.prompts import load_prompts

SMALL = ("--num-samples", "2", "--max-new-tokens", "2", "--dtype", "fp32", "--quiet")


def kinds(world: World) -> dict[str, Try]:
    """Every kind of input, by name."""
    files: dict[str, Try] = {f"prompts {kind}": _prompts(world, kind) for kind in _WRITERS}
    others: dict[str, Callable[[World, Random, Path], str]] = {
        "yaml": _yaml,
        "words": _words,
        "words of plan": _plan,
        "words of evaluate": _evaluate,
        "paths": _paths,
        "arms": _arms,
        "task": _task,
        "match rule": _rules,
        "answer classes": _classes,
        "chat template": _template,
        "model": _model,
        "adapter": _adapter,
        "gguf": _gguf,
        "diagnosis": _diagnosis,
        "run": _run,
    }
    return files | {name: _bound(kind, world) for name, kind in others.items()}


def _bound(kind: Callable[[World, Random, Path], str], world: World) -> Try:
    return lambda dice, folder: kind(world, dice, folder)


# Prompt files

_TEXTS = (
    "Say abc",
    "Two\nlines",
    'a "quoted, text"',
    "naïve café",
    "日本語",
    "emoji 🎉",
    "tab\there",
    "  spaced ",
    "x" * 90,
)
_ANSWERS = ("abc", "a, b", "3/4", "½", "\\boxed{7}", "(B)", "1,000")


def _row(dice: Random, number: int) -> dict[str, Any]:
    return {"prompt": f"{dice.choice(_TEXTS)} {number}", "answer": dice.choice(_ANSWERS)}


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(dumped(row) + "\n" for row in rows).encode(errors="surrogatepass")


def _csv(delimiter: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        file = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in rows for name in row)) or ["prompt"]
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([names, *([row.get(name, "") for name in names] for row in rows)])
        return file.getvalue().encode(errors="surrogatepass")

    return write


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


_WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": _jsonl,
    "json": lambda rows: dumped(rows).encode(errors="surrogatepass"),
    "csv": _csv(","),
    "tsv": _csv("\t"),
    "parquet": _parquet,
    "txt": lambda rows: "".join(f"{' '.join(str(row.get('prompt')).split())}\n" for row in rows).encode(
        errors="surrogatepass"
    ),
}


def _prompts(world: World, kind: str) -> Try:
    def attempt(dice: Random, folder: Path) -> str:
        rows: list[Any] = [_row(dice, number) for number in range(dice.randint(1, 5))]
        if conversations := kind in ("jsonl", "json") and dice.random() < 0.2:
            rows = [{"messages": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in rows]
        untouched = dice.random() < 0.2
        if not untouched and kind != "parquet" and dice.random() < 0.4:
            rows = odd_json(rows, dice)
            rows = rows if kind == "json" else [row for row in rows if isinstance(row, dict)]
        content = _WRITERS[kind](rows)
        if not untouched:
            for _ in range(dice.choice([0, 1, 1, 2, 5])):
                if kind != "parquet" and dice.random() < 0.5:
                    content = odd_lines(content.decode(errors="replace"), dice).encode(errors="surrogatepass")
                else:
                    content = odd_bytes(content, dice)
        file = folder / f"file.{kind}"
        file.write_bytes(content)
        end, found = called(lambda: load_prompts(file))
        if end == RIGHT:
            plain = [item if isinstance(item, str) else item[-1]["content"] for item in found.prompts.items]
            if not conversations:
                wanted = _plainly(kind, content)
                expect(plain == wanted, f"{plain} was read, {wanted} is there")
            match = dice.choice(["auto", "contains", "exact", "number", "regex"])
            command = ("evaluate", *SMALL) if found.answers else ("diagnose", *DIAGNOSE, "--max-new-tokens", "2")
            end, outcome = tried(*command, "--model", world.model, "--prompts", file, "--match", match)
            if end == RIGHT and found.answers:
                expect(f"on {len(plain)} prompts" in outcome.out, outcome.out)
        expect(not untouched or end == RIGHT, f"refused: {found}")
        return end

    return attempt


def _plainly(kind: str, content: bytes) -> list[str]:
    """The same file as a few lines of Python read it, which forgive more."""
    if kind == "parquet":
        return [row["prompt"] for row in parquet.read_table(io.BytesIO(content)).to_pylist()]
    text = content.decode("utf-8-sig")
    text = text if "\n" in text else text.replace("\r", "\n")
    if kind == "json":
        every = json.loads(text)
    elif kind == "jsonl":
        every = [json.loads(line) for line in text.split("\n") if line.strip()]
    elif kind == "txt":
        every = [line.strip() for line in text.split("\n") if line.strip()]
    else:
        csv.field_size_limit(2**31 - 1)
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter="\t" if kind == "tsv" else ",", skipinitialspace=True
        )
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        every = list(reader)
    return [_prompt_of(row) for row in every]


def _prompt_of(row: Any) -> Any:
    value = row if isinstance(row, str) else row["prompt"]
    return value if isinstance(value, str) else value[-1]["content"]


# Words and configuration files


def _agrees(printed: str, folder: Path) -> None:
    """What is printed, read again, prints the same."""
    file = folder / "printed.yaml"
    file.write_text(printed, encoding="utf-8", errors="surrogatepass")
    end, again = tried("train", "--config", file, "--print-config")
    expect(end == RIGHT and again.out == printed, f"printed {printed!r}, read again as {again}"[-1500:])


def _yaml(world: World, dice: Random, folder: Path) -> str:
    given = yaml.safe_load(world.config)
    text = world.config
    match dice.randrange(4):
        case 0:
            for _ in range(dice.choice([1, 1, 3])):
                given[dice.choice(list(given))] = odd_value(dice)
            text = _yaml_of(given)
        case 1:
            text = _yaml_of(odd_json(given, dice))
        case 2:
            few = "\n".join(dice.sample(world.config.split("\n"), 6))
            text = odd_lines(few, dice)
        case _:
            text = odd_bytes(text.encode(errors="replace"), dice).decode("latin-1")
    file = folder / "given.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    end, outcome = tried("train", "--config", file, "--print-config")
    if end == RIGHT:
        kept, read = yaml.safe_load(outcome.out), yaml.safe_load(text)
        for name, value in read.items():
            name = str(name).replace("-", "_")
            if isinstance(value, (str, int, float)) and type(kept[name]) is type(value):
                expect(kept[name] == value, f"{name} is {kept[name]!r}, {value!r} was given")
        _agrees(outcome.out, folder)
    return end


def _yaml_of(value: Any) -> str:
    try:
        return str(yaml.safe_dump(value, allow_unicode=True))
    except (RecursionError, ValueError, yaml.YAMLError):
        return dumped(value)


def _odd_word(dice: Random) -> str:
    return str(dice.choice([dice.choice(ODD_TEXTS), str(_short(dice)), str(_short(dice)), "1", "2", "0.5"]))


def _short(dice: Random) -> Any:
    number = dice.choice(ODD_NUMBERS)
    return number if not isinstance(number, int) or abs(number) < 10**300 else 10**30


def _odd_options(dice: Random, options: dict[str, Any], leave_out: Sequence[str] = ()) -> list[str]:
    words: list[str] = []
    for name in dice.sample([name for name in options if name not in leave_out], dice.randint(1, 3)):
        option = options[name]
        flag = option.flag if dice.random() < 0.9 else option.flag.replace("-", "_").replace("__", "--")
        if option.kind is bool:
            words.append(dice.choice([flag, f"--no-{name.replace('_', '-')}", f"{flag}=x"]))
        elif dice.random() < 0.3:
            words.append(f"{flag}={_odd_word(dice)}")
        else:
            count = dice.randint(0, 3) if option.several else dice.choice([0, 1, 1, 1, 1, 1, 2])
            words += [
                flag,
                *(
                    dice.choice(option.words) if option.words and dice.random() < 0.3 else _odd_word(dice)
                    for _ in range(count)
                ),
            ]
    if dice.random() < 0.1:
        words.insert(
            dice.randint(0, len(words)), dice.choice(["--", "--x", "-x", "x", "--help-al", "---", "-", "--=3"])
        )
    return words


def _words(world: World, dice: Random, folder: Path) -> str:
    options = parser(()).options
    words = _odd_options(dice, options)
    end, outcome = tried("train", "--print-config", *words)
    if end == RIGHT:
        _agrees(outcome.out, folder)
        given = yaml.safe_load(outcome.out)
        for flag, word in pairwise(words):
            name = flag.removeprefix("--").replace("-", "_")
            option = options.get(name)
            once = sum(w.split("=")[0].replace("_", "-") == flag for w in words) == 1
            if flag.startswith("--") and once and option is not None and option.kind is str and not option.several:
                expect(given[name] in (word, None), f"{name} is {given[name]!r}, {word!r} was given")
    return end


def _plan(world: World, dice: Random, folder: Path) -> str:
    usual = {"budget": "1e5", "kappa0": "30", "margin": "0.5", "log_class_size": "20"}
    paper = dice.random() < 0.5
    own = {"min_confidence": "0.3"} if paper else {"failure": "0.1"}
    usual |= own if paper or dice.random() < 0.5 else {}
    for _ in range(dice.choice([0, 1, 1, 2, 3])):
        more = ["eigenvalues", "constant"] if paper else ["failure", "num_samples"]
        name = dice.choice([*usual, *more, "beta", "dimension", "norm_bound", "level", "failure_probability"])
        usual[name] = dice.choice([_odd_word(dice), f"{10 ** dice.uniform(-12, 12):.6g}", f"{dice.random():.3g}"])
    if dice.random() < 0.3:
        usual["max_rounds"] = dice.choice(["1", "1024", _odd_word(dice)])
    if dice.random() < 0.2:
        usual.pop(dice.choice(list(usual)))
    words = [word for name, value in usual.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--paper"] if paper else []
    out = folder / "plan.json"
    end, outcome = tried("plan", *words, "--output", out)
    if end == RIGHT:
        made = json.loads(out.read_text())
        expect(_finite(made), f"a plan with numbers that are none: {made}")
        expect(bool(outcome.out.strip()), "a plan that says nothing")
    else:
        expect(not out.exists(), "refused, and written all the same")
    return end


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _evaluate(world: World, dice: Random, folder: Path) -> str:
    from srlm.commands import diagnose, evaluate

    module, more = dice.choice([(evaluate, SMALL), (diagnose, DIAGNOSE)])
    words = _odd_options(dice, module.parser().options, ("model", "prompts", "run", "output"))
    # What is given twice is given last; sizes that only a cluster has are no oddity.
    words = [word for word in words if not re.fullmatch(r"\d{4,}", word.split("=")[-1])]
    name = module.__name__.rpartition(".")[2]
    return tried(name, "--model", world.model, "--prompts", world.held_out, *more, *words)[0]


def _paths(world: World, dice: Random, folder: Path) -> str:
    odd = dice.choice(
        [path for path in ODD_TEXTS if not path.strip(". ~/").isascii() or "/" in path or len(path) > 200]
    )
    odd = dice.choice(
        [odd, str(folder / odd) if not odd.startswith("/") else odd, str(world.prompts / "x"), "/dev/null"]
    )
    run, diagnosis = world.story().run, world.diagnosis
    words = dice.choice(
        [
            ("report", odd),
            ("report", run, "--output", odd),
            ("report", run, "--output", folder / "r.html", "--figures", odd),
            ("report", run, "--output", folder / "r.html", "--forecast", odd),
            ("report", run, diagnosis, odd, "--output", folder / "r.html"),
            ("plan", "--diagnosis", odd, "--budget", "100", "--log-class-size", "3"),
            ("train", "--resume", odd),
            ("train", "--config", odd, "--print-config"),
            ("diagnose", "--run", odd),
            ("evaluate", "--model", world.model, "--prompts", f"{odd}.jsonl"),
            ("evaluate", "--model", odd, "--prompts", world.held_out),
            ("evaluate", "--model", world.model, "--prompts", world.held_out, *SMALL, "--adapter", odd),
            (odd,),
        ]
    )
    return tried(*words)[0]


def _arms(world: World, dice: Random, folder: Path) -> str:
    parts = [
        "majority",
        "random",
        "log_likelihood",
        "beta=2",
        "objective=dpo",
        "length_window='2 9'",
        "answers='regex:a,b'",
    ]
    text = ""
    for _ in range(dice.randint(0, 5)):
        text += dice.choice([*parts, *parts, _odd_word(dice)]) + dice.choice([",", ", ", " ", "=", "'", '"'])
    end, found = called(lambda: arms_of(text, SelfRewardConfig()))
    if end == RIGHT:
        expect(all("reward" in own for own in found.values()) and bool(found), f"{text!r}: {found}")
    return end


def _task(world: World, dice: Random, folder: Path) -> str:
    name = dice.choice(
        ["chain_sum", "basic_arithmetic", "leg_counting", "zebra_puzzles", "prime_factorization", "x", ""]
    )
    text = f"reasoning-gym:{name}?size={dice.choice([1, 3])}"
    for _ in range(dice.randrange(4)):
        text += f"&{dice.choice(['seed', 'size', 'answer', 'instruction', 'min_terms', 'max_terms', 'x', ''])}"
        text += dice.choice(["=", "=", ""]) + _odd_word(dice)
    text = re.sub(r"(terms|size)=\d{3,}", r"\1=7", text)  # questions without end take a time without end
    return called(lambda: load_prompts(text))[0]


# Answers

_SAID = (
    "The answer is 42.",
    "not 7, but \\boxed{3/4}",
    "x = 1.5e3",
    "#### 1,234.50",
    "I think (C)",
    "−5 °C",
    "3 × 10^5",
)


def _said(dice: Random) -> str:
    text = dice.choice([*_SAID, *ODD_TEXTS])
    for _ in range(dice.randrange(4)):
        at = dice.randint(0, len(text))
        text = text[:at] + dice.choice([*_SAID, *ODD_TEXTS, *"0123456789.,-/^*(){}% "]) + text[at:]
    return text * dice.choice([1, 1, 1, 1, 40])


def _rules(world: World, dice: Random, folder: Path) -> str:
    name = dice.choice(["auto", "contains", "exact", "number", "regex"])
    rule = match_rule(name)
    response, answer = _said(dice), _said(dice)
    end, right = called(lambda: rule(response, [answer]))
    if end == REFUSED:
        expect(name == "regex", f"{name} refused: {right}")
        return end
    expect(type(right) is bool and right == rule(response, [answer]), f"{name}: {right!r}")
    end, itself = called(lambda: rule(response, [re.escape(response) if name == "regex" else response]))
    if name in ("exact", "regex") and end == RIGHT:
        wanted = name == "regex" or bool(normalise(response)) or only_number(response) is not None
        expect(itself == wanted, f"{name} of {response[:200]!r} against itself is {itself}")
    if name == "number" and last_number(response) is None:
        expect(not right, f"{response[:200]!r} has no number and is right")
    return RIGHT


def _classes(world: World, dice: Random, folder: Path) -> str:
    name = dice.choice(
        ["exact", "normalised", "number", f"regex:{_said(dice)}", f"regex:{_said(dice)}", _odd_word(dice)]
    )
    end, classes = called(lambda: answer_classes(name))
    if end == REFUSED:
        return end
    text = _said(dice)
    end, answer = called(lambda: classes(text))
    if end == RIGHT:
        hash(answer)
        expect(classes(text) == answer, f"{name} of {text[:200]!r} is one answer and another")
    return end


# Models


def _asked(model: Path, world: World) -> str:
    return tried("evaluate", "--model", model, "--prompts", world.held_out, *SMALL)[0]


_TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}",
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}{{ messages[-1] }}",
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 1 %}{{ m.content }}{{ ns.n }}{% endfor %}",
    "{{ strftime_now('%Y') }}{{ messages | tojson }}{{ raise_exception('no') if messages | length > 1 }}",
)
_PIECES = (
    "{{ x.y.z }}",
    "{% raw %}",
    "{% endfor %}",
    "{{ 1/0 }}",
    "{{ 'a' * 10**7 }}",
    "{{ messages | map('x') }}",
    "{# ",
)


def _template(world: World, dice: Random, folder: Path) -> str:
    model = Path(shutil.copytree(world.model, folder / "model"))
    text = dice.choice(_TEMPLATES)
    for _ in range(dice.choice([0, 1, 1, 2])):
        at = dice.randint(0, len(text))
        text = dice.choice(
            [
                text[:at] + dice.choice([*_PIECES, *ODD_TEXTS]) + text[at:],
                text[:at],
                text.replace(dice.choice(["messages", "content", "role", "%}", "}}", "m"]), dice.choice(["x", ""])),
                odd_bytes(text.encode(errors="replace"), dice).decode(errors="replace"),
            ]
        )
    (model / "chat_template.jinja").write_text(text, encoding="utf-8", errors="replace")
    return _asked(model, world)


def _spoilt(folder: Path, dice: Random) -> None:
    """One of a folder's files, as JSON if it is."""
    file = dice.choice(sorted(file for file in folder.iterdir() if file.is_file()))
    if file.suffix == ".json" and file.stat().st_size < 100_000 and dice.random() < 0.7:
        file.write_text(dumped(odd_json(json.loads(file.read_text()), dice)), errors="surrogatepass")
    elif dice.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(odd_bytes(file.read_bytes(), dice))


def _model(world: World, dice: Random, folder: Path) -> str:
    model = Path(shutil.copytree(world.model, folder / "model"))
    _spoilt(model, dice)
    return _asked(model, world)


def _adapter(world: World, dice: Random, folder: Path) -> str:
    adapter = Path(shutil.copytree(world.adapter, folder / "adapter"))
    _spoilt(adapter, dice)
    return _asked(adapter, world)


def _gguf(world: World, dice: Random, folder: Path) -> str:
    import os

    from test_load import write_gguf

    good = world.folder / "tiny.gguf"
    if not good.exists():
        write_gguf(good)
    content = bytearray(good.read_bytes())
    file = folder / "model.gguf"
    if dice.random() < 0.5:  # the head, which says what the rest is
        for _ in range(dice.choice([1, 1, 4])):
            content[dice.randrange(6000)] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
    else:
        file.write_bytes(odd_bytes(bytes(content), dice))
    before = os.environ.get("SRLM_CACHE")
    os.environ["SRLM_CACHE"] = str(folder / "cache")
    try:
        return _asked(file, world)
    finally:
        del os.environ["SRLM_CACHE"]
        if before is not None:
            os.environ["SRLM_CACHE"] = before


# Folders


def _diagnosis(world: World, dice: Random, folder: Path) -> str:
    made = Path(shutil.copytree(world.diagnosis, folder / "diagnosis"))
    file = made / "diagnose.json"
    _odd_json_file(file, dice)
    size = ("--log-class-size", "9", "--budget", "1e6", "--margin", "0.5")
    words: tuple[object, ...] = dice.choice(
        [
            ("plan", "--diagnosis", file, *size, "--output", folder / "plan.json"),
            ("plan", "--diagnosis", file, *size[:-2], "--beta", "0.5", "--failure", "0.1"),
            ("plan", "--paper", "--diagnosis", file, *size, "--beta", "0.5", "--kappa0", "9"),
            ("report", made, "--output", folder / "report.html"),
            ("report", made, "--output", folder / "report.html", "--figures", folder / "figures"),
            ("report", world.story().run, "--forecast", file, "--output", folder / "report.html"),
        ]
    )
    end, _ = tried(*words)
    if end == RIGHT and (folder / "plan.json").exists():
        expect(_finite(json.loads((folder / "plan.json").read_text())), "a plan with numbers that are none")
    return end


def _odd_json_file(file: Path, dice: Random) -> None:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    at = dice.randrange(len(lines))
    if dice.random() < 0.7:
        value = json.loads(lines[at])
        for _ in range(dice.choice([1, 1, 2, 4])):
            value = odd_json(value, dice)
        lines[at] = dumped(value)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    else:
        file.write_bytes(odd_bytes(file.read_bytes(), dice))


def _run(world: World, dice: Random, folder: Path) -> str:
    source = dice.choice([world.story().run, world.unfinished])
    run = Path(shutil.copytree(source, folder / "run"))
    every = [*run.glob("*.json"), *run.glob("*.jsonl"), *run.glob("*/stages.json"), *run.glob("*/*.sha256")]
    _odd_json_file(dice.choice([run / "manifest.json", *sorted(every)]), dice)
    if _endless(run / "manifest.json"):
        return RIGHT
    words: tuple[object, ...] = dice.choice(
        [
            ("train", "--resume", run),
            ("report", run, "--output", folder / "report.html"),
            ("report", run, world.diagnosis, "--output", folder / "report.html"),
            ("diagnose", "--run", run, *DIAGNOSE),
        ]
    )
    return tried(*words)[0]


def _endless(manifest: Path) -> bool:
    """A run that says it has 2^64 rounds is resumed for as many."""
    try:
        config = json.loads(manifest.read_bytes())["config"]
        return any(float(config.get(name, 0)) > 99 for name in ("rounds", "epochs", "num_samples", "held_out_samples"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return False
