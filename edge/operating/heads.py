"""What this device has learned of its own machine: heads fitted on site, the newest in use, earlier ones to go back to.

    <state>/streams/<stream>/heads/index.json   which there are, of which model, with their SHA-256
                                  <time>.npz   arrays of one head (`edge.head`)

A head belongs to the very model whose outputs it was fitted to. The index is written last, so what it names is on the disk.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from edge.bundle import pack_arrays, unpack_arrays
from edge.errors import AmissError, CannotCreateError
from edge.files import at_once, sweep
from edge.head import Head

log = logging.getLogger(__name__)

MOST = 4
"""Heads that are kept, of whatever model."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    file: str
    sha256: str
    model: str
    """Digest of the bundle."""
    made: str
    """RFC 3339, UTC."""
    windows: int
    """That it was fitted to."""
    trusted: bool = False


class Heads:
    """Of one stream, for the model with this digest, whose scorer has this name."""

    def __init__(self, folder: Path, *, model: str, scorer: str) -> None:
        self._folder, self._model, self._scorer = folder, model, scorer
        self._kept: list[Kept] = []  # oldest first
        sweep(folder)
        try:
            self._kept = msgspec.json.decode((folder / "index.json").read_bytes(), type=list[Kept])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            log.error("%s: cannot be read (%s); the head of the bundle serves", folder / "index.json", error)

    @property
    def about(self) -> Kept | None:
        """The one in use; None: that of the bundle."""
        return next(self._ours(), None)

    @property
    def path(self) -> Path | None:
        """Of the file of the one in use."""
        return None if (about := self.about) is None else self._folder / about.file

    def _ours(self) -> Iterator[Kept]:
        """Of this model, newest first."""
        return (one for one in reversed(self._kept) if one.model == self._model)

    def load(self) -> Head | None:
        """The one in use; None when it is the bundle's. One that is damaged is forgotten, which is told."""
        while (about := self.about) is not None:
            try:
                return self._read(about)
            except (OSError, AmissError, KeyError, TypeError, ValueError) as error:
                log.error("%s: damaged (%s); what was used before it serves", self._folder / about.file, error)
                self._kept.remove(about)
        return None

    def before(self) -> Head | None:
        """What `roll_back` goes back to; None: the bundle's."""
        for earlier in islice(self._ours(), 1, None):
            with contextlib.suppress(OSError, AmissError, KeyError, TypeError, ValueError):  # damaged: `load` will say so
                return self._read(earlier)
        return None

    def _read(self, kept: Kept) -> Head:
        data = (self._folder / kept.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != kept.sha256:
            raise ValueError("not the file that was written")
        return Head.from_arrays(self._scorer, unpack_arrays(data))

    def keep(self, head: Head, *, made: str, windows: int, trusted: bool) -> None:
        """From now on this one. Raises `CannotCreateError`, and then the earlier one stays."""
        data = pack_arrays(head.arrays())
        digest = hashlib.sha256(data).hexdigest()
        kept = Kept(file=f"{digest[:16]}.npz", sha256=digest, model=self._model, made=made, windows=windows, trusted=trusted)
        with at_once(self._folder / kept.file) as draft:
            draft.write_bytes(data)
        self._replace([*(one for one in self._kept if one.file != kept.file), kept][-MOST:])

    def roll_back(self) -> bool:
        """Back to the one before, in the end to the bundle's; False when that is in use. Raises `CannotCreateError`."""
        about = self.about
        if about is None:
            return False
        self._replace([one for one in self._kept if one is not about])
        return True

    def forget(self) -> None:
        """All of this model's: it was taken back, and is never tried again. A disk that takes nothing keeps them."""
        with contextlib.suppress(CannotCreateError):
            self._replace([one for one in self._kept if one.model != self._model])

    def _replace(self, kept: list[Kept]) -> None:
        with at_once(self._folder / "index.json") as draft:
            draft.write_bytes(msgspec.json.encode(kept))
        self._kept = kept
        named = {one.file for one in kept}
        for file in self._folder.glob("*.npz"):
            if file.name not in named:
                with contextlib.suppress(OSError):
                    file.unlink()
