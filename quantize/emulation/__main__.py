"""`python -m quantize.emulation`: prepare what emulating 64-bit Arm needs; nothing when it is there."""

import sys

from edge.errors import AmissError
from quantize.emulation import home, prepare

if __name__ == "__main__":
    try:
        print(f"emulated arm64 in {home()}; a minute when it is not there yet", file=sys.stderr)
        prepare()
    except AmissError as error:
        print(f"amiss: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
