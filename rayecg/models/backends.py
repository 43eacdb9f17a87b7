"""Back ends: ways to run a checkpoint's network, chosen by name and checked against eager torch.

Legend: W window, L lead, T time, M side column, C label.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from rayecg.core.catalogue import nearest
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import BackendName
from rayecg.core.outputs import Kind, probabilities
from rayecg.models.checkpoint import ONNX, ONNX_INT8, exported, read_card

BACKENDS: tuple[str, ...] = get_args(BackendName)
#: Bytes at which torch and the libraries below it want an array to begin; elsewhere a matrix
#: product may add in another order, and a window's logits would depend on where it lay.
ALIGNMENT = 64
#: An error of the logit by a share r of itself moves a probability by p(1-p)|z| r, never above 0.224 r.
SLOPE = 0.224
#: Roundings a logit goes through one after another: two in each of fifty layers.
ROUNDINGS = 100

#: A folder that holds nothing, and can hold nothing.
NOWHERE = os.devnull

#: What one batch goes through: windows (and side columns) of one size to logits.
Run = Callable[[list[torch.Tensor]], torch.Tensor]


class Backend:
    """A network, ready to answer. Not for several threads at a time.

    Parameters
    ----------
    name
        One of `BACKENDS`.
    batch_size
        Windows that the network sees at a time; may be changed between calls.
    run
        Gives the logits of exactly one batch.
    device
        Where it runs.
    """

    def __init__(self, name: str, batch_size: int, run: Run, device: torch.device) -> None:
        self.name = name
        self.batch_size = batch_size
        self.device = device
        self._run = run
        self._buffers: dict[int, np.ndarray] = {}

    def logits(self, x_WLT: np.ndarray, side_WM: np.ndarray) -> np.ndarray:
        """Give the logits of windows, in float64, windows by labels.

        Every batch is filled up to `batch_size` with zeros: the same arithmetic is done for a window
        whatever its neighbours and their number. Full batches of arrays from `empty_windows` are not
        copied. `side_WM` is for networks that read columns beside the window, and has none for the
        others.
        """
        inputs = (x_WLT, side_WM) if side_WM.shape[1] else (x_WLT,)
        found = []
        with torch.inference_mode():
            for start in range(0, max(len(x_WLT), 1), self.batch_size):
                stop = min(start + self.batch_size, len(x_WLT))
                batch = [self._batch(i, values[start:stop]) for i, values in enumerate(inputs)]
                found.append(self._run(batch)[: stop - start])
            return torch.cat(found).double().cpu().numpy()

    def _batch(self, i: int, part: np.ndarray) -> torch.Tensor:
        """Give one input of a batch: the windows themselves where they can serve, else a copy."""
        fits = len(part) == self.batch_size and part.dtype == np.float32
        if fits and part.flags.carray and part.ctypes.data % ALIGNMENT == 0:
            return torch.from_numpy(part)
        shape = (self.batch_size, *part.shape[1:])
        buffer = self._buffers.get(i)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[i] = empty_windows(shape)
        buffer[: len(part)] = part
        buffer[len(part) :] = 0.0
        return torch.from_numpy(buffer)


def empty_windows(shape: tuple[int, ...]) -> np.ndarray:
    """Give a float32 array to be filled, laid so that back ends read it without a copy."""
    return torch.empty(shape, dtype=torch.float32).numpy()


def window_logits(
    model: nn.Module,
    x_WLT: np.ndarray,
    side_WM: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Give the logits of a network that is on the device, in evaluation mode; see `Backend.logits`."""
    return torch_backend("eager", model, batch_size, device).logits(x_WLT, side_WM)


def open_backend(
    name: str,
    folder: str | Path,
    model: nn.Module,
    batch_size: int,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    card: Mapping[str, Any] | None = None,
) -> Backend:
    """Make a back end of a checkpoint ready; `verify` it before use.

    Parameters
    ----------
    name
        `eager` torch, `bf16` (torch under autocast), `compile` (`torch.compile`, which translates at
        the first batch), `onnx` and `onnx_int8` (ONNX Runtime on the files that `jobs/export.py`
        leaves in the bundle).
    folder
        The bundle.
    model
        Its network, in evaluation mode; it is moved to the device, and not used by the ONNX ones.
    batch_size
        Windows that the network sees at a time.
    device
        A torch device. ONNX Runtime stays on the CPU where it has no provider for it, and the back
        end's `device` says so.
    threads
        Of ONNX Runtime; torch's number if None. Those of torch are the process's.
    card
        The one that the network was loaded with: another may stand in the bundle by now. None reads
        that.

    Raises
    ------
    SettingsError
        If the name is unknown.
    DataError
        If the bundle lacks the file, or it is not the one of the card.
    """
    device = torch.device(device)
    if name not in BACKENDS:
        raise SettingsError(f"no back end is named {name!r} ({nearest(name, BACKENDS)})")
    if name.startswith("onnx"):
        file = ONNX if name == "onnx" else ONNX_INT8
        content = exported(folder, read_card(folder) if card is None else card, file)
        return onnx_backend(name, content, Path(folder) / file, batch_size, device, threads)
    if name == "compile":
        # The batch has one shape; another size of it is translated anew.
        return torch_backend(
            name, torch.compile(model.to(device), dynamic=False), batch_size, device
        )
    return torch_backend(name, model.to(device), batch_size, device)


