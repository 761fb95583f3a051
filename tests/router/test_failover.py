"""Upstreams that fail at every phase, under load: who takes over and who never does, and what receipts say of it.

One router serves the whole module.  Every fault has an upstream of its own, so that no circuit breaker knows of another
test; `good` takes over from all of them and answers with the prompt, so that no answer can be taken for another's.
"""

import contextlib
import json
import select
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import pytest

from support.certificates import Tls
from support.router import Router, UpstreamEntry, chat, new_key, running_router, tresor, wait_until
from support.upstream import (
    DONE,
    Call,
    Script,
    Upstream,
    chunk,
    chunked,
    completion,
    finish,
    hang_up,
    head,
    reply,
    reply_error,
    send_raw,
    silent,
    stream,
    usage_chunk,
)
from support.wire import Answer, request_bytes
from tresor.receipts.claims import ReceiptClaims

GOOD: Final = "us/good/m"
EACH: Final = 2
"""Requests of each kind at every fault; all of them fail, and five in a row would have the upstream rest."""
TEXT_OF_A_FAULT: Final = "BAD"
FAULT_IN_TEXT: Final = "canary-of-an-upstream http://10.1.2.3:8000/v1"
_STREAM_HEAD: Final = head(200, "Transfer-Encoding: chunked", content_type="text/event-stream")
_CONTENT: Final = chunked(chunk(TEXT_OF_A_FAULT))
_LARGE: Final = head(200, "Content-Length: 5000") + completion(TEXT_OF_A_FAULT)


def then(end: Callable[[Call], object], *data: bytes) -> Script:
    """Send bytes as they are, then do something with the connection."""

    def script(call: Call) -> None:
        call.send(b"".join(data))
        end(call)

    return script


def echo(call: Call) -> None:
    """Answer with the prompt."""
    request = call.request.json
    text = request["messages"][0]["content"]
    if request.get("stream"):
        stream(*map(chunk, text), finish(), usage_chunk(), DONE)(call)
    else:
        reply(completion(text))(call)


@dataclass(frozen=True)
class Fault:
    """What an upstream does wrong.

    Attributes:
        reason: what receipts call it.
        script: of the upstream; None where the fault lies in the way to it.
        status: of its answer, as far as it gave one.
        kinds: whether streams, whole answers or both are asked for.
        settings: of the upstream, in the router's configuration.
    """

    reason: str
    script: Script | None = None
    status: int | None = None
    kinds: tuple[bool, ...] = (False, True)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_sent(self) -> bool:
        return self.script is not None


STREAMS, WHOLE = (True,), (False,)
HASTY: Final = {"first_byte_timeout_s": 0.7}
ALERT: Final = {"idle_timeout_s": 0.7}

