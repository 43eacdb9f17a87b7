"""The settings of an experiment: what a YAML under `jobs/experiments/` may say.

Sections that configure Ray carry Ray's own field names (`ScalingConfig`, `FailureConfig`,
`ray.init`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rayecg.core.session import RaySettings

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected more than 0, came {value}")


@dataclass(frozen=True)
class ArchiveSettings:
    """Which archive, where it lies, and how much of it.

    `rate` (Hz) chooses among the rates that an archive publishes (PTB-XL: 100, 500); `limit` takes
    the first records only; `n_records` and `seed` belong to the synthetic archive, which is written
    into the output's work folder when it has no path.
    """

    kind: str = "synthetic"
    path: str | None = None
    rate: int | None = None
    limit: int | None = None
    n_records: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self, "rate", "limit", "n_records")


@dataclass(frozen=True)
class ShardSettings:
    """How records become Parquet.

    `fs` (Hz) resamples, None keeps the archive's rate. `records_per_shard` None chooses by the
    archive's size. `checks` says what a wrong checksum or initial value does, `quality` whether the
    recordings' quality is measured and flagged. `window_s` cuts records into windows of that length
    (s), or of 64 MiB if that is less, the last one padded; `windows` "first" keeps that length alone,
    which pads or crops.
    """

    fs: int | None = None
    records_per_shard: int | None = None
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    checks: Literal["error", "flag", "off"] = "error"
    quality: bool = True
    window_s: float | None = None
    windows: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        _positive(self, "fs", "records_per_shard")
        if self.window_s is not None and not 0.1 <= self.window_s < math.inf:
            raise ValueError(f"window_s: expected 0.1 s or more, came {self.window_s}")
        if self.windows == "first" and self.window_s is None:
            raise ValueError("windows: 'first' expects window_s, the length to keep")


@dataclass(frozen=True)
class TaskSettings:
    """Which label space; `minimum_likelihood` (0-100) overrides the task file's own."""

    SHORTHAND: ClassVar[str] = "name"
    name: str = "ptbxl_superdiagnostic"
    minimum_likelihood: float | None = None

    def __post_init__(self) -> None:
        if self.minimum_likelihood is not None and not 0 <= self.minimum_likelihood <= 100:
            raise ValueError(
                f"minimum_likelihood: expected 0 to 100, came {self.minimum_likelihood}"
            )


@dataclass(frozen=True)
class InputSettings:
    """What a network sees of a recording.

    A window of `duration_s` at `fs` Hz of `leads`; for beat-wise tasks it is centred on the R peak.
    `bandpass_hz` filters the whole record before it is resampled; `normalisation` "record" makes
    each lead of the record zero mean and unit variance, "none" leaves mV. `beats` says what becomes
    of a record without annotated beats in a beat-wise task: "annotated" refuses it, "detected" lets
    `rayecg.signal.beats` find them. Annotated beats are taken as they are, so that training and
    evaluation always stand at them. `context_beats` asks for so many RR intervals either side of
    each beat.
    """

    fs: int = 100
    duration_s: float = 10.0
    leads: tuple[str, ...] = STANDARD_LEADS
    bandpass_hz: tuple[float, float] | None = None
    normalisation: Literal["none", "record"] = "none"
    beats: Literal["annotated", "detected"] = "annotated"
    context_beats: int = 0

    def __post_init__(self) -> None:
        _positive(self, "fs", "duration_s")
        if not self.leads:
            raise ValueError("leads: expected at least one")
        if self.context_beats < 0:
            raise ValueError(f"context_beats: expected 0 or more, came {self.context_beats}")
        if self.n_times < 8:
            raise ValueError(f"fs x duration_s: expected 8 samples or more, came {self.n_times}")
        if self.bandpass_hz is not None and not 0 < self.bandpass_hz[0] < self.bandpass_hz[1]:
            raise ValueError(f"bandpass_hz: expected 0 < low < high, came {self.bandpass_hz}")

    @property
    def n_times(self) -> int:
        """Time points of a window."""
        return round(self.fs * self.duration_s)


