"""How far long work has come: a bar in a terminal and in a notebook, elsewhere a line per tenth."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SHARES = 10  # of the work, each of which has its line


def progress_bar(*, console: Console | None = None, disable: bool = False) -> Progress:
    """Shows the work done and the time taken and left, and a field `what` for what is running.

    Args:
        console: where it is shown; the process's own when not given.
        disable: show nothing.
    """
    console = console or get_console()
    if not disable and not _can_redraw(console):
        return _Lines(console)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[what]}", markup=False),  # a variant may name a file in brackets
        console=console,
        disable=disable,
        refresh_per_second=2,  # in a notebook each refresh is a message
    )


def _can_redraw(console: Console) -> bool:
    """Whether a bar can be drawn over: not in a file, a pipe or a terminal without cursor."""
    if console.is_jupyter:
        return True
    if not console.is_terminal or console.is_dumb_terminal:
        return False
    # These pass a log off as a terminal, since it is to have colours.
    is_forced = any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return console.file.isatty() or not is_forced


class _Lines(Progress):
    """A plain line when the work begins, and one whenever another share of it is done."""

    def __init__(self, console: Console) -> None:
        """Draw nothing: rich only keeps the counts and the time."""
        super().__init__(console=console, disable=True)
        self._began_at: dict[TaskID, float] = {}
        self._shares_told: dict[TaskID, int] = {}

    def add_task(self, *args: Any, **options: Any) -> TaskID:
        """Begin some work, of which a part may be done already."""
        added = super().add_task(*args, **options)
        task = self._tasks[added]
        self._began_at[added] = task.completed
        self._shares_told[added] = _share(task)
        self._tell(_counts(task))
        return added

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count what was done."""
        super().advance(task_id, advance)
        self._tell_share(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change what is known of the work; where there is more of it, shares are of the whole."""
        task = self._tasks[task_id]
        total = task.total
        super().update(task_id, **changes)
        if task.total == total:
            self._tell_share(task_id)
        else:
            self._shares_told[task_id] = _share(task)
            self._tell(_counts(task))

    def _tell_share(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if _share(task) <= self._shares_told[task_id]:
            return
        self._shares_told[task_id] = _share(task)

        # What was done before this run took none of its time.
        taken_s = task.elapsed or 0.0
        left_s = taken_s * (task.remaining or 0) / (task.completed - self._began_at[task_id])
        times = f"{_duration(taken_s)}, {_duration(left_s)} left"
        parts = [_counts(task), times, task.fields["what"]]
        self._tell(", ".join(filter(None, parts)))

    def _tell(self, line: str) -> None:
        """Write a line at once, whatever its width."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _share(task: Task) -> int:
    """How many shares of the work are done."""
    return int(SHARES * task.completed / task.total) if task.total else SHARES


def _counts(task: Task) -> str:
    return f"{task.description} {task.completed:.0f}/{task.total:.0f}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
