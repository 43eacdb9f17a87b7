"""Scoring of whole archives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayecg.archives.catalogue import open_archive
from rayecg.archives.provide import ensure_archive
from rayecg.archives.wfdb_reader import Checks
from rayecg.core.destination import Destination, open_destination
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings
from rayecg.core.hashing import read_hash_key
from rayecg.core.session import RaySettings, ray_session
from rayecg.core.storage import Folder
from rayecg.core.units import Units, read_parquet


def open_source(
    archive: ArchiveSettings | None,
    shards: str | Path | None,
    checks: Checks = "error",
    select: str | None = None,
    limit: int | None = None,
) -> Any:
    """Open what is to be scored: a raw archive, or the shards of one.

    Raises
    ------
    SettingsError
        If it is neither or both, or there is no such folder.
    """
    from rayecg.score.sources import ArchiveSource, ShardSource

    if (archive is None) == (shards is None):
        raise SettingsError("expected either an archive or shards to score")
    if shards is not None:
        return ShardSource(shards, select, limit)
    assert archive is not None
    return ArchiveSource(open_archive(ensure_archive(archive, None)), checks, select, limit)


def score(
    checkpoint: str | Path,
    archive: ArchiveSettings | None,
    out: str | Path,
    settings: ScoreSettings | None = None,
    ray: RaySettings | None = None,
    checks: Checks = "error",
    *,
    shards: str | Path | None = None,
    select: str | None = None,
    limit: int | None = None,
    hash_ids: str | Path | None = None,
    fingerprint: str | None = None,
    probe: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Score an archive or shards with a checkpoint: one row per input record, and a summary.

    Parameters
    ----------
    checkpoint
        Folder of a bundle.
    archive, shards
        What to score: one of the two. Shards are given by folder or URI.
    out
        Folder or URI.
    settings
        Back end, actors, batch shape.
    ray
        Which Ray.
    checks
        What a wrong checksum or first sample of a raw record does.
    select, limit
        A condition in SQL on the index, and the first so many of those records.
    hash_ids
        File with a key to hash ids with.
    fingerprint
        What the checkpoint's fingerprint must begin with.
    probe
        Measure which actors, threads and batch size are fastest; see
        `rayecg.score.probe.chosen_execution`.
    replace
        Replace an output of another checkpoint, source, setting or code.

    Returns
    -------
    dict
        The manifest, with `n_input, n_ok, n_degraded, n_quarantined`, and the summary's text under
        `summary`.

    Raises
    ------
    SettingsError
        For a folder that is not there, an actor that a local Ray has no room for, or an output that
        was made otherwise and is not to be replaced.
    """
    from rayecg.models.checkpoint import read_card
    from rayecg.score.actors import check_local_room, say_unused_gpus
    from rayecg.score.probe import chosen_execution, still_stands
    from rayecg.score.run import decides
    from rayecg.score.run import score as run

    settings = settings or ScoreSettings()
    folder = Path(Folder(checkpoint).root)
    card = read_card(folder, fingerprint)
    key = None if hash_ids is None else read_hash_key(hash_ids)
    source = open_source(archive, shards, checks, select, limit)
    place = open_destination(out)
    with place.hold(), ray_session(ray):
        check_local_room(settings)
        say_unused_gpus(settings)
        if probe:
            units = Units(place, "")
            standing = units.plan()
            stands = still_stands(standing or {}, decides(card, source, settings, key))
            # One that another start with --replace made: a killed job goes on with what it chose.
            if replace and not stands:
                standing = None
            unfinished = stands and units.manifest() is None
            settings = chosen_execution(folder, source, settings, standing, unfinished)
        own = {"checkpoint": folder}
        found = run(own, source, {"checkpoint": place}, settings, key, replace)["checkpoint"]
        return {**found, "summary": _summarise(place, found, card, source)}


def estimate(
    checkpoint: str | Path,
    archive: ArchiveSettings | None,
    settings: ScoreSettings,
    checks: Checks = "error",
    fingerprint: str | None = None,
    *,
    shards: str | Path | None = None,
    select: str | None = None,
    limit: int | None = None,
) -> str:
    """Say what `score` would do, and how long it would take; nothing is written."""
    from rayecg.models.checkpoint import read_card
    from rayecg.score.estimate import estimate as run

    folder = Path(Folder(checkpoint).root)
    read_card(folder, fingerprint)
    return run(folder, open_source(archive, shards, checks, select, limit), settings)


def _summarise(place: Destination, manifest: dict[str, Any], card: Any, source: Any) -> str:
    """Have the summary stand beside the rows; gives its text."""
    from rayecg.core.files import as_json
    from rayecg.score.summary import summarise, to_markdown

    def tables(folder: str) -> Iterator[pa.Table]:
        for name in place.names(folder):
            table = read_parquet(place.read(name))
            if "status" not in table.column_names and folder == "predictions":
                # Rows that are parted by it say it in the name of their folder alone.
                status = name.partition("status=")[2].partition("/")[0]
                column = pa.repeat(pa.scalar(status), table.num_rows)
                table = table.append_column("status", column)
            yield table

    facts = {**manifest, "synthetic": source.synthetic}
    windows = tables("windows") if card["task"]["unit"] == "beat" else ()
    summary = summarise(tables("predictions"), card, facts, windows)
    text = to_markdown(summary)
    place.write("summary.json", as_json(summary).encode())
    place.write("summary.md", text.encode())
    return text
