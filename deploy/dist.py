"""Everything that is handed out, made from one checkout: `python -m deploy.dist`, or `make dist`.

    python -m deploy.dist all                                   everything below, and SHA256SUMS; as root
    python -m deploy.dist wheel                                 wheel, sdist, and install.sh with what it wants beside it
    python -m deploy.dist deb --debian 13 --arch arm64          Debian packages: all of them, or one
    python -m deploy.dist image                                 the container image, from packages in the folder; as root

Made of what git tracks, as it is in the working tree, into the folder dist (or --out). Everything in it has the time of the
last commit (or $SOURCE_DATE_EPOCH), so whoever makes it again from the same wheels gets the same bytes. Only the container
image depends on more: on Debian as it is that day.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from deploy import deb, oci, roots
from deploy.deb import PackageError, call
from edge.errors import AmissError

HOOKS = """\
import os, sys
from setuptools import build_meta

os.umask(0o022)  # of whoever builds: rights go into both files
out = sys.argv[1]
build_meta.build_sdist(out)
build_meta.build_wheel(out)
"""
SUMS = "SHA256SUMS"


def epoch() -> int:
    """Seconds since 1970. Raises `PackageError`."""
    said = os.environ.get("SOURCE_DATE_EPOCH") or call("git", "log", "-1", "--format=%ct", folder=deb.REPOSITORY)
    try:
        return int(said)
    except ValueError:
        raise PackageError(f"SOURCE_DATE_EPOCH is to be a whole number of seconds, not {said.strip()!r}") from None


def wheel(out: Path, time_s: int) -> tuple[Path, Path]:
    """Write wheel and sdist into `out`. Raises `PackageError`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="amiss-dist-") as folder:
        tree, made = Path(folder) / "tree", Path(folder) / "made"
        made.mkdir()
        _copy_tracked(tree)
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(time_s)}
        call(sys.executable, "-c", HOOKS, made, environment=environment, folder=tree)
        (whl,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
        sdist.write_bytes(_repacked(sdist.read_bytes(), time_s))
        return Path(shutil.move(whl, out / whl.name)), Path(shutil.move(sdist, out / sdist.name))


def _copy_tracked(into: Path) -> None:
    for name in call("git", "ls-files", "-z", folder=deb.REPOSITORY).split("\0"):
        source = deb.REPOSITORY / name
        if name and os.path.lexists(source):  # a file that was deleted and not committed is tracked all the same
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into / name, follow_symlinks=False)
            if not source.is_symlink():
                # setuptools takes rights along, and git keeps only this one of them.
                (into / name).chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _repacked(archive: bytes, time_s: int) -> bytes:
    """The same files, in order of their names, with one time and no owner: setuptools writes those of now and of this user."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        gzip.GzipFile("", "wb", 9, packed, mtime=time_s) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname, member.pax_headers = time_s, 0, 0, "", "", {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return packed.getvalue()


def installer(out: Path) -> list[Path]:
    """Copy install.sh, and what it installs besides the wheel, into `out`."""
    deploy = deb.REPOSITORY / "deploy"
    sources = [deploy / "install.sh", deb.REPOSITORY / "constraints.txt", deploy / "systemd/amiss.service"]
    return [Path(shutil.copy(source, out)) for source in [*sources, *sorted((deploy / "udev").glob("*.rules"))]]


def write_sums(folder: Path) -> Path:
    """SHA-256 of everything in the folder, as `sha256sum -c` reads it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))
    return folder / SUMS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="deploy.dist", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("all", "wheel", "deb", "image"), help="what to make")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder to write to (default: dist)")
    parser.add_argument("--debian", type=int, choices=sorted(deb.PYTHONS), help="only for this Debian")
    parser.add_argument("--arch", choices=sorted(deb.MACHINES), help="only for this architecture")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    time_s = epoch()
    made: list[Path] = []
    if options.what == "all":
        roots.root_only("the container image has files of root's (python -m deploy.dist wheel, or deb, does without)")
        for old in [*options.out.glob("amiss-*"), *options.out.glob("amiss_*")]:
            old.unlink()  # of another version: it would be summed up with these
    with tempfile.TemporaryDirectory(prefix="amiss-dist-") as folder:
        if options.what in ("all", "wheel"):
            made += wheel(options.out, time_s)
            made += installer(options.out)
        if options.what in ("all", "deb"):
            made += _debs(made[0] if made else wheel(Path(folder), time_s)[0], options, time_s)
        if options.what in ("all", "image"):
            made.append(oci.build(options.out, deb.released(), options.out, time_s))
    # What is taken without the sums is taken at the maker's word.
    made.append(write_sums(options.out))
    sizes = {path.name: path.stat().st_size for path in made}
    if options.json:
        print(json.dumps(sizes, indent=2))
    else:
        print("\n".join(f"{size / 1e6:8.2f} MB  {options.out / name}" for name, size in sizes.items()))


def _debs(whl: Path, options: argparse.Namespace, time_s: int) -> list[Path]:
    wanted = [t for t in deb.TARGETS if options.debian in (None, t.debian) and options.arch in (None, t.architecture)]
    made = []
    for target in wanted:
        print(f"amiss: Debian {target.debian}, {target.architecture}", file=sys.stderr)
        made.append(deb.build(whl, target, options.out, time_s))
    return made


if __name__ == "__main__":
    try:
        main()
    except AmissError as error:
        print(f"amiss: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
