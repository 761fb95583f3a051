"""What leaves for the upstream is what the caller sent, with the contract's edits and no other."""

import json
from typing import Final

import pytest

from support.router import Router, chat
from support.upstream import Upstream

MESSAGES: Final = b'"messages":[{"role":"user","content":"hi"}]'


def ask(router: Router, body: bytes) -> None:
    answer = router.complete(body)
    assert answer.status == 200, answer
    assert b'"tresor"' in answer.body


@pytest.mark.parametrize(
    "rest",
    [
        b'"temperature":1.0,"top_p":1e0,"presence_penalty":-0.0,"frequency_penalty":-0',
        b'"seed":9223372036854775807,"big":123456789012345678901234567890,"small":1e-400,"exact":0.1e+1',
        b'"logit_bias":{"50256":-100,"b":1.10,"a":[1E2,100,1.00e2]}',
        b'"z":1,"a":2,"Z":3,"\xc3\xa4":4,"":5',
        b'"stop":["\\u00e9","\xc3\xa9","\\/","/","\\ud83d\\ude00","\xf0\x9f\x98\x80","\\u2028","\xe2\x80\xa8","\\ud800"]',
        b' \n\t"a" \r\n: [ 1 ,\t2 ] , "b":{ } ,"c":[ ]',
        b'"nested":{"model":"other","region":"x","failover":1,"stream_options":{}},"tresor":{"receipt_id":"mine"}',
        b'"null":null,"true":true,"false":false,"empty":""',
        b'"' + b"k" * 5000 + b'":"' + b"v" * 5000 + b'"',
    ],
)
def test_members_that_are_not_the_routers_travel_byte_for_byte(router: Router, alpha: Upstream, rest: bytes) -> None:
    ask(router, b'{"model":"solo",' + MESSAGES + b"," + rest + b"}")
    assert alpha.last.body == b'{"model":"alpha-solo",' + MESSAGES + b"," + rest + b"}"


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        (b"\n " + b"{%b, \t%b}\n", b"\n " + b"{%b, \t%b}\n"),
        (b'{"a":1,%b,"b":2,%b,"c":3}', b'{"a":1,%b,"b":2,%b,"c":3}'),
    ],
)
def test_only_the_value_of_model_changes(router: Router, alpha: Upstream, sent: bytes, forwarded: bytes) -> None:
    ask(router, sent % (MESSAGES, b'"model" :  "solo"'))
    assert alpha.last.body == forwarded % (MESSAGES, b'"model" :  "alpha-solo"')


@pytest.mark.parametrize("model", [b'"model":"s\\u006flo"', b'"\\u006dodel":"solo"', b'"model":"eu/alpha/solo"'])
def test_model_is_recognised_however_it_is_spelt(router: Router, alpha: Upstream, model: bytes) -> None:
    ask(router, b"{" + model + b"," + MESSAGES + b"}")
    assert alpha.last.body == b"{" + model.partition(b":")[0] + b':"alpha-solo",' + MESSAGES + b"}"


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        (b'{"region":"eu",%b}', b"{%b}"),
        (b'{%b,"provider":"alpha"}', b"{%b}"),
        (b'{"region":"eu","provider":"alpha",%b,"failover":["m"]}', b"{%b}"),
        (b'{"x":1,"failover":[],"y":2,%b,"region":null,"z":3}', b'{"x":1,"y":2,%b,"z":3}'),
        (b'{"x":1,%b,"region":"eu","provider":"auto","failover":[]}', b'{"x":1,%b}'),
        (b'{"r\\u0065gion":"eu",%b}', b"{%b}"),
    ],
)
def test_tresor_members_go(router: Router, alpha: Upstream, sent: bytes, forwarded: bytes) -> None:
    ask(router, sent % (b'"model":"solo",' + MESSAGES))
    assert alpha.last.body == forwarded % (b'"model":"alpha-solo",' + MESSAGES)


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        (b"", b',"stream_options":{"include_usage":true}'),
        (b',"stream_options":null', b',"stream_options":{"include_usage":true}'),
        (b',"stream_options":{}', b',"stream_options":{"include_usage":true}'),
        (b',"stream_options":{ "x" : 1.0 }', b',"stream_options":{ "x" : 1.0 ,"include_usage":true}'),
        (b',"stream_options":{"include_usage":false,"x":1}', b',"stream_options":{"include_usage":true,"x":1}'),
        (b',"stream_options":{"include_usage":true,"x":1e2}', b',"stream_options":{"include_usage":true,"x":1e2}'),
        (b',"stream_options":{"x":1},"seed":1', b',"stream_options":{"x":1,"include_usage":true},"seed":1'),
        (b',"region":"eu"', b',"stream_options":{"include_usage":true}'),
        (b',"failover":[],"seed":1', b',"seed":1,"stream_options":{"include_usage":true}'),
    ],
)
def test_usage_is_asked_for_on_streams(router: Router, alpha: Upstream, sent: bytes, forwarded: bytes) -> None:
    answer = router.complete(b'{"model":"solo","stream":true,' + MESSAGES + sent + b"}")
    assert answer.status == 200
    assert alpha.last.body == b'{"model":"alpha-solo","stream":true,' + MESSAGES + forwarded + b"}"


