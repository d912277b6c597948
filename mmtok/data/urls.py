"""Which shard addresses are allowed, and how lists of them are written: paths, globs, brace lists, remote ones.

What users write themselves may lie anywhere. Names that stand in a file (a manifest, a list of token shards) may have
come from a stranger with the file: `confined` keeps them below its folder.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from urllib.parse import urlsplit

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")
_REFUSED = re.compile(r"[\x00-\x1f\x7f`$|<>;\\]|::")
MAX_URLS = 1_000_000


def expand_urls(urls: str | list[str], key: str = "data.train") -> list[str]:
    """Shard addresses in order, without duplicates. `key` names the YAML key in errors.

    Understands plain paths, `file:` URLs, folders (all their *.tar), globs, `{0000..0255}`, `{a,b}` and
    https, s3, gs and hf URLs. Nothing is ever given to a shell: `pipe:`, `$(...)`, `${VAR}` and `::` are a ValueError,
    and so are passwords in an address.
    """
    found: dict[str, None] = {}
    for entry in [urls] if isinstance(urls, str) else urls:
        _check_characters(entry, key)
        for url in _braces(entry, key):
            for one in _local(url, key) if _scheme(url, key) == "file" else [url]:
                found.setdefault(one)
    if not found:
        raise ValueError(f"{key}: the list of shards is empty")
    for url in found:
        if not url.endswith(".tar"):
            raise ValueError(f"{key}: {url} is not a plain .tar shard (compressed tars cannot be read by offset)")
    return list(found)


def parent(url: str) -> str:
    """The folder of a shard, as a path or URL."""
    return url.rpartition("/")[0] or "."


def confined(name: str, folder: Path, where: str, root: Path | None = None) -> Path:
    """The file that a list in `folder` names. `where` (file, line) begins the error.

    ValueError when it lies outside `root`, by default `folder`: an absolute path, `..`, or a link that leads out.
    """
    bounds = (folder if root is None else root).resolve()
    try:
        path = (folder / name).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # NUL, too long, a loop of links
        raise ValueError(f"{where}: {name[:200]!r} is no path ({error})") from None
    if not path.is_relative_to(bounds):
        mend = "if that is meant, state a root (--root)"
        raise ValueError(f"{where}: {name[:200]!r} leads to {path}, outside {bounds}; {mend}")
    return folder / name


def _scheme(url: str, key: str) -> str:
    scheme, found, _ = url.partition(":")
    if not found or "/" in scheme:
        return "file"
    scheme = scheme.lower()
    if scheme not in ("file", "https", "s3", "gs", "hf"):
        raise ValueError(f"{key}: {url}: only paths, file:, https:, s3:, gs: and hf: shards are allowed")
    if scheme == "file":
        return scheme
    host = urlsplit(url).netloc
    if not url.startswith(f"{scheme}://") or not host:
        raise ValueError(f"{key}: {url}: the address has no host or bucket")
    if "@" in host:  # it would be written into config.yaml, logs and W&B
        raise ValueError(f"{key}: {scheme}://...@{host.rpartition('@')[2]}: no user or password in an address")
    return scheme


def _check_characters(url: str, key: str) -> None:
    # Braces of a list are fine; everything a shell or a URL chain could act on is not.
    if _REFUSED.search(url):
        raise ValueError(f"{key}: {url!r}: control and shell characters, '$' and '::' are not allowed in shard names")


def _braces(url: str, key: str) -> list[str]:
    """Numeric ranges keep their zero padding, as in shell brace lists."""
    ranged, listed = _RANGE.search(url), _LIST.search(url)
    if ranged:
        first, last = ranged.groups()
        numbers = range(int(first), int(last) + 1)
        if len(numbers) > MAX_URLS or not numbers:
            raise ValueError(f"{key}: {url}: the range has {len(numbers)} entries")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        parts = [f"{number:0{width}d}" for number in numbers]
        match = ranged
    elif listed:
        parts, match = listed.group(1).split(","), listed
    else:
        return [url]
    return [one for part in parts for one in _braces(url[: match.start()] + part + url[match.end() :], key)]


def _local(url: str, key: str) -> list[str]:
    path = Path(re.sub(r"^file:(//)?", "", url)).expanduser()
    if path.is_dir():
        paths = sorted(path.glob("*.tar"))
        if not paths:
            below = sorted({str(inner.parent) for inner in path.glob("*/*.tar")})
            mend = f"name one of {', '.join(below)}" if below else f"make some with `mmtok shards make SRC {path}`"
            raise ValueError(f"{key}: {path} holds no .tar shards; {mend}")
        return [str(p) for p in paths]
    if any(c in path.name or c in str(path.parent) for c in "*?["):
        paths = sorted(Path(p) for p in glob.glob(str(path)))
        if not paths:
            raise ValueError(f"{key}: no file matches {path}")
        return [str(p) for p in paths]
    if not path.is_file():
        raise ValueError(f"{key}: no shard at {path}")
    return [str(path)]
