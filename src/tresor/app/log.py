"""Logs: a JSON object a line on standard error.

Nothing that a caller or an upstream sent is ever given to a logger; what callers of this module hand over are ids,
counts, words from closed lists, and messages of our own errors.
"""

import logging
import sys
from typing import Final

import msgspec

from tresor.encodings import rfc3339

__all__ = ["set_up_logging"]

_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "taskName"}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "pid": record.process,
            **{name: value for name, value in record.__dict__.items() if name not in _OWN},
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["fault"] = record.exc_info[0].__name__
        return msgspec.json.encode(line, enc_hook=str).decode()


def set_up_logging(level: str) -> None:
    """Write records of at least `level` to standard error, ours and the libraries'."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
