"""What a person in a notebook has at hand."""

from __future__ import annotations

import pytest
from support import SETTINGS, records, write_held_out, write_prompts

from srlm import SelfRewardConfig, SelfRewardTrainer, UserError
from srlm.console import Display


def test_callbacks_and_figures(tiny, tmp_path):
    config = SelfRewardConfig(**SETTINGS | {"output": str(tmp_path / "run"), "rounds": 1})
    seen: list[object] = []
    quiet = Display(silent=True)

    def trained(resume: bool, stop: bool):
        def on_round(record):
            seen.append(record)
            if stop:
                raise KeyboardInterrupt

        given = (str(tiny), config, write_prompts(tmp_path), write_held_out(tmp_path))
        return SelfRewardTrainer(*given, resume=resume, display=quiet, on_round=on_round).train()

    with pytest.raises(KeyboardInterrupt):
        trained(resume=False, stop=True)
    assert seen == records(tmp_path / "run") and len(seen) == 1  # on disk before it is told
    result = trained(resume=True, stop=False)
    assert seen[1:] == result.records and len(seen) == 3
    figure = result.plot("accuracy")
    assert figure.layout.title.text == "Accuracy"
    greedy = next(trace for trace in figure.data if "greedy" in trace.name)
    assert list(greedy.y) == [record["accuracy_greedy"] for record in result.records]
    assert result.plot().data
    with pytest.raises(UserError, match=r"there is no figure 'x' of .*, expected one of kappa, .*: choose one"):
        result.plot("x")
