"""A prompt becomes token ids once a run, whatever its chat template says the next day."""

import json
import shutil

import pytest
import torch
from conftest import make_model, make_tokenizer
from pyarrow import parquet
from support import SETTINGS, command, table, train_words, whole, write_held_out, write_prompts

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.run.folder import RunFolder
from srlm.training.comparison import compare
from srlm.types import Prompts

# Every rendering counts one on, as a clock does; templates of Llama 3.2 and SmolLM3 write today's date.
CLOCK = "{{ strftime_now('%S') }} {% for m in messages %}{{ m['content'] }}{% endfor %}<|im_start|>"


@pytest.fixture
def dated(tmp_path, monkeypatch):
    """A model whose template writes what time it is, and a clock that never shows the same twice."""
    make_model().save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CLOCK
    tokenizer.save_pretrained(tmp_path / "model")
    ticks = iter(range(10**6))

    class Clock:
        @staticmethod
        def now():
            return Clock()

        def strftime(self, form):
            return str(next(ticks))

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    return tmp_path / "model"


@pytest.fixture
def options(dated, tmp_path):
    return {"model": dated, "prompts": write_prompts(tmp_path), "held_out": write_held_out(tmp_path)}


def test_the_clock_ticks(dated):
    policy = TransformerPolicy.load(str(dated), dtype="fp32", lora_rank=0, max_new_tokens=4)
    assert policy.encode.passing("a") != policy.encode.passing("a")


def test_a_policy_reads_prompts_once(dated):
    policy = TransformerPolicy.load(str(dated), dtype="fp32", lora_rank=0, max_new_tokens=4)
    prompts = Prompts.uniform(["a", ({"role": "user", "content": "b"},), "c"])
    policy.check_prompts(prompts, 2)
    assert policy.ids(prompts) == policy.ids(prompts)
    responses = policy.sample(prompts, 4, torch.Generator().manual_seed(0))
    assert torch.equal(policy.log_prob(prompts, responses), policy.log_prob(prompts, responses))


def test_what_the_model_read_is_kept_and_read_again(options, tmp_path):
    run = tmp_path / "run"
    moments = []
    save = RunFolder.append_record

    def photographed(self, record):
        moments.append(shutil.copytree(self.path, tmp_path / f"moment-{len(moments)}"))
        save(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_record", photographed)
        assert command(*train_words(**options, output=run)).code == 0
    kept = {
        name: parquet.read_table(run / "prompts" / f"{name}.parquet").to_pydict() for name in ("rollouts", "held_out")
    }
    assert kept["rollouts"]["prompt"] == [table(run, 0)["prompt"][i] for i in range(0, 24, 4)]
    tokenizer = make_tokenizer()
    assert [tokenizer.decode(ids).split(" ", 1)[1] for ids in kept["held_out"]["tokens"]] == [
        f"Spell {word}<|im_start|>" for word in ("x", "yy", "z")
    ]
    for moment in moments:
        assert command("train", "--resume", moment).code == 0
        assert whole(moment) == whole(run)


def test_arms_that_share_round_0_read_the_same(options, tmp_path):
    from srlm.config import SelfRewardConfig
    from srlm.console import Display

    config = SelfRewardConfig(**(SETTINGS | {"rounds": 1, "output": str(tmp_path / "arms")}))
    arms = {name: {"reward": name} for name in ("log_likelihood", "random")}
    given = {name: str(value) for name, value in options.items()}
    compare(given["model"], config, given["prompts"], given["held_out"], arms, display=Display(silent=True))
    for name in ("rollouts", "held_out"):
        one, two = (
            parquet.read_table(tmp_path / "arms" / f"{arm}-seed-3" / "prompts" / f"{name}.parquet") for arm in arms
        )
        assert one == two


def test_a_diagnosis_of_a_run_asks_what_the_run_asked(options, tmp_path):
    run = tmp_path / "run"
    assert command(*train_words(**options, output=run)).code == 0
    question = ["--run", run, "--round", 0, "--samples", 3, "--search-budget", 16, "--seed", SETTINGS["seed"]]
    said = []
    for name in "ab":
        assert command("diagnose", *question, "--output", tmp_path / name).code == 0
        said.append(json.loads((tmp_path / name / "diagnose.json").read_text()) | {"seconds": None})
        samples = parquet.read_table(tmp_path / name / "samples.parquet").to_pydict()
        held_out = table(run, 0, "held_out")
        assert samples["response"] == held_out["response"]
        assert samples["log_prob"] == pytest.approx(held_out["log_prob"], abs=1e-4)
    assert said[0] == said[1]


def test_a_diagnosis_that_reads_prompts_otherwise_does(options, tmp_path):
    run = tmp_path / "run"
    assert command(*train_words(**options, output=run)).code == 0
    question = ["--run", run, "--round", 0, "--samples", 3, "--search-budget", 16]
    for name, more in (("as-run", []), ("raw", ["--raw-prompts"])):
        assert command("diagnose", *question, *more, "--output", tmp_path / name).code == 0
    kappa = [json.loads((tmp_path / n / "diagnose.json").read_text())["sequence"] for n in ("as-run", "raw")]
    assert kappa[0] != kappa[1]
