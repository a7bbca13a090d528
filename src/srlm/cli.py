"""Words -> commands, errors -> exit codes. Everything else is imported where an interrupt is already a sentence."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
import warnings
from types import FrameType, ModuleType

from srlm.errors import UserError
from srlm.patience import GaveUp
from srlm.plain import one_line

_OUT_OF_MEMORY = re.compile(r"OutOfMemory|can't allocate memory|not enough memory")  # torch's words for it
COMMANDS = ("train", "prompts", "estimate", "evaluate", "diagnose", "plan", "verify", "report", "export")
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE),
)


def main(arguments: list[str] | None = None) -> None:
    """`srlm COMMAND ...`; exit code 2 for what the user can mend, 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    unraisable, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        try:
            _run(words)
        finally:
            sys.stdout.flush()
    except UserError as error:
        _stop(2, str(error))
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(f"{type(error).__name__} {error}")):
            raise
        again = f" and {_again(words)}; everything finished so far is kept" if words[:1] == ["train"] else ""
        fewer = "fewer --num-samples, shorter --max-new-tokens or a smaller model"
        _stop(2, f"memory is too small for this: lower --token-budget{again}, or begin anew with {fewer}")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        then = f"{_again(words)}; everything finished so far is kept" if words[:1] == ["train"] else "try again"
        what = f"cannot read or write {error.filename or 'the output'} ({error.strerror})"
        _stop(2, f"{what}: free space, mend permissions or put back what is missing, then {then}")
    except KeyboardInterrupt:
        _stop(130, f"interrupted; to go on, {_again(words)}" if words[:1] == ["train"] else "interrupted")
    finally:
        sys.unraisablehook = unraisable


def _run(words: list[str]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which would leave a stream that nobody can use
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal of few letters is no reason to fail
                stream.reconfigure(errors="backslashreplace")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # A hub that cannot be reached, and progress bars of loading, are not what the user came for.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not words or words[0] in ("-h", "--help"):
        usage = "usage: srlm {" + ",".join(COMMANDS) + "} ...   (srlm COMMAND --help lists its options)"
        lines = [usage, "", "srlm: self-rewarding language models, with guarantees", ""]
        print("\n".join([*lines, *(f"  {name:<10}{_command(name).__doc__}" for name in COMMANDS)]))
        raise SystemExit(0 if words else 2)
    if words[0] not in COMMANDS:
        raise UserError(f"there is no command {words[0]!r}: use {', '.join(COMMANDS)}")
    _command(words[0]).run(words[1:])


def _command(name: str) -> ModuleType:
    """Imported. An interrupt that falls into C code there can be swallowed: it is heard when the import is over."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    listening = usual and threading.current_thread() is threading.main_thread()
    if listening:
        signal.signal(signal.SIGINT, hear)
    try:
        module = importlib.import_module(f"srlm.commands.{name}")
    finally:
        if listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if heard:
        raise KeyboardInterrupt
    return module


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """An interrupt that falls into a destructor, as it does during imports, is dropped by Python: it comes back."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # Here and now it would fall into this very function; as a signal it wakes whatever waits.
        again = threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()
    elif not issubclass(lost.exc_type, GaveUp):  # which comes back by itself
        sys.__unraisablehook__(lost)


def _again(words: list[str]) -> str:
    compared = any(word.split("=")[0] == "--compare" for word in words)
    return "give the same line again" if compared else "srlm train --resume DIR"


def _stop(code: int, sentence: str) -> None:
    print(f"srlm: {one_line(sentence)}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