BEFORE_CONTENT: Final[Mapping[str, Fault]] = {
    "gone": Fault("connect_failed"),
    "tls-stalls": Fault("timeout", settings={"connect_timeout_s": 0.7}),
    "tls-alert": Fault("tls_failed"),
    "closes": Fault("connection_lost", hang_up()),
    "resets": Fault("connection_lost", hang_up(reset=True)),
    "stalls": Fault("timeout", silent, kinds=STREAMS, settings=HASTY),
    "cuts-head": Fault("connection_lost", send_raw(b"HTTP/1.1 200 OK\r\nContent-")),
    "stalls-in-head": Fault(
        "timeout", then(Call.wait_cancelled, b"HTTP/1.1 200 OK\r\n"), kinds=STREAMS, settings=HASTY
    ),
    "unauthorised": Fault("upstream_status", reply_error(401, FAULT_IN_TEXT), 401),
    "unknown-model": Fault("upstream_status", reply_error(404, FAULT_IN_TEXT), 404),
    "limits-rate": Fault("upstream_status", reply_error(429, FAULT_IN_TEXT), 429),
    "breaks": Fault("upstream_status", reply_error(500, FAULT_IN_TEXT), 500),
    "cuts-refusal": Fault("connection_lost", send_raw(head(429, "Content-Length: 90") + b"{"), 429),
    "cuts-body": Fault("connection_lost", send_raw(_LARGE), 200, WHOLE),
    "resets-in-body": Fault("connection_lost", then(Call.reset, _LARGE), 200, WHOLE),
    "cuts-chunks": Fault(
        "connection_lost", send_raw(head(200, "Transfer-Encoding: chunked"), chunked(completion())), 200, WHOLE
    ),
    "stalls-behind-head": Fault("timeout", then(Call.wait_cancelled, _STREAM_HEAD), 200, STREAMS, HASTY),
    "resets-behind-head": Fault("connection_lost", then(Call.reset, _STREAM_HEAD), 200, STREAMS),
    "stalls-behind-comment": Fault("timeout", stream(b": wait\n\n", end=False), 200, STREAMS, HASTY),
    "cuts-first-event": Fault("connection_lost", send_raw(_STREAM_HEAD, chunked(chunk()[:40])), 200, STREAMS),
    "counts-only": Fault("stream_broken", stream(usage_chunk(77, 88)), 200, STREAMS),
    "error-event": Fault(
        "stream_broken", stream(b'data: {"error":{"message":"%b"}}\n\n' % FAULT_IN_TEXT.encode()), 200, STREAMS
    ),
}
BEHIND_CONTENT: Final[Mapping[str, Fault]] = {
    "content-ends": Fault("stream_broken", stream(chunk(TEXT_OF_A_FAULT)), 200, STREAMS),
    "content-done": Fault("stream_broken", stream(chunk(TEXT_OF_A_FAULT), DONE), 200, STREAMS),
    "content-closes": Fault("connection_lost", send_raw(_STREAM_HEAD, _CONTENT), 200, STREAMS),
    "content-resets": Fault("connection_lost", then(Call.reset, _STREAM_HEAD, _CONTENT), 200, STREAMS),
    "content-cut-event": Fault(
        "connection_lost", send_raw(_STREAM_HEAD, _CONTENT, chunked(chunk("x")[:40])), 200, STREAMS
    ),
    "content-stalls": Fault("timeout", stream(chunk(TEXT_OF_A_FAULT), end=False), 200, STREAMS, ALERT),
    "content-error": Fault(
        "stream_broken", stream(chunk(TEXT_OF_A_FAULT), b'data: {"error":{"message":"no"}}\n\n'), 200, STREAMS
    ),
    "content-garbage": Fault("invalid_response", send_raw(_STREAM_HEAD, _CONTENT, b"no size\r\n"), 200, STREAMS),
    "finish-closes": Fault("connection_lost", send_raw(_STREAM_HEAD, _CONTENT, chunked(finish())), 200, STREAMS),
    "finish-resets": Fault(
        "connection_lost", then(Call.reset, _STREAM_HEAD, _CONTENT, chunked(finish())), 200, STREAMS
    ),
    "finish-stalls": Fault("timeout", stream(chunk(TEXT_OF_A_FAULT), finish(), end=False), 200, STREAMS, ALERT),
}
REFUSALS: Final[Mapping[str, Fault]] = {
    f"refuses-{status}": Fault("upstream_rejected", reply_error(status, "too long"), status)
    for status in (400, 413, 422)
}
ALL: Final = {**BEFORE_CONTENT, **BEHIND_CONTENT, **REFUSALS}
OTHERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "resting": {},
    "paused": {},
    "alone": {},
    "tired-1": {},
    "tired-2": {},
    "narrow": {"max_concurrent_requests": 1, "max_queued_requests": 1, "queue_timeout_s": 60},
    "impatient": {"max_concurrent_requests": 1, "queue_timeout_s": 0.3},
    "twin-1": {},
    "twin-2": {},
    "down-connect": {},
    "down-500": {},
    "down-429": {},
    "down-closes": {},
    "tls-slow": {"connect_timeout_s": 0.7},
    "slow": {},
    "spare": {},
    "killed": {},
}
"""Upstreams with tests of their own, and their settings; nothing is wrong with them until a test says so."""


