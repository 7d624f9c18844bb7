"""Whatever an answer holds, its record comes back; whatever bit flips, it does not."""

import dataclasses
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import Record, RunFolder

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
RECORDS = st.builds(
    Record,
    example_id=TEXTS,
    prompt_id=TEXTS,
    cluster=TEXTS,
    references=st.lists(TEXTS, max_size=3).map(tuple),
    prediction=TEXTS,
    score=st.floats(0, 1),
    raw=TEXTS,
)


@QUICK
@given(
    records=st.lists(RECORDS, max_size=4),
    at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_records_come_back_or_are_refused(records, at, bit):
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(place)
        folder.write("a/b", 0, records, {"metric": "em"})
        found, summary = folder.read("a/b", 0)
        assert [dataclasses.asdict(r) for r in found] == [dataclasses.asdict(r) for r in records]
        assert summary == {"metric": "em"}
        (file,) = folder.path.glob("records/*.jsonl")
        data = bytearray(file.read_bytes())
        data[int(at * len(data))] ^= 1 << bit
        file.write_bytes(bytes(data))
        try:
            found = folder.read("a/b", 0)
        except UserError:
            return
        # A flip may leave the meaning of the JSON as it was: white space, the final line feed.
        assert found == (records, summary)
