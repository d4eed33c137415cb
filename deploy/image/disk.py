"""The image itself, put together from files: no loop device, no mount, seconds.

    sector 0          partition table (MBR: the boot ROM of a Raspberry Pi 3 knows no other)
    4 MiB             FAT, label FIRMWARE: what the board starts from, and what a person puts in
    4 MiB + BOOT      ext4, label rootfs: the rest; grows to the card at the first start

The same packages and the same date give the same bytes, as far as the tools allow: identifiers come from the content, times are
those of the last commit or $SOURCE_DATE_EPOCH.
"""

import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.image import root
from deploy.image.root import ImageError, Say, run

OVERLAY = Path(__file__).with_name("overlay")
SECTOR = 512
ALIGN = 4 * 1024 * 1024
"""Erasing a card is done in blocks of about this size; a partition that begins inside one costs twice the wear."""
UNWANTED = ("wpa_supplicant.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer")
"""The first is for a desktop, the others write to the card every day and mend nothing."""
BOOT_BYTES = 256 * 1024 * 1024
"""For two kernels with their initramfs, and bundles."""
SPARE_BYTES = 192 * 1024 * 1024
"""Free room of the root file system until it has grown."""
GOAL_BYTES = 350 * 1000 * 1000
"""Compressed; a larger one is not made."""
UNITS = (
    *("amiss-grow", "amiss-take-over", "systemd-networkd", "systemd-resolved", "systemd-timesyncd"),
    *("ssh", "sshd-keygen"),
)
LEVEL = "12"
"""zstd's: a minute of two cores; 19 takes ten and saves a twentieth."""
README = """\
Put here, before the first start or any later one:

  amiss.toml        the device's configuration (device.toml)
  NAME.amiss        the model that it names
  wifi.toml         country = "DE", ssid = "...", password = "..."     (not needed with a cable)
  authorized_keys   your .pub file: who may log in as root by ssh      (without it nobody may)
  root.json         whom to trust with new models                      (with [update] in amiss.toml)
  ca.pem            certificates that amiss.toml names as /etc/amiss/ca.pem

What is in order is taken over at the next start, and gone from here. What is not stays, and amiss-error.txt says why.
"""


@dataclass(frozen=True, slots=True)
class Partition:
    start: int
    """Bytes from the beginning of the disk."""
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    boot: Partition
    root: Partition

    @property
    def size(self) -> int:
        return self.root.start + self.root.size

    def table(self, identifier: int) -> str:
        """For sfdisk."""

        def line(partition: Partition, kind: str) -> str:
            return f"start={partition.start // SECTOR}, size={partition.size // SECTOR}, type={kind}\n"

        head = f"label: dos\nlabel-id: 0x{identifier:08x}\nunit: sectors\n\n"
        return head + line(self.boot, "c, bootable") + line(self.root, "83")


def layout(content: int) -> Layout:
    """For a root file system whose files take so many bytes."""
    # An eighth for what ext4 keeps of its own: inodes, journal, a block at the end of every file.
    size = aligned(content + content // 8 + SPARE_BYTES)
    return Layout(Partition(ALIGN, BOOT_BYTES), Partition(ALIGN + BOOT_BYTES, size))


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def build(out: Path, deb: Path, *, say: Say, version: str) -> Path:
    """`out`/amiss-VERSION-arm64.img.zst and its .sha256. Raises `ImageError`."""
    base = root.made(say=say)
    name = f"amiss-{version}-{root.ARCHITECTURE}.img"
    epoch = source_date()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".image-", dir=base.parent) as temporary:
        folder = Path(temporary)
        system = folder / "root"
        system.mkdir()
        with timed("unpack the root file system", say):
            started = int(time.time())
            run(["tar", "--zstd", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(system), "-xf", str(base)])
            settle(system, (system / "var/lib/dpkg/status").stat().st_mtime, epoch)
        with timed(f"install {deb.name}", say):
            install(system, deb, epoch)
        with timed("lay over, clean up", say):
            configure(system, epoch)
            settle(system, started, epoch)
        with timed("put the disk together", say):
            image = assemble(system, folder, epoch)
        size, packed = image.stat().st_size, folder / f"{name}.zst"
        with timed("compress", say):
            run(["zstd", "-q", "-f", f"-{LEVEL}", "-T0", str(image), "-o", str(packed)])
        if packed.stat().st_size > GOAL_BYTES:
            raise ImageError(f"{name}.zst would have {packed.stat().st_size / 1e6:.0f} MB, {GOAL_BYTES / 1e6:.0f} are allowed")
        done = out / packed.name
        shutil.move(packed, done)
    digest = digest_of(done)
    done.with_name(f"{done.name}.sha256").write_text(f"{digest}  {done.name}\n")
    say(f"{done}: {done.stat().st_size / 1e6:.0f} MB, {size / 1e6:.0f} MB on a card, sha256 {digest[:16]}…")
    return done


def install(system: Path, deb: Path, epoch: int) -> None:
    """Our package, by the image's own dpkg."""
    shutil.copyfile(deb, system / "tmp" / "amiss.deb")
    # Nothing is started here: there is no systemd that runs, and the package's scripts see that.
    inside(system, epoch, "dpkg", "--install", "/tmp/amiss.deb")
    (system / "tmp" / "amiss.deb").unlink()


