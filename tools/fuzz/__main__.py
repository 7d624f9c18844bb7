"""Coverage-guided fuzzing of the readers: inputs that reach new code are kept and changed further.

    pip install --no-deps -r tools/fuzz/requirements.lock
    python -m tools.fuzz --folder=/tmp/fuzz --seconds=3600

Every file of the demo bench is an input: the first byte of a case selects the file that it
replaces, the rest is its content; then the tasks of its collection are found and read. Readers
may drop and count records or raise a UserError. Everything else is written to <folder>/findings,
one file for each place in the code; the command exits with 1 if there are any.
"""

import argparse
import itertools
import logging
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["tasks", "optiml_jax.data.example", "optiml_jax.files"]):
    from optiml_jax.data.example import Drops
    from optiml_jax.errors import UserError
    from tasks.demo.build import build
    from tasks.registry import COLLECTIONS
    from tasks.splits import Manifest

# TensorFlow computes it, some seconds a case; its files are read as those of promptsource are.
_LEFT_OUT = ("t5",)
_MOST_EXAMPLES = 20  # read of each part
_MOST_BYTES = 1 << 15  # of a file's beginning, as a first case
_SLOW = 20.0  # seconds of a processor


_COLLECTIONS = COLLECTIONS.keys() - {*_LEFT_OUT}


class Bench:
    """The demo bench in a separate folder, in which one file at a time has other content."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._number = folder / "bench", 0
        build(self._folder)
        self.files = [
            path.relative_to(self._folder)
            for path in sorted(self._folder.rglob("*"))
            if path.is_file() and path.relative_to(self._folder).parts[0] in _COLLECTIONS
        ]
        if len(self.files) > 256:
            raise SystemExit("one byte no longer suffices to select a file")
        self._manifest = Manifest.load()

    def cases(self) -> list[bytes]:
        """The files as they are, or their beginnings."""
        contents = ((self._folder / file).read_bytes()[:_MOST_BYTES] for file in self.files)
        return [bytes([i]) + content for i, content in enumerate(contents)]

    def read(self, case: bytes) -> None:
        """Reads the collection of a case."""
        if not case:
            return
        file = self.files[case[0] % len(self.files)]
        # Under another name each time, so that nothing is cached from the last one.
        self._number += 1
        moved = self._folder.with_name(f"bench{self._number}")
        self._folder.rename(moved)
        self._folder = moved
        path = moved / file
        content = path.read_bytes()
        try:
            path.write_bytes(case[1:])
            self._read(file.parts[0], str(path))
        finally:
            path.write_bytes(content)

    def _read(self, collection: str, changed: str) -> None:
        find = COLLECTIONS[collection].find_tasks
        sources = find(self._folder / collection, self._manifest, f"demo_{collection}")
        own = [s for s in sources if changed in map(str, s.files)] or sources
        for source in own:
            for split in source.splits:
                for _ in itertools.islice(source.read(split, Drops()), _MOST_EXAMPLES):
                    pass


class Findings:
    """Forbidden behaviour, once for each place in the code."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def watch(self, read: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """`read` without exceptions; it records what went wrong."""

        def watched(case: bytes) -> None:
            began = time.process_time()  # a busy machine is no finding
            try:
                read(case)
            except UserError as e:
                if "\n" in str(e):
                    self._write("message of several lines", case, str(e))
            except Exception as e:
                frame = traceback.extract_tb(e.__traceback__)[-1]
                place = f"{type(e).__name__}-{pathlib.Path(frame.filename).stem}-{frame.lineno}"
                self._write(place, case, traceback.format_exc())
            if (seconds := time.process_time() - began) > _SLOW:
                self._write(f"slow-{case[0]}", case, f"{seconds:.0f} s")

        return watched

    def _write(self, name: str, case: bytes, said: str) -> None:
        place = self.folder / name
        if not place.exists():
            place.write_bytes(case)
            place.with_suffix(".said").write_text(said, "utf-8", "replace")
            print(f"finding: {name}: {said.splitlines()[-1]}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="cases are kept in it from run to run")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = pathlib.Path(options.folder).absolute()
    findings = Findings(folder / "findings")
    child = os.fork()  # the engine ends its process
    if not child:
        fuzz(folder, findings, options.seconds, options.seed)
    _, status = os.waitpid(child, 0)
    found = sorted(path.name for path in findings.folder.glob("*.said"))
    print(f"{len(found)} findings: {', '.join(found) or 'none'}")
    return 1 if found or status else 0


def fuzz(folder: pathlib.Path, findings: Findings, seconds: int, seed: int) -> NoReturn:
    """Runs for `seconds`, after which the process ends."""
    logging.disable(logging.CRITICAL)
    cases = folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder / f"work{os.getpid()}")
    for i, case in enumerate(bench.cases()):
        (cases / f"seed{i:03}").write_bytes(case)
    arguments = [f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1"]
    limits = [f"-max_len={_MOST_BYTES}", "-timeout=120", "-rss_limit_mb=6000"]
    limits.append(f"-artifact_prefix={folder}/")
    atheris.Setup([sys.argv[0], *arguments, *limits, str(cases)], findings.watch(bench.read))
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
