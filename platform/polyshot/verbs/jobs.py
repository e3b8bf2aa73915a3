"""`polyshot jobs`, `status`, `logs` and `stop`: what became of jobs that were submitted to a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import pandas as pd

from polyshot.cluster.jobs import Job, Jobs


def jobs(address: str | None = None) -> pd.DataFrame:
    """The cluster's jobs as a table, the newest first: job, status, study, verb, started (UTC), seconds, exit_code.

    Raises:
        ResourceError: when no Jobs API answers at `address`, or it does not accept the token.
    """
    rows = [
        {
            "job": job.id,
            "status": job.status,
            "study": job.metadata.get("polyshot.study"),
            "verb": job.metadata.get("polyshot.verb"),
            "started": _utc(job.started) if job.started else None,
            "seconds": None if job.ended is None or job.started is None else round(job.ended - job.started, 1),
            "exit_code": job.exit_code,
        }
        for job in Jobs(address).list()
    ]
    columns = ["job", "status", "study", "verb", "started", "seconds", "exit_code"]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def status(job: str, address: str | None = None) -> Job:
    """How a job stands.

    Raises:
        RunError: when the cluster has no such job.
        ResourceError: as `jobs`.
    """
    return Jobs(address).job(job)


def logs(job: str, address: str | None = None) -> str:
    """All that a job has printed so far. Raises as `status`."""
    return Jobs(address).logs(job)


def follow(job: str, address: str | None = None, *, write: Callable[[str], object] = sys.stdout.write) -> Job:
    """Hand what a job prints to `write` until it has ended; returns how it did. Raises as `status`."""
    return Jobs(address).follow(job, write)


def stop(job: str, address: str | None = None) -> bool:
    """Ask a job to stop, as Ctrl-C would; False when it had ended already. Raises as `status`."""
    return Jobs(address).stop(job)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
