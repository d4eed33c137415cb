"""A runtime in a Python of its own: tflite-runtime wants numpy 1, and nothing else here does.

What runs there is the device's own backend, so it is that which is compared. Arrays go to it and come back as .npz files.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from edge.errors import BundleError
from edge.scoring.backends import OUTPUTS, Outputs
from edge.signal import Float32

CODE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from edge.scoring.backends import RUNTIMES
folder = sys.argv[3]
with open(folder + "/model", "rb") as file:
    backend = RUNTIMES[sys.argv[2]].open(file.read())
np.savez(folder + "/outputs.npz", **backend.run(np.load(folder + "/x.npz")["x"]).arrays())
"""


class Elsewhere:
    """A backend that is started anew for each call: give it all windows at once."""

    def __init__(self, python: Path, runtime: str, model: bytes) -> None:
        self.name, self._python, self._model = runtime, python, model

    def run(self, x: Float32) -> Outputs:
        """Raises `BundleError` with the last line that it wrote when it fails."""
        home = Path(__file__).parents[1]
        with tempfile.TemporaryDirectory(prefix="amiss-elsewhere-") as folder:
            (Path(folder) / "model").write_bytes(self._model)
            np.savez(Path(folder) / "x.npz", x=x)
            command = [str(self._python), "-c", CODE, str(home), self.name, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
                raise BundleError(f"{self.name} in {self._python}: {said[-1]}")
            with np.load(Path(folder) / "outputs.npz", allow_pickle=False) as found:
                return Outputs(*(found[name] for name in OUTPUTS))
