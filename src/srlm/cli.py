"""Names -> functions. The only room where strings become choices and errors become exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from srlm import __version__
from srlm.config import SelfRewardConfig
from srlm.errors import UserError

Options = TypeVar("Options", "Train", "Evaluate", "Verify")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


@dataclass(frozen=True)
class Train:
    """Improve a causal LM on prompts without answers: T rounds of {sample, score itself, least-squares update}."""

    model: str = "smollm2"
    """Hub id, folder, .gguf file, or the alias smollm2."""
    prompts: str = ""
    """Prompts: .jsonl, .json, .csv, .parquet, .txt, a saved dataset or a Hub id. Answers in it are never used."""
    held_out: str | None = None
    """Held-out prompts to measure on, with answers if there are any (same formats)."""
    quiet: bool = False
    """Plain lines instead of a live display."""
    settings: Annotated[SelfRewardConfig, tyro.conf.arg(name="")] = field(default_factory=SelfRewardConfig)


@dataclass(frozen=True)
class Evaluate:
    """How often a model is right on labelled prompts: sampled and greedy accuracy with 95 % intervals."""

    model: str = "smollm2"
    """Hub id, folder (a run's model/, say), .gguf file, or the alias smollm2."""
    prompts: str = ""
    """Prompts with answers (formats as in training)."""
    max_prompts: int | None = None
    """Evaluate a random subset of this many."""
    num_samples: int = 8
    """Responses per prompt."""
    max_new_tokens: int = 64
    """Longest response, in tokens."""
    match: str = "contains"
    """contains, exact, number, regex or module:function."""
    stop: tuple[str, ...] = ()
    """Strings that end a response exactly like EOS."""
    raw_prompts: bool = False
    """Take `prompt` strings as they are, even if the tokenizer has a chat template."""
    dtype: str = "auto"
    """bf16, fp32 or auto."""
    token_budget: int = 2048
    """Padded tokens per micro-batch."""
    trust_remote_code: bool = False
    """Run code that a model repository brings along."""
    seed: int = 0
    """Of the subset and the samples."""
    output: str | None = None
    """Also write the result to this new JSON file."""
    quiet: bool = False
    """Plain lines instead of a live display."""


@dataclass(frozen=True)
class Verify:
    """Check the theory by experiment, on policies where everything can be computed: one script per statement."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Experiments, by name; a name that does not exist lists them."""
    all: bool = False
    """Run every experiment."""
    quick: bool = False
    """Fewer replicas and sizes: seconds instead of minutes."""
    output: str | None = None
    """Folder that keeps each experiment's data (CSV) and figure (SVG)."""
    seed: int = 0
    """Of everything random."""
    quiet: bool = False
    """Plain lines instead of a live display."""


def _train(arguments: list[str]) -> None:
    resume, arguments = _take(arguments, "--resume")
    print_config = "--print-config" in arguments
    arguments = [a for a in arguments if a != "--print-config"]
    default = Train() if resume is None else _resumed(Path(resume))
    chosen = _parsed(Train, arguments, default)
    if print_config:
        print(yaml.safe_dump(_flat(chosen), sort_keys=False, allow_unicode=True), end="")
        return
    if not chosen.prompts:
        raise UserError("no prompts were given: name a file or dataset with --prompts")
    from srlm.console import Display
    from srlm.trainer import SelfRewardTrainer

    trainer = SelfRewardTrainer(
        chosen.model,
        chosen.settings,
        chosen.prompts,
        chosen.held_out,
        resume=resume is not None,
        display=Display(chosen.quiet),
    )
    trainer.train()


def _evaluate(arguments: list[str]) -> None:
    chosen = _parsed(Evaluate, arguments, Evaluate())
    if not chosen.prompts:
        raise UserError("no prompts were given: name a file or dataset with --prompts")
    from srlm.console import Display
    from srlm.evaluation import evaluate

    settings = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen) if f.name not in ("quiet",)}
    evaluate(**settings, display=Display(chosen.quiet))


def _verify(arguments: list[str]) -> None:
    chosen = _parsed(Verify, arguments, Verify())
    from srlm.console import Display
    from srlm.experiments import EXPERIMENTS
    from srlm.experiments.verify import verify

    if bool(chosen.names) == chosen.all:
        raise UserError(f"expected either experiments or --all: name some of {', '.join(EXPERIMENTS)}")
    output = Path(chosen.output) if chosen.output is not None else None
    names = list(chosen.names or EXPERIMENTS)
    if not verify(names, output=output, quick=chosen.quick, seed=chosen.seed, display=Display(chosen.quiet)):
        raise SystemExit(1)


