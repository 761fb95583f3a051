"""The promises of `tresor.store.base`, one contract for every store there is."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

from tresor.errors import StoreUnavailableError
from tresor.jose.jws import SignedJws
from tresor.store.base import EvidenceItem, NewReceipt, Store
from tresor.store.sqlite.store import SqliteStore

OpenStore = Callable[[], Store]

NOW = 1_800_000_000


@pytest.fixture(params=["sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Open one and the same store again and again, as processes that share it do."""
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append({"sqlite": lambda: SqliteStore(tmp_path / "tresor.db")}[request.param]())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


def jws(payload: str) -> SignedJws:
    return SignedJws("{}ä".encode(), payload.encode(), bytes(range(64)))


def receipts(*seqs: int, kid: str = "k", customer_id: int = 1, issued_at: int = NOW) -> list[NewReceipt]:
    return [
        NewReceipt(
            id=str(uuid4()), customer_id=customer_id, kid=kid, seq=seq, issued_at=issued_at, jws=jws(f"{kid}.{seq}")
        )
        for seq in seqs
    ]


def append(store: Store, *seqs: int, kid: str = "k", customer_id: int = 1, issued_at: int = NOW) -> list[str]:
    """Append receipts of a key that is known by then, and return their ids."""
    store.register_signing_key(kid, "x", "y", now=NOW)
    new = receipts(*seqs, kid=kid, customer_id=customer_id, issued_at=issued_at)
    store.append_receipts(new)
    return [receipt.id for receipt in new]


def payloads(store: Store, customer_id: int = 1) -> list[str]:
    listed = store.list_receipts(customer_id, after=None, limit=1000)
    assert listed is not None
    return [receipt.jws.payload.decode() for receipt in listed]


def last_seq(store: Store, kid: str = "k") -> int:
    (key,) = [key for key in store.signing_keys() if key.kid == kid]
    return key.last_seq


# Customers and API keys.


def test_a_customer_is_added_once(store: Store) -> None:
    added = store.add_customer("Ærø & Søn", "gold", now=NOW)
    assert added is not None
    assert (added.name, added.plan, added.created_at) == ("Ærø & Søn", "gold", NOW)
    assert store.add_customer("Ærø & Søn", "default", now=NOW + 1) is None
    other = store.add_customer("b", "default", now=NOW - 1)
    assert store.customers() == [added, other]


def test_a_customer_requires_nothing_unless_it_is_said(store: Store) -> None:
    plain = store.add_customer("a", "default", now=NOW)
    strict = store.add_customer("b", "default", now=NOW, required_claims="cpu_tee,tcb")
    assert plain is not None
    assert strict is not None
    assert (plain.required_claims, strict.required_claims) == ("", "cpu_tee,tcb")
    for number, name in enumerate("ab"):
        store.add_api_key(f"key_{number}", name, bytes([number]) * 32, "", now=NOW)
    assert [key.required_claims for key in store.api_keys()] == [frozenset(), {"cpu_tee", "tcb"}]


def test_what_is_changed_of_a_customer_counts_for_its_keys_and_for_no_other(store: Store) -> None:
    acme = store.add_customer("acme", "gold", now=NOW, required_claims="tcb")
    other = store.add_customer("other", "gold", now=NOW)
    assert acme is not None
    store.add_api_key("key_1", "acme", b"1" * 32, "", now=NOW)
    changes: list[tuple[str | None, str | None, tuple[str, str]]] = [
        ("silver", None, ("silver", "tcb")),
        (None, "cpu_tee,workload", ("silver", "cpu_tee,workload")),
        (None, None, ("silver", "cpu_tee,workload")),
        ("gold", "", ("gold", "")),
    ]
    for plan, claims, (plan_then, claims_then) in changes:
        changed = store.change_customer("acme", plan=plan, required_claims=claims)
        assert changed == replace(acme, plan=plan_then, required_claims=claims_then)
        assert store.customers() == [changed, other]
        found = store.find_api_key(b"1" * 32)
        assert found is not None
        assert (found.plan, found.required_claims) == (plan_then, frozenset(claims_then.split(",")) - {""})


