"""The loss of a run by the type it is computed in: `tools/bench/loss_by_type.py --gin_file=FILE`.

Trains the run of a gin file whose data is prepared (`optiml prepare`) once in each of --types, from
the same weights on the same rows, for --steps updates (200), and prints the loss of the last --last
updates (50), the validation loss, and how far both are from those of the first type.
--types: float32, bfloat16, float16, float8 (which is `model_config.matmul`, in bfloat16); default
float32 float16. --folder gets the runs; every other argument goes to `optiml train`.
"""

import argparse
import pathlib
import subprocess

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def train(kind: str, folder: pathlib.Path, steps: int, arguments: list[str]) -> None:
    """Makes the run, or makes it complete."""
    small = kind == "float8"
    settings = {
        "Run.run_dir": repr(str(folder)),
        "model_config.dtype": repr("bfloat16" if small else kind),
        "model_config.matmul": repr("float8" if small else "dtype"),
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
    parser.add_argument("--types", nargs="+", default=["float32", "float16"])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/loss_by_type"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--last", type=int, default=50)
    options, rest = parser.parse_known_args()
    for kind in options.types:
        train(kind, options.folder / kind, options.steps, rest)
    exact = None
    for kind in options.types:
        values = curves(options.folder / kind)
        ends = sum(values["loss"][-options.last :]) / options.last, values["validation/loss"][-1]
        exact = exact or ends
        apart = [
            f"{loss:.4f} ({loss / one - 1:+.2%})" for loss, one in zip(ends, exact, strict=True)
        ]
        curve = ", ".join(f"{loss:.2f}" for loss in values["loss"][:: max(options.steps // 10, 1)])
        print(
            f"{kind}: loss of the last {options.last} of {options.steps} updates {apart[0]}, "
            f"validation loss {apart[1]}, skipped {sum(values.get('skipped', [0])):.0f}; {curve}"
        )


if __name__ == "__main__":
    main()
