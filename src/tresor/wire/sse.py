"""Server-sent events as bytes (WHATWG HTML section 9.2, as the OpenAI API uses it).

Sans-I/O: bytes in, whole events out, each with its exact bytes.  An event is everything up to and including the blank
line that ends it; lines end with LF, CRLF or CR.
"""

import re

__all__ = ["EventSplitter", "close_event", "event_data", "is_data_line", "split_events"]

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE_ENDS = re.compile(rb"[\r\n]*")


class EventSplitter:
    """Collects bytes and gives back blocks of whole events.  Bounds nothing: whoever feeds it looks at `waiting`."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes that wait for the end of their event."""
        return len(self._rest)

    def feed(self, data: bytes) -> bytes:
        """Return all events that are whole by now and line ends behind them, as one block of bytes, possibly empty."""
        rest = self._rest
        if not rest and data.endswith(b"\n\n") and b"\r" not in data:
            return data
        seen = max(0, len(rest) - 3)  # a blank line may have begun in what was there: CR LF CR, then LF
        rest += data
        end = _LINE_ENDS.match(rest, self._end_of_last_event(seen)).end()  # type: ignore[union-attr] # matches nothing too
        block = bytes(rest[:end])
        del rest[:end]
        return block

    def close(self) -> bytes:
        """Return what never became a whole event, or became one only now, when no LF can follow its last CR."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest

    def _end_of_last_event(self, seen: int) -> int:
        rest = self._rest
        if rest.find(b"\r", seen) < 0:
            boundary = rest.rfind(b"\n\n", seen)
            return boundary + 2 if boundary >= 0 else 0
        # A CR at the very end may yet become CRLF, so it ends no line until the next byte is there.
        upto = len(rest) - 1 if rest[-1:] == b"\r" else len(rest)
        end = 0
        for match in _BLANK_LINE.finditer(rest, seen, upto):
            end = match.end()
        return end


def split_events(block: bytes) -> list[bytes]:
    """Split a block made by `EventSplitter.feed` into its events; joined they give the block again.

    Line ends in front of an event stand alone, so that the result does not depend on how the bytes arrived.
    """
    events: list[bytes] = []
    at = 0
    ends = [match.end() for match in _BLANK_LINE.finditer(block)]
    if not ends or ends[-1] < len(block):
        ends.append(len(block))
    for end in ends:
        event = block[at:end]
        at = end
        bare = event.lstrip(b"\r\n")
        if len(bare) < len(event):
            events.append(event[: len(event) - len(bare)])
        if bare:
            events.append(bare)
    return events


def event_data(event: bytes) -> bytes | None:
    """Return the data of one event, its lines joined by LF, or None where it has no `data` field."""
    if (
        event.startswith(b"data: ")
        and event.find(b"\n") == len(event) - 2
        and event[-1:] == b"\n"
        and b"\r" not in event
    ):
        return event[6:-2]  # the one form that every OpenAI-compatible server sends
    values = [line.partition(b":")[2].removeprefix(b" ") for line in event.splitlines() if is_data_line(line)]
    return b"\n".join(values) if values else None


def close_event(event: bytes) -> bytes:
    """Return the event with the blank line that ends it, which is added where it is missing."""
    if _BLANK_LINE.search(event):
        return event
    return event + (event[-1:] if event[-1:] in (b"\r", b"\n") else b"\n\n")


def is_data_line(line: bytes) -> bool:
    """Whether a line, with its line end or without, is a `data` field."""
    return line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data"
