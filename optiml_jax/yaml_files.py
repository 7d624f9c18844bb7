"""Reading YAML files that anybody may have written: one line about what is wrong, bounded work."""

import os
import pathlib
from typing import Any

import yaml

from optiml_jax.errors import UserError
from optiml_jax.files import regular_file

_MAX_BYTES = 16 << 20
_MAX_DEPTH = 100
# Values of a file with every alias written out: a few lines of aliases of aliases mean billions.
_MAX_VALUES = 500_000


class StrictLoader(yaml.CSafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's own loaders drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class Lined(dict):
    """A mapping of a YAML file, with the number of its first line."""

    line: int


class LineLoader(StrictLoader):
    """Makes mappings `Lined`."""

    def lined(self, node: yaml.MappingNode) -> Lined:
        made = Lined(self.construct_mapping(node, deep=True))
        made.line = node.start_mark.line + 1
        return made


LineLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, LineLoader.lined)


def read_yaml(
    path: str | os.PathLike, what: str, kind: type = dict, loader: type = StrictLoader
) -> Any:
    """Reads a YAML file; no tag makes an object but those of the loader.

    Args:
      what: what the file is, as the subject of messages.
      kind: what must stand in it: dict or list.
      loader: based on `yaml.CSafeLoader`.

    Raises:
      UserError: it is missing, not YAML in UTF-8, too large, nested too deeply, or holds something
        else; the message names file and line.
    """
    path = pathlib.Path(path)
    try:
        if regular_file(path).stat().st_size > _MAX_BYTES:
            raise UserError(f"{what} has more than {_MAX_BYTES >> 20} MiB: {path}")
        text = path.read_text("utf-8-sig")
        _check_extent(text, path, what)
        content = yaml.load(text, loader)
    except FileNotFoundError as e:
        raise UserError(f"{what} not found: {path}") from e
    except OSError as e:
        raise UserError(f"{what} cannot be read: {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{what} is not UTF-8: {path}; convert it") from e
    except yaml.YAMLError as e:
        mark, reason = getattr(e, "problem_mark", None), getattr(e, "problem", None) or str(e)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{what} is not YAML: {path}{line}: {' '.join(reason.split())}") from e
    except (ValueError, TypeError, RecursionError) as e:  # a date that is none, a list as a key
        raise UserError(f"{what} is not YAML: {path}: {' '.join(str(e).split())}") from e
    if not isinstance(content, kind):
        name = {dict: "mapping", list: "list"}[kind]
        raise UserError(f"{what} is not a {name}: {path}")
    return content


def _check_extent(text: str, path: pathlib.Path, what: str) -> None:
    """Counts values and levels before anything is made of them, aliases written out."""
    values, anchors = [0], {}
    opened: list[str | None] = []
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in opened:
                raise UserError(f"{what} holds itself: {path}, alias {event.anchor!r}")
            values[-1] += anchors.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            values[-1] += 1
            if event.anchor:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append(event.anchor)
            values.append(1)
        elif isinstance(event, yaml.CollectionEndEvent):
            own, anchor = values.pop(), opened.pop()
            if anchor:
                anchors[anchor] = own
            values[-1] += own
        if values[-1] > _MAX_VALUES or len(opened) > _MAX_DEPTH:
            limits = f"{_MAX_VALUES:,} values or {_MAX_DEPTH} levels"
            raise UserError(f"{what} has more than {limits}, aliases written out: {path}")
