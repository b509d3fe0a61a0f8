"""`fleet` under a clock that is off by as many seconds as a file says: its first argument.

A stand-in for a machine whose clock is set: only Python in this one process sees it, which is all that looks
at the clock in a rollout. Timers of the kernel don't care.
"""

import datetime
import sys
import time
from pathlib import Path

_FILE, _REAL, _DATETIME = Path(sys.argv.pop(1)), time.time, datetime.datetime


class Shifted(_DATETIME):
    """A date and time of that clock."""

    @classmethod
    def now(cls, tz=None):
        """Return what the clock shows."""
        return _DATETIME.fromtimestamp(time.time(), tz)


time.time = lambda: _REAL() + float(_FILE.read_text())
datetime.datetime = Shifted

from fleet.cli import main  # noqa: E402 - under that clock

main()
