"""What is written is a folder, a training run or a report. It appears whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge.errors import CannotCreateError


def json(found: msgspec.Struct) -> bytes:
    """To be read by programs, and by persons who have to."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def refuse_existing(out: Path, names: Collection[str], overwrite: bool, what: str = "report") -> None:
    """Before hours are spent, not after. A folder with other files than these is none. Raises `CannotCreateError`."""
    if not out.exists():
        return
    if not overwrite:
        raise CannotCreateError(f"{out}: exists already; choose another place or say --overwrite")
    if not out.is_dir() or not {path.name for path in out.iterdir()} <= set(names):
        raise CannotCreateError(f"{out}: exists and is no {what}, so it is not overwritten; choose another place")


def write(out: Path, files: Mapping[str, bytes], overwrite: bool) -> None:
    """The folder `out` with these files. Raises `CannotCreateError` when it exists; with `overwrite` a report is replaced."""
    refuse_existing(out, files, overwrite)
    with at_once(out) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)


@contextmanager
def at_once(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `out` when everything in it is written, or never."""
    draft: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        draft.chmod(0o755)
        yield draft
        before = draft.with_name(draft.name + ".before")
        if out.exists():
            os.replace(out, before)
        try:
            os.replace(draft, out)
        except OSError:
            if before.exists():
                os.replace(before, out)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
