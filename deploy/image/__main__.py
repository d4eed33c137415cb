"""`python -m deploy.image build | boot`: make the image, or start it here under QEMU."""

import argparse
import sys
import tomllib
from pathlib import Path

from deploy.image import disk
from edge.errors import AmissError

REPOSITORY = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="deploy.image", description="Our own image for Raspberry Pi 3, Zero 2 W and 4.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make amiss-VERSION-arm64.img.zst; minutes, the first time half an hour")
    build.add_argument("--out", type=Path, default=Path("dist"), help="folder to write to (default: dist)")
    build.add_argument("--deb", type=Path, help="our package, when it is not to be made anew")
    options = parser.parse_args(arguments)
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    print(disk.build(options.out, options.deb, say=say, version=version))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except AmissError as error:
        print(f"amiss: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
