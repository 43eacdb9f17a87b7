"""Export of a checkpoint: files for other runtimes, what they agree on with it and how fast they are.

Legend: N example, W window, L lead, T time, M side column, C label.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayecg.core.errors import DataError, SettingsError
from rayecg.core.files import MANIFEST, only_job_on, read_json, read_table
from rayecg.core.folders import Folders
from rayecg.core.outputs import OperatingPoint, probabilities
from rayecg.core.progress import Progress
from rayecg.metrics.classification import evaluate

if TYPE_CHECKING:
    import pandas as pd

    from rayecg.models.backends import Backend
    from rayecg.models.catalogue import ModelInputs

#: Windows that the exports see at a time where agreement is measured.
BATCH = 64
#: Where a card says which examples trained.
EXAMPLES = ("training", "data", "examples_sha256")


@dataclass(frozen=True)
class Measured:
    """Windows, and the examples that they were cut from.

    `split` is None for random numbers, which have no targets; `first_N` is each example's first window;
    `metric` names the figure that is told of them, None where the card names none.
    """

    split: str | None
    x_WLT: np.ndarray
    side_WM: np.ndarray
    first_N: np.ndarray
    target_NC: np.ndarray | None
    metric: str | None


def export(
    checkpoint: str | Path,
    shards: str | Path | None = None,
    examples: str | Path | None = None,
    n_calibration: int = 256,
    n_validation: int = 2000,
) -> dict[str, Any]:
    """Write a checkpoint's network as ONNX, int8 ONNX and a `torch.export` program into its bundle.

    Parameters
    ----------
    checkpoint
        The bundle; its card gets what is found.
    shards, examples
        Folder of shards and `examples.parquet` that it was trained on. If neither is given, they are
        looked for where a benchmark or a training that leaves the checkpoint there has them; where
        they are not, or the card does not say which examples they are, nothing is quantised and
        agreement is measured on random numbers.
    n_calibration
        Windows of training examples that fix the scales of int8.
    n_validation
        Validation examples that agreement is measured on.

    Returns
    -------
    dict
        `exports`: what the card says of them, by file name; `left_out`: file name to why it was not
        made.

    Raises
    ------
    DataError
        If the network cannot be exported, a float32 export differs from it by more than rounding, the
        shards or examples are not those that it was trained on, or the bundle cannot be written.
    SettingsError
        If the arguments do not fit together.
    """
    import torch

    from rayecg.models.backends import torch_backend, verify
    from rayecg.models.catalogue import ModelInputs as Inputs
    from rayecg.models.checkpoint import ONNX_INT8, add_exports, input_settings, load_checkpoint
    from rayecg.models.export import latencies, make_exports

    if min(n_calibration, n_validation) < 1:
        raise SettingsError("n_calibration, n_validation: expected at least 1 of each")
    folder = Path(checkpoint).resolve()
    model, card = load_checkpoint(folder)
    inputs = Inputs.of(input_settings(card))
    places = _places(folder, card, shards, examples)
    why = None
    if places is not None and _said(card, *EXAMPLES) is None:
        places, why = None, f"int8 needs training records: the card lacks {'.'.join(EXAMPLES)}"
    with _beside(folder) as beside:
        progress = Progress("export", 3, "steps")
        calibration, on = None, _noise(inputs)
        if places is not None:
            table = checked_examples(places[1], card)
            on = _windows(folder, card, places, table, "validation", n_validation, sys.maxsize)
            train = _windows(folder, card, places, table, "train", n_calibration, n_calibration)
            calibration = train.x_WLT, train.side_WM
        progress.update(1, "windows")
        made = make_exports(model, inputs, beside, calibration)
        if why is not None:
            made.left_out[ONNX_INT8] = f"{why}; train it again"
        progress.update(2, "files")
        eager = torch_backend("eager", model, BATCH, torch.device("cpu"))
        expected = _outputs(eager, on, card)
        for name, backend in made.backends.items():
            backend.batch_size = BATCH
            if name != ONNX_INT8:  # which has no bound but what is measured here
                verify(backend, eager, on.x_WLT, on.side_WM, card)
            found = _outputs(backend, on, card)
            made.said[name]["agreement"] = _agreement(name, found, expected, on, card)
        for backend in (eager, *made.backends.values()):
            backend.batch_size = 1
        taken = latencies({"eager": eager, **made.backends}, on.x_WLT, on.side_WM)
        for name, said in made.said.items():
            said["latency_ms"] = {"one_window": taken[name], "eager": taken["eager"], "threads": 1}
        written = add_exports(folder, beside, made.said)
    progress.done()
    return {
        "exports": {name: written["exports"][name] for name in made.said},
        "left_out": made.left_out,
    }


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Hold a bundle, and make a folder in it, whose file system the files are to be moved on.

    By its name whoever holds the bundle next removes what a killed export left.
    """
    with only_job_on(folder):
        beside = folder / f".export.{uuid.uuid4().hex}.part"
        beside.mkdir()
        yield beside


def _places(
    folder: Path, card: Mapping[str, Any], shards: str | Path | None, examples: str | Path | None
) -> tuple[Path, Path] | None:
    """Give the shards and examples of a checkpoint's training, None if they are not to be found."""
    if (shards is None) != (examples is None):
        raise SettingsError("shards, examples: expected both or neither")
    if shards is not None and examples is not None:
        found = Path(shards), Path(examples)
    else:
        above = folder.parents
        known = [Folders.of_training(above[1])] if len(above) > 1 else []
        known += [Folders.of_benchmark(above[3])] if len(above) > 3 else []
        there = [
            each for each in known if each.train == above[1] and (each.shards / MANIFEST).exists()
        ]
        if not there or not there[0].examples.exists():
            return None
        found = there[0].shards, there[0].examples
    stated = _said(card, "training", "shards_key")
    came = read_json(found[0] / MANIFEST).get("key")
    if stated != came:
        raise DataError(
            f"{found[0]}: not the shards that {folder.name} was trained on: expected key {stated}, "
            f"came {came}"
        )
    return found


