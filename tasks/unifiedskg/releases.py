"""Structured knowledge as text: DART, Spider and WikiTableQuestions from their own releases.

Linear forms are those of HKUNLP/UnifiedSKG (seq2seq_construction/{dart,spider,wikitq}.py), without
what they add or cut: no cell values from Spider's databases, no cut of table rows or cells to a
tokenizer's limit (long sources are cut by the shared code). Prompts and splits are not made here.
"""

import csv
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from optiml_jax.files import JSONDecoder, read_text, regular_file
from tasks.files.text_files import json_items, tsv_rows
from tasks.files.values import as_text, text_of

_UNQUOTED_WORD = re.compile(r"""(?<![\w'"])\w+(?![\w'"])""")


@dataclasses.dataclass(frozen=True)
class Record:
    """One example in UnifiedSKG's three fields.

    Attributes:
      text_in: the request; "" where there is none; conversations: last turn ` || ` older turns.
      struct_in: the linearised knowledge.
      references: every accepted `seq_out`.
      record_id: upstream's, or "".
    """

    text_in: str
    struct_in: str
    references: tuple[str, ...]
    record_id: str = ""


# --- DART (Yale-LILY/dart): data/v1.1.1/dart-v1.1.1-full-<split>.json -----------------------------


def dart_records(path: str, split: str, drops: Drops) -> Iterator[Record]:
    """Training: one record per sentence, as upstream; else one per set of triples."""
    for item in json_items(path, drops):
        try:
            struct = linear_triples(item["tripleset"])
            # Some sentences are null; as empty ones they are left out and counted.
            texts = tuple((annotation["text"] or "").strip() for annotation in item["annotations"])
        except (AttributeError, KeyError, TypeError, ValueError):
            drops["malformed record"] += 1
            continue
        for references in [(text,) for text in texts] if split == "train" else [texts]:
            yield Record("", struct, references)


def linear_triples(triples: Sequence[Sequence[str]]) -> str:
    """`subject : relation : object | ...`, relations in lower case."""
    parts = (map(as_text, triple) for triple in triples)
    return " | ".join(f"{head} : {relation.lower()} : {tail}" for head, relation, tail in parts)


# --- Spider (taoyds/spider): train_spider.json, train_others.json, dev.json, tables.json ----------


def spider_records(path: str, tables: str, drops: Drops) -> Iterator[Record]:
    schemas = _spider_schemas(tables)
    for item in json_items(path, drops):
        fields = [text_of(item.get(key)) for key in ("db_id", "question", "query")]
        if None in fields:
            drops["malformed record"] += 1
        elif fields[0] not in schemas:
            drops["database not in tables.json"] += 1
        else:
            db_id, question, query = fields
            yield Record(question, schemas[db_id], (normalised_sql(query),))


def linear_schema(schema: dict[str, Any]) -> str:
    """`| database | table : column , column | ...`, original names in lower case."""
    columns: list[list[str]] = [[] for _ in schema["table_names_original"]]
    for table, column in schema["column_names_original"]:
        if table >= 0:  # -1 is `*`
            columns[table].append(column.lower())
    tables = (
        f"{name.lower()} : {' , '.join(of_table)}"
        for name, of_table in zip(schema["table_names_original"], columns, strict=True)
    )
    return " | ".join([f"| {schema['db_id']}", *tables])


def normalised_sql(query: str) -> str:
    """Single spaces, none before a comma, and lower case but for words next to a quotation mark.

    Inside of quotes, too, a word that touches none becomes lower case (`'%East%'`), as upstream.
    """
    lowered = _UNQUOTED_WORD.sub(lambda m: m[0].lower(), " ".join(query.split()))
    return lowered.replace(" , ", ", ")


@functools.lru_cache(maxsize=2)
def _spider_schemas(path: str) -> dict[str, str]:
    try:
        schemas = json.loads(read_text(path), cls=JSONDecoder)
        return {schema["db_id"]: linear_schema(schema) for schema in schemas}
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise UserError(f"{path} is no tables.json of Spider; download it again") from e


# --- WikiTableQuestions (ppasupat/WikiTableQuestions): data/*.tsv, csv/*/*.csv --------------------


def wikitq_records(path: str, root: str, drops: Drops) -> Iterator[Record]:
    for number, cells in tsv_rows(path, (4,), drops):
        if number == 1 and cells[0] == "id":
            continue
        record_id, question, table, answers = cells
        struct = _wikitq_table(str(pathlib.Path(root, table)))
        if struct is None:
            drops["table missing"] += 1
            continue
        answer = ", ".join(_unescape(a) for a in answers.split("|"))
        yield Record(question.lower(), struct, (answer.lower(),), record_id)


def linear_table(rows: Sequence[Sequence[str]]) -> str:
    """`col : a | b row 1 : x | y row 2 : ...`; the first row is the header."""
    header, *body = (" | ".join(row) for row in rows)
    return " ".join([f"col : {header}", *(f"row {i} : {row}" for i, row in enumerate(body, 1))])


@functools.lru_cache(maxsize=64)  # several questions in a row are about one table
def _wikitq_table(path: str) -> str | None:
    try:
        with regular_file(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, escapechar="\\", doublequote=False))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path} is no table of WikiTableQuestions: {e}") from e
    return linear_table(rows).lower().strip() if rows else None


def _unescape(answer: str) -> str:
    r"""Undoes upstream's escapes: `\p` a vertical bar, `\n` a newline, `\\` a backslash."""
    return re.sub(r"\\([np\\])", lambda m: {"n": "\n", "p": "|", "\\": "\\"}[m[1]], answer)
