"""A training run small enough for tests, as functions and as a program.

python tests/train/tiny_run.py '{"devices": 2, "process": {...}, "train": {...}, ...}'
"""

import json
import logging
import os
import pathlib
import signal
import sys
import threading
import time
import types

VOCABULARY_SIZE = 64
# Adam's epsilon is far above its denominator: an update is a smooth function of the gradient (with
# a slope of at most the learning rate), so that rounding is not blown up.
SMOOTH = {"epsilon": 1.0, "learning_rate": 1.0}
SEQUENCE_LENGTH = 32
DECODERS = {  # name -> what `configs` is given of a model
    "opt": {},
    "llama": {"architecture": "llama", "num_kv_heads": 2, "tied": False, "dropout": 0.1},
}


def make_plan(folder, num_rows=400, seed=7, vocabulary="tiny", sequence_length=SEQUENCE_LENGTH):
    """Caches two tasks of random token ids and plans them; returns the plan's folder."""
    from optiml_jax.data.plan import PlanConfig, build_plan

    cache = pathlib.Path(folder) / f"cache_{vocabulary}_{seed}"
    for task, number in (("one/a", 60), ("two/b", 25)):
        _write_task(cache, task, number, seed, vocabulary)
    config = PlanConfig(num_rows=num_rows, sequence_length=sequence_length, seed=seed)
    plan_dir = pathlib.Path(folder) / f"plan_{vocabulary}_{seed}_{num_rows}"
    build_plan(cache, ["one/a", "two/b"], {"one/a": 3, "two/b": 1}, "train", config, plan_dir)
    return plan_dir


def _write_task(cache, task, number, seed, vocabulary):
    import numpy as np

    from optiml_jax.data import cache_writer, store

    rng = np.random.default_rng([seed, number])
    with cache_writer.task_folder(cache, task) as folder:
        writer = cache_writer.SplitWriter(folder, "train", np.dtype("uint16"))
        for _ in range(number):
            source = rng.integers(4, VOCABULARY_SIZE, rng.integers(1, 15)).tolist()
            # Something to learn: the target repeats the first word of the source.
            writer.add(source, [source[0]] * int(rng.integers(1, 4)) + [2])
        writer.close()
        info = {
            "format_version": store.FORMAT_VERSION,
            "task": task,
            "benchmark": task.split("/")[0],
            "category": "Misc.",
            "splits": {"train": {"examples": number}},
            "dtype": "uint16",
            "vocabulary": {
                "spec": f"sentencepiece:{vocabulary}",
                "fingerprint": vocabulary,
                "padded_size": VOCABULARY_SIZE,
            },
            "fingerprint": f"{seed}-{number}",
        }
        cache_writer.write_info(folder, info)


def configs(plan_dir, run_dir, train=None, model=None, mesh=None, optimizer=None):
    """The four configurations of a tiny run, with replacements, as `train` takes them."""
    from optiml_jax.model.architectures import config_from_dict
    from optiml_jax.sharding.mesh import MeshConfig
    from optiml_jax.train.config import TrainConfig
    from optiml_jax.train.optimizer import OptimizerConfig

    defaults = {
        "plan_dir": str(plan_dir),
        "run_dir": str(run_dir),
        "num_steps": 12,
        "global_batch_size": 8,
        "log_every": 2,
        "checkpoint_every": 4,
    }
    size = {"vocab_size": VOCABULARY_SIZE, "d_model": 32, "num_layers": 2, "num_heads": 4}
    size |= {"max_positions": SEQUENCE_LENGTH}
    return (
        TrainConfig(**(defaults | (train or {}))),
        config_from_dict(size | (model or {})),
        MeshConfig(**(mesh or {})),
        OptimizerConfig(**({"learning_rate": 1e-2, "warmup_steps": 3} | (optimizer or {}))),
    )


