"""The settings of an experiment: what a YAML under `jobs/experiments/` may say.

Sections that configure Ray carry Ray's own field names (`ScalingConfig`, `FailureConfig`,
`ray.init`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rayecg.core.limits import default_unless_read, positive
from rayecg.core.search_settings import SearchSettings
from rayecg.core.session import RaySettings
from rayecg.core.settings import Overrides
from rayecg.core.train_settings import TrainSettings

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


@dataclass(frozen=True)
class ArchiveSettings:
    """Which archive, where it lies, and how much of it.

    `rate` (Hz) chooses among the rates that an archive publishes (PTB-XL: 100, 500); `limit` takes
    the first records only; `subset` says in words which part of a release lies at `path`, where it is
    not all of it (the audit reads it); `n_records` and `seed` belong to the synthetic archive, which is written
    into the output's work folder when it has no path.
    """

    kind: str = "synthetic"
    path: str | None = None
    rate: int | None = None
    limit: int | None = None
    subset: str | None = None
    n_records: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, "rate", "limit", "n_records")


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
        positive(self, "fs", "records_per_shard")
        if self.window_s is not None and not 0.1 <= self.window_s < math.inf:
            raise ValueError(f"window_s: expected 0.1 s or more, came {self.window_s}")
        if self.windows == "first" and self.window_s is None:
            raise ValueError("windows: 'first' expects window_s, the length to keep")


@dataclass(frozen=True)
class TaskSettings:
    """Which label space; `minimum_likelihood` (0-100) and `primary_metric` override the task's own."""

    SHORTHAND: ClassVar[str] = "name"
    name: str = "ptbxl_superdiagnostic"
    minimum_likelihood: float | None = None
    primary_metric: str | None = None

    def __post_init__(self) -> None:
        if self.minimum_likelihood is not None and not 0 <= self.minimum_likelihood <= 100:
            raise ValueError(
                f"minimum_likelihood: expected 0 to 100, came {self.minimum_likelihood}"
            )


@dataclass(frozen=True)
class SplitSettings:
    """Who trains, validates and tests.

    `protocol` "task" is the task's own split; "kfold" tests on each of `k` groups of patients in
    turn, validating on the next one; "holdout" divides the patients by `fractions`; "rotate" keeps
    the task's test split and validates on each of `k` groups of its other patients in turn. Groups
    are drawn by patient, with labels spread evenly, from `seed`. `exclude` leaves out records by id.

    A task's own split is the same for everyone, also where it is a draw, so "task" reads no `seed`.
    """

    SHORTHAND: ClassVar[str] = "protocol"
    protocol: Literal["task", "kfold", "holdout", "rotate"] = "task"
    k: int = 5
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    seed: int = 0
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        folds = ("k", "seed")
        reads = {"kfold": folds, "holdout": ("fractions", "seed"), "rotate": folds}
        default_unless_read(self, "protocol", reads)
        least = 3 if self.protocol == "kfold" else 2
        if self.k < least:
            raise ValueError(f"k: expected {least} or more, came {self.k}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, came {self.seed}")
        whole = abs(sum(self.fractions) - 1) <= 1e-9  # false for NaN
        if not whole or min(self.fractions) <= 0:
            raise ValueError(
                f"fractions: expected three above 0 that add up to 1, came {self.fractions}"
            )


@dataclass(frozen=True)
class ImageSettings:
    """The images that a 2-D network makes of its window, one a lead, `size` pixels square.

    `kind`: Gramian angular summation or difference field, Markov transition field of `n_bins`
    quantiles, or recurrence plot. `backend` "pyts" is the slow reference.
    """

    SHORTHAND: ClassVar[str] = "kind"
    kind: Literal["gasf", "gadf", "mtf", "recurrence"] = "gasf"
    size: int = 224
    n_bins: int = 5
    backend: Literal["torch", "pyts"] = "torch"

    def __post_init__(self) -> None:
        positive(self, "size")
        if self.n_bins < 2:
            raise ValueError(f"n_bins: expected 2 or more, came {self.n_bins}")


