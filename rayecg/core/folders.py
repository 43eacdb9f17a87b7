"""Where the stages of a benchmark leave their files for one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """Where a benchmark keeps what, below its output folder."""

    out: Path
    train: Path

    @classmethod
    def of_benchmark(cls, out: str | Path) -> Folders:
        """Keep everything but the report below `work`."""
        return cls(Path(out), Path(out) / "work" / "train")

    @classmethod
    def of_training(cls, out: str | Path) -> Folders:
        """Keep the runs in the output folder itself."""
        return cls(Path(out), Path(out))

    @property
    def work(self) -> Path:
        """Files that the stages pass on."""
        return self.out / "work"

    @property
    def archive(self) -> Path:
        """The synthetic archive, where the experiment names no path."""
        return self.work / "archive"

    @property
    def shards(self) -> Path:
        """Output of the shards stage."""
        return self.work / "shards"

    @property
    def examples(self) -> Path:
        """Who belongs to which split, with which targets."""
        return self.work / "examples.parquet"

    @property
    def scores(self) -> Path:
        """One folder of predictions for each run."""
        return self.work / "score"

    @property
    def batches(self) -> Path:
        """What `rayecg.score.batches` found, a file for each run."""
        return self.work / "audit" / "batches"

    @property
    def permuted(self) -> Path:
        """The runs on permuted labels, with what they were trained on and their predictions."""
        return self.work / "audit" / "permuted"
