"""float16 with dynamic loss scaling beside float32: `tools/bench/float16.py --gin_file=FILE`.

Trains the run of a gin file that is prepared and planned (`optiml prepare plan`) twice, in each
type from the same weights on the same rows, for --steps updates (200), and prints the loss of the
last --last updates (50), the validation loss and how far they lie apart. --folder gets the runs;
every other argument goes to `optiml train`.
"""

import argparse
import pathlib
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TYPES = ("float32", "float16")


def train(dtype: str, folder: pathlib.Path, steps: int, arguments: list[str]) -> None:
    """Makes the run, or makes it complete."""
    settings = {
        "Run.run_dir": repr(str(folder)),
        "model_config.dtype": repr(dtype),
        "TrainConfig.num_steps": steps,
        "TrainConfig.log_every": 1,
        "TrainConfig.validate_every": steps,
        "OptimizerConfig.warmup_steps": steps // 10,
    }
    given = [f"--gin.{name}={value}" for name, value in settings.items()]
    subprocess.run(["optiml", "plan", "train", *given, *arguments], check=True)


def curves(folder: pathlib.Path) -> dict[str, list[float]]:
    """Every scalar of a run, by its name: the values in the order of the steps."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/float16"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--last", type=int, default=50)
    options, rest = parser.parse_known_args()
    found = {}
    for dtype in TYPES:
        train(dtype, options.folder / dtype, options.steps, rest)
        found[dtype] = curves(options.folder / dtype)
    ends = {}
    for dtype, values in found.items():
        loss = sum(values["loss"][-options.last :]) / options.last
        ends[dtype] = (loss, values["validation/loss"][-1])
        print(
            f"{dtype}: loss of the last {options.last} of {options.steps} updates {loss:.4f}, "
            f"validation loss {ends[dtype][1]:.4f}, skipped {sum(values.get('skipped', [0])):.0f}"
        )
    apart = [half / whole - 1 for whole, half in zip(*(ends[t] for t in TYPES), strict=True)]
    print(f"float16 over float32: {apart[0]:+.2%} and {apart[1]:+.2%} (validation)")


if __name__ == "__main__":
    sys.exit(main())
