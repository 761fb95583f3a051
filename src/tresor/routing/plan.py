"""From a request to an ordered list of candidates: pure functions (docs/spec/http-api.md section 4.1).

`resolve` finds the routes that a request names; it depends on the catalogue alone, so its result can be kept.  `order`
puts them in the order in which they are tried, by what is known of their upstreams at that instant.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from tresor.errors import RequestError
from tresor.routing.catalogue import Catalogue, ModelType, Route
from tresor.routing.view import UpstreamView, Views

__all__ = ["Plan", "RequestedRoute", "Resolution", "order", "parse_route", "resolve"]

_AUTO: Final = "auto"
_PARTS: Final = 3
_NOTHING: Final[frozenset[str]] = frozenset()

# An upstream up to twice as slow as the fastest counts as equal; a slower one gets a half, a quarter or an eighth of
# its share.  Steps, because a share that follows every measurement would move conversations all the time.
_MAX_LATENCY_STEPS: Final = 3

# Rendezvous hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): above twice its share of what is being
# served, a route is passed over, so that one prompt sent a thousand times does not end on one upstream.
_LOAD_FACTOR: Final = 2
_ALWAYS_ALLOWED_IN_FLIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class RequestedRoute:
    """A route as asked for; `auto` stands for any region or provider."""

    region: str
    provider: str
    model_key: str

    def __str__(self) -> str:
        return f"{self.region}/{self.provider}/{self.model_key}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try, in order, each route once.

    Attributes:
        requested: the route asked for.
        candidates: empty only where no route that was named can meet what is demanded of its attestation.
        preferred: the route that serves unless something fails; None where the requested one can not be tried at all.
        last_resort: whether every candidate rests, and is tried in spite of it.
        required_claims: what must be proven of the upstream that serves.
    """

    requested: RequestedRoute
    candidates: tuple[Route, ...]
    preferred: Route | None
    last_resort: bool = False
    required_claims: frozenset[str] = _NOTHING

    @property
    def demanding(self) -> bool:
        """Whether anything is demanded of the upstream's attestation."""
        return bool(self.required_claims)

    def is_failover(self, route: Route) -> bool:
        """Return whether an answer of `route` is one of another route than the preferred."""
        return route is not self.preferred


@dataclass(frozen=True, slots=True)
class Resolution:
    """The routes that a request names.

    Attributes:
        groups: those of the requested route, then those of each failover route; each stands once, where it was named
            first.  The group of a failover route is empty where others named all of its routes before.
        plan: all of them as they stand.
    """

    groups: tuple[tuple[Route, ...], ...]
    plan: Plan


def parse_route(text: str, *, param: str, region: str | None = None, provider: str | None = None) -> RequestedRoute:
    """Read a route id, compound or bare, and fill its `auto`s.

    Args:
        text: `region/provider/model_key`, or `model_key` alone.
        param: the member it stands in, for the error.
        region: the request's `region` member.
        provider: the request's `provider` member.

    Raises:
        RequestError: 404 where it has neither form, 400 where a member contradicts it.
    """
    parts = text.split("/")
    if len(parts) == 1:
        parts = [_AUTO, _AUTO, text]
    if len(parts) != _PARTS or not all(parts):
        raise _not_found(param)
    for position, (name, member) in enumerate((("region", region), ("provider", provider))):
        if member is not None and member != _AUTO:
            if parts[position] not in (_AUTO, member):
                raise RequestError(400, "invalid_field", f"{name} contradicts the one in {param}", param=name)
            parts[position] = member
    return RequestedRoute(*parts)


def resolve(
    catalogue: Catalogue, requested: RequestedRoute, failover: Sequence[RequestedRoute], model_type: ModelType
) -> Resolution:
    """Find the routes that a request names.

    Raises:
        RequestError: 404 `model_not_found`, where one of them is none of the catalogue's.
    """
    named: set[str] = set()
    groups: list[tuple[Route, ...]] = []
    for position, wanted in enumerate((requested, *failover)):
        routes = catalogue.find(wanted.region, wanted.provider, wanted.model_key, model_type)
        if not routes:
            raise _not_found("model" if position == 0 else f"failover[{position - 1}]")
        groups.append(tuple(route for route in routes if route.id not in named))
        named.update(route.id for route in routes)
    candidates = tuple(route for group in groups for route in group)
    return Resolution(tuple(groups), Plan(requested, candidates, candidates[0]))


