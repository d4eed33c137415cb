import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from edge.operating.jobs import Jobs


def test_first_come_first_done_and_whoever_comes_wakes_it() -> None:
    jobs, done = Jobs(), []
    jobs.put(lambda: done.append(1))
    jobs.put(lambda: done.append(2))
    assert len(jobs) == 2
    jobs.work(60.0)
    assert done == [1, 2]
    threading.Timer(0.1, lambda: jobs.put(lambda: done.append(3))).start()
    began_s = time.monotonic()
    while len(done) < 3:
        jobs.work(120.0)
    assert time.monotonic() - began_s < 60.0, "the whole time, if nobody rang"


def test_it_ends_when_the_time_is_over_whatever_is_left() -> None:
    """So that the watchdog is pinged in between, also where somebody asks again and again."""
    now_s, done = [0.0], []
    jobs = Jobs(lambda: now_s[0])

    def job() -> None:
        now_s[0] += 0.6
        done.append(1)
        jobs.put(job)

    jobs.put(job)
    jobs.work(1.0)
    assert (len(done), len(jobs)) == (2, 1), "two take longer than the time"
    jobs.work(1.0)
    assert (len(done), len(jobs)) == (4, 1)


def test_a_job_may_ask_for_another() -> None:
    jobs, done = Jobs(), []
    jobs.put(lambda: jobs.put(lambda: done.append("another")))
    jobs.work(60.0)
    assert done == ["another"]


LATE = """
import queue, signal, sys, time
from edge.operating.jobs import Jobs

done = []
if sys.argv[1] == "jobs":
    jobs = Jobs()
    put, wait = jobs.put, lambda: jobs.work(0.2)
else:
    jobs = queue.SimpleQueue()
    put = jobs.put
    def wait():
        try:
            jobs.get(timeout=0.2)
        except queue.Empty:
            pass

def handler(*_):
    time.sleep(0.3)  # as on a machine that has no time: when it returns, the wait should be over
    if sys.argv[2] == "put":
        put(lambda: done.append(1))

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
wait()
print("over", len(done))
"""


def late(*arguments: str, within_s: float = 30.0) -> str:
    command = [sys.executable, "-c", LATE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=True).stdout


@pytest.mark.parametrize(("what", "found"), [("put", "over 1\n"), ("nothing", "over 0\n")])
def test_a_signal_whose_handler_outlasts_the_wait_does_not_make_it_last_for_ever(what: str, found: str) -> None:
    assert late("jobs", what) == found


def test_the_standard_librarys_queue_would_wait_for_ever() -> None:
    """The control: an agent that was told to end stood there until somebody killed it. Python 3.13 waits rightly."""
    with pytest.raises(subprocess.TimeoutExpired) if sys.version_info < (3, 13) else nullcontext():
        late("queue", "nothing", within_s=4.0)


def test_handlers_that_interrupt_work_at_any_place_lose_nothing() -> None:
    jobs, done, put = Jobs(), [], 0

    def handler(*_: object) -> None:
        nonlocal put
        put += 1
        jobs.put(lambda: done.append(1))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            jobs.work(0.001)
            jobs.put(lambda: None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    while len(jobs):
        jobs.work(1.0)
    assert put > 100
    assert len(done) == put
