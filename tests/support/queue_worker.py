"""A process with workers on a queue, for tests that kill it: `a_queue_process(...)`.

Comes in: the index's URL, the store's folder, the lease, how many workers. Goes out: jobs that
are delivered without results. Survives a crash: the index.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dicom_gateway.database import open_database
from dicom_gateway.jobs import JobQueue, JobRun, Worker
from dicom_gateway.records import Result

A_JOB_S = 0.01


def a_queue_process(
    url: str, folder: Path, *, lease_s: float, workers: int
) -> subprocess.Popen[bytes]:
    """Starts one; it works until it is killed."""
    arguments = [url, str(folder), str(lease_s), str(workers)]
    with (folder / "workers.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.queue_worker", *arguments],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )


def _process(run: JobRun) -> Sequence[Result]:
    time.sleep(A_JOB_S)
    return ()


def _main(url: str, folder: str, lease_s: str, workers: str) -> None:
    queue = JobQueue(open_database(url), Path(folder), lease_s=float(lease_s))
    queue.release_own()  # as a gateway does at its start
    threads = [
        threading.Thread(target=Worker(queue, _process, f"worker-{n}").run)
        for n in range(int(workers))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    _main(*sys.argv[1:])