def configure(system: Path, epoch: int) -> None:
    run(["cp", "-r", "--no-preserve=ownership,timestamps", f"{OVERLAY}/.", str(system)])
    shutil.copyfile(Path(__file__).parents[2] / "docs/howto/own-image.md", system / "usr/share/doc/amiss/own-image.md")
    inside(system, epoch, "systemd-sysusers")
    inside(system, epoch, "systemctl", "enable", *UNITS)
    inside(system, epoch, "systemctl", "disable", *UNWANTED)
    # Debian's hook, as after a new kernel: kernel, initramfs, device trees and command line go to the boot partition. It asks
    # whether it is in a chroot, which cannot be known without /proc.
    (system / "tmp" / "ischroot").symlink_to("/usr/bin/true")
    hook = "PATH=/tmp:$PATH DEB_MAINT_PARAMS=configure exec /etc/kernel/postinst.d/z50-raspi-firmware"
    inside(system, epoch, "sh", "-c", hook)
    # apt's own example: Debian's official sources. What this was built from stays here.
    example = system / "usr/share/doc/apt/examples"
    for old in [system / "etc/apt/sources.list", *(system / "etc/apt/sources.list.d").glob("*")]:
        old.unlink(missing_ok=True)
    official = (example / "debian.sources").read_text()
    lines = [line for line in official.splitlines() if not line.startswith("#")]
    text = "\n".join(f"Components: {root.COMPONENTS}" if line.startswith("Components:") else line for line in lines)
    write(system / "etc/apt/sources.list.d/debian.sources", f"{text}\n")
    write(system / "etc/hostname", "amiss\n")
    write(system / "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 amiss\n::1 localhost\n")
    (system / "etc/resolv.conf").unlink(missing_ok=True)
    (system / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    # Made at the first start, on each device another one. Empty and not absent: absent, systemd would turn every unit on.
    write(system / "etc/machine-id", "")
    # What systemd would make anew at the first start because /usr is newer was made here by the packages.
    for folder in ("etc", "var"):
        write(system / folder / ".updated", f"TIMESTAMP_NSEC={epoch}000000000\n")
    os.utime(system / "usr")
    for path in (*system.glob("etc/ssh/ssh_host_*"), *system.glob("boot/*.dpkg-bak")):
        path.unlink()
    for pattern in ("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "tmp/*", "run/*", "var/cache/ldconfig/*"):
        for path in system.glob(pattern):
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
    write(system / "boot/firmware/README.txt", README.replace("\n", "\r\n"))


def write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # it may be a link to what is of this machine
    path.write_text(text, newline="")


def settle(system: Path, since: float, epoch: int) -> None:
    """What was made here, and not by who made a package, is of the date of the source. Python's byte code holds on to its
    source by time, so a package's files keep theirs."""
    for path in (system, *system.rglob("*")):
        if path.lstat().st_mtime >= since:
            os.utime(path, (epoch, epoch), follow_symlinks=False)


def assemble(system: Path, folder: Path, epoch: int) -> Path:
    identity = hashlib.sha256(f"{root.key()} {epoch}".encode()).digest()
    label, at = int.from_bytes(identity[:4], "big"), uuid.UUID(bytes=identity[:16], version=4)
    environment = {"SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch), "MTOOLS_SKIP_CHECK": "1"}
    boot = folder / "boot.fat"
    run(["truncate", "-s", str(BOOT_BYTES), str(boot)])
    run(["mkfs.vfat", "-F", "32", "-n", "FIRMWARE", "-i", f"{label:08x}", "--invariant", str(boot)])
    firmware = system / "boot/firmware"
    for path in sorted(firmware.iterdir()):
        run(["mcopy", "-s", "-m", "-i", str(boot), str(path), "::"], environment=environment)
        path.unlink() if path.is_file() else shutil.rmtree(path)
    content = sum(path.lstat().st_blocks * 512 for path in system.rglob("*"))
    plan = layout(content)
    files = folder / "root.ext4"
    run(["truncate", "-s", str(plan.root.size), str(files)])
    options = [f"hash_seed={at}", "lazy_itable_init=0", "lazy_journal_init=0", "root_owner=0:0", "nodiscard"]
    run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-L", "rootfs", "-U", str(at)),
            *("-E", ",".join(options), "-d", str(system), str(files)),
        ],
        environment=environment,
    )
    same_times(system, files, epoch)
    image = folder / "image"
    run(["truncate", "-s", str(plan.size), str(image)])
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(image)], stdin=plan.table(label))
    for partition, source in ((plan.boot, boot), (plan.root, files)):
        where = [f"of={image}", "bs=4M", "conv=notrunc,sparse", f"seek={partition.start // ALIGN}", "status=none"]
        run(["dd", f"if={source}", *where])
        source.unlink()
    return image


def same_times(system: Path, files: Path, epoch: int) -> None:
    """mke2fs copies when a file was last read and changed *here*; those are the moments in which it was unpacked."""
    commands = []
    for path in (system, *system.rglob("*")):
        inside_it = str(path.relative_to(system))
        name = "/" if inside_it == "." else f"/{inside_it}"
        if '"' in name or "\n" in name:
            raise ImageError(f"{name!r}: debugfs cannot be told of such a name")
        commands += [f'sif "{name}" {field} @{epoch}' for field in ("atime", "ctime", "crtime")]
    run(["debugfs", "-w", "-f", "-", str(files)], stdin="\n".join(commands))


def inside(system: Path, epoch: int, *command: str) -> None:
    """By the image's own programs, which are emulated."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        "QEMU_CPU": "cortex-a72",
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    run(["chroot", str(system), *command], environment=environment)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def timed(what: str, say: Say) -> Iterator[None]:
    started = time.monotonic()
    yield
    say(f"{time.monotonic() - started:6.1f} s  {what}")


def source_date() -> int:
    if (said := os.environ.get("SOURCE_DATE_EPOCH", "")).isdigit():
        return int(said)
    try:
        return int(run(["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%ct"]))
    except (ImageError, ValueError):
        return int(time.time())
