"""The terminal that results are shown in."""

from __future__ import annotations

import sys

from rich.console import Console

REPORT_WIDTH = 120


def result_console() -> Console:
    """A console as wide as the terminal; where output is piped, wide enough for our tables."""
    return Console() if sys.stdout.isatty() else Console(width=REPORT_WIDTH)
