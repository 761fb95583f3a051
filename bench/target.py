"""What a target of the benchmark is, and the check that it relays answers correctly before it is measured."""

import http.client
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.install import WORK
from bench.process import Server, ServerError, require_free_port

UPSTREAM_PORT = 18080
UPSTREAM_URL = f"http://127.0.0.1:{UPSTREAM_PORT}/v1"

# What bench/upstream.c answers.
MARK = "lorem ipsum"
MARKS = 61
EVENTS = 64
CONTENT = f" {MARK}" * MARKS

_READY_WITHIN_S = 120
_ANSWER_WITHIN_S = 30


class AnswerError(Exception):
    """A gateway does not relay the upstream's answer as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a target."""

    argv: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How a started target is called."""

    port: int
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    model_prefix: str = ""
    required: Sequence[str] = ()  # texts that must stand in every answer

    def body(self, *, stream: bool, paced: bool = False) -> str:
        """The request, as small as a first question to a model is."""
        request: dict[str, object] = {
            "model": self.model_prefix + ("paced" if paced else "fast"),
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Say the words that printers say when they have nothing to say."},
            ],
        }
        if stream:
            request["stream"] = True
        return json.dumps(request)


class Target(ABC):
    """One thing to measure.  Installing and starting are apart, so that one that cannot be had is still reported."""

    name: str
    setting: str  # one line for the report: the form it was installed in, how it was configured
    port: int | None  # None: it chooses one itself

    @property
    def directory(self) -> Path:
        """Where its configuration, log and state go."""
        return WORK / "run" / self.name

    @abstractmethod
    def install(self) -> str:
        """Install it, or find it installed.

        Returns:
            Its version.

        Raises:
            InstallError: it cannot be had here.
        """

    @abstractmethod
    def launch(self) -> Launch:
        """Write its configuration into `directory` and say how to start it."""

    @abstractmethod
    def endpoint(self) -> Endpoint | None:
        """How it is called, or None while that is not known yet."""

    def start(self, core: int) -> tuple[Server, Endpoint]:
        """Start it on a core, wait until it answers, check both kinds of answer.

        Raises:
            ServerError: it did not start or is not ready in time.
            AnswerError: it answers, but not what it should.
        """
        if self.port is not None:
            require_free_port(self.port)
        self.directory.mkdir(parents=True, exist_ok=True)
        launch = self.launch()
        server = Server(launch.argv, directory=self.directory, core=core, env=launch.env)
        try:
            endpoint = self._await_answer(server)
            _check(endpoint)
        except BaseException:
            server.kill()
            raise
        return server, endpoint

    def _await_answer(self, server: Server) -> Endpoint:
        deadline = time.monotonic() + _READY_WITHIN_S
        last = "nothing listens"
        while time.monotonic() < deadline:
            server.require_alive()
            if endpoint := self.endpoint():
                try:
                    status, answer = post(endpoint, endpoint.body(stream=False))
                except (OSError, http.client.HTTPException):
                    pass
                else:
                    if status == http.HTTPStatus.OK:
                        return endpoint
                    last = f"status {status}: {answer[:200]!r}"
            time.sleep(0.2)
        raise ServerError(f"not ready within {_READY_WITHIN_S} s; {last}")


def post(endpoint: Endpoint, body: str) -> tuple[int, str]:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request("POST", endpoint.path, body, {"Content-Type": "application/json", **endpoint.headers})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def parse_json(text: str) -> dict[str, Any]:
    """Parse what our own programs or a gateway under test wrote: no adversary, no secrets."""
    value: dict[str, Any] = json.loads(text)  # noqa: TID251 - the bench must run where tresor does not import
    return value


def _check(endpoint: Endpoint) -> None:
    """Check that both kinds of answer arrive whole.

    Raises:
        AnswerError: one does not.
    """
    try:
        _check_answer(endpoint)
        _check_stream(endpoint)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise AnswerError(f"no chat completion: {error!r}") from error


def _check_answer(endpoint: Endpoint) -> None:
    """The plain answer has the upstream's content."""
    status, answer = post(endpoint, endpoint.body(stream=False))
    if status != http.HTTPStatus.OK or parse_json(answer)["choices"][0]["message"]["content"] != CONTENT:
        raise AnswerError(f"plain answer, status {status}: {answer[:200]!r}")


def _check_stream(endpoint: Endpoint) -> None:
    """The stream arrives event by event, with the content, a finish reason and `[DONE]`."""
    status, answer = post(endpoint, endpoint.body(stream=True))
    events = [line.removeprefix("data:").strip() for line in answer.splitlines() if line.startswith("data:")]
    if status != http.HTTPStatus.OK or len(events) != EVENTS or events[-1] != "[DONE]":
        raise AnswerError(f"stream, status {status}, {len(events)} events of {EVENTS}: {answer[-200:]!r}")
    choices = [choice for event in events[:-1] for choice in parse_json(event)["choices"]]
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    if content != CONTENT or choices[-1].get("finish_reason") != "stop":
        raise AnswerError(f"the stream is not what the upstream sent: {answer[-200:]!r}")
