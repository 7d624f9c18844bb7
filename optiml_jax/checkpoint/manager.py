"""Checkpoints of a run: named pytrees written by Orbax, verified before use.

This module saves (asynchronously, atomically, keeping the newest N), finds the newest intact step,
and restores onto any mesh. It does not know the training state: items are any pure nested dicts of
arrays that the caller names (a run saves `params` and `optimizer`).

A step folder holds one Orbax folder per item and `optiml.json`: the caller's metadata, and size
and CRC-32 of every file. Orbax itself checks neither (a flipped byte in a stored array restores as
a wrong number), so the table is written just before Orbax renames the finished folder into place.
With several processes, each hashes the files that it wrote, and they share the verification: no
byte is read twice. Restoring some items verifies only those.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from optiml_jax.checkpoint.checksums import checksums_of, share
from optiml_jax.checkpoint.finite import first_not_finite
from optiml_jax.checkpoint.streaming import StreamedArray, StreamedSave
from optiml_jax.errors import UserError
from optiml_jax.files import OF_THE_MACHINE, fingerprint, read_json, write_json
from optiml_jax.paths import is_bucket, path_of, remove_folder, sizes
from optiml_jax.sharding import processes

logger = logging.getLogger(__name__)

MANIFEST = "optiml.json"
# Orbax changes this file while it renames the folder, after the manifest has been written.
_ORBAX_STAMP = "_CHECKPOINT_METADATA"
_CHUNK_BYTES = 1 << 28
_OVERHEAD = 1 << 20  # bytes of a checkpoint besides its arrays: an upper bound


class CheckpointManager:
    """Writes and reads the step folders of one directory.

    Args:
      directory: holds the step folders; created if missing.
      keep: how many of the newest are kept; an old one is deleted only after a newer is complete.
      async_save: write in the background; `save` returns once the arrays have left the devices.
      files: path in the step folder -> content, of files that every checkpoint includes.

    Errors of a background save are raised by the next `check`, `save`, `wait` or `close`.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        keep: int = 3,
        async_save: bool = True,
        files: Mapping[str, bytes] | None = None,
    ):
        if keep < 1:
            raise UserError(f"keep={keep}: at least one checkpoint must be kept")
        self.directory = path_of(directory).absolute()
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_not_raised)
        self._async_save = async_save
        self._files = files or {}
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._began = time.monotonic()
        self._seal_round = 0
        self.save_seconds: float | None = None  # of the last completed save
        with _save_errors(self.directory):
            self._orbax = ocp.CheckpointManager(
                _for_orbax(self.directory),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                    cleanup_tmp_directories=True,
                    save_root_metadata=False,
                    lightweight_initialize=True,
                ),
            )

    def save(self, step: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Starts saving `items` as `step`, after waiting for a save still in progress.

        Args:
          step: number of the step folder.
          items: name -> pure nested dict of arrays. They may be donated once this returns.
          metadata: JSON-serialisable; read back by `metadata`.

        Raises:
          UserError: the step exists with other metadata or damaged, or the disk is full or not
            writable. Existing checkpoints stay usable.
        """
        self.wait()
        if step in self._orbax.all_steps():
            self._check_same(step, metadata)
            return
        processes.on_first(lambda: self._check_space(items))
        self._pending, self._began = (step, metadata), time.monotonic()
        if (job := processes.job()) is not None:
            self._seal_round = job.next_round()
            if not processes.is_first():
                threading.Thread(
                    target=_hash_for_first, args=(job, self._seal_round), daemon=True
                ).start()
        with self._cleaned_up(step), _save_errors(self.directory):
            arguments = {name: _save_args(item) for name, item in items.items()}
            self._orbax.save(step, args=ocp.args.Composite(**arguments), force=True)
        if not self._async_save:
            self.wait()

    def restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        """The items named in `targets`, with the shardings and dtypes of their abstract pytrees."""
        folder = self.directory / str(step)
        return {name: _restore_item(folder, name, target) for name, target in targets.items()}

    def latest_intact_step(self) -> int | None:
        """The newest step whose files are all intact; None if there is no checkpoint.

        Newer damaged ones are named in a warning. UserError if all are damaged.
        """
        folder = _latest_intact(self.directory)
        return None if folder is None else int(folder.name)

    def set_aside_after(self, step: int) -> None:
        """Moves the (damaged) checkpoints newer than `step` out of the way of a resumed run.

        With several processes, all of them must call it.
        """
        newer = [f for f in _step_folders(self.directory) if int(f.name) > step]
        multihost_utils.sync_global_devices("all processes have chosen the step")
        if jax.process_index() == 0:
            for folder in newer:
                aside = self.directory.with_name(self.directory.name + ".damaged") / folder.name
                remove_folder(aside)
                aside.parent.mkdir(exist_ok=True)
                folder.rename(aside)
                logger.warning("moved the damaged checkpoint %s to %s", folder, aside)
        multihost_utils.sync_global_devices("damaged checkpoints are out of the way")
        self._orbax.reload()

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata that `save` was given for `step`."""
        return _read_manifest(self.directory / str(step))["metadata"]

    def wait(self) -> None:
        """Blocks until the save in progress is on disk; raises its error."""
        step = self._pending[0] if self._pending else None
        with self._cleaned_up(step), _save_errors(self.directory):
            self._orbax.wait_until_finished()
        self._pending = None

    def ends_within(self, seconds: float) -> bool:
        """Waits for the save in progress, if any; False if it takes longer than that."""
        deadline = time.monotonic() + seconds
        while self._orbax.is_saving_in_progress():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def check(self) -> None:
        """Raises the error of a background save that has ended; never blocks."""
        if self._pending and not self._orbax.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits, then frees the threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _check_same(self, step: int, metadata: dict[str, Any]) -> None:
        """UserError unless the existing step is intact and has the same metadata."""
        folder = self.directory / str(step)
        problem = _damage(folder)
        if problem is None and self.metadata(step) != json.loads(json.dumps(metadata)):
            problem = "other metadata"
        if problem is not None:
            raise UserError(f"{folder} exists ({problem}); remove it or choose another folder")
        logger.info("%s is there already", folder)

    def _check_space(self, items: dict[str, Any]) -> None:
        """Refuses a save that does not fit on the disk before half of it is written.

        The oldest checkpoint is removed only after the new one is complete, and trained weights
        hardly compress. Quotas are not seen here; `_save_errors` reports them.
        """
        if is_bucket(self.directory):
            return
        needed = _OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise _no_space(self.directory, f" ({needed:,} bytes needed, {free:,} free)")

    def _seal(self) -> None:
        """Called by Orbax on process 0 once the temporary folder holds the whole step."""
        step, metadata = self._pending
        (folder,) = self._unfinished(step)
        for name, content in self._files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        found = sizes(folder)
        names = sorted(n for n in found if n.split("/")[-1] not in (_ORBAX_STAMP, MANIFEST))
        checksums = self._hash_together(folder, names)
        files = {name: [found[name], checksums[name]] for name in names}
        body = {"metadata": metadata, "files": files}
        write_json(folder / MANIFEST, body | {"fingerprint": fingerprint(body)})
        self.save_seconds = time.monotonic() - self._began

    def _hash_together(self, folder: pathlib.Path, names: list[str]) -> dict[str, int]:
        """The checksums of all files, each from the process that wrote it."""
        job = processes.job()
        if job is None:
            return checksums_of(folder, names)
        owners: dict[int, list[str]] = {i: [] for i in range(jax.process_count())}
        for name in names:
            owners[_writer(name, len(owners))].append(name)
        for process, own in owners.items():
            job.say(f"hash/{self._seal_round}/{process}", json.dumps([str(folder), own]))
        checksums = checksums_of(folder, owners[0])
        for process in range(1, len(owners)):
            hashed = json.loads(job.hear(f"hashed/{self._seal_round}/{process}"))
            if isinstance(hashed, str):
                raise UserError(f"process {process} cannot read what it saved: {hashed}")
            checksums |= hashed
        return checksums

    @contextlib.contextmanager
    def _cleaned_up(self, step: int | None) -> Iterator[None]:
        """Removes the half-written folder of a failed save, which may be filling the disk."""
        try:
            yield
        except Exception:
            if step is not None and jax.process_index() == 0:
                for folder in self._unfinished(step):
                    # In a bucket the error may be that of deleting an older one, after this one.
                    if not is_bucket(folder) or _damage(folder) is not None:
                        remove_folder(folder)
            self._pending = None
            raise

    def _unfinished(self, step: int) -> list[pathlib.Path]:
        """Where Orbax writes an incomplete step: in a bucket, directly in its final folder."""
        if is_bucket(self.directory):
            return [self.directory / str(step)]
        return list(self.directory.glob(f"{step}.*tmp*"))


def _save_args(item: Any) -> ocp.args.CheckpointArgs:
    if any(isinstance(leaf, StreamedArray) for leaf in jax.tree.leaves(item)):
        return StreamedSave(item)
    return ocp.args.StandardSave(item, save_args=jax.tree.map(_chunks, item))


def _chunks(array: jax.Array) -> ocp.SaveArgs:
    """Chunks of one layer for large stacked arrays, so that conversion can read layer by layer."""
    layers = array.ndim > 2 and array.nbytes > _CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if layers else ())


