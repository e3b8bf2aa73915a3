"""`search`: what is searched, for how long and by which method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from polyshot.study.section import Section

# What can be optimised or bounded beside `task/metric`; of a trial, on validation.
IMPROVEMENT, WORST_IMPROVEMENT, RANK = "improvement", "worst_improvement", "rank"
COSTS = ("parameters", "latency_ms", "training_seconds")
# Schedulers of a population, whose trials copy each other on the way, and what can then be changed in mid-training: not
# what a model is, nor what its data are.
POPULATIONS = ("pbt", "pb2")
CHANGEABLE = (
    *(f"training.optimiser.{name}" for name in ("learning_rate", "weight_decay", "momentum")),
    *("training.batch_size", "training.clip_norm", "training.schedule.*", "tasks.*.weight", "tasks.*.sampling_weight"),
    *("model.encoder.dropout", "model.sharing.strength"),
)
SMALLEST_POPULATION = 4  # of which a quarter copies another quarter


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


@dataclass(frozen=True)
class Bound:
    """One of `search.constraints`: `name` must be at most `value`, or at least where `is_lower`."""

    name: str
    is_lower: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """
        Raises:
            ValueError: when the text is not of the form NAME <= NUMBER.
        """
        found = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=)\s*([^\s<>=]+)\s*", text)
        try:
            if found:
                return cls(found[1], found[2] == ">=", float(found[3]))
        except ValueError:
            pass
        raise ValueError(f"'{text}' is no constraint; write it as 'math/r2 >= 0.8' or 'latency_ms <= 5'")

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.is_lower else '<='} {self.value:g}"

    def violation(self, value: float) -> float:
        """By how much `value` breaks the bound, as a share of it; zero or less where it holds."""
        excess = self.value - value if self.is_lower else value - self.value
        return excess / (abs(self.value) or 1.0)


class Confirm(Section):
    """The best trials once more with new seeds, beside the study's own values: what was found, and what was luck."""

    top: int = Field(3, ge=1, description="How many of the best trials.")
    seeds: int = Field(5, ge=2, description="New seeds, the same for all.")


