"""From a request to an ordered list of candidates: a pure function (docs/spec/http-api.md section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tresor.errors import RequestError
from tresor.routing.catalogue import Catalogue, ModelType, Route

__all__ = ["Plan", "RequestedRoute", "make_plan", "parse_route"]

_AUTO: Final = "auto"
_PARTS: Final = 3


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
    """What to try, in order, each route once; never empty."""

    requested: RequestedRoute
    candidates: tuple[Route, ...]


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


def make_plan(
    catalogue: Catalogue, requested: RequestedRoute, failover: Sequence[RequestedRoute], model_type: ModelType
) -> Plan:
    """Resolve a request to its candidates: those of the requested route, then those of each failover route.

    Raises:
        RequestError: 404 `model_not_found`, where one of the routes is none of the catalogue's.
    """
    candidates: dict[str, Route] = {}
    for position, wanted in enumerate((requested, *failover)):
        routes = catalogue.find(wanted.region, wanted.provider, wanted.model_key, model_type)
        if not routes:
            raise _not_found("model" if position == 0 else f"failover[{position - 1}]")
        candidates.update((route.id, route) for route in routes if route.id not in candidates)
    return Plan(requested, tuple(candidates.values()))


def _not_found(param: str) -> RequestError:
    return RequestError(
        404,
        "model_not_found",
        f"{param} names no model of this router: want region/provider/model_key or model_key, see GET /v1/models",
        param=param,
    )
