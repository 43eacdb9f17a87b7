"""Progress on the terminal: one line that is rewritten, or a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Report how far a stage is, at most every so often.

    Parameters
    ----------
    stage
        Name in front of the line.
    total
        How many there are to do.
    unit
        Of what.
    stream
        Where to; standard error by default, so that a job's output can be piped.
    """

    def __init__(self, stage: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.started = self.last = time.monotonic()
        self.first: int | None = None
        self._write(f"{stage}: {total} {unit}", end="" if self.live else "\n")

    def update(self, done: int, note: str = "") -> None:
        """Show a new count, if the last one is old enough."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if now - self.last < (0.2 if self.live else 5.0):
            return
        self.last = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = ""
        if rate > 0 and done < self.total:
            left = f", {_rounded(rate)} {self.unit}/s, {(self.total - done) / rate:.0f} s left"
        self._write(f"{self.stage}: {done}/{self.total} {self.unit}{left}{_comma(note)}")

    def done(self, note: str = "") -> None:
        """Close the line with what came of it."""
        seconds = time.monotonic() - self.started
        self._write(
            f"{self.stage}: {self.total} {self.unit} in {seconds:.1f} s{_comma(note)}", "\n"
        )

    def _write(self, text: str, end: str | None = None) -> None:
        if end is None:
            end = "" if self.live else "\n"
        start = "\r\x1b[K" if self.live else ""
        self.stream.write(f"{start}{text}{end}")
        self.stream.flush()


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _comma(note: str) -> str:
    return f", {note}" if note else ""