def route(name: str) -> str:
    return f"eu/{name}/m"


@dataclass(frozen=True)
class Fleet:
    """The router and its upstreams by name."""

    router: Router
    upstreams: Mapping[str, Upstream]

    def __getitem__(self, name: str) -> Upstream:
        return self.upstreams[name]

    def ask(self, name: str, prompt: str = "hi", *, then_good: bool = True, **headers: str) -> Answer:
        """Ask an upstream, and `good` behind it."""
        return self.router.complete(body_for(name, prompt, then_good=then_good), **headers)

    def claims(self, answer: Answer, request: bytes | None = None) -> ReceiptClaims:
        """Return the receipt of an answer, verified against it."""
        return self.router.verify(answer.receipt_id, request=request, response=answer.body).claims

    def tried(self, answer: Answer) -> list[tuple[str, str | None]]:
        """Return provider and reason of every attempt."""
        return [(attempt.route.split("/")[1], attempt.reason) for attempt in self.claims(answer).attempts]


def body_for(name: str, prompt: str = "hi", *, then_good: bool = True, **members: Any) -> bytes:
    failover = {"failover": [GOOD]} if then_good else {}
    return chat(route(name), prompt, **failover, **members)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[Fleet]:
    with ExitStack() as stack:
        upstreams = {name: stack.enter_context(Upstream()) for name in (*ALL, *OTHERS, "good")}
        upstreams["tls-alert"] = stack.enter_context(Upstream(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)))  # has no key
        for name, upstream in upstreams.items():
            upstream.script(echo if name not in ALL else ALL[name].script or echo)
        for name in ("gone", "down-connect"):
            upstreams[name].stop()
        entries = [UpstreamEntry(upstreams["good"], "good", "us", {"m": "m"})]
        for name, settings in {**{name: fault.settings for name, fault in ALL.items()}, **OTHERS}.items():
            models = {"m": "m", "twin": "twin"} if name.startswith("twin") else {"m": "m"}
            # Of one that speaks no TLS, a handshake is never answered.
            base_url = upstreams[name].base_url.replace("http:", "https:" if name.startswith("tls") else "http:")
            trusted = {"ca_file": str(tls.ca_file)} if base_url.startswith("https:") else {}
            entries.append(UpstreamEntry(base_url, name, "eu", models, {**settings, **trusted}))
        yield Fleet(stack.enter_context(running_router(tmp_path_factory.mktemp("fleet"), entries)), upstreams)


# What went wrong, under load.


@dataclass(frozen=True)
class Exchange:
    """A request of the load, and what came back."""

    name: str
    wants_stream: bool
    prompt: str
    request: bytes
    answer: Answer

    @property
    def events(self) -> list[Any]:
        """The events of a stream, `[DONE]` left out."""
        data = [block.removeprefix(b"data: ") for block in self.answer.body.split(b"\n\n") if block[:1] == b"d"]
        return [msgspec.json.decode(event) for event in data if event != b"[DONE]"]

    @property
    def text(self) -> str:
        """What the model said, as the caller sees it."""
        if not self.wants_stream:
            return str(self.answer.json["choices"][0]["message"]["content"])
        choices = [choice for event in self.events for choice in event.get("choices", [])]
        return "".join(choice["delta"].get("content", "") for choice in choices)

    @property
    def is_whole(self) -> bool:
        """Whether a caller takes the answer for complete."""
        return self.answer.body.endswith(DONE) if self.wants_stream else self.answer.status == 200


