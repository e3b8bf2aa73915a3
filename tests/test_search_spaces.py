"""Search spaces: the distribution of task weights, valid studies from every space, and mistakes in words."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from polyshot.balancing import check_balancer
from polyshot.errors import PolyshotError, RunError, StudyError
from polyshot.search_spaces import SPACES
from polyshot.search_spaces.task_weights import task_weights
from polyshot.searching.space import build_space, check_space
from polyshot.study import Study

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study(tasks: int = 3, **sections) -> Study:
    return Study.from_dict(
        {
            "name": "s",
            "data": {"source": "table.csv"},
            "tasks": {f"t{index}": {"kind": "regression"} for index in range(tasks)},
            **sections,
        }
    )


def random_trials(count: int, seed: int = 0) -> list[optuna.Trial]:
    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [sampled.ask() for _ in range(count)]


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_task_weights_are_uniform_over_the_simplex(tasks):
    names = [f"share.t{index}" for index in range(tasks - 1)]
    uniform = np.random.default_rng(0).random((20_000, tasks - 1))
    base = study(tasks)
    weights = np.array(
        [list(task_weights(optuna.trial.FixedTrial(dict(zip(names, u, strict=True))), base).values()) for u in uniform]
    )
    # The moments of Dirichlet(1, …, 1), the same for every task and every pair of tasks.
    mean, variance = 1 / tasks, (tasks - 1) / (tasks**2 * (tasks + 1))
    covariance = np.where(np.eye(tasks, dtype=bool), variance, -1 / (tasks**2 * (tasks + 1)))
    assert np.allclose(weights.sum(1), 1)
    assert (weights >= 0).all()
    assert np.allclose(weights.mean(0), mean, atol=0.01)
    assert np.allclose(np.cov(weights.T), covariance, atol=0.003)
    # and their marginal law: P(weight > x) = (1 − x)^(T−1).
    assert np.allclose((weights > 0.3).mean(0), 0.7 ** (tasks - 1), atol=0.015)


def test_one_task_has_no_weights_to_search():
    assert task_weights(random_trials(1)[0], study(1)) == {}
    with pytest.raises(StudyError, match="nothing is searched"):
        check_space(study(1, search={"spaces": ["task_weights"]}))


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("space", SPACES)
def test_every_space_makes_valid_studies_that_differ(space, optimiser):
    base = study(4, search={"spaces": [space]}, training={"optimiser": {"kind": optimiser}})
    check_space(base)
    values = build_space(base)
    studies = [base.with_values(values(trial)) for trial in random_trials(10)]
    assert len({varied.digest() for varied in studies}) >= 5  # a space of a few kinds repeats some
    assert all(varied.training.optimiser.kind == optimiser for varied in studies)


def test_spaces_of_sharing_balancing_and_sampling_fit_together_in_this_order():
    base = study(3, search={"spaces": ["architecture", "sharing", "balancing", "sampling"]})
    values = build_space(base)
    drawn = [base.with_values(values(trial)) for trial in random_trials(300)]
    assert {varied.training.sampling.kind for varied in drawn} >= {"rows", "joint", "uniform", "dynamic"}
    assert len({(varied.model.sharing.kind, varied.balance.kind) for varied in drawn}) > 100
    for varied in drawn:
        check_balancer(varied)  # that features are compared with hard sharing only


def test_a_distribution_of_the_study_replaces_that_of_a_named_space():
    own = {
        "training.optimiser.learning_rate": {"choice": [0.5]},
        "training.batch_size": {"choice": [7]},
        "model.encoder.dropout": {"low": 0.1, "high": 0.2},
    }
    base = study(search={"spaces": ["optimisation"], "space": own})
    trial = random_trials(1)[0]
    values = build_space(base)(trial)
    assert values["training.optimiser.learning_rate"] == 0.5
    assert values["training.batch_size"] == 7
    assert 0.1 <= values["model.encoder.dropout"] <= 0.2
    assert "training.optimiser.weight_decay" in values
    assert "log2(training.batch_size)" not in trial.params  # no number is searched in vain


def test_ranges_are_whole_where_both_ends_are_and_follow_their_scale():
    space = {
        "model.encoder.depth": {"low": 1, "high": 3},
        "training.optimiser.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "model.encoder.dropout": {"low": 0.0, "high": 0.4, "step": 0.2},
    }
    values = build_space(study(search={"spaces": [], "space": space}))
    drawn = [values(trial) for trial in random_trials(200)]
    assert {found["model.encoder.depth"] for found in drawn} == {1, 2, 3}
    assert {found["model.encoder.dropout"] for found in drawn} == {0.0, 0.2, 0.4}
    rates = np.log10([found["training.optimiser.learning_rate"] for found in drawn])
    assert -2.7 < rates.mean() < -2.3


SPACE_MODULE = """\
def depth(trial, study):
    return {"model.encoder.depth": trial.suggest_int("depth", 1, 2)}

def unknown(trial, study):
    return {"model.encoder.dept": trial.suggest_int("depth", 1, 2)}

def sometimes(trial, study):
    return {"model.encoder.width" if trial.suggest_int("n", 0, 1) else "training.epoch": 8}

def negative(trial, study):
    return {"model.encoder.depth": -trial.suggest_int("depth", 1, 2)}

def forbidden(trial, study):
    return {"scale.workers": trial.suggest_int("workers", 1, 2)}

def nothing(trial, study):
    trial.suggest_int("depth", 1, 2)

def raises(trial, study):
    return {"model.encoder.depth": trial.suggest_int("depth", 1, 2) / 0}
"""


@pytest.fixture
def with_space(tmp_path, monkeypatch):
    (tmp_path / "own_spaces.py").write_text(SPACE_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name: study(search={"spaces": [f"own_spaces:{name}"]})


def test_a_space_of_the_users_own_is_found_by_its_module(with_space):
    base = with_space("depth")
    check_space(base)
    assert build_space(base)(random_trials(1)[0])["model.encoder.depth"] in (1, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", ["model.encoder.dept", "depth"]),
        ("sometimes", ["training.epoch"]),  # only one branch of the space is wrong
        ("negative", ["model.encoder.depth", "1"]),
        ("forbidden", ["scale.workers", "cannot be searched"]),
        ("nothing", ["own_spaces:nothing", "dictionary"]),
        ("raises", ["search.spaces", "ZeroDivisionError"]),
        ("missing", ["own_spaces", "missing"]),
    ],
)
def test_a_mistake_in_a_space_is_told_before_anything_starts(with_space, name, words):
    with pytest.raises(PolyshotError) as caught:
        check_space(with_space(name))
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_space_is_told_with_the_nearest_name():
    with pytest.raises(StudyError, match="Did you mean 'task_weights'"):
        check_space(study(search={"spaces": ["task_weight"]}))


def test_architecture_says_that_it_is_for_mlp_encoders_only():
    base = study(model={"encoder": {"kind": "json:JSONDecoder"}}, search={"spaces": ["architecture"]})
    with pytest.raises(StudyError, match="list distributions of the keys of model.encoder in search.space"):
        check_space(base)


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(RunError, match="no module 'nowhere'"):
        check_space(study(search={"spaces": ["nowhere:space"]}))
