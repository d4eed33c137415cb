"""Asking whether the clock is set, also where the kernel may not be asked."""

import ctypes
from pathlib import Path

import pytest

from edge.operating import system


def test_where_the_kernel_does_not_answer_timesyncd_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, name: None) -> None: ...

        def adjtimex(self, _: object) -> int:
            return -1

    assert system.clock_synced(tmp_path) is not None, "the control: here the kernel answers"
    monkeypatch.setattr(ctypes, "CDLL", Refused)
    assert system.clock_synced(tmp_path) is None, "nobody knows"
    (tmp_path / "systemd/timesync").mkdir(parents=True)
    assert system.clock_synced(tmp_path) is False
    (tmp_path / "systemd/timesync/synchronized").touch()
    assert system.clock_synced(tmp_path) is True
