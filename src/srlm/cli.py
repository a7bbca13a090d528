"""Names -> functions. The only room where strings become choices and errors become exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import shlex
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro
import yaml

from srlm.config import SelfRewardConfig
from srlm.errors import UserError

Options = TypeVar("Options", "Train", "Evaluate", "Diagnose", "Plan", "Verify", "Report")
SETTINGS = {f.name for f in dataclasses.fields(SelfRewardConfig)}
SEVERAL = {f.name for f in dataclasses.fields(SelfRewardConfig) if str(f.type).startswith("tuple")}  # words a value
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


@dataclass(frozen=True)
class Train:
    """Improve a causal LM on prompts without answers: T rounds of {sample, score itself, least-squares update}."""

    model: str = "smollm2"
    """Hub id, folder, .gguf file, or an alias: smollm2, gemma3-270m."""
    prompts: Annotated[str, tyro.conf.arg(aliases=("--task",))] = ""
    """Prompts: .jsonl, .json, .csv, .parquet, .txt, a saved dataset, a Hub id or a task with a verifier of its own, say
    'reasoning-gym:basic_arithmetic?size=500'. Answers in it are never used, but by the control `oracle`."""
    held_out: str | None = None
    """Held-out prompts to measure on, with answers if there are any (same formats)."""
    compare: str = ""
    """Rewards, comma-separated, each with settings of its own if it needs them ('majority beta=0.05, log_likelihood,
    log_likelihood objective=dpo beta=0.1'; quote a value with a comma or a space): train with each of them from one
    start, and end with a table."""
    seeds: int = 1
    """For --compare: runs per arm, with seeds --seed, --seed + 1, ..."""
    quiet: bool = False
    """Plain lines instead of a live display."""
    settings: Annotated[SelfRewardConfig, tyro.conf.arg(name="")] = field(default_factory=SelfRewardConfig)


@dataclass(frozen=True)
class Evaluate:
    """How often a model is right on labelled prompts: sampled and greedy accuracy with 95 % intervals."""

    model: str = "smollm2"
    """Hub id, folder (a run's model/, say), .gguf file, or an alias: smollm2, gemma3-270m."""
    prompts: str = ""
    """Prompts with answers (formats as in training)."""
    max_prompts: int | None = None
    """Evaluate a random subset of this many."""
    num_samples: int = 8
    """Responses per prompt."""
    max_new_tokens: int = 64
    """Longest response, in tokens."""
    match: str = "auto"
    """contains, exact, number, regex or module:function; auto asks a task's own verifier, or is contains."""
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
class Diagnose:
    """Would self-rewarding help this model on these prompts? kappa and modes by exact search, and a forecast."""

    model: str | None = None
    """Hub id, folder, .gguf file, or an alias: smollm2 (the default), gemma3-270m."""
    prompts: str | None = None
    """Prompts, with answers if there are any (formats as in training)."""
    run: str | None = None
    """Instead of a model: a run folder, with its settings and, unless others are given, its held-out prompts."""
    round: int | None = None
    """Round of the run; by default the one whose model it kept, or its last so far."""
    output: str | None = None
    """New folder for diagnose.json, prompts.parquet and samples.parquet."""
    samples: int = 16
    """K: responses per prompt."""
    search_budget: int = 1024
    """Most prefixes per prompt that the search for the mode evaluates; what it leaves open becomes an interval."""
    search_best: int = 4
    """How many of the most probable responses to certify: 2 are mode and runner-up, more narrow the forecast."""
    answers: str = "normalised"
    """Which responses give the same answer? exact, normalised, number, regex:PATTERN or module:function."""
    match: str | None = None
    """When is a response right? auto (the default: a task's own verifier, or contains), contains, exact, number, regex
    or module:function."""
    max_new_tokens: int | None = None
    """Longest response, in tokens (64)."""
    clip: float | None = None
    """B of the forecast with clipped rewards, in nats (8)."""
    max_prompts: int | None = None
    """Diagnose on a random subset of this many."""
    stop: tuple[str, ...] | None = None
    """Strings that end a response exactly like EOS."""
    raw_prompts: bool = False
    """Take `prompt` strings as they are, even if the tokenizer has a chat template."""
    dtype: str | None = None
    """bf16, fp32 or auto."""
    token_budget: int | None = None
    """Padded tokens per micro-batch (2048)."""
    trust_remote_code: bool = False
    """Run code that a model repository brings along."""
    seed: int = 0
    """Of the subset and the samples."""
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
    """Folder that keeps each experiment's data (CSV), figure (SVG) and verdict (JSON), and a report of all."""
    seed: int = 0
    """Of everything random."""
    quiet: bool = False
    """Plain lines instead of a live display."""


@dataclass(frozen=True)
class Plan:
    """What a budget of prompts can promise from a given start, and in how many rounds to spend it: theory, no model."""

    diagnosis: str | None = None
    """A diagnose.json: its cautious ends are kappa0, margin and min-confidence where these are not given."""
    budget: float | None = None
    """N: prompts in all rounds together."""
    kappa0: float | None = None
    """Policy condition number of the start, at least 1 (Eq. 5)."""
    margin: float | None = None
    """Gamma: nats between the mode and its best rival, the least of all prompts and rounds (Def. 5.2)."""
    min_confidence: float | None = None
    """p: least probability of a mode after the first round."""
    beta: float = 1.0
    """Strength of the KL term, as in training."""
    log_class_size: float | None = None
    """log|Pi| of a finite class, in nats; or else --dimension or --eigenvalues."""
    dimension: float | None = None
    """d of a linear softmax; needs --norm-bound."""
    norm_bound: float | None = None
    """Largest norm of a linear softmax's parameters, for features of norm at most 1."""
    eigenvalues: tuple[float, ...] | None = None
    """Spectrum of the covariance of feature differences: the effective dimension at ridge 1/n is then d."""
    level: float = 0.5
    """Delta: a prompt fails if its mode has probability 1 - delta or less."""
    failure_probability: float = 0.05
    """Rho: how often the bound itself may fail."""
    max_rounds: int = 64
    """Most rounds T to consider."""
    constant: float = 1.0
    """C, which the theory leaves open."""
    plot: str | None = None
    """Also draw the bound and its parts against T into this new SVG file."""
    output: str | None = None
    """Also write the plan to this new JSON file."""
    quiet: bool = False
    """Plain lines instead of a live display."""


@dataclass(frozen=True)
class Report:
    """Look at runs, diagnoses and experiments: one HTML page with figures and samples, live with --watch."""

    folders: tyro.conf.Positional[tuple[str, ...]] = ()
    """What srlm train, diagnose or verify wrote; several are laid over each other."""
    output: str | None = None
    """HTML file; by default report.html in the folder, comparison.html in the first of several. A report that lies
    there is overwritten, since it is only a view."""
    figures: str | None = None
    """Also draw the curves as SVG files into this folder."""
    forecast: str | None = None
    """A diagnose.json of a run's start: its forecast of kappa is drawn beside what happened."""
    watch: bool = False
    """Serve the page on this machine only, refreshed while a run goes on, instead of writing it."""
    port: int = 0
    """For --watch; 0 takes a free one."""


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
    if chosen.compare and resume is not None:
        raise UserError(f"--resume {resume} does not go with --compare: give the first call's line again")
    if chosen.seeds != 1 and not chosen.compare:
        raise UserError(f"--seeds is {chosen.seeds} without --compare: name one run's seed with --seed, or arms")
    from srlm.console import Display

    if chosen.compare:
        from srlm.training.comparison import compare

        arms = _arms(chosen.compare, chosen.settings)
        display = Display(chosen.quiet)
        compare(
            chosen.model, chosen.settings, chosen.prompts, chosen.held_out, arms, seeds=chosen.seeds, display=display
        )
        return
    from srlm.training.trainer import SelfRewardTrainer

    trainer = SelfRewardTrainer(
        chosen.model,
        chosen.settings,
        chosen.prompts,
        chosen.held_out,
        resume=resume is not None,
        display=Display(chosen.quiet),
    )
    trainer.train()


def _arms(text: str, settings: SelfRewardConfig) -> dict[str, dict[str, Any]]:
    """'majority beta=0.05, random, beta=2' -> name of each arm: its settings; without a reward, that of all stands.
    What holds a comma or a space is quoted: "majority answers='regex:a,b'", "length_window='2 9'"."""
    arms: dict[str, dict[str, Any]] = {}
    for words in _words(text):
        if not words:
            raise UserError(f"--compare {text!r} has an empty arm, expected rewards between the commas: correct it")
        name = " ".join(words)
        if name in arms:
            raise UserError(f"--compare names {name!r} twice, expected different arms: leave one out")
        reward = [word for word in words if "=" not in word]
        given = [word.split("=", 1) for word in words if "=" in word]
        own = {key.replace("-", "_"): value for key, value in given}
        if len(own) < len(given) or (reward and "reward" in own):
            raise UserError(f"the arm {name!r} sets something twice, expected each setting once: leave one out")
        own = {"reward": " ".join(reward) or settings.reward} | own
        options: list[str] = []
        for key, value in own.items():
            option = f"--{key.replace('_', '-')}"
            if key in SEVERAL:
                options += [option, *value.split()]
            elif key in SETTINGS:
                options.append(f"{option}={value}")
        try:
            parsed = _parsed(Train, options, Train(settings=settings)).settings
        except UserError as error:
            raise UserError(f"the arm {name!r}: {error}") from error
        arms[name] = {key: getattr(parsed, key, value) for key, value in own.items()}  # compare refuses other keys
    return arms


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


def _evaluate(arguments: list[str]) -> None:
    chosen = _parsed(Evaluate, arguments, Evaluate())
    if not chosen.prompts:
        raise UserError("no prompts were given: name a file or dataset with --prompts")
    from srlm.console import Display
    from srlm.evaluation import evaluate

    settings = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen) if f.name not in ("quiet",)}
    evaluate(**settings, display=Display(chosen.quiet))


