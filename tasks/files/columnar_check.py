"""Reads whole Parquet and Arrow files in its own process, where a damaged one may crash it.

    python columnar_check.py    a path a line on standard input; for each "" or what is wrong

It imports nothing of the project: it starts in the time that pyarrow needs.
"""

import json
import sys


def problem(path: str) -> str:
    """The damage of a file in words; "" for none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.endswith(".parquet"):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(10_000):
                    batch.validate(full=True)
                    _decode(batch)
            return ""
        with pa.OSFile(path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(file))
            for batch in batches:
                batch.validate(full=True)
                _decode(batch)
        return ""
    except Exception as e:
        return " ".join(str(e).split())[:300] or type(e).__name__


def _decode(batch: object) -> None:
    for start in range(0, batch.num_rows, 1000):
        batch.slice(start, 1000).to_pylist()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(problem(json.loads(line))), flush=True)
