"""A list with one image, ours, for Raspberry Pi Imager (App Options → Content Repository → Use custom file or URL).

What an entry has to have is said in the documentation of Imager 2 (doc/schema-notes.md and doc/json-schema/os-list-schema.json
in its repository); `refuse_unfit` holds every list to it before it is written.
"""

import hashlib
import lzma
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from edge.errors import ConfigError, DataError, NoInputError, UsageError

CHUNK = 1 << 20
SECTOR = 512
TAGS = ("pi3-64bit", "pi4-64bit")
"""Boards that Debian's kernel and firmware start on: Pi 3, Zero 2 W (which Imager counts among the Pi 3) and 4, not 5."""
ICON = "icons/use_custom.png"
"""Imager's own, of the entry for a file from the disk: we have no place to serve one from."""
REQUIRED = {
    "name": str,
    "description": str,
    "icon": str,
    "url": str,
    "extract_size": int,
    "extract_sha256": str,
    "image_download_size": int,
    "release_date": str,
    "devices": list,
}
KNOWN_TAGS = {f"pi{n}-{bits}bit" for n in range(1, 6) for bits in (32, 64)}
FORMATS = ("", "none", "systemd", "cloudinit", "cloudinit-rpi")


def describe(image: Path, *, url: str | None = None) -> dict[str, Any]:
    """The list for an image `.img`, `.img.xz` or `.img.zst`; `url`: where it is served from, else it is the file itself.

    Reads all of it, unpacked. Raises `NoInputError`, `DataError` for a file that is damaged, `UsageError` for another kind.
    """
    if url is not None and not re.match(r"https?://\S+$", url):
        raise UsageError(f"--url {url}: where the image will be served from, as in https://example.org/{image.name}")
    download, unpacked = hashlib.sha256(), hashlib.sha256()
    size = 0
    try:
        with image.open("rb") as file:
            while chunk := file.read(CHUNK):
                download.update(chunk)
        for chunk in _unpacked(image):
            unpacked.update(chunk)
            size += len(chunk)
        changed = image.stat()
    except OSError as error:
        raise NoInputError(f"{image}: {error.strerror or error}; `make image` writes one") from None
    entry = {
        "name": image.name.partition(".img")[0].replace("-", " "),
        "description": "Tells when a machine does something it has never done before. Pi 3, Zero 2 W and 4; network by cable",
        "icon": ICON,
        "url": url or image.absolute().as_uri(),
        "extract_size": size,
        "extract_sha256": unpacked.hexdigest(),
        "image_download_size": changed.st_size,
        "image_download_sha256": download.hexdigest(),
        "release_date": datetime.fromtimestamp(changed.st_mtime, UTC).strftime("%Y-%m-%d"),
        "devices": list(TAGS),
        # It is configured by a file on its boot partition, and Imager's own questions would have no effect.
        "init_format": "none",
        "architecture": "armv8",
    }
    found = {"os_list": [entry]}
    refuse_unfit(found)
    return found


def refuse_unfit(data: Any) -> None:
    """Raises `ConfigError` that names the entry and the key."""
    if not isinstance(data, dict) or set(data) != {"os_list"} or not isinstance(data["os_list"], list) or not data["os_list"]:
        raise ConfigError("a list of images is an object with `os_list` alone, which holds at least one entry")
    for entry in data["os_list"]:
        where = f"os_list: {entry.get('name', 'an entry without a name')}"
        for key, kind in REQUIRED.items():
            if not isinstance(entry.get(key), kind) or isinstance(entry[key], bool) or not entry[key]:
                raise ConfigError(f"{where}: {key}: needs a {kind.__name__} that is not empty or 0")
        for key in ("extract_sha256", "image_download_sha256"):
            if not re.fullmatch("[0-9a-f]{64}", entry.get(key, "0" * 64)):
                raise ConfigError(f"{where}: {key}: 64 hexadecimal digits")
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", entry["release_date"]):
            raise ConfigError(f"{where}: release_date: as in 2026-01-31")
        if not re.match(r"(https?|file)://", entry["url"]):
            raise ConfigError(f"{where}: url: {entry['url']} is no address")
        if not re.search(r"\.(img|zip|gz|xz|zst|zstd)$", entry["url"].partition("?")[0]):
            raise ConfigError(f"{where}: url: Imager unpacks zip, gz, xz and zst, and nothing else")
        if entry["extract_size"] % SECTOR:
            raise ConfigError(f"{where}: extract_size: {entry['extract_size']} bytes are no whole number of sectors")
        if unknown := set(entry["devices"]) - KNOWN_TAGS:
            raise ConfigError(f"{where}: devices: Imager knows no {', '.join(sorted(map(str, unknown)))}")
        if entry.get("init_format", "none") not in FORMATS:
            raise ConfigError(f"{where}: init_format: one of {', '.join(filter(None, FORMATS))}")


def _unpacked(image: Path) -> Any:
    if image.name.endswith(".img"):
        with image.open("rb") as file:
            yield from _chunks(file)
    elif image.name.endswith(".img.xz"):
        try:
            with lzma.open(image) as packed:
                yield from _chunks(packed)
        except (lzma.LZMAError, EOFError):
            raise DataError(f"{image}: damaged, or not all of it is there") from None
    elif image.name.endswith(".img.zst"):
        try:
            process = subprocess.Popen(["zstd", "-dc", str(image)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise NoInputError(f"{image}: unpacking it needs zstd: sudo apt-get install -y zstd") from None
        with process:
            assert process.stdout is not None
            yield from _chunks(process.stdout)
        if process.returncode:
            raise DataError(f"{image}: damaged, or not all of it is there")
    else:
        raise UsageError(f"{image}: expected an image: .img, .img.xz or .img.zst")


def _chunks(file: Any) -> Any:
    source: BinaryIO = file
    while chunk := source.read(CHUNK):
        yield chunk
