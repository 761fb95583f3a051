"""Forms of the transcription endpoint: parts that stay, stay byte for byte; what two parsers could read in two ways is
refused."""

import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.errors import RequestError
from tresor.wire.transcription import TranscriptionRequest, parse_transcription_request

TYPE = "multipart/form-data; boundary=B"
AUDIO = b"RIFF\x00\xff\r\n\r\n--b\r\n-B--\r\nB\n--B\n"


@dataclass(frozen=True)
class Part:
    name: str
    content: bytes
    head: bytes = b""

    def encode(self, boundary: bytes) -> bytes:
        """Return the part with its delimiter."""
        head = self.head or b'Content-Disposition: form-data; name="%b"' % self.name.encode()
        return b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, self.content)


FILE = Part("file", AUDIO, b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav')
MODEL = Part("model", b"m")


def form(*parts: Part, boundary: bytes = b"B", epilogue: bytes = b"\r\n") -> bytes:
    return b"".join(part.encode(boundary) for part in parts) + b"--" + boundary + b"--" + epilogue


def parse(body: bytes, content_type: str = TYPE) -> TranscriptionRequest:
    return parse_transcription_request(body, content_type, 2)


def refusal(body: bytes, content_type: str = TYPE) -> tuple[int, str, str | None]:
    with pytest.raises(RequestError) as caught:
        parse(body, content_type)
    return caught.value.status, caught.value.code, caught.value.param


def test_what_is_read_and_forwarded() -> None:
    language = Part("language", b"de")
    parts = (
        Part("region", b"eu"),
        FILE,
        Part("failover", b"a"),
        MODEL,
        Part("failover[]", b"b"),
        language,
        Part("provider", b"p"),
    )
    request = parse(form(*parts))
    assert (request.model, request.region, request.provider, request.failover) == ("m", "eu", "p", ("a", "b"))
    assert (request.stream, request.content_type) == (False, TYPE)
    assert request.forwarded("up/m") == form(FILE, Part("model", b"up/m"), language)
    assert "RIFF" not in repr(request)


@pytest.mark.parametrize("stream", [b"false", b"False", b"0", b""])
def test_a_stream_that_is_not_wanted_is_passed_on(stream: bytes) -> None:
    body = form(FILE, MODEL, Part("stream", stream))
    assert parse(body).forwarded("m") == body


@pytest.mark.parametrize("region", [b"", b"auto"])
def test_an_empty_member_is_none(region: bytes) -> None:
    assert parse(form(FILE, MODEL, Part("region", region))).region == (region.decode() or None)


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ((MODEL,), "missing_field", "file"),
        ((FILE,), "missing_field", "model"),
        ((FILE, Part("model", b"")), "invalid_field", "model"),
        ((FILE, MODEL, MODEL), "invalid_field", "model"),
        ((FILE, Part("model", b"\xff")), "invalid_field", "model"),
        ((FILE, Part("model", b"m" * 4097)), "invalid_field", "model"),
        ((FILE, MODEL, Part("region", b"a"), Part("region", b"b")), "invalid_field", "region"),
        ((FILE, MODEL, Part("provider", b"\xc3\x28")), "invalid_field", "provider"),
        ((FILE, MODEL, Part("stream", b"true")), "invalid_field", "stream"),
        ((FILE, MODEL, Part("stream", b"1")), "invalid_field", "stream"),
        ((FILE, MODEL, Part("stream", b"false"), Part("stream", b"true")), "invalid_field", "stream"),
        ((FILE, MODEL, *[Part("failover", b"x")] * 3), "invalid_field", "failover"),
        ((FILE, MODEL, *[Part("x", b"")] * 255), "invalid_field", "body"),
    ],
)
def test_a_part_that_cannot_be_meant_is_named(parts: tuple[Part, ...], code: str, param: str) -> None:
    assert refusal(form(*parts)) == (400, code, param)


def test_so_many_parts_may_be() -> None:
    assert len(parse(form(FILE, MODEL, *[Part("x", b"")] * 254)).parts) == 256


