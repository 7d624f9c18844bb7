"""Damages the files of every collection and reads them."""

import hashlib
import os
import pathlib
import random
import shutil

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from optiml_jax.fetch import provenance
from tools.chaos.damage import KINDS, TEXT_KINDS, damage
from tools.chaos.outcome import Kind, Table, attempt, warnings

# What no reader can detect: a text file with changed letters, with a whole record more or fewer, or
# a missing split (`plan` refuses a task without its training split).
_UNKNOWABLE = ("bit", "byte", "line_doubled", "line_removed", "doubled", "removed")
# ... unless `optiml fetch` recorded its downloads, here with sizes, which are compared when tasks
# are looked for.
_PROMISED = ("line_doubled", "line_removed", "doubled", "removed", "cut")


def inputs(root: pathlib.Path, rng: random.Random, number: int, table: Table) -> None:
    """`number` damages, shared by all collections of the demo bench and by Parquet and Arrow."""
    bench = root / "bench"
    _columnar(bench)
    collections = sorted(p.name for p in bench.iterdir() if p.is_dir())
    wanted = {name: _read(bench, name) for name in collections}
    for i in range(number):
        name = collections[i % len(collections)]
        folder = bench / name
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        path = rng.choice(files)
        promised = rng.random() < 0.2
        kind = rng.choice(_PROMISED if promised else _possible(path))
        kept = root / "kept"
        shutil.copy2(path, kept)
        entry = {"files": provenance.describe(folder, [str(path.relative_to(folder))])}
        try:
            what = damage(rng, path, kind)
            if promised or _at_a_line(path, kept):
                provenance.record(folder, "chaos", entry)
                what += ", as fetched it was whole"
            judge = _judge(bench, name, wanted[name])
            table.add(attempt(f"read {name}", what, judge, 60))
        finally:
            (folder / provenance.FILE).unlink(missing_ok=True)
            _put_back(path, kept)


def _at_a_line(path: pathlib.Path, kept: pathlib.Path) -> bool:
    """Whether a file of lines was truncated between two of them, which nothing in it shows."""
    if not path.is_file() or path.suffix not in (".tsv", ".csv", ".jsonl", ".txt"):
        return False
    now, before = path.read_bytes(), kept.read_bytes()
    return now.endswith(b"\n") and len(now) < len(before) and before.startswith(now)


def _possible(path: pathlib.Path) -> list[str]:
    known = ("bit", "byte") if path.suffix in (".parquet", ".arrow") else ()
    return [k for k in (*KINDS, *TEXT_KINDS) if k not in _UNKNOWABLE or k in known]


def _put_back(path: pathlib.Path, kept: pathlib.Path) -> None:
    if path.is_dir():
        path.rmdir()
    elif path.is_symlink() or path.exists():
        path.unlink()
    os.replace(kept, path)


def _judge(bench: pathlib.Path, name: str, wanted: dict):
    def judge() -> tuple[Kind, str]:
        with warnings() as said:
            found = _read(bench, name)
        if found == wanted:
            return "survived", ""
        if said:
            return "noticed", said[0]
        for task in wanted.keys() | found.keys():
            old, new = wanted.get(task), found.get(task)
            if old == new:
                continue
            if new is None:
                return "silent", f"{task} is gone"
            if new["error"] or new["drops"] != old["drops"]:
                return "noticed", f"{task}: {new['error'] or new['drops']}"
            if new["examples"] < old["examples"]:
                return "silent", f"{task} has {new['examples']} examples, not {old['examples']}"
        return "survived", "other content, which a text file does not tell"

    return judge


def _read(bench: pathlib.Path, name: str) -> dict[str, dict]:
    """Task -> number and digest of its examples, what was dropped, and its error."""
    if name == "columnar":
        return _read_columnar(bench / name)
    from tasks.registry import find_sources
    from tasks.splits import Manifest

    found = {}
    for source in find_sources({f"demo_{name}": str(bench / name)}, Manifest.load()):
        drops, digest, number, error = Drops(), hashlib.sha256(), 0, ""
        try:
            for split in source.splits:
                for example in source.read(split, drops):
                    number += 1
                    digest.update(
                        repr((example.input, example.references)).encode("utf-8", "replace")
                    )
        except UserError as e:
            error = str(e)
        found[source.name] = {
            "examples": number,
            "digest": digest.hexdigest(),
            "drops": dict(drops),
            "error": error,
        }
    return found


# ---- Parquet and Arrow, which the demo bench does not have


def _columnar(bench: pathlib.Path) -> None:
    folder = bench / "columnar"
    if folder.exists():
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    rows = [
        {"id": i, "text": f"text {i} " * (i % 7), "label": i % 3, "options": ["yes", "no"][: i % 3]}
        for i in range(400)
    ]
    data = pa.Table.from_pylist(rows)
    pq.write_table(data, folder / "train.parquet", row_group_size=100)
    with pa.OSFile(str(folder / "test.arrow"), "wb") as f, pa.ipc.new_stream(f, data.schema) as out:
        for batch in data.to_batches(100):
            out.write_batch(batch)


def _read_columnar(folder: pathlib.Path) -> dict[str, dict]:
    from tasks.files.promises import check_folder
    from tasks.files.rows import find_splits

    check_folder(folder)
    found = {}
    for split, part in find_splits(folder).items():
        number, digest, error = 0, hashlib.sha256(), ""
        try:
            for row in part.read():
                number += 1
                digest.update(repr(row).encode("utf-8", "replace"))
        except UserError as e:
            error = str(e)
        found[split] = {
            "examples": number,
            "digest": digest.hexdigest(),
            "drops": {},
            "error": error,
        }
    return found
