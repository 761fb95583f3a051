"""Customers, keys and rate limits: the command line on one side, running routers on the other."""

import re
import threading
import time
from collections import Counter
from pathlib import Path

import openai
import pytest

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, new_key, new_state, tresor, wait_until, write_config
from support.upstream import Upstream
from support.wire import Answer

MINUTE_S, DAY_S = 60, 86_400


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a plan `small`; nothing runs."""
    return write_config(
        tmp_path, [UpstreamEntry("http://127.0.0.1:1/v1")], settings={"plans": {"small": {"requests_per_minute": 1}}}
    )


def test_customers_are_added_and_listed(config: Path) -> None:
    assert tresor("customers", "list", "--config", config).out == "NAME  PLAN  REQUIRES  ADDED\n"
    added = tresor("customers", "add", "Ærø & Søn", "--plan", "small", "--config", config)
    assert (added.exit_code, added.out) == (0, "added customer Ærø & Søn on plan small\n")
    assert tresor("customers", "add", "acme", "--config", config).exit_code == 0
    lines = tresor("customers", "list", "--config", config).out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["NAME", "Ærø & Søn", "acme"]
    assert re.fullmatch(r"acme +default +- +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", lines[2])


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["acme"], 1, "tresor: there is a customer 'acme' already\n"),
        (["x", "--plan", "gold"], 1, "tresor: there is no plan 'gold' under [plans]\n"),
        ([""], 1, "tresor: a customer needs a name\n"),
        (["a\nb"], 2, "printable"),
        (["x" * 129], 2, "128"),
    ],
)
def test_customers_that_cannot_be_added(config: Path, arguments: list[str], exit_code: int, message: str) -> None:
    new_state(config)
    done = tresor("customers", "add", *arguments, "--config", config)
    assert done.exit_code == exit_code
    assert message in done.err
    assert done.out == ""
    assert len(tresor("customers", "list", "--config", config).out.splitlines()) == 2


def test_a_key_is_shown_once_and_kept_nowhere(config: Path) -> None:
    tresor("customers", "add", "acme", "--config", config)
    created = tresor("keys", "create", "--customer", "acme", "--label", "laptop", "--config", config)
    assert re.fullmatch(r"tr-[0-9a-f]{96}\n", created.out)
    match = re.fullmatch(r"(key_[0-9a-f]{16}): shown this once; only its SHA-256 is kept\n", created.err)
    assert match is not None
    listing = tresor("keys", "list", "--config", config).out.splitlines()
    assert listing[0].split() == ["ID", "CUSTOMER", "LABEL", "CREATED", "REVOKED"]
    assert listing[1].split()[:3] == [match[1], "acme", "laptop"]
    assert listing[1].split()[4] == "-"
    key = created.out.strip()
    for file in config.parent.iterdir():
        assert key.encode() not in file.read_bytes()
        assert key[3:].encode() not in file.read_bytes()


def test_keys_are_listed_by_customer(config: Path) -> None:
    new_state(config, "one")
    new_state(config, "two")
    assert len(tresor("keys", "list", "--config", config).out.splitlines()) == 3
    (line,) = tresor("keys", "list", "--customer", "two", "--config", config).out.splitlines()[1:]
    assert line.split()[1] == "two"


def test_keys_that_cannot_be_created_or_revoked(config: Path) -> None:
    created = tresor("keys", "create", "--customer", "nobody", "--config", config)
    assert (created.exit_code, created.out) == (1, "")
    assert created.err == "tresor: there is no customer 'nobody'; see 'tresor customers list'\n"
    revoked = tresor("keys", "revoke", "key_0", "--config", config)
    assert revoked.exit_code == 1
    assert revoked.err == "tresor: there is no live key 'key_0'; see 'tresor keys list'\n"


def key_ids(config: Path) -> list[str]:
    return [line.split()[0] for line in tresor("keys", "list", "--config", config).out.splitlines()[1:]]


def test_a_revoked_key_stops_on_every_worker_and_its_sisters_go_on(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}})
    (key_id,) = key_ids(router.config)
    receipt_id = router.complete().receipt_id
    sister = new_key(router.config, "acme")
    for worker in router.workers():  # each has seen the key
        worker.suspend()
        assert router.complete().status == 200
        worker.resume()
    assert tresor("keys", "revoke", key_id, "--config", router.config).exit_code == 0
    for worker in router.workers():
        worker.suspend()
        wait_until(lambda: router.complete().status == 401, "the key is refused", timeout_s=10)
        assert [router.complete().status for _ in range(10)] == [401] * 10
        assert router.complete(key=sister).status == 200
        assert router.ask("GET", f"/v1/receipts/{receipt_id}", key=router.key).status == 401
        assert router.ask("GET", f"/v1/receipts/{receipt_id}", key=sister).status == 200
        worker.resume()
    again = tresor("keys", "revoke", key_id, "--config", router.config)
    assert again.exit_code == 1


def test_a_new_key_works_at_once(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)])
    assert router.complete(key=new_state(router.config, "late")).status == 200


# Rate limits.


def wait_for_room(window_s: int, needed_s: float) -> None:
    """Wait until the window that runs now lasts for long enough."""
    wait_until(lambda: window_s - time.time() % window_s > needed_s, "a window begins", timeout_s=60)


def ask_at_once(router: Router, count: int, key: str) -> list[Answer]:
    """Ask on many connections at the same time."""
    answers: list[Answer] = []
    go = threading.Barrier(count)

    def ask() -> None:
        with router.connect() as wire:
            go.wait(20)
            answers.append(wire.ask("POST", "/v1/chat/completions", key=key, body=chat()))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize(
    ("plan", "window_s", "limit"),
    [
        ({"requests_per_minute": 30, "requests_per_day": 60}, MINUTE_S, 30),
        ({"requests_per_minute": 60, "requests_per_day": 30}, DAY_S, 30),
        ({"requests_per_minute": 1, "requests_per_day": 1}, DAY_S, 1),
    ],
)
def test_a_limit_is_exact_over_all_workers(
    start_router: StartRouter, alpha: Upstream, plan: dict[str, int], window_s: int, limit: int
) -> None:
    plans = {"requests_per_minute": 1_000_000, "requests_per_day": 1_000_000}
    router = start_router(
        [UpstreamEntry(alpha)], settings={"server": {"workers": 2}, "plans": {"default": plans, "small": plan}}
    )
    key = new_state(router.config, "small", plan="small")
    wait_for_room(MINUTE_S, 20)
    wait_for_room(DAY_S, 20)
    answers = ask_at_once(router, 50, key)
    assert Counter(answer.status for answer in answers) == {200: limit, 429: 50 - limit}
    assert len(alpha.requests) == limit
    for answer in answers:
        if answer.status == 429:
            assert (answer.error["type"], answer.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert 0 < int(answer.headers["retry-after"]) <= window_s
            assert answer.headers["x-ratelimit-limit"] == str(limit)
            assert answer.headers["x-ratelimit-remaining"] == "0"
            assert "x-tresor-receipt-id" not in answer.headers
    assert router.complete().status == 200  # of another customer


def test_a_limit_is_the_sdks_own_exception(start_router: StartRouter, alpha: Upstream) -> None:
    plan = {"requests_per_minute": 1000, "requests_per_day": 1}
    router = start_router([UpstreamEntry(alpha)], settings={"plans": {"default": plan}})
    wait_for_room(DAY_S, 20)
    assert router.complete().status == 200
    http_client = openai.DefaultHttpxClient(trust_env=False)
    with (
        openai.OpenAI(base_url=router.base_url, api_key=router.key, max_retries=0, http_client=http_client) as client,
        pytest.raises(openai.RateLimitError) as limited,
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert limited.value.code == "rate_limit_exceeded"
    assert int(limited.value.response.headers["retry-after"]) > 0


def test_what_remains_is_said_of_the_window_nearest_to_its_end(start_router: StartRouter, alpha: Upstream) -> None:
    plan = {"requests_per_minute": 5, "requests_per_day": 1000}
    router = start_router([UpstreamEntry(alpha)], settings={"plans": {"default": plan}})
    wait_for_room(MINUTE_S, 20)
    answers = [router.ask("GET", "/v1/receipts", key=router.key) for _ in range(3)]
    answers.append(router.complete(b"no json"))
    answers.append(router.ask("GET", "/v1/chat/completions", key=router.key))
    answers.append(router.complete())
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 405, 429]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["4", "3", "2", "1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"5"}


def test_a_restart_does_not_begin_the_window_anew(start_router: StartRouter, alpha: Upstream) -> None:
    plan = {"requests_per_minute": 1000, "requests_per_day": 5}
    router = start_router([UpstreamEntry(alpha)], settings={"plans": {"default": plan}})
    wait_for_room(DAY_S, 30)
    assert [router.complete().status for _ in range(3)] == [200] * 3
    router.workers()[0].kill()
    statuses = [router.complete().status for _ in range(5)]
    assert statuses.count(200) <= 2
    assert statuses[-1] == 429