@pytest.fixture(scope="module")
def load(fleet: Fleet) -> Mapping[str, Sequence[Exchange]]:
    """Every fault and many answers without one, all at the same time."""
    kinds = {**{name: fault.kinds for name, fault in ALL.items()}, "good": (False, True) * 10}

    def ask(name: str, wants_stream: bool, number: int) -> Exchange:
        prompt = f"{name} {wants_stream} {number}"
        to_good = name == "good"
        request = chat(GOOD, prompt, stream=wants_stream) if to_good else body_for(name, prompt, stream=wants_stream)
        return Exchange(name, wants_stream, prompt, request, fleet.router.complete(request))

    jobs = [
        (name, wants_stream, number)
        for name, wanted in kinds.items()
        for number, wants_stream in enumerate(wanted * EACH)
    ]
    jobs.sort(key=lambda job: job[2])  # round by round, so that no fault is over before another begins
    with ThreadPoolExecutor(24) as callers:
        done = list(callers.map(lambda job: ask(*job), jobs))
    return {name: [exchange for exchange in done if exchange.name == name] for name in kinds}


@pytest.fixture(scope="module")
def receipts(fleet: Fleet, load: Mapping[str, Sequence[Exchange]]) -> Mapping[str, ReceiptClaims]:
    """The receipts of the load by prompt, each verified against what was sent and what came."""
    jwks = fleet.router.jwks()
    return {
        exchange.prompt: fleet.router.verify(
            exchange.answer.receipt_id, request=exchange.request, response=exchange.answer.body, jwks=jwks
        ).claims
        for exchanges in load.values()
        for exchange in exchanges
    }


def attempts_of(claims: ReceiptClaims) -> list[tuple[str, str, str | None, int | None, bool]]:
    return [(a.route, a.outcome, a.reason, a.status, a.prompt_sent) for a in claims.attempts]


@pytest.mark.parametrize("name", BEFORE_CONTENT)
def test_before_content_the_next_takes_over(
    load: Mapping[str, Sequence[Exchange]], receipts: Mapping[str, ReceiptClaims], name: str
) -> None:
    fault = BEFORE_CONTENT[name]
    for exchange in load[name]:
        claims = receipts[exchange.prompt]
        assert (exchange.answer.status, exchange.text, exchange.is_whole) == (200, exchange.prompt, True)
        assert attempts_of(claims) == [
            (route(name), "failed", fault.reason, fault.status, fault.prompt_sent),
            (GOOD, "served", None, 200, True),
        ]
        assert (claims.outcome, claims.routed_model, claims.failover) == ("complete", GOOD, True)
        assert claims.total_tokens == 14


@pytest.mark.parametrize("name", BEHIND_CONTENT)
def test_behind_content_nobody_takes_over_and_nothing_looks_complete(
    fleet: Fleet, load: Mapping[str, Sequence[Exchange]], receipts: Mapping[str, ReceiptClaims], name: str
) -> None:
    fault = BEHIND_CONTENT[name]
    for exchange in load[name]:
        claims, *_, last = receipts[exchange.prompt], *exchange.events
        assert (exchange.answer.status, exchange.text, exchange.is_whole) == (200, TEXT_OF_A_FAULT, False)
        assert DONE not in exchange.answer.body
        assert b'"finish_reason":"' not in exchange.answer.body
        assert last["error"]["code"] == ("upstream_timeout" if fault.reason == "timeout" else "upstream_error")
        assert last["tresor"] == {"receipt_id": exchange.answer.receipt_id}
        assert attempts_of(claims) == [(route(name), "failed", fault.reason, 200, True)]
        assert (claims.outcome, claims.routed_model, claims.failover) == ("upstream_aborted", route(name), False)
    prompts = {exchange.prompt for exchange in load[name]}
    assert prompts.isdisjoint(prompts_at(fleet["good"]))


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_of_the_request_ends_it(
    fleet: Fleet, load: Mapping[str, Sequence[Exchange]], receipts: Mapping[str, ReceiptClaims], name: str
) -> None:
    fault = REFUSALS[name]
    for exchange in load[name]:
        error = exchange.answer.error
        assert (exchange.answer.status, error["code"], error["message"]) == (
            fault.status,
            "upstream_rejected",
            "too long",
        )
        claims = receipts[exchange.prompt]
        assert attempts_of(claims) == [(route(name), "rejected", "upstream_rejected", fault.status, True)]
        assert (claims.outcome, claims.status) == ("refused", fault.status)
    prompts = {exchange.prompt for exchange in load[name]}
    assert prompts.isdisjoint(prompts_at(fleet["good"]))


