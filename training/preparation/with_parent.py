"""Processes that end when the one that started them does, however that one ends."""

import ctypes
import signal
import sys


PR_SET_PDEATHSIG = 1  # of Linux


def end_with_parent() -> None:
    """Let the system kill this process when its parent ends; elsewhere than on Linux it ends at its next job."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
