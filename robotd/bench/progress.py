"""Progress on stderr, so that stdout holds the result alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Steps(Protocol):
    """Where a bench says what it is doing; called once per step."""

    def __call__(self, text: str) -> None: ...


def silent(text: str) -> None:
    """Says nothing."""


@contextmanager
def steps(title: str, total: int) -> Iterator[Steps]:
    """A bar of `total` steps; on a terminal only, gone when it is done."""
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=total)

        def step(text: str) -> None:
            bar.update(task, advance=1, description=text)

        yield step