def test_others_notice_nothing(load: Mapping[str, Sequence[Exchange]], receipts: Mapping[str, ReceiptClaims]) -> None:
    for exchange in load["good"]:
        assert (exchange.text, exchange.is_whole) == (exchange.prompt, True)
        assert attempts_of(receipts[exchange.prompt]) == [(GOOD, "served", None, 200, True)]


def prompts_at(upstream: Upstream) -> Counter[str]:
    """Return what an upstream was asked, however it answered."""
    return Counter(request.json["messages"][0]["content"] for request in list(upstream.requests))


def test_a_prompt_is_where_receipts_say_and_nowhere_else(
    fleet: Fleet, load: Mapping[str, Sequence[Exchange]], receipts: Mapping[str, ReceiptClaims]
) -> None:
    said: dict[str, Counter[str]] = {}
    for prompt, claims in receipts.items():
        for attempt in claims.attempts:
            said.setdefault(attempt.route.split("/")[1], Counter())[prompt] += attempt.prompt_sent
    for name in load:
        seen = Counter({prompt: count for prompt, count in prompts_at(fleet[name]).items() if prompt in receipts})
        assert seen == +said[name], name


def test_no_number_is_left_out(fleet: Fleet, receipts: Mapping[str, ReceiptClaims]) -> None:
    assert receipts
    fleet.router.check_numbers()


def test_an_upstream_is_killed_while_it_answers(fleet: Fleet) -> None:
    """Streams that have begun break, those that have not go elsewhere, and so does whatever comes later."""
    step, killed = threading.Event(), fleet["killed"]
    began = stream(chunk(TEXT_OF_A_FAULT), step, finish(), DONE)
    killed.script(*[began, stream(step, chunk(), finish(), DONE)] * 2, silent)
    bodies = [body_for("killed", f"{n}", stream=True) for n in range(4)]
    with ExitStack() as stack:
        wires = []
        for number, body in enumerate(bodies):
            wires.append(stack.enter_context(fleet.router.connect()))
            wires[-1].send(request_bytes("POST", "/v1/chat/completions", key=fleet.router.key, body=body))
            killed.wait_for(number + 1)
        begun = [wires[n].read_head() for n in (0, 2)]
        assert [wires[n].read_until(chunk(TEXT_OF_A_FAULT)) for n in (0, 2)] == [chunk(TEXT_OF_A_FAULT)] * 2
        killed.stop()
        rests = [wires[n].read_body() for n in (0, 2)]
        whole = [wires[n].read_answer() for n in (1, 3)]
    step.set()
    for answer, rest in zip(begun, rests, strict=True):
        assert rest.startswith(b'data: {"error":')
        assert b"[DONE]" not in rest
        claims = fleet.router.verify(answer.receipt_id, response=chunk(TEXT_OF_A_FAULT) + rest).claims
        assert (claims.outcome, [a.reason for a in claims.attempts]) == ("upstream_aborted", ["connection_lost"])
    for number, answer in zip((1, 3), whole, strict=True):
        assert answer.body.endswith(DONE)
        assert fleet.tried(answer) == [("killed", "connection_lost"), ("good", None)]
        assert fleet.claims(answer, bodies[number]).failover is True
    assert fleet.tried(fleet.ask("killed")) == [("killed", "connect_failed"), ("good", None)]


# When nobody is left.


