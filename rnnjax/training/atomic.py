"""Files that are either whole or not there, whatever happens while they are written."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that `path` holds the old content or the new, whatever happens in between.

    It is written beside its place, forced to disk, and moved into place at once. Folders that are missing are made.
    """
    path = Path(path)
    _make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")  # two may write at once
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of them a name on disk before there is something in it."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a new name to disk before anyone relies on it. Not every file system can, and the file itself is safe."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
