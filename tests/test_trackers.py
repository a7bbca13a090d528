"""What trackers are told of a run: TensorBoard's files are read back, the others stand in."""

import importlib.util
import json
import os
import sys
import types

import pytest
from support import SETTINGS, command, records, refused, tree, words, write_held_out, write_prompts

from srlm import SelfRewardConfig, SelfRewardTrainer
from srlm.console import Display
from srlm.errors import UserError
from srlm.trackers import Trackers, tracker_names

accumulator = (
    pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    if importlib.util.find_spec("tensorboard")
    else None
)
needs_tensorboard = pytest.mark.skipif(accumulator is None, reason="tensorboard is not installed")
SAMPLES = {  # of prompts 40 to 48 of the run's set: one response too far, seven more, and one to a ninth prompt
    "prompt_index": [40, *range(40, 48), 48],
    "sample_index": [0, *[7] * 8, 0],
    "prompt": ["a | b `c`\n<b>", *"xxxxxxxxx"],
    "response": ["\u202e</td>", *"xxxxxxxxx"],
    "log_prob": [-1.5, *[0.0] * 9],
    "reward": [2.0, *[0.0] * 9],
}


def options(tmp_path, tiny, **more):
    given = {"model": tiny, "prompts": write_prompts(tmp_path), "held_out": write_held_out(tmp_path)}
    return words(**(SETTINGS | {"rounds": 1, "max_new_tokens": 3, "output": tmp_path / "run"} | given | more))


def events(folder):
    """{name: {round: value}} of the scalars, the texts by round, and how often anything was logged."""
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {name: {e.step: e.value for e in found.Scalars(name)} for name in tags["scalars"]}
    number = sum(len(found.Scalars(name)) for name in tags["scalars"])
    texts = {e.step: e.tensor_proto.string_val[0].decode() for e in found.Tensors("samples/text_summary")}
    return scalars, texts, number


@needs_tensorboard
def test_tensorboard_holds_every_number_and_the_samples(tmp_path, tiny):
    outcome = command("train", *options(tmp_path, tiny, report_to="tensorboard"), "--quiet")
    assert outcome.code == 0 and "failed" not in outcome.out
    scalars, texts, number = events(tmp_path / "run" / "trackers" / "tensorboard")
    for record in records(tmp_path / "run"):
        for key, value in record.items():
            if key != "round" and value is not None:
                assert scalars[key][record["round"]] == pytest.approx(value, rel=1e-6), key
    assert number == sum(len([v for v in one.values() if v is not None]) - 1 for one in records(tmp_path / "run"))
    assert sorted(texts) == [0, 1] and "`Spell yy`" in texts[1]
    assert texts[0].splitlines()[0] == "| prompt | response | log_prob | reward |"
    assert len(texts[0].splitlines()) == 2 + 3 * SETTINGS["held_out_samples"]


