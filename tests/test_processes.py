"""Two processes do what one does, under torchrun, and write once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed
from support import SETTINGS, WORDS, command, measured, records, table, train_words, tree, write_held_out, write_prompts

from srlm.policies.transformer.devices import watch as watch_module

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

# The second process is slow to look at the folder, as a busy machine may make it, and tells of what it writes.
DRIVER = """
import os, sys, time
from srlm.cli import main
from srlm.run.tables import Table

if os.environ["RANK"] == "1":
    read, replace = Table.files, os.replace

    def slow(*arguments):
        time.sleep(0.05)
        return read(*arguments)

    def told(source, target):
        print(f"process 1 wrote {target}", file=sys.stderr, flush=True)
        replace(source, target)

    Table.files, os.replace = slow, told
main(sys.argv[1:])
main([*sys.argv[1:], "--output", sys.argv[-1] + "-compared", "--compare", "log_likelihood,random"])
print("\\ndone", flush=True)
main(sys.argv[1:])  # refused, and no process waits for the other
"""


def test_a_process_that_the_others_gave_up_still_sees_who_is_gone(monkeypatch):
    """Else it would wait for them for ever, and not know: they end."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(watch_module, "EVERY", 0.01)
    watch = watch_module.Watch(SimpleNamespace(process_index=1, num_processes=2))
    said = {
        watch._key("who", 0): json.dumps({"machine": watch_module._machine(), "pid": ended.pid, "host": "here"}),
        watch._key("lost", 0): "1",  # no sign of life for a while: a machine that slept
    }
    watch._store = SimpleNamespace(
        set=said.__setitem__, get=lambda key: said[key].encode(), check=lambda keys: set(keys) <= said.keys()
    )
    looking = threading.Thread(target=watch._look)
    looking.start()
    found = watch._found.wait(2)
    watch.close()
    looking.join()
    assert found and "process 0 of 2" in watch.sentence() and "is gone" in watch.sentence()


STORE = """
import time
import torch

store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_the_machine_of_the_main_process_is_lost_with_what_processes_say(monkeypatch, capsys, how):
    ended = threading.Event()
    monkeypatch.setattr(watch_module.os, "_exit", lambda code: ended.set())
    for name, seconds in {"EVERY": 0.02, "GRACE": 0.1, "SILENCE": 2.0}.items():
        monkeypatch.setattr(watch_module, name, seconds)
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE, text=True) as store:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", store.stdout.readline().strip())
        watch = watch_module.Watch(SimpleNamespace(process_index=1, num_processes=2))
        try:
            watch._say("who", json.dumps({"machine": "elsewhere", "pid": 7, "host": "there"}), 0)
            watch._say("stage", "in sampling", 0)
            time.sleep(0.3)
            assert watch.sentence() is None
            store.send_signal(how)
            assert ended.wait(10)
            assert "process 0 of 2 (pid 7 on there)" in watch.sentence()
        finally:
            watch.close()
            store.kill()
            watch._thread.join()
    assert "or its launcher is gone, killed or crashed while in sampling; everything" in capsys.readouterr().err


def test_two_machines_of_one_name_are_two(monkeypatch, tmp_path):
    """Else processes of the other one are looked for here by their numbers, and taken for gone."""
    here = watch_module._machine()
    assert watch_module._machine() == here
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(watch_module, "BOOT", str(tmp_path / "boot_id"), raising=False)
    assert watch_module._machine() != here
    monkeypatch.setattr(watch_module, "BOOT", str(tmp_path / "none"))
    assert watch_module._machine() in here  # what does not say is no reason to fail


PATIENT = """
import torch
from srlm.policies.transformer.processes import processes

processes()
group = torch.distributed.distributed_c10d._get_default_group()
print(group._get_backend(torch.device("cpu")).options._timeout.days)
"""


def test_the_only_process_of_a_machine_waits_as_long_for_those_of_others():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    words = [sys.executable, "-c", PATIENT]
    console = subprocess.run(words, capture_output=True, text=True, env=os.environ | where | numbers, timeout=120)
    assert console.stdout.split() == ["7"], console


def test_two_processes_equal_one(tiny, tmp_path):
    options = {
        "model": tiny,
        "prompts": write_prompts(tmp_path),
        "held_out": write_held_out(tmp_path),
        "prompts_per_step": 5,  # of 6: in every second step one process has nothing to do
    }
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(*train_words(**options, output=one)).code == 0
    (tmp_path / "driver.py").write_text(DRIVER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    console = subprocess.Popen(
        [*torchrun, str(tmp_path / "driver.py"), *train_words(**options, output=two)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        out, err = console.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        console.terminate()  # torchrun passes it on to its processes, which have sessions of their own
        out, err = console.communicate()
        pytest.fail(f"the processes hang:\n{out}\n{err}")

    assert out.count("done") == 2, err
    # One of them speaks and writes.
    rounds = re.findall(r"^ +(\d) ", out, re.MULTILINE)
    assert rounds == 3 * [str(t) for t in range(SETTINGS["rounds"] + 1)]
    assert out.count("model saved in") == 3
    assert out.count("− random") == 1
    compared = json.loads((tmp_path / "two-compared" / "comparison.json").read_text())
    assert (compared["state"], len(compared["arms"])) == ("finished", 2)
    assert "process 1 wrote" not in err
    assert list(tree(two)) == list(tree(one))
    # The second run into the same folder was refused, once.
    assert console.returncode != 0
    assert err.count("srlm: output") == err.count("never overwritten") == 1

    for t in range(SETTINGS["rounds"] + 1):
        for name in ("rollouts", "held_out", "greedy"):
            mine, theirs = table(two, t, name), table(one, t, name)
            assert mine["tokens"] == theirs["tokens"] and mine["prompt"] == theirs["prompt"]
            for column in {"log_prob", "entropy", "reward", "log_prob_next", "log_prob_initial"} & mine.keys():
                assert mine[column] == pytest.approx(theirs[column], abs=1e-4), column
    for mine, theirs in zip(records(two), records(one), strict=True):
        assert mine.keys() == theirs.keys()
        numbers = {key: value for key, value in measured(theirs).items() if value is not None}
        assert {key: mine[key] for key in numbers} == pytest.approx(
            numbers, rel=1e-4, abs=1e-4
        )  # as the columns they are made of
    assert len(table(two, 0)["tokens"]) == len(WORDS) * SETTINGS["num_samples"]
