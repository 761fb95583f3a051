"""Show the effective configuration as TOML, with every secret masked."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tresor.settings.load import LoadedSettings

__all__ = ["show_settings"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


def show_settings(loaded: LoadedSettings) -> str:
    """Return the effective settings as TOML that `load_settings` would read the same way."""
    tree: dict[str, Any] = msgspec.to_builtins(loaded.settings)
    tree["server"]["public_origin"] = loaded.public_origin
    lines = [f"# api key of upstreams[{n}]: ******** from {k.origin}" for n, k in enumerate(loaded.api_keys) if k]
    return "\n".join([*lines, *_table((), tree)]).lstrip("\n") + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if value is not None and not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{name} = {_value(value)}"
    for name, value in table.items():
        inner = (*path, name if _BARE_KEY.match(name) else _value(name))
        if isinstance(value, Mapping):
            yield f"\n[{'.'.join(inner)}]"
            yield from _table(inner, value)
        elif _is_tables(value):
            for item in value:
                yield f"\n[[{'.'.join(inner)}]]"
                yield from _table(inner, item)


def _value(value: object) -> str:
    """Write a value in TOML, where it is as in JSON but for two things that JSON does not escape or does not know."""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)
