"""The `openai` SDK against the router over TLS, nothing changed but the base URL."""

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam

from support.certificates import Tls
from support.router import Router
from support.upstream import (
    DONE,
    Script,
    Upstream,
    chunk,
    completion,
    embedding,
    finish,
    hang_up,
    reply,
    reply_error,
    silent,
    sse,
    stream,
    usage_chunk,
)

PROMPT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 2+2?"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
def client(router: Router, tls: Tls) -> Iterator[openai.OpenAI]:
    http_client = openai.DefaultHttpxClient(verify=tls.client_context(), trust_env=False)
    with openai.OpenAI(
        base_url=router.base_url, api_key=router.key, max_retries=0, http_client=http_client
    ) as sdk_client:
        yield sdk_client


def async_client(router: Router, context: ssl.SSLContext) -> openai.AsyncOpenAI:
    http_client = openai.DefaultAsyncHttpxClient(verify=context, trust_env=False)
    return openai.AsyncOpenAI(base_url=router.base_url, api_key=router.key, max_retries=0, http_client=http_client)


def extension(value: Any) -> dict[str, Any]:
    """Return the `tresor` member of an SDK object."""
    member: dict[str, Any] = value.model_extra["tresor"]
    return member


def test_a_completion_has_content_and_a_receipt_for_its_very_bytes(
    client: openai.OpenAI, router: Router, alpha: Upstream
) -> None:
    alpha.script(reply(completion("It is four.")))
    raw = client.chat.completions.with_raw_response.create(model="solo", messages=PROMPT, temperature=0)
    answer = raw.parse()
    assert answer.choices[0].message.content == "It is four."
    assert answer.model == "upstream-name"
    assert extension(answer) == {
        "receipt_id": raw.headers["x-tresor-receipt-id"],
        "requested_route": "auto/auto/solo",
        "routed_model": "eu/alpha/solo",
        "failover": False,
    }
    receipt = router.verify(
        raw.headers["x-tresor-receipt-id"], request=raw.http_request.content, response=raw.http_response.content
    )
    assert receipt.claims.outcome == "complete"
    assert receipt.claims.total_tokens == 14


def test_a_stream_arrives_in_pieces_with_tresor_on_its_finish_chunk(client: openai.OpenAI, router: Router) -> None:
    chunks = list(client.chat.completions.create(model="solo", messages=PROMPT, stream=True))
    check_stream(chunks, router)


def test_an_async_completion_has_a_receipt(router: Router, tls: Tls) -> None:
    async def ask() -> Any:
        async with async_client(router, tls.client_context()) as client:
            return await client.chat.completions.create(model="solo", messages=PROMPT)

    answer = asyncio.run(ask())
    assert answer.choices[0].message.content == "four"
    assert router.verify(extension(answer)["receipt_id"]).claims.outcome == "complete"


def test_an_async_stream_arrives_in_pieces_with_tresor_on_its_finish_chunk(router: Router, tls: Tls) -> None:
    async def ask() -> list[ChatCompletionChunk]:
        async with async_client(router, tls.client_context()) as client:
            return [c async for c in await client.chat.completions.create(model="solo", messages=PROMPT, stream=True)]

    check_stream(asyncio.run(ask()), router)


def check_stream(chunks: list[ChatCompletionChunk], router: Router) -> None:
    assert [c.choices[0].delta.content for c in chunks] == ["fo", "ur", None]
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, "stop"]
    assert ["tresor" in (c.model_extra or {}) for c in chunks] == [False, False, True]
    claims = router.verify(extension(chunks[-1])["receipt_id"]).claims
    assert (claims.stream, claims.outcome, claims.completion_tokens) == (True, "complete", 3)


def test_several_async_streams_at_once_do_not_mix(router: Router, alpha: Upstream, tls: Tls) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        chunks = await client.chat.completions.create(model="solo", messages=PROMPT, stream=True, user=f"u{number}")
        return "".join([c.choices[0].delta.content or "" async for c in chunks])

    async def all_of_them() -> list[str]:
        async with async_client(router, tls.client_context()) as client:
            return await asyncio.gather(*(one(client, number) for number in range(20)))

    def echo_user(call: Any) -> None:
        stream(*(chunk(letter) for letter in call.request.json["user"]), finish(), DONE)(call)

    alpha.script(echo_user)
    assert asyncio.run(all_of_them()) == [f"u{number}" for number in range(20)]


