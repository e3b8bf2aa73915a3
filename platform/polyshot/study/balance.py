"""`balance`: how the losses of several tasks become one update."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from polyshot.study.section import Section, kind_or


class FixedBalance(Section):
    """The weighted sum of task losses, with the weights of the tasks on the simplex."""

    kind: Literal["fixed"] = "fixed"


class RandomBalance(Section):
    """Random weights for every batch (Lin 2022): what a balancer has to beat."""

    kind: Literal["random"]


class UncertaintyBalance(Section):
    """Weights from learnt noise levels of the tasks (Kendall 2018)."""

    kind: Literal["uncertainty"]


class DWABalance(Section):
    """Dynamic weight average: tasks whose loss falls slowly weigh more (Liu 2019)."""

    kind: Literal["dwa"]
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="Higher is closer to equal weights.")


class GLSBalance(Section):
    """The geometric mean of the losses (Chennupati 2019)."""

    kind: Literal["gls"]


class FAMOBalance(Section):
    """All losses fall at the same relative rate, learnt from the losses alone (Liu 2023)."""

    kind: Literal["famo"]
    learning_rate: float = Field(0.025, gt=0, allow_inf_nan=False, description="Of the task weights' logits.")
    weight_decay: float = Field(1e-3, ge=0, allow_inf_nan=False, description="Of the task weights' logits.")


class STCHBalance(Section):
    """A smooth maximum of the weighted losses (Lin 2024)."""

    kind: Literal["stch"]
    mu: float = Field(0.1, gt=0, allow_inf_nan=False, description="Smoothing μ; smaller is closer to the maximum.")


class IMTLLBalance(Section):
    """Learnt scales that make all losses alike (IMTL-L, Liu 2021)."""

    kind: Literal["imtl_l"]


class GradNormBalance(Section):
    """Loss weights that make tasks train at similar rates, from gradient norms at the last shared layer (Chen 2018)."""

    kind: Literal["gradnorm"]
    alpha: float = Field(1.5, ge=0, allow_inf_nan=False, description="How strongly rates are drawn together (α).")
    learning_rate: float = Field(0.025, gt=0, allow_inf_nan=False, description="Of the loss weights.")


class GradientBalance(Section):
    """What the methods that combine the tasks' gradients have in common."""

    at: Literal["parameters", "features"] = Field(
        "parameters",
        description="Where gradients are compared: at the shared `parameters` (the papers' own), or at the shared "
        "`features`, which is nearly as fast as fixed weights, an approximation, and needs hard sharing.",
    )


class MGDABalance(GradientBalance):
    """The shortest convex combination of the gradients (Désidéri 2012, Sener & Koltun 2018)."""

    kind: Literal["mgda"]
    normalise: Literal["none", "norm", "loss"] = Field("none", description="What gradients are divided by first.")


class PCGradBalance(GradientBalance):
    """Conflicting gradients are projected on each other's normal planes (Yu 2020)."""

    kind: Literal["pcgrad"]


class GradVacBalance(GradientBalance):
    """Pairs of gradients are brought to their usual cosine (Wang 2021)."""

    kind: Literal["gradvac"]
    beta: float = Field(0.5, ge=0, le=1, description="Share of the new cosine in the running mean (β).")


class GradDropBalance(GradientBalance):
    """In each coordinate, gradients of one randomly drawn sign (Chen 2020)."""

    kind: Literal["graddrop"]


class CAGradBalance(GradientBalance):
    """Near the average gradient, what serves the worst-off task best (Liu 2021)."""

    kind: Literal["cagrad"]
    c: float = Field(0.5, ge=0, allow_inf_nan=False, description="How far from the average gradient, in its norm (c).")


class IMTLGBalance(GradientBalance):
    """The direction with equal projections on all gradients (IMTL-G, Liu 2021)."""

    kind: Literal["imtl_g"]


class NashMTLBalance(GradientBalance):
    """The Nash bargaining solution among tasks (Navon 2022)."""

    kind: Literal["nash_mtl"]
    max_norm: float | None = Field(1.0, gt=0, description="Largest norm of the combined gradient; `null` for none.")
    every: int = Field(1, ge=1, description="Steps for which weights are kept.")


class AlignedMTLBalance(GradientBalance):
    """The gradients are made orthogonal before they are summed (Senushkin 2023)."""

    kind: Literal["aligned_mtl"]
    scale: Literal["min", "median", "rmse"] = Field("min", description="Which eigenvalue their length is taken from.")


class UPGradBalance(GradientBalance):
    """Each gradient is projected on the directions that harm no task, then they are summed (Quinton & Rey 2024)."""

    kind: Literal["upgrad"]


class FairGradBalance(GradientBalance):
    """α-fair allocation of the update among tasks (Ban & Ji 2024)."""

    kind: Literal["fairgrad"]
    alpha: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="Fairness α: 0 the average, 1 proportional (Nash), higher fairer."
    )


class DualProjBalance(GradientBalance):
    """The average gradient, projected on the directions that harm no task (Lopez-Paz & Ranzato 2017)."""

    kind: Literal["dualproj"]


class ConFIGBalance(GradientBalance):
    """The direction with equal cosines to all gradients (Liu 2025)."""

    kind: Literal["config"]


Balance = Annotated[
    Annotated[FixedBalance, Tag("fixed")]
    | Annotated[RandomBalance, Tag("random")]
    | Annotated[UncertaintyBalance, Tag("uncertainty")]
    | Annotated[DWABalance, Tag("dwa")]
    | Annotated[GLSBalance, Tag("gls")]
    | Annotated[FAMOBalance, Tag("famo")]
    | Annotated[STCHBalance, Tag("stch")]
    | Annotated[IMTLLBalance, Tag("imtl_l")]
    | Annotated[GradNormBalance, Tag("gradnorm")]
    | Annotated[MGDABalance, Tag("mgda")]
    | Annotated[PCGradBalance, Tag("pcgrad")]
    | Annotated[GradVacBalance, Tag("gradvac")]
    | Annotated[GradDropBalance, Tag("graddrop")]
    | Annotated[CAGradBalance, Tag("cagrad")]
    | Annotated[IMTLGBalance, Tag("imtl_g")]
    | Annotated[NashMTLBalance, Tag("nash_mtl")]
    | Annotated[AlignedMTLBalance, Tag("aligned_mtl")]
    | Annotated[UPGradBalance, Tag("upgrad")]
    | Annotated[FairGradBalance, Tag("fairgrad")]
    | Annotated[DualProjBalance, Tag("dualproj")]
    | Annotated[ConFIGBalance, Tag("config")],
    kind_or("fixed"),
]
