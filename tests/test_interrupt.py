"""Ctrl-C at any moment, imports included, is one sentence and code 130."""

import random
import re
import signal
import sys
import time

import pytest
from support import SETTINGS, interruptible, sentence, words, write_prompts

CODE = "import sys; from srlm.cli import main; print('ready', flush=True); main(sys.argv[1:])"
# Seconds after the line that calls srlm: while it imports, loads a model, samples and trains.
MOMENTS = (0.002, 0.02, 0.1, 0.5, 1.5, 3.0, 3.2)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_is_a_sentence(tiny, tmp_path, moment):
    options = SETTINGS | {"rounds": 200, "model": tiny, "prompts": write_prompts(tmp_path), "output": tmp_path / "run"}
    with interruptible([sys.executable, "-c", CODE, "train", *words(**options)]) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            wait = moment * random.uniform(1, 1.2)
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, (wait, err)
    assert re.fullmatch("interrupted; to go on, srlm train --resume DIR", sentence(err)), wait


IN_A_DESTRUCTOR = """
import sys, time
import srlm.commands.plan
from srlm.cli import main

class Falls:
    def __del__(self):
        raise KeyboardInterrupt

def run(words):
    Falls()
    time.sleep(20)

srlm.commands.plan.run = run
main(["plan"])
"""


def test_an_interrupt_that_python_drops_comes_back():
    """It fell into a destructor: Python would say "Exception ignored" and go on."""
    start = time.time()
    with interruptible([sys.executable, "-c", IN_A_DESTRUCTOR]) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, sentence(err)) == (130, "interrupted")
    assert time.time() - start < 15


SWALLOWED = """
import importlib, os, signal, time
import srlm.cli
from srlm.cli import main

def swallowing(name, load=importlib.import_module):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        pass
    return load(name)

srlm.cli.importlib.import_module = swallowing
main(["plan", "--budget", "100"])
"""


def test_an_interrupt_that_an_import_swallows_is_heard_after_it():
    with interruptible([sys.executable, "-c", SWALLOWED]) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, sentence(err)) == (130, "interrupted")
