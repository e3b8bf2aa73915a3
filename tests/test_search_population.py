"""Trials that copy each other on the way, or get more labels: what each does by itself. No Ray is started."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import STUDY, learnable_table
from optuna.trial import TrialState
from ray.tune.experiment import Trial

from polyshot.data.prepare import Prepared, prepare
from polyshot.data.split import interleaved
from polyshot.errors import DataError, StudyError
from polyshot.searching.objective import Objective
from polyshot.searching.population import _seeded, build_population, population_parameters
from polyshot.searching.protocol import CURRENT, LABELS, LINEAGE, RESOURCE
from polyshot.searching.scheduling import build_scheduler, check_fixed_epochs, rungs
from polyshot.searching.searcher import COPIED, VALUES, TrialSearcher, open_study
from polyshot.searching.space import build_space, check_space
from polyshot.searching.subject import MultiTaskLearning, check_share
from polyshot.searching.trainable import LabelTrainable, PopulationTrainable, SearchContext, TrialTrainable
from polyshot.study import Study
from polyshot.training.changing import train_changing
from polyshot.training.loop import TrainingRun

RATE, WEIGHT = "training.optimiser.learning_rate", "tasks.price.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("houses")
    learnable_table().to_csv(folder / "houses.csv", index=False)
    (folder / "study.yaml").write_text(STUDY)
    values = {"training.epochs": 6, "search.grace_epochs": 2, "search.trials": 8, "model.encoder.dropout": 0.2}
    return Study.load(folder / "study.yaml").with_values(values)


@pytest.fixture(scope="module")
def data(base: Study) -> Prepared:
    return prepare(base)


def worker(kind: type[TrialTrainable], study: Study, data: Prepared, folder: Path, config: dict[str, Any]) -> Any:
    """A trial's process, less the process."""
    subject = MultiTaskLearning(study, data.for_training(), None, Objective(("price/rmse",), {}))
    context = SearchContext(study, subject, folder, frozenset(rungs(study)), math.inf)

    class Worker(kind):  # type: ignore[misc,valid-type]
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config, context)

    return Worker(config)


def until(worker: TrialTrainable, epoch: int) -> dict[str, Any]:
    while True:
        result = worker.step()
        if result["epoch"] >= epoch or result["done"]:
            return result


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


# --- who copies whom, and with which values --------------------------------------------------------------------------


def population(base: Study, scheduler: str) -> tuple[Any, list[Trial]]:
    """A scheduler with four trials that have come to epoch 6; the fourth is the best."""
    study = base.with_values({"search.scheduler": scheduler, "search.spaces": ["task_weights"]})
    range_ = {"low": 1e-4, "high": 1e-1, "log": True}
    study = study.with_values({"search.space": {RATE: range_, "training.batch_size": {"low": 16, "high": 64}}})
    made, members = build_population(study, "maximize", 2), []
    for number, rate in enumerate([1e-4, 1e-3, 1e-2, 9e-2]):
        parameters = {RATE: rate, "training.batch_size": 60, "share.price": 0.5}
        config = {"number": number, "values": {RATE: rate}, "parameters": parameters}
        members.append(Trial("member", stub=True, trial_id=str(number), config=config))
        made.on_trial_add(None, members[-1])
    for epoch in (2, 4, 6):
        for number, trial in enumerate(members):
            result = {RESOURCE: epoch, CURRENT: float(number * epoch)}
            made._save_trial_state(made._trial_state[trial], epoch, result, trial)
    return made, members


@pytest.mark.filterwarnings("ignore")  # of scikit-learn and scipy, on a process fitted to few points
@pytest.mark.parametrize(("scheduler", "copies"), [("pbt", 20), ("pb2", 2)])
def test_a_copy_keeps_its_number_and_gets_values_within_their_ranges(scheduler: str, copies: int, base: Study) -> None:
    made, (first, *_, best) = population(base, scheduler)
    rates = set()
    for _ in range(copies):
        config, _ = made._get_new_config(first, best)
        values = config["values"]
        assert config["number"] == 0
        assert 1e-4 <= values[RATE] <= 1e-1
        assert values["training.batch_size"] in range(16, 65)
        assert isinstance(values["training.batch_size"], int)
        assert values[WEIGHT] + values["tasks.sold.weight"] == pytest.approx(1)
        assert values[RATE] == config["parameters"][RATE]
        base.with_values(values)
        rates.add(values[RATE])
    assert len(rates) > 1 or scheduler == "pb2"
    assert best.config["values"] == {RATE: 9e-2}


