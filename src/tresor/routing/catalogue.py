"""The catalogue: every route `region/provider/model_key` the settings offer, and `GET /v1/models` made from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from tresor.routing.view import AttestationState
from tresor.settings.model import ModelSettings, Pricing, UpstreamSettings

__all__ = ["Catalogue", "ModelEntry", "ModelType", "Route"]

ModelType = Literal["chat", "embedding", "transcription"]


@dataclass(frozen=True, slots=True)
class Route:
    """One way to one model.

    Attributes:
        id: `region/provider/model_key`.
        upstream: position of its upstream in the settings.
        region: the upstream's.
        provider: the upstream's.
        settings: the model's settings.
    """

    id: str
    upstream: int
    region: str
    provider: str
    settings: ModelSettings


class RouteDetail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The `tresor` member of an entry of `GET /v1/models?detail=true`."""

    model_key: str
    region: str
    provider: str
    type: ModelType
    attestation: AttestationState
    pricing: Pricing | None = None


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of `GET /v1/models`."""

    id: str
    object: str = msgspec.field(default_factory=lambda: "model")
    created: int
    owned_by: str
    tresor: RouteDetail | None = None


def _unverified(_route: Route) -> AttestationState:
    return "unverified"


class Catalogue:
    """All routes, in the order of the settings.

    Args:
        upstreams: the upstreams' settings.
    """

    def __init__(self, upstreams: tuple[UpstreamSettings, ...]) -> None:
        self.routes = tuple(
            Route(
                id=f"{upstream.region}/{upstream.provider}/{model.key}",
                upstream=position,
                region=upstream.region,
                provider=upstream.provider,
                settings=model,
            )
            for position, upstream in enumerate(upstreams)
            for model in upstream.models
        )

    def find(self, region: str, provider: str, model_key: str, model_type: ModelType) -> tuple[Route, ...]:
        """Return the routes a requested one may resolve to; `auto` stands for any."""
        return tuple(
            route
            for route in self.routes
            if route.settings.key == model_key
            and route.settings.type == model_type
            and region in ("auto", route.region)
            and provider in ("auto", route.provider)
        )

    def entries(
        self,
        *,
        detail: bool = False,
        region: str | None = None,
        provider: str | None = None,
        model_type: str | None = None,
        attestation: Callable[[Route], AttestationState] = _unverified,
    ) -> Iterator[ModelEntry]:
        """Yield the entries of `GET /v1/models`, filtered.

        Args:
            detail: whether they have the `tresor` member.
            region: only routes of this region.
            provider: only routes of this provider.
            model_type: only models of this type.
            attestation: tells the state of a route's channel as it is now.
        """
        for route in self.routes:
            model = route.settings
            wanted = ((region, route.region), (provider, route.provider), (model_type, model.type))
            if all(want in (None, have) for want, have in wanted):
                yield ModelEntry(
                    id=route.id,
                    created=model.created,
                    owned_by=route.provider,
                    tresor=_detail(route, attestation(route)) if detail else None,
                )


def _detail(route: Route, attestation: AttestationState) -> RouteDetail:
    return RouteDetail(
        model_key=route.settings.key,
        region=route.region,
        provider=route.provider,
        type=route.settings.type,
        attestation=attestation,
        pricing=route.settings.pricing,
    )
