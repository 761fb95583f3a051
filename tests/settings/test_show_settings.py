"""What is shown is what is in effect: read again, it means the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresor.settings.load import load_settings
from tresor.settings.model import Settings
from tresor.settings.show import show_settings

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,8}\Z", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
seconds = st.floats(min_value=1e-9, exclude_min=True) | st.just(float("inf")) | st.integers(1, 10**9)
prices = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def given_or_not(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=members)


pricing: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"currency": texts},
    optional={"input_per_mtok": prices.filter(lambda price: price is not None), "billing_unit": texts},
)
models: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"key": names, "upstream_name": texts},
    optional={"type": st.sampled_from(["chat", "embedding"]), "created": st.integers(0, 1 << 60), "pricing": pricing},
)
upstreams: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "provider": names.filter(lambda name: name != "auto"),
        "region": names.filter(lambda name: name != "auto"),
        "base_url": st.just("https://h/v1"),
        "attestation": st.just("none"),
        "models": st.lists(models, min_size=1, max_size=3, unique_by=lambda model: model["key"]),
    },
    optional={"keep_alive": st.booleans(), "idle_timeout_s": seconds},
)
trees: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"upstreams": st.lists(upstreams, min_size=1, max_size=3, unique_by=lambda up: (up["region"], up["provider"]))},
    optional={
        "server": given_or_not(workers=st.integers(1, 256), drain_timeout_s=seconds),
        "store": given_or_not(path=texts),
        "log": given_or_not(level=st.sampled_from(["debug", "error"]), access=st.booleans()),
        "limits": given_or_not(max_body_bytes=st.integers(1, 1 << 62), head_timeout_s=seconds),
        "plans": st.dictionaries(names, given_or_not(requests_per_day=st.integers(1, 1 << 40)), max_size=3).map(
            lambda plans: {"default": {}, **plans}
        ),
    },
)


@given(tree=trees)
@settings(deadline=None)
def test_what_is_shown_means_the_same(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    file = tmp_path_factory.mktemp("settings", numbered=True) / "tresor.toml"
    wanted = msgspec.convert(tree, Settings)
    shown = shown_of(file, wanted)
    file.write_text(shown, encoding="utf-8")
    loaded = load_settings(file, {})
    assert msgspec.structs.replace(loaded.settings, server=wanted.server) == wanted
    assert msgspec.structs.replace(loaded.settings.server, public_origin=None) == wanted.server
    assert show_settings(loaded) == shown


def shown_of(file: Path, wanted: Settings) -> str:
    """Show settings as if they had been read."""
    file.write_text(
        '[[upstreams]]\nprovider="p"\nregion="r"\nbase_url="https://h"\nattestation="none"\nmodels=[{key="m",upstream_name="u"}]'
    )
    loaded = load_settings(file, {})
    keys = (None,) * len(wanted.upstreams)
    return show_settings(replace(loaded, settings=wanted, api_keys=keys))
