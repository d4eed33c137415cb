"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import CannotCreateError


@contextmanager
def at_once(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when the block ends well, after it is on the disk.

    When the block fails, what was at `path` is still there. Raises `CannotCreateError` for every trouble with the disk.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise CannotCreateError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def sweep(folder: Path) -> None:
    """Take away what `at_once` left in a folder when the process was killed half-way. Nobody else may be writing there."""
    for draft in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            draft.unlink()


def _sync_directory(path: Path) -> None:
    """Without it the new name may be gone after a power cut, though the bytes are there."""
    with contextlib.suppress(OSError):  # not every file system lets a directory be synced
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
