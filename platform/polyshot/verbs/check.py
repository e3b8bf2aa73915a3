"""`polyshot check`: what a study would do, in words, before anything is trained."""

from __future__ import annotations

from polyshot.study import Study


def check(study: Study, *, with_data: bool = False) -> list[str]:
    """Sentences about a valid study: which of its parts run code of the user's, and what its table holds.

    Raises:
        PolyshotError: with `with_data`, when the table cannot be read, or the model does not fit it.
    """
    words = [f"runs code of yours: {path} ({key})" for key, path in study.objects.items()]
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
