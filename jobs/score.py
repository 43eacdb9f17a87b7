"""Score every record of an archive with a checkpoint: one row of answer for each."""

from __future__ import annotations

from rayecg.core.experiment import ArchiveSettings
from rayecg.core.job import DONE, Arguments, run_job
from rayecg.core.settings import build


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--checkpoint", required=True, help="folder of a checkpoint")
    arguments.add_argument(
        "--archive", required=True, help="kind: cinc ludb mitbih ptbxl synthetic wfdb"
    )
    arguments.add_argument("--path", required=True, help="folder or URI of the archive")
    arguments.add_argument("--out", required=True, help="output folder")
    arguments.add_argument(
        "--rate", type=int, help="which published rate to read (PTB-XL: 100, 500)"
    )
    arguments.add_argument(
        "--checks",
        choices=("error", "flag", "off"),
        default="error",
        help="what a wrong checksum or first sample does",
    )
    given = arguments.parse_args()
    tree = {"kind": given.archive, "path": given.path, "rate": given.rate}
    archive = build(ArchiveSettings, tree, "arguments")

    from rayecg import pipeline

    manifest = pipeline.score(given.checkpoint, archive, given.out, checks=given.checks)
    counts = ("n_input", "n_ok", "n_degraded", "n_quarantined")
    print(" ".join(f"{name}={manifest[name]}" for name in counts))
    return DONE


if __name__ == "__main__":
    run_job(main)
