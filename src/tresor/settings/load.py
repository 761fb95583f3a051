"""Read `tresor.toml` and the environment; refuse what is unknown, contradictory or incomplete, and say where it stands.

Every setting is also an environment variable: `TRESOR_` and the path joined by two underscores, list positions as
numbers: `TRESOR_SERVER__LISTEN`, `TRESOR_UPSTREAMS__0__BASE_URL`.  The value is read as a TOML value, or, where it is
none, as a string.  Secrets never stand in the file: a setting names the variable or the file that holds one.
"""

import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from tresor.errors import SettingsError
from tresor.settings.model import NodeSettings, Plan, Settings, SidecarSettings, UpstreamSettings

__all__ = [
    "LoadedNode",
    "LoadedSettings",
    "Secret",
    "is_loopback",
    "load_settings",
    "load_sidecar_settings",
    "parse_address",
]

_PREFIX = "TRESOR_"
_JOINT = "__"
_MAX_PORT = 65535
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_URL = re.compile(r"(?i:https?)://[^\x00-\x20\x7f-\U0010ffff?#@]+\Z")
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]|\[\.\.\.\]")
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
# What is demanded of an upstream.  The environment may add upstreams, and never change what the file demands of one.
_DEMANDS = frozenset(
    {
        "allow_simulated",
        "attestation",
        "attestation_max_age_s",
        "policy_file",
        "release_root_file",
        "trust_bundle_file",
        "workload",
    }
)
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+\Z")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")

Path_ = tuple[str | int, ...]


class Secret:
    """A secret and where it came from; shows itself only when asked with `reveal`."""

    __slots__ = ("_value", "origin")

    def __init__(self, value: str, origin: str) -> None:
        self._value = value
        self.origin = origin

    def __repr__(self) -> str:
        return f"<Secret from {self.origin}>"

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value


_Node_co = TypeVar("_Node_co", bound=NodeSettings, covariant=True)


@dataclass(frozen=True, slots=True)
class LoadedNode(Generic[_Node_co]):
    """Settings that passed every check.

    Attributes:
        settings: the effective settings, environment included.
        folder: what relative paths are relative to: the folder of the configuration file.
        allow_simulated: whether simulated evidence may be shown to others than this machine.
    """

    settings: _Node_co
    folder: Path
    allow_simulated: bool

    def path(self, name: str) -> Path:
        """Resolve a path setting."""
        return self.folder / name

    @property
    def public_origin(self) -> str:
        """Origin callers use: as set, or made from the address the node listens on."""
        server = self.settings.server
        scheme = "http" if server.tls_key_file is None else "https"
        return f"{scheme}://{server.listen}" if server.public_origin is None else server.public_origin


@dataclass(frozen=True, slots=True)
class LoadedSettings(LoadedNode[Settings]):
    """Settings of a router.

    Attributes:
        api_keys: the upstreams' keys, in the order of `settings.upstreams`.
    """

    api_keys: tuple[Secret | None, ...] = ()


def load_settings(
    path: Path, environ: Mapping[str, str], *, with_secrets: bool = True, allow_simulated: bool = False
) -> LoadedSettings:
    """Read and check the configuration of a router.

    Args:
        path: the TOML file.
        environ: environment variables.
        with_secrets: whether to read the upstreams' keys; who only looks after the store does not need them.
        allow_simulated: whether simulated evidence may be shown to others than this machine.

    Raises:
        SettingsError: it cannot be used; the message names file and line, or the variable.
    """
    settings, where = _read(path, environ, Settings)
    api_keys = tuple(
        _load_secret(upstream, path.parent, environ, where, ("upstreams", position)) if with_secrets else None
        for position, upstream in enumerate(settings.upstreams)
    )
    loaded = LoadedSettings(settings, path.parent, allow_simulated, api_keys)
    where.refuse_first(_contradictions(loaded), settings)
    for position, upstream in enumerate(settings.upstreams):
        at: Path_ = ("upstreams", position, "allow_simulated")
        if upstream.allow_simulated and any(at[: len(steps)] == steps for steps in where.variables):
            where.refuse(at, "is true: that is written into the file or not at all")
    return loaded


def load_sidecar_settings(
    path: Path, environ: Mapping[str, str], *, allow_simulated: bool = False
) -> LoadedNode[SidecarSettings]:
    """Read and check the configuration of a sidecar; arguments and errors are those of `load_settings`."""
    settings, where = _read(path, environ, SidecarSettings)
    loaded = LoadedNode(settings, path.parent, allow_simulated)
    where.refuse_first(_sidecar_contradictions(loaded), settings)
    return loaded


