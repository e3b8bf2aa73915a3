"""Training under Ray Train: data-parallel workers, and a run that outlives the death of any of them.

Called by the verbs, inside a Ray session of theirs, when a study asks for more workers than one process. `distribute`
does it for anything that trains in epochs, `train_distributed` for multi-task learning. The workers and the driver meet
in the run's folder, which all nodes must see: checkpoints, finished epochs and the request to stop are files there, the
checkpoint being the same one that a run without Ray writes and resumes. It logs nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polyshot import working_copy
from polyshot.data.prepare import TrainingData
from polyshot.errors import PolyshotError, ResourceError, RunError
from polyshot.models.multitask import build_model
from polyshot.run_folder import write_json
from polyshot.study import Study
from polyshot.training.checkpoint import load_checkpoint, save_checkpoint
from polyshot.training.loop import Epoch, TrainingRun, check_precision
from polyshot.training.processor import use_processor
from polyshot.training.world import World

CHECKPOINT = "checkpoint.pt"
_POLL_SECONDS = 0.2
_STORE_SECONDS = 5.0  # between two looks into an object store


class DistributedRun(Protocol):
    """A training by the workers of `world`, which all see the same epochs and take the same decisions."""

    study: Study
    world: World
    device: torch.device

    @property
    def finished(self) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Run = TypeVar("Run", bound=DistributedRun)


@dataclass(frozen=True)
class Work(Generic[Run]):
    """What the workers are to do; it is pickled, and sent to each of them.

    Attributes:
        begin: (study, data, device, world) → a run that has not begun.
        parts: goes on with a run from where it stands, in parts after each of which it can be stopped and its state
            saved; gives the epoch that a part has ended, if it has.
        data: what the run is made from, beside the study.
    """

    begin: Callable[[Study, Any, torch.device, World], Run]
    parts: Callable[[Run], Iterator[Epoch | None]]
    data: Any


def train_distributed(
    study: Study, prepared: TrainingData, folder: Path, *, on_epoch: Callable[[Epoch], None]
) -> dict[str, Any]:
    """Multi-task training with `scale.workers` workers; see `distribute`.

    Raises:
        PolyshotError: as `distribute`, and for a model that cannot be built.
    """
    check_precision(study, "cuda" if _use_gpu(study) else "cpu")
    build_model(study, prepared.inputs, prepared.targets)  # a model that cannot be built fails here
    return distribute(study, Work(_multi_task, TrainingRun.epochs, prepared), folder, on_epoch=on_epoch)


def _multi_task(study: Study, prepared: TrainingData, device: torch.device, world: World) -> TrainingRun:
    def wrap(model: nn.Module) -> nn.Module:
        # Buffers are averaged by the loop, once an epoch.
        return model if world.size == 1 else DistributedDataParallel(model, forward_sync_buffers=False)

    shard = study.scale.shard and world.size > 1
    return TrainingRun(
        study, prepared, device=device, world=world, wrap=(lambda model: model) if shard else wrap, shard=shard
    )


def distribute(study: Study, work: Work[Any], folder: Path, *, on_epoch: Callable[[Epoch], None]) -> dict[str, Any]:
    """Do `work` with `scale.workers` workers; returns the run's state at its end, with its tensors on the CPU.

    Goes on from the checkpoint in `folder` where there is one: after the death of a worker by itself, at most
    `scale.max_failures` times, after that of the driver when it is called again.

    Args:
        folder: the run's, on a file system that all nodes share.
        on_epoch: called in the caller's thread with each epoch of the run once, in order, also over restarts. When it
            raises, or Ctrl-C arrives, training stops after the part at hand and can be resumed.

    Raises:
        ResourceError: when the cluster cannot hold the workers; nothing has been started then.
        RunError: when a checkpoint cannot be written or read, or workers die more often than `scale.max_failures`.
    """
    check_resources(study)
    use_gpu = _use_gpu(study)
    meeting = Meeting(folder.resolve())
    meeting.path.mkdir(parents=True, exist_ok=True)
    working_copy.remove(meeting.stop)
    working_copy.settle()
    telling = _Telling(meeting, on_epoch)
    node = ray.get_runtime_context().get_node_id()
    job = {"study": study, "work": ray.put(work), "meeting": meeting, "use_gpu": use_gpu, "node": node}
    fit = _in_thread(_trainer(study, use_gpu, meeting.path, job).fit)
    try:
        looked = time.monotonic()
        while not fit.done():
            if time.monotonic() - looked >= _STORE_SECONDS:
                working_copy.has(meeting.epochs, over=False)
                looked = time.monotonic()
            telling.tell_new()
            wait([fit], timeout=_POLL_SECONDS)
    except BaseException:
        meeting.stop.touch()
        working_copy.push(meeting.stop)
        wait([fit])
        raise
    fault = outcome(fit, study)
    if fault is not None:
        raise fault
    state = load_checkpoint(meeting.checkpoint)
    if state is None:
        raise RunError(f"{meeting.path}: the workers' checkpoint is not here; give a storage that all nodes share")
    telling.tell([Epoch(**epoch) for epoch in state["history"]])
    return state


# --- the driver ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting:
    """The files through which the driver and the workers of a run exchange what they have to say.

    Where nodes share an object store and no folder, each has them in its working copy, and looks there now and then.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def epochs(self) -> Path:
        """A line of JSON for each finished epoch; some twice, where a worker died between two checkpoints."""
        return self.path / "epochs.jsonl"

    @property
    def told(self) -> Path:
        """The number of the last epoch that `on_epoch` was called with."""
        return self.path / "epochs-told.json"

    @property
    def stop(self) -> Path:
        """Is there when the workers are to stop."""
        return self.path / "stop"

    @property
    def here(self) -> Meeting:
        """The same on this node."""
        return Meeting(working_copy.here(self.path))


