"""Read a RUN directory back."""

import pickle
import warnings
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import torch

from edge.errors import DataError, NoInputError
from edge.signal import Float32, Int64
from trainer.model import Detector
from trainer.train import FORMAT, RunInfo


def load_info(run: Path) -> RunInfo:
    """run.json. Raises `NoInputError` when `run` is no run and `DataError` when it is damaged."""
    path = run / "run.json"
    try:
        info = msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except (FileNotFoundError, NotADirectoryError):
        raise NoInputError(f"{run}: no training run; `amiss train` makes one") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged, or made by another version: {error}; train again") from None
    if info.format != FORMAT:
        raise DataError(f"{path}: format {info.format}, this version reads {FORMAT}; train again")
    return info


def load_detector(run: Path) -> tuple[Detector, RunInfo]:
    """The trained detector in evaluation mode. Raises `NoInputError` or `DataError`."""
    info = load_info(run)
    path = run / "checkpoint.pt"
    detector = Detector(len(info.channels), info.recipe)
    try:
        # weights_only: a checkpoint is data. Without it, opening one would run whatever its pickle says.
        with warnings.catch_warnings(action="ignore"):
            weights = torch.load(path, map_location="cpu", weights_only=True)
        detector.load_state_dict(weights)
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such file; train again") from None
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: no checkpoint of this run: {reason[:200]}; train again") from None
    return detector.eval(), info


def load_windows(run: Path) -> tuple[Float32, Float32, Int64]:
    """(n, C, N) windows that were learned from, (m, C, N) that were held back, and where those start, in samples: (m,).

    Raises `NoInputError` or `DataError`.
    """
    path = run / "windows.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["fit"], stored["calibration"], stored["position"]
    except FileNotFoundError:
        raise NoInputError(f"{path}: no such file; train again") from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged: {error}; train again") from None
