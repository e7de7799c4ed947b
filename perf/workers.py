"""A side of a comparison in a process of its own, which is told what to do through a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from ensemble_builder.server.process import THREADS


class PeerFailed(Exception):
    """A side gave nothing; the message has its own last words, or says where they are."""


def same_threads() -> None:
    """Every process started from here on waits for threads as those of our Triton do.

    Call it before torch is imported. The environment may say otherwise, there as here.
    """
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)


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
        PeerFailed: it ended.
    """
    try:
        return pipe.recv()
    except EOFError:
        msg = "a side's process ended before it answered; its words are above"
        raise PeerFailed(msg) from None
