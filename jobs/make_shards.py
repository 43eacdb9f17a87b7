"""Turn an archive of raw records into Parquet shards."""

from __future__ import annotations

from rayecg.core.experiment import ArchiveSettings, ShardSettings
from rayecg.core.job import DONE, Arguments, from_flags, run_job
from rayecg.core.settings import load_settings


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument(
        "--archive", required=True, help="kind: cinc ludb mitbih ptbxl synthetic wfdb"
    )
    arguments.add_argument("--path", required=True, help="folder or URI of the archive")
    arguments.add_argument("--out", required=True, help="output folder")
    arguments.add_argument("--fs", type=int, help="resample to this rate in Hz")
    arguments.add_argument(
        "--rate", type=int, help="which published rate to read (PTB-XL: 100, 500)"
    )
    arguments.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other shard setting"
    )
    given = arguments.parse_args()
    flags = {"kind": "--archive", "path": "--path", "rate": "--rate"}
    archive = from_flags(ArchiveSettings, given, flags)
    from_flags(ShardSettings, given, {"fs": "--fs"})  # a wrong one is told by the name typed
    fs = [] if given.fs is None else [f"fs={given.fs}"]
    settings = load_settings(ShardSettings, None, [*fs, *given.set])

    from rayecg import pipeline

    manifest = pipeline.make_shards(archive, settings, given.out)
    counts = ("n_input", "n_ok", "n_degraded", "n_quarantined")
    print(" ".join(f"{name}={manifest[name]}" for name in counts))
    return DONE


if __name__ == "__main__":
    run_job(main)