def test_usage_arrives_when_asked_for(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="solo", messages=PROMPT, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 14


def test_tools_and_tool_calls_pass(client: openai.OpenAI, alpha: Upstream) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    alpha.script(reply(completion(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])))
    answer = client.chat.completions.create(
        model="solo", messages=PROMPT, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    assert alpha.last.json["tools"] == [WEATHER]
    assert alpha.last.json["tool_choice"] == "required"
    assert alpha.last.json["parallel_tool_calls"] is False
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].model_dump(exclude_none=True) == call


def test_tool_calls_pass_through_a_stream(client: openai.OpenAI, alpha: Upstream) -> None:
    deltas = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": '"Paris"}'}},
    ]
    chunks = [
        sse({"id": "1", "choices": [{"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": None}]})
        for delta in deltas
    ]
    alpha.script(stream(*chunks, finish("tool_calls"), usage_chunk(), DONE))
    arguments = ""
    for part in client.chat.completions.create(model="solo", messages=PROMPT, tools=[WEATHER], stream=True):
        for tool_call in part.choices[0].delta.tool_calls or []:
            assert tool_call.function is not None
            arguments += tool_call.function.arguments or ""
    assert arguments == '{"city":"Paris"}'


def test_extra_body_travels_on_except_what_is_for_the_router(client: openai.OpenAI, alpha: Upstream) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=PROMPT,
        extra_body={"top_k": 40, "chat_template_kwargs": {"thinking": False}, "region": "eu", "failover": ["solo"]},
    )
    assert alpha.last.json == {
        "model": "alpha-m",
        "messages": PROMPT,
        "top_k": 40,
        "chat_template_kwargs": {"thinking": False},
    }
    assert extension(answer)["requested_route"] == "eu/auto/m"


def test_extra_headers_reach_the_router(client: openai.OpenAI, router: Router) -> None:
    answer = client.chat.completions.create(model="solo", messages=PROMPT, extra_headers={"X-Tresor-Nonce": "n-1"})
    assert router.verify(extension(answer)["receipt_id"], nonce="n-1").claims.nonce == "n-1"


def test_opting_out_leaves_no_receipt_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="solo", messages=PROMPT, extra_headers={"X-Tresor-Receipt": "false"}
    )
    assert "x-tresor-receipt-id" not in raw.headers
    assert sorted(extension(raw.parse())) == ["failover", "requested_route", "routed_model"]


def test_several_choices_pass(client: openai.OpenAI, alpha: Upstream) -> None:
    choices = [
        {"index": n, "message": {"role": "assistant", "content": f"answer {n}"}, "finish_reason": "stop"}
        for n in range(3)
    ]
    alpha.script(reply(completion(choices=choices)))
    answer = client.chat.completions.create(model="solo", messages=PROMPT, n=3)
    assert [choice.message.content for choice in answer.choices] == ["answer 0", "answer 1", "answer 2"]


def test_several_choices_pass_through_a_stream_with_tresor_on_the_last_finish_chunk(
    client: openai.OpenAI, alpha: Upstream
) -> None:
    alpha.script(
        stream(
            chunk("a", index=0),
            chunk("b", index=1),
            finish(index=1),
            chunk("c", index=0),
            finish(index=0),
            usage_chunk(),
            DONE,
        )
    )
    chunks = list(client.chat.completions.create(model="solo", messages=PROMPT, n=2, stream=True))
    assert [(c.choices[0].index, c.choices[0].delta.content) for c in chunks] == [
        (0, "a"),
        (1, "b"),
        (1, None),
        (0, "c"),
        (0, None),
    ]
    assert ["tresor" in (c.model_extra or {}) for c in chunks] == [False, False, False, False, True]


def test_embeddings_pass_with_a_receipt(client: openai.OpenAI, router: Router, alpha: Upstream) -> None:
    alpha.script(reply(embedding()))
    raw = client.embeddings.with_raw_response.create(model="embed", input=["one"], encoding_format="float")
    assert raw.parse().data[0].embedding == [0.25, -1.0]
    assert alpha.last.target == "POST /v1/embeddings"
    assert alpha.last.json == {"input": ["one"], "model": "alpha-embed", "encoding_format": "float"}
    receipt = router.verify(
        raw.headers["x-tresor-receipt-id"], request=raw.http_request.content, response=raw.http_response.content
    )
    assert (receipt.claims.receipt_type, receipt.claims.prompt_tokens) == ("embedding", 2)


