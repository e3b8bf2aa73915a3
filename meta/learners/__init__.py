"""Meta-learners, one file each; all pass the same contract suite (tests/test_meta_learner_contract.py).

`build_learner` is the only place that maps a study's `meta.learner` to a class; a new learner is one file here, one
section in `study/meta.py` and one line below.
"""

from __future__ import annotations

from polyshot.errors import Problem, StudyError
from polyshot.meta.learners.anil import ANIL
from polyshot.meta.learners.base import Adapted, Learner
from polyshot.meta.learners.first_order_maml import FirstOrderMAML
from polyshot.meta.learners.gradient import GradientLearner
from polyshot.meta.learners.maml import MAML
from polyshot.meta.learners.meta_curvature import MetaCurvature
from polyshot.meta.learners.meta_sgd import MetaSGD
from polyshot.meta.learners.protonet import ProtoNet
from polyshot.meta.learners.reptile import Reptile
from polyshot.meta.learners.ridge import Ridge
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import Objective, SquaredError
from polyshot.study.meta import MetaLearner

__all__ = ["LEARNERS", "Adapted", "Learner", "build_learner"]

LEARNERS: dict[str, type[Learner]] = {
    "maml": MAML,
    "first_order_maml": FirstOrderMAML,
    "anil": ANIL,
    "meta_sgd": MetaSGD,
    "meta_curvature": MetaCurvature,
    "reptile": Reptile,
    "protonet": ProtoNet,
    "ridge": Ridge,
}


def build_learner(
    settings: MetaLearner, network: FewShotNetwork, objective: Objective, *, ways: int | None = None
) -> Learner:
    """The learner of `meta.learner`, which starts from the weights of `network`.

    Args:
        ways: how many classes the step sizes are meant for, where the network has other outputs.

    Raises:
        StudyError: for prototypes of numbers: they are means of classes.
    """
    if settings.kind == "protonet" and isinstance(objective, SquaredError):
        message = "'protonet' tells classes apart and the task is regression; use ridge, which learns features as well"
        raise StudyError([Problem("meta.learner.kind", message)])
    learner = LEARNERS[settings.kind](network, objective, **settings.model_dump(exclude={"kind"}))
    if ways is not None and isinstance(learner, GradientLearner):
        learner.head_factor = network.head.out_features / ways
    return learner
