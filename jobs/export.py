"""Export a checkpoint's network into its bundle: ONNX, int8 ONNX and a torch.export program."""

from __future__ import annotations

from typing import Any

from rayecg.core.job import DONE, Arguments, run_job


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--checkpoint", required=True, help="folder of a checkpoint")
    arguments.add_argument(
        "--shards", help="folder of its training's shards, where they are not beside it"
    )
    arguments.add_argument("--examples", help="their examples.parquet")
    arguments.add_argument(
        "--n-calibration", type=int, default=256, help="training windows that fix int8's scales"
    )
    arguments.add_argument(
        "--n-validation", type=int, default=2000, help="validation examples to measure agreement on"
    )
    given = arguments.parse_args()

    from rayecg import pipeline  # imports torch, which wrong usage need not wait for

    found = pipeline.export(
        given.checkpoint, given.shards, given.examples, given.n_calibration, given.n_validation
    )
    print(f"{'':16} {'MB':>8} {'ms a window':>12} {'mean |dp|':>10} {'max |dp|':>9} {'same':>8}")
    for name, said in found["exports"].items():
        print(_line(name, said))
    for name, why in found["left_out"].items():
        print(f"{name:16} not made: {why}")
    one = next(iter(found["exports"].values()))
    agreement = one["agreement"]
    print(
        f"eager torch: {one['latency_ms']['eager']:.2f} ms a window; agreement with it on "
        f"{agreement['n_windows']} windows ({agreement['split']}), one thread"
    )
    return DONE


def _line(name: str, said: dict[str, Any]) -> str:
    agreement = said["agreement"]
    figures = [
        f"{metric} {value['export']} (eager {value['eager']})"
        for metric, value in agreement.items()
        if isinstance(value, dict)
    ]
    return (
        f"{name:16} {said['size'] / 1e6:8.2f} {said['latency_ms']['one_window']:12.2f} "
        f"{agreement['mean_dp']:10.1e} {agreement['max_dp']:9.1e} "
        f"{agreement['same_decisions']:8.2%} {' '.join(figures)}"
    ).rstrip()


if __name__ == "__main__":
    run_job(main)
