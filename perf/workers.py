"""A side of a comparison in a process of its own, which is told what to do through a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


@contextlib.contextmanager
def worker(serve: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A process that runs `serve(pipe, *arguments)` and ends with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
        here.send("stop")
        process.join(30)
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def told(pipe: Connection) -> Any:
    """What the process says next.

    Raises:
        RuntimeError: it ended.
    """
    try:
        return pipe.recv()
    except EOFError:
        msg = "a side's process ended before it answered; its words are above"
        raise RuntimeError(msg) from None