def test_a_customer_that_is_not_there_is_not_changed(store: Store) -> None:
    assert store.change_customer("nobody", plan="gold", required_claims="tcb") is None
    assert store.customers() == []


def test_a_key_is_found_by_its_digest_and_by_nothing_else(store: Store) -> None:
    acme = store.add_customer("acme", "gold", now=NOW)
    assert acme is not None
    assert store.add_api_key("key_1", "acme", b"1" * 32, "laptop", now=NOW)
    found = store.find_api_key(b"1" * 32)
    assert found is not None
    assert (found.id, found.customer_id, found.customer_name, found.plan) == ("key_1", acme.id, "acme", "gold")
    assert (found.digest, found.label, found.created_at, found.revoked_at) == (b"1" * 32, "laptop", NOW, None)
    assert store.find_api_key(b"2" * 32) is None
    assert store.find_api_key(b"1" * 31) is None
    assert store.find_api_key(b"") is None


def test_a_key_needs_a_customer(store: Store) -> None:
    assert not store.add_api_key("key_1", "nobody", b"1" * 32, "", now=NOW)
    assert store.api_keys() == []


@pytest.mark.parametrize(("key_id", "digest"), [("key_1", b"2" * 32), ("key_2", b"1" * 32)])
def test_neither_an_id_nor_a_digest_is_taken_twice(store: Store, key_id: str, digest: bytes) -> None:
    store.add_customer("acme", "default", now=NOW)
    store.add_customer("other", "default", now=NOW)
    store.add_api_key("key_1", "acme", b"1" * 32, "", now=NOW)
    before = store.api_keys()
    with pytest.raises(StoreUnavailableError):
        store.add_api_key(key_id, "other", digest, "", now=NOW)
    assert store.api_keys() == before


def test_keys_are_listed_oldest_first_and_by_customer(store: Store) -> None:
    for name in ("a", "b"):
        store.add_customer(name, "default", now=NOW)
    for number, (customer, created_at) in enumerate([("a", 3), ("b", 2), ("a", 1)]):
        store.add_api_key(f"key_{number}", customer, bytes([number]) * 32, "", now=created_at)
    assert [key.id for key in store.api_keys()] == ["key_2", "key_1", "key_0"]
    assert [key.id for key in store.api_keys("a")] == ["key_2", "key_0"]
    assert store.api_keys("nobody") == []


def test_a_key_is_revoked_once_and_for_good(store: Store) -> None:
    store.add_customer("acme", "default", now=NOW)
    for number in (1, 2):
        store.add_api_key(f"key_{number}", "acme", bytes([number]) * 32, "", now=NOW)
    assert store.revoke_api_key("key_1", now=NOW + 5)
    assert not store.revoke_api_key("key_1", now=NOW + 9)
    assert not store.revoke_api_key("key_3", now=NOW)
    assert [key.revoked_at for key in store.api_keys()] == [NOW + 5, None]
    found = store.find_api_key(bytes([1]) * 32)
    assert found is not None
    assert found.revoked_at == NOW + 5


# Signing keys.


def test_a_signing_key_is_registered_once(store: Store) -> None:
    first = store.register_signing_key("k", "x", "y", now=NOW)
    assert (first.kid, first.x, first.y, first.created_at, first.retired_at, first.last_seq) == (
        "k",
        "x",
        "y",
        NOW,
        None,
        0,
    )
    assert store.register_signing_key("k", "x", "y", now=NOW + 9) == first
    second = store.register_signing_key("l", "x", "y", now=NOW - 9)
    assert store.signing_keys() == [first, second]


def test_a_signing_key_is_retired_once_and_stays_known(store: Store) -> None:
    append(store, 1, 2)
    store.retire_signing_key("k", now=NOW + 5)
    store.retire_signing_key("k", now=NOW + 9)
    store.retire_signing_key("nobody", now=NOW)
    (key,) = store.signing_keys()
    assert (key.retired_at, key.last_seq) == (NOW + 5, 2)
    assert store.register_signing_key("k", "x", "y", now=NOW + 9) == key


