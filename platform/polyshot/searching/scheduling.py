"""How many trials run at once, on what, and which of them are stopped early.

A plan is made before anything starts, from what the nodes of the cluster have, so that trials never wait for resources
that other trials hold. Knows no Optuna and no training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from polyshot.errors import Problem, ResourceError, StudyError
from polyshot.searching.population import build_population
from polyshot.searching.protocol import OBJECTIVE, RESOURCE
from polyshot.study import Study

_REDUCTION = 4  # of trials that reach a rung, one in four goes on (Li et al., MLSys 2020)
LABEL_PARTS = _REDUCTION**2  # with labels as fidelity, what a trial is given is counted in these parts of all
_TRIALS_PER_GPU = 4  # by default: small models leave most of a GPU idle, and each process holds its own CUDA context


@dataclass(frozen=True)
class Plan:
    """`concurrency` trials at once; each of their workers holds `cpus` CPUs and `gpus` GPUs."""

    concurrency: int
    cpus: int
    gpus: float


def plan_trials(study: Study, nodes: Sequence[Mapping[str, float]]) -> Plan:
    """Share the nodes' resources (`CPU`, `GPU`) out to trials.

    Raises:
        ResourceError: when a single trial asks for more than there is.
    """
    workers, threads = study.scale.workers, study.scale.threads or 1
    cpus, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    if study.scale.device == "cuda" and not gpus:
        raise ResourceError("scale.device: 'cuda' was asked for and no node has a GPU; use 'auto' or 'cpu'")
    uses_gpus = gpus > 0 and study.scale.device != "cpu"
    slots = sum(int(node.get("CPU", 0)) // threads for node in nodes)  # a worker's threads are on one node
    if uses_gpus and workers > 1:
        slots = sum(min(int(node.get("CPU", 0)) // threads, int(node.get("GPU", 0))) for node in nodes)
    if workers > slots:
        needs = f"scale.workers {workers} × scale.threads {threads}"
        raise ResourceError(
            f"one trial needs {needs} and there are {cpus} CPUs{f' and {gpus} GPUs' if uses_gpus else ''} "
            f"on {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, enough for {slots} such workers; "
            "lower scale.workers or scale.threads, or name a larger cluster in scale.address"
        )
    most = slots // workers
    if study.search.concurrency is not None:
        concurrency = min(study.search.concurrency, most)
    else:
        concurrency = min(most, gpus * _TRIALS_PER_GPU) if uses_gpus and workers == 1 else most
    share = 0.0
    if uses_gpus:
        on_one = 1 if workers > 1 else math.ceil(concurrency / gpus)
        share = math.floor(1e4 / on_one) / 1e4  # Ray counts GPUs in ten-thousandths
    return Plan(concurrency, threads, share)


def _resources(study: Study, epochs: int | None) -> tuple[int, int]:
    """What a trial is given before schedulers look at it, and what a whole one is given: epochs or parts of the labels.

    Args:
        epochs: of a whole trial; by default as many as the study trains for.
    """
    if study.search.fidelity == "labels":
        return 1, LABEL_PARTS
    epochs = epochs or study.training.epochs
    return min(study.search.grace_epochs, epochs), epochs


def rungs(study: Study, epochs: int | None = None) -> list[int]:
    """The resources (epochs, or parts of the labels) with which the scheduler may stop a trial or have it copy another.

    A trial reports with each of them.

    Args:
        epochs: of a whole trial; by default as many as the study trains for.
    """
    least, most = _resources(study, epochs)
    match study.search.stopping:
        case "asha":
            levels = int(math.log(most / least, _REDUCTION) + 1e-9) + 1
            return [least * _REDUCTION**level for level in range(levels)]
        case "median" | "pbt" | "pb2":
            return list(range(least, most + 1, least))
        case _:
            return []


def build_scheduler(study: Study, direction: str, epochs: int | None = None, age: int = 0) -> TrialScheduler:
    """The study's scheduler.

    Args:
        direction: "maximize" or "minimize".
        epochs: of a whole trial; by default as many as the study trains for.
        age: epochs of the oldest of the trials that an earlier process began and left under way.
    """
    mode = "max" if direction == "maximize" else "min"
    least, most = _resources(study, epochs)
    match study.search.stopping:
        case "asha":
            return AsyncHyperBandScheduler(
                time_attr=RESOURCE,
                metric=OBJECTIVE,
                mode=mode,
                max_t=most,
                grace_period=least,
                reduction_factor=_REDUCTION,
            )
        case "median":
            return MedianStoppingRule(
                time_attr=RESOURCE,
                metric=OBJECTIVE,
                mode=mode,
                grace_period=least,
                min_time_slice=math.inf,  # type: ignore[arg-type]  # never pause a trial to let another begin
            )
        case "pbt" | "pb2":
            return build_population(study, direction, least, age)
        case _:
            return FIFOScheduler()


def replay(scheduler: TrialScheduler, trials: Iterable[Mapping[int, float]]) -> None:
    """Show the scheduler the objective by resource of `trials` that ended earlier, in place of a saved state.

    Of a population, those that have ended take no part.
    """
    if isinstance(scheduler, PopulationBasedTraining):
        return
    for index, values in enumerate(trials):
        trial = Trial("earlier", stub=True, trial_id=f"earlier-{index}")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        for resource, value in sorted(values.items()):
            scheduler.on_trial_result(None, trial, {RESOURCE: resource, OBJECTIVE: value})  # type: ignore[arg-type]


def check_fixed_epochs(study: Study) -> None:
    """Refuse what only `polyshot search` can do with its trials: to change them, or their data, on the way.

    Raises:
        StudyError: for such a scheduler or fidelity.
    """
    if study.search.is_population:
        message = f"'{study.search.scheduler}' is for `polyshot search`; use 'asha'"
        raise StudyError([Problem("search.scheduler", message)])
    if study.search.fidelity != "epochs":
        raise StudyError(
            [Problem("search.fidelity", f"'{study.search.fidelity}' is for `polyshot search`; use 'epochs'")]
        )