@pytest.mark.parametrize(
    "content_type",
    ["", "multipart/form-data2; boundary=B", "multipart/mixed; boundary=B", "application/json", "boundary=B"],
)
def test_what_is_not_said_to_be_a_form_is_not_read(content_type: str) -> None:
    assert refusal(form(FILE, MODEL), content_type) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data;",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary",
        'multipart/form-data; boundary="B',
        'multipart/form-data; boundary="B "',
        'multipart/form-data; boundary="\\B"',
        "multipart/form-data; boundary=B; boundary=B",
        "multipart/form-data; boundary=B; Boundary=C",
        "multipart/form-data; boundary*=utf-8''B",
        "multipart/form-data; boundary=B; boundary*=utf-8''C",
        "multipart/form-data; boundary*0=B",
        "multipart/form-data; boundary*=B; boundary*0=B",
        "multipart/form-data; boundary*" + "9" * 5000 + "=B",
        "multipart/form-data; boundary=B C",
        "multipart/form-data; boundary=" + "B" * 71,
        "multipart/form-data; boundary=B\xe4",
        "multipart/form-data; boundary=B!",
        "multipart/form-data boundary=B",
    ],
)
def test_a_boundary_that_is_none_or_two_is_refused(content_type: str) -> None:
    status, _, param = refusal(form(FILE, MODEL), content_type)
    assert (status, param) in ((400, "Content-Type"), (415, None))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=B", b"B"),
        ("Multipart/Form-Data;BOUNDARY=B", b"B"),
        ('multipart/form-data; boundary="B"', b"B"),
        ("multipart/form-data; charset=utf-8; boundary=B;", b"B"),
        ('multipart/form-data; x="; boundary=C"; boundary=B', b"B"),
        ("multipart/form-data; boundary=----=_Part_1'()+_,-./:=?", b"----=_Part_1'()+_,-./:=?"),
        ('multipart/form-data; boundary="a b"', b"a b"),
        ("multipart/form-data; boundary=" + "B" * 70, b"B" * 70),
        ("multipart/form-data; boundary=--", b"--"),
    ],
)
def test_boundaries(content_type: str, boundary: bytes) -> None:
    body = form(FILE, MODEL, boundary=boundary)
    request = parse(body, content_type)
    assert request.forwarded("n") == form(FILE, Part("model", b"n"), boundary=boundary)
    assert request.content_type == content_type


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="model"',
        b'content-disposition:form-data;name="model"',
        b"Content-Disposition: form-data; name=model",
        b'Content-Disposition: form-data; NAME="model" ;',
        b'Content-Disposition: Form-Data; filename="a; name=x"; name="model"',
        b"Content-Type: text/plain\r\nContent-Disposition: form-data; name=model; filename*=utf-8''%e4\r\nX-Y:",
        'Content-Disposition: form-data; filename="gr\u00fc\u00df.wav"; name="model"'.encode(),
    ],
)
def test_a_name_is_read_in_every_form_that_clients_write(head: bytes) -> None:
    request = parse(form(FILE, Part("model", b"m", head)))
    assert request.model == "m"
    assert request.forwarded("n") == form(FILE, Part("model", b"n", head))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Content-Type: text/plain",
        b"Content-Disposition: form-data",
        b"Content-Disposition: form-data; filename=model",
        b"Content-Disposition: attachment; name=model",
        b'Content-Disposition: form-data; name="x"; name="model"',
        b'Content-Disposition: form-data; name="model"; Name="x"',
        b"Content-Disposition: form-data; name=x\r\nContent-Disposition: form-data; name=model",
        b"Content-Disposition: form-data; name*=utf-8''model",
        b"Content-Disposition: form-data; name=x; name*=utf-8''model",
        b"Content-Disposition: form-data; name*0=mo; name*1=del",
        b"Content-Disposition: form-data; name*=a; name*0=b",
        b"Content-Disposition: form-data; name*" + b"9" * 5000 + b"=model",
        b'Content-Disposition: form-data; name="mo\\del"',
        b'Content-Disposition: form-data; filename="a\\"; name=x"; name="model"',
        b'Content-Disposition: form-data; x="\\\\";p=";name=model;q=";name=other;r=""',
        b'Content-Disposition: form-data; name="file"' + b";" * 10_000,
        b"a:\r\n" * 3000 + b"Content-Disposition: form-data; name=model",
        b'Content-Disposition: form-data; name="model',
        b'Content-Disposition: form-data; name=mo"del"',
        b"Content-Disposition: form-data; name=mo del",
        b"Content-Disposition: form-data, name=model",
        b"Content-Disposition: form-data; name = model",
        b"Content-Disposition : form-data; name=model",
        b" Content-Disposition: form-data; name=model",
        b"X: y\r\n Content-Disposition: form-data; name=model",
        b"Content-Disposition: form-data;\r\n name=model",
        b"X: y\nContent-Disposition: form-data; name=model",
        b"X: y\rContent-Disposition: form-data; name=model",
        b"Content-Disposition: form-data; name=model\0",
        b"no colon\r\nContent-Disposition: form-data; name=model",
        b"Content-Disposition: form-data; name=x\r\n--B",
    ],
)
def test_a_part_whose_name_could_be_another_is_refused(head: bytes) -> None:
    body = form(FILE, MODEL)[: -len(b"--B--\r\n")] + b"--B\r\n" + head + b"\r\n\r\nm\r\n--B--\r\n"
    assert refusal(body) == (400, "invalid_field", "body")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B",
        b"--B--",
        b"--C--\r\n",
        b"preamble\r\n" + form(FILE, MODEL),
        b"\r\n" + form(FILE, MODEL),
        b"--B \r\n" + form(FILE, MODEL)[5:],
        form(FILE, MODEL).replace(b"--B--\r\n", b"--B"),
        form(FILE, MODEL).replace(b"--B--\r\n", b"--B-"),
        form(FILE, MODEL).replace(b"--B--\r\n", b"--B\r\n"),
        form(FILE, MODEL).replace(b"--B--\r\n", b""),
        form(FILE, MODEL).replace(b"\r\n--B--", b"\n--B--"),
        form(FILE, MODEL).replace(b"\r\n", b"\n"),
        form(Part("file", b"\r\n--Bit of audio"), MODEL),
        form(Part("file", b"\r\n--B \r\n"), MODEL),
    ],
)
def test_a_form_that_is_not_whole_is_refused(body: bytes) -> None:
    status, code, _ = refusal(body)
    assert (status, code) in ((400, "invalid_field"), (400, "missing_field"))


