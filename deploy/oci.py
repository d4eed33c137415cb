"""The container image for both architectures, from the Debian packages, by buildah: no daemon, no registry.

deploy/container/Containerfile is what is built, here as anywhere else; only its base is made by `deploy.roots` instead of
fetched from a registry. The result is one file, an OCI archive that `podman load`, `docker load` and `skopeo copy` read.
"""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy import deb, roots
from deploy.deb import PackageError, call

DEBIAN = 13
INCLUDE = ("python3", "ca-certificates", "libstdc++6")
CONTAINERFILE = Path(__file__).with_name("container") / "Containerfile"
CHROOT = ("--isolation", "chroot")
"""Needs neither namespaces of its own nor a runtime such as runc."""


def build(debs: Path, released: str, out: Path, epoch: int, architectures: Sequence[str] = tuple(deb.MACHINES)) -> Path:
    """Write `amiss-<version>-oci.tar` into `out`, from the packages in the folder `debs`. Raises `PackageError`."""
    roots.root_only("a container image has files of root's")
    roots.need("buildah", "skopeo", "mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="amiss-oci-") as folder:
        place = Path(folder)
        context = place / "context"
        context.mkdir()
        store = ("buildah", "--root", place / "store", "--runroot", place / "run", "--storage-driver", "vfs")
        try:
            call(*store, "manifest", "create", "amiss")
            for architecture in architectures:
                name = deb.Target(DEBIAN, architecture).file_name(released)
                if not (debs / name).exists():
                    raise PackageError(f"{debs / name} is not there: python -m deploy.dist deb --out {debs}")
                shutil.copy(debs / name, context)
                base, image = f"localhost/base-{architecture}", f"localhost/amiss-{architecture}"
                _base(store, roots.archive(DEBIAN, architecture, INCLUDE), architecture, base, epoch)
                options = ("--arch", architecture, "--timestamp", str(epoch), "--pull-never", "--build-arg", f"BASE={base}")
                call(*store, "bud", *CHROOT, *options, "-f", CONTAINERFILE, "-t", image, context)
                call(*store, "manifest", "add", "amiss", image)
            layout = place / "layout"
            call(*store, "manifest", "push", "--all", "amiss", f"oci:{layout}:{released}")
            out.mkdir(parents=True, exist_ok=True)
            return _packed(layout, out / f"amiss-{released}-oci.tar", epoch)
        finally:
            shutil.rmtree(place / "store", ignore_errors=True)


def _base(store: Sequence[str | Path], archive: Path, architecture: str, name: str, epoch: int) -> None:
    container = call(*store, "from", "--arch", architecture, "scratch").strip()
    call(*store, "add", container, archive, "/")
    call(*store, "config", "--arch", architecture, "--os", "linux", "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", container)
    call(*store, "commit", "-q", "--rm", "--timestamp", str(epoch), container, name)


def _packed(layout: Path, archive: Path, epoch: int) -> Path:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as packed:
        for path in sorted(layout.rglob("*")):
            member = packed.gettarinfo(path, str(path.relative_to(layout)))
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            if member.isdir():
                packed.addfile(member)
            else:
                with path.open("rb") as file:
                    packed.addfile(member, file)
    return archive


def index(layout: Path) -> dict[str, str]:
    """Architecture → digest of its image, of an OCI layout that was unpacked."""
    top = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    blob = layout / "blobs" / top.replace(":", "/")
    return {one["platform"]["architecture"]: one["digest"] for one in json.loads(blob.read_text())["manifests"]}
