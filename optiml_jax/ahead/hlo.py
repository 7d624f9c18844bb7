"""The collectives of an optimised XLA program, those in loops counted once per iteration."""

import collections
import dataclasses
import re
from collections.abc import Iterator

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4}
_SIZES |= {"u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      runs: executions in one call of the program.
      result: bytes of its result on a device, per execution.
      group: devices that take part.
      spread: distance between the first and the last device of a group, by number.
      place: its origin in the traced program.
    """

    kind: str
    runs: int
    result: int
    group: int
    spread: int
    place: str

    @property
    def total(self) -> int:
        """Bytes of its results on a device, over all executions."""
        return self.runs * self.result

    @property
    def sent(self) -> float:
        """Minimum bytes that a device sends, over all executions (ring algorithms)."""
        share = (self.group - 1) / max(self.group, 1)
        whole = self.result * (self.group if self.kind == "reduce-scatter" else 1)
        return self.runs * whole * share * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str) -> list[Collective]:
    """The collectives of a program's text (`compiled.as_text()`)."""
    computations, entry = _computations(text)
    found: list[Collective] = []

    def walk(name: str, runs: int) -> None:
        for line in computations.get(name, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            shape, operation = match[2], match[3]
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                found.append(_collective(kind, operation != kind, shape, line, runs))
            for called, times in _calls(operation, line):
                walk(called, runs * times)

    walk(entry, 1)
    return found


def by_kind(found: list[Collective]) -> dict[str, float]:
    """Kind -> GiB of results per device and call."""
    totals: dict[str, float] = collections.defaultdict(float)
    for collective in found:
        totals[collective.kind] += collective.total / 2**30
    return dict(totals)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        match = None if line.startswith(" ") else _COMPUTATION.match(line)
        if match:
            current = match[2]
            computations[current] = []
            entry = current if match[1] else entry
        elif current is not None and line.startswith("  "):
            computations[current].append(line)
    return computations, entry


def _calls(operation: str, line: str) -> Iterator[tuple[str, int]]:
    """The computations that an instruction calls, and how often."""
    if operation == "while":
        body = re.search(r"body=%?([\w.\-]+)", line)
        count = re.search(r'"known_trip_count":\{"n":"?(\d+)', line)
        yield body[1], int(count[1]) if count else 1
    elif operation in ("fusion", "call", "async-start"):
        if called := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
            yield called[1], 1
    elif operation == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        for name in re.findall(r"%?([\w.\-]+)", branches[1] if branches else ""):
            yield name, 1


def _collective(kind: str, is_async: bool, shape: str, line: str, runs: int) -> Collective:
    if is_async and kind != "all-reduce":  # (operands, results, ...)
        parts = _tuple_parts(shape)
        shape = parts[1] if len(parts) > 1 else shape
    place = re.search(r'op_name="([^"]*)"', line)
    size, spread = _group(line)
    return Collective(kind, runs, _bytes(shape), size, spread, place[1] if place else "")


def _tuple_parts(shape: str) -> list[str]:
    """The top-level elements of a tuple's text."""
    parts, depth = [""], 0
    for character in shape[1:-1]:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _bytes(shape: str) -> int:
    total = 0
    for dtype, dimensions in _SHAPE.findall(shape):
        count = 1
        for size in filter(None, dimensions.split(",")):
            count *= int(size)
        total += count * _SIZES.get(dtype, 0)
    return total


def _group(line: str) -> tuple[int, int]:
    """(devices in a group, distance of its first and last device)."""
    if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        ids = [int(n) for n in lists[1].split(",")]
        return len(ids), max(ids) - min(ids)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](T\()?", line):
        groups, size = int(iota[1]), int(iota[2])
        return size, (size - 1) * (groups if iota[4] else 1)
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        size = 1
        for axis in re.findall(r"'(\w+)'", mesh[2]):
            size *= int(sizes[axis])
        inner = 1
        for axis in reversed(sizes):
            if f"'{axis}'" in mesh[2]:
                break
            inner *= int(sizes[axis])
        return size, (size - 1) * inner
    return 1, 0
