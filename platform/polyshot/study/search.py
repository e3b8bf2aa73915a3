"""`search`: what is searched, for how long and by which method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from polyshot.study.section import Section


class Choice(Section):
    """One of the listed values."""

    choice: list[str | int | float | bool | None] = Field(min_length=1)


class Range(Section):
    """A number between `low` and `high`, both included; whole when both are."""

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = Field(False, description="Uniform in the logarithm.")
    step: int | float | None = Field(None, gt=0)

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}); exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low above 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("'log' and 'step' exclude each other; remove one")
        return self


def _distribution_tag(value: object) -> str:
    return "choice" if isinstance(value, Choice) or (isinstance(value, Mapping) and "choice" in value) else "range"


Distribution = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_distribution_tag)
]


class Search(Section):
    """What is searched, for how long and by which method."""

    spaces: list[str] = Field(
        ["task_weights", "optimisation"],
        description="Named search spaces (task_weights, architecture, optimisation, sharing, groupings, sampling, "
        "balancing, meta, transfer) or `package.module:function`.",
    )
    space: dict[str, Distribution] = Field({}, description="Distributions by dotted key of this study.")
    objective: str = Field(
        "improvement",
        description="`improvement` (Δm over single-task baselines) or `task/metric`; on validation. Searches of "
        "meta-learning have their own: the metric of the validation tasks.",
    )
    trials: int | None = Field(20, ge=1, description="Number of trials; `null` for as many as `minutes` allows.")
    minutes: float | None = Field(None, gt=0, description="Time limit of the whole search.")
    sampler: Literal["tpe", "random", "gp", "cmaes", "nsga2", "qmc"] = "tpe"
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="Which trials are stopped early.")
    grace_epochs: int = Field(
        5,
        ge=1,
        description="Epochs (in meta-learning: looks at the validation tasks) that every trial is given before it may "
        "be stopped.",
    )
    concurrency: int | None = Field(None, ge=1, description="Trials at once; by default as many as the CPUs allow.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.trials is None and self.minutes is None:
            raise ValueError("the search never ends; give 'trials', 'minutes' or both")
        if not self.spaces and not self.space:
            raise ValueError("nothing is searched; name a space in 'spaces' or a distribution in 'space'")
        return self