COMMANDS = {"train": _train, "evaluate": _evaluate, "verify": _verify}


def _parsed(kind: type[Options], arguments: list[str], default: Options) -> Options:
    """
    Raises:
        UserError: an unknown option or a value of the wrong type.
    """
    name = f"srlm {kind.__name__.lower()}"
    words = _expanded(arguments, _names(kind))
    complaint = io.StringIO()  # tyro frames its own in a box of many lines
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=words, prog=name, default=default, description=_describe(kind))
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise UserError(f"{_first_paragraph(complaint.getvalue())} ({name} --help lists the options)") from None


def _first_paragraph(box: str) -> str:
    """What stands between the title of a framed text and its next rule."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in box.strip().splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines[1:]:
        if line and set(line) <= set("─-╭╮╰╯"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    text = " ".join(next((p for p in paragraphs if p), ["the options cannot be read"])).strip()
    return text[:1].lower() + text[1:].rstrip(".")


def _names(kind: type) -> set[str]:
    own = {f.name for f in dataclasses.fields(kind)}
    return own - {"settings"} | {f.name for f in dataclasses.fields(SelfRewardConfig)} if kind is Train else own


def _describe(command: type) -> str:
    more = ", --print-config prints them all and stops, --resume DIR continues an unfinished run."
    return (
        f"{(command.__doc__ or '').strip()}\n\n--config FILE reads options from YAML (the command line wins)"
        f"{more if command is Train else '.'}"
    )


def _take(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Remove `name VALUE` or `name=VALUE`; the value, if it was there."""
    for i, argument in enumerate(arguments):
        if argument == name:
            if i + 1 == len(arguments):
                raise UserError(f"{name} needs a value: give {name} PATH")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :], arguments[:i] + arguments[i + 1 :]
    return None, arguments


def _expanded(arguments: list[str], known: set[str]) -> list[str]:
    """Put the options of a `--config` file before those of the command line, in the same words: one parser for both."""
    file, rest = _take(arguments, "--config")
    if file is None:
        return rest
    try:
        options = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise UserError(
            f"config file {file} cannot be read ({reason}): give a YAML file of option: value lines"
        ) from error
    if not isinstance(options, dict):
        raise UserError(f"config file {file} holds {type(options).__name__}, expected option: value lines")
    words: list[str] = []
    for key, value in options.items():
        if str(key).replace("-", "_") not in known:
            raise UserError(f"config file {file} has an unknown option {key!r}: correct its name or remove it")
        name = str(key).replace("_", "-")
        match value:
            case bool():
                words.append(f"--{name}" if value else f"--no-{name}")
            case list():
                words += [f"--{name}", *map(str, value)]
            case _:
                words += [f"--{name}", str(value)]
    return words + rest


def _flat(chosen: Train) -> dict[str, Any]:
    values = dataclasses.asdict(chosen)
    values |= values.pop("settings")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _resumed(folder: Path) -> Train:
    """The options a run began with, so that `--resume DIR` alone is enough."""
    from srlm.runs import read_manifest

    manifest = read_manifest(folder)
    try:
        config = manifest["config"] | {"stop": tuple(manifest["config"]["stop"]), "output": str(folder)}
        data = manifest["data"]
        held_out = data["held_out"]["source"] if manifest["held_out_given"] else None
        return Train(manifest["model"], data["prompts"]["source"], held_out, settings=SelfRewardConfig(**config))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the manifest of {folder} is not one that srlm {__version__} wrote ({error}): resume with the version "
            "that began the run"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """`srlm COMMAND ...`; exit code 2 for what the user can mend, 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    # A hub that cannot be reached, and progress bars of loading, are not what the user came for.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not words or words[0] in ("-h", "--help"):
        print("usage: srlm {" + ",".join(COMMANDS) + "} ...   (srlm COMMAND --help lists its options)")
        print("\nsrlm: self-rewarding language models, with guarantees\n")
        for name, kind in (("train", Train), ("evaluate", Evaluate), ("verify", Verify)):
            print(f"  {name:<10}{(kind.__doc__ or '').strip()}")
        raise SystemExit(0 if words else 2)
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"there is no command {words[0]!r}: use {', '.join(COMMANDS)}")
        COMMANDS[words[0]](words[1:])
    except UserError as error:
        print(f"srlm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        then = "continue with --resume; everything finished so far is kept" if words[0] == "train" else "try again"
        print(
            f"srlm: cannot write {error.filename or 'the output'} ({error.strerror}): free space or mend "
            f"permissions, then {then}",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        advice = "; srlm train --resume DIR continues the run" if words[0] == "train" else ""
        print(f"srlm: interrupted{advice}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
