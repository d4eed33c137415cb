"""Root file systems of Debian to try packages in and to lay under a container: configured once, kept as an archive.

    ~/.cache/amiss/roots/<suite>-<architecture>-<key>.tar     the key is of the packages; made anew after 30 days

Made by mmdebstrap from the mirror that apt uses on this machine, as root. Another processor's programs configure theirs under
QEMU, which takes some minutes.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.deb import PackageError, call

SUITES = {12: "bookworm", 13: "trixie"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
KEPT_S = 30 * 24 * 3600.0
BINFMT = Path("/proc/sys/fs/binfmt_misc")
CURE = "sudo apt-get install -y mmdebstrap qemu-user-static buildah skopeo"


def home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amiss" / "roots"


def archive(debian: int, architecture: str, include: Sequence[str], folder: Path | None = None) -> Path:
    """Of a Debian with these packages. Raises `PackageError`."""
    suite = SUITES[debian]
    key = hashlib.sha256(repr(sorted(include)).encode()).hexdigest()[:12]
    path = (folder or home()) / f"{suite}-{architecture}-{key}.tar"
    with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime < KEPT_S:
            return path
    root_only("a root file system has files of root's and of others")
    need("mmdebstrap")
    emulate(architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        options = ["--mode=root", "--variant=minbase", f"--architectures={architecture}", f"--include={','.join(include)}"]
        # What is made with this machine's mirror goes to others, who may not reach it: they have their own.
        forget = "echo '# /usr/share/doc/apt/examples/debian.sources is an example' >\"$1/etc/apt/sources.list\""
        call("mmdebstrap", "-q", *options, f"--customize-hook={forget}", suite, draft, "-", stdin=sources(suite))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def sources(suite: str, components: str = "main") -> str:
    """Where apt gets Debian from on this machine, for another suite: lines for stdin. Raises `PackageError`."""
    targets = call("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    lines = []
    for end, names in (("/debian", (suite, f"{suite}-updates")), ("/debian-security", (f"{suite}-security",))):
        if uri := next((uri for uri in targets if uri.rstrip("/").endswith(end)), None):
            lines += [f"deb [signed-by={KEYRING}] {uri} {name} {components}\n" for name in names]
    if not lines:
        raise PackageError("apt has no Debian mirror among its sources, and a root file system comes from one")
    return "".join(lines)


def emulate(architecture: str) -> None:
    """Programs of this architecture run here, also in a chroot. Debian's package sees to it where systemd runs, else we do.
    Raises `PackageError`."""
    if architecture == call("dpkg", "--print-architecture").strip():
        return
    names = {"arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}
    name = names[architecture]
    if (BINFMT / name).exists():
        return
    if not (BINFMT / "register").exists():
        with contextlib.suppress(PackageError):
            call("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    try:
        (BINFMT / "register").write_text(Path(f"/usr/lib/binfmt.d/{name}.conf").read_text().strip())
    except OSError as error:
        raise PackageError(f"programs for {architecture} cannot be run here ({error.strerror or error}): {CURE}") from None


def need(*tools: str) -> None:
    if absent := [tool for tool in tools if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]:
        raise PackageError(f"{', '.join(absent)} not installed: {CURE}")


def root_only(why: str) -> None:
    if os.geteuid() != 0:
        raise PackageError(f"{why}: run this as root")
