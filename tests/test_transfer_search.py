"""The search of transfer: its space, its subject, and a whole one; and a meta-learnt learner as a start."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from helpers_transfer import INPUTS, table, target_study, trained_source

from polyshot.errors import RunError, StudyError
from polyshot.search_spaces.transfer import transfer as space
from polyshot.searching.objective import Objective
from polyshot.searching.space import check_space
from polyshot.study import Study
from polyshot.study.transfer import SEARCHED
from polyshot.transfer.methods import METHODS
from polyshot.transfer.problem import Problem, TargetData
from polyshot.transfer.trials import trials_of
from polyshot.verbs.transfer import find_sources
from polyshot.verbs.transfer_search import TransferLearning, _refusal, transfer_search

SMALL = {
    "training.epochs": 2,
    "transfer.seeds": 1,
    "search.spaces": ["transfer"],
    "search.trials": 4,
    "search.concurrency": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """A small target, whose source is trained."""
    folder = tmp_path_factory.mktemp("search")
    trained_source(folder, rows=300, **{"training.epochs": 2})
    return target_study(folder, rows=300, **SMALL)


def test_every_draw_is_a_method_and_all_kinds_are_drawn(study: Study) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(200):
        method = study.with_values(space(trials.ask(), study)).transfer.methods[SEARCHED]
        kinds.add(method.kind)
    known = {settings.model_fields["kind"].annotation.__args__[0] for settings in METHODS}
    assert kinds == known - {"lora", "meta_learned"}


def test_only_the_method_can_be_searched(study: Study) -> None:
    check_space(study, _refusal)
    with pytest.raises(StudyError, match="plays no part in a trial of transfer"):
        check_space(study.with_values({"search.spaces": ["transfer", "optimisation"]}), _refusal)


def test_a_trial_trains_its_method_in_another_process_too(study: Study) -> None:
    target = TargetData.of(study)
    subject = TransferLearning(target, find_sources(study), Objective("sold/roc_auc", {}))
    target.read_by(subject.sources.main)
    there = pickle.loads(pickle.dumps(subject))  # noqa: S301 - as Ray does
    chosen = study.with_values({"transfer.methods.searched.kind": "knn", "transfer.methods.searched.neighbours": 3})
    run, other = subject.begin(chosen), there.begin(chosen)
    metrics = [next(run.epochs()).metrics, next(other.epochs()).metrics]
    assert metrics[0] == metrics[1] and run.finished
    assert len(subject.trial(chosen).problem.labelled) == len(target.own.train)


@pytest.mark.slow
def test_a_search_compares_its_best_method_with_the_study_s_own(study: Study) -> None:
    result = transfer_search(study)
    assert len(result.trials) == 4 and (result.trials["state"] == "finished").any()
    assert set(result.best.table["method"]) == {"scratch", *study.transfer.methods, SEARCHED}
    kind = result.best_values[f"transfer.methods.{SEARCHED}.kind"]
    assert result.best_study.transfer.methods[SEARCHED].kind == kind
    assert len(result.best.model.predict(table(20, 3))) == 20
    again = transfer_search(study)  # it has ended, and answers at once
    pd.testing.assert_frame_equal(again.trials, result.trials)
    assert again.best.folder == result.best.folder


# --- a meta-learnt start ---------------------------------------------------------------------------------------------


def test_a_meta_learnt_start_adapts_to_the_labelled_rows(tmp_path: Path) -> None:
    from polyshot.meta.episodes import build_source
    from polyshot.meta.saved import SavedLearner
    from polyshot.meta.training import MetaRun

    trained_source(tmp_path, rows=300, **{"training.epochs": 2})
    values = {
        "transfer.methods": {"meta": {"kind": "meta_learned", "run": "groups", "steps": 3}},
        "transfer.seeds": 1,
        "training.epochs": 2,
    }
    study = target_study(tmp_path, rows=300, **values)
    with pytest.raises(RunError, match="run `polyshot meta` first"):
        find_sources(study)

    groups = table(900, 4).assign(group=np.repeat(np.arange(45), 20))
    learning = {"episodes": {"support": 5, "query": 10}, "learner": {"kind": "maml", "rate": 0.05, "steps": 2}}
    meta = study.with_values({"data.group": "group", "meta": learning | {"iterations": 20, "validate_every": 10}})
    made = build_source(meta, groups)
    run = MetaRun(meta, made)
    list(run.epochs())
    learner = SavedLearner.of(meta, made, run.best_weights())
    learner.save(tmp_path / "runs" / "groups" / "meta-1" / "learner")

    target = TargetData.of(study)
    sources = find_sources(study)
    problem = Problem.of(target, sources, 20, 0)
    start = next(trial for trial in trials_of(target, sources) if trial.name == "meta").begin()
    adapted = learner.adapt_table(problem.labelled_table, steps=3)
    rows = target.table[:50]
    features = torch.from_numpy(start.prepared.features.transform(rows))
    found = torch.sigmoid(start.model.eval()(features))[:, 0].detach().numpy()
    np.testing.assert_allclose(found, adapted.predict(rows)["sold_probability"], atol=1e-5)
    assert start.prepared.train.features.shape[1] == INPUTS
