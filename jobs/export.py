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
    exports = found["exports"]
    one = next(iter(exports.values()))
    agreement, eager = one["agreement"], one["latency_ms"]["eager"]
    metric = agreement.get("metric", {}).get("name", "")
    print(_row("", "MB", "ms/window", "mean |dp|", "max |dp|", "same", metric))
    print(_row("eager torch", "", f"{eager:.2f}", "", "", "", _figure(agreement, "eager")))
    for name, said in exports.items():
        print(_line(name, said))
    for name, why in found["left_out"].items():
        print(f"{name:16} not made: {why}")
    print(
        f"|dp|: difference from the probabilities of eager torch, on {agreement['n_windows']} windows "
        f"({agreement['split']})\n"
        f"same: share of the {agreement['n_examples']} examples that have the same decisions\n"
        "ms/window: median time of one window alone, one thread"
    )
    return DONE


def _line(name: str, said: dict[str, Any]) -> str:
    agreement = said["agreement"]
    return _row(
        name,
        f"{said['size'] / 1e6:.2f}",
        f"{said['latency_ms']['one_window']:.2f}",
        f"{agreement['mean_dp']:.1e}",
        f"{agreement['max_dp']:.1e}",
        f"{agreement['same_decisions']:.2%}",
        _figure(agreement, "export"),
    )


def _figure(agreement: dict[str, Any], side: str) -> str:
    if "metric" not in agreement:  # the windows have no targets
        return ""
    value = agreement["metric"][side]
    return "-" if value is None else f"{value:.4f}"


def _row(name: str, *cells: str) -> str:
    return f"{name:16} {' '.join(f'{cell:>11}' for cell in cells)}".rstrip()


if __name__ == "__main__":
    run_job(main)
