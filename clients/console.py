"""The two consoles every command prints to: answers to stdout, troubles to stderr."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """Prints one red sentence, as every error of every command looks."""
    err.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)


def warn(message: str) -> None:
    """Prints one yellow sentence on stderr."""
    err.print(f"[yellow]Note:[/] {escape(message)}", soft_wrap=True)
