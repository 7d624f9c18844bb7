"""Parquet and Arrow files with flipped bits: named, or the same rows, and this process goes on."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optiml_jax.errors import UserError
from tasks.files import columnar
from tasks.files.formats import read_rows

ROWS = [
    {"id": i, "text": f"text {i} " * (i % 7), "options": ["yes", "no"][: i % 3]} for i in range(60)
]


def written(path):
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pq.write_table(table, path, write_page_checksum=True)
    else:
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as out:
            out.write_table(table, 20)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_no_flipped_bit_ends_the_process(tmp_path, suffix):
    path, rng = tmp_path / f"train{suffix}", random.Random(1)
    whole = written(path)
    assert list(read_rows(str(path))) == ROWS
    said = []
    for number in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        damaged = tmp_path / f"{number}{suffix}"
        damaged.write_bytes(bytes(data))
        try:
            rows = list(read_rows(str(damaged)))
        except UserError as e:
            said.append((str(damaged), str(e)))
        else:  # the content of an Arrow file carries no checksum
            assert len(rows) == len(ROWS)
            assert rows == ROWS or suffix == ".arrow"
    assert said
    assert all(name in message for name, message in said)


def test_a_file_whose_reading_ends_the_helper_is_named_and_the_next_one_is_read(
    tmp_path, monkeypatch
):
    path = tmp_path / "train.parquet"
    written(path)
    program = tmp_path / "check.py"
    program.write_text("import os, sys\nsys.stdin.readline()\nos.abort()\n")
    monkeypatch.setattr(columnar, "_helper", columnar._Helper())
    with monkeypatch.context() as patch:
        patch.setattr(columnar, "_PROGRAM", program)
        with pytest.raises(UserError, match=r"train.parquet is damaged \(reading it ends the proc"):
            columnar.check(str(path))
    columnar._problem.cache_clear()
    assert list(read_rows(str(path))) == ROWS
