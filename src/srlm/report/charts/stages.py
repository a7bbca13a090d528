"""What the stages of a round took, and the loss of its update."""

from __future__ import annotations

from srlm.report.charts.chart import Chart, Series
from srlm.report.charts.curves import lines_of, rounds_of
from srlm.report.charts.legend import colour_of, named
from srlm.report.folders import Folder
from srlm.report.text import listed, number


def loss(runs: list[Folder]) -> Chart:
    series = []
    for i, run in enumerate(runs):
        values = [number(v) for t in sorted(run.stages) for v in listed(run.stages[t].get("loss"))]
        steps = list(range(1, len(values) + 1))
        series.append(Series(named(runs, run, "loss"), steps, values, **colour_of(runs, i, 0)))
    caption = "Mean loss of each optimiser step, all rounds in a row; every round has targets of its own."
    return Chart("loss", "Loss", caption, "optimiser step", "loss (nats²)", series, kind="step")


def timings(runs: list[Folder]) -> list[Chart]:
    if len(runs) > 1:
        total = lines_of(runs, (("seconds", "all stages"),))
        return [Chart("seconds", "Time", "All stages of a round.", "round", "seconds", total)]
    run = runs[0]
    prefix, speed = "seconds_", "tokens_per_second_"
    keys = dict.fromkeys(key.removeprefix(prefix) for r in run.records for key in r if key.startswith(prefix))
    bars, speeds = [], []
    for i, key in enumerate(keys):
        name = key.replace("_", " ")
        bars.append(Series(name, rounds_of(run), [number(r.get(prefix + key)) for r in run.records], colour=i))
        speeds.append(Series(name, rounds_of(run), [number(r.get(speed + key)) for r in run.records], colour=i))
    return [
        Chart(
            "seconds",
            "Time by stage",
            "The update is the one that made the round's model.",
            "round",
            "seconds",
            bars,
            "bar",
        ),
        Chart("speed", "Speed by stage", "Tokens of responses, prompts not counted.", "round", "tokens/s", speeds),
    ]
