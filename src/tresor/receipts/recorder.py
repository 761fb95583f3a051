"""The recorder of bytes: what came from the upstream, what goes to the caller, and what the receipt says of both.

Sans-I/O.  The relay feeds bytes and sends what it gets back; the recorder hashes both sides, holds the finish chunk
back, counts usage and knows how the answer ended.  Implements docs/spec/http-api.md sections 4.4 to 4.6: content leaves
as it came, the `tresor` member is spliced into the last finish chunk, and the usage chunk goes on only to callers that
asked.

The states of a stream:

    PREFACE ──first data event──> CONTENT ──finish chunk──> HOLDING ──[DONE]──> DONE
                                     ^────more content─────────┘

Nothing of PREFACE leaves, so that another route can still take over.  A stream whose end was not DONE, or that was DONE
without a finish chunk, is broken, and whoever relays it says so to the caller (`broken_tail`).
"""

import hashlib
import json
import re
from enum import Enum, auto
from typing import Any

import msgspec

from tresor.errors import JsonError, UpstreamError
from tresor.wire.json_members import append_member, apply_edits, parse_members, remove_members
from tresor.wire.sse import EventSplitter, close_event, event_data, is_data_line, split_events

__all__ = ["StreamPhase", "StreamRecorder", "Usage", "splice_answer"]

_DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_TRESOR = frozenset({"tresor"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RUN_BYTES = 16 * 1024
_SHORT_RUN_BYTES = 2 * 1024
_OVERLAP_BYTES = 32  # longer than anything that is looked for
_TELLING = (  # what shows that an event needs a look, unless it is spelt so
    (b"finish_reason", (b'finish_reason":null', b'finish_reason": null')),
    (b'"usage"', (b'"usage":null', b'"usage": null')),
    (b'"error"', ()),
    (b'"tresor"', ()),
    (b"[DONE]", ()),
    (b"\\u00", ()),
)
_NOT_UNREAD = (b'"error"', b'"tresor"', b"[DONE]", b"\\u00")  # each is telling, and never harmless
_EMPTY_OBJECT = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*\}")
_MAX_COUNT = 1 << 53


class Usage(msgspec.Struct, frozen=True):
    """Token counts as the upstream gave them; None where it gave none, or no count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class StreamPhase(Enum):
    """Where a stream stands; see the module's picture."""

    PREFACE = auto()
    CONTENT = auto()
    HOLDING = auto()
    DONE = auto()


class _Choice(msgspec.Struct):
    index: Any = 0
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    tresor: Any = msgspec.UNSET

    @property
    def finishes(self) -> bool:
        """Whether it ends a choice."""
        return any(choice.finish_reason is not None for choice in self.choices or ())


class _Answer(msgspec.Struct):
    usage: Any = None
    error: Any = None
    tresor: Any = msgspec.UNSET


# Raised for what is no JSON, has not the form above or nests without end; JsonError is that of `parse_members`.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, JsonError)
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def splice_answer(body: bytes, extension: bytes) -> tuple[bytes, Usage]:
    """Splice the `tresor` member into an answer that is not a stream.

    Args:
        body: the upstream's body, a JSON object.
        extension: the value of the `tresor` member as JSON.

    Returns:
        The body with the member behind its last one (in place of the upstream's own, if it had one), and its usage.

    Raises:
        UpstreamError: the body is not a JSON object, or is an error in spite of its status.
    """
    try:
        answer = _decode_answer(body)
        if answer.error is not None:
            raise UpstreamError("invalid_response", "the answer is an error object under a status of success")
        return _splice_object(body, extension, replace=answer.tresor is not msgspec.UNSET), _parse_usage(answer.usage)
    except _UNREADABLE as error:
        raise UpstreamError("invalid_response", "the answer is not a JSON object") from error


class StreamRecorder:
    """Records one stream of one upstream.

    Args:
        extension: the value of the `tresor` member as JSON.
        pass_usage: whether the caller asked for the usage chunk.
        max_event_bytes: longest event, and most that is held back.

    Attributes:
        phase: where the stream stands.
        fault: why it broke, once it has; bytes fed after that are hashed and go nowhere.
        usage: token counts seen last.
    """

    def __init__(self, *, extension: bytes, pass_usage: bool, max_event_bytes: int) -> None:
        self.phase = StreamPhase.PREFACE
        self.fault: UpstreamError | None = None
        self.usage = Usage()
        self._extension = extension
        self._pass_usage = pass_usage
        self._max_event_bytes = max_event_bytes
        self._splitter = EventSplitter()
        self._received = hashlib.sha256()
        self._apart: hashlib._Hash | None = None  # of what was given back, from where it differs from what was fed
        self._held: list[bytes] = []  # in PREFACE comments; in HOLDING the finish chunk and what came behind it
        self._held_bytes = 0
        self._finish_event = b""  # the first of what is held in HOLDING, with the `tresor` member
        self._replaced = False  # whether a `tresor` of the upstream's stands in what is held
        self._done_event = _DONE_EVENT
        self._finished: set[str] = set()  # indices of choices, whatever their form
        self._run_bytes = min(_RUN_BYTES, max_event_bytes)  # no event in a run is longer than an event may be

    def __repr__(self) -> str:
        return f"<StreamRecorder {self.phase.name} held={self._held_bytes} fault={self.fault and self.fault.reason}>"

    @property
    def upstream_response_digest(self) -> str:
        """Digest of everything fed."""
        return "sha256:" + self._received.hexdigest()

    @property
    def response_digest(self) -> str:
        """Digest of everything given back."""
        return "sha256:" + (self._apart or self._received).hexdigest()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the upstream's body, de-chunked, and return what may leave now.

        An upstream's fault is noted in `fault`, not raised: what came before it still leaves.
        """
        if self._is_over():
            self._diverge()
            self._received.update(data)
            return b""
        out = self._pass(self._splitter.feed(data))
        if self._apart is not None or out != data:
            self._diverge().update(out)
        self._received.update(data)
        if not self._is_over() and self._splitter.waiting > self._max_event_bytes:
            self.fault = self._too_long()
        return out

    def end(self) -> bytes:
        """Take note that the upstream's body ended as HTTP says it should, and return what may leave now.

        A stream that has its finish chunk and not its `[DONE]` is whole, and gets one; any other is at fault.
        """
        if self._is_over():
            return b""
        out = self._events(_last_events(self._splitter.close()))
        self._diverge().update(out)
        if self._is_over():
            return out
        if self.phase is StreamPhase.HOLDING:
            self.phase = StreamPhase.DONE
        else:
            self.fault = UpstreamError("stream_broken", "the stream ended before its finish chunk")
        return out

    def tail(self) -> bytes:
        """Return the end of a whole stream: the finish chunk with the `tresor` member, what was held, `[DONE]`.

        To be sent only once the receipt is durable.
        """
        if self.phase is not StreamPhase.DONE or self.fault is not None:
            raise RuntimeError(f"tail() of a stream that is not whole: {self!r}")
        tail = b"".join((self._finish_event, *self._held[1:], self._done_event))
        self._diverge().update(tail)
        return tail

    def broken_tail(self, error_json: bytes) -> bytes:
        """Return the event that ends a broken stream; what was held back is dropped."""
        event = b"data: " + error_json + b"\n\n"
        self._diverge().update(event)
        return event

    def comment(self) -> bytes:
        """Return a comment line that keeps a silent connection alive."""
        self._diverge().update(_KEEP_ALIVE)
        return _KEEP_ALIVE

    def _diverge(self) -> "hashlib._Hash":
        """Return the hash of what was given back, for what is not as it was fed; most of a stream is hashed once."""
        if self._apart is None:
            self._apart = self._received.copy()
        return self._apart

    def _pass(self, block: bytes) -> bytes:
        """Let whole events through: runs of plain content in one piece, all others one by one."""
        if b"\r" in block:
            return self._events(split_events(block))
        at = _end_of_plain_content(block, 0, self._run_bytes) if self.phase is StreamPhase.CONTENT else 0
        if at == len(block):
            return block
        out = [block[:at]]
        run_bytes = self._run_bytes
        while at < len(block) and not self._is_over():
            if self.phase is StreamPhase.CONTENT and (end := _end_of_plain_content(block, at, run_bytes)) > at:
                out.append(block[at:end])
                run_bytes = self._run_bytes
            else:
                boundary = block.find(b"\n\n", at)
                end = len(block) if boundary < 0 else boundary + 2
                out.append(self._events(split_events(block[at:end])))
                run_bytes = min(_SHORT_RUN_BYTES, self._run_bytes)  # where one needed a look, the next may
            at = end
        return b"".join(out)

    def _is_over(self) -> bool:
        return self.fault is not None or self.phase is StreamPhase.DONE

    def _events(self, events: list[bytes]) -> bytes:
        out: list[bytes] = []
        for event in events:
            try:
                self._event(event, out)
            except UpstreamError as error:
                self.fault = error
            if self._is_over():
                break
        return b"".join(out)

    def _event(self, event: bytes, out: list[bytes]) -> None:
        if len(event) > self._max_event_bytes:
            raise self._too_long()
        if self.phase is StreamPhase.PREFACE and event.startswith(_BYTE_ORDER_MARK):  # hides a field from some readers
            raise UpstreamError("invalid_response", "the stream begins with a byte order mark")
        data = event_data(event)
        if data is None:
            self._pass_unread(event, out)
            return
        if data.strip() == _DONE:
            if self.phase is not StreamPhase.HOLDING:
                raise UpstreamError("stream_broken", "the stream said [DONE] before its finish chunk")
            self._done_event = event
            self.phase = StreamPhase.DONE
            return
        chunk: _Chunk | None
        try:
            chunk = _decode_chunk(data)
        except _UNREADABLE as error:
            if self.phase is StreamPhase.PREFACE:
                raise UpstreamError("invalid_response", "the stream's first event is not a JSON object") from error
            chunk = _read_loosely(data)
        if chunk is None:
            self._pass_unread(event, out)
            return
        if b"\n" in data and any(map(_tells, data.split(b"\n"))):  # some callers read each line for itself
            raise _unclear()
        self._chunk(chunk, event, out)

    def _chunk(self, chunk: _Chunk, event: bytes, out: list[bytes]) -> None:
        if chunk.error is not None:
            raise UpstreamError("stream_broken", "the upstream sent an error event")
        choices = chunk.choices or []
        finishes = chunk.finishes
        if chunk.tresor is not msgspec.UNSET and not finishes:
            raise _foreign_member()
        if isinstance(chunk.usage, dict):
            self.usage = _parse_usage(chunk.usage)
            if not choices:
                if self._pass_usage:
                    self._pass_beside(event, out)
                return
        if finishes:
            self._finished.update(str(choice.index) for choice in choices if choice.finish_reason is not None)
            self._pass_content(b"", out)
            self._replaced = chunk.tresor is not msgspec.UNSET
            self._finish_event = _splice_event(event, self._extension, replace=self._replaced)
            self.phase = StreamPhase.HOLDING
            self._hold(event)
        elif self.phase is StreamPhase.HOLDING and all(str(choice.index) in self._finished for choice in choices):
            self._hold(event)
        else:
            self._pass_content(event, out)

    def _pass_content(self, event: bytes, out: list[bytes]) -> None:
        """Let content go on, and before it whatever was held: it was not the end after all."""
        if self._replaced:
            raise _foreign_member()
        out.extend(self._held)
        self._held.clear()
        self._held_bytes = 0
        self.phase = StreamPhase.CONTENT
        out.append(event)

    def _pass_beside(self, event: bytes, out: list[bytes]) -> None:
        """Let a comment, a usage chunk or what nobody can read go on; it neither begins nor continues content."""
        if self.phase is StreamPhase.CONTENT:
            out.append(event)
        else:
            self._hold(event)

    def _pass_unread(self, event: bytes, out: list[bytes]) -> None:
        """Let go on what is no JSON object, unless some caller could take it for one, or for the end."""
        if any(telling in event for telling in _NOT_UNREAD):
            raise _unclear()
        self._pass_beside(event, out)

    def _hold(self, event: bytes) -> None:
        self._held.append(event)
        self._held_bytes += len(event)
        if self._held_bytes > self._max_event_bytes:
            raise UpstreamError("invalid_response", f"more than {self._max_event_bytes} bytes stand where none belong")

    def _too_long(self) -> UpstreamError:
        return UpstreamError("invalid_response", f"an event of the stream is longer than {self._max_event_bytes} bytes")


def _last_events(rest: bytes) -> list[bytes]:
    """Return the events that the end of a body makes of what was waiting.

    Some servers leave out the last blank line, so an event without it counts if it can be read; one that was cut does
    not, as for every other reader of event streams (WHATWG HTML 9.2.6).
    """
    events = split_events(rest)
    if not events or (closed := close_event(events[-1])) == events[-1]:
        return events
    data = event_data(closed)
    if data is None or (data.strip() != _DONE and not _is_readable(data)):
        return events[:-1]
    return [*events[:-1], closed]


def _is_readable(data: bytes) -> bool:
    try:
        _decode_chunk(data)
    except _UNREADABLE:
        return False
    return True


def _read_loosely(data: bytes) -> _Chunk | None:
    """Read what is no chunk by its form as the most tolerant caller would; None where nobody takes it for an object."""
    try:
        text = data.decode("utf-8", "replace")
        value = json.loads(text, strict=False)  # noqa: TID251 - callers take NaN and lone surrogates, too
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    objects = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    return _Chunk(
        choices=[_Choice(choice.get("index", 0), choice.get("finish_reason")) for choice in objects],
        usage=value.get("usage"),
        error=value.get("error"),
        tresor=value.get("tresor", msgspec.UNSET),
    )


def _tells(line: bytes) -> bool:
    """Whether a line of an event's data is, by itself, something that ends or spoils a stream."""
    chunk = _read_loosely(line)
    if chunk is None:
        return line.lstrip().startswith(_DONE)
    return chunk.finishes or chunk.error is not None or chunk.tresor is not msgspec.UNSET


def _unclear() -> UpstreamError:
    return UpstreamError("stream_broken", "an event of the stream is not the same to every reader")


def _foreign_member() -> UpstreamError:
    return UpstreamError("invalid_response", "a chunk before the last carries `tresor`, the router's own word")


def _end_of_plain_content(block: bytes, at: int, run_bytes: int) -> int:
    r"""Return where the run of events ends, from `at`, that need no look: no finish, usage, error, `[DONE]`, `\u00`.

    Inside a JSON string every quotation mark is escaped, so what is looked for can only be a member; `\u00` could hide
    a letter of its name.  The run is bounded, so that events that do need a look cost no quadratic time.
    """
    upto = min(len(block), at + run_bytes)
    for telling, harmless in _TELLING:
        # Counting is several times as fast as looking at each; mostly all of them are harmless.
        end = upto + _OVERLAP_BYTES
        count = block.count(telling, at, end)
        for spelling in harmless:
            if count:
                count -= block.count(spelling, at, end)
        if count:
            upto = min(upto, _first(block, telling, harmless, at))
    boundary = block.rfind(b"\n\n", at, upto)
    return at if boundary < 0 else boundary + 2


def _first(block: bytes, telling: bytes, harmless: tuple[bytes, ...], at: int) -> int:
    """Return where `telling` stands for the first time behind `at` and is spelt otherwise than `harmless`."""
    found = block.find(telling, at)
    while block.startswith(harmless, found):
        if (further := block.find(telling, found + 1)) < 0:
            return len(block)
        found = further
    return found


def _splice_object(body: bytes, extension: bytes, *, replace: bool) -> bytes:
    if replace:
        members = parse_members(body)
        edits = remove_members(members, _TRESOR)
        edits.append(append_member(members, '"tresor"', extension.decode(), removed=_TRESOR))
        return apply_edits(members, edits)
    close = body.rindex(b"}")
    comma = b"" if _EMPTY_OBJECT.match(body) else b","
    return b"".join((body[:close], comma, b'"tresor":', extension, body[close:]))


def _splice_event(event: bytes, extension: bytes, *, replace: bool) -> bytes:
    """Splice into the JSON object of an event, leaving its other fields and its line ends as they came.

    Raises:
        UpstreamError: the event has a `tresor` member, and its JSON is too loose for it to be replaced.
    """
    lines = event.splitlines(keepends=True)
    if not replace:
        # In the last data line that holds a brace; behind a comma, for a finish chunk has its choices.
        at = max(number for number, line in enumerate(lines) if is_data_line(line) and b"}" in line)
        brace = lines[at].rindex(b"}")
        lines[at] = b"".join((lines[at][:brace], b',"tresor":', extension, lines[at][brace:]))
        return b"".join(lines)
    try:
        spliced = _splice_object(event_data(event) or b"", extension, replace=True)
    except JsonError as error:
        raise UpstreamError("invalid_response", "the finish chunk is not strict JSON") from error
    first, *others = (number for number, line in enumerate(lines) if is_data_line(line))
    # A line end between two tokens of JSON is white space like any other.
    lines[first] = b"data: " + spliced.replace(b"\n", b" ") + lines[first][len(lines[first].rstrip(b"\r\n")) :]
    return b"".join(line for number, line in enumerate(lines) if number not in others)


def _parse_usage(usage: object) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    counts = [usage.get(name) for name in Usage.__struct_fields__]
    return Usage(*[count if type(count) is int and 0 <= count < _MAX_COUNT else None for count in counts])
