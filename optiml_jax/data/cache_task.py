"""Caching one task: the function that a worker runs, whatever starts it (pool, Beam, this process).

Which tasks, in what order and on how many processes is decided in `prepare.py`; the files are
those of `cache_writer.py`.
"""

import dataclasses
import errno
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.data.cache_writer import (
    SplitWriter,
    TFRecordSplitWriter,
    remove_task,
    task_folder,
    write_info,
)
from optiml_jax.data.example import Drops, Example, TaskSource, seqio_name
from optiml_jax.data.made_of import digest, known_digests, reader_settings, stat_key
from optiml_jax.data.pool import Stopped
from optiml_jax.data.preprocessors import ENCODED_FEATURES, encode_examples, training_pool
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.sampling import RowSample, keep_random
from optiml_jax.data.store import COMPLETED_FILE, FORMAT_VERSION, INFO_FILE, num_shards
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import load_vocabulary, padded_size
from optiml_jax.errors import UserError, may_pass, reason_of
from optiml_jax.fetch.provenance import sources_of
from optiml_jax.files import damage, fingerprint, read_sealed, write_json
from optiml_jax.frozen import by_name, changes
from optiml_jax.paths import path_of

logger = logging.getLogger(__name__)

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """The settings shared by all tasks of a run. Picklable and small.

    Attributes:
      cache_dir: the folder of all cached tasks.
      vocabulary_spec: see `vocabulary.load_vocabulary`.
      vocabulary_fingerprint: of the vocabulary that the specification gave when the run started.
      prompt_config: how prompts are rendered.
      sequence_length: the longest source + target + </s>.
      max_examples: task -> cap on its training examples, of which a random subset is cached; a task
        that is not named has none.
      subset_seed: of these subsets.
      verify: whether existing caches are verified, and cached again if they have changed.
    """

    cache_dir: str
    vocabulary_spec: str
    vocabulary_fingerprint: str
    prompt_config: PromptConfig
    sequence_length: int
    max_examples: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    subset_seed: int = 1234
    verify: bool = True


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """The outcome of one task.

    Attributes:
      task: its name.
      status: "cached" (written in this run), "unchanged" (was there already) or "failed".
      splits: as in optiml.json; empty when it failed.
      error: why it failed.
      fatal: the cause (a full disk) would make every other task fail, too.
      may_pass: a retry may succeed although nobody mends anything.
    """

    task: str
    status: Literal["cached", "unchanged", "failed"]
    splits: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    error: str = ""
    fatal: bool = False
    may_pass: bool = False


def cache_task(
    source: TaskSource,
    settings: CacheSettings,
    stopped: Callable[[], bool] = lambda: False,
) -> TaskOutcome:
    """Caches a task unless the cache holds it already; a failure is an outcome, not an exception.

    Args:
      source: the task.
      settings: of the run.
      stopped: asked now and then whether to give up, which raises `Stopped`.
    """
    try:
        return _cache_if_changed(source, settings, stopped)
    except UserError as e:
        cause = e.__cause__
        fatal = isinstance(cause, OSError) and cause.errno in _DISK_ERRORS
        return TaskOutcome(
            source.name, "failed", error=reason_of(e), fatal=fatal, may_pass=may_pass(e)
        )
    except Stopped:
        raise
    except Exception as e:
        logger.exception("caching task %s", source.name)  # a fault of a reader, not of the data
        return TaskOutcome(source.name, "failed", error=reason_of(e), may_pass=may_pass(e))


def reuse_cached(
    source: TaskSource, settings: CacheSettings, reasons: Drops | None = None
) -> TaskOutcome | None:
    """The outcome of a task that needs no work, found without reading its files.

    None when `cache_task` has to look. A cached task that was made with other settings is deleted
    at once, so that nobody takes it for a part of this run's cache if the run is interrupted;
    `reasons` counts the settings that changed.
    """
    info = _read_cached_info(source, settings)
    if info is None:
        return None
    if problem := _damage(source, settings, info):
        logger.warning("prepare: %s is cached again: %s", source.name, problem)
        remove_task(settings.cache_dir, source.name)
        return None
    if not _is_as_wanted(source, settings, info, info["files"]):
        remove_task(settings.cache_dir, source.name)
        if reasons is not None:
            reasons.update(_changed_settings(info, source, settings))
        return None
    known = known_digests(info["files"])
    if any(stat_key(file) not in known for file in source.files):
        return None
    if info["vocabulary"]["spec"] != settings.vocabulary_spec:
        return None
    return TaskOutcome(source.name, "unchanged", info["splits"])


