"""A pool of Ray actors that work on units: an actor that dies gives its units to another.

Plain actors, not Ray Data: its executor looks for finished work every tenth of a second, holds one
schema for all rows, and starts a dead actor's work again without end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from rayecg.core.errors import DataError

#: Units that an actor holds at a time: while one is worked on, the next one waits beside it.
IN_HAND = 2
#: A unit that was under way in so many dying actors is not tried again as it was.
DEATHS = 3
#: How long (s) a job without a ready actor says nothing.
SILENT_S = 30.0


def run_on_actors(
    start: Callable[[], Any],
    units: Iterable[str],
    payload: Callable[[str], dict[str, Any]],
    n_actors: int,
    ready: Callable[[], None] = lambda: None,
    late: Callable[[], None] = lambda: None,
    careful: Callable[[str], dict[str, Any]] | None = None,
) -> Generator[dict[str, Any]]:
    """Have every unit worked on by some actor; yields what each gave, in the order they end.

    Whoever stops before the end closes it, which ends the actors.

    Parameters
    ----------
    start
        Starts an actor: a handle with the methods `ready()` and `work(payload)`.
    units
        Names.
    payload
        Gives what an actor needs for a unit; asked when it is handed out.
    n_actors
        How many to keep. Those that the cluster has no room for wait for it.
    ready
        Called whenever an actor is ready.
    late
        Called once if after `SILENT_S` none is: the cluster may have no room for any, ever.
    careful
        Gives the payload of a unit at which `DEATHS` actors died: one that has it worked on so that
        what kills is found. The unit is given up when as many died again; None gives it up at once.

    Raises
    ------
    DataError
        If a unit is given up, or `DEATHS` actors died one after another before one was ready.
    """
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    died = (NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError)
    waiting = deque(units)
    if not waiting:
        return
    under_way: dict[Any, tuple[Any, str | None]] = {}  # a call: its actor and unit
    deaths: Counter[str | None] = Counter()
    some_ready = said_late = False

    def add_actor() -> None:
        actor = start()
        under_way[actor.ready.remote()] = actor, None

    def hand_out(actor: Any) -> None:
        in_hand = sum(own is actor for own, _ in under_way.values())
        starting = sum(unit is None for _, unit in under_way.values())
        # A second one only where that leaves one for each actor that is still to be ready.
        while waiting and (in_hand < 1 or (in_hand < IN_HAND and len(waiting) > starting)):
            unit = waiting.popleft()
            give = careful if careful and deaths[unit] >= DEATHS else payload
            under_way[actor.work.remote(give(unit))] = actor, unit
            in_hand += 1

    for _ in range(min(n_actors, len(waiting))):
        add_actor()
    try:
        while under_way:
            quiet = None if some_ready or said_late else SILENT_S
            ended, _ = ray.wait(list(under_way), timeout=quiet)
            if not ended:
                said_late = True
                late()
                continue
            (call,) = ended
            actor, _ = under_way[call]
            try:
                ray.get(call)
                calls = [call]
            except died:
                # All that the actor had in hand, in the order in which it was handed out.
                calls = [own for own, (other, _) in under_way.items() if other is actor]
            lost, dead = [], None
            for own in calls:
                _, unit = under_way.pop(own)
                try:
                    found = ray.get(own)
                except died as error:
                    lost.append(unit)
                    dead = error
                    continue
                if unit is not None or found.get("failure"):
                    yield found
                else:
                    some_ready = True
                    del deaths[None]  # nodes that are taken back now and then are no bar
                    ready()
            if dead is None:
                hand_out(actor)
                if not waiting and all(own is None for _, own in under_way.values()):
                    return  # actors that never found room need not be waited for
                continue
            deaths[lost[0]] += 1  # the others waited beside it
            if deaths[lost[0]] >= DEATHS * (2 if careful and lost[0] else 1):
                what = f"unit {lost[0]}" if lost[0] else "the start"
                raise DataError(
                    f"{what}: {deaths[lost[0]]} workers died at it, one after another "
                    f"({_last_line(dead)}); the same command continues with the others"
                ) from None
            waiting.extendleft(reversed([unit for unit in lost if unit is not None]))
            add_actor()
    finally:
        for actor in {id(own): own for own, _ in under_way.values()}.values():
            ray.kill(actor)


def _last_line(error: Exception) -> str:
    """Give what an error says in the end: before it stands where Ray saw it."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()[:300]}"