class _Telling:
    """Calls `on_epoch` with each epoch once, in order, over all the lives of workers and driver."""

    def __init__(self, meeting: Meeting, on_epoch: Callable[[Epoch], None]):
        self._meeting = meeting
        self._on_epoch = on_epoch
        self._read = 0  # bytes of the file of epochs
        if meeting.told.exists():
            self._told = json.loads(meeting.told.read_text(encoding="utf-8"))
        else:  # a run that began without Ray has told what its checkpoint holds, and left no note of it
            state = load_checkpoint(meeting.checkpoint)
            self._told = len(state["history"]) if state else 0

    def tell_new(self) -> None:
        """Tell the epochs that have been written since the last call."""
        if not self._meeting.epochs.exists():
            return
        if self._meeting.epochs.stat().st_size < self._read:  # brought here anew, from a worker that died
            self._read = 0
        with self._meeting.epochs.open("rb") as file:
            file.seek(self._read)
            lines = file.read().rpartition(b"\n")[0]
        if lines:
            self._read += len(lines) + 1
            self.tell(_parsed(lines))

    def tell(self, epochs: Iterator[Epoch] | list[Epoch]) -> None:
        for epoch in epochs:
            if epoch.number == self._told + 1:
                self._on_epoch(epoch)
                self._told = epoch.number
                write_json(self._meeting.told, self._told)
                working_copy.push(self._meeting.told)


