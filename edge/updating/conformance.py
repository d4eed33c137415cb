"""The command line that the public tuf-conformance suite drives, around the code that devices run (`edge.updating.fetch`).

    python -m edge.updating.conformance --metadata-dir DIR init TRUSTED_ROOT
    … --metadata-dir DIR --metadata-url URL refresh
    … --metadata-dir DIR --metadata-url URL --target-name PATH --target-base-url URL --target-dir DIR download

`--target-name` may be given several times: one after the other, by one and the same client, up to the first that fails.

Exit code 0, or 1 and the reason on standard error. For the suite and for looking into a repository by hand; an agent never uses
it. What differs from a device, because the suite is about all of TUF: delegations are followed, up to 32; up to 256 new roots;
targets may be called anything; time is the clock's alone. docs/howto/tuf-conformance.md
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from edge.updating.fetch import Limits, Repository, http_fetcher

LIMITS = Limits(rotations=256, delegations=32)


def repository(options: argparse.Namespace) -> Repository:
    return Repository(
        http_fetcher(),
        options.metadata_url,
        options.target_base_url or options.metadata_url,
        options.metadata_dir,
        bootstrap=None,  # what `init` has put there
        reference_s=time.time(),
        limits=LIMITS,
    )


def init(options: argparse.Namespace) -> None:
    options.metadata_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.trusted_root, options.metadata_dir / "root.json")


def refresh(options: argparse.Namespace) -> None:
    repository(options).refresh()


def download(options: argparse.Namespace) -> None:
    there = repository(options)
    there.refresh()
    for name in options.target_name:
        take(there, name, options.target_dir)


def take(there: Repository, name: str, folder: Path) -> None:
    """One target into `folder`, unless it lies there already."""
    from tuf.api.exceptions import LengthOrHashMismatchError

    target = there.target(name)
    if target is None:
        raise LookupError(f"{name}: no such target")
    into = folder / quote(target.path, safe="")
    try:
        with into.open("rb") as file:
            target.verify_length_and_hashes(file)
        return
    except (OSError, LengthOrHashMismatchError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        got = Path(place) / "got"
        there.download(target, got)
        os.replace(got, into)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="edge.updating.conformance", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append")
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(required=True)
    begin = commands.add_parser("init")
    begin.add_argument("trusted_root", type=Path)
    begin.set_defaults(run=init, needs=())
    commands.add_parser("refresh").set_defaults(run=refresh, needs=("metadata_url",))
    commands.add_parser("download").set_defaults(
        run=download, needs=("metadata_url", "target_name", "target_dir", "target_base_url")
    )
    options = parser.parse_args(arguments)
    for name in options.needs:
        if getattr(options, name) is None:
            parser.error(f"--{name.replace('_', '-')} is missing")
    try:
        options.run(options)
    except Exception as error:  # whatever it is, the suite wants to hear 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
