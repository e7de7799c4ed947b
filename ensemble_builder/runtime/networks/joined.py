"""Several predictions that are under way as one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import torch


def joined(parts: Sequence[Future[torch.Tensor]]) -> Future[torch.Tensor]:
    """Predictions of several windows in order, or the error of one of them."""
    if len(parts) == 1:
        return parts[0]
    whole: Future[torch.Tensor] = Future()
    missing = [len(parts)]
    lock = threading.Lock()

    def one_is_done(_: Future[torch.Tensor]) -> None:
        with lock:
            missing[0] -= 1
            if missing[0]:
                return
        failed = next((error for part in parts if (error := part.exception())), None)
        if failed is not None:
            whole.set_exception(failed)
        else:
            whole.set_result(torch.cat([part.result() for part in parts]))

    for part in parts:
        part.add_done_callback(one_is_done)
    return whole
