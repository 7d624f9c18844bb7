"""`optiml doctor`: checks this machine and the paths of a gin file, and shows what is missing."""

import importlib.metadata
import os
import pathlib
import platform
import resource
import shutil
import sys

import gin
import jax
import psutil

from optiml_jax.cli import main as command_line
from optiml_jax.cli.compilation_cache import CompilationCache
from optiml_jax.cli.settings import Run, configured, expand, is_bound
from optiml_jax.data.plan import PlanConfig
from optiml_jax.data.vocabulary_files import is_on_hub, vocabulary_files
from optiml_jax.errors import MEND, UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.model.kernels import choice
from optiml_jax.paths import is_bucket, path_of
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.train.config import TrainConfig, check_batch
from optiml_jax.train.optimizer import OptimizerConfig
from tasks.registry import reader_of

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "t5")
ORACLES = ("torch", "transformers", "lm-eval")
FEW_FILES = 4096  # a mixture of 2,000 tasks has several cache files open per task while it is read
GIB = 2**30


def main() -> int:
    findings = [*versions(), *machine(), *attention(), *training(), *run_folders()]
    width = max(len(name) for name, _, _ in findings)
    for name, value, missing in findings:
        print(f"{'!' if missing else ' '} {name:{width}}  {value}")
    problems = sum(missing for _, _, missing in findings)
    if problems:
        print(f"\n{problems} of these need attention (marked !)", file=sys.stderr)
    return MEND if problems else 0


Finding = tuple[str, str, bool]  # name, value, whether something is wrong


def versions() -> list[Finding]:
    found = [("python", f"{platform.python_version()} ({sys.executable})", False)]
    found += [
        (name, v or "not installed", v is None) for name in PACKAGES for v in [_version(name)]
    ]
    oracles = ", ".join(f"{name} {_version(name) or 'not installed'}" for name in ORACLES)
    return [*found, ("test oracles", oracles, False)]


def machine() -> list[Finding]:
    devices = jax.local_devices()
    kinds = sorted({d.device_kind for d in devices})
    memory = [s["bytes_limit"] for d in devices if (s := d.memory_stats()) and "bytes_limit" in s]
    each = f", {min(memory) / GIB:.1f} GiB each for arrays" if memory else ""
    total = psutil.virtual_memory()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cache = CompilationCache().place()
    return [
        ("devices", f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()}){each}", False),
        ("processors", f"{len(os.sched_getaffinity(0))} usable, {platform.machine()}", False),
        ("memory", f"{total.available / GIB:.1f} of {total.total / GIB:.1f} GiB free", False),
        (
            "open files",
            f"{files} allowed" + ("; run: ulimit -n 65536" if files < FEW_FILES else ""),
            files < FEW_FILES,
        ),
        ("compiled programs", str(cache) if cache else "not kept", False),
        (
            "git",
            shutil.which("git") or "not found; `optiml fetch` needs it",
            not shutil.which("git"),
        ),
    ]


def attention() -> list[Finding]:
    """The attention kernel that training would use, and why others are not used."""
    model, length = model_config(), PlanConfig(num_rows=1).sequence_length
    case = choice.training_case(model, length, jax.local_devices()[0])
    chosen = choice.choose(case, model.attention).name
    heads = f"{model.num_heads} heads of {model.head_dim}, {length} tokens in {model.dtype}"
    others = "; ".join(f"{name}: {said}" for name, said in choice.explain(case) if name != chosen)
    return [("attention", f"{chosen} for {heads} ({others})", False)]


def training() -> list[Finding]:
    """Whether `optiml train` would refuse the settings of the gin file, as far as can be told."""
    if not is_bound("TrainConfig.num_steps"):
        return []
    try:
        config = configured(TrainConfig, plan_dir="", run_dir="")
        OptimizerConfig().check(config.num_steps)
    except UserError as e:
        return [("training", str(e), True)]
    batch = f"{config.num_steps} updates of {config.global_batch_size} rows"
    try:
        mesh = make_mesh(MeshConfig())
    except UserError as e:  # the gin file may be meant for other machines
        return [("training", f"{batch}; {e}", False)]
    try:
        check_batch(config, mesh)
    except UserError as e:
        return [("training", str(e), True)]
    return [("training", f"{batch} on mesh {dict(mesh.shape)}", False)]


def run_folders() -> list[Finding]:
    """The folders that the gin file names; without one, those in $OPTIML_DATA."""
    if not is_bound("Run.cache_dir"):
        return [_data_root()]
    try:
        run = configured(Run)
    except UserError as e:
        return [("run", str(e), True)]
    found = [_data(name, place) for name, place in run.data.items()]
    start = [_folder("init_from", path) for path in _bound("TrainConfig.init_from")]
    written = [_disk(name, getattr(run, name)) for name in _WRITTEN]
    return [*found, _vocabulary(run), *start, *written]


_WRITTEN = ("cache_dir", "run_dir")


def _data_root() -> Finding:
    root = os.environ.get("OPTIML_DATA")
    if not root:
        return ("$OPTIML_DATA", "not set; run: export OPTIML_DATA=/folder/of/your/data", False)
    if not os.path.isdir(root):
        return ("$OPTIML_DATA", f"{root} not found", True)
    return ("$OPTIML_DATA", f"{root}: {', '.join(sorted(os.listdir(root))) or 'empty'}", False)


def _data(name: str, place: str) -> Finding:
    try:
        folder = reader_of(name, place)[1]
    except UserError as e:
        return (f"data: {name}", str(e), True)
    return _folder(f"data: {name}", folder)


def _folder(name: str, folder: str) -> Finding:
    there = path_of(folder).exists()
    return (name, folder if there else f"{folder} not found", not there)


def _vocabulary(run: Run) -> Finding:
    kind, _, place = run.vocabulary.partition(":")
    if kind in ("opt", "huggingface") and is_on_hub(place):
        return ("vocabulary", f"{run.vocabulary}, downloaded from the Hugging Face Hub", False)
    try:
        vocabulary_files(run.vocabulary)
    except UserError as e:
        return ("vocabulary", str(e), True)
    return ("vocabulary", run.vocabulary, False)


def _bound(name: str) -> list[str]:
    """The value of a gin parameter; empty: not set."""
    value = gin.query_parameter(name) if is_bound(name) else None
    return [expand(value, name)] if value else []


def _disk(name: str, folder: str) -> Finding:
    """Free space where a folder is or will be, and whether it can be written."""
    if is_bucket(folder):
        return (name, folder, False)
    place = pathlib.Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    writable = os.access(place, os.W_OK)
    said = f"{folder}: {free:.1f} GiB free" + ("" if writable else f"; {place} cannot be written")
    return (name, said, not writable)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
