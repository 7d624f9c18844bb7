"""Brings sources to where readers look for them: checked, in parallel, continued after a kill.

A source lies in its folder when `provenance.json` there says so. Until then what came is kept in
`<root>/.fetch/<source>` (repositories, archives) or beside its place as `<file>.partial`.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence

import tqdm

from optiml_jax.errors import UserError
from optiml_jax.fetch import archives, git, hub, provenance
from optiml_jax.fetch.http import Downloader, FetchError, Remote, is_here, local_path, remote_size
from optiml_jax.fetch.sources import Source, format_size, restricted
from optiml_jax.files import disk_errors

_log = logging.getLogger(__name__)
HUB = "https://huggingface.co"
_ROOM = 1.2  # of the expected size: archives lie beside what is taken out of them


@dataclasses.dataclass(frozen=True)
class FetchSettings:
    """How to fetch.

    Attributes:
      root: folder that the folders of sources lie in.
      accept: licences with restrictions that suit the user; "all".
      mirrors: beginning of an address -> what stands in its place; a folder as file:///...
      workers: files at the same time.
      retries, backoff: see `http.Downloader`.
      verify: reads what is there already and compares its hashes, else its sizes only.
    """

    root: pathlib.Path
    accept: tuple[str, ...] = ()
    mirrors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workers: int = 8
    retries: int = 5
    backoff: float = 1.0
    verify: bool = True

    def address(self, address: str) -> str:
        """The address with the longest matching mirror applied."""
        matching = [start for start in self.mirrors if address.startswith(start)]
        if not matching:
            return address
        start = max(matching, key=len)
        return self.mirrors[start] + address[len(start) :]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a source needs.

    Attributes:
      state: "there", "new", "damaged" (some files are gone or differ), or "ask".
      size: bytes to come, 0 if not known.
      licence: as the source or the Hub names it.
      remotes: of a Hub data set, path -> file.
      revision: of a Hub data set, its commit.
      damage: path -> what is wrong with it.
      failure: why nothing can be said of it.
    """

    source: Source
    folder: pathlib.Path
    state: str
    size: int = 0
    licence: str = ""
    remotes: Mapping[str, Remote] = dataclasses.field(default_factory=dict)
    revision: str = ""
    damage: Mapping[str, str] = dataclasses.field(default_factory=dict)
    failure: FetchError | None = None

    @property
    def refusal(self) -> str:
        """The licence that the user must accept first; "" if none."""
        return self.licence if self.state in ("new", "damaged") and restricted(self.licence) else ""

    def line(self) -> str:
        """The step in words."""
        about = f"{self.source.id:45} {self.source.kind:5} {format_size(self.size):>8}"
        note = f"  {self.failure}" if self.failure else ""
        if self.state == "ask":
            note = f"  ask: {self.source.address}"
        return f"{about}  {self.licence or 'unknown':22} {self.state}{note}"