@pytest.mark.parametrize("wants_stream", [False, True])
def test_where_all_failed_the_caller_is_told_every_try_and_nothing_of_the_upstreams(
    fleet: Fleet, wants_stream: bool
) -> None:
    names = ["down-connect", "down-500", "down-429", "down-closes"]
    fleet["down-500"].script(reply_error(500, FAULT_IN_TEXT))
    fleet["down-429"].script(reply_error(429, FAULT_IN_TEXT))
    fleet["down-closes"].script(hang_up())
    request = chat(route(names[0]), "a secret prompt", failover=[route(n) for n in names[1:]], stream=wants_stream)
    answer = fleet.router.complete(request)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (502, "upstream_error", "upstream_error")
    assert answer.error["attempts"] == [
        {"route": route("down-connect"), "reason": "connect_failed", "status": None},
        {"route": route("down-500"), "reason": "upstream_status", "status": 500},
        {"route": route("down-429"), "reason": "upstream_status", "status": 429},
        {"route": route("down-closes"), "reason": "connection_lost", "status": None},
    ]
    for secret in (FAULT_IN_TEXT, "http", "127.0.0.1", "secret", *(str(fleet[name].port) for name in names)):
        assert secret.encode() not in answer.body.replace(answer.json["request_id"].encode(), b"")
    claims = fleet.claims(answer, request)
    assert (claims.outcome, claims.status, claims.routed_model, claims.failover) == ("refused", 502, None, False)
    assert [(a.route, a.reason, a.status) for a in claims.attempts] == [
        (tried["route"], tried["reason"], tried["status"]) for tried in answer.error["attempts"]
    ]
    assert [a.prompt_sent for a in claims.attempts] == [False, True, True, True]


def test_what_a_failed_upstream_counted_is_not_in_the_receipt_of_a_refusal(fleet: Fleet) -> None:
    answer = fleet.router.complete(chat(route("counts-only"), failover=[route("down-connect")], stream=True))
    claims = fleet.claims(answer)
    assert (answer.status, claims.outcome) == (502, "refused")
    assert (claims.prompt_tokens, claims.completion_tokens, claims.total_tokens) == (None, None, None)


def test_the_budget_holds_over_all_tries(fleet: Fleet) -> None:
    """The first never ends its handshake, the second never its answer; of the third there is no time to ask."""
    fleet["slow"].script(silent)
    began = time.monotonic()
    request = chat(route("tls-slow"), failover=[route("slow"), route("spare")])
    answer = fleet.router.complete(request, X_Tresor_Timeout_Seconds="1.5")
    took_s = time.monotonic() - began
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert answer.error["attempts"] == [
        {"route": route(name), "reason": "timeout", "status": None} for name in ("tls-slow", "slow")
    ]
    assert 1.5 <= took_s < 15
    assert [a.prompt_sent for a in fleet.claims(answer, request).attempts] == [False, True]
    assert fleet["spare"].requests == []
    assert fleet["slow"].last.cancelled.wait(10)


def test_a_budget_of_next_to_nothing_is_a_timeout(fleet: Fleet) -> None:
    fleet["slow"].script(silent)
    answer = fleet.ask("slow", then_good=False, X_Tresor_Timeout_Seconds="0.000001")
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert fleet.claims(answer).outcome == "refused"


# Rest.


def test_an_upstream_that_rests_is_passed_over_until_a_probe_finds_it_well(fleet: Fleet) -> None:
    resting, step = fleet["resting"], threading.Event()
    resting.script(reply_error(500))
    for _ in range(5):
        assert fleet.tried(fleet.ask("resting")) == [("resting", "upstream_status"), ("good", None)]

    def probe(call: Call) -> None:
        step.wait(30)
        echo(call)

    resting.script(probe, echo)
    passed_over = fleet.ask("resting")
    assert (fleet.tried(passed_over), passed_over.json["tresor"]["failover"]) == ([("good", None)], True)
    assert len(resting.requests) == 5
    with probing(fleet, resting) as answer_of_the_probe:
        for _ in range(3):
            assert fleet.tried(fleet.ask("resting")) == [("good", None)]
        assert len(resting.requests) == 6
        step.set()
        assert fleet.tried(answer_of_the_probe()) == [("resting", None)]
    assert [fleet.tried(fleet.ask("resting")) for _ in range(3)] == [[("resting", None)]] * 3


