"""The recorder of streams: however the bytes arrive, the same bytes leave and the same is recorded."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tresor.errors import UpstreamError
from tresor.receipts import recorder as recorder_module
from tresor.receipts.recorder import StreamPhase, StreamRecorder, Usage, splice_answer

EXTENSION = b'{"receipt_id":"7c9e6679-7425-40de-944b-e07fc1f90ae7","failover":false}'
SPLICE = b',"tresor":' + EXTENSION
LARGE = 8 << 20


@dataclass(frozen=True)
class Recording:
    """Everything that a recorder says and does."""

    out: bytes
    tail: bytes | None
    phase: StreamPhase
    fault: str | None
    usage: Usage
    upstream_response_digest: str
    response_digest: str


def record(parts: Iterable[bytes], *, pass_usage: bool = True, max_event_bytes: int = LARGE) -> Recording:
    recorder = StreamRecorder(extension=EXTENSION, pass_usage=pass_usage, max_event_bytes=max_event_bytes)
    out = b"".join([recorder.feed(part) for part in parts]) + recorder.end()
    tail = recorder.tail() if recorder.fault is None else None
    return Recording(
        out=out,
        tail=tail,
        phase=recorder.phase,
        fault=None if recorder.fault is None else f"{recorder.fault.reason}: {recorder.fault}",
        usage=recorder.usage,
        upstream_response_digest=recorder.upstream_response_digest,
        response_digest=recorder.response_digest,
    )


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sse(data: str | bytes, end: bytes = b"\n") -> bytes:
    return b"data: " + (data.encode() if isinstance(data, str) else data) + end + end


def chunk(text: str = "x", *, index: int = 0, finish: str | None = None, **members: Any) -> str:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"id": "c1", "choices": [choice], **members}, separators=(",", ":"))


CONTENT = sse(chunk("Hello"))
MORE = sse(chunk(" world"))
FINISH = sse(chunk("", finish="stop"))
COUNTS = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
USAGE = sse(json.dumps({"id": "c1", "choices": [], "usage": COUNTS}))
DONE = b"data: [DONE]\n\n"
FINISH_SPLICED = FINISH.replace(b"}\n\n", SPLICE + b"}\n\n")


# --- The ways a stream can go, one by one ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "out", "tail"),
    [
        pytest.param(CONTENT + MORE + FINISH + DONE, CONTENT + MORE, FINISH_SPLICED + DONE, id="plain"),
        pytest.param(CONTENT + FINISH, CONTENT, FINISH_SPLICED + DONE, id="done-missing"),
        pytest.param(CONTENT + FINISH + b"data: [DONE]", CONTENT, FINISH_SPLICED + DONE, id="done-without-blank-line"),
        pytest.param(
            CONTENT + FINISH + b"data: [DONE]\r\n",
            CONTENT,
            FINISH_SPLICED + b"data: [DONE]\r\n\n",
            id="done-with-one-line-end",
        ),
        pytest.param(CONTENT + FINISH + b'data: {"cho', CONTENT, FINISH_SPLICED + DONE, id="cut-behind-finish"),
        pytest.param(CONTENT + FINISH + USAGE + DONE, CONTENT, FINISH_SPLICED + USAGE + DONE, id="usage-behind"),
        pytest.param(USAGE + CONTENT + FINISH + DONE, USAGE + CONTENT, FINISH_SPLICED + DONE, id="usage-before"),
        pytest.param(
            b": hi\n\n" + CONTENT + b": hi\n\n" + FINISH + b": hi\n\n" + DONE,
            b": hi\n\n" + CONTENT + b": hi\n\n",
            FINISH_SPLICED + b": hi\n\n" + DONE,
            id="comments",
        ),
        pytest.param(
            CONTENT + FINISH + sse("no json") + DONE, CONTENT, FINISH_SPLICED + sse("no json") + DONE, id="junk-behind"
        ),
        pytest.param(CONTENT + FINISH + DONE + CONTENT, CONTENT, FINISH_SPLICED + DONE, id="data-behind-done"),
        pytest.param(CONTENT + FINISH + DONE + b"data: {", CONTENT, FINISH_SPLICED + DONE, id="cut-behind-done"),
        pytest.param(FINISH + DONE, b"", FINISH_SPLICED + DONE, id="finish-first"),
        pytest.param(CONTENT + FINISH + MORE + DONE, CONTENT, FINISH_SPLICED + MORE + DONE, id="late-content-held"),
        pytest.param(
            CONTENT + FINISH + FINISH + DONE, CONTENT + FINISH, FINISH_SPLICED + DONE, id="finish-twice-last-counts"
        ),
        pytest.param(
            CONTENT + sse('{"choices":[{"index":[],"finish_reason":5}]}') + DONE,
            CONTENT,
            sse('{"choices":[{"index":[],"finish_reason":5}]' + SPLICE.decode() + "}") + DONE,
            id="finish-in-another-form",
        ),
        pytest.param(
            CONTENT + sse('{"choices":[{"finish_reason":"stop"}],"n":NaN}') + DONE,
            CONTENT,
            sse('{"choices":[{"finish_reason":"stop"}],"n":NaN' + SPLICE.decode() + "}") + DONE,
            id="finish-beside-nan",
        ),
        pytest.param(
            CONTENT + sse('{"choices":5}') + sse('{"choices":[1]}') + FINISH + DONE,
            CONTENT + sse('{"choices":5}') + sse('{"choices":[1]}'),
            FINISH_SPLICED + DONE,
            id="no-chunk",
        ),
        pytest.param(
            FINISH + sse(chunk("b", index=1)) + sse(chunk("", index=1, finish="length")) + DONE,
            FINISH + sse(chunk("b", index=1)),
            sse(chunk("", index=1, finish="length")).replace(b"}\n\n", SPLICE + b"}\n\n") + DONE,
            id="two-choices",
        ),
        pytest.param(
            CONTENT + sse(chunk("", finish="stop", usage=COUNTS)) + DONE,
            CONTENT,
            sse(chunk("", finish="stop", usage=COUNTS)).replace(b"}\n\n", SPLICE + b"}\n\n") + DONE,
            id="usage-on-finish",
        ),
        pytest.param(
            CONTENT + b'id: 7\r\nevent: x\r\ndata: {"choices":\r\ndata: [{"finish_reason":"stop"}]\r\ndata: }\r\n\r\n',
            CONTENT,
            b'id: 7\r\nevent: x\r\ndata: {"choices":\r\ndata: [{"finish_reason":"stop"}]\r\ndata: '
            + SPLICE
            + b"}\r\n\r\n"
            + DONE,
            id="finish-of-many-lines",
        ),
        pytest.param(
            CONTENT + b'data: {"tresor":1,\rdata: "choices":[{"finish_reason":"stop"}]}\rid: 9\r\r' + DONE,
            CONTENT,
            b'data: {"choices":[{"finish_reason":"stop"}]' + SPLICE + b"}\rid: 9\r\r" + DONE,
            id="finish-has-a-tresor-member",
        ),
        pytest.param(
            b'data: {"choices":[{"\\u0066inish_reason":"stop"}]}\n\n' + DONE,
            b"",
            b'data: {"choices":[{"\\u0066inish_reason":"stop"}]' + SPLICE + b"}\n\n" + DONE,
            id="escaped-name",
        ),
        pytest.param(
            (CONTENT + FINISH + DONE).replace(b"\n", b"\r"),
            CONTENT.replace(b"\n", b"\r"),
            (FINISH_SPLICED + DONE).replace(b"\n", b"\r"),
            id="cr-lines",
        ),
    ],
)
def test_whole_stream(stream: bytes, out: bytes, tail: bytes) -> None:
    recording = record([stream])
    assert (recording.fault, recording.phase) == (None, StreamPhase.DONE)
    assert recording.out == out
    assert recording.tail == tail
    assert recording == record(stream[i : i + 1] for i in range(len(stream)))


@pytest.mark.parametrize(
    ("stream", "out", "fault"),
    [
        pytest.param(b"", b"", "stream_broken", id="nothing"),
        pytest.param(b": only a comment\n\n", b"", "stream_broken", id="comment-only"),
        pytest.param(CONTENT, CONTENT, "stream_broken", id="finish-missing"),
        pytest.param(CONTENT + DONE, CONTENT, "stream_broken", id="done-without-finish"),
        pytest.param(CONTENT + b'data: {"choi', CONTENT, "stream_broken", id="cut-in-event"),
        pytest.param(sse("no json"), b"", "invalid_response", id="first-is-no-json"),
        pytest.param(sse("[1]"), b"", "invalid_response", id="first-is-no-object"),
        pytest.param(sse('{"choices":5}') + CONTENT, b"", "invalid_response", id="first-has-another-form"),
        pytest.param(b"\xef\xbb\xbf" + CONTENT + FINISH, b"", "invalid_response", id="byte-order-mark"),
        pytest.param(sse('{"error":{}}') + CONTENT, b"", "stream_broken", id="error-first"),
        *[
            pytest.param(CONTENT + unclear + FINISH + DONE, CONTENT, "stream_broken", id=f"unclear-{number}")
            for number, unclear in enumerate(
                [
                    sse("[DONE] x"),
                    sse(" [DONE]]"),
                    b"data: [DONE]\ndata: x\n\n",
                    b'data: {"x":\ndata: {"tresor":{"receipt_id":"x"}}\ndata: }\n\n',
                    b'data: {"x":\ndata: {"error":{}}\ndata: }\n\n',
                    b'data: {"x":\ndata: {"choices":[{"finish_reason":"stop"}]}\ndata: }\n\n',
                    b"data: {\ndata: [DONE]\ndata: }\n\n",
                    b'\xef\xbb\xbfdata: {"tresor":{"receipt_id":"x"},"choices":[]}\n\n',
                    b'id: 1\n\xef\xbb\xbfdata: {"error":{}}\n\n',
                    b': x\x0bdata: {"tresor":{"receipt_id":"x"}}\n\n',
                    b": x\xe2\x80\xa8data: [DONE]\n\n",
                    sse(b'\xc2\xa0{"tresor":{"receipt_id":"x"}}'),
                    sse(b'{"tresor":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
                    sse(b'{"tresor":1,"choices":[{"index":' + b"1" * 5000 + b"}]}"),
                    sse(b'{"error":{"message":"x\xff"}}'),
                ]
            )
        ],
        pytest.param(CONTENT + sse('{"error":{},"n":NaN}') + MORE, CONTENT, "stream_broken", id="error-beside-nan"),
        pytest.param(CONTENT + sse('{"error":{},"choices":5}'), CONTENT, "stream_broken", id="error-in-another-form"),
        pytest.param(CONTENT + sse('{"error":{}}') + MORE, CONTENT, "stream_broken", id="error-later"),
        pytest.param(CONTENT + sse('{"\\u0065rror":{}}') + MORE, CONTENT, "stream_broken", id="error-escaped"),
        pytest.param(CONTENT + FINISH + sse('{"error":{}}'), CONTENT, "stream_broken", id="error-behind-finish"),
        pytest.param(
            CONTENT + sse('{"tresor":1,"a":1,"a":2,"choices":[{"finish_reason":"stop"}]}') + DONE,
            CONTENT,
            "invalid_response",
            id="tresor-member-in-loose-json",
        ),
        pytest.param(sse(b'{"usage":' + b"[" * 100_000), b"", "invalid_response", id="nested-without-end"),
        pytest.param(
            CONTENT + sse(b'{"usage":' + b"[" * 100_000) + MORE,
            CONTENT + sse(b'{"usage":' + b"[" * 100_000) + MORE,
            "stream_broken",
            id="nested-without-end-later",
        ),
    ],
)
def test_broken_stream(stream: bytes, out: bytes, fault: str) -> None:
    recording = record([stream])
    assert recording.fault is not None
    assert recording.fault.startswith(fault + ": ")
    assert recording.out == out
    assert recording.tail is None
    assert recording == record(stream[i : i + 1] for i in range(len(stream)))


@pytest.mark.parametrize("stream", [CONTENT + FINISH + USAGE + DONE, USAGE + CONTENT + FINISH + DONE, FINISH + USAGE])
def test_usage_chunk_is_dropped_unless_asked_for(stream: bytes) -> None:
    recording = record([stream], pass_usage=False)
    assert b"usage" not in recording.out + (recording.tail or b"")
    assert recording.usage == Usage(5, 7, 12)
    assert recording.upstream_response_digest == sha256(stream)


@pytest.mark.parametrize("odd", ["NaN", "1e999", '"\\ud800"'])
def test_a_usage_chunk_that_not_everybody_can_read_is_one(odd: str) -> None:
    usage = sse('{"choices":[],"usage":{"prompt_tokens":5,"odd":' + odd + "}}")
    recording = record([CONTENT + FINISH + usage + DONE], pass_usage=False)
    assert recording.tail == FINISH_SPLICED + DONE
    assert recording.usage == Usage(5, None, None)


@pytest.mark.parametrize("counts", [{"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 1.0}, {}])
def test_what_is_no_count_is_unknown(counts: dict[str, Any]) -> None:
    usage = sse(json.dumps({"choices": [], "usage": counts}))
    assert record([CONTENT + FINISH + usage + DONE]).usage == Usage(None, None, None)


@pytest.mark.parametrize("step", [1 << 20, 65_536, 997])
def test_event_of_a_mebibyte(step: int) -> None:
    stream = CONTENT + sse(chunk("y" * (1 << 20))) + FINISH + DONE
    recording = record(stream[i : i + step] for i in range(0, len(stream), step))
    assert recording.out + (recording.tail or b"") == stream.replace(FINISH, FINISH_SPLICED)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("limit_less_length", "fault"), [(0, None), (-1, "invalid_response")])
def test_longest_event(step: int, limit_less_length: int, fault: str | None) -> None:
    longest = sse(chunk("y" * 500))
    stream = CONTENT + longest + FINISH + DONE
    recording = record(
        (stream[i : i + step] for i in range(0, len(stream), step)), max_event_bytes=len(longest) + limit_less_length
    )
    assert (recording.fault and recording.fault.partition(":")[0]) == fault
    assert recording.out == (CONTENT if fault else CONTENT + longest)


@pytest.mark.parametrize("name", ['"tresor"', '"\\u0074resor"'])
@pytest.mark.parametrize(
    "rest",
    [
        '"choices":[{"index":0}]',
        '"choices":[],"usage":{"prompt_tokens":1}',
        '"choices":[],"usage":{"prompt_tokens":1e999}',
        '"choices":[{"index":"0"}]',
        '"choices":5',
        '"n":NaN',
        '"s":"a\tb"',
        '"s":"\\ud800"',
    ],
)
@pytest.mark.parametrize("behind_finish", [False, True])
def test_an_upstream_does_not_speak_in_the_routers_name(name: str, rest: str, *, behind_finish: bool) -> None:
    foreign = sse("{" + name + ':{"receipt_id":"x"},' + rest + "}")
    recording = record([CONTENT + FINISH + foreign + DONE] if behind_finish else [CONTENT + foreign + FINISH + DONE])
    assert str(recording.fault).startswith("invalid_response")
    assert recording.out == CONTENT


@pytest.mark.parametrize("behind", [FINISH, sse(chunk("late", index=1))])
def test_a_finish_chunk_in_the_routers_name_that_is_not_the_last_goes_nowhere(behind: bytes) -> None:
    foreign = sse(chunk("", finish="stop", tresor={"receipt_id": "x"}))
    recording = record([CONTENT + foreign + behind + DONE])
    assert str(recording.fault).startswith("invalid_response")
    assert recording.out == CONTENT


def test_what_is_held_is_bounded() -> None:
    assert record([CONTENT + FINISH + b": x\n\n" * 100 + DONE], max_event_bytes=400).fault is not None


def test_an_event_without_end_is_given_up_at_the_limit() -> None:
    recorder = StreamRecorder(extension=EXTENSION, pass_usage=True, max_event_bytes=1000)
    assert recorder.feed(CONTENT + b"x" * 1000) == CONTENT
    before = recorder.fault
    recorder.feed(b"x")
    after = recorder.fault
    assert before is None
    assert after is not None
    assert after.reason == "invalid_response"


def test_bytes_behind_a_fault_are_hashed_and_go_nowhere() -> None:
    recorder = StreamRecorder(extension=EXTENSION, pass_usage=True, max_event_bytes=LARGE)
    recorder.feed(sse("no json"))
    assert recorder.feed(CONTENT) == b""
    assert recorder.upstream_response_digest == sha256(sse("no json") + CONTENT)
    assert recorder.response_digest == sha256(b"")


def test_what_the_relay_adds_is_hashed() -> None:
    recorder = StreamRecorder(extension=EXTENSION, pass_usage=True, max_event_bytes=LARGE)
    sent = recorder.feed(CONTENT) + recorder.comment() + recorder.end() + recorder.broken_tail(b'{"error":{}}')
    assert sent == CONTENT + b": keep-alive\n\n" + b'data: {"error":{}}\n\n'
    assert recorder.response_digest == sha256(sent)


def test_only_a_whole_stream_has_a_tail() -> None:
    recorder = StreamRecorder(extension=EXTENSION, pass_usage=True, max_event_bytes=LARGE)
    recorder.feed(CONTENT + FINISH)
    with pytest.raises(RuntimeError, match="HOLDING"):
        recorder.tail()


# --- Any stream, any split ------------------------------------------------------------------------------------------

texts = st.sampled_from(
    [
        "",
        "x",
        'say "finish_reason":"stop"',
        "[DONE]",
        '"usage":{}',
        "\x00\n",
        "\u00e9\U0001f600",
        "\\u00",
        '{"error":1}',
    ]
)
line_ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")])


@st.composite
def content_chunks(draw: st.DrawFn) -> str:
    choices: list[dict[str, Any]] = [
        {"index": draw(st.integers(0, 2)), "delta": {"content": draw(texts)}}
        | draw(st.sampled_from([{}, {"finish_reason": None}, {"finish_reason": None}, {"finish_reason": "stop"}]))
        for _ in range(draw(st.integers(0, 2)))
    ]
    members: dict[str, Any] = draw(
        st.sampled_from([{}, {}, {"usage": None}, {"usage": COUNTS}, {"error": None}, {"tresor": {"a": 1}}])
    )
    document = json.dumps(
        {"choices": choices, **members}, separators=draw(separators), ensure_ascii=draw(st.booleans())
    )
    if draw(st.booleans()):
        return document
    name = draw(st.sampled_from(["finish_reason", "usage", "error", "choices"]))
    return document.replace(f'"{name}"', f'"\\u{ord(name[0]):04x}{name[1:]}"')


odd_data = st.sampled_from(
    [
        "[DONE]",
        " [DONE] ",
        "[DONE",
        "",
        "null",
        "{",
        '{"choices":5}',
        '{"choices":[{"index":"0"}]}',
        '{"error":{"message":"x"}}',
        '{"choices":[],"usage":{"prompt_tokens":3}}',
        '{"usage":{"prompt_tokens":4,"completion_tokens":true,"total_tokens":-1}}',
        '{"choices":[{"index":0,"finish_reason":"length"}]}',
        '{"choices":[{"finish_reason":null,"finish_reason":"stop"}],"tresor":0,"tresor":1}',
        '{"a":"\\ud800"}',
        '{"error":1',
        "[DONE] x",
        '"tresor" "finish_reason":"stop" \\u0066',
        '{"choices":[{"index":0,"finish_reason":"stop"}],"n":NaN}',
        '{"x":\n{"tresor":1}\n}',
        '{"finish_reason":null,"x":[',
    ]
)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    end = draw(line_ends)
    data = draw(st.one_of(content_chunks(), content_chunks(), odd_data)).encode()
    lines: Sequence[bytes] = draw(
        st.sampled_from(
            [
                [b"data: " + data],
                [b"data: " + data],
                [b"data:" + data],
                [b"data: " + part for part in data.replace(b",", b",\n").split(b"\n")],
                [b"event: message", b"data: " + data, b"id: 3"],
                [b": comment", b"data: " + data],
                [b": comment"],
                [b"retry: 10"],
                [b"data"],
                [b"\xef\xbb\xbfdata: " + data],
                [b"", b"data: " + data],
                [b"\xff\xfe"],
            ]
        )
    )
    return b"".join(line + end for line in lines) + end


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    stream = b"".join(draw(st.lists(events(), max_size=8)))
    if draw(st.booleans()):
        stream = CONTENT + stream
    if draw(st.booleans()):
        stream += FINISH + DONE
    return stream[: draw(st.integers(0, len(stream)))] if draw(st.integers(0, 3)) == 0 else stream


@st.composite
def splits(draw: st.DrawFn) -> list[bytes]:
    stream = draw(streams())
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def all_slow(record_it: Callable[[], Recording]) -> Recording:
    """Record with the fast path switched off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "_end_of_plain_content", lambda _block, at, _run_bytes: at)
        return record_it()