def test_the_last_number_outlives_its_receipt(store: Store) -> None:
    append(store, 1, 2, 3)
    assert store.delete_receipts(NOW + 1, limit=2) == 2
    assert last_seq(store) == 3
    assert store.delete_receipts(NOW + 1, limit=2) == 1
    assert payloads(store) == []
    assert last_seq(store) == 3
    assert store.register_signing_key("k", "x", "y", now=NOW).last_seq == 3
    append(store, 4)
    assert last_seq(store) == 4


def test_a_rotation_is_asked_for(store: Store) -> None:
    assert store.rotation_requested_at() == 0
    store.request_rotation(now=NOW)
    store.request_rotation(now=NOW + 1)
    assert store.rotation_requested_at() == NOW + 1


# Receipts.


def test_a_receipt_is_found_by_its_owner_alone(store: Store) -> None:
    (receipt_id,) = append(store, 1, customer_id=7)
    found = store.find_receipt(receipt_id, 7)
    assert found is not None
    assert (found.id, found.jws) == (receipt_id, jws("k.1"))
    assert store.find_receipt(receipt_id, 8) is None
    assert store.find_receipt(str(uuid4()), 7) is None
    assert store.find_receipt("00000000-0000-0000-0000-000000000000", 7) is None


@pytest.mark.parametrize("seqs", [(3, 4, 2), (2,), (3, 3), (1,)])
def test_a_group_is_appended_whole_or_not_at_all_and_no_number_twice(store: Store, seqs: Sequence[int]) -> None:
    append(store, 1, 2)
    with pytest.raises(StoreUnavailableError):
        store.append_receipts(receipts(*seqs))
    assert payloads(store) == ["k.2", "k.1"]
    assert last_seq(store) == 2
    append(store, 3, 4)
    assert last_seq(store) == 4


def test_a_receipt_is_appended_once(store: Store) -> None:
    append(store, 1)
    second = receipts(2)
    store.append_receipts(second)
    with pytest.raises(StoreUnavailableError):
        store.append_receipts([NewReceipt(second[0].id, 1, "k", 3, NOW, jws("k.3"))])
    assert payloads(store) == ["k.2", "k.1"]


def test_each_key_has_its_own_numbers(store: Store) -> None:
    append(store, 1, 2, kid="a")
    append(store, 1, kid="b")
    append(store, 3, kid="a")
    assert (last_seq(store, "a"), last_seq(store, "b")) == (3, 1)


def test_a_key_that_is_not_registered_appends_nothing(store: Store) -> None:
    with pytest.raises(StoreUnavailableError):
        store.append_receipts(receipts(1, kid="stranger"))
    assert payloads(store) == []


def test_a_large_group_is_appended(store: Store) -> None:
    append(store, *range(1, 257))
    assert last_seq(store) == 256
    assert payloads(store) == [f"k.{seq}" for seq in range(256, 0, -1)]


def test_receipts_are_listed_page_by_page_newest_first(store: Store) -> None:
    ids = append(store, *range(1, 8))
    append(store, 8, customer_id=2)
    ids += append(store, 9)
    newest_first = ids[::-1]
    listed: list[str] = []
    after = None
    while page := store.list_receipts(1, after=after, limit=3):
        assert len(page) <= 3
        listed += [receipt.id for receipt in page]
        after = listed[-1]
    assert page == []
    assert listed == newest_first


def test_what_comes_in_between_two_pages_moves_nothing(store: Store) -> None:
    first, second, third = append(store, 1, 2, 3)
    append(store, 4, 5)
    page = store.list_receipts(1, after=third, limit=5)
    assert page is not None
    assert [receipt.id for receipt in page] == [second, first]


def test_a_cursor_is_the_customers_own(store: Store) -> None:
    (foreign,) = append(store, 1, customer_id=2)
    append(store, 2, customer_id=1)
    assert store.list_receipts(1, after=foreign, limit=5) is None
    assert store.list_receipts(1, after=str(uuid4()), limit=5) is None
    assert store.list_receipts(3, after=None, limit=5) == []


