"""`scale`: workers, devices and precision."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from polyshot.study.section import Section


class Scale(Section):
    """Where and on how much a run trains."""

    workers: int = Field(1, ge=1, description="Data-parallel workers of one training run.")
    min_workers: int | None = Field(
        None, ge=1, description="Go on with so few where nodes are missing, and with all again when there is room."
    )
    shard: bool = Field(
        False,
        description="Divide parameters, gradients and the optimiser's state over the workers (FSDP), for encoders that "
        "fill a device: with hard sharing and balancers that weigh losses.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: a GPU where there is one.")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each worker; by default what the model keeps busy here, and one in a Ray worker.",
    )
    engine: Literal["auto", "process", "ray"] = Field(
        "auto", description="`auto`: in this process for one worker, Ray Train for more."
    )
    max_failures: int = Field(2, ge=0, description="Times that a killed worker or trial is restarted.")
    address: str | None = Field(None, description="A Ray cluster's address; by default RAY_ADDRESS, else embedded.")

    @model_validator(mode="after")
    def _workers_agree(self) -> Self:
        if self.engine == "process" and self.workers > 1:
            raise ValueError(f"engine 'process' has one worker, workers is {self.workers}; use engine 'ray' or 'auto'")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) is above workers ({self.workers}); lower it")
        return self