def test_a_transcription_passes_as_json(client: openai.OpenAI, router: Router, alpha: Upstream) -> None:
    audio = bytes(range(256)) * 40
    raw = client.audio.transcriptions.with_raw_response.create(model="whisper", file=("a.wav", audio), language="en")
    assert raw.parse().text == "spoken words"
    assert extension(raw.parse())["receipt_id"] == raw.headers["x-tresor-receipt-id"]
    assert alpha.last.target == "POST /v1/audio/transcriptions"
    assert audio in alpha.last.body
    assert b"alpha-whisper" in alpha.last.body
    receipt = router.verify(
        raw.headers["x-tresor-receipt-id"], request=raw.http_request.read(), response=raw.http_response.content
    )
    assert receipt.claims.receipt_type == "transcription"


def test_a_transcription_passes_as_text_with_its_receipt_in_the_header(
    client: openai.OpenAI, router: Router, alpha: Upstream
) -> None:
    alpha.script(reply(b"spoken words\n", content_type="text/plain; charset=utf-8"))
    raw = client.audio.transcriptions.with_raw_response.create(
        model="whisper", file=("a.wav", b"RIFF"), response_format="text"
    )
    assert raw.http_response.content == b"spoken words\n"
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    receipt = router.verify(
        raw.headers["x-tresor-receipt-id"], request=raw.http_request.read(), response=b"spoken words\n"
    )
    assert receipt.claims.outcome == "complete"


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "eu/alpha/m",
        "eu/alpha/solo",
        "eu/alpha/embed",
        "eu/alpha/whisper",
        "us/beta/m",
    ]
    assert client.models.retrieve("solo").id == "eu/alpha/solo"


@pytest.mark.parametrize(
    ("script", "wanted", "code"),
    [
        (reply_error(400, "too long"), openai.BadRequestError, "upstream_rejected"),
        (reply_error(422, "no such tool"), openai.UnprocessableEntityError, "upstream_rejected"),
        (reply_error(401), openai.InternalServerError, "upstream_error"),
        (reply_error(429), openai.InternalServerError, "upstream_error"),
        (reply_error(500), openai.InternalServerError, "upstream_error"),
        (reply(b"<html>"), openai.InternalServerError, "upstream_error"),
        (hang_up(), openai.InternalServerError, "upstream_error"),
    ],
)
def test_upstream_faults_are_the_sdks_own_exceptions(
    client: openai.OpenAI, alpha: Upstream, script: Script, wanted: type[openai.APIStatusError], code: str
) -> None:
    alpha.script(script)
    with pytest.raises(wanted) as caught:
        client.chat.completions.create(model="solo", messages=PROMPT)
    assert caught.value.code == code
    assert caught.value.status_code in (400, 422, 502)
    assert caught.value.response.headers["x-tresor-receipt-id"]


def test_callers_faults_are_the_sdks_own_exceptions(client: openai.OpenAI, alpha: Upstream) -> None:
    with pytest.raises(openai.AuthenticationError) as unauthorized:
        client.with_options(api_key="tr-" + "0" * 96).chat.completions.create(model="solo", messages=PROMPT)
    assert unauthorized.value.code == "unauthorized"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-17", messages=PROMPT)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model="solo", messages=[])
    assert (empty.value.code, empty.value.param) == ("invalid_field", "messages")
    with pytest.raises(openai.BadRequestError) as too_hot:
        client.chat.completions.create(model="solo", messages=PROMPT, temperature=3)
    assert (too_hot.value.code, too_hot.value.param) == ("invalid_field", "temperature")
    with pytest.raises(openai.APIStatusError) as unattested:
        client.chat.completions.create(
            model="solo", messages=PROMPT, extra_headers={"X-Tresor-Require-Attestation": "cpu_tee"}
        )
    assert unattested.value.status_code == 412
    assert alpha.requests == []


def test_an_upstream_that_is_too_slow_is_the_sdks_own_exception(client: openai.OpenAI, alpha: Upstream) -> None:
    alpha.script(silent)
    with pytest.raises(openai.InternalServerError) as late:
        client.chat.completions.create(model="solo", messages=PROMPT, extra_headers={"X-Tresor-Timeout-Seconds": "0.5"})
    assert (late.value.status_code, late.value.code) == (504, "upstream_timeout")


def test_a_stream_that_breaks_raises_behind_its_content(client: openai.OpenAI, router: Router, alpha: Upstream) -> None:
    alpha.script(stream(chunk("fo")))
    raw = client.chat.completions.with_raw_response.create(model="solo", messages=PROMPT, stream=True)
    chunks = iter(raw.parse())
    assert next(chunks).choices[0].delta.content == "fo"
    with pytest.raises(openai.APIError, match="not complete") as broken:
        next(chunks)
    assert broken.value.code == "upstream_error"
    assert router.verify(raw.headers["x-tresor-receipt-id"]).claims.outcome == "upstream_aborted"
