"""Memory of `optiml export --gin.Export.what=training` as the mixture grows.

    python tools/bench/export_training.py --examples=25000,100000,400000

For each number of examples: a Parquet file of synthetic rows (two texts of 25 words), prepared and
planned, then exported in the order of the plan and per task, each in a separate process whose
peak resident memory is printed. `whole` builds one table of all rows before writing.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from capped_prepare import write_rows

GIN = """
Run.data = {{'mine': '{folder}/mine'}}
Run.vocabulary = 'sentencepiece:{folder}/vocabulary.model'
Run.cache_dir = '{folder}/cache'
Run.run_dir = '{folder}/run'
Mixture.name = 'bench'
Mixture.tasks = ('mine/*',)
PlanConfig.sequence_length = 512
TrainConfig.num_steps = {steps}
TrainConfig.global_batch_size = 100
"""
TASK = """
rows: big
prompt: '{{ source }}'
target: '{{ target }}'
level: train_only
role: [train]
"""


def run(verb: str, folder: pathlib.Path, *bindings: str) -> str:
    command = [sys.executable, "-m", f"optiml_jax.cli.{verb}", f"--gin_file={folder}/bench.gin"]
    done = subprocess.run([*command, *bindings], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{verb} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def export(folder: pathlib.Path, way: str) -> None:
    """One export in this process; prints seconds and its peak resident memory."""
    began = time.perf_counter()
    if way == "whole":
        whole(folder)
    else:
        import gin

        from optiml_jax.cli.main import main

        gin.clear_config()
        settings = {"what": "training", "order": way, "output": str(folder / way)}
        bindings = [f"--gin.Export.{name}='{value}'" for name, value in settings.items()]
        if main(["export", f"--gin_file={folder}/bench.gin", *bindings]):
            sys.exit("export failed")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{way}: {seconds:.1f} s, peak {peak:,.0f} MiB")


def whole(folder: pathlib.Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from optiml_jax.data.plan import Plan
    from optiml_jax.data.vocabulary import load_vocabulary
    from optiml_jax.exchange.training_files import TrainingRows

    plan = Plan.load(folder / "run" / "plan" / "train")
    vocabulary = load_vocabulary(f"sentencepiece:{folder}/vocabulary.model")
    rows = TrainingRows(plan.meta["cache_dir"], vocabulary, "prompt_completion")
    table = pa.Table.from_pylist([*rows.of_plan(plan)])
    pq.write_table(table, folder / "whole.parquet", compression="zstd")


def measure(folder: pathlib.Path, number: int) -> None:
    from optiml_jax.data.vocabulary import train_sentencepiece

    write_rows(folder / "mine/big/train.parquet", number)
    (folder / "mine/big.yaml").write_text(TASK)
    (folder / "bench.gin").write_text(GIN.format(folder=folder, steps=number // 200))
    train_sentencepiece([f"word{i}" for i in range(2000)], folder / "vocabulary.model", 280)
    run("prepare", folder)
    run("plan", folder)
    for way in ("plan", "task", "whole"):
        command = [sys.executable, __file__, f"--folder={folder}", f"--way={way}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{number:,} examples, {done.stdout.splitlines()[-1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", default="25000,100000,400000")
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        export(arguments.folder, arguments.way)
        return
    for number in map(int, arguments.examples.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            measure(pathlib.Path(folder), number)


if __name__ == "__main__":
    main()
