"""`polyshot submit`: any verb that trains, as a job on a Ray cluster.

What a cluster could not do is refused before anything is sent: runs kept where they would be lost, tables that no node
sees, credentials that everybody on the cluster could read. The job runs the same command there, so that submitting it
again goes on with a run that was interrupted.
"""

from __future__ import annotations

import secrets
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from polyshot.cluster.jobs import Job, Jobs
from polyshot.cluster.upload import collect, named_studies, write
from polyshot.errors import Problem, StudyError, TrackingError, did_you_mean
from polyshot.study import Study
from polyshot.tracking.store import DISK, without_credentials

VERBS = ("train", "search", "affinity", "meta", "transfer")


def submit(
    verb: str,
    study_file: str | Path,
    options: Sequence[str] = (),
    *,
    study: Study | None = None,
    address: str | None = None,
    with_data: bool = False,
    cpus: float = 0,
    gpus: float = 0,
) -> Job:
    """Run `polyshot VERB STUDY_FILE OPTIONS…` as a job; returns it as soon as the cluster has accepted it.

    Args:
        options: of the verb, as on its command line.
        study: the study with the values that `options` set, where they set any.
        address: of the cluster's Jobs API (see `cluster.jobs.Jobs`).
        with_data: upload tables that stand beside the study file.
        cpus: for the job's own process, which trains a study of one worker; by default it runs on the head, and keeps
            nothing from trials and workers.
        gpus: the same.

    Raises:
        PolyshotError: for a study that a cluster could not run, an upload that is too large, a cluster that does not
            answer or does not accept the token. Nothing has been sent then.
    """
    if verb not in VERBS:
        raise StudyError(
            [
                Problem(
                    f"submit {verb}", f"is no verb that runs as a job ({', '.join(VERBS)}).{did_you_mean(verb, VERBS)}"
                )
            ]
        )
    file = Path(study_file).resolve()
    study = study or Study.load(file)
    named = named_studies(study) if verb == "transfer" else {}
    for each in (study, *named.values()):
        _require_shared(each)
    command = ["python", "-m", "polyshot", verb, file.name, *options]
    _require_no_credentials([file, *named], command)
    if study.scale.address is not None:  # the cluster is where the job runs
        command += ["--set", "scale.address=auto"]
    files = collect(study, file, named=named, with_data=with_data)
    jobs = Jobs(address)
    name = f"{study.name}-{verb}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="polyshot-job-") as scratch:
        write(files, Path(scratch))
        # `exec`: what stops the job reaches the command itself.
        jobs.submit(f"exec {shlex.join(command)}", Path(scratch), name, _metadata(study, verb), cpus=cpus, gpus=gpus)
    return jobs.job(name)


def _metadata(study: Study, verb: str) -> dict[str, str]:
    return {"polyshot.study": study.name, "polyshot.verb": verb}


def _require_shared(study: Study) -> None:
    """Refuse a study whose runs would end with the job's folder on one of the nodes."""
    problems = []
    if "://" not in study.storage and not Path(study.storage).expanduser().is_absolute():
        problems.append(
            Problem(
                "storage",
                f"'{study.storage}' is relative, and would be lost with the job's folder; give an absolute path that "
                "all nodes share, or an object store's address, in the study or by --set storage=/shared/polyshot-runs",
            )
        )
    uri = study.tracking.uri or ""
    if uri.startswith(DISK) and not Path(uri.removeprefix(DISK)).expanduser().is_absolute():
        problems.append(
            Problem("tracking.uri", f"'{uri}' is relative, and would be lost with the job's folder; give {DISK}/PATH")
        )
    if problems:
        raise StudyError(problems)


def _require_no_credentials(files: Sequence[Path], command: Sequence[str]) -> None:
    said = {str(file): file.read_text(encoding="utf-8") for file in files} | {"the options": shlex.join(command)}
    for place, text in said.items():
        if without_credentials(text) == text:
            continue
        raise TrackingError(
            f"{place}: holds an address with a user or a password, which everybody on the cluster could read; leave "
            "them out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the nodes' Ray is started"
        )
