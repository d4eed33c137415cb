"""What others ask the main thread to do."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Jobs:
    """First come, first done. `put` may be called by any thread and by a signal handler, also one that interrupts `work`.

    Not a `queue.SimpleQueue`: before Python 3.13 its `get` waits for ever, whatever its timeout, when the handler of a signal
    returns after the time is up.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._monotonic = monotonic
        # Releasing it rings. An event or a condition would not do: whoever waits holds a lock of theirs now and then.
        self._bell = threading.Lock()
        self._bell.acquire()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    def work(self, seconds: float) -> None:
        """Wait for jobs and do them; return when there are none left, or after about `seconds`. For the main thread."""
        until_s = self._monotonic() + seconds
        if not self._jobs:
            self._bell.acquire(timeout=seconds)
        while self._jobs:
            self._jobs.popleft()()
            if self._monotonic() >= until_s:
                return
