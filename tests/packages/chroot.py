"""A Debian to install things into and to throw away: unpacked from `deploy.roots`, entered with chroot."""

import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from deploy import oci, roots

ENTER = """
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
[ -z "$CPUINFO" ] || mount --bind "$CPUINFO" "$0/proc/cpuinfo"
exec chroot "$0" "$@"
"""
CPUINFO = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x0\nCPU part\t: 0xd03\nCPU revision\t: 3\n\n"
)
"""A Raspberry Pi 3's. The host's makes ONNX Runtime for Arm crash, and QEMU's default processor computes int8 wrong."""
INCLUDE = {
    "amd64": ("python3", "python3-venv", "libstdc++6", "systemd", "udev", "procps"),
    "arm64": oci.INCLUDE,  # configured under emulation, which takes minutes: once for both
}
TIMEOUT_S = 900.0


class Chroot:
    """`folder` must not be there. Mounts live as long as the command that needs them."""

    def __init__(self, debian: int, architecture: str, folder: Path) -> None:
        self.path, self.debian, self.architecture = folder, debian, architecture
        with tarfile.open(roots.archive(debian, architecture, INCLUDE[architecture])) as archive:
            archive.extractall(folder, filter="fully_trusted")
        # Nothing is fetched from inside: what a package needs beyond this must not be missed by chance.
        (folder / "etc/apt/sources.list").unlink()
        self.write("/etc/apt/apt.conf.d/99yes", 'APT::Get::Assume-Yes "true";\n')
        self._cpuinfo = folder.with_suffix(".cpuinfo")
        self._cpuinfo.write_text(CPUINFO)

    def command(self, *command: str | Path) -> list[str]:
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, self.path, *command]
        return [str(word) for word in inside]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "SYSTEMD_LOG_TARGET": "console",
            "QEMU_CPU": "cortex-a53",
            "CPUINFO": str(self._cpuinfo) if self.architecture == "arm64" else "",
            **(more or {}),
        }

    def run(self, *command: str | Path, code: int | None = 0, env: Mapping[str, str] | None = None) -> str:
        """All that it says. `code`: what it must end with; None: anything but 0."""
        done = subprocess.run(
            self.command(*command),
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        right = done.returncode != 0 if code is None else done.returncode == code
        assert right, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def put(self, source: Path, to: str) -> str:
        """Copy a file in; where it is inside."""
        target = self.path / to.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return to

    def write(self, to: str, text: str, mode: int = 0o644) -> Path:
        target = self.path / to.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        return target

    def tree(self) -> set[str]:
        """What lies there, but for what dpkg, apt and the tests keep for themselves."""
        own = ("var/lib/dpkg", "var/log", "var/cache", "var/lib/apt", "proc", "dev", "tmp", "var/tmp", "root", "run")
        found = set()
        for folder, folders, files in os.walk(self.path):
            here = os.path.relpath(folder, self.path)
            if here in own:
                folders.clear()
                continue
            found |= {os.path.normpath(os.path.join(here, name)) for name in files + folders}
        return found - set(own)