class Search(Section):
    """What is searched, for how long and by which method."""

    spaces: list[str] = Field(
        ["task_weights", "optimisation"],
        description="Named search spaces (task_weights, architecture, optimisation, sharing, groupings, sampling, "
        "balancing, meta, transfer) or `package.module:function`.",
    )
    space: dict[str, Distribution] = Field({}, description="Distributions by dotted key of this study.")
    start: list[str | dict[str, Any]] = Field(
        [],
        description="The first trials: `default` (the study's own values), `equal_weights` of the tasks, a point of "
        "your own (values by dotted key), the best of an earlier search (its run's folder, or `mlflow:EXPERIMENT`).",
    )
    objective: str | Annotated[list[str], Field(min_length=1)] = Field(
        "improvement",
        description="What is optimised, on validation: `improvement` (Δm over single-task baselines), "
        "`worst_improvement` (of the task that gains least), `task/metric`, `task/improvement`, `parameters`, "
        "`latency_ms` (of one row), `training_seconds`; several of them as a list; or `rank`: every task's metric, and "
        "of the trials that no other one beats in all, the one with the best mean rank, tasks weighed by their "
        "`weight`. Searches of meta-learning have their own: the metric of the validation tasks.",
    )
    constraints: list[str] = Field(
        [], description="What the trial that is chosen must hold, such as `math/r2 >= 0.8` or `latency_ms <= 5`."
    )
    trials: int | None = Field(20, ge=1, description="Number of trials; `null` for as many as `minutes` allows.")
    minutes: float | None = Field(None, gt=0, description="Time limit of the whole search.")
    sampler: Literal["tpe", "random", "gp", "cmaes", "nsga2", "nsga3", "qmc"] = "tpe"
    scheduler: Literal["auto", "asha", "median", "pbt", "pb2", "none"] = Field(
        "auto",
        description="Which trials are stopped early; `auto`: `asha`, and `none` where objectives are several. For "
        "`polyshot search`, `pbt` (population-based training) and `pb2` (population-based bandits) stop none: the "
        "worst trials copy the best ones on the way, and go on with other values.",
    )
    grace_epochs: int = Field(
        5,
        ge=1,
        description="Epochs (in meta-learning: looks at the validation tasks) that every trial is given before it may "
        "be stopped; of a population, epochs between two exchanges.",
    )
    fidelity: Literal["epochs", "labels"] = Field(
        "epochs",
        description="What `asha` gives to all trials a little of and to the promising ones more: `epochs`; or, for "
        "`polyshot search`, `labels`: a sixteenth of the labelled training rows, a quarter, and all of them, each time "
        "from scratch.",
    )
    pack: Literal["auto", "never"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="For `polyshot search`: trials that are trained at once in one process, without Ray, those of one "
        "shape as one stacked network: `auto`, where that is sooner done (small networks, short searches); a number: "
        "so many; `never`.",
    )
    confirm: Confirm | None = Field(None, description="For `polyshot search`; `null` for none.")
    concurrency: int | None = Field(None, ge=1, description="Trials at once; by default as many as the CPUs allow.")

    @property
    def objectives(self) -> list[str]:
        return [self.objective] if isinstance(self.objective, str) else self.objective

    @property
    def bounds(self) -> list[Bound]:
        return [Bound.parse(text) for text in self.constraints]

    @property
    def has_one_objective(self) -> bool:
        return len(self.objectives) == 1 and self.objectives != [RANK]

    @property
    def stopping(self) -> str:
        """The scheduler: `auto` is settled."""
        if self.scheduler == "auto":
            return "asha" if self.has_one_objective else "none"
        return self.scheduler

    @property
    def is_population(self) -> bool:
        return self.scheduler in POPULATIONS

    @field_validator("constraints")
    @classmethod
    def _constraints_can_be_read(cls, constraints: list[str]) -> list[str]:
        for text in constraints:
            Bound.parse(text)
        return constraints

    @model_validator(mode="after")
    def _methods_fit_objectives(self) -> Self:
        objectives = self.objectives
        if len(set(objectives)) < len(objectives):
            raise ValueError(f"objectives {objectives} name one twice; remove it")
        if RANK in objectives and len(objectives) > 1:
            raise ValueError("the objective 'rank' is every task's metric already; let it stand alone")
        if not self.has_one_objective:
            if self.scheduler in ("asha", "median", *POPULATIONS):
                raise ValueError(
                    f"the scheduler '{self.scheduler}' compares trials by one objective and there are several; "
                    "use 'none' (or 'auto')"
                )
            if self.sampler == "cmaes":
                raise ValueError("the sampler 'cmaes' has one objective; use tpe, nsga2, nsga3 or gp for several")
        elif self.sampler == "nsga3":
            raise ValueError("the sampler 'nsga3' is for several objectives; use 'nsga2' or 'tpe' for one")
        if self.constraints and self.sampler == "cmaes":
            raise ValueError("the sampler 'cmaes' knows no constraints; use tpe, nsga2 or gp")
        return self

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.trials is None and self.minutes is None:
            raise ValueError("the search never ends; give 'trials', 'minutes' or both")
        if not self.spaces and not self.space:
            raise ValueError("nothing is searched; name a space in 'spaces' or a distribution in 'space'")
        return self

    @model_validator(mode="after")
    def _fits_fidelity(self) -> Self:
        if self.fidelity == "labels" and self.stopping != "asha":
            raise ValueError(
                f"the fidelity 'labels' is for the scheduler 'asha' and one objective, and the scheduler is "
                f"'{self.stopping}'; use 'epochs'"
            )
        return self

    @model_validator(mode="after")
    def _fits_a_population(self) -> Self:
        if not self.is_population:
            return self
        kind = f"the scheduler '{self.scheduler}'"
        if self.trials is None or self.trials < SMALLEST_POPULATION:
            raise ValueError(f"{kind} trains a population of 'trials' side by side; give {SMALLEST_POPULATION} or more")
        if self.confirm is not None:
            raise ValueError(f"{kind} gives models of several trials' parts, which 'confirm' cannot train; remove it")
        if self.concurrency is not None:
            raise ValueError(f"{kind} has its whole population take turns; remove 'concurrency'")
        return self


def why_fixed(key: str) -> str | None:
    """Why a population cannot change a dotted key in mid-training, or None where it can."""
    if any(fnmatchcase(key, pattern) for pattern in CHANGEABLE):
        return None
    return (
        "cannot change in mid-training, as a population's values do; search learning rate, weight decay, batch size, "
        "schedule, dropout or task weights, or use the scheduler 'asha'"
    )