class Fetcher:
    """Fetches sources with the given settings."""

    def __init__(self, settings: FetchSettings):
        self._settings = settings

    def plan(self, sources: Sequence[Source]) -> list[Step]:
        """The work for each source; asks servers for sizes, writes nothing."""
        with concurrent.futures.ThreadPoolExecutor(self._settings.workers) as pool:
            return list(pool.map(self._plan_one, sources))

    def check(self, steps: Sequence[Step]) -> None:
        """Raises a UserError if licences must be accepted first, or the disk is too small."""
        accepted = self._settings.accept
        refused = [s for s in steps if s.refusal and not {s.refusal, "all"} & {*accepted}]
        if refused:
            licences = sorted({s.refusal for s in refused})
            raise UserError(
                f"{len(refused)} sources restrict their use ({refused[0].source.id}: "
                f"{refused[0].refusal}{', ...' if len(refused) > 1 else ''}); if that suits you: "
                f'--gin.Fetch.accept="{tuple(licences)}"'
            )
        wanted = int(_ROOM * sum(s.size for s in steps if s.state != "there"))
        here = self._settings.root
        existing = next(p for p in (here.absolute(), *here.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        if wanted > free:
            raise UserError(
                f"{here} has {format_size(free)} free, about {format_size(wanted)} are needed; "
                "free some space, or fetch fewer collections"
            )

    def run(self, steps: Sequence[Step]) -> dict[str, FetchError]:
        """Fetches what is missing; source id -> why it failed."""
        pending = [s for s in steps if s.state in ("new", "damaged") and not s.failure]
        failures = {s.source.id: s.failure for s in steps if s.failure}
        total = sum(s.size for s in pending) or None
        quiet = not sys.stderr.isatty()
        with (
            tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="fetch", disable=quiet) as bar,
            concurrent.futures.ThreadPoolExecutor(self._settings.workers) as pool,
        ):
            downloader = Downloader(
                self._settings.retries, self._settings.backoff, lambda size: bar.update(size)
            )
            waiting = {pool.submit(self._fetch, step, downloader): step for step in pending}
            try:
                for done in concurrent.futures.as_completed(waiting):
                    step = waiting[done]
                    try:
                        done.result()
                        _log.info("%s is in %s", step.source.id, step.folder)
                    except FetchError as e:
                        failures[step.source.id] = e
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return failures

    def _plan_one(self, source: Source) -> Step:
        folder = self._settings.root / source.folder
        known = provenance.load(folder).get(source.id)
        if source.kind == "ask":
            there = folder.is_dir() and any(folder.iterdir())
            return Step(source, folder, "there" if there else "ask", licence=source.licence)
        if provenance.is_foreign(folder):
            why = f"{folder / provenance.FILE} is another program's; move it, or fetch elsewhere"
            return Step(source, folder, "new", licence=source.licence, failure=FetchError(why))
        damage: Mapping[str, str] = {}
        if known and _same_request(known, source):
            damage = provenance.damage(folder, known["files"], self._settings.verify)
            if not damage:
                return Step(source, folder, "there", licence=known["licence"])
            for path, what in damage.items():
                _log.warning("%s: %s is %s and comes again", source.id, folder / path, what)
        step = Step(
            source,
            folder,
            "damaged" if damage else "new",
            source.size,
            source.licence,
            damage=damage,
        )
        try:
            return self._ask_server(step)
        except FetchError as e:
            return dataclasses.replace(step, failure=e)

    def _ask_server(self, step: Step) -> Step:
        source, address = step.source, self._settings.address
        if source.kind == "http" and not source.size:
            return dataclasses.replace(step, size=remote_size(address(source.address)))
        if source.kind != "hub":
            return step
        endpoint = address(HUB)
        if endpoint.startswith("file:"):
            copy = local_path(endpoint) / "datasets" / source.address
            remotes, revision, licence = hub.offline_files(source, copy), "offline copy", "unknown"
            if not remotes:
                raise FetchError(f"the mirror has no {source.address} in {copy}")
        else:
            remotes, revision, licence = hub.list_files(source, endpoint)
        size = sum(
            remote.size
            for path, remote in remotes.items()
            if not step.damage or path in step.damage or not (step.folder / path).exists()
        )
        if source.licence != "card":
            licence = source.licence
        return dataclasses.replace(
            step, remotes=remotes, revision=revision, licence=licence, size=size
        )

    def _fetch(self, step: Step, downloader: Downloader) -> None:
        source = step.source
        staging = self._settings.root / ".fetch" / source.id.replace("/", "__")
        how: dict[str, Callable[[Step, pathlib.Path, Downloader], tuple[list[str], str]]] = {
            "git": self._from_git,
            "hub": self._from_hub,
            "http": self._from_http,
            "tfds": self._from_tfds,
        }
        with disk_errors(step.folder, source.id):
            paths, revision = how[source.kind](step, staging, downloader)
            if not paths:
                raise FetchError(f"{source.id}: nothing of {source.only or 'it'} is there")
            provenance.record(
                step.folder,
                source.id,
                {
                    **_request(source),
                    "commit": revision,
                    "licence": step.licence,
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                    "files": provenance.describe(step.folder, paths),
                },
            )
            shutil.rmtree(staging, ignore_errors=True)
            with contextlib.suppress(OSError):  # others are still at work
                staging.parent.rmdir()

    def _from_git(
        self, step: Step, staging: pathlib.Path, downloader: Downloader
    ) -> tuple[list[str], str]:
        address = self._settings.address(step.source.address)
        tree, commit = git.checkout(step.source, address, staging)
        paths = _bring(tree, step.folder)
        downloader.progress(step.size)
        return paths, commit

    def _from_http(
        self, step: Step, staging: pathlib.Path, downloader: Downloader
    ) -> tuple[list[str], str]:
        source = step.source
        file = staging / (pathlib.PurePosixPath(source.address).name or "file")
        remote = Remote(self._settings.address(source.address), sha256=source.sha256)
        if not is_here(remote, file):
            downloader.fetch(remote, file)
        try:
            tree = archives.unpack(source, file, staging / "tree")
        except FetchError:
            file.unlink()  # the next try shall download it again
            raise
        return _bring(tree, step.folder), source.revision

    def _from_hub(
        self, step: Step, staging: pathlib.Path, downloader: Downloader
    ) -> tuple[list[str], str]:
        for path in step.damage:
            (step.folder / path).unlink(missing_ok=True)
        for path, remote in step.remotes.items():
            # What came before a kill is whole, but may be of another revision.
            if not is_here(remote, step.folder / path):
                downloader.fetch(remote, step.folder / path)
        return list(step.remotes), step.revision

    def _from_tfds(
        self, step: Step, staging: pathlib.Path, downloader: Downloader
    ) -> tuple[list[str], str]:
        from optiml_jax.fetch.tfds import prepare  # seconds, so only where it is needed

        paths, version = prepare(step.source, step.folder)
        downloader.progress(step.size)
        return paths, version


def _request(source: Source) -> dict[str, str]:
    return {"kind": source.kind, "address": source.address, "revision": source.revision}


def _same_request(known: Mapping, source: Source) -> bool:
    return all(known[name] == value for name, value in _request(source).items())


def _bring(tree: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Moves all files of a tree into a folder, each at once; their paths there."""
    if not tree.exists():
        return []
    files = sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    paths = [str(p.relative_to(tree)) for p in files]
    for source, path in zip(files, paths, strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, folder / path)
    return paths
