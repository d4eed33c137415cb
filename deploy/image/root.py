"""The image's root file system: packages of Debian for 64-bit Arm, unpacked and configured under emulation, and kept.

    <folder>/<key>.tar.zst     everything but ours; the key is of the packages, the suite and the options below

It takes half an hour, because a foreign processor's programs configure it; so it is made once and kept for 30 days or
until the list changes, and what is ours (the agent, `overlay/`) is laid over it at each build. Needs root, `mmdebstrap` and
`qemu-user-static`.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy import roots
from edge.errors import AmissError

SUITE, ARCHITECTURE = "trixie", "arm64"
COMPONENTS = "main non-free-firmware"
"""The second for the files that a Raspberry Pi and its radio start from; nothing else of it is taken."""
PACKAGES = (
    "systemd-sysv",
    "systemd-timesyncd",
    "systemd-resolved",
    "libnss-resolve",
    "udev",
    "dbus",
    "linux-image-arm64",
    "initramfs-tools",
    "zstd",
    "raspi-firmware",
    "firmware-brcm80211",
    "wireless-regdb",
    "wpasupplicant",
    "fdisk",
    "e2fsprogs",
    "dosfstools",
    "iproute2",
    "python3",
    "libstdc++6",
    "adduser",
    "ca-certificates",
    "openssh-server",
    "nano",
)
LEFT_OUT = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-include=/usr/share/doc/apt/examples/*",
    "path-include=/usr/share/doc/amiss*",
)
"""dpkg's; nobody reads manuals on a device without a screen. They stay in force on the device."""
INITRAMFS = '--customize-hook=chroot "$1" update-initramfs -c -k all'
"""Once and last ($INITRD keeps the kernel's package from it): under emulation it takes longer than anything else."""
TOOLS = ("mmdebstrap", "qemu-aarch64-static", "mke2fs", "mkfs.vfat", "mcopy", "sfdisk", "zstd", "debugfs", "dpkg", "chroot")
CURE = "sudo apt-get install -y mmdebstrap qemu-user-static mtools dosfstools fdisk zstd e2fsprogs arch-test"
TIMEOUT_S = 3 * 3600.0


class ImageError(AmissError):
    """The image cannot be made or booted here; the message says what to mend."""

    exit_code = 69


Say = Callable[[str], None]


def home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amiss" / "image"


def key() -> str:
    text = repr((SUITE, ARCHITECTURE, COMPONENTS, sorted(PACKAGES), LEFT_OUT, INITRAMFS))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept(folder: Path | None = None) -> Path:
    """Where it is, if it was made."""
    return (folder or home()) / f"{SUITE}-{ARCHITECTURE}-{key()}.tar.zst"


def is_kept(archive: Path) -> bool:
    return archive.exists() and time.time() - archive.stat().st_mtime < roots.KEPT_S


def made(folder: Path | None = None, say: Say = lambda line: None) -> Path:
    """The archive; made when it is not there. Raises `ImageError`, or `PackageError` where no Debian can be unpacked."""
    archive = kept(folder)
    if is_kept(archive):
        return archive
    roots.root_only("the image's files belong to root and several others")
    need(TOOLS, CURE)
    roots.emulate(ARCHITECTURE)
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_name(f".{os.getpid()}.tar")
    say(f"{SUITE} for {ARCHITECTURE} is unpacked and configured under emulation: half an hour, once")
    try:
        options = [f"--dpkgopt={line}" for line in LEFT_OUT]
        run(
            [
                *("mmdebstrap", "--mode=root", "--variant=minbase", f"--architectures={ARCHITECTURE}", *options),
                *(INITRAMFS, f"--include={','.join(PACKAGES)}", SUITE, str(draft), "-"),
            ],
            stdin=roots.sources(SUITE, COMPONENTS),
            # Files of packages have times of their own; all others get this one, by which `disk` knows them again.
            environment={"SOURCE_DATE_EPOCH": str(int(time.time())), "INITRD": "No"},
            show=True,
        )
        packed = archive.with_suffix(f".{os.getpid()}")
        run(["zstd", "-q", "-f", "-3", "-T0", "--rm", str(draft), "-o", str(packed)])
        packed.replace(archive)
    finally:
        draft.unlink(missing_ok=True)
    return archive


def need(tools: Sequence[str], cure: str) -> None:
    if absent := [tool for tool in tools if which(tool) is None]:
        raise ImageError(f"{', '.join(absent)} not installed: {cure}")


def which(tool: str) -> str | None:
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def run(
    command: Sequence[str],
    stdin: str | bytes | None = None,
    environment: dict[str, str] | None = None,
    good: Sequence[int] = (0,),
    show: bool = False,
) -> str:
    """What it prints; `show`: its messages go to ours. Raises `ImageError` unless its exit code is `good`."""
    program = which(command[0])
    if program is None:
        raise ImageError(f"{command[0]} is not installed: {CURE}")
    env = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
    said = None if show else subprocess.PIPE
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        done = subprocess.run(
            [program, *command[1:]], input=data, env=env, stdout=subprocess.PIPE, stderr=said, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"{command[0]}: {error}") from None
    out = done.stdout.decode("utf-8", "replace")
    if done.returncode not in good:
        lines = [line for line in ((done.stderr or b"").decode("utf-8", "replace") or out).splitlines() if line.strip()]
        raise ImageError(f"{command[0]}: exit {done.returncode}: {lines[-1] if lines else 'it says nothing'}")
    return out
