"""What the system tests share: the command line in this process, small runs, and what a run left behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partialmethod
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
import tqdm
import transformers
from pyarrow import parquet

from srlm.cli import main

# The command line switches progress bars off before their library is imported; here that comes too late.
transformers.utils.logging.disable_progress_bar()
tqdm.std.tqdm.__init__ = partialmethod(tqdm.std.tqdm.__init__, disable=True)

SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "num_samples": 4,
    "max_new_tokens": 6,
    "clip": 2.0,
    "learning_rate": 5e-3,
    "epochs": 2,
    "prompts_per_step": 2,
    "checkpoint_steps": 1,
    "lora_rank": 4,
    "dtype": "fp32",
    "held_out_samples": 3,
    "match": "regex",  # a random model is right now and then, if the right answer is a common letter
    "seed": 3,
    "guard": False,  # what a random model learns is often damage
}
ANSWER = "[a-mA-M]"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def command(*words: object) -> Outcome:
    """`srlm WORDS` in this process. Anything but SystemExit, as a traceback would be, goes up to the test."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(*words: object) -> str:
    """`srlm WORDS` must end with code 2 and one sentence on stderr; the sentence without its "srlm: "."""
    outcome = command(*words)
    assert outcome.code == 2, outcome
    return sentence(outcome.err)


def sentence(err: str) -> str:
    assert err.startswith("srlm: ") and err.endswith("\n"), err
    assert err.count("\n") == 1, err
    return err.removeprefix("srlm: ").strip()


def words(**options: Any) -> list[str]:
    """Keyword -> --option value."""
    every: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            every.append(f"--{option}" if value else f"--no-{option}")
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        every += [f"--{option}", *map(str, values)]
    return every


def train_words(**options: Any) -> list[str]:
    clipped = options.get("objective", "regression") == "regression"  # others do not heed it
    return ["train", *words(**({k: v for k, v in SETTINGS.items() if clipped or k != "clip"} | options))]


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder under `folder`, with a hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def records(run: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (run / "records.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def measured(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what a stop-watch says; its keys remain."""
    return {
        key: None if key.startswith(("seconds", "tokens_per_second")) or key == "peak_memory_gb" else value
        for key, value in record.items()
    }


def table(run: Path, round: int, name: str = "rollouts") -> dict[str, list[Any]]:
    return parquet.read_table(run / f"round-{round:03d}" / f"{name}.parquet").to_pydict()


def weights(file: Path) -> dict[str, bytes]:
    """Tensors, bit for bit."""
    return {
        name: value.reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, value in safetensors.torch.load_file(file).items()
    }


def losses(run: Path, round: int) -> list[float]:
    return json.loads((run / f"round-{round:03d}" / "stages.json").read_text())["loss"]


def learned(run: Path, rounds: int = SETTINGS["rounds"]) -> dict[str, Any]:
    """All that a run sampled, scored and learned: for comparisons bit for bit."""
    return {
        "rollouts": [table(run, t) for t in range(rounds + 1)],
        "losses": [losses(run, t) for t in range(rounds)],
        "model": weights(run / "model" / "model.safetensors"),
        "rounds": [
            weights(file)
            for t in range(1, rounds + 1)
            for file in sorted((run / f"round-{t:03d}").glob("*/*.safetensors"))
        ],
    }


def whole(run: Path, rounds: int = SETTINGS["rounds"]) -> dict[str, Any]:
    """`learned`, and all that was measured; of timings and memory only that they are there."""
    return learned(run, rounds) | {
        "records": [measured(record) for record in records(run)],
        "held_out": [table(run, t, "held_out") for t in range(rounds + 1)],
        "greedy": [table(run, t, "greedy") for t in range(rounds + 1)],
        "state": json.loads((run / "manifest.json").read_text())["state"],
        "files": sorted(tree(run)),
    }


# Processes that are killed. They come from a clean server that has imported everything once.

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["srlm.commands.train", "srlm.training.trainer", "peft", "transformers.models.llama.modeling_llama", "pandas"]
)


def get_ready() -> None:
    """The server begins to import, beside whatever else is done before it is needed."""
    forkserver.ensure_running()


def alive(target: Callable[..., None], *arguments: Any) -> int:
    """Run `target` in a process of its own; its exit code, negative for a signal."""
    process = _SERVER.Process(target=target, args=arguments)
    process.start()
    process.join(timeout=120)
    if process.is_alive():
        process.kill()
        raise AssertionError("the process hangs")
    assert process.exitcode is not None
    return process.exitcode


def run_and_die(folder: Path, command: list[str], files: int) -> None:
    """Start or resume the run in `folder`; complete that many files, and die (kill -9) in the middle of the next."""
    torch.set_num_threads(1)
    die_after(files)
    resume = ["--resume", str(folder)] if (folder / "manifest.json").exists() else ["--output", str(folder)]
    main([*command, "--quiet", *resume])


def die_after(files: int) -> None:
    """So many files get their names; whoever is about to give the next one its name leaves it damaged, and dies."""
    left, replace = files, os.replace

    def counted(source: Any, target: Any, **options: Any) -> None:
        nonlocal left
        if left == 0:
            damage(Path(source))
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        replace(source, target, **options)

    os.replace = counted


def damage(scratch: Path) -> None:
    """Leave a half-written file, or a folder of them."""
    for file in [scratch] if scratch.is_file() else [f for f in scratch.rglob("*") if f.is_file()]:
        os.truncate(file, file.stat().st_size // 2)


def interruptible(words: list[str], **options: Any) -> subprocess.Popen[str]:
    """A child that takes an interrupt even where its parent, a job in the background, has to ignore them."""

    def take_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, text=True, preexec_fn=take_interrupts, **pipes, **options)


def save_adapter(base: Path, folder: Path) -> Any:
    """A LoRA adapter of a model, not zero; the model with it merged."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    joined = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, value in joined.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3)
    joined.peft_config["default"].base_model_name_or_path = str(base)
    joined.save_pretrained(folder, save_embedding_layers=False)
    return joined.merge_and_unload()


# Data

WORDS = ["abc", "def", "gh", "ijklm", "n", "op"]
HELD_OUT = ["x", "yy", "z"]


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_prompts(folder: Path) -> Path:
    return write_rows(folder / "prompts.jsonl", [{"prompt": f"Say {word}"} for word in WORDS])


def write_held_out(folder: Path, answer: str = ANSWER) -> Path:
    return write_rows(folder / "held-out.jsonl", [{"prompt": f"Spell {word}", "answer": answer} for word in HELD_OUT])