def _cache_if_changed(
    source: TaskSource, settings: CacheSettings, stopped: Callable[[], bool]
) -> TaskOutcome:
    info = _read_cached_info(source, settings)
    known = known_digests(info["files"] if info else ())
    digests = [digest(file, known) for file in source.files]
    wanted = _task_fingerprint(source, settings, digests)
    if info is not None and _damage(source, settings, info):
        info = None
    if info is not None and _is_as_wanted(source, settings, info, digests):
        # The same bytes under other names or times: only the description is rewritten.
        vocabulary = info["vocabulary"] | {"spec": settings.vocabulary_spec}
        own = {"files": digests, "vocabulary": vocabulary, "provenance": sources_of(source.files)}
        write_info(_folder(source, settings), info | own)
        return TaskOutcome(source.name, "unchanged", info["splits"])
    folder = _folder(source, settings)
    if folder.exists() and not (folder / INFO_FILE).exists():
        raise UserError(
            f"{folder} is in the way: it was not written by `optiml prepare`; "
            "delete it or choose another cache folder"
        )
    remove_task(settings.cache_dir, source.name)
    splits = _write_task(source, settings, digests, wanted, stopped)
    return TaskOutcome(source.name, "cached", splits)


def _write_task(
    source: TaskSource,
    settings: CacheSettings,
    digests: list[dict[str, Any]],
    wanted: str,
    stopped: Callable[[], bool],
) -> dict[str, dict[str, Any]]:
    vocabulary = _vocabulary(settings.vocabulary_spec)
    size = padded_size(vocabulary)
    dtype = "uint16" if size <= 1 << 16 else "uint32"
    categories: set[str] = set()
    with task_folder(settings.cache_dir, source.name) as folder:
        splits = {}
        cut_down = None  # the cap, if it left something out
        pool = training_pool(source, settings.prompt_config)
        for split in source.splits:
            drops = Drops()
            limit = settings.max_examples.get(source.name) if split == "train" else None
            if limit is None:
                examples = _read(source, split, drops, categories, stopped)
            else:
                key = f"{settings.subset_seed}\0{source.name}"
                examples, drops, cut = _read_some(source, split, limit, key, categories, stopped)
                cut_down = limit if cut else None
            writer = _SplitFiles(folder, split, dtype, vocabulary)
            for encoded in encode_examples(
                examples,
                source,
                vocabulary,
                settings.prompt_config,
                settings.sequence_length,
                drops,
                pool,
            ):
                writer.add(encoded)
            splits[split] = {**writer.close(), "drops": dict(sorted(drops.items()))}
        if not any(row["examples"] for row in splits.values()):
            drops = sum((Drops(row["drops"]) for row in splits.values()), Drops())
            reasons = ", ".join(f"{n} {reason}" for reason, n in drops.items()) or "it is empty"
            raise UserError(f"no usable record in {', '.join(source.files)} ({reasons})")
        info = {
            "format_version": FORMAT_VERSION,
            "task": source.name,
            "benchmark": source.benchmark,
            "category": min(categories),
            "splits": splits,
            "dtype": dtype,
            "sequence_length": settings.sequence_length,
            "vocabulary": {
                "spec": settings.vocabulary_spec,
                "fingerprint": settings.vocabulary_fingerprint,
                "padded_size": size,
            },
            "prompts": dataclasses.asdict(settings.prompt_config),
            "reader": reader_settings(source),
            "max_examples": cut_down,
            "subset_seed": None if cut_down is None else settings.subset_seed,
            "files": digests,
            "provenance": sources_of(source.files),
        }
        info["fingerprint"] = _with_subset(wanted, info)
        write_info(folder, info)
    return splits


def _read_some(
    source: TaskSource,
    split: str,
    limit: int,
    key: str,
    categories: set[str],
    stopped: Callable[[], bool],
) -> tuple[list[Example], Drops, bool]:
    """At most `limit` random examples of a split, what was dropped, and whether some were left out.

    A reader that can is asked for so many rows only, and for more if too many of them are dropped.
    """
    rows = limit + limit // 4 + 1000
    while True:
        drops = Drops()
        sample = RowSample(key, rows) if source.samples_rows else None
        examples, number = keep_random(
            _read(source, split, drops, categories, stopped, sample), limit, key
        )
        cut = sample is not None and sample.cut
        if number >= limit or not cut:
            return examples, drops, cut or number > limit
        rows *= 4


def _read(
    source: TaskSource,
    split: str,
    drops: Drops,
    categories: set[str],
    stopped: Callable[[], bool],
    sample: RowSample | None = None,
) -> Iterator[Example]:
    """The examples of a split; adds what only they know, their category, to `categories`."""
    try:
        more = () if sample is None else (sample,)
        for example in source.read(split, drops, *more):
            if stopped():
                raise Stopped
            categories.add(example.category)
            yield example
    except OSError as e:  # not to be taken for a trouble of the cache folder
        raise UserError(f"cannot read {e.filename or source.files}: {e.strerror or e}") from e