@contextlib.contextmanager
def probing(fleet: Fleet, upstream: Upstream) -> Iterator[Callable[[], Answer]]:
    """Ask until a request goes to an upstream that rests, and stays there; give what reads its answer."""
    known, deadline = len(upstream.requests), time.monotonic() + 20
    while time.monotonic() < deadline:
        with fleet.router.connect() as wire:
            wire.send(request_bytes("POST", "/v1/chat/completions", key=fleet.router.key, body=body_for("resting")))
            while not select.select([wire.sock], [], [], 0.01)[0]:
                if len(upstream.requests) > known:
                    yield wire.read_answer
                    return
            assert fleet.tried(wire.read_answer()) == [("good", None)]
    raise AssertionError("no probe went out")


@pytest.mark.parametrize("status", [429, 503])
def test_an_upstream_that_asks_for_a_pause_gets_it(fleet: Fleet, status: int) -> None:
    paused = fleet["paused"]
    paused.reset()
    paused.script(reply(b"{}", "Retry-After: 2", status=status), echo)
    assert fleet.tried(fleet.ask("paused")) == [("paused", "upstream_status"), ("good", None)]
    began = time.monotonic()
    while fleet.tried(fleet.ask("paused")) == [("good", None)]:
        assert len(paused.requests) == 1
        time.sleep(0.05)
        assert time.monotonic() - began < 20
    assert time.monotonic() - began > 1.5
    assert len(paused.requests) == 2


def test_the_only_route_is_tried_although_it_rests(fleet: Fleet) -> None:
    fleet["alone"].script(reply_error(500))
    for count in range(1, 9):
        answer = fleet.ask("alone", then_good=False)
        assert (answer.status, len(fleet["alone"].requests)) == (502, count)
    fleet["alone"].script(echo)
    assert fleet.ask("alone", then_good=False).status == 200


def test_where_all_rest_all_are_tried(fleet: Fleet) -> None:
    names = ["tired-1", "tired-2"]
    for name in names:
        fleet[name].script(reply_error(500))
    request = chat(route(names[0]), failover=[route(names[1])])
    answers = [fleet.router.complete(request) for _ in range(8)]
    assert [fleet.tried(answer) for answer in answers] == [[(name, "upstream_status") for name in names]] * 8
    fleet["tired-2"].script(echo)
    assert fleet.router.complete(request).status == 200


# Load.


def test_an_upstream_serves_no_more_than_it_may_and_the_rest_waits_or_goes_elsewhere(fleet: Fleet) -> None:
    narrow, step, active = fleet["narrow"], threading.Event(), [0, 0]

    def one_at_a_time(call: Call) -> None:
        active[0] += 1
        active[1] = max(active)
        step.wait(30)
        active[0] -= 1
        echo(call)

    narrow.script(one_at_a_time)
    with ExitStack() as stack:
        wires = [stack.enter_context(fleet.router.connect()) for _ in range(3)]
        for number, wire in enumerate(wires):
            body = body_for("narrow", f"{number}", then_good=False)
            wire.send(request_bytes("POST", "/v1/chat/completions", key=fleet.router.key, body=body))
            narrow.wait_for(1)
        # One is served, one of the others waits; for the third there is no room.
        readable, _, _ = select.select([wire.sock for wire in wires], [], [], 20)
        (refused,) = [wire for wire in wires if wire.sock in readable]
        answer = refused.read_answer()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "no_route_available", "1")
        assert answer.error["attempts"] == [{"route": route("narrow"), "reason": "overloaded", "status": None}]
        assert attempts_of(fleet.claims(answer)) == [(route("narrow"), "failed", "overloaded", None, False)]
        assert fleet.tried(fleet.ask("narrow")) == [("narrow", "overloaded"), ("good", None)]
        assert len(narrow.requests) == 1
        step.set()
        served = [wire.read_answer() for wire in wires if wire is not refused]
    assert [fleet.tried(answer) for answer in served] == [[("narrow", None)]] * 2
    assert (len(narrow.requests), active) == (2, [0, 1])
    assert fleet.tried(fleet.ask("narrow")) == [("narrow", None)]


