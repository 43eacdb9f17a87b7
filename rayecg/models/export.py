"""Exports of a network: ONNX in float32 and in int8, and a `torch.export` program.

Legend: B record, W window, L lead, T time, M side column.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rayecg.core.errors import DataError
from rayecg.core.versions import versions
from rayecg.models.backends import Backend, onnx_backend, torch_backend
from rayecg.models.catalogue import ModelInputs, example_batch
from rayecg.models.checkpoint import ONNX, ONNX_INT8, PROGRAM

#: The first with everything that the architectures use, GELU and layer norms among it.
OPSET = 20
#: Operators whose inputs and weights become int8: where the time goes. Norms, softmax and sums stay in
#: float32; rounding them costs accuracy and gains nothing.
QUANTISED = ("Conv", "MatMul", "Gemm")
#: Windows that calibration sees at a time.
CALIBRATION_BATCH = 16
#: Rounds of the latency's measurement, and how many go before it.
ROUNDS, WARM_UP = 50, 5


@dataclass
class Exports:
    """What was made: by file name, a back end that runs it and what its card is to say.

    `left_out` says of the others why not.
    """

    backends: dict[str, Backend] = field(default_factory=dict)
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def make_exports(
    model: nn.Module,
    inputs: ModelInputs,
    folder: Path,
    calibration: tuple[np.ndarray, np.ndarray] | None,
) -> Exports:
    """Write every export of a network into a folder.

    Parameters
    ----------
    model
        In evaluation mode, on the CPU.
    inputs
        What goes into it.
    folder
        Gets `model.pt2`, `model.onnx` and `model_int8.onnx`.
    calibration
        `x_WLT` and `side_WM` of training windows, for int8; None makes none.

    Raises
    ------
    DataError
        If the network cannot be traced, or not be written as ONNX.
    """
    made = Exports()
    program = export_program(model, inputs)
    torch.export.save(program, folder / PROGRAM)
    again = torch.export.load(folder / PROGRAM).module()  # what is measured is the file
    made.backends[PROGRAM] = torch_backend("program", again, 1, torch.device("cpu"))
    made.said[PROGRAM] = _statement("torch.export program, float32")
    write_onnx(program, folder / ONNX)
    made.backends[ONNX] = _opened("onnx", folder / ONNX)
    made.said[ONNX] = _statement("ONNX, float32", opset=OPSET)
    if calibration is None:
        made.left_out[ONNX_INT8] = "int8 needs training records"
        return made
    try:
        write_int8(folder / ONNX, folder / ONNX_INT8, *calibration)
    except DataError as error:
        made.left_out[ONNX_INT8] = str(error)
        return made
    made.backends[ONNX_INT8] = _opened("onnx_int8", folder / ONNX_INT8)
    by = {"split": "train", "n_windows": len(calibration[0]), "method": "mean of batches' extremes"}
    made.said[ONNX_INT8] = _statement("ONNX, int8", opset=OPSET, calibration=by)
    return made


def export_program(model: nn.Module, inputs: ModelInputs) -> torch.export.ExportedProgram:
    """Trace a network into a program whose batch may have any size.

    Parameters
    ----------
    model, inputs
        As `make_exports` takes them.

    Raises
    ------
    DataError
        If what it does cannot be traced.
    """
    with _quiet():
        example = example_batch(inputs, 3)  # not 1, which tracing takes for a constant
        sizes = tuple({0: torch.export.Dim("batch", min=1)} for _ in example)
        try:
            return torch.export.export(model, example, dynamic_shapes=sizes)
        except Exception as error:  # tracing raises what it likes
            raise _cannot("torch.export", error) from None


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as one ONNX file, opset `OPSET`, weights inside.

    Raises
    ------
    DataError
        If it uses what ONNX has no operator for.
    """
    with _quiet():
        try:
            torch.onnx.export(
                program,
                (),
                path,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise _cannot("ONNX", error) from None


def write_int8(source: Path, path: Path, x_WLT: np.ndarray, side_WM: np.ndarray) -> None:
    """Write the int8 form of an ONNX file, its scales fixed by windows (static quantisation).

    Weights are int8, a scale for each output channel; activations uint8, a scale for each tensor from
    the mean over batches of the smallest and largest value: one artefact must not stretch it. uint8 by
    int8 is what the dot-product instructions of x86 take (VNNI); on processors without them sums of the
    two can overflow, which `backends.verify` would tell.

    Parameters
    ----------
    source
        As `write_onnx` leaves it.
    path
        Gets the result.
    x_WLT, side_WM
        Prepared windows of training records.

    Raises
    ------
    DataError
        If nothing in it can be quantised, or ONNX Runtime cannot do it.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx.load(source).graph
    if not {node.op_type for node in graph.node} & set(QUANTISED):
        raise DataError(f"{source.name}: nothing to quantise: no {', '.join(QUANTISED)} in it")
    names = [each.name for each in graph.input]
    starts = range(0, len(x_WLT), CALIBRATION_BATCH)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            if start is None:
                return None
            own = slice(start, start + CALIBRATION_BATCH)
            return dict(zip(names, (x_WLT[own], side_WM[own]), strict=False))

    with _quiet(), tempfile.TemporaryDirectory() as beside:
        prepared = Path(beside) / "prepared.onnx"
        try:
            # Tracing has stated the shapes; inferring them from symbols fails on networks that join
            # tensors of computed ones.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},
            )
        except Exception as error:
            raise _cannot("int8", error) from None


def latencies(
    backends: Mapping[str, Backend], x_WLT: np.ndarray, side_WM: np.ndarray
) -> dict[str, float]:
    """Measure the median time in ms that each back end takes for the first window alone.

    They take turns, so that what else the machine does falls on all of them. Torch has one thread for
    as long; give the others one, too.
    """
    taken: dict[str, list[float]] = {name: [] for name in backends}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for i in range(WARM_UP + ROUNDS):
            for name, backend in backends.items():
                started = time.perf_counter()
                backend.logits(x_WLT[:1], side_WM[:1])
                if i >= WARM_UP:
                    taken[name].append(1e3 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return {name: round(float(np.median(own)), 4) for name, own in taken.items()}


def _opened(name: str, path: Path) -> Backend:
    return onnx_backend(name, path.read_bytes(), path, 1, torch.device("cpu"), 1)


def _statement(kind: str, **more: Any) -> dict[str, Any]:
    made_by = {name: versions()[name] for name in ("torch", "onnx", "onnxruntime")}
    return {"kind": kind, **more, "made_by": made_by}


def _cannot(what: str, error: Exception) -> DataError:
    cause: BaseException = error
    while cause.__cause__ is not None:  # exporters wrap it in advice
        cause = cause.__cause__
    text = " ".join(str(cause).split())[:200]
    return DataError(f"the network cannot be exported to {what} ({type(cause).__name__}: {text})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from narrating: they log to the root, and warn of packages that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