def read_scalars(run_dir):
    """tag -> [(step, value), ...] as TensorBoard itself shows a run's folder."""
    # TensorBoard's own way of saying that it shall not import TensorFlow.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(pathlib.Path(run_dir) / "tensorboard"), {"scalars": 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def assert_same_parameters(here, there, before):
    """Equal but for the order in which float32 numbers were added up, in `SMOOTH` runs.

    Sums of some thousand float32 products in another order differ by about 1e-6 of the gradient.
    Some ten updates add that up: at most 1e-4 of the largest update, on every processor. A mistake
    (other rows, dropout of another place) moves parameters by a tenth of it and more.
    """
    import jax
    import numpy as np

    triples = list(zip(*map(jax.tree.leaves, (here, there, before)), strict=True))
    update = max(np.abs(b - c).max() for _, b, c in triples)
    assert update > 1e-2
    assert max(np.abs(a - b).max() for a, b, _ in triples) < 1e-4 * update


def _kill_while_saving(manager, step):
    """Makes this process kill itself when the arrays of `step` are written and not yet in place."""
    seal = manager._seal

    def killed(self):
        if self._pending[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seal(self)

    manager._seal = killed


def _kill_while_compiling(seconds):
    """Makes this process kill itself so long after it began to trace and compile."""
    from optiml_jax.train import loop

    compile_programs = loop.compile_programs

    def killed(*arguments):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        compile_programs(*arguments)
        time.sleep(300)

    loop.compile_programs = killed


def _save_slowly(manager, seconds):
    """Makes a save take so long, in the background."""
    seal = manager._seal

    def slowly(self):
        time.sleep(seconds)
        seal(self)

    manager._seal = slowly


def _stall(where):
    """Makes something that the sixth step waits for take for ever: its rows, or this process."""
    from optiml_jax.data.loader import StepSource
    from optiml_jax.train.reporting import Reporter

    read, add = StepSource.__getitem__, Reporter.add

    def rows(self, step):
        time.sleep(10**6 if step == 5 else 0)
        return read(self, step)

    def process(self, measured):
        time.sleep(10**6 if self._step == 5 else 0)
        add(self, measured)

    if where == "rows":
        StepSource.__getitem__ = rows
    else:
        Reporter.add = process


def _count_reads(checksums, path):
    """Appends to a file the name of every file that is read to verify it."""
    read = checksums._read_checksum

    def counted(name):
        with open(path, "a") as f:
            f.write(f"{name}\n")
        return read(name)

    checksums._read_checksum = counted


def main():
    options = json.loads(sys.argv[1])
    for name in ("tensorflow", "seqio", "tensorflow_datasets", "t5"):
        sys.modules[name] = None  # cannot be imported: training runs where they are not installed
    os.environ["JAX_PLATFORMS"] = "cpu"
    given = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in given if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={options.pop('devices', 1)}")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("optiml_jax").setLevel(logging.INFO)
    from optiml_jax.checkpoint import checksums
    from optiml_jax.checkpoint.manager import CheckpointManager
    from optiml_jax.errors import UserError
    from optiml_jax.sharding import processes
    from optiml_jax.train.loop import train

    if "killed_while_saving" in options:
        _kill_while_saving(CheckpointManager, options.pop("killed_while_saving"))
    if "killed_while_compiling" in options:
        _kill_while_compiling(options.pop("killed_while_compiling"))
    if "save_slowly" in options:
        _save_slowly(CheckpointManager, options.pop("save_slowly"))
    if "stall" in options:
        _stall(options.pop("stall"))
    if "count_reads" in options:
        _count_reads(checksums, options.pop("count_reads"))
    if "process" in options:  # one of several: {JAX_COORDINATOR_ADDRESS, ...}
        os.environ |= options.pop("process")
        processes.SILENCE = 15.0  # seconds
        processes.join()
    try:
        with processes.ending_together():
            status = train(*configs(**options))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as e:
        print(f"interrupted: {e}", file=sys.stderr)
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main())