_Read = TypeVar("_Read", bound=NodeSettings)


def _read(path: Path, environ: Mapping[str, str], shape: type[_Read]) -> tuple[_Read, "_Places"]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply") from error
    where = _Places(path, text)
    where.variables = {_steps(name): name for name in environ if name.startswith(_PREFIX) and _JOINT in name}
    upstreams = tree.get("upstreams")
    in_file = len(upstreams) if isinstance(upstreams, list) else 0
    for steps, variable in sorted(where.variables.items(), key=lambda item: _in_order(item[0])):
        if _is_demand(steps, in_file):
            where.refuse(steps, "is demanded of an upstream in the file: that is changed there or not at all")
        _override(tree, steps, _parse_value(environ[variable]), variable)
    try:
        return msgspec.convert(tree, shape), where
    except msgspec.ValidationError as error:
        where.refuse_invalid(str(error), tree)


def parse_address(address: str) -> tuple[str, int]:
    """Split `host:port` (IPv6 hosts in brackets).

    Raises:
        ValueError: it is not that.
    """
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not _NUMBER.match(port) or int(port) > _MAX_PORT:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Places:
    """Knows on which line of the file, or in which variable, a setting stands."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines: dict[Path_, int] = {}
        self.variables: dict[Path_, str] = {}
        table: Path_ = ()
        counts: dict[Path_, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if header := _HEADER.match(line):
                table = ()
                *outer, last = _split_key(header[2])
                for step in outer:
                    table = (*table, step)
                    if table in counts:
                        table = (*table, counts[table] - 1)
                table = (*table, last)
                if header[1] == "[[":
                    counts[table] = counts.get(table, 0) + 1
                    table = (*table, counts[table] - 1)
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                self._lines.setdefault((*table, *_split_key(key[1])), number)

    def refuse_invalid(self, message: str, tree: Mapping[str, Any]) -> NoReturn:
        """Refuse what msgspec refused, in the words of a configuration."""
        at: Path_ = ()
        if place := _AT.search(message):
            at = tuple(int(i) if i else name or _wrong_plan(tree) for name, i in _STEP.findall(place["path"]))
            message = message[: place.start()]
        if unknown := _UNKNOWN.match(message):
            self.refuse((*at, unknown["name"]), "is not a setting")
        if missing := _MISSING.match(message):
            self.refuse((*at, missing["name"]), "is missing")
        self.refuse(at, message[0].lower() + message[1:])

    def refuse_first(self, contradictions: Iterator[tuple[Path_, str]], settings: NodeSettings) -> None:
        """Refuse the first contradiction there is, and a simulation that the file does not own up to."""
        for at, fault in contradictions:
            self.refuse(at, fault)
        if settings.identity.tee == "simulated" and ("identity", "tee") in self.variables:
            self.refuse(("identity", "tee"), "is simulated: that is written into the file or not at all")

    def refuse(self, at: Path_, fault: str) -> NoReturn:
        """Raise `SettingsError` for the setting `at`, naming the nearest place that is known."""
        name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in at).lstrip(".")
        inside = (variable for steps, variable in self.variables.items() if at and steps[: len(at)] == at)
        variable = self.variables.get(at) or (None if at in self._lines else next(inside, None))
        if variable is not None:
            raise SettingsError(f"environment variable {variable}: {name} {fault}")
        line = next((self._lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self._lines), None)
        if line is None and at:
            line = min((line for known, line in self._lines.items() if known[: len(at)] == at), default=None)
        place = f"{self._path}:{line}" if line else str(self._path)
        raise SettingsError(f"{place}: {name} {fault}" if name else f"{place}: {fault}")


def _wrong_plan(tree: Mapping[str, Any]) -> str:
    """Return which plan cannot be read; msgspec says of a member of a table with free names only that it is one."""
    for name, plan in tree["plans"].items():
        try:
            msgspec.convert(plan, Plan)
        except msgspec.ValidationError:
            return str(name)
    return "..."


def _split_key(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]


def _steps(variable: str) -> Path_:
    return tuple(
        int(step) if _NUMBER.match(step) else step.lower() for step in variable.removeprefix(_PREFIX).split(_JOINT)
    )


def _in_order(steps: Path_) -> list[tuple[int, str]]:
    """Sort list positions as numbers, so that a list can be given item by item."""
    return [(step, "") if isinstance(step, int) else (-1, step) for step in steps]


def _is_demand(steps: Path_, in_file: int) -> bool:
    """Whether a variable would change what is demanded of one of the `in_file` upstreams of the file."""
    if len(steps) < 2 or steps[0] != "upstreams":  # noqa: PLR2004 - the array and an index
        return False
    if not isinstance(steps[1], int) or steps[1] >= in_file:
        return False
    return len(steps) == 2 or steps[2] in _DEMANDS  # noqa: PLR2004 - the table as a whole


def _parse_value(value: str) -> object:
    try:
        return tomllib.loads(f"value = {value}")["value"] if "\n" not in value else value
    except (tomllib.TOMLDecodeError, KeyError, RecursionError):
        return value


def _override(tree: dict[str, Any], steps: Path_, value: object, variable: str) -> None:
    node: Any = tree
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(step, int) and isinstance(node, list) and step <= len(node):
            if step == len(node):
                node.append({})
        elif not isinstance(step, str) or not step or not isinstance(node, dict):
            raise SettingsError(f"environment variable {variable}: names no setting")
        elif not last:
            node.setdefault(step, [] if isinstance(steps[position + 1], int) else {})
        if last:
            node[step] = value
        else:
            node = node[step]


def _load_secret(
    upstream: UpstreamSettings, folder: Path, environ: Mapping[str, str], where: _Places, at: Path_
) -> Secret | None:
    if upstream.api_key_env is not None and upstream.api_key_file is not None:
        where.refuse((*at, "api_key_file"), "contradicts api_key_env: give one of the two")
    if upstream.api_key_env is not None:
        secret = Secret(environ.get(upstream.api_key_env, ""), f"environment variable {upstream.api_key_env}")
        at = (*at, "api_key_env")
    elif upstream.api_key_file is not None:
        file = folder / upstream.api_key_file
        at = (*at, "api_key_file")
        try:
            secret = Secret(file.read_text(encoding="ascii").strip(), f"file {file}")
        except (OSError, ValueError):  # no such file, not ASCII, or a name that cannot be one
            where.refuse(at, f"names {file}, which cannot be read as ASCII text")
    else:
        return None
    if not _VISIBLE_ASCII.match(secret.reveal()):
        where.refuse(at, f"names no usable key: {secret.origin} is empty, unset, or not one line of printable ASCII")
    return secret


def _contradictions(loaded: LoadedSettings) -> Iterator[tuple[Path_, str]]:
    settings = loaded.settings
    yield from _server_contradictions(loaded)
    yield from _identity_contradictions(loaded)
    if "default" not in settings.plans:
        yield ("plans",), "has no plan named default"
    routes: set[tuple[str, str, str]] = set()
    for position, upstream in enumerate(settings.upstreams):
        at: Path_ = ("upstreams", position)
        yield from _upstream_contradictions(loaded, upstream, at)
        yield from _attestation_contradictions(loaded, upstream, at)
        for number, model in enumerate(upstream.models):
            route = (upstream.region, upstream.provider, model.key)
            if route in routes:
                yield (*at, "models", number, "key"), f"gives the route {'/'.join(route)} a second time"
            routes.add(route)


def _sidecar_contradictions(loaded: LoadedNode[SidecarSettings]) -> Iterator[tuple[Path_, str]]:
    yield from _server_contradictions(loaded)
    yield from _identity_contradictions(loaded)
    if loaded.settings.identity.tee == "none":
        yield ("identity", "tee"), "is none: a sidecar has nothing to do but to attest"
    url = _parse_url(loaded.settings.backend.base_url)
    if url is None or url.path.strip("/"):
        yield ("backend", "base_url"), "is not an origin such as http://127.0.0.1:8000"
    elif not is_loopback(url.hostname or ""):
        yield ("backend", "base_url"), "is not on this machine: what the evidence says ends at its edge"


def _server_contradictions(loaded: LoadedNode[NodeSettings]) -> Iterator[tuple[Path_, str]]:
    server = loaded.settings.server
    for name, address in (("listen", server.listen), ("metrics_listen", server.metrics_listen)):
        if address is not None:
            try:
                parse_address(address)
            except ValueError as error:
                yield ("server", name), str(error)
    if (server.tls_certificate_file is None) != (server.tls_key_file is None):
        given = "tls_key_file" if server.tls_certificate_file is None else "tls_certificate_file"
        yield ("server", given), "needs its other half: give tls_certificate_file and tls_key_file, or neither"
    for name, file in (("tls_certificate_file", server.tls_certificate_file), ("tls_key_file", server.tls_key_file)):
        if file is not None and not loaded.path(file).is_file():
            yield ("server", name), f"names {loaded.path(file)}, which is no file"
    host = parse_address(server.listen)[0]
    if server.tls_key_file is None and not is_loopback(host) and not server.allow_plaintext:
        yield ("server", "listen"), "is not loopback and there is no TLS: give a certificate, or allow_plaintext = true"
    origin = _parse_url(loaded.public_origin)
    if origin is None or origin.path:
        yield ("server", "public_origin"), "is not an origin such as https://api.example.org"


def _identity_contradictions(loaded: LoadedNode[NodeSettings]) -> Iterator[tuple[Path_, str]]:
    server, identity = loaded.settings.server, loaded.settings.identity
    for name, file in (("manifest_file", identity.manifest_file), ("trust_bundle_file", identity.trust_bundle_file)):
        if file is not None and not loaded.path(file).is_file():
            yield ("identity", name), f"names {loaded.path(file)}, which is no file"
    if identity.tee == "none":
        return
    if identity.manifest_file is None:
        yield ("identity", "manifest_file"), "is missing: evidence binds the workload that it names"
    if server.tls_key_file is None:
        yield ("identity", "tee"), "needs TLS by the router itself: evidence binds the key of the connection"
    if identity.trust_bundle_url is not None and _parse_url(identity.trust_bundle_url) is None:
        yield ("identity", "trust_bundle_url"), "is not an http or https URL without user, query and fragment"
    if identity.tee == "simulated" and not loaded.allow_simulated and not is_loopback(parse_address(server.listen)[0]):
        yield ("identity", "tee"), "is simulated and server.listen is not loopback: start with --allow-simulated"


def _upstream_contradictions(
    loaded: LoadedSettings, upstream: UpstreamSettings, at: Path_
) -> Iterator[tuple[Path_, str]]:
    url = _parse_url(upstream.base_url)
    if url is None:
        yield (*at, "base_url"), "is not an http or https URL without user, query and fragment"
        return
    if url.scheme == "http" and not is_loopback(url.hostname or "") and not upstream.allow_plaintext:
        yield (*at, "base_url"), "would send prompts in the clear: use https, or allow_plaintext = true"
    for name in ("provider", "region"):
        if getattr(upstream, name) == "auto":
            yield (*at, name), "cannot be auto, which callers write for any"
    if upstream.ca_file is not None and not loaded.path(upstream.ca_file).is_file():
        yield (*at, "ca_file"), f"names {loaded.path(upstream.ca_file)}, which is no file"


def _attestation_contradictions(
    loaded: LoadedSettings, upstream: UpstreamSettings, at: Path_
) -> Iterator[tuple[Path_, str]]:
    if upstream.attestation != "none" and not upstream.base_url.lower().startswith("https:"):
        yield (
            (*at, "base_url"),
            f"is not https: attestation = {upstream.attestation!r} binds the key of a TLS connection",
        )
    if upstream.attestation == "tresor" and upstream.release_root_file is None:
        yield (*at, "release_root_file"), 'is missing: attestation = "tresor" trusts what its owner signs'
    wrong = ("policy_file",) if upstream.attestation == "tresor" else ("release_root_file", "trust_bundle_file")
    for name in ("policy_file", "release_root_file", "trust_bundle_file"):
        file = getattr(upstream, name)
        if file is not None and (name in wrong or upstream.attestation == "none"):
            yield (*at, name), f"means nothing with attestation = {upstream.attestation!r}"
        if file is not None and not loaded.path(file).is_file():
            yield (*at, name), f"names {loaded.path(file)}, which is no file"
    if upstream.allow_simulated and upstream.attestation != "tresor":
        yield (*at, "allow_simulated"), f"means nothing with attestation = {upstream.attestation!r}"


def _parse_url(text: str) -> SplitResult | None:
    """Return an http or https URL without user, query and fragment, or None where it is none."""
    if not _URL.match(text):
        return None
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - raises for a port out of range
    except ValueError:
        return None
    return url if url.hostname else None
