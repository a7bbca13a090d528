"""What a person sees while a run goes on."""

import io
import re

from rich.console import Console

from srlm.console import COLUMNS, Display


def on_screen(display: Display) -> io.StringIO:
    screen = io.StringIO()
    display.console = Console(file=screen, force_terminal=True, width=200, soft_wrap=True)
    return screen


def plain(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_a_stage_is_a_live_bar():
    display = Display()
    screen = on_screen(display)
    display.live = True
    with display.stage("round 1 · update") as report:
        for done in range(1, 5):
            report(done, 4)
    assert "round 1 · update" in plain(screen) and "4/4" in plain(screen)


def test_quiet_leaves_plain_lines_and_silent_nothing(capsys):
    for options, expected in (({"quiet": True}, "done [brackets] stay\n"), ({"silent": True}, "")):
        display = Display(**options)
        with display.stage("round 1 · update") as report:
            report(1, 1)
        display.say("done [brackets] stay")
        assert capsys.readouterr().out == expected


def test_a_row_per_round_under_one_heading():
    display = Display(quiet=True)
    screen = on_screen(display)
    record = {key: 1 if form == "{:d}" else 0.123456 for _, key, form in COLUMNS}
    display.row(record)
    display.row({"round": 2, "loss": None})
    heading, first, second = plain(screen).splitlines()
    assert all(name in heading for name, _, _ in COLUMNS)
    assert len(first.split()) == len(second.split()) == len(COLUMNS)
    assert second.split() == ["2"] + ["–"] * (len(COLUMNS) - 1)
    assert len(heading) == len(first) == len(second)
