"""The only room that composes stages: one function per job."""

from rayecg.audit.ledger import note_looks
from rayecg.pipeline.export import export
from rayecg.pipeline.jobs import (
    BenchmarkResult,
    audit,
    benchmark,
    compare,
    list_rules,
    make_shards,
    measure_architectures,
    report,
    search,
    train,
)
from rayecg.pipeline.planning import check_experiment, plan_runs, prepare
from rayecg.pipeline.scoring import estimate, score
from rayecg.tasks.task import load_task

__all__ = [
    "BenchmarkResult",
    "audit",
    "benchmark",
    "check_experiment",
    "compare",
    "estimate",
    "export",
    "list_rules",
    "load_task",
    "make_shards",
    "measure_architectures",
    "note_looks",
    "plan_runs",
    "prepare",
    "report",
    "score",
    "search",
    "train",
]