def _writer(name: str, number: int) -> int:
    """The process that wrote a file, from the name that Orbax gives its folder."""
    found = re.search(r"ocdbt\.process_(\d+)/", name)
    return int(found[1]) if found and int(found[1]) < number else 0


def _hash_for_first(job: processes.Job, number: int) -> None:
    """Runs in a thread of the other processes: hashes the files that process 0 asks for.

    It says the checksums, or the text of an error.
    """
    folder, names = json.loads(job.hear(f"hash/{number}/{jax.process_index()}"))
    try:
        said = checksums_of(path_of(folder), names)
    except Exception as e:  # of a file system or a bucket
        said = str(e) or type(e).__name__
    job.say(f"hashed/{number}/{jax.process_index()}", json.dumps(said))


def _is_not_raised(record: logging.LogRecord) -> bool:
    """False for the tracebacks that Orbax logs of errors that it also raises in `wait`."""
    return not (record.exc_info and "orbax" in record.pathname + record.getMessage())


def load_params(path: str | os.PathLike, abstract: Any) -> Any:
    """The `params` of a checkpoint.

    Args:
      path: a run folder, its `checkpoints` folder or one step folder; of several steps the newest
        intact one is used.
      abstract: nested dict of jax.ShapeDtypeStruct (`sharding.rules.abstract_params`); gives the
        dtype and sharding of every array; without a sharding it goes to the first device.

    Raises:
      UserError: missing, damaged, not finite, or of different shapes from `abstract`.
    """
    folder = find_checkpoint(path, ("params",))
    params = _restore_item(folder, "params", abstract)
    if (name := first_not_finite(params)) is not None:
        raise UserError(f"the checkpoint {folder} holds numbers that are not finite, in {name}")
    return params


