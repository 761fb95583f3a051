"""From a request to its candidates: the table of route ids, and what holds for every catalogue and every plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.errors import RequestError
from tresor.routing.catalogue import Catalogue, ModelType
from tresor.routing.plan import RequestedRoute, parse_route, resolve
from tresor.routing.view import AttestationState
from tresor.settings.model import ModelSettings, Pricing, UpstreamSettings


def upstream(region: str, provider: str, *models: str, types: dict[str, ModelType] | None = None) -> UpstreamSettings:
    return UpstreamSettings(
        provider=provider,
        region=region,
        base_url="https://h/v1",
        attestation="none",
        models=tuple(
            ModelSettings(key=key, upstream_name=f"up-{key}", type=(types or {}).get(key, "chat")) for key in models
        ),
    )


CATALOGUE = Catalogue(
    (
        upstream("eu", "alpha", "m", "solo"),
        upstream("us", "beta", "m"),
        upstream("eu", "beta", "m", "embed", types={"embed": "embedding"}),
    )
)
ALL_M = ["eu/alpha/m", "us/beta/m", "eu/beta/m"]


def candidates(
    model: str, *failover: str, model_type: ModelType = "chat", region: str | None = None, provider: str | None = None
) -> list[str]:
    requested = parse_route(model, param="model", region=region, provider=provider)
    others = [parse_route(text, param=f"failover[{n}]") for n, text in enumerate(failover)]
    plan = resolve(CATALOGUE, requested, others, model_type).plan
    assert plan.requested == requested
    return [route.id for route in plan.candidates]


@pytest.mark.parametrize(
    ("text", "members", "route"),
    [
        ("m", {}, "auto/auto/m"),
        ("auto", {}, "auto/auto/auto"),
        ("eu/alpha/m", {}, "eu/alpha/m"),
        ("auto/alpha/m", {}, "auto/alpha/m"),
        ("m", {"region": "eu"}, "eu/auto/m"),
        ("m", {"region": "auto", "provider": "beta"}, "auto/beta/m"),
        ("auto/auto/m", {"region": "eu", "provider": "beta"}, "eu/beta/m"),
        ("eu/auto/m", {"region": "eu", "provider": "beta"}, "eu/beta/m"),
        ("eu/auto/m", {"region": "auto"}, "eu/auto/m"),
        ("m:v1.5_x", {}, "auto/auto/m:v1.5_x"),
    ],
)
def test_a_route_id_is_read(text: str, members: dict[str, str], route: str) -> None:
    assert str(parse_route(text, param="model", **members)) == route


@pytest.mark.parametrize("text", ["", "/", "a/b", "a/b/", "/b/c", "a//c", "a/b/c/d", "///", "a/b/c/"])
def test_what_is_no_route_id_names_no_model(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_route(text, param="failover[2]")
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "failover[2]")


@pytest.mark.parametrize(
    ("text", "members", "param"),
    [
        ("eu/auto/m", {"region": "us"}, "region"),
        ("auto/alpha/m", {"provider": "beta"}, "provider"),
        ("eu/alpha/m", {"region": "eu", "provider": "Alpha"}, "provider"),
        ("eu/alpha/m", {"region": "us", "provider": "beta"}, "region"),
    ],
)
def test_a_member_that_contradicts_the_model_is_refused(text: str, members: dict[str, str], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_route(text, param="model", **members)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_field", param)


@pytest.mark.parametrize(
    ("model", "failover", "members", "wanted"),
    [
        ("m", [], {}, ALL_M),
        ("us/beta/m", [], {}, ["us/beta/m"]),
        ("m", [], {"region": "eu"}, ["eu/alpha/m", "eu/beta/m"]),
        ("auto/beta/m", [], {}, ["us/beta/m", "eu/beta/m"]),
        ("us/beta/m", ["m"], {}, ["us/beta/m", "eu/alpha/m", "eu/beta/m"]),
        ("us/beta/m", ["us/beta/m", "us/beta/m"], {}, ["us/beta/m"]),
        ("solo", ["eu/beta/m", "m"], {}, ["eu/alpha/solo", "eu/beta/m", "eu/alpha/m", "us/beta/m"]),
        ("m", ["solo"], {"region": "us"}, ["us/beta/m", "eu/alpha/solo"]),  # members are not for failover
    ],
)
def test_candidates_come_in_their_order(
    model: str, failover: list[str], members: dict[str, str], wanted: list[str]
) -> None:
    assert candidates(model, *failover, region=members.get("region"), provider=members.get("provider")) == wanted


@pytest.mark.parametrize(
    ("model", "failover", "param"),
    [
        ("x", [], "model"),
        ("us/alpha/m", [], "model"),
        ("M", [], "model"),
        ("embed", [], "model"),  # of another endpoint
        ("auto", [], "model"),
        ("m", ["solo", "x"], "failover[1]"),
        ("m", ["embed"], "failover[0]"),
        ("x", ["y"], "model"),
    ],
)
def test_a_route_that_is_none_is_named(model: str, failover: list[str], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        candidates(model, *failover)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", param)


def test_only_models_of_the_endpoint_count() -> None:
    assert candidates("embed", model_type="embedding") == ["eu/beta/embed"]


# For every catalogue.

names = st.sampled_from(["a", "b", "c"])
autos = st.sampled_from(["auto", "a", "b"])
model_types = st.sampled_from(["chat", "embedding", "transcription"])
models = st.builds(ModelSettings, key=names, upstream_name=st.just("u"), type=model_types, pricing=st.none())
catalogues = (
    st.lists(
        st.builds(
            UpstreamSettings,
            provider=names,
            region=names,
            base_url=st.just("https://h/v1"),
            attestation=st.just("none"),
            models=st.lists(models, min_size=1, max_size=3, unique_by=lambda model: model.key).map(tuple),
        ),
        max_size=6,
        unique_by=lambda up: (up.region, up.provider),
    )
    .map(tuple)
    .map(Catalogue)
)
routes = st.builds(RequestedRoute, region=autos, provider=autos, model_key=names)


@given(catalogue=catalogues, requested=routes, failover=st.lists(routes, max_size=4), model_type=model_types)
def test_a_plan_has_each_candidate_once_in_order_and_nothing_else(
    catalogue: Catalogue, requested: RequestedRoute, failover: list[RequestedRoute], model_type: ModelType
) -> None:
    named = [
        [
            route
            for route in catalogue.routes
            if (route.settings.key, route.settings.type) == (wanted.model_key, model_type)
            and wanted.region in ("auto", route.region)
            and wanted.provider in ("auto", route.provider)
        ]
        for wanted in (requested, *failover)
    ]
    if [] in named:
        with pytest.raises(RequestError) as caught:
            resolve(catalogue, requested, failover, model_type)
        unnamed = named.index([])
        assert caught.value.param == ("model" if unnamed == 0 else f"failover[{unnamed - 1}]")
        return
    plan = resolve(catalogue, requested, failover, model_type).plan
    assert list(plan.candidates) == list(dict.fromkeys(route for group in named for route in group))
    assert plan.candidates[: len(named[0])] == tuple(named[0])
    assert resolve(catalogue, requested, failover, model_type).plan == plan


@given(text=st.text("ab/", max_size=8), region=st.none() | autos, provider=st.none() | autos)
def test_any_text_is_a_route_or_refused(text: str, region: str | None, provider: str | None) -> None:
    try:
        route = parse_route(text, param="model", region=region, provider=provider)
    except RequestError:
        return
    assert str(route).count("/") == 2
    assert parse_route(str(route), param="model", region=region, provider=provider) == route


# The list of models.


def test_models_are_listed_in_the_order_of_the_settings_and_filtered() -> None:
    def listed(**filters: str) -> list[str]:
        return [entry.id for entry in CATALOGUE.entries(**filters)]  # type: ignore[arg-type]

    assert listed() == ["eu/alpha/m", "eu/alpha/solo", "us/beta/m", "eu/beta/m", "eu/beta/embed"]
    assert listed(region="us") == ["us/beta/m"]
    assert listed(provider="beta", region="eu") == ["eu/beta/m", "eu/beta/embed"]
    assert listed(model_type="embedding") == ["eu/beta/embed"]
    assert listed(model_type="poem") == []
    assert listed(region="auto") == []


def test_details_are_given_where_asked_for() -> None:
    pricing = Pricing(currency="EUR", input_per_mtok=0.5)
    model = ModelSettings(key="m", upstream_name="secret-name", created=7, pricing=pricing)
    catalogue = Catalogue(
        (UpstreamSettings(provider="p", region="r", base_url="https://h/v1", attestation="none", models=(model,)),)
    )
    (short,) = catalogue.entries()
    assert (short.id, short.object, short.created, short.owned_by, short.tresor) == ("r/p/m", "model", 7, "p", None)
    (entry,) = catalogue.entries(detail=True)
    assert entry.tresor is not None
    assert (entry.tresor.model_key, entry.tresor.type, entry.tresor.attestation) == ("m", "chat", "unverified")
    assert entry.tresor.pricing == pricing
    assert "secret-name" not in repr(entry)


def test_details_tell_the_state_of_a_channel_as_it_is_now() -> None:
    states: dict[str, AttestationState] = {"eu/alpha/m": "verified", "us/beta/m": "refused"}

    def listed() -> dict[str, str]:
        entries = CATALOGUE.entries(detail=True, attestation=lambda route: states.get(route.id, "unverified"))
        return {entry.id: entry.tresor.attestation for entry in entries if entry.tresor is not None}

    assert listed() == dict.fromkeys((route.id for route in CATALOGUE.routes), "unverified") | states
    states["us/beta/m"] = "verified"
    assert listed()["us/beta/m"] == "verified"
