"""Files onto a card's boot partition that is mounted here, or into a folder to copy from."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from edge.errors import CannotCreateError, UsageError
from edge.files import at_once

SEEDS = ("user-data", "network-config", "meta-data")
"""What cloud-init reads. In this order user-data is written last: without it nothing of the rest counts."""
KEPT = ".before-amiss"
OURS = "Written by `amiss device new`"
Files = Mapping[str, bytes | Path]
"""By path; what is large by where it is."""


def write_folder(folder: Path, files: Files, *, force: bool) -> list[Path]:
    """A folder that only its owner may read, for secrets are in it. Raises `CannotCreateError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise CannotCreateError(f"{folder} is there already; --out names another folder, --force writes over what is in it")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        _clear(folder)
    except OSError as error:
        raise CannotCreateError(f"{folder}: {error.strerror or error}") from None
    return _write(folder, files)


def write_card(partition: Path, files: Files, *, force: bool) -> list[Path]:
    """Onto the boot partition of a stock Raspberry Pi OS that has been written to a card. What it brought is kept beside it.

    Raises `UsageError` when it is another partition, `CannotCreateError` when it holds what somebody else has set.
    """
    refuse_other(partition)
    changed = [name for name in SEEDS if not stock(name, _text(partition / name))]
    if (partition / "amiss").exists():
        changed.append("amiss")
    if changed and not force:
        raise CannotCreateError(
            f"{partition}: {', '.join(changed)} there {'is' if len(changed) == 1 else 'are'} not as Raspberry Pi OS brings "
            f"{'it' if len(changed) == 1 else 'them'}; --force replaces {'it' if len(changed) == 1 else 'them'} "
            f"(the old one stays as NAME{KEPT})"
        )
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    if shutil.disk_usage(partition).free < size + (1 << 20):
        raise CannotCreateError(
            f"{partition}: {size >> 20} MB are to go there, and there is no room; take away what you put there"
        )
    try:
        for name in SEEDS:
            original, kept = partition / name, partition / f"{name}{KEPT}"
            # The first one is the system's; and of ours none is kept, for there may be a key in it.
            if original.exists() and not kept.exists() and OURS not in _text(original):
                shutil.copyfile(original, kept)
        _clear(partition)
        _renew_instance(partition / "cmdline.txt", str(files["meta-data"], "utf-8"))  # type: ignore[arg-type]
    except OSError as error:
        raise CannotCreateError(f"{partition}: {error.strerror or error}") from None
    return _write(partition, files)


def refuse_other(partition: Path) -> None:
    """Is it the boot partition of a 64-bit Raspberry Pi OS with cloud-init? Raises `UsageError`."""
    absent = [name for name in ("config.txt", "cmdline.txt") if not (partition / name).is_file()]
    if absent:
        raise UsageError(f"{partition}: not a Raspberry Pi's boot partition, for there is no {' and no '.join(absent)} in it")
    wanted = "write Raspberry Pi OS Lite (64-bit) to the card"
    if (partition / "kernel7.img").exists() or (partition / "kernel7l.img").exists():
        raise UsageError(f"{partition}: a 32-bit system, which amiss has no package for; {wanted}")
    if not (partition / "user-data").is_file():
        raise UsageError(
            f"{partition}: a system from before November 2025, which does not read user-data; {wanted}, a newer one"
        )


def stock(name: str, text: str) -> bool:
    """Is nothing set in it but what the system comes with?"""
    said = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if name == "network-config":
        return not any(re.match(r"\s*(wifis|addresses|access-points)\s*:", line) for line in said)
    if name == "user-data":
        return all(re.match(r"(ssh_pwauth|disable_piwiz)\s*:", line) for line in said)
    return not any(
        re.match(r"instance-id\s*:", line) for line in said
    )  # its own is misspelt, `instance_id`, and nobody reads it


def _renew_instance(cmdline: Path, meta_data: str) -> None:
    """Raspberry Pi Imager names the instance on the kernel's command line as well, and that one is stronger."""
    instance = re.search(r"^instance-id: (.*)$", meta_data, re.MULTILINE)
    text = cmdline.read_text("utf-8")
    renewed = re.sub(r"(\bds=nocloud\S*?;i=)[^;\s]+", rf"\g<1>{instance[1] if instance else ''}", text)
    if renewed != text:
        with at_once(cmdline) as draft:
            draft.write_text(renewed, "utf-8")


def _clear(folder: Path) -> None:
    """What an earlier call left, with its secrets; nothing of anybody else's."""
    if (folder / "amiss").is_dir():
        shutil.rmtree(folder / "amiss")


def _write(folder: Path, files: Files) -> list[Path]:
    order = sorted(files, key=lambda path: (path in SEEDS, path != "meta-data", path))
    mask = os.umask(0o077)
    try:
        for path in order:
            content = files[path]
            with at_once(folder / path) as draft:
                if isinstance(content, bytes):
                    draft.write_bytes(content)
                else:
                    shutil.copyfile(content, draft)
    finally:
        os.umask(mask)
    return [folder / path for path in order]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CannotCreateError(f"{path}: cannot be read: {error.strerror or error}") from None