def load_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of the checkpoint that `load_params` would load."""
    return _read_manifest(find_checkpoint(path, ("params",)))["metadata"]


def load_fingerprint(path: str | os.PathLike) -> str:
    """The fingerprint (of metadata and files) of the checkpoint that `load_params` would load."""
    body = _read_manifest(find_checkpoint(path, ("params",)))
    return fingerprint(body)


def find_checkpoint(path: str | os.PathLike, items: Sequence[str] | None = None) -> pathlib.Path:
    """The step folder of a run folder, a `checkpoints` folder or a step folder itself.

    With several processes, all of them must call it.

    Args:
      items: whose content is verified; None: all. Every file must exist with its size.
    """
    path = path_of(path).absolute()
    if (path / MANIFEST).is_file():
        if problem := _damage(path, items):
            raise UserError(f"the checkpoint {path} is damaged ({problem}); choose another step")
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = _latest_intact(folder, items)
    if found is None:
        raise UserError(
            f"no checkpoint in {path}: give a run folder, its checkpoints folder or one step "
            "folder (convert weights of other programs with `optiml convert` first)"
        )
    return found


def _latest_intact(
    directory: pathlib.Path, items: Sequence[str] | None = None
) -> pathlib.Path | None:
    problems = []
    names = processes.on_first(lambda: [folder.name for folder in _step_folders(directory)])
    for folder in (directory / name for name in reversed(names)):
        problem = _damage(folder, items)
        if problem is None:
            for text in problems:
                logger.warning("skipping a damaged checkpoint: %s; using %s", text, folder)
            return folder
        problems.append(f"{folder}: {problem}")
    if problems:
        raise UserError(
            f"every checkpoint in {directory} is damaged ({'; '.join(problems)}); put a whole one "
            "back, or remove the folder to start from the beginning"
        )
    return None


def _step_folders(directory: pathlib.Path) -> list[pathlib.Path]:
    if not directory.is_dir():
        return []
    folders = [p for p in directory.iterdir() if re.fullmatch(r"\d+", p.name) and p.is_dir()]
    if is_bucket(directory):  # where an unfinished step already has its final name
        folders = [p for p in folders if (p / MANIFEST).exists()]
    return sorted(folders, key=lambda p: int(p.name))


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST, "the description of a checkpoint")
    body = {key: manifest.get(key) for key in ("metadata", "files")}
    if manifest.get("fingerprint") != fingerprint(body):
        raise UserError(f"the description of a checkpoint is damaged: {folder / MANIFEST}")
    return body


def _damage(folder: pathlib.Path, items: Sequence[str] | None = None) -> str | None:
    """What is wrong with a step folder, or None.

    The processes share the files of the `items`, and read each byte once unless a file changes.
    """
    files, problem = processes.on_first(lambda: _look_at(folder))
    if problem is not None:
        return problem
    wanted = [n for n in files if items is None or "/" not in n or n.split("/")[0] in items]
    own = share(wanted, {name: size for name, (size, _) in files.items()})
    try:
        checksums = checksums_of(folder, own)
        changed = [name for name in own if checksums[name] != files[name][1]]
    except OSError as e:
        problem = str(e)
    else:
        if changed:
            problem = f"the content of {changed[0]} has changed since it was written"
    return next((p for p in processes.gather(problem) if p is not None), None)


def _look_at(folder: pathlib.Path) -> tuple[dict[str, list[int]], str | None]:
    """The table of files, and what is wrong with it, with their number or their sizes."""
    try:
        manifest = _read_manifest(folder)
    except UserError as e:
        return {}, str(e)
    files, step = manifest["files"], manifest["metadata"].get("step")
    if folder.name.isdigit() and step is not None and int(folder.name) != step:
        return files, f"it is the checkpoint of step {step} under another number"
    found = sizes(folder)
    missing = [name for name in files if name not in found]
    if missing:
        return files, f"{len(missing)} files are missing, {missing[0]} first"
    for name, (size, _) in files.items():
        if (actual := found[name]) != size:
            return files, f"{name} has {actual} bytes, not {size}"
    return files, None


def _restore_item(folder: pathlib.Path, name: str, target: Any) -> Any:
    if not (folder / name).is_dir():
        raise UserError(f"the checkpoint {folder} has no item {name!r}")
    path = _for_orbax(folder / name)
    handler = ocp.StandardCheckpointHandler()
    try:
        _check_shapes(path, handler.metadata(path).tree, target)
        target = jax.tree.map(_placed, target)
        return handler.restore(path, args=ocp.args.StandardRestore(target))
    finally:
        handler.close()


def _for_orbax(folder: pathlib.Path) -> epath.Path:
    if is_bucket(folder):
        from optiml_jax.buckets import teach_orbax

        teach_orbax()
    return epath.Path(folder)


def _check_shapes(path: epath.Path, stored: Any, target: Any) -> None:
    """A one-line error about the first difference, instead of Orbax's dump of both trees."""
    stored, wanted = _shapes(stored), _shapes(target)
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise UserError(
                f"{path} does not fit the model: {key} is {stored.get(key, 'missing')} in the "
                f"checkpoint and {wanted.get(key, 'missing')} in the model; use the model "
                "configuration the checkpoint was made with"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): v.shape for path, v in leaves}


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """`leaf` with a sharding: without one, Orbax would require the devices of the saving run."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _save_errors(directory: pathlib.Path) -> Iterator[None]:
    """What the disk refuses as a UserError; TensorStore says it only in its messages."""
    try:
        yield
    except Exception as e:
        text = " ".join(str(e).split())
        for number in OF_THE_MACHINE:
            said = os.strerror(number)
            if f"os_error_code='{number}'" in text or said.lower() in text.lower():
                if number in (errno.ENOSPC, errno.EDQUOT):
                    raise _no_space(directory) from e
                raise UserError(f"cannot write checkpoints to {directory}: {said}") from e
        raise


def _no_space(directory: pathlib.Path, detail: str = "") -> UserError:
    return UserError(
        f"no space left on the disk of {directory} while saving a checkpoint{detail}; the earlier "
        "checkpoints are intact: free some space, then run the same command again"
    )
