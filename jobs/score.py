"""Score every record of an archive, or of shards, with a checkpoint: one row of answer for each."""

from __future__ import annotations

from rayecg.core.experiment import ArchiveSettings, ScoreSettings
from rayecg.core.job import DONE, Arguments, from_flags, run_job


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    add = arguments.add_argument
    add("--checkpoint", required=True, help="folder of a checkpoint")
    add("--fingerprint", help="what the checkpoint's fingerprint must begin with")
    add("--archive", help="kind: cinc ludb mitbih ptbxl synthetic wfdb")
    add("--path", help="folder or URI of the archive")
    add("--shards", help="instead of an archive: what make_shards wrote, folder or URI")
    add("--out", required=True, help="output folder or URI")
    add("--rate", type=int, help="which published rate of an archive to read (PTB-XL: 100, 500)")
    add(
        "--checks",
        choices=("error", "flag", "off"),
        default="error",
        help="what a wrong checksum or first sample of an archive does",
    )
    add("--select", metavar="SQL", help='records of the index to score, as in "age >= 65"')
    add("--limit", type=int, metavar="N", help="score the first N of them")
    add(
        "--dry-run",
        action="store_true",
        help="index, read a few records, estimate; write nothing, whatever else is asked for",
    )
    add("--backend", default="eager", help="bf16 compile eager onnx onnx_int8")
    add("--batch-size", type=int, default=64, help="windows that the network sees at a time")
    add("--actors", type=int, help="as many as the CPUs allow, if not given")
    add("--threads", type=float, default=1.0, help="CPUs of each actor")
    add("--gpus", type=float, default=0.0, help="GPUs of each actor")
    add(
        "--probe",
        action="store_true",
        help="measure which actors, threads and batch size are fastest",
    )
    add("--hash-ids", metavar="FILE", help="hash ids with the key in this file")
    add("--partition", help="part the rows: status site device strat_fold sex")
    add("--replace", action="store_true", help="replace scores that were made otherwise")
    given = arguments.parse_args()
    archive = None
    if bool(given.archive) != bool(given.path) or bool(given.archive) == bool(given.shards):
        arguments.error("expected --archive KIND with --path, or --shards DIR_OR_URI")
    if given.shards and (given.rate is not None or given.checks != "error"):
        arguments.error("--rate, --checks: expected with an archive; shards were read already")
    if given.archive:
        flags = {"kind": "--archive", "path": "--path", "rate": "--rate"}
        archive = from_flags(ArchiveSettings, given, flags)
    flags = {
        "concurrency": "--actors",
        "num_cpus": "--threads",
        "num_gpus": "--gpus",
        "batch_size": "--batch-size",
        "backend": "--backend",
        "partition": "--partition",
    }
    settings = from_flags(ScoreSettings, given, flags)

    from rayecg import pipeline

    chosen = {"shards": given.shards, "select": given.select, "limit": given.limit}
    if given.dry_run:
        print(
            pipeline.estimate(
                given.checkpoint, archive, settings, given.checks, given.fingerprint, **chosen
            )
        )
        return DONE
    manifest = pipeline.score(
        given.checkpoint,
        archive,
        given.out,
        settings,
        checks=given.checks,
        hash_ids=given.hash_ids,
        fingerprint=given.fingerprint,
        probe=given.probe,
        replace=given.replace,
        **chosen,
    )
    counts = ("n_input", "n_ok", "n_degraded", "n_quarantined")
    print(" ".join(f"{name}={manifest[name]}" for name in counts))
    print(f"\n{manifest['summary']}", end="")
    return DONE


if __name__ == "__main__":
    run_job(main)