def test_values_are_perturbed_by_a_fifth_or_drawn_anew(base: Study) -> None:
    made, (first, *_, best) = population(base, "pbt")
    with _seeded(0):
        ratios = [made._get_new_config(first, best)[0]["values"][RATE] / 9e-2 for _ in range(200)]
    perturbed = [ratio for ratio in ratios if min(abs(ratio - 0.8), abs(ratio - 1 / 0.9)) < 1e-9]  # held at 0.1
    assert 0.65 < len(perturbed) / len(ratios) < 0.85


def test_the_same_seed_makes_the_same_exchange(base: Study) -> None:
    def exchange() -> dict[str, Any]:
        made, (first, *_, best) = population(base, "pbt")
        with _seeded(3):
            return made._get_new_config(first, best)[0]

    assert exchange() == exchange()


def test_a_population_that_is_taken_up_again_has_the_younger_ones_catch_up(base: Study) -> None:
    study = base.with_values({"search.scheduler": "pbt"})
    ages = [build_scheduler(study, "maximize", 40, age)._next_perturbation_sync for age in (0, 1, 2, 5)]  # type: ignore[attr-defined]
    assert ages == [2, 2, 4, 6]


# --- a trial that copies ---------------------------------------------------------------------------------------------


def config(number: int, rate: float) -> dict[str, Any]:
    return {"number": number, "values": {RATE: rate, WEIGHT: rate * 10}, "parameters": {RATE: rate}}


def test_a_trial_that_copies_goes_on_from_the_others_state_with_its_own_values(
    base: Study, data: Prepared, tmp_path: Path
) -> None:
    study = base.with_values({"search.scheduler": "pbt"})
    donor = worker(PopulationTrainable, study, data, tmp_path, config(0, 0.02))
    assert until(donor, 4)["epoch"] == 4
    donor.save_checkpoint(str(tmp_path))
    copy = worker(PopulationTrainable, study, data, tmp_path, config(1, 0.05))
    assert until(copy, 2)[LINEAGE] == [
        {"epoch": 1, "trial": 1, **{k: config(1, 0.05)[k] for k in ("values", "parameters")}}
    ]
    copy.load_checkpoint(str(tmp_path))
    ended = until(copy, 6)
    assert [epoch["number"] for epoch in ended["epochs"]] == [5, 6]
    assert [(part["epoch"], part["trial"], part["values"][RATE]) for part in ended[LINEAGE]] == [
        (1, 0, 0.02),
        (5, 1, 0.05),
    ]

    studies = {part["epoch"]: study.with_values(part["values"]) for part in ended[LINEAGE]}
    alone = train_changing(studies, lambda changed: TrainingRun(changed, data))
    assert [epoch.metrics for epoch in alone.history] == [epoch.metrics for epoch in copy._run.history]
    assert same(alone.model.state_dict(), copy._run.model.state_dict())
    constant = train_changing({1: studies[1]}, lambda changed: TrainingRun(changed, data))
    assert not same(alone.model.state_dict(), constant.model.state_dict())


def test_a_copy_whose_process_died_goes_on_with_the_values_that_it_had_changed_to(
    base: Study, data: Prepared, tmp_path: Path
) -> None:
    study = base.with_values({"search.scheduler": "pbt"})
    donor = worker(PopulationTrainable, study, data, tmp_path, config(0, 0.02))
    until(donor, 2)
    donor.save_checkpoint(str(tmp_path))
    copy = worker(PopulationTrainable, study, data, tmp_path, config(1, 0.05))
    copy.load_checkpoint(str(tmp_path))
    again = worker(PopulationTrainable, study, data, tmp_path, config(1, 0.99))  # as it began
    before, after = until(copy, 6), until(again, 6)
    assert after[LINEAGE] == before[LINEAGE]
    assert after["objective"] == before["objective"]


