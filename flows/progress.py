"""Progress on the terminal: rows done, rows a second, time left. Nothing where nobody looks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that a callback of (done, total) moves; one line with the time taken stays when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    unseen = not console.is_terminal or parent_process() is not None  # several processes would draw over each other
    with Progress(*columns, console=console, transient=True, disable=unseen) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def say(text: str) -> None:
    console.print(text, soft_wrap=True)
