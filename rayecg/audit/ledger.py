"""The ledger of an output folder: which checkpoints were evaluated on a test split, and together.

It says how often somebody looked; the rule `test-looks` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayecg.core.files import fingerprint, read_json, write_json
from rayecg.core.folders import Folders

#: What makes two entries the same look.
SAME = ("checkpoint_sha256", "task", "task_version", "shards_key", "split", "fold", "audit")


def note_looks(folders: Folders, runs: Sequence[str], audit: str = "") -> None:
    """Enter every evaluation on the test split in the ledger.

    The ledger stays in the output folder from one benchmark to the next: an entry for each
    checkpoint and task; the same checkpoint on the same test split again is the same look. The runs of
    one plan share its `evaluation`, of which the rule `test-looks` counts how many there are. Runs
    that an audit rule alone asks for are entered with its id under `audit`.
    """
    file = folders.out / "ledger.json"
    looks = read_json(file, list) if file.exists() else []
    known = {tuple(look.get(name) for name in SAME) for look in looks}
    new = []
    for run in runs:
        place = folders.permuted / "train" if audit else folders.train
        card = read_json(place / run / "checkpoint" / "card.json")
        look = {
            "run": run,
            "checkpoint_sha256": card["weights_sha256"],
            "task": card["task"]["name"],
            "task_version": card["task"]["version"],
            "shards_key": card["training"]["shards_key"],
            "split": "test",
            "fold": card["training"]["fold"],
            **({"members": sorted(card["members"])} if "members" in card else {}),
            **({"audit": audit} if audit else {}),
        }
        if tuple(look.get(name) for name in SAME) not in known:
            new.append(look)
    # The runs of one plan are one look, also those that failed at first and were made up for.
    evaluation = _plan_of(folders)
    names = {look["run"] for look in new}
    if any(look["run"] in names and look.get("evaluation") == evaluation for look in looks):
        evaluation = fingerprint(new)  # the same plan with other weights
    write_json(file, looks + [{**look, "evaluation": evaluation} for look in new])


def _plan_of(folders: Folders) -> str:
    """Give a fingerprint of what decides all runs of the benchmark, failed ones too."""
    listed = folders.work / "runs.json"
    reports = [
        read_json(folders.train / run / "run.json")
        for run in (read_json(listed, list) if listed.exists() else ())
    ]
    return fingerprint(sorted(str(said.get("key")) for said in reports if "members" not in said))
