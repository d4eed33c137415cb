"""The container image: a valid OCI layout for both processors, whose program works as nobody with nothing but its state folder
to write to. Entered with chroot, since no daemon runs here; what a runtime does on top (namespaces, devices) is not tried."""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from chroot import CPUINFO

from deploy.deb import MACHINES, released
from deploy.oci import CONTAINERFILE, index

ENTER = """
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
mount -t tmpfs tmpfs "$0/tmp"
mount --bind "$ETC" "$0/etc/amiss"
mount --bind "$STATE" "$0/var/lib/amiss"
[ -z "$CPUINFO" ] || mount --bind "$CPUINFO" "$0/proc/cpuinfo"
exec setpriv --no-new-privs chroot --userspec=65532:20 --groups=20 "$0" "$@"
"""


@pytest.fixture(scope="module")
def layout(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout")
    with tarfile.open(made / f"amiss-{released()}-oci.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


def inspect(layout: Path, architecture: str) -> dict[str, object]:
    command = ["skopeo", "--override-arch", architecture, "inspect", "--config", f"oci:{layout}:{released()}"]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def test_the_layout_is_whole_and_for_both(layout: Path, made: Path) -> None:
    """Every blob is what its name says, and skopeo reads it out of the one file, too."""
    import hashlib

    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert index(layout).keys() == MACHINES.keys()
    blobs = list((layout / "blobs/sha256").iterdir())
    assert len(blobs) >= 1 + len(MACHINES) * 4
    for blob in blobs:
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    archive = made / f"amiss-{released()}-oci.tar"
    subprocess.run(["skopeo", "inspect", "--raw", f"oci-archive:{archive}:{released()}"], check=True, capture_output=True)


@pytest.mark.parametrize("architecture", MACHINES)
def test_it_runs_as_nobody(layout: Path, architecture: str) -> None:
    told = inspect(layout, architecture)
    assert (told["architecture"], told["os"]) == (architecture, "linux")
    config = told["config"]
    assert isinstance(config, dict)
    assert config["User"] == "65532:20"
    assert config["Entrypoint"] == ["amiss"]
    assert config["Cmd"] == ["run", "--config", "/etc/amiss/device.toml"]
    assert config["Volumes"].keys() == {"/etc/amiss", "/var/lib/amiss"}
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]


def test_the_containerfile_asks_how_it_is() -> None:
    """OCI has no place for a health check; Docker and `podman build --format docker` keep it."""
    assert re.search(r'^HEALTHCHECK .*\\\n +CMD \["amiss", "ask", "ping"', CONTAINERFILE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module", params=MACHINES)
def filesystem(request: pytest.FixtureRequest, layout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Its layers, laid over each other by buildah."""
    folder = tmp_path_factory.mktemp("filesystem")
    store = ["buildah", "--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]

    def call(*command: str) -> str:
        return subprocess.run([*store, *command], check=True, capture_output=True, text=True).stdout.strip()

    container = call("from", "--arch", request.param, f"oci:{layout}:{released()}")
    return request.param, Path(call("mount", container))


def inside(filesystem: tuple[str, Path], device: Path, state: Path, *command: str) -> subprocess.CompletedProcess[str]:
    architecture, root = filesystem
    cpuinfo = state.with_name("cpuinfo")
    cpuinfo.write_text(CPUINFO)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "STATE_DIRECTORY": "/var/lib/amiss",
        "PYTHONDONTWRITEBYTECODE": "1",
        "QEMU_CPU": "cortex-a53",
        "ETC": str(device),
        "STATE": str(state),
        "CPUINFO": str(cpuinfo) if architecture == "arm64" else "",
    }
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", ENTER, str(root), *command]
    return subprocess.run(enter, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65532, 20)
    return folder


def test_it_scores_on_a_root_that_cannot_be_written(filesystem: tuple[str, Path], device: Path, state: Path) -> None:
    device.chmod(0o755)
    done = inside(filesystem, device, state, "amiss", "inspect", "/etc/amiss/small.amiss", "--verify")
    assert done.returncode == 0, done.stderr
    assert "golden scores within" in done.stdout
    done = inside(
        filesystem,
        device,
        state,
        "amiss",
        "score",
        "/etc/amiss/small.amiss",
        "/etc/amiss/r.csv",
        "--out",
        "/var/lib/amiss/s.csv",
    )
    assert done.returncode == 0, done.stderr
    assert len((state / "s.csv").read_text().splitlines()) == 401


def test_nothing_else_can_be_written(filesystem: tuple[str, Path], device: Path, state: Path) -> None:
    """Nor gives any program more rights than it was started with."""
    tried = "id -u; id -g; touch /var/lib/amiss/x /tmp/x && touch /usr/x /etc/amiss/x"
    done = inside(filesystem, device, state, "sh", "-c", tried)
    assert done.stdout.split() == ["65532", "20"]
    assert done.returncode != 0
    assert done.stderr.count("cannot touch") == 2, done.stderr
    assert (state / "x").exists()