def in_short_runs(record_it: Callable[[], Recording]) -> Recording:
    """Record with a fast path whose runs end inside most events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "_RUN_BYTES", 120)
        return record_it()


@given(parts=splits(), pass_usage=st.booleans(), limit=st.sampled_from([LARGE, LARGE, 150]))
@example(parts=[CONTENT + FINISH + DONE, b"data: {}"], pass_usage=True, limit=LARGE)
@example(parts=[CONTENT, sse(chunk('"usage":{}')) + USAGE, FINISH], pass_usage=False, limit=LARGE)
@settings(deadline=None, max_examples=300)
def test_any_split_records_the_same(parts: list[bytes], pass_usage: bool, limit: int) -> None:
    stream = b"".join(parts)
    whole = all_slow(lambda: record([stream], pass_usage=pass_usage, max_event_bytes=limit))
    assert record(parts, pass_usage=pass_usage, max_event_bytes=limit) == whole
    assert in_short_runs(lambda: record(parts, pass_usage=pass_usage, max_event_bytes=limit)) == whole
    single = record((stream[i : i + 1] for i in range(len(stream))), pass_usage=pass_usage, max_event_bytes=limit)
    assert single == whole


@given(stream=streams())
@settings(deadline=None, max_examples=300)
def test_nothing_is_changed_but_the_splice(stream: bytes) -> None:
    recording = record([stream])
    assert recording.upstream_response_digest == sha256(stream)
    assert recording.response_digest == sha256(recording.out + (recording.tail or b""))
    tail = recording.tail or b""
    assert tail.count(EXTENSION) == (recording.tail is not None)
    if b"tresor" not in stream:  # line ends may be added at a missing end, and a whole [DONE]
        given_back = (recording.out + tail.replace(SPLICE, b"")).removesuffix(DONE)
        assert stream.startswith(given_back.rstrip(b"\r\n"))


@given(middle=st.lists(events().filter(lambda event: b"DONE" not in event and b"tresor" not in event), max_size=8))
@settings(deadline=None, max_examples=200)
def test_nothing_is_lost(middle: list[bytes]) -> None:
    stream = CONTENT + b"".join(middle) + FINISH + DONE
    recording = record([stream])
    if recording.tail is not None:
        assert recording.out + recording.tail.replace(SPLICE, b"") == stream


@given(stream=streams())
@settings(deadline=None, max_examples=100)
def test_the_extension_is_the_last_member_of_the_last_finish_chunk(stream: bytes) -> None:
    tail = record([stream]).tail
    if tail is not None:
        finish = tail[: tail.index(EXTENSION) + len(EXTENSION)].splitlines()
        document = "\n".join(line.partition(b":")[2].decode() for line in finish if line.startswith(b"data"))
        decoded = json.JSONDecoder().decode(document + "}")
        assert list(decoded)[-1] == "tresor"
        assert decoded["tresor"] == json.JSONDecoder().decode(EXTENSION.decode())
        assert any(choice.get("finish_reason") for choice in decoded["choices"])


# --- Answers that are no streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "spliced"),
    [
        (b"{}", b'{"tresor":' + EXTENSION + b"}"),
        (b" { } \n", b' { "tresor":' + EXTENSION + b"} \n"),
        (b'{"a":"{"}', b'{"a":"{"' + SPLICE + b"}"),
        (b'{"a":{}}', b'{"a":{}' + SPLICE + b"}"),
        (b'{"a":1.0 }', b'{"a":1.0 ' + SPLICE + b"}"),
        (b'{"tresor":{"x":1},"a":1e2}', b'{"a":1e2' + SPLICE + b"}"),
        (b'{"\\u0074resor":1}', b'{"tresor":' + EXTENSION + b"}"),
    ],
)
def test_splice_answer(body: bytes, spliced: bytes) -> None:
    assert splice_answer(body, EXTENSION) == (spliced, Usage())


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"{}x", b'{"error":{}}', b'{"tresor":1,"a":1,"a":1}', b'{"a":' + b"[" * 100_000, b"\xff", b"1"],
)
def test_splice_answer_refuses(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        splice_answer(body, EXTENSION)
    assert caught.value.reason == "invalid_response"


@given(
    body=st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(), st.just({}))).filter(
        lambda body: body.get("error") is None
    ),
    indent=st.sampled_from([None, 1]),
)
@settings(deadline=None)
def test_spliced_answer_is_the_answer_and_the_extension(body: dict[str, Any], indent: int | None) -> None:
    spliced, _ = splice_answer(json.dumps(body, indent=indent).encode(), EXTENSION)
    wanted = {name: value for name, value in body.items() if name != "tresor"}
    decoded = json.JSONDecoder().decode(spliced.decode())
    assert decoded == wanted | {"tresor": json.JSONDecoder().decode(EXTENSION.decode())}
