"""Where tasks come from: labelled classes, groups of a table, generators.

`build_source` is the only place that maps a study's `meta.episodes` to a class.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from polyshot.data.prepare import prepare
from polyshot.errors import DataError, Problem, StudyError, did_you_mean
from polyshot.meta.episodes.base import Episodes, EpisodeSource, Split
from polyshot.meta.episodes.classes import Classes
from polyshot.meta.episodes.groups import Groups
from polyshot.meta.episodes.omniglot import omniglot
from polyshot.meta.episodes.sinusoids import Sinusoids
from polyshot.plugins import load_object
from polyshot.study import Study
from polyshot.study.meta import ClassEpisodes, GroupEpisodes, SinusoidEpisodes

__all__ = ["Classes", "EpisodeSource", "Episodes", "Groups", "Sinusoids", "Split", "build_source"]


def build_source(study: Study, table: pd.DataFrame | None = None) -> EpisodeSource:
    """The source that `meta.episodes` names; `table`, when given, stands for what `data.source` would give.

    Raises:
        StudyError: when groups are asked for and the study names none.
        DataError: for whatever is wrong with the data, in one sentence.
        RunError: when a source function cannot be imported.
    """
    settings = study.meta.episodes
    if isinstance(settings, SinusoidEpisodes):
        return Sinusoids(settings.support, settings.query, settings.test_query)
    if isinstance(settings, ClassEpisodes):
        return Classes(*_classes(study, settings), settings)
    return _groups(study, settings, table)


def _groups(study: Study, settings: GroupEpisodes, table: pd.DataFrame | None) -> Groups:
    if study.data.group is None:
        raise StudyError([Problem("data.group", "its groups are the tasks of meta-learning; name a column")])
    return Groups(prepare(study, table), settings.task or next(iter(study.tasks)), settings)


def _classes(study: Study, settings: ClassEpisodes) -> tuple[torch.Tensor, np.ndarray]:
    place = "meta.episodes.source"
    if settings.source == "omniglot":
        return omniglot()
    if ":" not in settings.source:
        message = f"must be 'omniglot' or package.module:function, got '{settings.source}'."
        raise StudyError([Problem(place, message + did_you_mean(settings.source, ["omniglot"]))])
    made = load_object(settings.source, study.folder, place)(**settings.arguments)
    try:
        inputs, labels = torch.as_tensor(made[0]), np.asarray(made[1])
        if inputs.dim() < 2 or labels.shape != (len(inputs),):
            raise ValueError(f"{list(inputs.shape)} and {list(labels.shape)}")
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(
            f"{place}: '{settings.source}' must return inputs [R, ...] and their labels [R]; it gave something else "
            f"({error})"
        ) from error
    return (inputs if inputs.dtype == torch.uint8 else inputs.float()), labels
