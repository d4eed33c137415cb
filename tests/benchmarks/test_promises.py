"""The control of the benchmark tells normal running that moved on from a program that is wrong."""

from pathlib import Path

import numpy as np
from small_bundle import CHANNELS, build, normal

from benchmarks.promise import Row, in_turn, reasons, report, table
from edge.bundle import Bundle
from edge.operating.score import judge_recording
from edge.sensing.recordings import Recording
from trainer.promise import judge, keep


def test_what_moved_on_is_broken_later_and_not_in_turn(tmp_path: Path) -> None:
    bundle = Bundle.open(build(tmp_path / "small.amiss", windows=800))
    time_ns = np.arange(8000, dtype=np.int64) * 10_000_000
    rows = []
    for name, offset in (("stays", 0.0), ("moves", 1.0)):
        verdicts = [judge_recording(bundle, Recording(name, CHANNELS, time_ns, normal(8000, 7) + np.float32(offset)))]
        kept = keep(bundle, verdicts)
        rows.append(
            Row(
                name=name,
                promise=kept,
                in_turn=in_turn(bundle, verdicts),
                commissioned=kept,
                moved=offset,
                moved_channel="current",
            )
        )
    assert [row.promise.verdict == "broken" for row in rows] == [False, True]
    assert [judge(row.in_turn) == "broken" for row in rows] == [False, False], "within itself the later running is of one kind"
    assert len(reasons(rows)) == 1
    assert "**moves**" in reasons(rows)[0]
    assert len(table(rows)) == 4
    assert "kept on 0, not kept on 1, and on 1" in report(rows, "command")
