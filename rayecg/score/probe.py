"""What is fastest here: actors, threads and batch size, tried for some seconds on the records themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayecg.core.errors import DataError
from rayecg.core.experiment import ScoreSettings
from rayecg.core.units import failure_as_row, raise_failures
from rayecg.models.backends import empty_windows
from rayecg.score.actors import actor_options, check_local_room, open_predictor
from rayecg.score.sources import Source
from rayecg.signal.prepare import Windows

BATCH_SIZES = (16, 32, 64, 128, 256)
#: Parts of a GPU that an actor may have; one that was given less was given it by hand.
SHARES = (1.0, 0.5, 0.25)
#: Records that are read for it; of shards it is a batch of the first.
N_SAMPLE = 64
#: How long (s) reading, and each batch size, is tried, after a first time that is not counted.
SECONDS = 0.5
#: After so long (s) no further batch size is begun with the same actors, ...
WAY_S = 4.0
#: ... and after so long no other actors.
ALL_S = 60.0
#: How long (s) after the first actor others are waited for, and the first itself where the usual way
#: had room: another job may have taken it.
LATE_S = 30.0
#: What is not as it usually is must gain so much.
GAIN = 1.1
#: What of a plan is probed.
PROBED = ("batch_size", "threads")

#: CPUs and GPUs of a node.
Node = tuple[float, float]
#: Windows/s of what was tried, and what kept some of it from being tried.
Measured = tuple[dict[ScoreSettings, float], list[str]]


def still_stands(standing: Mapping[str, Any], decided: Mapping[str, Any]) -> bool:
    """Say whether a plan that stands is as it would be decided now, but for what is probed."""
    return all(standing.get(name) == value for name, value in decided.items() if name not in PROBED)


def chosen_execution(
    checkpoint: Path,
    source: Source,
    settings: ScoreSettings,
    standing: Mapping[str, Any] | None,
    unfinished: bool = True,
) -> ScoreSettings:
    """Give the settings with the actors, threads and batch size that score fastest here.

    The usual way is that of the settings, with as many actors as there is room for. It is tried
    first, then other numbers of threads (parts of a GPU) with as many actors as there is then room
    for, until more of them are clearly slower, then half of the best way's actors, and half of those
    as long as that gains. The rate of an actor is of reading, preparing and the network, one after
    another, as it does them; files come from the machine's cache where it has one. Nothing but the
    usual is chosen for less than `GAIN`.

    A way takes the start of its actors and about `WAY_S`. After `ALL_S` none is begun, but that the
    usual one is tried again before it is left. A slow network takes longer: two of the usual batches
    in each way, whatever they take. What is measured is said on standard error.

    Parameters
    ----------
    checkpoint
        The bundle.
    source
        What is to be scored; some of it is.
    settings
        What stands of them stays: back end and device, and actors if a number of them is given.
    standing
        The plan that stands in the output: its batch size and threads stay, since rows were made with
        them.
    unfinished
        Whether a start with that plan was cut off, so that the actors for what is left are measured
        anew: the machines may be others. Else they are as many as are given or there is room for.

    Raises
    ------
    DataError
        If no record of the sample can be read, or nothing that was tried can be run.
    SettingsError
        If the plan's threads are more than a local Ray has.
    """
    kept = {}
    if standing and standing.get("batch_size"):
        kept = {"batch_size": standing["batch_size"]}
        if settings.threads != standing["threads"]:  # an actor of one may have a part of a CPU
            kept["num_cpus"] = float(standing["threads"])
    usual, asked = replace(settings, **kept), settings.concurrency
    check_local_room(usual)
    if kept and (asked or not unfinished):
        return usual
    import ray

    given = ray.put((checkpoint, source, source.sample(N_SAMPLE)))
    _say("trying actors, threads and batch sizes")
    if not room(usual, _nodes()):
        with _ready_actors(given, usual, 1, patient=True):
            pass  # a cluster without such a node gets one for an actor that waits
    nodes = _nodes()
    usual = replace(usual, concurrency=asked or max(room(usual, nodes), 1))
    sizes = [usual.batch_size]
    if not kept:
        sizes += [size for size in BATCH_SIZES if size != usual.batch_size]

    is_first = iter([True])  # for which there was room

    def measure(way: ScoreSettings) -> Measured:
        n_actors = min(way.concurrency or 1, max(room(way, nodes), 1))
        return _measured(given, way, n_actors, sizes, patient=next(is_first, False))

    others = ways(usual, nodes, threads=not kept, asked=asked)
    chosen = search(measure, usual, others, fewer=not (asked or usual.num_gpus))
    _say(f"chosen: {_named(chosen, chosen.concurrency or 1)}, batches of {chosen.batch_size}")
    return chosen


def search(
    measure: Callable[[ScoreSettings], Measured],
    usual: ScoreSettings,
    others: Sequence[ScoreSettings],
    fewer: bool,
) -> ScoreSettings:
    """Try the usual way and others, and choose.

    Parameters
    ----------
    measure
        Gives the rates of a way with several batch sizes, and what kept some from being measured.
    usual, others
        Ways. No others are tried after one that has more threads, or a smaller part of a GPU, than
        the usual and is clearly slower.
    fewer
        Whether half of the best way's actors are tried, and so on.

    Raises
    ------
    DataError
        If none has a rate.
    """
    started = time.monotonic()
    rates: dict[ScoreSettings, float] = {}
    said: list[str] = []

    def slow(way: ScoreSettings) -> bool:
        """Try a way, and say whether it is clearly slower than the fastest."""
        found, trouble = measure(way)
        # What disturbs a trial makes it slower, so that of two the faster counts.
        rates.update({own: max(rate, rates.get(own, 0.0)) for own, rate in found.items()})
        said.extend(trouble)
        return max(found.values(), default=0.0) * GAIN < max(rates.values(), default=0.0)

    def in_time() -> bool:
        return time.monotonic() - started < ALL_S

    slow(usual)
    for way in others:
        more = way.num_cpus > usual.num_cpus or way.num_gpus < usual.num_gpus
        if (rates and not in_time()) or (slow(way) and more):
            break
    n_actors = usual.concurrency or 1
    while fewer and not rates and n_actors > 1:  # so many may be too many for the memory
        n_actors //= 2
        slow(replace(usual, concurrency=n_actors))
    if not rates:
        raise DataError(f"--probe: nothing that was tried can be run ({said[-1]})")
    chosen, before = best(rates, usual), None
    while fewer and chosen != before and (n_actors := chosen.concurrency or 1) > 1 and in_time():
        slow(replace(chosen, concurrency=n_actors // 2))
        chosen, before = best(rates, usual), chosen
    if chosen != usual and usual in rates:
        slow(usual)  # once more: it may have been disturbed
    return best(rates, usual)


def room(way: ScoreSettings, nodes: Sequence[Node]) -> int:
    """Give how many actors these nodes have room for: one is on one node, with all its threads."""
    return sum(
        int(min(cpus / way.num_cpus, gpus / way.num_gpus if way.num_gpus else np.inf))
        for cpus, gpus in nodes
    )


def ways(
    usual: ScoreSettings, nodes: Sequence[Node], threads: bool = True, asked: int | None = None
) -> list[ScoreSettings]:
    """Give other ways than the usual, with as many actors as there is room for, or as are asked for.

    Threads double up to a node's CPUs; where actors have a GPU, it is shared by more of them, and
    threads stay. `threads` says whether these may be others than the usual.
    """
    others = []
    if usual.num_gpus == SHARES[0]:
        others = [replace(usual, num_gpus=share) for share in SHARES]
    elif threads and not usual.num_gpus:
        most = int(max(1, *(cpus for cpus, _ in nodes)))
        numbers = [2**i for i in range(most.bit_length())]
        others = [replace(usual, num_cpus=float(n)) for n in sorted({*numbers, most})]
    most_asked = asked or np.inf
    found = {(usual.num_cpus, min(room(usual, nodes), most_asked)): usual}
    for way in others:
        n = room(way, nodes)
        if n >= (asked or 1):
            way = replace(way, concurrency=asked or n)
            # A smaller part of a GPU that brings no more actors at a time is no other way.
            found.setdefault((way.num_cpus, min(n, most_asked)), way)
    return [way for way in found.values() if way != usual]


def best(rates: Mapping[ScoreSettings, float], usual: ScoreSettings) -> ScoreSettings:
    """Choose by windows/s: among all that come within `GAIN` of the fastest, what is most usual."""
    fastest = max(rates.values())
    near = [way for way, rate in rates.items() if rate * GAIN > fastest]
    return max(
        near,
        key=lambda way: (
            way.batch_size == usual.batch_size,
            (way.num_cpus, way.num_gpus) == (usual.num_cpus, usual.num_gpus),
            way.concurrency == usual.concurrency,
            rates[way],
        ),
    )


class Trial:
    """A Ray actor that does what one that scores does, a part at a time."""

    def __init__(self, given: tuple[Path, Source, dict[str, Any]], settings: ScoreSettings) -> None:
        (self.checkpoint, self.source, self.sample), self.settings = given, settings

    @failure_as_row
    def ready(self) -> dict[str, Any]:
        """Load the checkpoint, and read and prepare the sample."""
        try:
            self.predictor = open_predictor(self.checkpoint, self.settings)
        except DataError:
            raise
        except Exception as error:  # several on a GPU may be too many for its memory
            raise DataError(_said(error)) from None
        parts = [windows.windows(max(BATCH_SIZES)) for windows in self._prepared()]
        self.x_WLT, self.side_WM = (np.concatenate(part) for part in zip(*parts, strict=True))
        return {}

    @failure_as_row
    def read(self, at_least: float) -> dict[str, Any]:
        """Give the seconds it takes to read and prepare a window, tried for so many seconds."""
        n, started = 0, time.perf_counter()
        while True:
            n += sum(len(windows.x_WLT) for windows in self._prepared())
            seconds = time.perf_counter() - started
            if seconds >= at_least:
                return {"seconds": seconds / n}

    @failure_as_row
    def run(self, size: int, at_least: float) -> dict[str, Any]:
        """Give the seconds that the network takes for a window of a batch, tried for so many."""
        # As many windows as a batch holds, whatever the records gave.
        own_B = np.resize(np.arange(len(self.x_WLT)), size)
        x_BLT = empty_windows((size, *self.x_WLT.shape[1:]))
        x_BLT[:] = self.x_WLT[own_B]
        side_BM = self.side_WM[own_B]
        backend = self.predictor.backend
        backend.batch_size = size
        n, started = 0, time.perf_counter()
        while True:
            try:
                backend.logits(x_BLT, side_BM)
            except Exception as error:  # too large for the device, or for what compiles it
                raise DataError(f"batches of {size}: {_said(error)}") from None
            n += size
            seconds = time.perf_counter() - started
            if seconds >= at_least:
                return {"seconds": seconds / n}

    def _prepared(self) -> Iterator[Windows]:
        """Read and prepare the sample, or as much of it as fills the largest batch.

        Raises
        ------
        DataError
            If there is no window in it.
        """
        n = 0
        for batch in self.source.batches(self.sample):
            windows = self.predictor.prepare_batch(batch)
            yield windows
            n += len(windows.x_WLT)
            if n >= max(BATCH_SIZES):
                return
        if not n:
            raise DataError(
                "--probe: none of the records that were tried can be read; leave it away"
            )


@contextmanager
def _ready_actors(
    given: Any, way: ScoreSettings, n_actors: int, patient: bool
) -> Iterator[list[Any]]:
    """Start actors; gives those that are ready `LATE_S` after the first.

    Raises
    ------
    TimeoutError
        If none is in that time; with patience the first is waited for as long as it takes.
    """
    import ray

    actor = ray.remote(Trial).options(**actor_options(way))
    actors = [actor.remote(given, way) for _ in range(n_actors)]
    try:
        ready = {own.ready.remote(): own for own in actors}
        calls = list(ready)
        if not ray.wait(calls, timeout=LATE_S)[0]:
            if not patient:
                raise TimeoutError(f"no worker was ready in {LATE_S:g} s")
            _say(f"{_named(way, n_actors)}: no worker is ready yet")
            ray.wait(calls)
        there, _ = ray.wait(calls, num_returns=n_actors, timeout=LATE_S)
        list(raise_failures(ray.get(there)))
        yield [ready[call] for call in there]
    finally:
        for own in actors:
            ray.kill(own)


def _measured(
    given: Any, way: ScoreSettings, n_actors: int, sizes: Sequence[int], patient: bool
) -> Measured:
    """Give windows/s with each batch size, by actors side by side; and what kept some from it.

    The first size is tried whatever it takes.

    Raises
    ------
    DataError
        If an actor of the first way cannot get ready.
    """
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    rates: dict[int, float] = {}
    trouble = []
    try:
        with _ready_actors(given, way, n_actors, patient) as actors:
            n_actors = len(actors)

            def each(name: str, *given: Any) -> np.ndarray:
                calls = [getattr(actor, name).remote(*given) for actor in actors]
                return np.array([row["seconds"] for row in raise_failures(ray.get(calls))])

            started = time.monotonic()
            read_A = each("read", SECONDS)
            try:
                for size in sizes:
                    if rates and time.monotonic() - started > WAY_S:
                        break
                    each("run", size, 0.0)
                    rates[size] = float((1 / (read_A + each("run", size, SECONDS))).sum())
            except DataError as error:
                trouble.append(str(error))
    except (NodeDiedError, OutOfMemoryError, RayActorError) as error:
        rates.clear()  # so many are too many
        trouble.append(f"a worker died ({type(error).__name__})")
    except TimeoutError as error:  # another job has the room
        trouble.append(str(error))
    except DataError as error:
        if patient:  # as it usually is, it must be possible
            raise
        trouble.append(str(error))
    said = list(trouble)
    if rates:
        tried = sorted(rates)
        numbers = " ".join(f"{rates[size]:,.0f}" for size in tried)
        said.insert(0, f"{numbers} windows/s in batches of {' '.join(map(str, tried))}")
    _say(f"{_named(way, n_actors)}: {'; '.join(said)}")
    return {replace(way, batch_size=size): rate for size, rate in rates.items()}, trouble


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _nodes() -> list[Node]:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(own.get("CPU", 0.0), own.get("GPU", 0.0)) for own in alive]


def _named(way: ScoreSettings, n_actors: int) -> str:
    parts = [
        f"{n_actors} actor{'s' * (n_actors > 1)} of {way.threads} thread{'s' * (way.threads > 1)}"
    ]
    if way.num_gpus:
        parts.append(f"{way.num_gpus:g} GPUs")
    return " and ".join(parts)


def _say(text: str) -> None:
    print(f"probe: {text}", file=sys.stderr, flush=True)