class _SplitFiles:
    """All files of one split: ours, and SeqIO's three (seqio/beam_utils.py writes the same)."""

    def __init__(self, folder: pathlib.Path, split: str, dtype: str, vocabulary: TextVocabulary):
        self._folder, self._split = folder, split
        self._tokens = SplitWriter(folder, split, dtype)
        self._records = TFRecordSplitWriter(folder, split)
        # SeqIO counts neither padding nor </s>.
        self._not_counted = (vocabulary.pad_id, vocabulary.eos_id)
        self._counts = {"inputs": [0, 0], "targets": [0, 0]}  # sum and maximum of tokens

    def add(self, encoded: dict[str, Any]) -> None:
        self._tokens.add(encoded["inputs"], encoded["targets"])
        self._records.add(_serialised(encoded))
        for feature, count in self._counts.items():
            ids = encoded[feature]
            tokens = len(ids) - sum(ids.count(i) for i in self._not_counted)
            count[0] += tokens
            count[1] = max(count[1], tokens)

    def close(self) -> dict[str, int]:
        lengths = self._tokens.close()
        self._records.close()
        features = {
            name: {"shape": [None] if dtype == "int32" else [], "dtype": dtype}
            for name, dtype in ENCODED_FEATURES.items()
        }
        info = {
            "num_shards": num_shards(len(lengths)),
            "features": features,
            "seqio_version": seqio.__version__,
        }
        stats = {"examples": len(lengths)}
        for feature, (total, largest) in self._counts.items():
            stats |= {f"{feature}_tokens": total, f"{feature}_max_tokens": largest}
        write_json(self._folder / f"info.{self._split}.json", info)
        write_json(self._folder / f"stats.{self._split}.json", stats)
        source_tokens, target_tokens = lengths.sum(axis=0, dtype=np.int64).tolist()
        return {
            "examples": len(lengths),
            "source_tokens": source_tokens,
            "target_tokens": target_tokens,
        }


def _serialised(encoded: dict[str, Any]) -> bytes:
    """A serialised tf.train.Example, as `seqio.dict_to_tfexample` makes it, without tensors."""
    features = {}
    for name, dtype in ENCODED_FEATURES.items():
        value = encoded[name]
        if dtype == "int32":
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        else:
            value = [value.encode("utf-8")]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)  # else in an order of this process


@functools.cache
def _vocabulary(spec: str) -> TextVocabulary:
    return load_vocabulary(spec)


def _folder(source: TaskSource, settings: CacheSettings) -> pathlib.Path:
    return path_of(settings.cache_dir) / seqio_name(source.name)


def _read_cached_info(source: TaskSource, settings: CacheSettings) -> dict[str, Any] | None:
    """optiml.json of the task; None if there is no complete cached task in this format."""
    folder = _folder(source, settings)
    try:
        info = read_sealed(folder / INFO_FILE, "a cached task", "")
    except UserError:
        return None
    if (
        not (folder / COMPLETED_FILE).exists()
        or info.get("format_version") != FORMAT_VERSION
        or info["task"] != source.name
    ):
        return None
    return info


def _damage(source: TaskSource, settings: CacheSettings, info: dict[str, Any]) -> str | None:
    """What has changed in the task's folder since it was written; None: nothing."""
    return damage(_folder(source, settings), info["checksums"]) if settings.verify else None


def _task_fingerprint(
    source: TaskSource, settings: CacheSettings, digests: Sequence[dict[str, Any]]
) -> str:
    """Of everything that decides what the cache of the task holds."""
    return fingerprint(
        {
            "format_version": FORMAT_VERSION,
            "task": source.name,
            **reader_settings(source),
            "files": [digest["sha256"] for digest in digests],
            "prompts": dataclasses.asdict(settings.prompt_config),
            "vocabulary": settings.vocabulary_fingerprint,
            "sequence_length": settings.sequence_length,
        }
    )


def _with_subset(wanted: str, info: dict[str, Any]) -> str:
    """The fingerprint of a task, of which perhaps a subset is cached."""
    if info["max_examples"] is None:
        return wanted
    return fingerprint([wanted, info["max_examples"], info["subset_seed"]])


def _is_as_wanted(
    source: TaskSource,
    settings: CacheSettings,
    info: dict[str, Any],
    digests: Sequence[dict[str, Any]],
) -> bool:
    """Whether the cached task is the one of this run, with as many examples as its cap allows."""
    cap, asked = info["max_examples"], settings.max_examples.get(source.name)
    if cap is not None and (asked is None or asked > cap):
        return False
    if cap is not None and info["subset_seed"] != settings.subset_seed:
        return False
    wanted = _task_fingerprint(source, settings, digests)
    return info["fingerprint"] == _with_subset(wanted, info)


def _changed_settings(
    info: dict[str, Any], source: TaskSource, settings: CacheSettings
) -> list[str]:
    """What differs between the cached task and this run, in words."""
    stored = {f"PromptConfig.{k}": v for k, v in info["prompts"].items()}
    stored["PlanConfig.sequence_length"] = info["sequence_length"]
    stored["the vocabulary's fingerprint"] = info["vocabulary"]["fingerprint"]
    asked = by_name(settings.prompt_config)
    asked["PlanConfig.sequence_length"] = settings.sequence_length
    asked["the vocabulary's fingerprint"] = settings.vocabulary_fingerprint
    if info["max_examples"] is not None:
        stored |= {
            "Mixture.max_examples": info["max_examples"],
            "Mixture.seed": info["subset_seed"],
        }
        asked["Mixture.max_examples"] = settings.max_examples.get(source.name)
        asked["Mixture.seed"] = settings.subset_seed
    reader = changes(info["reader"]["settings"], source.settings)
    return changes(stored, asked) or reader or ["its files, splits or level changed"]