def _diagnose(arguments: list[str]) -> None:
    chosen = _parsed(Diagnose, arguments, Diagnose())
    if chosen.prompts is None and chosen.run is None:
        raise UserError("no prompts were given: name a file or dataset with --prompts, or a run folder with --run")
    from srlm.console import Display
    from srlm.diagnosis import diagnose

    settings = {
        f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen) if f.name not in ("quiet", "samples")
    }
    for flag in ("raw_prompts", "trust_remote_code"):  # left out, the run's own choice stands
        settings[flag] = settings[flag] or None
    display = Display(chosen.quiet)
    diagnose(**settings, num_samples=chosen.samples, display=display)
    if chosen.output is not None:
        from srlm.report import report_or_reason

        display.say(report_or_reason(Path(chosen.output)))


def _verify(arguments: list[str]) -> None:
    chosen = _parsed(Verify, arguments, Verify())
    from srlm.console import Display
    from srlm.experiments import EXPERIMENTS
    from srlm.experiments.verify import verify

    if bool(chosen.names) == chosen.all:
        raise UserError(f"expected either experiments or --all: name some of {', '.join(EXPERIMENTS)}")
    output = Path(chosen.output) if chosen.output is not None else None
    names = list(chosen.names or EXPERIMENTS)
    display = Display(chosen.quiet)
    good = verify(names, output=output, quick=chosen.quick, seed=chosen.seed, display=display)
    if output is not None:
        from srlm.report import report_or_reason

        display.say(report_or_reason(output))
    if not good:
        raise SystemExit(1)