def test_retention_deletes_the_oldest_first_and_no_more_than_it_may(store: Store) -> None:
    append(store, 1, 2, issued_at=NOW)
    append(store, 3, 4, customer_id=2, issued_at=NOW + 10)
    append(store, 5, issued_at=NOW + 20)
    assert store.delete_receipts(NOW, limit=100) == 0
    assert store.delete_receipts(NOW + 20, limit=3) == 3
    assert (payloads(store), payloads(store, 2)) == (["k.5"], ["k.4"])
    assert store.delete_receipts(NOW + 20, limit=3) == 1
    assert store.delete_receipts(NOW + 20, limit=3) == 0
    assert (payloads(store), payloads(store, 2)) == (["k.5"], [])


def test_receipts_that_came_behind_deleted_ones_are_still_the_newest(store: Store) -> None:
    append(store, 1, 2, issued_at=NOW)
    store.delete_receipts(NOW + 1, limit=100)
    append(store, 3, 4, issued_at=NOW + 1)
    assert payloads(store) == ["k.4", "k.3"]


# Evidence.


def items(*contents: bytes) -> list[EvidenceItem]:
    return [EvidenceItem(sha256(content).digest(), "text/plain", content) for content in contents]


def kept(store: Store, wanted: Sequence[EvidenceItem]) -> list[EvidenceItem]:
    """Return those that are there, in the order of their content."""
    return sorted(store.find_evidence([item.digest for item in wanted]), key=lambda item: item.data)


def test_evidence_is_kept_once_and_found_by_its_digest(store: Store) -> None:
    wanted = items(b"", b"certificate", b"report" * 50_000)
    store.put_evidence(wanted, used_until=NOW)
    store.put_evidence(wanted[1:], used_until=NOW + 1)
    assert kept(store, wanted) == wanted
    assert kept(store, [*items(b"stranger"), wanted[1]]) == [wanted[1]]
    assert store.find_evidence([]) == []


def test_evidence_goes_with_the_last_receipt_that_can_refer_to_it(store: Store) -> None:
    old, shared, new = items(b"1 old", b"2 shared", b"3 new")
    store.put_evidence([old, shared], used_until=NOW + 10)
    store.put_evidence([shared, new], used_until=NOW + 20)
    store.put_evidence([shared], used_until=NOW + 5)  # what is late takes nothing back
    append(store, 1, 2, issued_at=NOW)
    append(store, 3, issued_at=NOW + 15)
    store.delete_receipts(NOW + 10, limit=1)
    assert kept(store, [old, shared, new]) == [old, shared, new]  # a receipt is left
    store.delete_receipts(NOW + 10, limit=100)
    assert kept(store, [old, shared, new]) == [old, shared, new]  # it is used until then, and including then
    store.delete_receipts(NOW + 11, limit=100)
    assert kept(store, [old, shared, new]) == [shared, new]
    store.delete_receipts(NOW + 21, limit=100)
    assert kept(store, [old, shared, new]) == []


# Counters.


def test_permits_are_taken_until_there_are_none(store: Store) -> None:
    def take(wanted: int) -> tuple[int, int]:
        return store.take_permits(1, 60, wanted=wanted, limit=10, now=NOW)

    assert [take(4), take(4), take(4), take(1)] == [(4, 6), (4, 2), (2, 0), (0, 0)]


def test_more_permits_than_there_are_cannot_be_taken_at_once(store: Store) -> None:
    assert store.take_permits(1, 60, wanted=20, limit=10, now=NOW) == (10, 0)


def test_windows_and_customers_are_counted_by_themselves(store: Store) -> None:
    assert store.take_permits(1, 60, wanted=3, limit=5, now=120) == (3, 2)
    assert store.take_permits(2, 60, wanted=3, limit=5, now=120) == (3, 2)
    assert store.take_permits(1, 86_400, wanted=3, limit=4, now=120) == (3, 1)
    assert store.take_permits(1, 60, wanted=1, limit=5, now=179) == (1, 1)
    assert store.take_permits(1, 60, wanted=9, limit=5, now=180) == (5, 0)
    assert store.take_permits(1, 86_400, wanted=1, limit=4, now=180) == (1, 0)