@dataclass(frozen=True)
class InputSettings:
    """What a network sees of a recording; every architecture declares its own.

    A window of `duration_s` at `fs` Hz of `leads`; for beat-wise tasks it is centred on the R peak.
    `bandpass_hz` filters the whole record before it is resampled; `normalisation` "record" makes
    each lead of the record zero mean and unit variance, "none" leaves mV. `absent_leads` "zero" lets
    a record without some of the leads be read as 0 there, and marks it degraded; "accept" does not
    mark it, which is right where the training records lack leads too; "refuse" does not read it.
    `combine` says how the logits of a longer recording's windows become the record's.

    `metadata` and `features` give the network columns of numbers beside the window (its side inputs,
    see `rayecg.signal.side`); `image` says what a 2-D network makes of the window.

    `beats` says what becomes of a record without annotated beats in a beat-wise task: "annotated"
    refuses it, "detected" lets `rayecg.signal.beats` find them. Annotated beats are taken as they
    are, so that training and evaluation always stand at them.
    """

    fs: int = 100
    duration_s: float = 10.0
    leads: tuple[str, ...] = STANDARD_LEADS
    bandpass_hz: tuple[float, float] | None = None
    normalisation: Literal["none", "record"] = "none"
    absent_leads: Literal["zero", "accept", "refuse"] = "zero"
    combine: Literal["mean", "max"] = "mean"
    metadata: tuple[Literal["age", "sex"], ...] = ()
    features: tuple[
        Literal["intervals", "rhythm", "prematurity", "beat_shape", "measurements"], ...
    ] = ()
    image: ImageSettings | None = None
    beats: Literal["annotated", "detected"] = "annotated"

    def __post_init__(self) -> None:
        positive(self, "fs", "duration_s")
        if self.fs > 1e6 or self.duration_s > 1e6:
            raise ValueError(
                f"fs, duration_s: expected 1e6 (Hz, s) or less each, came {self.fs}, {self.duration_s}"
            )
        for name in ("leads", "metadata", "features"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: expected each once, came {getattr(self, name)}")
        if not self.leads:
            raise ValueError("leads: expected at least one")
        if self.n_times < 8:
            raise ValueError(f"fs x duration_s: expected 8 samples or more, came {self.n_times}")
        if self.bandpass_hz is not None and not (
            0 < self.bandpass_hz[0] < self.bandpass_hz[1] < math.inf
        ):
            raise ValueError(f"bandpass_hz: expected 0 < low < high, came {self.bandpass_hz}")
        if self.image is not None and self.image.size > self.n_times:
            raise ValueError(
                f"image.size: expected at most the window's {self.n_times} samples, "
                f"came {self.image.size}"
            )

    @property
    def n_times(self) -> int:
        """Time points of a window."""
        return round(self.fs * self.duration_s)


@dataclass(frozen=True)
class ArchitectureSettings:
    """One architecture of the catalogue, and what differs from its defaults.

    `input` and `train` are for this architecture alone, and go before the experiment's own. `label`
    names it in tables.
    """

    SHORTHAND: ClassVar[str] = "name"
    name: str = "simple_cnn1d"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    input: Overrides[InputSettings] = field(default_factory=Overrides)
    train: Overrides[TrainSettings] = field(default_factory=Overrides)

    def __post_init__(self) -> None:
        shared = {"scaling", "failure"} & set(self.train)
        if shared:
            raise ValueError(
                f"train: {', '.join(sorted(shared))} is the same for all architectures"
            )

    @property
    def title(self) -> str:
        """Name in tables: `label`, or the catalogue's own."""
        return self.label or self.name


#: Ways to run a network; see `rayecg.models.backends`.
BackendName = Literal["eager", "bf16", "compile", "onnx", "onnx_int8"]


@dataclass(frozen=True)
class ScoreSettings:
    """Ray actors that score: how many, what each has, and what decides a row's bits.

    An actor has `num_cpus` and `num_gpus`, and as many threads as whole CPUs; `concurrency` None fills
    the cluster with actors. `backend` runs the network (`rayecg.models.backends`), always on batches of
    `batch_size` windows. `records_per_unit` None chooses by the archive's size; `partition` names a
    column whose values become folders of the predictions.
    """

    concurrency: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int = 64
    backend: BackendName = "eager"
    records_per_unit: int | None = None
    partition: Literal["status", "site", "device", "strat_fold", "sex"] | None = None

    def __post_init__(self) -> None:
        positive(self, "concurrency", "num_cpus", "batch_size", "records_per_unit")
        n = float(self.num_gpus)
        if not (0 <= n <= 1 or (n > 1 and n.is_integer())):  # false for NaN
            raise ValueError(f"num_gpus: expected 0 or more, whole from 1 on, came {self.num_gpus}")

    @property
    def threads(self) -> int:
        """Of one actor."""
        return max(int(self.num_cpus), 1)

    @property
    def device(self) -> str:
        """Of one actor, as torch names it."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True)
class AuditSettings:
    """What is run for the audit alone.

    `batch_dependence` test examples are scored again by every run, in other batches (0: none).
    `permuted_labels` names an architecture of the experiment that is trained once more, with its
    first seed on every fold, on labels that were dealt out anew; it costs as much as those runs.

    The ledger of the output folder counts looks at the test split. `looks_elsewhere` adds those made in
    other folders; `looks_correction` says how figures were corrected for further looks, or why none is
    due, and stands in the audit as it is.
    """

    batch_dependence: int = 64
    permuted_labels: str | None = None
    looks_elsewhere: int = 0
    looks_correction: str = ""

    def __post_init__(self) -> None:
        if self.batch_dependence < 0:
            raise ValueError(f"batch_dependence: expected 0 or more, came {self.batch_dependence}")
        if self.looks_elsewhere < 0:
            raise ValueError(f"looks_elsewhere: expected 0 or more, came {self.looks_elsewhere}")


@dataclass(frozen=True)
class Experiment:
    """Architectures x seeds x splits on one task of one archive.

    `input` holds what differs, for all architectures, from what each declares. It is an offer:
    `image`, `metadata` and `features` reach the architectures that read them. `ensembles` averages
    the probabilities of each architecture's seeds, of all runs of all architectures, or both.
    """

    name: str = "demo"
    title: str = ""
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    shards: ShardSettings = field(default_factory=ShardSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    input: Overrides[InputSettings] = field(default_factory=Overrides)
    architectures: tuple[ArchitectureSettings, ...] = (
        ArchitectureSettings("simple_cnn1d"),
        ArchitectureSettings("xresnet1d18"),
        ArchitectureSettings("xresnet1d50"),
    )
    seeds: tuple[int, ...] = (0, 1)
    ensembles: tuple[Literal["seeds", "architectures"], ...] = ("seeds",)
    train: TrainSettings = field(default_factory=TrainSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    search: SearchSettings | None = None
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
        if self.audit.permuted_labels not in (None, *titles):
            raise ValueError(
                f"audit.permuted_labels: expected one of {', '.join(titles)}, "
                f"came {self.audit.permuted_labels}"
            )
        if len(set(self.ensembles)) < len(self.ensembles):
            raise ValueError("ensembles: expected each kind once")
