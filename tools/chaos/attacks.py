"""Hostile files: templates, YAML, gin, JSON, archives, pickles, model files and names."""

import io
import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from tools.chaos.outcome import Kind, Table, attempt, limit

_SECONDS = 30.0
_MEMORY = 6 << 30  # of addresses: TensorFlow and JAX alone reserve more than half of it
_MARK = "chaos_was_here"  # a file that only a program of the attacker would make

_TEMPLATES = (
    "{{{{ ('%(' * {n}00) % 1 }}}}",
    "{{{{ '%' * {n}00 % 1 }}}}",
    "{{{{ ('%((((' * {n}00) % 1 }}}}",
    "{{{{ 9 ** 9 ** {n} }}}}",
    "{{{{ (2 ** 90000) * (2 ** 90000) }}}}",
    "{{{{ ('a' * {n}000 ) | upper | sort | join }}}}",
    "{{{{ ('ab ' * {n}000).split(' ') | sort | unique | length }}}}",
    "{{% for a in range({n}00) %}}{{% for b in range({n}00) %}}x{{% endfor %}}{{% endfor %}}",
    "{{% set x = ['a'] %}}{{% for i in range(60) %}}{{% set x = x + x %}}{{% endfor %}}{{{{ x }}}}",
    "{{{{ 'a' | format(*range({n})) }}}}",
    "{{{{ '%{n}00000d' % 1 }}}}",
    "{{{{ '{{:>{n}00000}}'.format(1) }}}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "{{{{ self._TemplateReference__context }}}}",
    "{{{{ cycler.__init__.__globals__.os.popen('touch {mark}').read() }}}}",
    "{{% import 'os' as os %}}{{{{ os }}}}",
    "{{% include '/etc/passwd' %}}",
    "{{{{ ('a' * {n}00).replace('a', 'b' * {n}00) }}}}",
    "{{{{ 'x'.center({n}000000) }}}}",
    "{{{{ range({n}00000) | list | length }}}}",
    "{{{{ ('((' * {n}) }}}}" + "{{{{ " + "(" * 300 + "1" + ")" * 300 + " }}}}",
    "{{{{ [1] * {n}00000 }}}}",
    "{{{{ (('a' * {n}00) ~ ('b' * {n}00)) * {n}00 }}}}",
    "{{{{ '1' * {n}00 | int }}}}",
    "{{{{ ('a' * {n}000) | truncate({n}00) | wordcount }}}}",
    "{{{{ ('a,' * {n}000).split(',') | map('upper') | join(',') | length }}}}",
)
_YAML = (
    "a: &a [x, x]\n"
    + "".join(
        f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n"
        for p, c in zip("abcdefghij", "bcdefghijk", strict=True)
    ),
    "rows: &a [*a]\n",
    "rows: " + "[" * 50_000,
    "rows: " + "{a: " * 20_000,
    "rows: !!python/object/apply:os.system ['touch {mark}']\n",
    "rows: !!python/name:os.system\n",
    "? [a, b]\n: c\n",
    "rows: 2024-99-99\n",
    "rows: \x00\n",
    "rows: [\n" + "a, " * 3_000_000 + "]\n",
    "<<: [1, 2]\n",
    "a: 1\n" * 3 + "\t- x",
)
_GIN = (
    "import os\n",
    "from __gin__ import dynamic_registration\nimport subprocess\n"
    "Run.data = @subprocess.getoutput()\n",
    "include '{self}'\n",
    "Run.data = @os.system()\n",
    "Run.data = {{'a': ",
    "Run.run_dir = %nothing\n",
    "Run.run_dir = " + "[" * 5000 + "\n",
    "TrainConfig.num_steps = " + "9" * 5000 + "\n",
    "OptimizerConfig.learning_rate = 1e39\n",
    "x = '\x00'\n",
)
_JSON = (
    "[" * 100_000,
    '{{"a": ' * 50_000,
    '[{{"a": ' + "9" * 10_000 + "}}]",
    '{{"a": 1}} trailing',
    '[{{"a": 1}}, ',
    '{{"a": "\\ud800"}}\n',
    '{{"a": NaN}}\n{{"a": Infinity}}\n',
    "null\n",
    '"' + "x" * 1_000_000,
    '\x1b[31m{{"a"\n',
)
_CONFIGS = (
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": -1},
    {"hidden_size": 10**30},
    {"vocab_size": "many"},
    {"num_attention_heads": 0},
    {"eos_token_id": []},
    {"max_position_embeddings": 1e300},
    {"dropout": float("nan")},
    {"model_type": ["opt"]},
    {"hidden_size": None},
)