def _plan(arguments: list[str]) -> None:
    chosen = _parsed(Plan, arguments, Plan())
    from srlm import planning
    from srlm.console import Display

    files = ("output", "plot", "quiet")
    made = planning.plan(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen) if f.name not in files})
    output, plot = (Path(file) if file is not None else None for file in (chosen.output, chosen.plot))
    planning.keep(made, output=output, plot=plot)
    planning.show(made, Display(chosen.quiet))


def _report(arguments: list[str]) -> None:
    chosen = _parsed(Report, arguments, Report())
    from srlm import report

    if not chosen.folders:
        raise UserError("no folder was given: name the folder that srlm train, diagnose or verify wrote")
    if chosen.watch:
        if chosen.output is not None or chosen.figures is not None:
            raise UserError("--watch writes nothing: leave out --output and --figures, or --watch")
        from srlm.report.watch import watch

        watch(chosen.folders, port=chosen.port, forecast=chosen.forecast)
        return
    print(report.report(chosen.folders, chosen.output, forecast=chosen.forecast))
    if chosen.figures is not None:
        for file in report.save_figures(chosen.folders, chosen.figures, forecast=chosen.forecast):
            print(file)


COMMANDS = {
    "train": (Train, _train),
    "evaluate": (Evaluate, _evaluate),
    "diagnose": (Diagnose, _diagnose),
    "plan": (Plan, _plan),
    "verify": (Verify, _verify),
    "report": (Report, _report),
}


def _flow_help(kind: type) -> None:
    """Let help texts flow: tyro would keep the line breaks that a docstring has in the source."""
    hints = get_type_hints(kind, include_extras=True)
    for said in docstring_parser.parse_from_object(kind).params:
        text = " ".join((said.description or "").split())
        kind.__annotations__[said.arg_name] = Annotated[hints[said.arg_name], tyro.conf.arg(help=text)]


def _parsed(kind: type[Options], arguments: list[str], default: Options) -> Options:
    """
    Raises:
        UserError: an unknown option or a value of the wrong type.
    """
    name = f"srlm {kind.__name__.lower()}"
    words = _expanded(arguments, _names(kind))
    if {"-h", "--help"} & set(words):
        _flow_help(SelfRewardConfig)
        _flow_help(kind)
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
    return own - {"settings"} | SETTINGS if kind is Train else own


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
    from srlm.run.manifest import read_manifest, run_config

    manifest = read_manifest(folder)
    config, prompts, held_out = run_config(manifest, folder)
    return Train(manifest["model"], prompts, held_out, settings=config)


def _again(words: list[str]) -> str:
    compared = any(word.split("=")[0] == "--compare" for word in words)
    return "give the same line again" if compared else "srlm train --resume DIR"


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
        for name, (kind, _) in COMMANDS.items():
            print(f"  {name:<10}{(kind.__doc__ or '').strip()}")
        raise SystemExit(0 if words else 2)
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"there is no command {words[0]!r}: use {', '.join(COMMANDS)}")
        COMMANDS[words[0]][1](words[1:])
    except UserError as error:
        print(f"srlm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        then = f"{_again(words)}; everything finished so far is kept" if words[0] == "train" else "try again"
        print(
            f"srlm: cannot write {error.filename or 'the output'} ({error.strerror}): free space or mend "
            f"permissions, then {then}",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        advice = f"; to go on, {_again(words)}" if words[0] == "train" else ""
        print(f"srlm: interrupted{advice}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
