"""Lines where there is no terminal, a bar where there is one."""

import io

from trainer.progress import Step, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_now_and_then() -> None:
    out = io.StringIO()
    now = 0.0
    with progress("train", out, clock=lambda: now) as report:
        for step in range(1, 101):
            now += 0.2
            report(Step(step, 100, "loss 0.5", 61.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "train 1/100 loss 0.5 1:01 left"
    assert lines[-1] == "train 100/100 loss 0.5"
    assert len(lines) == 5  # 20 s, one each 5 s


def test_a_bar_on_a_terminal() -> None:
    out = Terminal()
    with progress("train", out) as report:
        report(Step(3, 10, "loss 0.5", 1.0))
    assert "3/10" in out.getvalue()
