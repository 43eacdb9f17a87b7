"""What an epoch's number decides: the learning rate, and the order of the windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rayecg.core.train_settings import TrainSettings


def learning_rate(
    settings: TrainSettings, progress: float, monitored: Sequence[float] = ()
) -> float:
    """Give the learning rate at a share of the run, 0 to 1.

    `one_cycle` (Smith and Topin 2018) rises over the first quarter from 1/25 of the peak and falls
    to 1/10,000, both along a cosine; `cosine` falls from the peak to 0; `plateau` is lowered each time
    that `plateau_patience` epochs in a row brought nothing better.

    Parameters
    ----------
    settings
        Schedule and peak.
    progress
        Share of the run that is done.
    monitored
        What each epoch so far was worth; more is better.
    """
    peak = settings.learning_rate

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    if settings.schedule == "constant":
        return peak
    if settings.schedule == "plateau":
        return peak * settings.plateau_factor ** n_plateaus(monitored, settings.plateau_patience)
    if settings.schedule == "cosine":
        return cosine(peak, 0.0, progress)
    if progress < 0.25:
        return cosine(peak / 25, peak, progress / 0.25)
    return cosine(peak, peak / 1e4, (progress - 0.25) / 0.75)


def n_plateaus(monitored: Sequence[float], patience: int) -> int:
    """Count how often `patience` values in a row were no better than the best before them."""
    best, waited, found = -math.inf, 0, 0
    for value in monitored:
        waited += 1
        if value > best:
            best, waited = value, 0
        elif waited == patience:
            found, waited = found + 1, 0
    return found


def epoch_order(n_windows: int, settings: TrainSettings, seed: int, epoch: int) -> np.ndarray:
    """Give the windows of an epoch in their order, drawn from (seed, epoch) alone."""
    order = np.random.default_rng([seed, epoch]).permutation(n_windows)
    return order[: settings.examples_per_epoch]
