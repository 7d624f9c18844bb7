"""`optiml fetch`: downloads the data of collections and suites to where readers look for it."""

import fnmatch
import pathlib
import sys
from collections.abc import Mapping, Sequence

from optiml_jax.cli import main as command_line
from optiml_jax.cli.gin_files import REPOSITORY
from optiml_jax.cli.settings import Fetch, expand
from optiml_jax.errors import UserError, may_pass, status_of
from optiml_jax.fetch.fetcher import Fetcher, FetchSettings, Step
from optiml_jax.fetch.sources import Source, format_size, read_sources
from optiml_jax.words import counted


def main() -> int:
    settings = Fetch()
    file = pathlib.Path(expand(settings.sources, "Fetch.sources"))
    known = read_sources(file if file.exists() else REPOSITORY / file)
    root = pathlib.Path(expand(settings.root, "Fetch.root"))
    fetcher = Fetcher(
        FetchSettings(
            root=root,
            accept=settings.accept,
            mirrors=settings.mirrors,
            workers=settings.workers,
            retries=settings.retries,
            verify=settings.verify,
        )
    )
    steps = fetcher.plan(choose(known, settings.collections))
    if settings.dry_run:
        print_plan(steps)
        return 0
    fetcher.check(steps)
    failures = fetcher.run(steps)
    for step in steps:
        if step.state == "ask":
            print(f"{step.source.id}: only on request: {step.source.address}; for {step.folder}")
    there = sum(s.state != "ask" and s.source.id not in failures for s in steps)
    print(f"{there} of {counted(len(steps), 'source')} in {root}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return status_of(map(may_pass, failures.values()))


def choose(known: Mapping[str, Sequence[Source]], wanted: Sequence[str]) -> list[Source]:
    """The requested sources.

    Raises:
      UserError: no source is requested, or an unknown one.
    """
    if not wanted:
        raise UserError(
            "choose what to fetch: --gin.Fetch.collections=\"('superni',)\"; known: "
            f"{', '.join(known)}"
        )
    everything = [source for sources in known.values() for source in sources]
    chosen = []
    for name in wanted:
        found = [s for s in known.get(name, ()) if not s.optional]
        found = found or [s for s in everything if fnmatch.fnmatchcase(s.id, name)]
        if not found:
            raise UserError(f"nothing to fetch is called {name!r}; known: {', '.join(known)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def print_plan(steps: Sequence[Step]) -> None:
    """Prints what would be downloaded: source, kind, size, licence, state."""
    for step in steps:
        print(step.line())
    coming = [s for s in steps if s.state in ("new", "damaged")]
    unknown = sum(not s.size for s in coming)
    print(
        f"{len(coming)} of {counted(len(steps), 'source')} would be downloaded: "
        f"{format_size(sum(s.size for s in coming))}"
        + (f" and {unknown} of unknown size" if unknown else "")
    )
    restrictive = sorted({s.refusal for s in steps if s.refusal})
    if restrictive:
        print(f'restrict their use: --gin.Fetch.accept="{tuple(restrictive)}"')


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