def _parsed(lines: bytes) -> Iterator[Epoch]:
    for line in lines.split(b"\n"):
        try:
            yield Epoch(**json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue  # cut short by a worker's death, which trains this epoch again


def _trainer(study: Study, use_gpu: bool, folder: Path, job: dict[str, Any]) -> ray.train.torch.TorchTrainer:
    scale = study.scale
    workers = (scale.min_workers, scale.workers) if scale.min_workers else scale.workers
    return ray.train.torch.TorchTrainer(
        # Not as `train_loop_config`: the controller's process would have to import all that the job is made of.
        partial(_work, job),  # type: ignore[arg-type]  # Ray's annotation does not know of results
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # as for `run_config`: a range is not known to it
            use_gpu=use_gpu,
            resources_per_worker={"CPU": scale.threads or 1} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy sees the class of Ray Train's first version
            name="ray-train",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def _in_thread(call: Callable[[], ray.train.Result]) -> Future[ray.train.Result]:
    """Called in the main thread, Ray Train takes SIGINT for itself and ends the process as if all had gone well."""
    outcome: Future[ray.train.Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised by who asks for the outcome
            outcome.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return outcome


def outcome(fit: Future[ray.train.Result], study: Study) -> PolyshotError | None:
    """The fault that ended training, in our words where they are known."""
    try:
        return fit.result().return_value  # type: ignore[attr-defined]  # as above
    except ray.train.WorkerGroupError as error:
        faults = list(error.worker_failures.values())
        known = [fault for fault in faults if isinstance(fault, PolyshotError)]
        if known:
            return known[0]
        # When one worker dies, the others fail as well, in their exchange with it.
        deaths = [fault for fault in faults if type(fault).__module__.startswith("ray.")]
        if deaths:
            return RunError(
                f"a training worker died for the {study.scale.max_failures + 1}. time "
                f"({str(deaths[0]).partition(chr(10))[0]}); give it more memory (smaller batches, fewer scale.workers) "
                "or raise scale.max_failures, and run the same command again to go on"
            )
        raise


# --- resources -------------------------------------------------------------------------------------------------------


def _use_gpu(study: Study) -> bool:
    if study.scale.device == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return study.scale.device == "cuda"


def check_resources(study: Study) -> None:
    """See that the cluster can hold the workers: Ray would wait for ever for what is not there.

    Raises:
        ResourceError: when the nodes that are alive cannot hold the workers.
    """
    scale = study.scale
    least = scale.min_workers or scale.workers
    needs = {"CPU": float(scale.threads or 1)} | ({"GPU": 1.0} if _use_gpu(study) else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get(name, 0.0) // amount for name, amount in needs.items())) for node in nodes)
    if least > room:
        each = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
        key = "scale.min_workers" if scale.min_workers else "scale.workers"
        raise ResourceError(
            f"{key}: {least} workers of {each} each were asked for and there is room for {room}; "
            f"lower {key}" + (" or scale.threads" if needs["CPU"] > 1 else "") + ", or join a larger cluster"
        )


# --- a worker --------------------------------------------------------------------------------------------------------


def _work(job: dict[str, Any]) -> PolyshotError | None:
    """One worker's part of the run. What the first returns reaches the driver: a fault that no restart would mend."""
    study: Study = job["study"]
    meeting: Meeting = job["meeting"].here
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device() if job["use_gpu"] else torch.device("cpu")
    use_processor(study)

    work: Work[Any] = ray.get(job["work"])
    run = work.begin(study, work.data, device, world)
    state = load_checkpoint(meeting.checkpoint, device)
    if state is not None:
        run.load_state_dict(state)
    parts = work.parts(run)
    if world.rank > 0:
        follow(run, parts)
        return None
    fault = lead(run, parts, meeting)
    working_copy.settle()
    if job["node"] != ray.get_runtime_context().get_node_id():
        working_copy.release(meeting.path)
        working_copy.settle()
    return fault


def lead(run: DistributedRun, parts: Iterator[Epoch | None], meeting: Meeting) -> PolyshotError | None:
    """The first worker trains, keeps the records and says after each part whether all go on."""
    fault: PolyshotError | None = None
    saved = looked = asked = time.monotonic()
    stopping = False
    working_copy.has(meeting.stop, over=False)  # or has gone since an earlier life on this node
    working_copy.has(meeting.epochs, over=False)
    meeting.path.mkdir(parents=True, exist_ok=True)  # which the driver has made, on its own disk
    with meeting.epochs.open("a", encoding="utf-8") as epochs:
        epochs.write("\n")  # ends a line that a death cut short
        for epoch in parts:
            now = time.monotonic()
            if epoch is not None:
                epochs.write(json.dumps(asdict(epoch)) + "\n")
                epochs.flush()
                working_copy.push(meeting.epochs)
            if now - asked >= _STORE_SECONDS:
                working_copy.look(meeting.stop)
                asked = now
            if epoch is not None or now - looked >= _POLL_SECONDS:
                stopping, looked = meeting.stop.exists(), now
            due = run.finished or stopping or now - saved >= run.study.training.checkpoint_seconds
            save, stop = due and fault is None, stopping or fault is not None
            _first_says(run, save, stop)
            if save:
                fault = _saved(run, meeting)
                saved = time.monotonic()
            if stop:
                break
    return fault


def follow(run: DistributedRun, parts: Iterator[Epoch | None]) -> None:
    """The other workers train along, as long as the first one wants to, and help it to save."""
    for _ in parts:
        save, stop = _first_says(run)
        if save:
            run.state_dict()  # of which each worker may have a part
        if stop:
            return


def _first_says(run: DistributedRun, save: bool = False, stop: bool = False) -> tuple[bool, bool]:
    """Whether the first worker saves, and whether it stops; all must ask."""
    said = run.world.from_first(torch.tensor([float(save), float(stop)], device=run.device)).tolist()
    return bool(said[0]), bool(said[1])


def _saved(run: DistributedRun, meeting: Meeting) -> RunError | None:
    try:
        save_checkpoint(run.state_dict(), meeting.checkpoint)
    except RunError as error:
        return error
    return None
