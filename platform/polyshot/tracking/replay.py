"""Events put into MLflow: each run once, each point once, in order, whatever was cut short before.

Called by the writer process and by `polyshot sync`; it reads spools, and every request that it makes may be repeated
without a second effect.
"""

from __future__ import annotations

import getpass
import json
import logging
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
from mlflow.entities import LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from polyshot.errors import TrackingError
from polyshot.tracking import spool as files
from polyshot.tracking.spool import Event, State
from polyshot.tracking.store import Store
from polyshot.tracking.view import saved_view

KEY_TAG, SPOOL_TAG, EVENT_TAG = "polyshot.key", "polyshot.spool", "polyshot.event"
CHUNK_BYTES = 1 << 18  # of events between two notes of how far the writer has come: some thousand points
PARAM_LIMIT, TAG_LIMIT = 6000, 8000  # characters that MLflow takes
CUT = " … (cut)"
MENDABLE = (401, 403, 408, 429)  # answers of a server that is to be configured otherwise, or asked later

# Tells the UI that runs train models; it would guess otherwise, and may take them for those of language models.
_OF_MODELS = {"mlflow.experimentKind": "custom_model_development"}

log = logging.getLogger(__name__)


@dataclass
class _Batch:
    """What waits to be logged to one run in one request."""

    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Replay:
    """Brings the spools of one folder to one experiment of one store; its state is in the folder's state file."""

    def __init__(self, folder: Path, store: Store):
        """
        Raises:
            TrackingError, MlflowException: when the store cannot be used now.
        """
        self.folder = folder
        self.state = State.load(folder)
        self._client = MlflowClient(store.uri)
        self._server = store.is_server
        self._spool_id = files.identity(folder)["id"]
        experiment_id = self._experiment(store)
        if experiment_id != self.state.experiment_id:  # another store under the same address: it has none of our runs
            self.state.experiment_id = experiment_id
            self.state.runs = {}
        self._batches: dict[str, _Batch] = {}
        self._steps: dict[tuple[str, str], set[int]] = {}
        self._refused: set[tuple[str, str]] = set()

    def _experiment(self, store: Store) -> str:
        experiment = self._client.get_experiment_by_name(store.experiment)
        if experiment is None:
            location = None if self._server else str(store.artifacts)
            try:
                return str(
                    self._client.create_experiment(store.experiment, artifact_location=location, tags=_OF_MODELS)
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(store.experiment)  # somebody was faster
        if experiment is None or experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"tracking.experiment: '{store.experiment}' was deleted in MLflow; restore it there or name another"
            )
        return str(experiment.experiment_id)

    # --- spools ------------------------------------------------------------------------------------------------------

    def chunk(self, spool: Path) -> int:
        """Replay the next events of a spool, return how many, and note how far it is."""
        offset = self.state.offsets.get(spool.name, 0)
        events, end = files.read_events(spool, offset, CHUNK_BYTES)
        if not events:
            return 0
        self._batches, self._refused = {}, set()
        for place, event in events:
            if event is None:
                log.warning("%s: a broken line at byte %d was skipped", spool.name, place)
                continue
            self._try(event, f"{spool.name}:{place}")
        self._flush()
        self.state.offsets[spool.name] = end
        if self._refused:
            self.state.rejected[spool.name] = self.state.rejected.get(spool.name, 0) + len(self._refused)
        self.state.save(self.folder)
        return len(events)

    def finish(self, spool: Path) -> None:
        """Clear away a spool whose producer has gone and whose events are all in MLflow."""
        self._end_the_unended(spool)
        self._delete_doubles()
        there = {other.name for other in files.spools(self.folder)}
        self.state.offsets = {name: end for name, end in self.state.offsets.items() if name in there}
        self.state.save(self.folder)
        files.delete(spool)

    def _end_the_unended(self, spool: Path) -> None:
        running: set[str] = set()
        last = 0
        for _, event in files.read_events(spool, 0, spool.stat().st_size)[0]:
            if event is None:
                continue
            last = event["time"]
            if event["event"] == "start":
                running.add(event["key"])
            elif event["event"] == "end":
                running.discard(event["key"])
        for key in running:
            self._try({"event": "end", "key": key, "time": last, "status": "KILLED"}, "")

    def _delete_doubles(self) -> None:
        """A creation that timed out may have been carried out after we had asked whether it was."""
        for key in list(self.state.uncertain):
            for run in self._find_all(key):
                if run.info.run_id != self.state.runs.get(key):
                    self._client.delete_run(run.info.run_id)
            self.state.uncertain.remove(key)

    # --- events ------------------------------------------------------------------------------------------------------

    def _try(self, event: Event, place: str) -> None:
        """Replay an event; what MLflow refuses for good is logged and left out, what may pass later is raised."""
        try:
            self._replay(event, place)
        except Exception as error:
            if not self._is_final(error):
                raise
            self._refuse(event["key"], event["event"], error)

    def _replay(self, event: Event, place: str) -> None:
        key, kind = event["key"], event["event"]
        if kind in ("metrics", "params", "tags"):
            self._collect(event)
            return
        self._flush(key)
        if kind == "start":
            self._start(event)
        elif kind == "end":
            self._client.set_terminated(self._run_id(key), status=event["status"], end_time=event["time"])
            if key in self.state.reopened:
                self.state.reopened.remove(key)
        elif kind == "artifact":
            source, target = self.folder / event["file"], event["folder"] or None
            if source.is_dir():
                folder = "/".join(filter(None, [target, source.name]))
                self._client.log_artifacts(self._run_id(key), str(source), folder)
            else:
                self._client.log_artifact(self._run_id(key), str(source), target)
        elif kind == "model":
            self._log_model(self._run_id(key), self.folder / event["file"], place)
        elif kind == "view":
            tag = saved_view(
                event["name"],
                self._run_id(key),
                event["metrics"],
                event["params"],
                ascending=event["ascending"],
                time=event["time"],
            )
            self._client.set_experiment_tag(self.state.experiment_id, *tag)

    def _start(self, event: Event) -> None:
        key = event["key"]
        run_id = self.state.runs.get(key) or self._find(key)
        if run_id is not None:
            try:
                self._client.update_run(run_id, status="RUNNING", name=event["name"])
                if key not in self.state.reopened:
                    self.state.reopened.append(key)
                for known in [known for known in self._steps if known[0] == key]:
                    del self._steps[known]
            except MlflowException as error:
                if not self._is_final(error):
                    raise
                run_id = None  # deleted in MLflow
        if run_id is None:
            run_id = self._create(
                key, event["name"], event["tags"].get("polyshot.kind", "polyshot"), event["time"], event["parent"]
            )
        self.state.runs[key] = run_id
        self._collect(event | {"event": "tags", "values": event["tags"]})
        self._collect(event | {"event": "params", "values": event["params"]})

    def _create(self, key: str, name: str, kind: str, time: int, parent: str | None) -> str:
        tags = {
            KEY_TAG: key,
            SPOOL_TAG: self._spool_id,
            "mlflow.user": _user(),
            "mlflow.source.name": kind,  # a column that everybody sees
            "mlflow.source.type": "LOCAL",
        }
        if parent is not None:
            tags["mlflow.parentRunId"] = self._run_id(parent)
        try:
            run = self._client.create_run(self.state.experiment_id, start_time=time, tags=tags, run_name=name)
        except Exception:
            if key not in self.state.uncertain:
                self.state.uncertain.append(key)
            raise
        return str(run.info.run_id)

    def _run_id(self, key: str) -> str:
        """The run of a key; where its start is not known any more, the run that carries the key, or a bare new one."""
        if key not in self.state.runs:
            self.state.runs[key] = self._find(key) or self._create(key, key, "polyshot", 0, None)
        return self.state.runs[key]

    def _find(self, key: str) -> str | None:
        runs = self._find_all(key)
        return str(min(runs, key=lambda run: run.info.start_time).info.run_id) if runs else None

    def _find_all(self, key: str) -> list[Run]:
        return list(
            self._client.search_runs(
                [self.state.experiment_id], f"tags.`{KEY_TAG}` = '{key}' AND tags.`{SPOOL_TAG}` = '{self._spool_id}'"
            )
        )

    # --- metrics, parameters and tags --------------------------------------------------------------------------------

    def _collect(self, event: Event) -> None:
        batch = self._batches.setdefault(event["key"], _Batch())
        for name, value in event["values"].items():
            if event["event"] == "metrics":
                if not self._is_repeated(event["key"], name, event["step"]):
                    batch.metrics.append(Metric(name, value, event["time"], event["step"]))
            elif event["event"] == "tags":
                batch.tags[name] = _cut(value, TAG_LIMIT)
            elif batch.params.setdefault(name, _cut(value, PARAM_LIMIT)) != _cut(value, PARAM_LIMIT):
                self._refuse(event["key"], f"parameter {name}", "a parameter keeps its first value")

    def _is_repeated(self, key: str, name: str, step: int) -> bool:
        """Whether a run that was taken up again repeats a step that it had logged (from its last checkpoint on)."""
        if step <= 0 or key not in self.state.reopened:
            return False
        if (key, name) not in self._steps:
            history = self._client.get_metric_history(self._run_id(key), name)
            self._steps[key, name] = {metric.step for metric in history}
        return step in self._steps[key, name]

    def _flush(self, only: str | None = None) -> None:
        for key in [only] if only is not None else list(self._batches):
            batch = self._batches.pop(key, None)
            if batch is not None:
                items: list[Metric | Param | RunTag] = [*batch.metrics]
                items += [Param(*param) for param in batch.params.items()]
                items += [RunTag(*tag) for tag in batch.tags.items()]
                self._log(key, self._run_id(key), items)

    def _log(self, key: str, run_id: str, items: list[Metric | Param | RunTag]) -> None:
        """Log the items; where MLflow refuses, halve until it is clear which of them it does not take."""
        if not items:
            return
        try:
            self._client.log_batch(
                run_id,
                metrics=[item for item in items if isinstance(item, Metric)],
                params=[item for item in items if isinstance(item, Param)],
                tags=[item for item in items if isinstance(item, RunTag)],
                synchronous=True,
            )
        except MlflowException as error:
            too_large = error.get_http_status_code() == 413
            if not (self._is_final(error) or too_large):
                raise
            if len(items) == 1 or error.error_code == "RESOURCE_DOES_NOT_EXIST":
                for item in items:
                    self._refuse(key, f"{type(item).__name__.lower()} {item.key}", error)
                return
            half = len(items) // 2
            self._log(key, run_id, items[:half])
            self._log(key, run_id, items[half:])

    # --- models ------------------------------------------------------------------------------------------------------

    def _log_model(self, run_id: str, folder: Path, place: str) -> None:
        """Log a model folder as a pyfunc model; its files are written here, so that no model is loaded to log it."""
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.models import Model, ModelSignature

        experiments = [self.state.experiment_id]
        for model in self._client.search_logged_models(experiments, f"source_run_id = '{run_id}'"):
            if model.tags.get(EVENT_TAG) == place:
                if str(model.status) == "READY":
                    return
                self._client.delete_logged_model(model.model_id)  # was cut short
        signature_file, example_file = folder / "signature.json", folder / "input_example.json"
        signature = ModelSignature.from_dict(_read_json(signature_file)) if signature_file.exists() else None
        example = pd.DataFrame(**_read_json(example_file)) if signature and example_file.exists() else None
        logged = self._client.create_logged_model(
            self.state.experiment_id, name="model", source_run_id=run_id, tags={EVENT_TAG: place}
        )
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model"
            mlflow.pyfunc.save_model(
                path,
                loader_module="polyshot.saved_model",
                data_path=str(folder),
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    model_uuid=logged.model_id,
                    run_id=run_id,
                    model_id=logged.model_id,
                ),
                signature=signature,
                input_example=example,
                pip_requirements=[f"polyshot=={version('polyshot')}"],
            )
            self._client.log_model_artifacts(logged.model_id, str(path))
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._client.finalize_logged_model(logged.model_id, "READY")

    # --- what MLflow refuses -----------------------------------------------------------------------------------------

    def _is_final(self, error: Exception) -> bool:
        """Whether the same request would be refused again, however long one waited."""
        if isinstance(error, MlflowException):
            spoke = isinstance(error, RestException) or not self._server  # else a proxy, or nobody
            status = error.get_http_status_code()
            return spoke and 400 <= status < 500 and status not in MENDABLE
        if isinstance(error, requests.RequestException):
            response = error.response
            status = 0 if response is None else response.status_code
            return 400 <= status < 500 and status not in MENDABLE
        if isinstance(error, OSError):
            return isinstance(error, FileNotFoundError)
        return True

    def _refuse(self, key: str, what: str, why: object) -> None:
        self._refused.add((key, what))
        log.warning("run %s: %s was refused by MLflow: %s", key, what, str(why).strip().splitlines()[0])


def _cut(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - len(CUT)] + CUT


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
