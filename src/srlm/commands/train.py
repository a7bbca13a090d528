"""Improve a causal LM on prompts without answers: T rounds of {sample, score itself, least-squares update}."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from srlm.commands.options import Parser, Shared, taken
from srlm.config import PARTS, RunSettings, SelfRewardConfig
from srlm.errors import UserError
from srlm.methods import method, refuse_contradiction
from srlm.tasks import runs_code

FIRST = (
    *("model", "prompts", "held_out", "output", "rounds", "num_samples", "max_new_tokens", "reward", "answers", "beta"),
    *("step", "stop", "compare"),
)
TO_BE_SAID = ""  # in place of an engine that a run folder names, and that nobody has named now


@dataclass(frozen=True)
class Train:
    """What is asked of `srlm train` beside its settings."""

    held_out: str | None = None
    """Held-out prompts to measure on, with answers if there are any (same formats)."""
    method: str | None = None
    """A published method as an assembly of settings: ssd, ttrl, intuitor, empo, rent, scpo or cream (srlm.methods says
    of what, and its source)."""
    compare: str = ""
    """Rewards, comma-separated, each with settings of its own if it needs them ('majority beta=0.05, log_likelihood,
    log_likelihood objective=dpo beta=0.1'; quote a value with a comma or a space): train with each of them from one
    start, and end with a table."""
    seeds: int = 1
    """For --compare: runs per arm, with seeds --seed, --seed + 1, ..."""


def parser(words: Sequence[str]) -> Parser:
    made = Parser(
        "train", __doc__ or "", "--prompts FILE [options]", first=FIRST, every=not {"-h", "--help"} & set(words)
    )
    made.before("--print-config", "", "Print all options as a YAML file and stop.")
    made.before("--resume", "DIR", "Continue the unfinished run in DIR.")
    made.before("--from-round", "T", "With --resume: go back to round T first; what came after is set aside.")
    add_options(made)
    return made


def add_options(made: Parser) -> None:
    """Those of a run, for whoever wants to know what one would do."""
    made.add("Run", Shared, ("model", "prompts"), aliases={"prompts": "--task"})
    made.add("Run", Train, ("held_out", "method"))
    made.add("Run", RunSettings)
    made.add("Run", Train, ("compare", "seeds"))
    made.add("Run", Shared, ("quiet",))
    for part in PARTS:
        if part is not RunSettings:
            made.add(part.__doc__ or "", part)


def read(
    parser: Callable[[Sequence[str]], Parser], words: Sequence[str], config: str | None, resume: str | None
) -> tuple[Parser, dict[str, Any], SelfRewardConfig]:
    """What was asked for, of whoever takes a run's options. resume: a run folder, whose options stand where no others
    are given, and which is where the run goes on, whatever the config file has for its output.

    Raises:
        UserError: it is not what it should be.
    """
    if resume is not None:
        first, words = taken(words, "output")
        _refuse_elsewhere(first["output"], resume)
    reader = parser(words)
    chosen = reader.parsed(words, config, {} if resume is None else _begun_with(Path(resume)))
    if (name := chosen["method"]) is not None:
        if resume is not None:
            raise UserError(f"--method {name} stands beside --resume, which knows it: leave it out")
        asked = method(name)
        chosen = parser(words).parsed(words, config, {**asked.usual, **asked.is_})
        refuse_contradiction(name, chosen)
    if resume is not None:
        chosen["output"] = resume
        _refuse_code(Path(resume), chosen)
    return reader, chosen, SelfRewardConfig(**{field.name: chosen[field.name] for field in fields(SelfRewardConfig)})


def run(words: Sequence[str]) -> None:
    first, rest = taken(words, "resume", "from-round", "config", flags=("print-config",))
    resume, back = first["resume"], first["from-round"]
    if back is not None and (resume is None or not back.isdecimal()):
        raise UserError(f"--from-round is {back}, expected the number of a round, beside --resume DIR: correct it")
    reader, chosen, settings = read(parser, rest, first["config"], resume)
    if first["print-config"]:
        print(reader.written(chosen), end="")
        return
    model, prompts, held_out = chosen["model"], chosen["prompts"], chosen["held_out"]
    if not prompts:
        raise UserError("no prompts were given: name a file or dataset with --prompts")
    if chosen["compare"] and resume is not None:
        raise UserError(f"--resume {resume} does not go with --compare: give the first call's line again")
    if chosen["seeds"] != 1 and not chosen["compare"]:
        raise UserError(f"--seeds is {chosen['seeds']} without --compare: name one run's seed with --seed, or arms")
    from srlm.console import Display

    display = Display(chosen["quiet"])
    if chosen["compare"]:
        from srlm.training.comparison import compare

        arms = arms_of(chosen["compare"], settings)
        compare(model, settings, prompts, held_out, arms, seeds=chosen["seeds"], display=display)
        return
    from srlm.training.trainer import SelfRewardTrainer

    from_round = None if back is None else int(back)
    SelfRewardTrainer(
        model, settings, prompts, held_out, resume=resume is not None, from_round=from_round, display=display
    ).train()


def _begun_with(folder: Path) -> dict[str, Any]:
    """The options a run began with, so that `--resume DIR` alone is enough; but those that run code, and those of an
    engine that somebody has to trust."""
    from srlm.run.manifest import code_of, read_manifest, run_config

    manifest = read_manifest(folder)
    config, prompts, held_out = run_config(manifest, folder)
    plain = {name: value for name, value in vars(config).items() if name not in code_of(config)}
    if config.needs_trust:
        plain |= {"engine": TO_BE_SAID, "engine_options": ()}
    sources = {"prompts": prompts, "held_out": held_out}
    return plain | {"model": manifest["model"]} | {k: v for k, v in sources.items() if v is None or not runs_code(v)}


def _refuse_elsewhere(output: str | None, resume: str) -> None:
    if output is not None and Path(output).resolve() != Path(resume).resolve():
        raise UserError(f"--output is {output} beside --resume {resume}, expected that folder or none: leave it out")


def _refuse_code(folder: Path, chosen: Mapping[str, Any]) -> None:
    from srlm.run.manifest import read_manifest, refuse_code, run_config

    begun, *sources = run_config(read_manifest(folder), folder)
    refuse_code(folder, begun, chosen)
    for option, source in zip(("prompts", "held_out"), sources, strict=True):
        if source is not None and runs_code(source) and chosen[option] != source:
            said = f"--{option.replace('_', '-')} {source!r}"
            raise UserError(
                f"the run {folder} was begun with {said}, whose answers code reads that the folder names: give it "
                "again if you trust it"
            )
    if chosen["engine"] == TO_BE_SAID:
        options = "".join(f" {option}" for option in begun.engine_options)
        said = f"--engine {begun.engine}" + (f" --engine-options{options}" if options else "")
        raise UserError(
            f"the run {folder} was begun with {said}, which prompts and the token of SRLM_ENGINE_KEY go to, or which "
            "runs what it is told: give that again if you trust it, or another --engine (builtin, say)"
        )


def arms_of(text: str, settings: SelfRewardConfig) -> dict[str, dict[str, Any]]:
    """'majority beta=0.05, random, beta=2' -> name of each arm: its settings; without a reward, that of all stands.
    What holds a comma or a space is quoted: "majority answers='regex:a,b'", "length_window='2 9'".

    Raises:
        UserError: an arm that cannot be read.
    """
    arms: dict[str, dict[str, Any]] = {}
    for words in _words(text):
        if not words:
            raise UserError(f"--compare {text!r} has an empty arm, expected rewards between the commas: correct it")
        name = " ".join(words)
        if name in arms:
            raise UserError(f"--compare names {name!r} twice, expected different arms: leave one out")
        own_reward = [word for word in words if "=" not in word]
        given = [word.split("=", 1) for word in words if "=" in word]
        own = {key.replace("-", "_"): value for key, value in given}
        if len(own) < len(given) or (own_reward and "reward" in own):
            raise UserError(f"the arm {name!r} sets something twice, expected each setting once: leave one out")
        try:
            arms[name] = _settled({"reward": " ".join(own_reward) or settings.reward} | own, settings)
        except UserError as error:
            raise UserError(f"the arm {name!r}: {error}") from error
    return arms


def _settled(given: Mapping[str, str], settings: SelfRewardConfig) -> dict[str, Any]:
    """Settings from their words; a name that is none is for `compare` to refuse."""
    names = {field.name for field in fields(SelfRewardConfig)}
    known = {name: option for name, option in parser(()).options.items() if name in names}
    read: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            read[name] = value
        elif known[name].several:
            read[name] = known[name].settled([known[name].read(word) for word in value.split()])
        else:
            truths = {"true": True, "false": False} if known[name].kind is bool else {}
            read[name] = known[name].read(truths.get(value, value))
    replace(settings, **{name: value for name, value in read.items() if name in names})  # is it in range?
    return read


def _words(text: str) -> list[list[str]]:
    """The words of each arm."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=",")
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise UserError(f"--compare {text!r} has a quote that is not closed: close it") from error
    arms: list[list[str]] = [[]]
    for token in tokens:
        if set(token) == {","}:
            arms += [[] for _ in token]
        else:
            arms[-1].append(token)
    return arms