def test_optuna_s_journal_has_the_last_values_and_whom_a_trial_copied(base: Study, tmp_path: Path) -> None:
    study = base.with_values(
        {"search.scheduler": "pbt", "search.spaces": [], "search.space": {RATE: {"low": 1e-3, "high": 0.1}}}
    )
    optuna_study = open_study(study, tmp_path / "journal", "maximize")

    def search() -> TrialSearcher:
        return TrialSearcher(optuna_study, build_space(study), sampler="tpe", trials=8, deadline=math.inf)

    first, part = search(), {"epoch": 1, "trial": 5, "values": {RATE: 0.01}, "parameters": {RATE: 0.01}}
    first.suggest("x")
    own = {"epoch": 3, "trial": 0, "values": {RATE: 0.02}, "parameters": {RATE: 0.02}}
    result = {"objective": 0.3, "objectives": [0.3], "epoch": 4, RESOURCE: 4, LINEAGE: [part, own]}
    first.on_trial_result("x", result)
    first.on_trial_result("x", result | {"epoch": 5, RESOURCE: 5})
    (trial,) = optuna_study.trials
    assert trial.user_attrs[VALUES] == {RATE: 0.02}
    assert trial.user_attrs[COPIED] == [[2, 5]]
    assert search().suggest("x") == {"number": 0, "values": {RATE: 0.02}, "parameters": {RATE: 0.02}}
    assert trial.state == TrialState.RUNNING


# --- labels as fidelity ----------------------------------------------------------------------------------------------


def test_a_share_of_the_labels_is_among_a_larger_one_and_has_all_classes_in_proportion(data: Prepared) -> None:
    def rows(share: float, seed: int = 0) -> set[tuple[float, ...]]:
        train = data.with_share(share, seed).train
        return {tuple(row) for row in torch.cat([train.features, train.targets, train.mask], 1).tolist()}

    quarter, half = rows(1 / 4), rows(1 / 2)
    assert quarter < half < rows(1.0)
    assert rows(1 / 4, seed=1) != quarter
    assert data.with_share(1.0, 0) is data
    labelled = data.train.mask.any(1)
    train = data.with_share(1 / 4, 0).train
    assert len(train) == round(labelled.sum().item() / 4)
    for known, whole in (
        (train.mask, data.train.mask[labelled]),
        (train.targets[:, 1:], data.train.targets[labelled, 1:]),
    ):
        assert known.float().mean(0).tolist() == pytest.approx(whole.float().mean(0).tolist(), abs=3 / len(train))


def test_every_beginning_of_an_order_has_the_strata_in_proportion() -> None:
    import numpy as np

    strata = np.repeat([0, 1, 2], [100, 40, 3])
    order, within = interleaved(strata)
    assert set(strata[order[:3]]) == {0, 1, 2}
    assert sorted(within[strata == 1]) == list(range(40))
    drawn = np.mean(
        [np.isin(np.arange(143), interleaved(strata, np.random.default_rng(seed))[0][:14]) for seed in range(400)], 0
    )
    assert drawn[:100].mean() == pytest.approx(14 / 143, abs=0.01)
    assert drawn[140:].mean() == pytest.approx(14 / 143, abs=0.04)


def test_a_promoted_trial_is_trained_from_scratch_on_more_labels_and_ends_as_if_alone(
    base: Study, data: Prepared, tmp_path: Path
) -> None:
    study = base.with_values({"search.fidelity": "labels"})
    assert rungs(study) == [1, 4, 16]
    trial = worker(LabelTrainable, study, data, tmp_path, config(0, 0.02))
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    labelled = int(data.train.mask.any(1).sum())
    stages = {result[RESOURCE]: (result["epoch"], result[LABELS]) for result in results if RESOURCE in result}
    assert stages == {1: (6, round(labelled / 16)), 4: (12, round(labelled / 4)), 16: (18, len(data.train))}
    assert [epoch["number"] for result in results for epoch in result["epochs"]] == list(range(1, 19))
    alone = train_changing({1: study.with_values(config(0, 0.02)["values"])}, lambda own: TrainingRun(own, data))
    assert results[-1]["finished"]
    assert results[-1]["objective"] == alone.best.metrics["val/price/rmse"]

    again = worker(LabelTrainable, study, data, tmp_path, config(0, 0.02))  # of another process
    assert again.step()["objective"] == results[-1]["objective"]


