"""Data sets of the Hugging Face Hub: their files, and where they go."""

import collections
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import httpx2  # which huggingface_hub asks the Hub with
import huggingface_hub

from optiml_jax.fetch.http import FetchError, Remote, passes
from optiml_jax.fetch.sources import PARQUET, Source

_CONVERTED = re.compile(r"(?P<config>[^/]+)/(?:partial-)?(?P<split>[^/]+)/(?P<number>\d+)\.parquet")


def list_files(source: Source, endpoint: str) -> tuple[dict[str, Remote], str, str]:
    """The files of a data set.

    Args:
      endpoint: of the Hub, mirrors applied.

    Returns:
      Path below the source's folder -> file; the commit; the licence that the Hub names.

    Raises:
      FetchError: no such data set, no access, no answer, or no file that is wanted.
    """
    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        info = api.repo_info(
            source.address, revision=source.revision, repo_type="dataset", files_metadata=True
        )
    except (httpx2.HTTPError, OSError) as e:
        reason = " ".join(str(e).split())[:300]
        if isinstance(e, httpx2.TransportError) or passes(e):
            raise FetchError(f"{endpoint} gives no answer now: {reason}", passing=True) from e
        raise FetchError(
            f"data set {source.address} at {source.revision} is not on the Hub, or not for you: "
            f"{reason}"
        ) from e
    headers = huggingface_hub.utils.build_hf_headers()
    remotes = {}
    for path, sibling in _wanted(source, {s.rfilename: s for s in info.siblings}).items():
        url = huggingface_hub.hf_hub_url(
            source.address,
            sibling.rfilename,
            repo_type="dataset",
            revision=info.sha,
            endpoint=endpoint,
        )
        sha256 = sibling.lfs.sha256 if sibling.lfs else ""
        git_sha1 = "" if sha256 else sibling.blob_id or ""
        remotes[path] = Remote(url, sibling.size or 0, sha256, git_sha1, headers)
    if not remotes:
        raise FetchError(
            f"data set {source.address} at {source.revision} has none of the wanted files"
            + (f" ({', '.join(source.configs)})" if source.configs else "")
        )
    card = info.card_data or {}
    licence = card.get("license") or "unknown"
    return remotes, info.sha, ", ".join(licence) if isinstance(licence, list) else str(licence)


def offline_files(source: Source, folder: pathlib.Path) -> dict[str, Remote]:
    """The same of a copy of the data set's repository in a folder, commit and licence aside."""
    paths = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {
        to: Remote(path.absolute().as_uri(), path.stat().st_size)
        for to, path in _wanted(source, paths).items()
    }


def _wanted(source: Source, files: Mapping[str, Any]) -> dict[str, Any]:
    """Where the wanted files go -> file."""
    files = {path: file for path, file in files.items() if source.wants(path)}
    if source.revision != PARQUET:
        start = f"{source.start.strip('/')}/" if source.start else ""
        return {path.removeprefix(start): file for path, file in files.items()}
    # <config>/<split>/0000.parquet becomes what readers of rows look for.
    splits: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for path in sorted(files):
        match = _CONVERTED.fullmatch(path)
        if match and (not source.configs or match["config"] in source.configs):
            splits[match["config"], match["split"]].append(path)
    configs = {config for config, _ in splits}
    placed = {}
    for (config, split), paths in splits.items():
        in_folder = f"{config}/" if source.configs or len(configs) > 1 else ""
        for i, path in enumerate(paths):
            shard = f"-{i:05d}-of-{len(paths):05d}" if len(paths) > 1 else ""
            placed[f"{in_folder}{split}{shard}.parquet"] = files[path]
    return placed
