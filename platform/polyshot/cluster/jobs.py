"""The jobs of a Ray cluster, through the Jobs API of its head: submitted, looked at, followed and stopped.

Called by the verbs `submit`, `status`, `logs`, `stop` and `jobs`. It knows nothing of studies. A token is taken from
where Ray takes it (RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from polyshot.errors import ResourceError, RunError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own variable for the address of the Jobs API
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CONNECT_SECONDS = 5.0
_RECONNECT_SECONDS = 2.0
_RECONNECTS = 30  # in a row: a minute, and the time that each attempt takes
_STOPPED = 130  # as a command that Ctrl-C has ended
# A job is stopped as by Ctrl-C, so that it ends its runs and says that it can go on; after these seconds it is killed.
_STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it.

    Attributes:
        status: pending, running, succeeded, failed or stopped.
        metadata: what was submitted with it.
        started, ended: Unix seconds.
        exit_code: of the command once it has ended by itself: 0, 2 for what the user can mend, 1 for a fault of ours or
            a node's; 130 for a job that was stopped.
        message: how far it is, or why it failed, in one line, as long as its command has not ended.
    """

    id: str
    status: str
    command: str
    metadata: Mapping[str, str]
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str


class Jobs:
    """The jobs of the cluster whose head answers at `address`."""

    def __init__(self, address: str | None = None):
        """
        Args:
            address: `http://HOST:8265`; by default the environment's RAY_API_SERVER_ADDRESS, else this machine's.

        Raises:
            ResourceError: when no Jobs API answers there, or it does not accept the token.
        """
        place = "--address" if address else ADDRESS if os.environ.get(ADDRESS) else "--address (the default)"
        self.address = address or os.environ.get(ADDRESS) or _DEFAULT_ADDRESS
        _knock(self.address, place)
        self._client = _connect(self.address, place)

    def submit(
        self, command: str, folder: Path, job: str, metadata: Mapping[str, str], *, cpus: float = 0, gpus: float = 0
    ) -> None:
        """Upload `folder`, and run `command` in a copy of it on the cluster, as the job of the name `job`.

        Args:
            cpus, gpus: kept for the command's own process, on a node that has them; without any, it runs on the head.

        Raises:
            ResourceError: when the cluster does not take it.
        """
        with self._asking(job):
            self._client.submit_job(
                entrypoint=command,
                submission_id=job,
                metadata=dict(metadata),
                runtime_env={"working_dir": str(folder), "env_vars": _STOPPING},
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )

    def job(self, job: str) -> Job:
        """
        Raises:
            RunError: when the cluster has no such job.
        """
        with self._asking(job):
            return _job(self._client.get_job_info(job))

    def list(self) -> list[Job]:
        """The cluster's jobs, the newest first; not the programs that joined it without being submitted."""
        with self._asking("jobs"):
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)

    def logs(self, job: str) -> str:
        """All that the job has printed.

        Raises:
            RunError: when the cluster has no such job.
        """
        with self._asking(job):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, write: Callable[[str], object]) -> Job:
        """Hand what the job prints to `write` as it comes, each character once, until the job has ended.

        A connection that breaks is made again.

        Raises:
            RunError: when the cluster has no such job.
            ResourceError: when the head does not answer any more.
        """
        output = _Once(write)
        failures = 0
        while True:
            try:
                found = self.job(job)
                if found.exit_code is not None:
                    output.take_all(self.logs(job))
                    return found
                with self._asking(job):
                    asyncio.run(self._tail(job, output))
            except ResourceError:
                failures += 1
                if failures > _RECONNECTS:
                    raise
                time.sleep(_RECONNECT_SECONDS)
            else:
                failures = 0
                time.sleep(0.2)  # that a job has ended is noted a little after its last line

    def stop(self, job: str) -> bool:
        """Ask the job to stop, as Ctrl-C would; False when it had ended already.

        Raises:
            RunError: when the cluster has no such job.
        """
        with self._asking(job):
            return bool(self._client.stop_job(job))

    async def _tail(self, job: str, output: _Once) -> None:
        text = ""
        async for more in self._client.tail_job_logs(job):
            text += more
            output.take_all(text)

    @contextmanager
    def _asking(self, job: str) -> Iterator[None]:
        """What a request can come to, in our words."""
        import aiohttp
        import requests

        try:
            yield
        except RuntimeError as error:
            if "status code 404" in str(error):
                raise RunError(
                    f"{job}: the cluster at {self.address} has no such job; `polyshot jobs` lists them"
                ) from None
            raise ResourceError(f"{job}: the cluster at {self.address} refuses ({_first_line(error)})") from error
        except (OSError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
            raise ResourceError(
                f"{job}: the cluster at {self.address} does not answer any more ({_first_line(error)}); see that its "
                "head runs, then ask again"
            ) from error


class _Once:
    """Writes each character of a growing text once, over connections that each begin with the first."""

    def __init__(self, write: Callable[[str], object]):
        self._write = write
        self._count = 0

    def take_all(self, text: str) -> None:
        if new := text[self._count :]:
            self._write(new)
            self._count = len(text)


def _job(details: JobDetails) -> Job:
    status = details.status.value.lower()
    code = {"succeeded": 0, "stopped": _STOPPED}.get(status)
    if status == "failed":
        # Killed by a signal (a negative code), or never begun: whatever it was, the study is not at fault.
        code = details.driver_exit_code if (details.driver_exit_code or 0) > 0 else 1
    return Job(
        id=str(details.submission_id),
        status=status,
        command=details.entrypoint,
        metadata=details.metadata or {},
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=code,
        message=(details.message or "").partition("\n")[0] if details.driver_exit_code is None else "",
    )


def _knock(address: str, place: str) -> None:
    """See within seconds whether anyone listens, where Ray's client would wait without an end."""
    parts = urlsplit(address)
    mend = "give http://HOST:8265, the dashboard's address on the head (`ray dashboard cluster.yaml` brings it here)"
    try:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ResourceError(f"{place}: '{address}' is no address of a cluster's Jobs API; {mend}")
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ResourceError(f"{place}: nothing answers at {address} ({error}); start the cluster, or {mend}") from None


def _connect(address: str, place: str) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _only(address):
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:
            raise ResourceError(
                f"{place}: the cluster at {address} does not accept the token; set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN or a file (RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) with the cluster's token"
            ) from None
        except (RuntimeError, OSError) as error:
            raise ResourceError(
                f"{place}: what answers at {address} is no Ray head with a Jobs API ({_first_line(error)}); give "
                "http://HOST:8265, the dashboard's address"
            ) from error


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray would have RAY_ADDRESS go before the address that it is given."""
    before = {name: os.environ.get(name) for name in (ADDRESS, "RAY_ADDRESS")}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ[ADDRESS] = address
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
