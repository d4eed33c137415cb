"""A device as far as a repository can tell: python-tuf's own client, that reads from a folder or from a dictionary."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge.updating.offer import Offer, from_custom


class Files(FetcherInterface):
    """`read`: name below the repository → bytes; raises KeyError or OSError for what is not there."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self.downloaded: dict[str, int] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("http://repository/")
        try:
            data = self._read(name)
        except (KeyError, OSError):
            raise DownloadHTTPError(f"{name} is not there", 404) from None
        self.downloaded[name] = len(data)
        yield data


class Device:
    """Trusts `root`, remembers in `state`, which may be that of an earlier one."""

    def __init__(self, state: Path, root: bytes, source: Path | Callable[[str], bytes]) -> None:
        self.files = Files((lambda name: (source / name).read_bytes()) if isinstance(source, Path) else source)
        self._state, self._root = state, root
        (state / "metadata").mkdir(parents=True, exist_ok=True)

    def updater(self) -> Updater:
        self.files.downloaded.clear()
        updater = Updater(
            str(self._state / "metadata"),
            "http://repository/metadata/",
            target_base_url="http://repository/targets/",
            fetcher=self.files,
            config=UpdaterConfig(max_delegations=0, root_max_length=16_000, timestamp_max_length=4_000),
            bootstrap=self._root,
        )
        updater.refresh()
        return updater

    def offers(self) -> dict[str, Offer]:
        """Path → offer; raises tuf's errors when the repository is not to be trusted."""
        targets = self.updater()._trusted_set.targets
        return {path: from_custom(target.custom) for path, target in targets.targets.items()}

    def download(self, path: str) -> bytes:
        updater = self.updater()
        info = updater.get_targetinfo(path)
        assert info is not None
        return Path(updater.download_target(info, str(self._state / "download"))).read_bytes()

    @property
    def metadata_bytes(self) -> int:
        """Downloaded of it by the last call."""
        return sum(size for name, size in self.files.downloaded.items() if name.startswith("metadata/"))