@needs_tensorboard
def test_resumed_run_reports_each_round_once(tmp_path, tiny, monkeypatch):
    """Killed after the record of round 0; trackers may be chosen anew."""
    from srlm.training.recording import Recorder

    measure = Recorder.__call__

    def stop(self, step):
        if step.round == 1:
            raise KeyboardInterrupt
        return measure(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", stop)
        assert command("train", *options(tmp_path, tiny, report_to="tensorboard"), "--quiet").code == 130
    assert command("train", "--resume", tmp_path / "run", "--quiet").code == 0
    scalars, texts, number = events(tmp_path / "run" / "trackers" / "tensorboard")
    assert sorted(scalars["accuracy_sampled"]) == sorted(texts) == [0, 1]
    assert number == sum(len(one) for one in scalars.values())


def test_nothing_is_imported_or_written_unasked(tmp_path):
    said = []
    Trackers([], tmp_path / "trackers", "run", said.append).finish()
    assert not tree(tmp_path) and not said


def test_unknown_and_absent_trackers_are_refused_before_anything(tmp_path, tiny, monkeypatch):
    assert "'paper'" in refused("train", *options(tmp_path, tiny, report_to="paper"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused("train", *options(tmp_path, tiny, report_to="wandb"))
    assert "pip install wandb" in said and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="pip install mlflow"):
        tracker_names(["mlflow"])


def test_names_may_be_joined(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert tracker_names(["wandb,mlflow", " trackio", "wandb"]) == ["wandb", "mlflow", "trackio"]


class Stand:
    """In the place of a tracker of accelerate."""

    broken = None

    def __init__(self, *arguments, **options):
        self.calls = [("made", arguments, options)]
        Stand.last = self

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments, **options):
            if name == Stand.broken:
                raise RuntimeError("the line\nis down")
            self.calls.append((name, arguments, options))

        return call


@pytest.fixture
def stand(monkeypatch):
    from accelerate import tracking

    for name in ("TensorBoardTracker", "WandBTracker", "TrackioTracker", "MLflowTracker"):
        monkeypatch.setattr(tracking, name, Stand)
    for name in ("TRACKIO_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setattr(Stand, "broken", None)
    return Stand


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_each_tracker_gets_numbers_and_samples(tmp_path, stand, monkeypatch, name):
    texts = {}
    monkeypatch.setitem(
        sys.modules, "mlflow", types.SimpleNamespace(log_text=lambda text, file: texts.update({3: text}))
    )
    said = []
    trackers = Trackers([name], tmp_path / "trackers", "run", said.append)
    trackers.log({"round": 3, "accuracy": 0.5, "gone": None}, SAMPLES)
    trackers.finish()
    calls = stand.last.calls
    assert [call[0] for call in calls[1:3]] == ["start", "log"] and calls[-1][0] == "finish" and not said
    assert calls[2][1:] == (({"accuracy": 0.5},), {"step": 3})
    if name == "wandb":
        assert calls[3][1][2] == [["a | b `c`\n<b>", "\\u202e</td>", -1.5, 2.0]]
    else:
        text = texts[3] if name == "mlflow" else calls[3][1][0]["samples"]
        assert text.splitlines()[2:] == ["| `a ¦ b 'c' <b>` | `\\u202e</td>` | -1.5 | 2 |"]


def test_every_run_has_a_place_of_its_own_unless_told(tmp_path, stand, monkeypatch):
    """The arms of a comparison are runs of one process."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name in "ab":
        (tmp_path / name).mkdir()
        trackers = Trackers(["mlflow"], tmp_path / name / "trackers", name, print)
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / name / 'trackers' / 'mlflow'}.db"
        trackers.finish()
        assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "elsewhere")
    Trackers(["mlflow"], tmp_path / "a" / "trackers", "a", print).finish()
    assert os.environ["MLFLOW_TRACKING_URI"] == "elsewhere"


@pytest.mark.parametrize("broken", ["start", "log", "log_table", "finish"])
def test_a_tracker_that_fails_is_one_note_and_no_more(tmp_path, stand, broken):
    said = []
    stand.broken = broken
    trackers = Trackers(["wandb"], tmp_path / "trackers", "run", said.append)
    for t in range(3):
        trackers.log({"round": t}, SAMPLES)
    trackers.finish()
    (note,) = said
    assert "wandb" in note and "the line is down" in note and "goes on" in note


def test_samples_without_a_reward_are_shown(stand, tmp_path):
    """A judge does not grade held-out responses."""
    said = []
    trackers = Trackers(["trackio"], tmp_path / "trackers", "run", said.append)
    trackers.log({"round": 0}, {name: values for name, values in SAMPLES.items() if name != "reward"})
    trackers.finish()
    assert said == []


# The Hub


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, *arguments, **options):
            calls.append(("create", arguments, options))

        def upload_folder(self, **options):
            if options["repo_id"] == "me/broken":
                raise OSError("no\nnetwork")
            calls.append(("upload", sorted(path.name for path in options["folder_path"].iterdir()), options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return calls


def small(tmp_path, tiny, **more):
    settings = SETTINGS | {"rounds": 1, "max_new_tokens": 3, "output": str(tmp_path / "run")} | more
    return SelfRewardTrainer(
        str(tiny), SelfRewardConfig(**settings), write_prompts(tmp_path), display=Display(quiet=True)
    ).train()


def test_model_is_pushed_when_asked_and_private(tmp_path, tiny, hub, capsys):
    result = small(tmp_path, tiny, push_to_hub="me/mine")
    assert hub[0] == ("create", ("me/mine",), {"private": True, "exist_ok": True})
    assert hub[1][2] == {"repo_id": "me/mine", "folder_path": result.model} and "README.md" in hub[1][1]
    assert "model pushed to me/mine" in capsys.readouterr().out


def test_a_push_that_fails_is_a_note_and_the_run_is_finished(tmp_path, tiny, hub, capsys):
    result = small(tmp_path, tiny, push_to_hub="me/broken")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "was not pushed to me/broken (no network)" in line]
    assert json.loads((result.output / "manifest.json").read_text())["state"] == "finished"


def test_a_push_is_made_up_for_once(tmp_path, tiny, hub):
    run = small(tmp_path, tiny, push_to_hub="me/broken").output
    for name in ("me/broken", "me/mine", "me/mine"):
        assert command("train", "--resume", run, "--push-to-hub", name).code == 0
    assert [call[1][0] for call in hub if call[0] == "create"] == ["me/broken", "me/broken", "me/mine"]
    assert [call[2]["repo_id"] for call in hub if call[0] == "upload"] == ["me/mine"]


def test_a_run_that_went_back_is_pushed_again(tmp_path, tiny, hub):
    run = small(tmp_path, tiny, push_to_hub="me/mine").output
    assert command("train", "--resume", run, "--from-round", "0").code == 0
    assert [call[2]["repo_id"] for call in hub if call[0] == "upload"] == ["me/mine", "me/mine"]


def test_nothing_is_pushed_unasked(tmp_path, tiny, hub):
    small(tmp_path, tiny)
    assert not hub
