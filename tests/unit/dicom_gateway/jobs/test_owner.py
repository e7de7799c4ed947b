"""Leases of dead processes are taken back at once, and only those."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import is_certainly_dead, this_process
from tests.support.jobs import a_job

_CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from dicom_gateway.database import open_database
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process

queue = JobQueue(open_database(sys.argv[1]), Path(sys.argv[2]))
print(queue.claim(this_process()).job_id, flush=True)
sys.stdin.read()
"""


def test_a_job_of_a_killed_process_is_claimed_again_at_once(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, repository_root: Path
):
    """After kill -9 nobody waits for the lease; while the process lives nobody takes its job."""
    job = a_job(queue, engine, tmp_path)
    url = engine.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", _CLAIM_AND_WAIT, url, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository_root,
    ) as holder:
        assert holder.stdout is not None
        assert job.job_id == holder.stdout.readline().strip()
        assert queue.release_own() == 0
        holder.send_signal(signal.SIGKILL)

    assert queue.release_own() == 1

    again = queue.claim(this_process())
    assert again is not None
    assert (job.job_id, 2) == (again.job_id, again.fence)


def test_a_zombie_counts_as_dead():
    """A killed process whose parent has not waited for it still has an entry in /proc."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1) as one:
        mine = this_process()
        place = mine[: -len(mine.split(":", 3)[3])]
        stat = Path(f"/proc/{one.pid}/stat").read_text(encoding="ascii")
        owner = f"{place}{one.pid}:{stat.rpartition(')')[2].split()[19]}"
        assert not is_certainly_dead(owner)

        one.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)

        assert is_certainly_dead(owner)


def test_a_reused_process_id_is_not_the_old_process():
    """The same pid with another start time is somebody else; the old one is dead."""
    me = this_process()
    place, _, started = me.rpartition(":")

    assert not is_certainly_dead(me)
    assert is_certainly_dead(f"{place}:{int(started) - 1}")


def test_other_hosts_boots_and_containers_are_left_alone():
    """Numbers of another place mean nothing here; there the lease's time decides."""
    host, boot, namespace, pid, _ = this_process().split(":")

    assert not is_certainly_dead(f"other:{boot}:{namespace}:{pid}:1")
    assert not is_certainly_dead(f"{host}:other:{namespace}:{pid}:1")
    assert not is_certainly_dead(f"{host}:{boot}:1:{pid}:1")
    assert not is_certainly_dead(f"{host}:{boot}:{namespace}:nonsense")
    assert len(this_process()) <= 128