def torch_backend(
    name: str, model: Callable[..., torch.Tensor], batch_size: int, device: torch.device
) -> Backend:
    """Make torch ready with a network that is on the device; `bf16` runs it under autocast."""

    def run(batch: list[torch.Tensor]) -> torch.Tensor:
        return model(*(values.to(device) for values in batch))

    def run_in_bf16(batch: list[torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return run(batch)

    return Backend(name, batch_size, run_in_bf16 if name == "bf16" else run, device)


def onnx_backend(
    name: str,
    content: bytes,
    path: Path,
    batch_size: int,
    device: torch.device,
    threads: int | None = None,
) -> Backend:
    """Make ONNX Runtime ready on a file's content.

    Parameters
    ----------
    content
        All of the network: weights in other files are refused.
    path
        What errors call it; nothing is read from there.
    name, batch_size, device, threads
        As `open_backend` takes them.

    Raises
    ------
    DataError
        If ONNX Runtime cannot read it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin between batches take the cores from whoever prepares the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it weights in other files would be looked for from the working folder.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", NOWHERE
    )
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # its own classes have no base but this
        raise DataError(f"{path}: ONNX Runtime cannot read it ({_line(error)})") from None
    if session.get_providers()[0] != "CUDAExecutionProvider":
        device = torch.device("cpu")  # there is none for a GPU, or it could not be had
    names = [each.name for each in session.get_inputs()]

    def run(batch: list[torch.Tensor]) -> torch.Tensor:
        given = {name: values.numpy() for name, values in zip(names, batch, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return Backend(name, batch_size, run, device)


def verify(
    backend: Backend,
    reference: Backend,
    x_WLT: np.ndarray,
    side_WM: np.ndarray,
    card: Mapping[str, Any],
) -> dict[str, Any]:
    """Hold a back end against eager torch on a few windows.

    Parameters
    ----------
    backend, reference
        Of the same checkpoint.
    x_WLT, side_WM
        The windows.
    card
        Of the checkpoint.

    Returns
    -------
    dict
        `n_windows`, `mean_dp` and `max_dp` (of the probabilities' differences), `mean_allowed` and
        `max_allowed`.

    Raises
    ------
    DataError
        If the back end cannot run the network, differs by more than it may, or there is nothing to
        tell that by.
    """
    name, of = f"back end {backend.name!r}", card["architecture"]
    expected_WC = reference.logits(x_WLT, side_WM)
    try:
        found_WC = backend.logits(x_WLT, side_WM)
    except Exception as error:  # compilers and runtimes raise what they like
        said = _line(error)
        raise DataError(f"{name} cannot run {of} ({said}); 'eager' is not affected") from None
    try:
        apart = difference(found_WC, expected_WC, card["operating_point"]["kind"])
    except DataError as error:
        raise DataError(f"{name} cannot be held against eager torch on {of}: {error}") from None
    mean_allowed, max_allowed = allowed(backend, reference, card)
    found = {**apart, "mean_allowed": mean_allowed, "max_allowed": max_allowed}
    for which in ("mean", "max"):
        # Not `>`: a card may state NaN.
        if not found[f"{which}_dp"] <= found[f"{which}_allowed"]:
            raise DataError(
                f"{name} differs from eager torch on {of}: expected a {which} difference of "
                f"probabilities of at most {found[f'{which}_allowed']:.2g}, came "
                f"{found[f'{which}_dp']:.2g}; 'eager' is not affected"
            )
    return found


def difference(found_WC: np.ndarray, expected_WC: np.ndarray, kind: Kind) -> dict[str, Any]:
    """Say how far the probabilities of two networks' logits lie apart.

    Windows that neither has finite logits of are left out.

    Returns
    -------
    dict
        `n_windows` that were compared, `mean_dp` and `max_dp`.

    Raises
    ------
    DataError
        If one alone has finite logits of a window, or no window is left.
    """
    known_W, found_W = (np.isfinite(own).all(axis=1) for own in (expected_WC, found_WC))
    n, n_alone = len(known_W), int((known_W != found_W).sum())
    if n_alone:
        raise DataError(f"expected finite logits of the same windows, {n_alone} of {n} differ")
    if not known_W.any():
        raise DataError(f"expected windows with finite logits, came none among {n}")
    p_WC, q_WC = (probabilities(own[known_W], kind) for own in (expected_WC, found_WC))
    apart_WC = np.abs(p_WC - q_WC)
    return {
        "n_windows": len(apart_WC),
        "mean_dp": float(apart_WC.mean()),
        "max_dp": float(apart_WC.max()),
    }


def allowed(backend: Backend, reference: Backend, card: Mapping[str, Any]) -> tuple[float, float]:
    """Give the mean and the largest difference of probabilities that a back end may show.

    A format with rounding error u errs, in `ROUNDINGS` roundings that all err one way, by a share
    `ROUNDINGS * u` of what is added up, and by `sqrt(ROUNDINGS) * u` in ones that err at random:
    times `SLOPE` the largest and the mean that are allowed. What is added up may be larger than the
    logit that is left of it; a factor of 4 is for that.
    """
    if backend.name == "onnx_int8":
        # Its error is the network's own: three times what was measured on many more windows.
        measured = card["exports"][ONNX_INT8]["agreement"]
        return 3.0 * measured["mean_dp"] + 0.005, 1.0
    if backend.name == "bf16":
        unit = 2.0**-9
    elif backend.name == "eager" or {backend.device.type, reference.device.type} == {"cpu"}:
        unit = 2.0**-24
    else:
        unit = 2.0**-12  # convolutions on a GPU round their inputs to TF32, the reference's, too
    # Sums of some thousand numbers in another order add roundings of their own.
    largest = max(4 * SLOPE * ROUNDINGS * unit, 1e-4)
    return max(4 * SLOPE * ROUNDINGS**0.5 * unit, 1e-5), largest


def _line(error: Exception) -> str:
    """Give an error's first words in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
