"""What the rooms below log, as notices: carriers know no trackers."""

from __future__ import annotations

import logging
import sys

from lightsecagg.tracking.events import Notice, Tracker


class LogHandler(logging.Handler):
    """Warnings and errors of the package as notices; a traceback goes to stderr, not into the event log."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(logging.WARNING)
        self._tracker = tracker

    def emit(self, record: logging.LogRecord) -> None:
        """Under the handler's lock, from whatever thread logs."""
        self._tracker.emit(Notice(text=record.getMessage(), level="warning"))
        if record.exc_info:
            print(logging.Formatter().formatException(record.exc_info), file=sys.stderr)


def show_logs(tracker: Tracker) -> None:
    """From now on this tracker is told, and no other."""
    logging.getLogger("lightsecagg").handlers = [LogHandler(tracker)]
