"""Balancers turn the vector of task losses [T] into one update; `balancing.backward` gives each what it needs.

`build_balancer` is the only place that maps a study's `balance` to a class: a new method is one file here, one section
in `study/balance.py` and one line below.
"""

from __future__ import annotations

from polyshot.balancing.aligned_mtl import AlignedMTL
from polyshot.balancing.base import Balancer, GramianBalancer, JacobianBalancer, LossBalancer
from polyshot.balancing.cagrad import CAGrad
from polyshot.balancing.config import ConFIG
from polyshot.balancing.dualproj import DualProj
from polyshot.balancing.dwa import DWA
from polyshot.balancing.fairgrad import FairGrad
from polyshot.balancing.famo import FAMO
from polyshot.balancing.fixed import FixedWeights
from polyshot.balancing.gls import GeometricMean
from polyshot.balancing.graddrop import GradDrop
from polyshot.balancing.gradnorm import GradNorm
from polyshot.balancing.gradvac import GradVac
from polyshot.balancing.imtl_g import IMTLG
from polyshot.balancing.imtl_l import IMTLL
from polyshot.balancing.mgda import MGDA
from polyshot.balancing.nash_mtl import NashMTL
from polyshot.balancing.pcgrad import PCGrad
from polyshot.balancing.random import RandomWeights
from polyshot.balancing.stch import SmoothTchebycheff
from polyshot.balancing.uncertainty import Uncertainty
from polyshot.balancing.upgrad import UPGrad
from polyshot.errors import Problem, StudyError
from polyshot.study import Study
from polyshot.study import balance as sections
from polyshot.study.model import HardSharing

__all__ = ["Balancer", "GramianBalancer", "JacobianBalancer", "LossBalancer", "build_balancer", "check_balancer"]


def build_balancer(study: Study) -> Balancer:
    """The study's balancer; one task has nothing to balance and gets fixed weights, whatever the study says.

    Raises:
        StudyError: as `check_balancer`.
    """
    check_balancer(study)
    weights, seed = list(study.task_weights.values()), study.seed
    tasks = len(weights)
    scales = [tasks * weight for weight in weights] if max(weights) > min(weights) else None
    match study.balance if tasks > 1 else sections.FixedBalance():
        case sections.FixedBalance():
            return FixedWeights(weights)
        case sections.RandomBalance():
            return RandomWeights(seed, scales)
        case sections.UncertaintyBalance():
            return Uncertainty([task.kind == "regression" for task in study.tasks.values()], scales)
        case sections.DWABalance(temperature=temperature):
            return DWA(tasks, temperature, scales)
        case sections.GLSBalance():
            return GeometricMean(weights)
        case sections.FAMOBalance(learning_rate=learning_rate, weight_decay=weight_decay):
            return FAMO(tasks, learning_rate, weight_decay, scales)
        case sections.STCHBalance(mu=mu):
            return SmoothTchebycheff(weights, mu)
        case sections.IMTLLBalance():
            return IMTLL(tasks, scales)
        case sections.GradNormBalance(alpha=alpha, learning_rate=learning_rate):
            return GradNorm(tasks, alpha, learning_rate, scales)
        case sections.MGDABalance(normalise=normalise):
            return MGDA(normalise, scales)
        case sections.PCGradBalance():
            return PCGrad(seed, scales)
        case sections.GradVacBalance(beta=beta):
            return GradVac(tasks, seed, beta, scales)
        case sections.GradDropBalance():
            return GradDrop(seed, scales)
        case sections.CAGradBalance(c=c):
            return CAGrad(c, scales)
        case sections.IMTLGBalance():
            return IMTLG(scales)
        case sections.NashMTLBalance(max_norm=max_norm, every=every):
            return NashMTL(tasks, max_norm, every, scales)
        case sections.AlignedMTLBalance(scale=scale):
            return AlignedMTL(weights, scale)
        case sections.UPGradBalance():
            return UPGrad(weights)
        case sections.FairGradBalance(alpha=alpha):
            return FairGrad(alpha, scales)
        case sections.DualProjBalance():
            return DualProj(weights)
        case sections.ConFIGBalance():
            return ConFIG([tasks * weight for weight in weights])


def check_balancer(study: Study) -> None:
    """See that the study's balancer can do what the study asks for. All methods are built in: none needs a solver.

    Raises:
        StudyError: when a task has the weight 0 that only fixed weights can give it, when the features that gradients
            are to be compared at are not shared, or when gradients are to be combined in float16.
    """
    kind = study.balance.kind
    problems = []
    unweighted = [name for name, weight in study.task_weights.items() if weight == 0]
    if kind != "fixed" and len(study.tasks) > 1:
        problems += [
            Problem(
                f"tasks.{name}.weight", f"is 0, which balance.kind '{kind}' cannot balance; remove the task or raise it"
            )
            for name in unweighted
        ]
    if getattr(study.balance, "at", "parameters") == "features" and not isinstance(study.model.sharing, HardSharing):
        problems.append(
            Problem(
                "balance.at",
                "'features' needs one representation of all tasks, which model.sharing.kind "
                f"'{study.model.sharing.kind}' does not have; use 'parameters' or the sharing scheme 'hard'",
            )
        )
    if study.training.precision == "float16" and (hasattr(study.balance, "at") or kind == "gradnorm"):
        message = (
            f"float16 scales losses, which balance.kind '{kind}' would take for their size; use bfloat16 or float32"
        )
        problems.append(Problem("training.precision", message))
    if problems:
        raise StudyError(problems)