def test_who_waits_in_vain_goes_elsewhere_and_who_leaves_keeps_no_place(fleet: Fleet) -> None:
    impatient, step = fleet["impatient"], threading.Event()
    left = [(route("impatient"), "cancelled", "caller_gone", None, False)]
    impatient.script(stream(step, chunk("a"), finish(), DONE), echo)
    with fleet.router.connect() as busy, fleet.router.connect() as leaving:
        body = body_for("impatient", stream=True)
        busy.send(request_bytes("POST", "/v1/chat/completions", key=fleet.router.key, body=body))
        impatient.wait_for(1)
        leaving.send(request_bytes("POST", "/v1/chat/completions", key=fleet.router.key, body=body))
        leaving.sock.close()
        wait_until(lambda: left in [attempts_of(claims) for _, claims in fleet.router.stored_claims()], "it has left")
        answer = fleet.ask("impatient")
        assert fleet.tried(answer) == [("impatient", "overloaded"), ("good", None)]
        alone = fleet.ask("impatient", then_good=False)
        assert (alone.status, alone.error["code"]) == (503, "no_route_available")
        step.set()
        assert busy.read_answer().body.endswith(DONE)
    assert fleet.tried(fleet.ask("impatient")) == [("impatient", None)]


def test_a_conversation_stays_where_it_is_and_conversations_are_shared_out(fleet: Fleet) -> None:
    served: Counter[str] = Counter()
    with fleet.router.connect() as wire:
        for number in range(40):
            messages = [{"role": "system", "content": "Be brief."}]
            routes = set()
            for turn in range(3):
                messages.append({"role": "user", "content": f"question {turn} of {number}"})
                body = json.dumps({"model": "twin", "messages": messages}).encode()
                answer = wire.ask("POST", "/v1/chat/completions", key=fleet.router.key, body=body)
                assert answer.json["tresor"]["failover"] is False
                routes.add(answer.json["tresor"]["routed_model"])
                messages.append({"role": "assistant", "content": f"answer {turn}"})
            assert len(routes) == 1
            served.update(routes)
    assert set(served) == {"eu/twin-1/twin", "eu/twin-2/twin"}
    assert min(served.values()) >= 8


# What callers and customers demand.


def test_a_customer_that_requires_evidence_gets_none_without(fleet: Fleet) -> None:
    config, request = fleet.router.config, chat(GOOD, "for an enclave's eyes", failover=[route("spare")])
    added = tresor("customers", "add", "strict", "--require-attestation", "workload, cpu_tee", "--config", config)
    assert added.exit_code == 0, added.err
    key = new_key(config, "strict")
    known = [fleet[name].connections for name in ("good", "spare")], len(fleet["good"].requests)
    for headers in ({}, {"X_Tresor_Require_Attestation": "tcb"}):
        answer = fleet.router.complete(request, key=key, **headers)
        assert (answer.status, answer.error["code"]) == (412, "attestation_requirements_not_met")
        claims = fleet.router.verify(answer.receipt_id, request=request, response=answer.body, key=key).claims
        assert (claims.outcome, claims.attempts, claims.upstream_request_digest) == ("refused", (), None)
        for claim in ("cpu_tee", "workload", *(["tcb"] if headers else [])):
            assert claim in answer.error["message"]
    assert ([fleet[name].connections for name in ("good", "spare")], len(fleet["good"].requests)) == known
    listed = tresor("customers", "list", "--config", config).out.splitlines()
    assert [line.split()[:3] for line in listed if line.startswith("strict")] == [
        ["strict", "default", "cpu_tee,workload"]
    ]
    changed = tresor("customers", "change", "strict", "--require-attestation", "", "--config", config)
    assert changed.out == "customer strict is on plan default and requires no attestation\n"
    wait_until(lambda: fleet.router.complete(request, key=key).status == 200, "the change is known", timeout_s=10)


def test_the_catalogue_says_that_nothing_is_verified(fleet: Fleet) -> None:
    listed = fleet.router.ask("GET", "/v1/models?detail=true").json["data"]
    assert {entry["tresor"]["attestation"] for entry in listed} == {"unverified"}
