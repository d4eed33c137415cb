"""`python -m deploy.image build | boot`: make the image, or start it here under QEMU."""

import argparse
import sys
import tempfile
import tomllib
from pathlib import Path

from deploy.image import boot, disk, root
from deploy.image.root import ImageError, run
from edge.errors import AmissError

REPOSITORY = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="deploy.image", description="Our own image for Raspberry Pi 3, Zero 2 W and 4.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make amiss-VERSION-arm64.img.zst; minutes, the first time half an hour")
    build.add_argument("--out", type=Path, default=Path("dist"), help="folder to write to (default: dist)")
    build.add_argument("--deb", type=Path, help="our package, when it is not to be made anew")
    start = commands.add_parser("boot", help="start an image under QEMU; its console is shown, Ctrl-C ends it")
    start.add_argument("image", type=Path, help="amiss-VERSION-arm64.img.zst")
    start.add_argument("files", type=Path, nargs="*", help="what to put on the boot partition: amiss.toml, pump.amiss, …")
    start.add_argument(
        "--board", choices=("virt", "raspi3b"), default="virt", help="QEMU's own or a Raspberry Pi 3 (default: virt)"
    )
    start.add_argument("--folder", type=Path, help="keep the card here, and go on with it the next time")
    commands.add_parser("kept", help="is the root file system there, so that building takes minutes? exit code 1: no")
    options = parser.parse_args(arguments)
    if options.command == "build":
        print(made(options.out, options.deb))
    elif options.command == "kept":
        archive = root.kept()
        print(archive)
        sys.exit(0 if root.is_kept(archive) else 1)
    else:
        started(options.image, options.files, options.board, options.folder)


def made(out: Path, deb: Path | None) -> Path:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory(prefix="amiss-image-") as folder:
        if deb is None:
            command = [sys.executable, "-m", "deploy.dist", "deb", "--debian", "13", "--arch", "arm64", "--out", folder]
            run(command, show=True)
            (deb,) = Path(folder).glob("*.deb")
        return disk.build(out, deb, say=say, version=version)


def started(image: Path, files: list[Path], board: boot.Board, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="amiss-boot-") as temporary:
        at = folder or Path(temporary)
        at.mkdir(parents=True, exist_ok=True)
        card = boot.Card(at / "card.img")
        if not card.path.exists():
            boot.unpack(image, card.path)
        try:
            card.put({path.name: path.read_bytes() for path in files})
        except OSError as error:
            raise ImageError(f"{error.filename}: {error.strerror}") from None
        say(f"this computer is {boot.HOST} to it; its serial port is the socket {at / 'cable'}, and {boot.PORTS[board]} inside")
        with boot.Guest(card, at, board, show=True) as guest:
            try:
                guest.wait_for_end()
            except KeyboardInterrupt:
                say("")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except AmissError as error:
        print(f"amiss: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
