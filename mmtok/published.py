"""Published checkpoints by name: downloaded, imported once into the cache, loaded from there afterwards."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock  # torch depends on it

from mmtok.catalogue import Entry, address, home, split_hub
from mmtok.download import by_hand, check_sha256, download, offline
from mmtok.folder import CONFIG, save
from mmtok.importers import instantiate, read_published
from mmtok.importers.keymap import Converted
from mmtok.importers.record import key_record

CONSENT = "MMTOK_ACCEPT_LICENCE"
RECORD = "source.yaml"
FORMAT = 1  # raised when importers make something else of the same files


def imported(entry: Entry, accept_licence: bool = False, quiet: bool = False) -> Path:
    """Folder with the imported tokenizer; downloads and converts when it is not there yet.

    accept_licence  consent to a non-commercial licence; the environment variable MMTOK_ACCEPT_LICENCE=<name> (names
                    with commas between, or "all") says the same
    OSError names what to fetch by hand and where to put it; ValueError names system, key and mend.
    """
    folder = home() / "tokenizers" / entry.name
    record = {"format": FORMAT, "importer": entry.importer, "files": dict(entry.files), "sha256": dict(entry.sha256)}
    if _is_current(folder, record):
        return folder
    check_consent(entry, accept_licence)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{entry.name}.lock")):
        if _is_current(folder, record):
            return folder
        files = fetch(entry, quiet)
        if not quiet:
            print(f"importing {entry.name}; licence of the weights: {entry.licence}. {entry.note}", file=sys.stderr)
        converted = convert(entry, files)
        temporary = folder.with_name(f".{entry.name}.{os.getpid()}")
        try:
            try:
                tokenizer = instantiate(converted, entry.importer)
            except ValueError as error:
                raise ValueError(f"{entry.name} ({files[entry.weights]}): {error}") from None
            save(tokenizer, temporary)
            licences = {"licence": entry.licence, "code_licence": entry.code_licence}
            (temporary / RECORD).write_text(yaml.safe_dump(record | licences | key_record(converted), sort_keys=False))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def fetch(entry: Entry, quiet: bool = False) -> dict[str, Path]:
    """Local name -> file, each downloaded unless it is there.

    A file put by hand at <home>/downloads/<entry>/<local name> is taken first. Hub files lie in huggingface_hub's own
    cache, which other libraries share. OSError names every file that is still wanted, not the first alone.
    """
    folder = home() / "downloads" / entry.name
    found: dict[str, Path] = {}
    try:
        return _fetch(entry, folder, found, quiet)
    except OSError as error:
        if error.errno is not None:  # of this machine's disk
            raise
        rest = [name for name in entry.files if name not in found and not (folder / name).is_file()][1:]
        more = "".join(f", and beside it {name} from {address(entry.files[name])}" for name in rest)
        raise OSError(f"{error}{more}") from None


def _fetch(entry: Entry, folder: Path, found: dict[str, Path], quiet: bool) -> dict[str, Path]:
    """Fills `found`."""
    for name, place in entry.files.items():
        target, wanted = folder / name, entry.sha256.get(name)
        if target.is_file():
            check_sha256(target, wanted, str(target))
            found[name] = target
        elif place.startswith("hf:"):
            found[name] = from_hub(*split_hub(place), target)
            check_sha256(found[name], wanted, place)
        elif place.startswith("page:"):
            raise OSError(by_hand(address(place), target, "its authors offer it on a web page only"))
        else:
            found[name] = download(place, target, wanted, quiet)
    return found


def convert(entry: Entry, files: dict[str, Path]) -> Converted:
    """The published files under our names; several files of weights are read as the folder they lie in."""
    from mmtok.importers.containers import read_config

    configs = [path for name, path in files.items() if name.endswith((".json", ".yaml"))]
    weights = {name: path for name, path in files.items() if path not in configs}
    published: dict[str, Any] | None = read_config(configs[0]) if configs else dict(entry.published)
    with tempfile.TemporaryDirectory() as folder:
        source = next(iter(weights.values()))
        if len(weights) > 1:
            # they may come from different places, and lie apart: each under its local name, in a folder made of links
            for name, path in weights.items():
                (Path(folder) / name).symlink_to(path.resolve())
            where, source = source.parent, Path(folder)
        else:
            where = source
        try:
            return read_published(entry.importer, source, published)
        except ValueError as error:
            raise ValueError(f"{entry.name} ({where}): {str(error).replace(str(folder), str(where))}") from None


def from_hub(repository: str, path: str, target: Path) -> Path:
    """A file of a Hub repository, through huggingface_hub.

    ValueError when that is not installed; OSError names the address and `target`, where the file may be put by hand.
    """
    url = address(f"hf:{repository}/{path}")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(by_hand(url, target, "hf: needs pip install 'mmtok[hub]'")) from None
    try:
        return Path(hf_hub_download(repository, path, local_files_only=True))
    except LocalEntryNotFoundError:
        if offline():
            raise OSError(by_hand(url, target, "HF_HUB_OFFLINE is set")) from None
    try:
        # asked first, because a download tries again for half a minute where there is no network
        get_hf_file_metadata(hf_hub_url(repository, path))
        return Path(hf_hub_download(repository, path))
    except EntryNotFoundError:
        raise OSError(by_hand(url, target, f"{repository} holds no such file")) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(by_hand(url, target, f"{reason} (private or gated? run hf auth login)")) from None
    except Exception as error:  # of the http library that huggingface_hub happens to use
        reason = f"huggingface.co cannot be reached ({type(error).__name__})"
        raise OSError(by_hand(url, target, reason)) from None


def check_consent(entry: Entry, accepted: bool = False) -> None:
    """ValueError unless the licence allows any use, or the user has said yes."""
    named = {name.strip() for name in os.environ.get(CONSENT, "").split(",")}
    if entry.non_commercial and not accepted and not named & {entry.name, "all"}:
        raise ValueError(
            f"{entry.name}: the weights are {entry.licence}, not for commercial use. To accept that, pass"
            f" accept_licence=True (--accept-licence) or set {CONSENT}={entry.name}"
        )


def _is_current(folder: Path, record: dict[str, Any]) -> bool:
    file = folder / RECORD
    if not file.is_file() or not (folder / CONFIG).is_file():
        return False
    found = yaml.safe_load(file.read_text())
    return isinstance(found, dict) and {key: found.get(key) for key in record} == record
