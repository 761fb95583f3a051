"""Splitting of event streams: whole events whatever the reads, and their data as WHATWG HTML has it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.wire.sse import EventSplitter, close_event, event_data, split_events

LINE_END = re.compile(rb"\r\n|\n|\r")
streams = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data", b": c", b"id: 1", b"x", b"\n", b"\n", b"\r", b"\r\n", b"\r\n", b"\xff"]
    )
).map(b"".join)


def reference(stream: bytes) -> list[bytes]:
    """Return the data of all dispatched events, by the algorithm of WHATWG HTML 9.2.6."""
    dispatched: list[bytes] = []
    lines: list[bytes] = []
    for line in LINE_END.split(stream)[:-1]:
        if not line:
            if lines:
                dispatched.append(b"\n".join(lines))
            lines = []
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return dispatched


@st.composite
def splits(draw: st.DrawFn) -> list[bytes]:
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def events_of(parts: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for part in parts for event in split_events(splitter.feed(part))]
    return events, splitter.close()


@given(parts=splits())
def test_nothing_is_lost(parts: list[bytes]) -> None:
    events, rest = events_of(parts)
    assert b"".join(events) + rest == b"".join(parts)


@given(parts=splits())
def test_events_do_not_depend_on_the_reads(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    events, rest = events_of(parts)
    for other in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        assert [e for e in events_of(other)[0] if e.strip(b"\r\n")] == [e for e in events if e.strip(b"\r\n")]
        assert events_of(other)[1] == rest


@given(parts=splits())
def test_data_is_that_of_the_standard(parts: list[bytes]) -> None:
    events, rest = events_of(parts)
    if rest and close_event(rest) == rest:  # its last CR could have been half of a CRLF
        events.append(rest)
    assert [data for event in events if (data := event_data(event)) is not None] == reference(b"".join(parts))


@pytest.mark.parametrize(
    ("event", "closed"),
    [
        (b"data: x", b"data: x\n\n"),
        (b"data: x\n", b"data: x\n\n"),
        (b"data: x\r", b"data: x\r\r"),
        (b"data: x\r\n", b"data: x\r\n\n"),
        (b"data: x\r\n\r\n", b"data: x\r\n\r\n"),
        (b"data: x\r\r", b"data: x\r\r"),
        (b"data: x\n\r", b"data: x\n\r"),
    ],
)
def test_close_event(event: bytes, closed: bytes) -> None:
    assert close_event(event) == closed
    assert split_events(closed) == [closed]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x\r\r", b"x"),
        (b"data: x\ndata: y\n\n", b"x\ny"),
        (b"data\ndata\n\n", b"\n"),
        (b"data:\n\n", b""),
        (b"id: 1\ndata: x\n\n", b"x"),
        (b"data: x\ny", b"x"),
        (b": data: x\n\n", None),
        (b"datax: x\n\n", None),
        (b" data: x\n\n", None),
        (b"\n", None),
    ],
)
def test_event_data(event: bytes, data: bytes | None) -> None:
    assert event_data(event) == data


def test_what_waits_is_counted() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"\n\r\ndata: x") == b"\n\r\n"
    assert splitter.waiting == 7
    assert splitter.feed(b"\n\ndata") == b"data: x\n\n"
    assert splitter.waiting == 4