def order(
    resolution: Resolution,
    views: Views,
    *,
    now: float,
    affinity: Callable[[], bytes],
    required_claims: frozenset[str] = _NOTHING,
) -> Plan:
    """Put the routes of a resolution in the order in which they are tried.

    (1) A route that cannot meet what is demanded goes.  (2) A route that rests, or whose evidence was refused, is
    skipped, unless all that are left are such.  (3) The groups keep their order.  (4) Inside a group, routes with fresh
    evidence come first, then those whose evidence is still to be verified, then those that prove nothing; (5) among
    equals, those that have room, and (6) of these the affinity decides, in proportion to weight and speed.

    Args:
        resolution: the routes.
        views: their upstreams, by `Route.upstream`.
        now: seconds, on the clock of `UpstreamView.fresh_until`.
        affinity: gives the bytes that requests have in common which should go to one upstream; called at most once, and
            only where there is something to choose.
        required_claims: what must be proven of the upstream that serves.

    Returns:
        The plan.  Whoever carries it out owes the check of `required_claims` once a channel is verified: a candidate
        whose evidence is not fresh stays in the plan (`UpstreamView.may_prove`).
    """
    demanding = bool(required_claims)
    plan = resolution.plan
    if len(plan.candidates) == 1 and not demanding:  # it is tried however it fares
        return plan
    routes: Sequence[Route] = plan.candidates
    if demanding:  # (1)
        routes = [route for route in routes if views[route.upstream].may_prove(required_claims, now)]
    usable = [route for route in routes if _is_usable(views[route.upstream])]  # (2)
    kept = usable or routes
    groups: Iterable[Sequence[Route]] = resolution.groups  # (3)
    if len(kept) < len(plan.candidates):
        groups = [[route for route in group if route in kept] for group in groups]
    key = affinity() if any(len(group) > 1 for group in groups) else b""
    candidates = tuple(route for group in groups for route in _ordered(group, views, now, key))
    preferred = candidates[0] if candidates and candidates[0] in resolution.groups[0] else None
    return Plan(
        plan.requested,
        candidates,
        preferred,
        last_resort=bool(kept) and not usable,
        required_claims=required_claims,
    )


def _is_usable(view: UpstreamView) -> bool:
    return view.available and view.attestation != "refused"


def _ordered(group: Sequence[Route], views: Views, now: float, key: bytes) -> Iterable[Route]:
    if len(group) <= 1:
        return group
    ranks: tuple[list[Route], ...] = ([], [], [])  # (4)
    for route in group:
        view = views[route.upstream]
        ranks[0 if view.is_fresh(now) else 1 if view.attested else 2].append(route)
    return [route for rank in ranks for route in _spread(rank, views, key)]


def _spread(routes: list[Route], views: Views, key: bytes) -> Iterable[Route]:
    """Order equals by weighted rendezvous hashing: a route's place depends on nothing but itself and its load.

    With `u` uniform in (0, 1), `-ln(u) / weight` is exponentially distributed with rate `weight`, and the least of
    several such is that of a route with a probability of its weight over the sum of all (Schindelhauer, Schomaker,
    2005).  So a route that is added takes its share from the others and moves nothing else.
    """
    if len(routes) <= 1:
        return routes
    chosen_from = [(route, views[route.upstream]) for route in routes]
    fastest_s = min((view.latency_s for _, view in chosen_from if view.latency_s), default=0.0)
    rated = [(route, view, _penalty(view, fastest_s)) for route, view in chosen_from]
    sum_of_weights = sum(view.weight / penalty for _, view, penalty in rated)
    allowed = _LOAD_FACTOR * (1 + sum(view.in_flight for _, view, _ in rated))
    placed = []
    for route, view, penalty in rated:
        full = 0 < view.limit <= view.in_flight or (  # (5)
            view.in_flight >= _ALWAYS_ALLOWED_IN_FLIGHT
            and view.in_flight * sum_of_weights > allowed * view.weight / penalty
        )
        digest = blake2b(key + route.id.encode(), digest_size=8).digest()
        uniform = (int.from_bytes(digest) + 0.5) / 2**64
        placed.append((full, -math.log(uniform) * penalty / view.weight, route.id, route))  # (6)
    placed.sort(key=lambda place: place[:3])
    return [route for *_, route in placed]


def _penalty(view: UpstreamView, fastest_s: float) -> int:
    """Return by what its weight is divided for being slower than the fastest: 1, 2, 4 or 8."""
    if not view.latency_s:
        return 1  # the first answers will tell
    return 1 << int(min(math.log2(view.latency_s / fastest_s), _MAX_LATENCY_STEPS))


def _not_found(param: str) -> RequestError:
    return RequestError(
        404,
        "model_not_found",
        f"{param} names no model of this router: want region/provider/model_key or model_key, see GET /v1/models",
        param=param,
    )
