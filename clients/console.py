"""The two consoles every command prints to: answers to stdout, troubles to stderr."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """Prints one red sentence, as every error of every command looks."""
    err.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)


def warn(message: str) -> None:
    """Prints one yellow sentence on stderr."""
    err.print(f"[yellow]Note:[/] {escape(message)}", soft_wrap=True)


class _PlainTable(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        """Texts stand as they are: a title may have brackets, and so may what a peer says."""
        super().add_row(*(Text(one) if isinstance(one, str) else one for one in cells), **options)


def plain_table(*columns: str) -> Table:
    """A table without lines and without markup; long cells are folded."""
    table = _PlainTable(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
