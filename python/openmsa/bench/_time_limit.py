"""An end to what another library does: compiling, searching for its fastest variant, or a kernel that is slow."""

from __future__ import annotations

import contextlib
import signal

# What catches the first exception itself meets another one.
_AGAIN_SECONDS = 5.0


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raises TimeoutError inside the block once it has run for so long, between steps of Python. Main thread only."""

    def stop(signum, frame):
        raise TimeoutError(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