def attacks(root: pathlib.Path, rng: random.Random, number: int, table: Table) -> None:
    """`number` attacks, shared by all kinds."""
    folder = root / "attack"
    kinds = list(_KINDS.items())
    for i in range(number):
        name, kind = kinds[i % len(kinds)]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

        variant, draw = i // len(kinds), random.Random(rng.randrange(1 << 30))

        def judge(kind=kind, variant=variant, draw=draw) -> tuple[Kind, str]:
            os.chdir(folder)
            with limit(resource.RLIMIT_AS, _MEMORY):
                return "survived", kind(folder, draw, variant)

        outcome = attempt(f"attack {name}", f"variant {variant}", judge, _SECONDS)
        if list(root.rglob(_MARK)) or pathlib.Path(_MARK).exists():
            raise RuntimeError(f"{name} {i}: a program of the attacker ran")
        table.add(outcome)


def _template(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    import jinja2

    from tasks.templates.budget import LimitError
    from tasks.templates.sandbox import Choices, Environment

    text = _TEMPLATES[variant % len(_TEMPLATES)].format(n=rng.choice((40, 400, 4000)), mark=_MARK)
    environment = Environment()
    try:
        rendered = environment.render(environment.compile_text(text), {"a": "b"}, Choices("k"), 10)
    except (LimitError, RecursionError, MemoryError, jinja2.exceptions.TemplateError) as e:
        return f"refused: {str(e)[:100]}"
    except (TypeError, ValueError, ZeroDivisionError, IndexError) as e:
        return f"an error of the row: {str(e)[:100]}"
    return f"{len(rendered)} characters"


def _yaml(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from optiml_jax.fetch.sources import read_sources
    from optiml_jax.report.published import load
    from tasks.own.reader import find_tasks
    from tasks.promptsource.templates import read_templates
    from tasks.splits import Manifest

    path = folder / "task.yaml"
    path.write_text(_YAML[variant % len(_YAML)].replace("{mark}", _MARK))
    readers: list[Callable[[], object]] = [
        lambda: read_templates(path),
        lambda: load(path),
        lambda: read_sources(path),
        lambda: Manifest.load(path),
        lambda: find_tasks(folder, Manifest.load(), "own"),
    ]
    for reader in readers:
        _one_line(reader)
    return f"{len(readers)} readers"


def _gin(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from optiml_jax.cli.gin_files import read_settings
    from optiml_jax.train.optimizer import OptimizerConfig

    path = folder / "x.gin"
    path.write_text(_GIN[variant % len(_GIN)].format(self=path))
    _one_line(lambda: (read_settings([str(path)], []), OptimizerConfig()))
    return "read"


def _json(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from optiml_jax.exchange.answer_files import read_answers
    from optiml_jax.files import read_json
    from tasks.files.formats import read_rows

    for suffix in (".json", ".jsonl"):
        path = folder / f"train{suffix}"
        path.write_text(_JSON[variant % len(_JSON)].format(), "utf-8")
        _one_line(lambda path=path: read_json(path, "a file", dict))
        _one_line(lambda path=path: list(read_rows(str(path))))
        _one_line(lambda path=path: read_answers([str(path)]))
    return "read"


def _superni(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from tasks.registry import find_sources
    from tasks.splits import Manifest

    (folder / "tasks").mkdir()
    name = rng.choice(("task001_\x1b[31mred", "task002_" + "x" * 200, "task003_\u202eabc"))
    content = _JSON[variant % len(_JSON)].format()
    (folder / "tasks" / f"{name}.json").write_text(content, "utf-8")

    def read() -> None:
        for source in find_sources({"superni": str(folder)}, Manifest.load()):
            for split in source.splits:
                list(source.read(split, Drops()))

    _one_line(read)
    return "read"


def _config(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from optiml_jax.checkpoint.huggingface import read_config

    whole = {
        "model_type": "opt", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "ffn_dim": 64, "max_position_embeddings": 32,
        "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip
    changed = whole | _CONFIGS[variant % len(_CONFIGS)]
    (folder / "config.json").write_text(json.dumps(changed))
    _one_line(lambda: read_config(folder), must=True)
    return "read"


def _archive(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from optiml_jax.fetch.archives import unpack
    from optiml_jax.fetch.http import FetchError
    from optiml_jax.fetch.sources import Source

    file, tree = folder / "a.tar", folder / "deep" / "tree"
    names = ("../../outside", "/tmp/outside", "x/../../../../outside", "link", "bomb")
    name = names[variant % len(names)]
    if variant // len(names) % 2:
        file = folder / "a.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, b"0" * (1 << 24 if name == "bomb" else 10))
    else:
        with tarfile.open(file, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            if name == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "../../.."
                archive.addfile(member)
                member = tarfile.TarInfo("link/outside")
            member.size = 10
            archive.addfile(member, io.BytesIO(b"0" * 10))
    source = Source.__new__(Source)
    fields = {"name": "n", "collection": "c", "start": "", "files": ("*",), "without": ()}
    for key, value in fields.items():
        object.__setattr__(source, key, value)
    try:
        unpack(source, file, tree)
    except (FetchError, UserError) as e:
        return f"refused: {e}"
    except AttributeError as e:
        return f"not tried: {e}"
    outside = [p for p in folder.rglob("*") if p.is_file() and tree not in p.parents and p != file]
    if outside:
        raise RuntimeError(f"written outside: {outside}")
    return "unpacked inside"


class _Evil:
    def __reduce__(self):
        return (os.system, (f"touch {_MARK}",))


def _weights(folder: pathlib.Path, rng: random.Random, variant: int) -> str:
    from optiml_jax.checkpoint.gguf_files import open_gguf
    from optiml_jax.checkpoint.safetensors_files import open_folder
    from optiml_jax.checkpoint.torch_files import read_torch_file

    path = folder / "pytorch_model.bin"
    if variant % 3 == 0:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(_Evil()))
            archive.writestr("archive/version", "3")
        _one_line(lambda: read_torch_file(path))
    elif variant % 3 == 1:
        path = folder / "x.gguf"
        count = rng.choice((1 << 40, 1 << 62, 3))
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, count) + rng.randbytes(200))
        _one_line(lambda: open_gguf(path), must=True)
    else:
        length = rng.choice((1 << 62, 1 << 30, 10))
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + rng.randbytes(100))

        def read() -> None:
            with open_folder(folder) as tensors:
                list(tensors)

        _one_line(read, must=True)
    return "read"


def _one_line(function: Callable[[], object], must: bool = False) -> None:
    """Calls it; a UserError may come, of one line without control characters."""
    try:
        function()
    except UserError as e:
        # Gin adds lines of its own, which the command line leaves out.
        text = str(e).splitlines()[0]
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
            raise RuntimeError(f"control characters: {text!r}") from e
        return
    if must:
        raise RuntimeError("it was taken")


_KINDS: dict[str, Callable[[pathlib.Path, random.Random, int], str]] = {
    "templates": _template,
    "YAML": _yaml,
    "gin": _gin,
    "JSON": _json,
    "Super-NI": _superni,
    "config.json": _config,
    "archives": _archive,
    "weights": _weights,
    "more templates": lambda f, r, v: _template(f, r, v + 13),
}


def names() -> Iterator[str]:
    """The kinds of attacks."""
    yield from _KINDS
