"""A small pipeline of verbs to disturb: the demo bench, with settings that take seconds."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence

from tools.chaos.outcome import silenced

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VERBS = ("prepare", "plan", "train", "evaluate", "report", "audit")
_GIN = """
include 'gin/models/demo.gin'
Run.data = {{'demo_superni': '{root}/bench/superni'}}
Run.vocabulary = 'sentencepiece:{root}/bench/vocabulary.model'
Run.cache_dir = '{root}/line/cache'
Run.run_dir = '{root}/line/run'
Mixture.name = 'chaos'
Mixture.tasks = ('demo_superni/*',)
Mixture.max_examples = 40
PlanConfig.sequence_length = 256
model_config.d_model = 32
model_config.num_layers = 2
model_config.num_heads = 2
MeshConfig.data = -1
MeshConfig.fsdp = 1
TrainConfig.num_steps = 6
TrainConfig.global_batch_size = 4
TrainConfig.log_every = 1
TrainConfig.checkpoint_every = 2
TrainConfig.validate_every = 0
TrainConfig.stall_seconds = 60.0
OptimizerConfig.warmup_steps = 1
Evaluate.roles = ('test', 'dev')
Evaluate.shots = (0,)
EvalConfig.max_new_tokens = 4
EvalConfig.max_examples = 4
AuditWords.n = 4
Audit.num_workers = 1
Report.replicates = 20
CompilationCache.folder = '{root}/compiled'
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """The folder of the line: bench/ is read, line/ is written, states/<verb> is line/ after it."""

    root: pathlib.Path

    @property
    def written(self) -> pathlib.Path:
        return self.root / "line"

    @property
    def cache(self) -> pathlib.Path:
        return self.written / "cache"

    @property
    def run(self) -> pathlib.Path:
        return self.written / "run"

    def after(self, verb: str) -> pathlib.Path:
        """The state of line/ after a verb, never disturbed."""
        return self.root / "states" / verb

    def restore(self, verb: str | None) -> None:
        """Restores line/ to the state after a verb; None: empty."""
        shutil.rmtree(self.written, ignore_errors=True)
        self.written.mkdir(parents=True)
        if verb is not None:
            shutil.copytree(self.after(verb), self.written, dirs_exist_ok=True, symlinks=True)

    def arguments(self, verb: str, more: Sequence[str] = ()) -> list[str]:
        return [verb, f"--gin_file={self.root}/chaos.gin", *more]

    def call(self, verb: str, *more: str) -> int:
        """Runs a verb in this process; its exit status."""
        from optiml_jax.cli.main import main

        sys.argv = ["optiml", *self.arguments(verb, more)]
        return main()


def start(
    line: Line,
    verb: str,
    said: pathlib.Path,
    *more: str,
    prepared: Callable[[], None] = lambda: None,
) -> int:
    """Starts a verb in a forked process whose output goes to the file `said`; returns its id.

    `prepared` is called in that process before.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepared()
        status = line.call(verb, *more)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ends(child: int, seconds: float) -> int | None:
    """The exit status of a process (negative: its signal); None if it had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def make(root: pathlib.Path, verbs: Sequence[str] = VERBS) -> tuple[Line, dict[str, float]]:
    """Builds the bench and runs the verbs undisturbed; the line, and the seconds of each verb."""
    from tasks.demo.build import build, train_vocabulary

    line = Line(root)
    seconds = {}
    if not (root / "bench" / "vocabulary.model").exists():
        build(root / "bench")
        with silenced():
            train_vocabulary(root / "bench")
    (root / "chaos.gin").write_text(_GIN.format(root=root))
    line.restore(None)
    for verb in verbs:
        began = time.monotonic()
        said = root / f"{verb}.log"
        status = ends(start(line, verb, said), 600)
        if status != 0:
            raise RuntimeError(f"{verb} ended with {status}: {said.read_text()[-2000:]}")
        seconds[verb] = time.monotonic() - began
        shutil.rmtree(line.after(verb), ignore_errors=True)
        shutil.copytree(line.written, line.after(verb), symlinks=True)
    return line, seconds


# ---- what must be equal after a verb, whatever happened in between


def result(line: Line, verb: str) -> dict[str, str]:
    """Name -> digest of a verb's results; must be called in a separate process for `train`."""
    if verb == "prepare":
        return _files(line.cache, "**/*[!n]")  # optiml.json records when files were read
    if verb == "plan":
        return _files(line.run / "plan", "**/*")
    if verb == "train":
        return arrays(line.run / "checkpoints" / "6")
    if verb == "evaluate":
        return _files(line.run / "evaluation", "*/records/*.jsonl")
    if verb == "audit":
        return _files(line.run / "audit", "**/*.parquet") | _files(line.run / "audit", "**/*.bin")
    return _files(line.run / "report", "*.csv")


def _files(folder: pathlib.Path, pattern: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.name.startswith(".")
    }


def arrays(step: pathlib.Path) -> dict[str, str]:
    """Name -> digest of the bytes of every array of a checkpoint."""
    from optiml_jax.checkpoint.streaming import open_arrays

    digests = {}
    for item in ("params", "optimizer"):
        names = _array_names(step / item)
        for name, store in open_arrays(step / item, names).items():
            content = store.read().result().tobytes()
            digests[f"{item}/{name}"] = hashlib.sha256(content).hexdigest()
    return digests


def _array_names(item: pathlib.Path) -> list[str]:
    import json

    tree = json.loads((item / "_METADATA").read_text())["tree_metadata"]
    return [".".join(key["key"] for key in leaf["key_metadata"]) for leaf in tree.values()]
