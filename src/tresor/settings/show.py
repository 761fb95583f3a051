"""Show the effective configuration as TOML, with every secret masked."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tresor.settings.load import LoadedSettings

__all__ = ["show_settings"]


def show_settings(loaded: LoadedSettings) -> str:
    """Return the effective settings as TOML that `load_settings` would read the same way."""
    tree: dict[str, Any] = msgspec.to_builtins(loaded.settings)
    tree["server"]["public_origin"] = loaded.public_origin
    lines = [f"# api key of upstreams[{n}]: ******** from {k.origin}" for n, k in enumerate(loaded.api_keys) if k]
    return "\n".join([*lines, *_table((), tree)]).lstrip("\n") + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if value is not None and not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{name} = {msgspec.json.encode(value).decode()}"
    for name, value in table.items():
        inner = (*path, name)
        if isinstance(value, Mapping):
            yield f"\n[{'.'.join(inner)}]"
            yield from _table(inner, value)
        elif _is_tables(value):
            for item in value:
                yield f"\n[[{'.'.join(inner)}]]"
                yield from _table(inner, item)


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)
