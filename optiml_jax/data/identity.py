"""Which source example an `Example` shows, whatever collection rendered it.

Collections cut, renumber and reformat the same upstream data sets, so row numbers and ids do not
carry over; what does is the text. The identity is a hash of the longest sentence of the source's
fields, or, where only a rendered text is left, of that text. Examples about one passage, which are
not independent of each other either, have one identity. `unless_common` sees to sentences that are
not of the example but of its task.
"""

import collections
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optiml_jax.data.example import Example

_SHORTEST = 12  # letters and digits; a shorter text may be the same by chance
_LARGEST_SHARE = 0.25  # of the examples of a task that one sentence can identify ...
_ALWAYS = 8  # ... or so many
# Where one sentence or field ends and the next begins, in all forms that collections write them.
_BREAK = re.compile(
    r"""\n | (?<![.?!。？！।])[.?!。？！।]+['"”’)]*\s | <sep> | \[sep\]
    | (?<!\w) \(?(?:\d{1,2}|[a-h])[).] (?=\s?\w)      # (1) A) b.
    | (?:^|(?<=[\s.?!])) (?:[\w-]+[ ]){0,2}[\w-]+ [ ]?[:=] (?=\s|\w)   # Sentence 1:
    """,
    re.VERBOSE | re.IGNORECASE,
)


def source_identity(texts: Iterable[str]) -> str:
    """The identity of an example from its fields or its rendered text; "": too little text."""
    parts = (_plain(part) for text in texts for part in _BREAK.split(f"{text}\n") if part)
    longest = max(parts, key=lambda part: (len(part), part), default="")
    if len(longest) < _SHORTEST:
        return ""
    return hashlib.sha256(longest.encode("utf-8")).hexdigest()[:16]


def row_identity(row: Mapping[str, Any]) -> str:
    """The identity of an upstream row: from its own texts, not from lists of choices."""
    return source_identity(value for value in row.values() if isinstance(value, str))


def _plain(text: str) -> str:
    """Letters and digits alone, in one form: quotes and spaces differ between releases."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if c.isalnum())


def unless_common(examples: Sequence[Example]) -> list[str]:
    """The identities of a task's examples; "" for what too many share to be about one source."""
    shown: dict[str, set[str]] = collections.defaultdict(set)
    for example in examples:
        shown[example.source_id].add(example.example_id)
    total = len({example.example_id for example in examples})
    most = max(_ALWAYS, _LARGEST_SHARE * total)
    return [e.source_id if len(shown[e.source_id]) <= most else "" for e in examples]
