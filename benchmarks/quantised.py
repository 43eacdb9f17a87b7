"""What quantisation costs a checkpoint on its test split: F1 by label, and time and size.

    python benchmarks/quantised.py --run OUT/RUN [--out REPORT] [--json]

`OUT` is what `jobs/train.py` wrote for a task of beats or recordings, `RUN` one of its runs, exported by
`jobs/export.py`. The test records are scored from the shards in `OUT/work` by every back end, through
the scoring job's own path; each is one more look at the test split. Time is the median of one window,
batch 1, one thread, the back ends in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from printing import print_rows

from rayecg import pipeline
from rayecg.core.experiment import ScoreSettings
from rayecg.core.files import read_table, write_text
from rayecg.core.settings import to_tree
from rayecg.core.train_settings import TrainSettings
from rayecg.core.versions import versions
from rayecg.metrics.classification import evaluate_decisions
from rayecg.models.backends import open_backend
from rayecg.models.catalogue import ModelInputs, declared_reads
from rayecg.models.checkpoint import ONNX, ONNX_INT8, WEIGHTS, input_settings, load_checkpoint
from rayecg.models.export import latencies
from rayecg.signal.side import side_names

FILES = {"eager": WEIGHTS, "onnx": ONNX, "onnx_int8": ONNX_INT8}


def decisions(
    run: Path, backend: Any, examples: pd.DataFrame, unit: str, out: Path
) -> pd.DataFrame:
    """Score the test records by a back end; gives the rows of the test examples."""
    ids = ", ".join("'" + one.replace("'", "''") + "'" for one in examples["record_id"].unique())
    pipeline.score(
        run / "checkpoint",
        None,
        out / backend,
        ScoreSettings(backend=backend),
        shards=run.parent / "work" / "shards",
        select=f"record_id IN ({ids})",
    )
    folder, keys = (
        ("windows", ["record_id", "offset"]) if unit == "beat" else ("predictions", ["record_id"])
    )
    found = read_table(out / backend / folder).to_pandas()
    return examples.merge(found, on=keys, how="left", validate="one_to_one")


def times(run: Path, card: dict[str, Any], model: torch.nn.Module) -> dict[str, float]:
    """Time one window by each back end; gives ms."""
    settings = input_settings(card)
    inputs = ModelInputs.of(settings)
    rng = np.random.default_rng(0)
    x_WLT = rng.normal(0, 1, (1, len(settings.leads), inputs.n_times)).astype(np.float32)
    side_WM = rng.normal(0, 1, (1, len(side_names(settings)))).astype(np.float32)
    own = {name: open_backend(name, run / "checkpoint", model, 1, threads=1) for name in FILES}
    return latencies(own, x_WLT, side_WM)


def made_with(card: dict[str, Any]) -> dict[str, str]:
    """Give the settings of a run that are not the defaults, nor what its architecture declares."""
    default = {
        "hyperparameters": {},
        "input": to_tree(declared_reads(card["architecture"]).input),
        "train": to_tree(TrainSettings()),
    }
    own = {name: card[name] for name in ("hyperparameters", "input")}
    return _changed(own | {"train": card["training"]["settings"]}, default, "")


def _changed(own: dict[str, Any], default: dict[str, Any], at: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in own.items():
        known = default.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            found |= _changed(value, known, f"{at}{name}.")
        elif name not in default or value != known:
            found[f"{at}{name}"] = json.dumps(value)
    return found


def measure(run: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Measure every back end of a run; gives a row for each, and the run's card."""
    model, card = load_checkpoint(run / "checkpoint")
    labels = tuple(card["task"]["labels"])
    examples = read_table(run.parent / "work" / "examples.parquet").to_pandas()
    examples = examples[examples["split"] == "test"]
    if card["training"]["fold"] is not None:
        examples = examples[examples["fold"] == card["training"]["fold"]]
    target_NC = examples[[f"target_{label}" for label in labels]].to_numpy()
    ms = times(run, card, model)
    rows = {}
    with tempfile.TemporaryDirectory() as work:
        for name, file in FILES.items():
            found = decisions(run, name, examples, card["task"]["unit"], Path(work))
            decision_NC = found[[f"decision_{label}" for label in labels]].to_numpy()
            known_N = ~np.isnan(decision_NC).any(axis=1)
            figures = evaluate_decisions(
                target_NC[known_N], decision_NC[known_N].astype(np.int8), labels
            )
            rows[name] = {
                "ms a window": ms[name],
                "MB": (run / "checkpoint" / file).stat().st_size / 1e6,
                **{f"F1 {label}": figures[f"f1_{label}"] for label in labels},
                "examples": int(known_N.sum()),
                "not decided": int((~known_N).sum()),
            }
    return rows, card


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--run", type=Path, required=True, help="a run of jobs/train.py, exported")
    parser.add_argument("--out", type=Path, help="folder for summary.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rows, card = measure(arguments.run.resolve())
    training = card["training"]
    how = {name: training[name] for name in ("split", "fold", "seed", "synthetic")}
    facts = {"architecture": card["architecture"], "task": card["task"]["name"], **how}
    print_rows(rows, arguments.json, **facts, settings=made_with(card))
    if arguments.out:
        write_text(arguments.out / "summary.md", markdown(rows, card))


def markdown(rows: dict[str, dict[str, Any]], card: dict[str, Any]) -> str:
    """Give the table with what it is of."""
    names = ["back end", *rows["eager"]]
    own = versions()
    made = ", ".join(f"`{name}={value}`" for name, value in made_with(card).items())
    lines = [
        f"# {card['architecture']}, quantised",
        "",
        f"{card['n_parameters']:,} parameters, task {card['task']['name']}, split "
        f"{card['training']['split']}, {card['training']['epochs']} epochs, seed "
        f"{card['training']['seed']}; F1 on the test split (one look each), by the scoring job. Time: "
        "median of one window, batch 1, one thread, in turns; torch "
        f"{own['torch']}, ONNX Runtime {card['exports'][ONNX]['made_by']['onnxruntime']}.",
        "",
        f"Made with, by the card, beside defaults and what the architecture declares: {made or 'nothing'}.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + " --- |" * len(names),
    ]
    for name, row in rows.items():
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (name, *row.values())]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
