"""Disturbs the verbs on a small bench in every known way, and counts the outcomes.

    python -m tools.chaos --seed=1 --kills=50 --damages=300 --inputs=1000

Kills verbs, damages stored and input files, withdraws disk, memory and file descriptors, and
attacks with hostile files. Exits with 0 only if nothing was silent, left a traceback, crashed, hung
or could not be repaired. Everything happens in a temporary folder.
"""

import argparse
import importlib
import logging
import os
import pathlib
import random
import sys
import tempfile
import time

_FAMILIES = ("attacks", "inputs", "damages", "resources", "kills")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=50, help="of every verb")
    parser.add_argument("--damages", type=int, default=300, help="of what was stored")
    parser.add_argument("--inputs", type=int, default=1000, help="damaged files of collections")
    parser.add_argument("--attacks", type=int, default=100, help="hostile files and templates")
    parser.add_argument("--resources", type=int, default=30, help="runs with too little")
    parser.add_argument(
        "--verbs",
        default="prepare,plan,train,evaluate,report,audit",
        help="in this order; each starts from the results of those before it",
    )
    parser.add_argument("--folder", help="working folder; it is not removed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return run(options, pathlib.Path(options.folder or folder).absolute())


def run(options: argparse.Namespace, root: pathlib.Path) -> int:
    """Everything that `options` request, in the folder `root`; returns the exit status."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tools.chaos import kills, line, readers, resources, stored
    from tools.chaos.attacks import attacks
    from tools.chaos.outcome import Table

    logging.getLogger("optiml_jax").setLevel(logging.INFO)
    root.mkdir(parents=True, exist_ok=True)
    verbs = [verb for verb in options.verbs.split(",") if verb]
    for verb in verbs:  # once, here: a forked process then has them
        importlib.import_module(f"optiml_jax.cli.{verb}")
    began = time.monotonic()
    made, durations = line.make(root, verbs)
    table = Table()

    def rng(family: str) -> random.Random:
        return random.Random(f"{options.seed} {family}")

    if options.attacks:
        attacks(root, rng("attacks"), options.attacks, table)
    if options.inputs:
        readers.inputs(root, rng("inputs"), options.inputs, table)
    if options.damages:
        stored.damages(made, rng("damages"), options.damages, table)
    if options.resources:
        resources.shortages(made, rng("resources"), options.resources, table)
    if options.kills:
        kills.kills(made, durations, rng("kills"), options.kills, table)
    seconds = time.monotonic() - began
    print(f"\nseed {options.seed}, {seconds:.0f} s, {len(table.outcomes)} attempts")
    print(table)
    for outcome in table.bad:
        print(f"{outcome.kind}: {outcome.family}: {outcome.name}: {outcome.said}")
    return 1 if table.bad else 0


if __name__ == "__main__":
    sys.exit(main())
