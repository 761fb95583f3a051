"""The order of candidates: what is excluded, skipped, preferred; shares, and what moves when something changes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.routing.catalogue import Catalogue
from tresor.routing.plan import Plan, Resolution, order, parse_route, resolve
from tresor.routing.view import UpstreamView
from tresor.settings.model import ModelSettings, UpstreamSettings

NOW = 1000.0
PLAIN = UpstreamView()
FRESH = UpstreamView(
    attested=True, attestation="verified", claims=frozenset({"cpu_tee", "tcb"}), fresh_until=NOW + 1, weight=1.0
)
STALE = dataclasses.replace(FRESH, fresh_until=NOW)
PENDING = UpstreamView(attested=True)
REFUSED = UpstreamView(attested=True, attestation="refused")
RESTING = UpstreamView(available=False)


def catalogue(count: int) -> Catalogue:
    """Make upstreams `r/p0`, `r/p1`, each with the model `m` and one of its own."""
    return Catalogue(upstreams(count))


def upstreams(count: int) -> tuple[UpstreamSettings, ...]:
    return tuple(
        UpstreamSettings(
            provider=f"p{n}",
            region="r",
            base_url="https://h/v1",
            attestation="none",
            models=tuple(ModelSettings(key=key, upstream_name=key) for key in ("m", f"only{n}")),
        )
        for n in range(count)
    )


def resolution(of: Catalogue, model: str, *failover: str) -> Resolution:
    others = [parse_route(text, param="failover") for text in failover]
    return resolve(of, parse_route(model, param="model"), others, "chat")


def ordered(
    views: Sequence[UpstreamView], model: str = "m", *failover: str, key: bytes = b"", **demands: Any
) -> tuple[list[int], Plan]:
    plan = order(resolution(catalogue(len(views)), model, *failover), views, now=NOW, affinity=lambda: key, **demands)
    return [route.upstream for route in plan.candidates], plan


def keys(count: int) -> list[bytes]:
    return [n.to_bytes(4) for n in range(count)]


def shares(views: Sequence[UpstreamView], count: int = 2000) -> list[float]:
    """Return the part of the keys that each upstream is the first candidate of."""
    found = resolution(catalogue(len(views)), "m")
    counted = Counter(
        order(found, views, now=NOW, affinity=key.__bytes__).candidates[0].upstream for key in keys(count)
    )
    return [counted[n] / count for n in range(len(views))]


def firsts(views: Sequence[UpstreamView], names: Catalogue, count: int = 400) -> list[str]:
    found = resolution(names, "m")
    return [order(found, views, now=NOW, affinity=key.__bytes__).candidates[0].id for key in keys(count)]


# What costs nothing.


def never() -> bytes:
    raise AssertionError


@pytest.mark.parametrize("view", [PLAIN, RESTING, REFUSED, PENDING])
def test_the_only_candidate_is_tried_however_it_fares(view: UpstreamView) -> None:
    found = resolution(catalogue(1), "m")
    assert order(found, [view], now=NOW, affinity=never) is found.plan


def test_the_affinity_is_not_computed_where_there_is_nothing_to_choose() -> None:
    found = resolution(catalogue(3), "r/p1/m", "r/p0/m", "only2")
    assert [r.upstream for r in order(found, [PLAIN] * 3, now=NOW, affinity=never).candidates] == [1, 0, 2]


# Explicit routes.


@given(key=st.binary(max_size=8), start=st.permutations(range(5)))
def test_named_routes_keep_their_order(key: bytes, start: list[int]) -> None:
    views = [dataclasses.replace(PLAIN, weight=n + 1, latency_s=n + 0.1, in_flight=90 * n) for n in range(5)]
    assert ordered(views, *(f"r/p{n}/m" for n in start), key=key)[0] == start


def test_a_failover_entry_with_auto_is_spread_and_stays_behind() -> None:
    orders = {tuple(ordered([PLAIN] * 4, "r/p2/m", "m", key=key)[0]) for key in keys(100)}
    assert {places[0] for places in orders} == {2}
    assert {places[1] for places in orders} == {0, 1, 3}
    assert all(sorted(places) == [0, 1, 2, 3] for places in orders)


# Rest and refusal.


@pytest.mark.parametrize("bad", [RESTING, REFUSED])
def test_a_route_that_rests_or_was_refused_is_skipped(bad: UpstreamView) -> None:
    places, plan = ordered([bad, PLAIN, bad], "r/p0/m", "r/p1/m", "r/p2/m")
    assert places == [1]
    assert (plan.preferred, plan.last_resort) == (None, False)
    assert plan.is_failover(plan.candidates[0])


@pytest.mark.parametrize("bad", [RESTING, REFUSED])
def test_where_all_rest_all_are_tried(bad: UpstreamView) -> None:
    places, plan = ordered([bad, RESTING], "r/p0/m", "r/p1/m")
    assert (places, plan.last_resort, plan.preferred) == ([0, 1], True, plan.candidates[0])


def test_what_serves_in_place_of_a_preferred_one_is_failover() -> None:
    _, plan = ordered([PLAIN, PLAIN], "r/p0/m", "r/p1/m")
    assert [plan.is_failover(route) for route in plan.candidates] == [False, True]
    _, chosen = ordered([RESTING, PLAIN, PLAIN], "m")  # of `auto` the router chooses, and it chose another
    assert not chosen.is_failover(chosen.candidates[0])
    assert chosen.is_failover(chosen.candidates[1])


# Attestation.


def test_inside_a_group_evidence_decides_first() -> None:
    views = [PLAIN, PENDING, FRESH, STALE]
    for key in keys(40):
        places, _ = ordered(views, key=key)
        assert places[0] == 2
        assert set(places[1:3]) == {1, 3}
        assert places[3] == 0


@pytest.mark.parametrize(
    ("view", "claims", "may"),
    [
        (PLAIN, {"cpu_tee"}, False),
        (REFUSED, {"cpu_tee"}, False),
        (FRESH, {"cpu_tee"}, True),
        (FRESH, {"cpu_tee", "tcb"}, True),
        (FRESH, {"cpu_tee", "gpu_tee"}, False),
        (STALE, {"gpu_tee"}, True),  # to be verified before the prompt leaves
        (PENDING, {"gpu_tee"}, True),
        (dataclasses.replace(PLAIN, attestation="verified", claims=frozenset({"cpu_tee"})), {"cpu_tee"}, False),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_route_that_cannot_meet_the_demands_is_no_candidate(
    view: UpstreamView, claims: set[str], may: bool, count: int
) -> None:
    places, plan = ordered([view] * count, required_claims=frozenset(claims))
    assert sorted(places) == (list(range(count)) if may else [])
    assert plan.last_resort is False
    assert (plan.preferred is None) is not may


def test_demands_go_before_rest() -> None:
    resting = dataclasses.replace(FRESH, available=False)
    places, plan = ordered([PLAIN, resting], "r/p0/m", "r/p1/m", required_claims=frozenset({"cpu_tee"}))
    assert (places, plan.last_resort, plan.preferred) == ([1], True, None)


def test_required_claims_alone_exclude_what_proves_nothing() -> None:
    assert ordered([PLAIN, FRESH], required_claims=frozenset({"tcb"}))[0] == [1]


# Shares.


def test_equal_routes_share_equally() -> None:
    assert shares([PLAIN] * 4) == pytest.approx([0.25] * 4, abs=0.04)


def test_shares_follow_weights() -> None:
    weighted = [dataclasses.replace(PLAIN, weight=weight) for weight in (1.0, 2.0, 5.0)]
    assert shares(weighted) == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.04)


@pytest.mark.parametrize(
    ("latencies", "wanted"),
    [
        ([0.1, 0.19], [1 / 2, 1 / 2]),
        ([0.1, 0.2], [2 / 3, 1 / 3]),
        ([0.1, 0.5], [4 / 5, 1 / 5]),
        ([0.1, 60.0], [8 / 9, 1 / 9]),
        ([None, 5.0], [1 / 2, 1 / 2]),
        ([0.0, 5.0], [1 / 2, 1 / 2]),
        ([5e-324, 5.0], [8 / 9, 1 / 9]),
    ],
)
def test_slow_routes_get_less_and_never_nothing(latencies: list[float | None], wanted: list[float]) -> None:
    assert shares([dataclasses.replace(PLAIN, latency_s=s) for s in latencies]) == pytest.approx(wanted, abs=0.04)


def test_all_candidates_have_their_turn_as_second() -> None:
    counted = Counter(ordered([PLAIN] * 3, key=key)[0][1] for key in keys(900))
    assert [counted[n] / 900 for n in range(3)] == pytest.approx([1 / 3] * 3, abs=0.06)


def test_one_key_does_not_overload_one_upstream() -> None:
    in_flight = [0, 0, 0]
    for _ in range(120):
        views = [dataclasses.replace(PLAIN, in_flight=count) for count in in_flight]
        in_flight[ordered(views, key=b"the same prompt")[0][0]] += 1
    assert max(in_flight) <= 2 * 121 / 3 + 1
    assert sorted(in_flight)[1] > 0


def test_few_requests_in_flight_move_nothing() -> None:
    home, *_ = ordered([PLAIN] * 3, key=b"k")[0]
    views = [dataclasses.replace(PLAIN, in_flight=7 if n == home else 0) for n in range(3)]
    assert ordered(views, key=b"k")[0][0] == home


def test_a_full_upstream_comes_behind_its_equals() -> None:
    home, *others = ordered([PLAIN] * 3, key=b"k")[0]
    full = dataclasses.replace(PLAIN, in_flight=2, limit=2)
    assert ordered([full if n == home else PLAIN for n in range(3)], key=b"k")[0] == [*others, home]
    room = dataclasses.replace(full, in_flight=1)
    assert ordered([room if n == home else PLAIN for n in range(3)], key=b"k")[0] == [home, *others]


# Stability.

weights = st.floats(0.1, 10)
view_lists = st.lists(st.builds(UpstreamView, weight=weights), min_size=2, max_size=5)


@given(views=view_lists, key=st.binary(max_size=16))
def test_one_key_has_one_order(views: list[UpstreamView], key: bytes) -> None:
    assert ordered(views, key=key)[0] == ordered(views, key=key)[0]


@given(views=view_lists, added=weights)
def test_an_upstream_that_is_added_takes_its_share_and_moves_nothing_else(
    views: list[UpstreamView], added: float
) -> None:
    names = catalogue(len(views) + 1)
    before = firsts(views, catalogue(len(views)))
    after = firsts([*views, UpstreamView(weight=added)], names)
    new = f"r/p{len(views)}/m"
    assert all(now in (then, new) for then, now in zip(before, after, strict=True))


@given(views=view_lists, gone=st.integers(0, 4), key=st.binary(max_size=8))
def test_an_upstream_that_rests_leaves_the_order_of_the_others(
    views: list[UpstreamView], gone: int, key: bytes
) -> None:
    gone %= len(views)
    resting = [dataclasses.replace(v, available=False) if n == gone else v for n, v in enumerate(views)]
    assert ordered(resting, key=key)[0] == [n for n in ordered(views, key=key)[0] if n != gone]


@given(views=view_lists, which=st.integers(0, 4), factor=st.floats(1, 20))
def test_more_weight_never_takes_a_key_away(views: list[UpstreamView], which: int, factor: float) -> None:
    which %= len(views)
    names = catalogue(len(views))
    heavier = list(views)
    heavier[which] = dataclasses.replace(views[which], weight=views[which].weight * factor)
    chosen = f"r/p{which}/m"
    pairs = zip(firsts(views, names, 100), firsts(heavier, names, 100), strict=True)
    assert all(after in (before, chosen) for before, after in pairs)


def test_positions_in_the_settings_do_not_matter() -> None:
    turned = Catalogue(upstreams(4)[::-1])
    assert firsts([PLAIN] * 4, catalogue(4)) == firsts([PLAIN] * 4, turned)


# For every view.

any_view = st.builds(
    UpstreamView,
    available=st.booleans(),
    attested=st.booleans(),
    attestation=st.sampled_from(["unverified", "verified", "refused"]),
    claims=st.frozensets(st.sampled_from(["cpu_tee", "tcb"])),
    fresh_until=st.sampled_from([NOW - 1, NOW, NOW + 1]),
    latency_s=st.none() | st.floats(0, 1e6),
    weight=st.floats(min_value=0, max_value=1000, exclude_min=True),
    in_flight=st.integers(0, 10_000),
    limit=st.integers(0, 100),
)
route_ids = st.sampled_from(["m", "r/p0/m", "r/p1/m", "r/p2/m", "only0", "only1", "auto/p2/m"])


@given(
    views=st.lists(any_view, min_size=3, max_size=3),
    model=route_ids,
    failover=st.lists(route_ids, max_size=5),
    key=st.binary(max_size=16),
    claims=st.frozensets(st.sampled_from(["cpu_tee", "tcb"])),
)
def test_a_plan_is_made_of_what_may_serve_and_of_nothing_else(
    *,
    views: list[UpstreamView],
    model: str,
    failover: list[str],
    key: bytes,
    claims: frozenset[str],
) -> None:
    found = resolution(catalogue(3), model, *failover)
    plan = order(found, views, now=NOW, affinity=lambda: key, required_claims=claims)
    demanding = bool(claims)
    allowed = [
        route for route in found.plan.candidates if not demanding or views[route.upstream].may_prove(claims, NOW)
    ]
    usable = [r for r in allowed if views[r.upstream].available and views[r.upstream].attestation != "refused"]
    assert {route.id for route in plan.candidates} == {route.id for route in usable or allowed}
    assert len(plan.candidates) == len({route.id for route in plan.candidates})
    assert plan.requested == found.plan.requested
    places = [next(n for n, group in enumerate(found.groups) if route in group) for route in plan.candidates]
    assert places == sorted(places)
    assert (plan.preferred is not None) == (places[:1] == [0])