def test_a_form_cut_anywhere_before_its_end_is_refused() -> None:
    body = form(FILE, MODEL, Part("language", b"de"), epilogue=b"")
    for at in range(len(body)):
        assert refusal(body[:at])[0] == 400


def test_a_delimiter_needs_a_line_end_of_its_own() -> None:
    """Behind a head, some take it for the end of an empty part, and others for content."""
    empty = b'--B\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
    whole = form(FILE, MODEL)[: -len(b"--B--\r\n")]
    assert parse(whole + empty + b"\r\n--B--").forwarded("m") == whole + empty + b"\r\n--B--"
    assert refusal(whole + empty + b"--B--") == (400, "invalid_field", "body")
    assert refusal(empty + form(FILE, MODEL)) == (400, "invalid_field", "body")


contents = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b"--B", b"-", b"--", b"B", b"\r\n-B", b"\r\n--", b"\0\xff", b"x" * 50]),
    max_size=8,
).map(b"".join)
kept_names = st.sampled_from(["language", "prompt", "temperature", "Model", "regions", "x y", "ü", "file"])
tresor_parts = st.builds(Part, st.sampled_from(["failover", "failover[]"]), st.sampled_from([b"m", b"eu/alpha/m"]))


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, list[Part]]:
    """Draw a boundary and parts that form a request."""
    boundary = draw(st.sampled_from([b"B", b"-", b"--B", b"----WebKitFormBoundary7MA4YWxkTrZu0gW", b"a b'c"]))
    whole = contents.filter(lambda content: b"\r\n--" + boundary not in b"\r\n" + content + b"\r\n")
    parts = [Part("file", draw(whole), FILE.head), MODEL]
    parts += draw(st.lists(st.builds(Part, kept_names, whole), max_size=4))
    parts += draw(st.lists(tresor_parts, max_size=2))
    parts += [Part(name, b"eu") for name in ("region", "provider") if draw(st.booleans())]
    return boundary, draw(st.permutations(parts))


@given(
    drawn=forms(),
    epilogue=st.sampled_from([b"", b"\r\n", b"\r\nbehind\r\n--B"]),
    upstream_name=st.sampled_from(["m", "up/ü", "x" * 99]),
)
@settings(deadline=None, max_examples=150)
def test_the_forwarded_form_is_the_callers_without_tresors_parts(
    drawn: tuple[bytes, list[Part]], epilogue: bytes, upstream_name: str
) -> None:
    boundary, parts = drawn
    request = parse(
        form(*parts, boundary=boundary, epilogue=epilogue), f'multipart/form-data; boundary="{boundary.decode()}"'
    )
    kept = [
        Part("model", upstream_name.encode()) if part.name == "model" else part
        for part in parts
        if part.name not in ("failover", "failover[]", "region", "provider")
    ]
    assert request.forwarded(upstream_name) == form(*kept, boundary=boundary, epilogue=epilogue)
    assert request.failover == tuple(part.content.decode() for part in parts if part.name.startswith("failover"))


@given(
    body=st.binary(max_size=80).map(b"--B".__add__) | st.binary(max_size=40),
    content_type=st.text(max_size=30) | st.just(TYPE),
)
def test_any_bytes_are_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(RequestError):
        parse(body, content_type)


pieces = st.lists(
    st.sampled_from(
        [
            b"--B",
            b"\r\n",
            b"--",
            b"Content-Disposition: form-data",
            b"; name=",
            b'"',
            b"model",
            b"file",
            b"*",
            b"0",
            b";",
            b"\\",
            b"m",
        ]
    ),
    max_size=25,
).map(b"".join)


@given(body=pieces, content_type=pieces.map(lambda piece: "multipart/form-data; boundary=B" + piece.decode()))
@settings(deadline=None, max_examples=150)
def test_any_damaged_form_is_a_request_or_refused(body: bytes, content_type: str) -> None:
    with contextlib.suppress(RequestError):
        parse(form(FILE, MODEL)[: -len(b"--B--\r\n")] + body, content_type).forwarded("u")
    with contextlib.suppress(RequestError):
        parse(form(FILE, MODEL)[: -len(b"--B--\r\n")] + body).forwarded("u")
