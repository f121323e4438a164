"""Where nothing can be redrawn, work is told of in plain lines."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from sdbench.study.progress import progress_bar


def piped(**options):
    return Console(file=io.StringIO(), force_terminal=False, width=40, **options)


def told(total, *, done=0, by=1, console=None):
    """The lines of some work, counted from `done` in strides."""
    console = console or piped()
    with progress_bar(console=console) as progress:
        task = progress.add_task("running", total=total, completed=done, what="")
        for count in range(done, total, by):
            progress.update(task, what=f"call [{count}]")
            progress.advance(task, min(by, total - count))
    return console.file.getvalue().splitlines()


def counts(lines):
    return [int(re.match(r"running (\d+)/", line)[1]) for line in lines]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (27, [0, 3, 6, 9, 11, 14, 17, 19, 22, 25, 27]),
        (1000, [*range(0, 1001, 100)]),
        (10, [*range(11)]),
        (3, [0, 1, 2, 3]),
        (1, [0, 1]),
        (0, [0]),
    ],
)
def test_a_line_at_the_start_and_one_per_tenth(total, expected):
    assert counts(told(total)) == expected


def test_fewer_than_ten_calls_have_a_line_each():
    for total in range(1, 10):
        assert len(told(total)) == 1 + total


def test_a_resumed_study_starts_at_its_share():
    assert counts(told(20, done=13)) == [13, 14, 16, 18, 20]


def test_work_that_grows_is_told_of_in_tenths_of_the_whole():
    console = piped()
    with progress_bar(console=console) as progress:
        task = progress.add_task("running", total=4, completed=0, what="")
        for _ in range(4):
            progress.advance(task)
        progress.update(task, total=8, completed=4, description="running, widest ±3.1")
        for _ in range(4):
            progress.advance(task)
    lines = console.file.getvalue().splitlines()
    assert lines[5] == "running, widest ±3.1 4/8"
    assert [line.split(",")[1].split()[-1] for line in lines[6:]] == ["5/8", "6/8", "7/8", "8/8"]


def test_a_finished_study_is_told_of_once():
    assert told(20, done=20) == ["running 20/20"]


def test_a_jump_over_several_tenths_is_one_line():
    assert counts(told(100, by=45)) == [0, 45, 90, 100]


def test_a_count_that_is_set_is_told_of_too():
    console = piped()
    with progress_bar(console=console) as progress:
        task = progress.add_task("distilling", total=20, completed=10, what="")
        for step in range(10, 20):
            progress.update(task, completed=step + 1, what=f"loss {step}")
    lines = console.file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"distilling {step}/20" for step in (10, 12, 14, 16, 18, 20)
    ]
    assert lines[-1].endswith("loss 19")


def test_a_line_holds_the_time_taken_and_left_and_what_runs():
    lines = told(5)
    assert lines[0] == "running 0/5"
    assert re.fullmatch(r"running 2/5, \d:\d\d:\d\d, \d:\d\d:\d\d left, call \[1\]", lines[2])


def test_what_was_done_before_takes_no_time(monkeypatch):
    console = piped()
    times = iter([0.0])
    with progress_bar(console=console) as progress:
        monkeypatch.setattr(progress, "get_time", lambda: next(times, 60.0))
        progress.advance(progress.add_task("running", total=10, completed=8, what=""))
    assert "running 9/10, 0:01:00, 0:01:00 left\n" in console.file.getvalue()


def test_a_line_is_neither_broken_nor_coloured():
    lines = told(2, console=Console(file=io.StringIO(), force_terminal=False, width=10))
    assert len(lines) == 3
    assert not re.search(r"[\x00-\x1f]", "".join(lines))


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TERM"])
def test_a_log_that_takes_colours_but_no_cursor_has_lines(monkeypatch, variable):
    monkeypatch.setenv(variable, "dumb")
    terminal = None if variable == "FORCE_COLOR" else True
    lines = told(2, console=Console(file=io.StringIO(), force_terminal=terminal))
    assert counts(lines) == [0, 1, 2]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    lines = told(3, console=Console(file=io.StringIO(), force_terminal=True))
    assert "\x1b[" in "".join(lines)
    assert "━" in "".join(lines)


def test_a_notebook_has_a_bar():
    console = Console(file=io.StringIO(), force_jupyter=True)
    assert len(progress_bar(console=console).columns) > 1
    assert progress_bar(console=console).disable is False


def test_what_is_disabled_is_silent():
    console = piped()
    with progress_bar(console=console, disable=True) as progress:
        progress.advance(progress.add_task("running", total=1, what=""))
    assert console.file.getvalue() == ""


COMMAND = """
from sdbench.study.progress import progress_bar
with progress_bar() as progress:
    task = progress.add_task("running", total=2, what="")
    progress.advance(task)
    input()
"""


def test_a_pipe_gets_each_line_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    early = [process.stdout.readline() for _ in range(2)]  # it waits for input meanwhile
    assert process.poll() is None
    late, _ = process.communicate("\n")
    assert [line.split(",")[0].strip() for line in early] == ["running 0/2", "running 1/2"]
    assert late == ""