def test_who_comes_late_takes_from_the_window_that_runs(store: Store) -> None:
    """A process that saw the clock before another did, and asks behind it, must not get what that one took."""
    assert store.take_permits(1, 60, wanted=50, limit=100, now=60) == (50, 50)
    assert store.take_permits(1, 60, wanted=1, limit=100, now=59) == (1, 49)
    assert store.take_permits(1, 60, wanted=60, limit=100, now=61) == (49, 0)
    assert store.take_permits(1, 60, wanted=1, limit=100, now=59) == (0, 0)


def test_a_limit_that_was_lowered_is_exhausted_and_gives_nothing_back(store: Store) -> None:
    store.take_permits(1, 60, wanted=8, limit=10, now=NOW)
    assert store.take_permits(1, 60, wanted=1, limit=5, now=NOW) == (0, 0)
    assert store.take_permits(1, 60, wanted=5, limit=10, now=NOW) == (2, 0)


def test_threads_and_processes_together_take_no_more_than_the_limit(open_store: OpenStore) -> None:
    stores = [open_store(), open_store()]
    taken: list[int] = []
    go = threading.Barrier(6)

    def take(store: Store, wanted: int) -> None:
        go.wait()
        taken.extend(store.take_permits(1, 60, wanted=wanted, limit=100, now=NOW)[0] for _ in range(12))

    run_together([lambda s=stores[n % 2], w=n + 1: take(s, w) for n in range(6)])  # type: ignore[misc]
    assert sum(taken) == 100


def run_together(calls: Sequence[Callable[[], None]]) -> None:
    faults: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            faults.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


# Several processes, and the end.


def test_what_one_process_writes_the_other_sees_at_once(open_store: OpenStore) -> None:
    one, other = open_store(), open_store()
    one.add_customer("acme", "default", now=NOW)
    assert other.add_api_key("key_1", "acme", b"1" * 32, "", now=NOW)
    assert one.find_api_key(b"1" * 32) is not None
    assert other.revoke_api_key("key_1", now=NOW)
    found = one.find_api_key(b"1" * 32)
    assert found is not None
    assert found.revoked_at == NOW
    (receipt_id,) = append(one, 1)
    assert other.find_receipt(receipt_id, 1) is not None
    append(other, 1, kid="other")
    one.request_rotation(now=NOW)
    assert other.rotation_requested_at() == NOW
    assert one.signing_keys() == other.signing_keys()
    with pytest.raises(StoreUnavailableError):
        append(other, 1)


def test_processes_append_at_the_same_time(open_store: OpenStore) -> None:
    stores = {"a": open_store(), "b": open_store()}

    def append_all(kid: str) -> None:
        for seq in range(1, 41, 2):
            append(stores[kid], seq, seq + 1, kid=kid)

    run_together([lambda: append_all("a"), lambda: append_all("b")])
    assert {key.kid: key.last_seq for key in stores["a"].signing_keys()} == {"a": 40, "b": 40}
    assert len(payloads(stores["b"])) == 80


def test_processes_that_open_a_new_store_at_the_same_time_all_get_it(open_store: OpenStore) -> None:
    go = threading.Barrier(8)

    def open_one() -> None:
        go.wait()
        open_store().check()

    run_together([open_one] * 8)


def test_a_store_that_is_opened_again_is_as_it_was_left(open_store: OpenStore) -> None:
    before = open_store()
    before.add_customer("acme", "gold", now=NOW)
    before.add_api_key("key_1", "acme", b"1" * 32, "laptop", now=NOW)
    append(before, 1, 2)
    before.take_permits(1, 60, wanted=3, limit=5, now=NOW)
    before.request_rotation(now=NOW)
    wanted = (before.customers(), before.api_keys(), before.signing_keys(), payloads(before))
    before.close()
    behind = open_store()
    assert (behind.customers(), behind.api_keys(), behind.signing_keys(), payloads(behind)) == wanted
    assert behind.take_permits(1, 60, wanted=3, limit=5, now=NOW) == (2, 0)
    assert behind.rotation_requested_at() == NOW


def test_values_show_no_content() -> None:
    (receipt,) = receipts(1)
    assert repr(receipt) == "<NewReceipt k 1>"
