"""Reader of plain text for training on whole sequences: JSONL shards like metaseq's.

One document per line, `{"text": ..., "meta": {...}}`, of which only `text` is read. A corpus is a
task; its shards are the files of one name. Documents that would not fit into a row are split here,
before anything has tokens, by an estimate of their length (see `estimated_tokens`); the shared code
counts and drops what still is too long.
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.text_files import (
    BAD_CHARACTERS,
    data_folder,
    hashed_id,
    json_records,
    warn_of_unread,
)
from tasks.files.values import text_of
from tasks.splits import Manifest

READER_VERSION = 2  # raise it when the same file gives other Examples: caches are then redone
MAX_PIECE_TOKENS = (
    1600  # estimated; a row holds 2,047 and </s>, and estimates can be 1.25 times off
)
_SHARD = re.compile(r"(.+?)(?:-(\d+)-of-(\d+))?")
SPLIT_FOLDERS = {"train": "train", "valid": "validation", "validation": "validation"}

# One match per estimated token: letters by four, digits by two, every other character and newline
# for itself; a character outside ASCII counts as many times as it has bytes.
_UNIT = re.compile(r"[A-Za-z]{1,4}|[0-9]{1,2}|[^A-Za-z0-9\s]|\n|[^\S\n]{2,}")
_OUTSIDE_ASCII = re.compile("[^\x00-\x7f]")
_WORD = re.compile(r"\S{1,100}\s*|\s+")
_PARAGRAPH_END, _LINE_END, _SENTENCE_END = 3, 2, 1


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "pretrain"
) -> list[TaskSource]:
    """One task per corpus, sorted by name. Opens no file.

    Args:
      root: holds `<corpus>.jsonl`, or all of `<corpus>-00000-of-00004.jsonl` and so on, or
        metaseq's `train/<shard>/<corpus>.jsonl` and `valid/<shard>/<corpus>.jsonl`; files outside
        of `train` and `valid` are training data.
      manifest: may exclude a corpus or change its category.
      benchmark: first part of the task names.

    Raises:
      UserError: the folder is missing or holds no JSONL file.
    """
    folder = data_folder(root, benchmark, "give a folder of JSONL files with the field text")
    corpora: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    sets: dict[tuple[pathlib.Path, str, int], set[int]] = collections.defaultdict(set)
    paths = sorted(folder.rglob("*.jsonl"))
    warn_of_unread(folder, folder.rglob("*"), paths)
    for path in paths:
        parts = path.relative_to(folder).parts
        split = SPLIT_FOLDERS.get(parts[0], "train") if len(parts) > 1 else "train"
        corpus, number, total = _SHARD.fullmatch(path.stem).groups()
        corpora[corpus].setdefault(split, []).append(str(path))
        if number is not None:
            sets[path.parent, corpus, int(total)].add(int(number))
    for (place, corpus, total), numbers in sets.items():
        if missing := sorted({*range(total)} - numbers):
            raise UserError(
                f"{place / corpus} has {len(numbers)} of its {total} shards; number "
                f"{missing[0]:05d} is missing: download it"
            )
    if not corpora:
        raise UserError(f"no JSONL file (*.jsonl) of benchmark {benchmark!r} in {folder}")
    sources = [
        _source(f"{benchmark}/{stem}", shards, manifest) for stem, shards in sorted(corpora.items())
    ]
    check_unique_names([s.name for s in sources])
    return sources


def _source(name: str, shards: dict[str, list[str]], manifest: Manifest) -> TaskSource:
    row = manifest.lookup(name, None)
    category = row.category or taxonomy.category("pretrain", name.partition("/")[2])
    corpus = Corpus(name, category, shards)
    return TaskSource(
        name=name,
        splits=tuple(s for s in ("train", "validation") if s in shards),
        files=tuple(path for paths in shards.values() for path in paths),
        read=corpus.read,
        demonstrations=_no_demonstrations,
        instruction_level="instance",
        settings={
            "category": corpus.category,
            "max_piece_tokens": MAX_PIECE_TOKENS,
            "shards": {split: len(paths) for split, paths in shards.items()},
            "reader": READER_VERSION,
        },
    )


def _no_demonstrations() -> list[Example]:
    return []


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The shards of one corpus.

    Attributes:
      name: `<benchmark>/<corpus>`.
      category: of every Example.
      shards: split -> files.
    """

    name: str
    category: str
    shards: dict[str, list[str]]

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams the pieces of all documents: empty input, the text is the target.

        Documents are not compared with each other: memory does not grow with the corpus.

        Raises:
          UserError: a file is missing, or the split has no usable document.
        """
        usable = False
        for path in self.shards[split]:
            for _, record in json_records(path, drops):
                text = text_of(record.get("text"))
                if text is None:
                    drops["no text"] += 1
                elif not text.strip():
                    drops["empty target"] += 1
                elif BAD_CHARACTERS.search(text):
                    drops["NUL or U+FFFD"] += 1
                else:
                    usable = True
                    yield from self._pieces(text, record, split, drops)
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(
                f"no usable document in {', '.join(self.shards[split])} ({why or 'empty'}); "
                'every line must be a JSON object with the field "text"'
            )

    def _pieces(self, text: str, record: dict, split: str, drops: Drops) -> Iterator[Example]:
        meta = record.get("meta")
        origin = meta.get("pile_set_name") if isinstance(meta, dict) else None
        document = hashed_id(text)
        for index, piece in enumerate(split_document(text.replace("\r\n", "\n").strip())):
            if index:
                drops["warning: further piece of a long document"] += 1
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="text",
                example_id=f"{document}-{index}",
                split=split,
                instruction="",
                input="",
                target=piece,
                references=(piece,),
                source_dataset=origin if isinstance(origin, str) else pathlib.Path(self.name).name,
                source_id=document,
            )


def estimated_tokens(text: str) -> int:
    """About how many tokens of GPT-2's BPE a text has.

    English prose really has 0.7 to 0.9 of it, Spanish 1.0, German 1.2, other scripts than Latin
    less than 0.8. Far too low only for strings that are no words (keys, base64).
    """
    extra = sum(len(c.encode("utf-8", "surrogatepass")) - 1 for c in _OUTSIDE_ASCII.findall(text))
    return sum(1 for _ in _UNIT.finditer(text)) + extra


def split_document(text: str, max_tokens: int = MAX_PIECE_TOKENS) -> Iterator[str]:
    """Pieces of at most `max_tokens` estimated tokens each, cut at the best place there is.

    A piece ends at the last paragraph end of its second half, else at the last line end, else at
    the last sentence end there, else at a word. Nothing but whitespace at the cuts is lost.
    """
    if estimated_tokens(text) <= max_tokens:
        yield text
        return
    words: list[tuple[str, int]] = []
    total = 0
    for match in _WORD.finditer(text):
        cost = estimated_tokens(match[0])
        if words and total + cost > max_tokens:
            cut = _best_cut(words, total)
            if piece := "".join(word for word, _ in words[:cut]).strip():
                yield piece
            words = words[cut:]
            total = sum(c for _, c in words)
        words.append((match[0], cost))
        total += cost
    if rest := "".join(word for word, _ in words).strip():
        yield rest


def _best_cut(words: list[tuple[str, int]], total: int) -> int:
    """The number of words that go into the piece."""
    best, rank, before = len(words), 0, 0
    for index, (word, cost) in enumerate(words, 1):
        before += cost
        if 2 * before >= total and (here := _end(word)) >= max(rank, 1):
            best, rank = index, here
    return best


def _end(word: str) -> int:
    """What ends after a word and its whitespace: a paragraph, a line, a sentence, or nothing."""
    text = word.rstrip()
    newlines = word[len(text) :].count("\n")
    if newlines:
        return _PARAGRAPH_END if newlines > 1 else _LINE_END
    return _SENTENCE_END if text.rstrip("\"')]”’").endswith((".", "!", "?")) else 0
