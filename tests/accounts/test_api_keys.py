"""Who is let in: the form of keys, what a process remembers of them, and what it does without its store."""

import asyncio
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.accounts.api_keys import FRESH_S, STALE_S, Authenticator, key_digest, new_api_key, new_key_id
from tresor.errors import RequestError, StoreUnavailableError
from tresor.store.base import ApiKey
from tresor.store.sqlite.store import SqliteStore

KEY = "tr-" + "0123456789abcdef" * 6
OTHER = "tr-" + "f" * 96


class CountingStore(SqliteStore):
    """A store that counts look-ups and can be down."""

    down = False
    look_ups = 0

    def find_api_key(self, digest: bytes) -> ApiKey | None:
        self.look_ups += 1
        if self.down:
            raise StoreUnavailableError("down")
        return super().find_api_key(digest)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountingStore]:
    made = CountingStore(tmp_path / "tresor.db")
    made.add_customer("acme", "gold", now=1)
    made.add_api_key("key_1", "acme", key_digest(KEY), "", now=1)
    yield made
    made.close()


@pytest.fixture
def keys(store: CountingStore) -> Authenticator:
    return Authenticator(store)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("tresor.accounts.api_keys.time.monotonic", made)
    return made


def ask(keys: Authenticator, key: str = KEY) -> str:
    """Return the customer's name, or status and code."""
    try:
        return asyncio.run(keys.authenticate(f"Bearer {key}")).customer_name
    except RequestError as error:
        return f"{error.status} {error.code}"


def test_keys_are_made_in_the_form_that_is_read() -> None:
    made = {new_api_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("tr-[0-9a-f]{96}", key) for key in made)
    assert re.fullmatch("key_[0-9a-f]{16}", new_key_id())
    assert key_digest(KEY) == hashlib.sha256(KEY.encode()).digest()


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer   {KEY}"])
def test_a_key_lets_its_customer_in(keys: Authenticator, authorization: str) -> None:
    found = asyncio.run(keys.authenticate(authorization))
    assert (found.id, found.customer_name, found.plan) == ("key_1", "acme", "gold")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer{KEY}",
        f"Bearer\t{KEY}",
        f" Bearer {KEY}",
        f"Bearer {KEY} ",
        f"Bearer {KEY}\n",
        f"Bearer {KEY}, Bearer {KEY}",
        f"Bearer {KEY}0",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY.replace('0', chr(0x660))}",
        f"Bearer {KEY.replace('tr-', 'tk-')}",
        "Bearer tr-" + "g" * 96,
    ],
)
def test_what_is_no_key_is_not_even_looked_up(
    keys: Authenticator, store: CountingStore, authorization: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        asyncio.run(keys.authenticate(authorization))
    assert (caught.value.status, caught.value.code, caught.value.type) == (401, "unauthorized", "authentication_error")
    assert store.look_ups == 0


@given(
    authorization=st.one_of(
        st.text(max_size=120), st.text("0123456789abcdefABC", max_size=99).map("Bearer tr-".__add__)
    )
)
def test_any_header_is_refused_in_one_way(authorization: str) -> None:
    class NoStore:
        pass

    with pytest.raises(RequestError) as caught:
        asyncio.run(Authenticator(NoStore()).authenticate(authorization))  # type: ignore[arg-type]
    assert str(caught.value) == "missing, malformed, unknown or revoked API key: want 'Bearer tr-…'"


def test_unknown_and_revoked_keys_get_the_same_answer(keys: Authenticator, store: CountingStore) -> None:
    store.revoke_api_key("key_1", now=2)
    for key in (KEY, OTHER):
        with pytest.raises(RequestError) as caught:
            asyncio.run(keys.authenticate(f"Bearer {key}"))
        assert (caught.value.status, str(caught.value)) == (
            401,
            "missing, malformed, unknown or revoked API key: want 'Bearer tr-…'",
        )


def test_a_key_is_remembered_for_a_moment(keys: Authenticator, store: CountingStore, clock: Clock) -> None:
    assert [ask(keys) for _ in range(3)] == ["acme"] * 3
    assert store.look_ups == 1
    clock.now += FRESH_S
    ask(keys)
    assert store.look_ups == 1
    clock.now += 0.01
    ask(keys)
    assert store.look_ups == 2


def test_a_revoked_key_stops_within_that_moment(keys: Authenticator, store: CountingStore, clock: Clock) -> None:
    assert ask(keys) == "acme"
    store.revoke_api_key("key_1", now=2)
    assert ask(keys) == "acme"
    clock.now += FRESH_S + 0.01
    assert ask(keys) == "401 unauthorized"
    store.down = True  # and does not come back with the store away
    clock.now += FRESH_S + 0.01
    assert ask(keys) == "401 unauthorized"


def test_an_unknown_key_works_as_soon_as_it_is_there(keys: Authenticator, store: CountingStore) -> None:
    assert ask(keys, OTHER) == "401 unauthorized"
    store.add_api_key("key_2", "acme", key_digest(OTHER), "", now=1)
    assert ask(keys, OTHER) == "acme"


def test_unknown_keys_are_not_remembered(keys: Authenticator) -> None:
    for _ in range(20):
        assert ask(keys, new_api_key()) == "401 unauthorized"
    assert len(keys._known) == 0


def test_without_the_store_known_keys_go_on_and_others_wait(
    keys: Authenticator, store: CountingStore, clock: Clock
) -> None:
    assert ask(keys) == "acme"
    store.down = True
    assert ask(keys, OTHER) == "503 service_unavailable"
    for _ in range(3):
        clock.now += (STALE_S - 1) / 3
        assert ask(keys) == "acme"
    clock.now += 2
    assert ask(keys) == "503 service_unavailable"
    store.down = False
    assert ask(keys) == "acme"
    store.down = True
    assert ask(keys) == "acme"


def test_a_503_says_when_to_come_again(keys: Authenticator, store: CountingStore) -> None:
    store.down = True
    with pytest.raises(RequestError) as caught:
        asyncio.run(keys.authenticate(f"Bearer {KEY}"))
    assert caught.value.retry_after_s == 2
    assert KEY not in str(caught.value)


def test_the_real_clock_is_monotonic(keys: Authenticator) -> None:
    before = time.monotonic()
    assert ask(keys) == "acme"
    (_, seen_at) = keys._known[key_digest(KEY)]
    assert before <= seen_at <= time.monotonic()