@pytest.mark.parametrize("stream", [b"false", b"null"])
def test_stream_options_stay_as_they_are_without_a_stream(router: Router, alpha: Upstream, stream: bytes) -> None:
    rest = b'"stream":%b,"stream_options":{"include_usage":false}' % stream
    ask(router, b'{"model":"solo",' + MESSAGES + b"," + rest + b"}")
    assert alpha.last.body == b'{"model":"alpha-solo",' + MESSAGES + b"," + rest + b"}"


@pytest.mark.parametrize(
    "twice",
    [
        b'"model":"solo"',
        b'"\\u006dodel":"m"',
        b'"x":1,"x":1',
        b'"x":{"a":{"b":[{"c":1,"c":2}]}}',
        b'"x":[[[{"":0,"":0}]]]',
        b'"stream_options":{"include_usage":true,"include_usage":false}',
    ],
)
def test_a_name_that_stands_twice_is_refused_at_any_depth(router: Router, alpha: Upstream, twice: bytes) -> None:
    answer = router.complete(b'{"model":"solo",' + MESSAGES + b"," + twice + b"}")
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert alpha.requests == []


def test_the_head_for_the_upstream_holds_nothing_of_the_callers(router: Router, alpha: Upstream) -> None:
    answer = router.complete(
        chat("solo"),
        X_Custom="mine",
        Cookie="c=1",
        User_Agent="me/1.0",
        X_Tresor_Nonce="n",
        X_Forwarded_For="10.0.0.1",
        Accept_Encoding="gzip",
        OpenAI_Organization="org",
    )
    assert answer.status == 200
    assert set(alpha.last.headers) == {
        "host",
        "user-agent",
        "accept-encoding",
        "authorization",
        "content-type",
        "accept",
        "content-length",
    }
    assert alpha.last.headers["authorization"] == "Bearer alpha-secret-5f1d"
    assert alpha.last.headers["accept-encoding"] == "identity"
    assert alpha.last.headers["host"] == f"127.0.0.1:{alpha.port}"


def test_a_body_in_small_chunks_is_put_together(router: Router, alpha: Upstream) -> None:
    body = json.dumps({"model": "solo", "messages": [{"role": "user", "content": "é" * 500}]}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {router.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    with router.connect() as wire:
        wire.send(head.encode())
        for piece in pieces:
            wire.send(b"%x;extension=1\r\n%b\r\n" % (len(piece), piece))
        wire.send(b"0\r\n\r\n")
        answer = wire.read_answer()
    assert answer.status == 200
    assert alpha.last.body == body.replace(b'"solo"', b'"alpha-solo"')
    assert router.verify(answer.receipt_id, request=body, response=answer.body).claims.outcome == "complete"


def test_a_transcription_form_changes_in_its_model_part_alone(router: Router, alpha: Upstream) -> None:
    parts = (
        b'--XYZ\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n%b'
        % b"--XY\r\n\r\n\x00\xff--XYZ not a delimiter\r\n--XY\r\n",
        b'--XYZ\r\nContent-Disposition: form-data; name="region"\r\n\r\neu\r\n',
        b"--XYZ\r\ncontent-disposition:form-data;name=model\r\n\r\nwhisper\r\n",
        b'--XYZ\r\nContent-Disposition: form-data; name="temperature"\r\n\r\n0.10\r\n',
        b'--XYZ\r\nContent-Disposition: form-data; name="failover"\r\n\r\nwhisper\r\n',
        b"--XYZ--\r\n",
    )
    answer = router.ask(
        "POST",
        "/v1/audio/transcriptions",
        key=router.key,
        headers={"Content-Type": "multipart/form-data; boundary=XYZ"},
        body=b"".join(parts),
    )
    assert answer.status == 200, answer
    assert alpha.last.body == b"".join((parts[0], parts[2].replace(b"whisper", b"alpha-whisper"), parts[3], parts[5]))
    assert alpha.last.headers["content-type"] == "multipart/form-data; boundary=XYZ"
    assert router.verify(answer.receipt_id, request=b"".join(parts), response=answer.body).claims.status == 200
