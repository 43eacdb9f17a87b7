"""The settings of a search: what is varied, how it is drawn, and when a trial is given up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rayecg.core.limits import positive


@dataclass(frozen=True)
class RangeSettings:
    """The values that one setting may take: exactly one of the fields.

    `uniform` and `log_uniform` are bounds of numbers, `integer` of whole ones, the upper included;
    `choice` lists the values.
    """

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    choice: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        kinds = [own.name for own in fields(self)]
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of {', '.join(kinds)}, came {', '.join(given) or 'none'}"
            )
        if self.kind == "choice":
            if len({str(value) for value in self.edges}) < max(len(self.edges), 2):
                raise ValueError(
                    f"choice: expected two values or more, each once, came {self.edges}"
                )
            return
        low, high = self.edges
        least = 0 if self.kind == "log_uniform" else -math.inf
        if not least < low < high < math.inf:
            bounds = "0 < low < high" if least == 0 else "low < high"
            raise ValueError(f"{self.kind}: expected {bounds}, came {low}, {high}")

    @property
    def kind(self) -> str:
        """Name of the field that is given."""
        return next(own.name for own in fields(self) if getattr(self, own.name) is not None)

    @property
    def edges(self) -> tuple[Any, ...]:
        """The two bounds, or all values of a choice."""
        found: tuple[Any, ...] = getattr(self, self.kind)
        return found


@dataclass(frozen=True)
class SearchSettings:
    """What `jobs/search.py` varies; the other jobs do not read it.

    `space` names settings of the experiment as `--set` does: `train.…`, `input.…`, and
    `hyperparameters.…` of its one architecture. `n_trials` of them are drawn from `seed` by chance, or
    by Optuna's sampler, which learns from the trials before.

    A trial is given up (ASHA, Li et al. 2020) if after `grace_period` epochs, or that times a power of
    `reduction_factor`, it is not among the best 1 / `reduction_factor` of those that came so far.
    `folds` says which folds of the split trials are trained and validated on; None takes all.
    """

    space: dict[str, RangeSettings] = field(default_factory=dict)
    n_trials: int = 20
    seed: int = 0
    sampler: Literal["random", "optuna"] = "random"
    grace_period: int = 1
    reduction_factor: float = 3.0
    folds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        positive(self, "n_trials", "grace_period")
        if not 1 < self.reduction_factor < math.inf:
            raise ValueError(f"reduction_factor: expected above 1, came {self.reduction_factor}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, came {self.seed}")
        if self.folds is not None and (not self.folds or len(set(self.folds)) < len(self.folds)):
            raise ValueError(f"folds: expected at least one, each once, came {self.folds}")
        for name in self.space:
            longer = [other for other in self.space if other.startswith(f"{name}.")]
            if longer:
                raise ValueError(f"space: {longer[0]} is a part of {name}: expected one of them")
