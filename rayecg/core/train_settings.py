"""Settings of training, as dataclasses: loss, augmentation, workers, and one run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rayecg.core.limits import default_unless_read, positive


@dataclass(frozen=True)
class ScalingSettings:
    """Ray Train's `ScalingConfig`: the workers of one run.

    More than one is data-parallel: each takes its share of every batch, and gradients are those of one
    worker on the whole but where a network looks across the batch, as batch norms do at their share.
    """

    num_workers: int = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})

    def __post_init__(self) -> None:
        positive(self, "num_workers")
        if self.resources_per_worker.get("CPU", 0.0) <= 0:
            raise ValueError("resources_per_worker: expected CPU above 0")


@dataclass(frozen=True)
class FailureSettings:
    """Ray Train's `FailureConfig`."""

    max_failures: int = 2

    def __post_init__(self) -> None:
        if self.max_failures < 0:
            raise ValueError(f"max_failures: expected 0 or more, came {self.max_failures}")


@dataclass(frozen=True)
class AugmentSettings:
    """How training windows are changed; 0 leaves a change out.

    `shift_s` moves a window by up to so many seconds; `crop` sets all but a random stretch to 0,
    which keeps at least a share of 1 - crop; `scale` multiplies by a factor between 1 / (1 + scale)
    and 1 + scale; `noise` adds white noise of a deviation up to this, `wander` a baseline of 0.05 to
    0.5 Hz and an amplitude up to this (in the unit of the input); `lead_dropout` is the probability
    that a lead is set to 0; `mixup` is the parameter of the Beta distribution that two examples are
    mixed by.
    """

    shift_s: float = 0.0
    crop: float = 0.0
    scale: float = 0.0
    noise: float = 0.0
    wander: float = 0.0
    lead_dropout: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            top, below = (1, ", below 1") if name in ("crop", "lead_dropout") else (math.inf, "")
            if not 0 <= value < top:
                raise ValueError(f"{name}: expected 0 or more{below}, came {value}")


@dataclass(frozen=True)
class LossSettings:
    """What training makes small; see `rayecg.train.losses` for the formulas and their sources.

    `name` "auto" is "bce" for multilabel tasks and "cross_entropy" for multiclass ones; "focal"
    (`gamma`, and for multilabel tasks `alpha`) serves both, "asymmetric" (`gamma_positive`,
    `gamma_negative`, `clip`) multilabel tasks. `class_weights` are taken from the training examples:
    "sqrt_inverse" and "inverse" of each label's frequency, or for multilabel tasks "negatives", the
    number of negatives a positive.

    What the loss does not read must keep its default; "auto" reads `class_weights` alone.
    """

    SHORTHAND: ClassVar[str] = "name"
    name: Literal["auto", "bce", "cross_entropy", "focal", "asymmetric"] = "auto"
    class_weights: Literal["none", "sqrt_inverse", "inverse", "negatives"] = "none"
    gamma: float = 2.0
    alpha: float | None = None
    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        asymmetric = ("gamma_positive", "gamma_negative", "clip")
        default_unless_read(self, "name", {"focal": ("gamma", "alpha"), "asymmetric": asymmetric})
        for name in ("gamma", "gamma_positive", "gamma_negative"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, came {getattr(self, name)}")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected between 0 and 1, came {self.alpha}")
        if not 0 <= self.clip < 1:
            raise ValueError(f"clip: expected 0 or more, below 1, came {self.clip}")


@dataclass(frozen=True)
class OperatingPointSettings:
    """How a run decides and calibrates; see `rayecg.metrics.operating_point` for what each does.

    `rule` "auto" is "max_f1" for multilabel tasks and "argmax" for multiclass ones. Multilabel tasks
    also have "youden" and "sensitivity" (the highest threshold that reaches `sensitivity`); multiclass
    ones "weighted_argmax", whose `class_weights` are the inverse of the classes' frequencies in the
    training split, or its square root. What the rule does not read must keep its default.

    `calibrator` is fitted on validation: one "temperature" for all labels, a "platt" slope and
    intercept or an "isotonic" curve for each, or "none".
    """

    SHORTHAND: ClassVar[str] = "rule"
    rule: Literal["auto", "max_f1", "youden", "sensitivity", "argmax", "weighted_argmax"] = "auto"
    sensitivity: float = 0.90
    class_weights: Literal["inverse", "sqrt_inverse"] = "inverse"
    calibrator: Literal["temperature", "platt", "isotonic", "none"] = "temperature"

    def __post_init__(self) -> None:
        read = {"sensitivity": ("sensitivity",), "weighted_argmax": ("class_weights",)}
        default_unless_read(self, "rule", read)
        if not 0 < self.sensitivity <= 1:
            raise ValueError(f"sensitivity: expected above 0, up to 1, came {self.sensitivity}")


@dataclass(frozen=True)
class TrainSettings:
    """How one run is trained; see `rayecg.train.loop`.

    `examples_per_epoch` draws that many training examples without replacement instead of all.
    `monitor` is what the best epoch, `patience` and the "plateau" schedule go by: the task's primary
    metric on validation, or the loss there: plain, unweighted BCE or cross-entropy, whatever `loss`
    says. "plateau" multiplies the learning rate by `plateau_factor` after `plateau_patience` epochs
    without a better one.

    `accumulate` batches make a step of the optimiser. `ema` keeps a moving average of the weights
    with this decay, which is what is validated and kept in place of the last ones. `precision` "bf16"
    is mixed precision. `compile` has `torch.compile` write kernels for the training step: it needs a
    C++ compiler and takes up to minutes at every run's start. `trackers` get a row of the curves after
    every epoch, beside the files; "mlflow" and "wandb" go through Ray's integrations and need those
    packages.
    """

    epochs: int = 12
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    schedule: Literal["constant", "cosine", "one_cycle", "plateau"] = "one_cycle"
    plateau_factor: float = 0.5
    plateau_patience: int = 3
    monitor: Literal["metric", "loss"] = "metric"
    patience: int | None = None
    loss: LossSettings = field(default_factory=LossSettings)
    operating_point: OperatingPointSettings = field(default_factory=OperatingPointSettings)
    gradient_clip: float | None = 1.0
    ema: float | None = None
    examples_per_epoch: int | None = None
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    failure: FailureSettings = field(default_factory=FailureSettings)

    def __post_init__(self) -> None:
        positive(self, "epochs", "batch_size", "learning_rate", "patience", "examples_per_epoch")
        positive(self, "gradient_clip", "plateau_patience", "accumulate")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: expected between 0 and 1, came {self.ema}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected 0 or more, came {self.weight_decay}")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(
                f"plateau_factor: expected between 0 and 1, came {self.plateau_factor}"
            )
        if self.batch_size % self.scaling.num_workers:
            raise ValueError(
                f"batch_size: expected a multiple of scaling.num_workers "
                f"({self.scaling.num_workers}), came {self.batch_size}"
            )
