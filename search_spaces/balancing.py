"""Which balancer, with its own parameters: conditional, so that a sampler never learns from values that did nothing.

Fixed weights are always among the kinds, with the task weights searched as well: when tuned they are hard to beat
(Kurin et al., NeurIPS 2022), and a search without them would only show that something beats untuned ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyshot.search_spaces.task_weights import task_weights
from polyshot.study import Study

if TYPE_CHECKING:
    import optuna

_BY_LOSSES = ["fixed", "random", "uncertainty", "dwa", "gls", "famo", "stch", "imtl_l", "gradnorm"]
_BY_GRADIENTS = [
    *("mgda", "pcgrad", "gradvac", "graddrop", "cagrad", "imtl_g"),
    *("nash_mtl", "aligned_mtl", "upgrad", "fairgrad", "dualproj", "config"),
]


def balancing(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """`balance.kind` with that kind's parameters; for `fixed` the task weights; where gradients are compared.

    Ranges hold what the methods' papers report on. Kinds that are not listed have no parameters worth searching. List
    this space after the one that searches the sharing scheme, since features are compared with hard sharing only.
    """
    kind = trial.suggest_categorical("balance.kind", [*_BY_LOSSES, *_BY_GRADIENTS])
    values: dict[str, Any] = {"balance.kind": kind}

    def search(name: str, low: float, high: float, log: bool = False) -> None:
        values[f"balance.{name}"] = trial.suggest_float(f"balance.{kind}.{name}", low, high, log=log)

    match kind:
        case "fixed":
            values |= task_weights(trial, study)
        case "dwa":
            search("temperature", 0.5, 5)
        case "famo":
            search("learning_rate", 1e-3, 1e-1, log=True)
            search("weight_decay", 1e-5, 1e-2, log=True)
        case "stch":
            search("mu", 0.01, 1, log=True)
        case "gradnorm":
            search("alpha", 0, 3)
        case "mgda":
            values["balance.normalise"] = trial.suggest_categorical("balance.mgda.normalise", ["none", "norm", "loss"])
        case "gradvac":
            search("beta", 1e-3, 1, log=True)
        case "cagrad":
            search("c", 0.1, 0.9)
        case "fairgrad":
            search("alpha", 0.5, 10, log=True)
    sharing = trial.params.get("model.sharing.kind", study.model.sharing.kind)
    if kind in _BY_GRADIENTS and sharing == "hard":
        values["balance.at"] = trial.suggest_categorical("balance.at", ["parameters", "features"])
    return values