def _said(card: Mapping[str, Any], *names: str) -> Any:
    """Give what a card says at a place, None if it says nothing there."""
    value: Any = card
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def checked_examples(path: Path, card: Mapping[str, Any]) -> pd.DataFrame:
    """Read the examples of a checkpoint's fold, if they are those that it was trained on.

    Raises
    ------
    DataError
        If they are another task's, or others train.
    """
    from rayecg.train.reference import examples_digest

    table = read_table(path).to_pandas()
    fold = _said(card, "training", "fold")
    targets = [f"target_{label}" for label in card["task"]["labels"]]
    wanted = ["record_id", "offset", "split", *(["fold"] if fold is not None else []), *targets]
    lacking = [name for name in wanted if name not in table]
    if lacking:
        raise DataError(f"{path}: expected the columns {', '.join(wanted)}, lacks {lacking[0]}")
    if fold is not None:
        table = table[table["fold"] == fold]
    train = table[table["split"] == "train"]
    came = examples_digest(train["record_id"], train["offset"], train[targets].to_numpy())
    stated = str(_said(card, *EXAMPLES))
    if came != stated:
        raise DataError(
            f"{path}: not the examples that the checkpoint was trained on: expected SHA-256 "
            f"{stated[:12]}… of those that train, came {came[:12]}…"
        )
    return table


def _windows(
    folder: Path,
    card: Mapping[str, Any],
    places: tuple[Path, Path],
    table: pd.DataFrame,
    split: str,
    n_examples: int,
    n_windows: int,
) -> Measured:
    """Prepare windows of drawn examples as scoring would."""
    from rayecg.score.batches import draw_examples, prepare_sample

    shards, examples = places
    task = card["task"]
    wanted = draw_examples(table, None, n_examples, split)
    sample = prepare_sample(shards, folder, wanted, n_windows)
    if not len(sample):
        raise DataError(f"{examples}: expected {split} examples with windows, found none")
    # Windows of a record are one example; beats are examples of their own.
    by_beat = task["unit"] == "beat"
    own = table.loc[wanted.index]
    named = zip(own["record_id"], own["offset"] if by_beat else [0] * len(own), strict=True)
    row_of = {name: row for row, name in enumerate(named)}
    offset_W = sample.offset_W.tolist() if by_beat else [0] * len(sample)
    row_W = [row_of[name] for name in zip(sample.record_W, offset_W, strict=True)]
    first_N = np.flatnonzero(np.diff(row_W, prepend=-1))
    target_NC = own[[f"target_{label}" for label in task["labels"]]].to_numpy()
    return Measured(
        split,
        np.concatenate([item.x_WLT for item in sample.items_W]),
        np.concatenate([item.side_WM for item in sample.items_W]),
        first_N,
        target_NC[np.array(row_W)[first_N]],
        _said(card, "metrics", "primary", "metric"),
    )


def _noise(inputs: ModelInputs) -> Measured:
    rng = np.random.default_rng(0)
    x_WLT, side_WM = (
        rng.normal(size=(BATCH, *shape)).astype(np.float32)
        for shape in ((len(inputs.leads), inputs.n_times), (len(inputs.side),))
    )
    return Measured(None, x_WLT, side_WM, np.arange(BATCH), None, None)


@dataclass(frozen=True)
class Outputs:
    """Logits of windows, and probabilities of examples with the decisions on them."""

    logit_WC: np.ndarray
    probability_NC: np.ndarray
    decision_NC: np.ndarray


def _outputs(backend: Backend, on: Measured, card: Mapping[str, Any]) -> Outputs:
    from rayecg.models.predictor import combine_logits

    point = OperatingPoint.from_tree(card["operating_point"])
    logit_WC = backend.logits(on.x_WLT, on.side_WM)
    logit_NC = combine_logits(logit_WC, on.first_N, card["input"]["combine"])
    probability_NC = probabilities(logit_NC, point.kind)
    decision_NC = point.decide(probability_NC)
    return Outputs(logit_WC, probability_NC, decision_NC)


def _agreement(
    name: str, found: Outputs, expected: Outputs, on: Measured, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Say how an export's outputs differ from the checkpoint's, and what that does to its figures."""
    from rayecg.models.backends import difference

    try:
        apart = difference(found.logit_WC, expected.logit_WC, card["operating_point"]["kind"])
    except DataError as error:
        raise DataError(f"{name}: cannot be held against the checkpoint: {error}") from None
    same_N = (found.decision_NC == expected.decision_NC).all(axis=1)
    said = {
        "split": on.split or "none: random numbers",
        **apart,
        "n_examples": len(same_N),
        "same_decisions": float(same_N.mean()),
    }
    if on.target_NC is not None and on.metric is not None:
        labels = tuple(card["task"]["labels"])
        value, eager = (
            evaluate(on.target_NC, each.probability_NC, each.decision_NC, labels)[on.metric]
            for each in (found, expected)
        )
        # NaN is no JSON that others read.
        said["metric"] = {"name": on.metric, "export": _known(value), "eager": _known(eager)}
    return said


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