@dataclass(frozen=True)
class ArchitectureSettings:
    """One architecture of the catalogue and the hyperparameters that differ from its defaults."""

    SHORTHAND: ClassVar[str] = "name"
    name: str = "simple_cnn1d"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def title(self) -> str:
        """Name in tables: `label`, or the catalogue's own."""
        return self.label or self.name


@dataclass(frozen=True)
class ScalingSettings:
    """Ray Train's `ScalingConfig`: the workers of one run (more than one is data-parallel)."""

    num_workers: int = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})

    def __post_init__(self) -> None:
        _positive(self, "num_workers")
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

    `shift_s` moves a window by up to so many seconds; `scale` multiplies it by a factor between
    1 / (1 + scale) and 1 + scale; `noise` adds white noise of a deviation up to this (in the unit of
    the input); `lead_dropout` is the probability that a lead is set to 0.
    """

    shift_s: float = 0.0
    scale: float = 0.0
    noise: float = 0.0
    lead_dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.shift_s, self.scale, self.noise) < 0 or not 0 <= self.lead_dropout < 1:
            raise ValueError("expected 0 or more, and lead_dropout below 1")


@dataclass(frozen=True)
class TrainSettings:
    """How one run is trained; see `rayecg.train.loop`.

    `examples_per_epoch` draws that many training examples without replacement instead of all.
    `loss` "auto" is binary cross-entropy for multilabel tasks and cross-entropy otherwise;
    "weighted" scales classes by the square root of their inverse frequency among the training
    examples.
    """

    epochs: int = 12
    batch_size: int = 64
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    patience: int | None = None
    loss: Literal["auto", "weighted"] = "auto"
    gradient_clip: float | None = 1.0
    examples_per_epoch: int | None = None
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    precision: Literal["fp32", "bf16"] = "fp32"
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    failure: FailureSettings = field(default_factory=FailureSettings)

    def __post_init__(self) -> None:
        _positive(self, "epochs", "batch_size", "learning_rate", "patience", "examples_per_epoch")
        _positive(self, "gradient_clip")
        if self.batch_size % self.scaling.num_workers:
            raise ValueError(
                f"batch_size: expected a multiple of scaling.num_workers "
                f"({self.scaling.num_workers}), came {self.batch_size}"
            )


@dataclass(frozen=True)
class ScoreSettings:
    """Ray Data actors that score: how many, their CPUs and GPUs, and the fixed batch shape."""

    concurrency: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        _positive(self, "concurrency", "num_cpus", "batch_size")
        if self.num_gpus < 0:
            raise ValueError(f"num_gpus: expected 0 or more, came {self.num_gpus}")


@dataclass(frozen=True)
class Experiment:
    """Architectures x seeds on one task of one archive."""

    name: str = "demo"
    title: str = ""
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    shards: ShardSettings = field(default_factory=ShardSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    input: InputSettings = field(default_factory=InputSettings)
    architectures: tuple[ArchitectureSettings, ...] = (
        ArchitectureSettings("simple_cnn1d"),
        ArchitectureSettings("xresnet1d18"),
        ArchitectureSettings("xresnet1d50"),
    )
    seeds: tuple[int, ...] = (0, 1)
    train: TrainSettings = field(default_factory=TrainSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        if min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds: expected 0 or more, came {min(self.seeds)}")
        for name in (self.name, *(architecture.title for architecture in self.architectures)):
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(
                    f"name, architectures: expected letters, digits, '_', '-', '.', came {name!r}"
                )
        titles = [architecture.title for architecture in self.architectures]
        if not titles or not self.seeds:
            raise ValueError("architectures, seeds: expected at least one of each")
        if len(set(titles)) < len(titles) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                "architectures, seeds: expected each once (give variants of one architecture "
                "labels of their own)"
            )
