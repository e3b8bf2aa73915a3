"""`polyshot check`: what a study would do, in words, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from polyshot import working_copy
from polyshot.study import Study
from polyshot.tracking.store import resolve


def check(study: Study, *, with_data: bool = False) -> list[str]:
    """Sentences about a valid study: which parts run code of the user's, where runs are kept, what its table holds.

    Raises:
        PolyshotError: with `with_data`, when the table cannot be read, or the model does not fit it.
    """
    words = [f"runs code of yours: {path} ({key})" for key, path in study.objects.items()]
    words += _places(study)
    if with_data:
        from polyshot.data.prepare import prepare
        from polyshot.training.loop import TrainingRun

        prepared = prepare(study)
        TrainingRun(study, prepared)  # an encoder or a balancer that does not fit is found here
        sizes = {split: len(getattr(prepared, split).features) for split in ("train", "validation", "test")}
        words.append("rows: " + ", ".join(f"{rows} {split}" for split, rows in sizes.items()))
        words.append(f"features: {len(prepared.features.names)} from {len(prepared.features.columns)} columns")
        counts = prepared.labels.totals(prepared.train.mask.sum(0)).tolist()
        for target, count in zip(prepared.targets, counts, strict=True):
            words.append(f"task {target.task}: {count} labels for training")
        words.extend(prepared.notes)
    return words


def _places(study: Study) -> Iterator[str]:
    """Where things are, of a study that keeps its runs in an object store."""
    if (address := working_copy.address_of(study.storage_folder)) is None:
        return
    yield f"runs are kept at {address}; this machine works on a copy, in {study.storage_folder}"
    store = resolve(study)
    if store.origin == "storage":
        yield f"MLflow's store stays on this machine: {store.sqlite_file}; tracking.uri names one that others see"