def test_a_trial_that_died_between_two_shares_is_looked_at_again_before_it_goes_on(
    base: Study, data: Prepared, tmp_path: Path
) -> None:
    study = base.with_values({"search.fidelity": "labels"})
    died = until(worker(LabelTrainable, study, data, tmp_path, config(0, 0.02)), 6)
    trial = worker(LabelTrainable, study, data, tmp_path, config(0, 0.02))
    taken_up = trial.step()
    assert (taken_up[RESOURCE], taken_up["objective"]) == (1, died["objective"])
    assert until(trial, 12)[RESOURCE] == 4


def test_too_few_labels_for_a_share_are_told(data: Prepared) -> None:
    check_share(data, 1 / 4, 0)
    with pytest.raises(DataError, match=r"search\.fidelity: .*\(1 training rows\), task 'price' has no two different"):
        check_share(data, 1e-6, 0)


# --- what cannot be asked for ----------------------------------------------------------------------------------------

WIDTH = {"model.encoder.width": {"low": 8, "high": 64}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"search.scheduler": "pbt", "search.space": WIDTH},
            ["search.space.model.encoder.width", "mid-training", "asha"],
        ),
        ({"search.scheduler": "pbt", "search.trials": None, "search.minutes": 1}, ["'pbt'", "'trials'", "4 or more"]),
        ({"search.scheduler": "pbt", "search.confirm": {}}, ["'confirm'", "remove it"]),
        ({"search.scheduler": "pbt", "search.concurrency": 2}, ["'concurrency'", "remove"]),
        ({"search.scheduler": "pbt", "search.objective": ["price", "sold"]}, ["'pbt'", "one objective"]),
        ({"search.scheduler": "pbt", "search.grace_epochs": 6}, ["search.grace_epochs", "6 epochs", "lower it"]),
        ({"search.scheduler": "pb2", "scale.workers": 2}, ["scale.workers", "'pb2'", "1"]),
        ({"search.scheduler": "pb2", "search.space": {RATE: {"choice": [0.1, 0.2]}}}, [RATE, "low and high", "'pbt'"]),
        ({"search.scheduler": "median", "search.fidelity": "labels"}, ["'labels'", "'asha'", "'median'", "'epochs'"]),
        ({"search.objective": ["price", "sold"], "search.fidelity": "labels"}, ["'labels'", "one objective"]),
        ({"search.fidelity": "labels", "scale.workers": 2}, ["scale.workers", "'labels'"]),
    ],
)
def test_what_does_not_fit_is_told_in_words(values: dict[str, Any], words: list[str], base: Study) -> None:
    with pytest.raises(StudyError) as caught:
        base.with_values(values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


SPACES = """\
def conditional(trial, study):
    rate = trial.suggest_float("rate", 0.1, 0.2)
    extra = {"training.clip_norm": trial.suggest_float("clip", 1, 2)} if rate > 0.15 else {}
    return {"training.optimiser.learning_rate": rate} | extra
"""


def test_spaces_that_a_population_cannot_search_are_refused_before_it_begins(
    base: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "population_spaces.py").write_text(SPACES)
    monkeypatch.syspath_prepend(tmp_path)
    pbt = base.with_values({"search.scheduler": "pbt"})
    with pytest.raises(StudyError, match=r"model\.encoder\.\w+: cannot change in mid-training"):
        check_space(pbt.with_values({"search.spaces": ["architecture"]}))
    check_space(pbt.with_values({"search.spaces": ["task_weights", "optimisation"]}))
    with pytest.raises(StudyError, match="the parameter 'clip' is not the same in all trials"):
        population_parameters(pbt.with_values({"search.spaces": ["population_spaces:conditional"]}))
    with pytest.raises(StudyError, match=r"'pb2' searches numbers, and 'training\.schedule\.kind' is a choice"):
        population_parameters(base.with_values({"search.scheduler": "pb2", "search.spaces": ["optimisation"]}))


@pytest.mark.parametrize(("key", "value"), [("scheduler", "pbt"), ("fidelity", "labels")])
def test_other_searches_know_trials_of_constant_values_and_data_only(key: str, value: str, base: Study) -> None:
    check_fixed_epochs(base)
    with pytest.raises(StudyError, match=rf"search\.{key}: '{value}' is for `polyshot search`"):
        check_fixed_epochs(base.with_values({f"search.{key}": value}))
