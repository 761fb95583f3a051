"""The shape of `tresor.toml`.  Unknown members are refused; every default stands here or in `tresor.limits`.

docs/operations/configuration.md is the same for operators and is compared with this module by a test.
"""

from typing import Annotated, Literal

import msgspec

from tresor.limits import Limits

__all__ = [
    "BackendSettings",
    "IdentitySettings",
    "LogSettings",
    "ModelSettings",
    "NodeSettings",
    "Plan",
    "Pricing",
    "ReceiptSettings",
    "ServerSettings",
    "Settings",
    "SidecarSettings",
    "StoreSettings",
    "UpstreamSettings",
]

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*\Z", max_length=128)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the router listens and as what it is known."""

    listen: str = "127.0.0.1:8443"
    """Address and port; port 0 takes any free one."""
    public_origin: str | None = None
    """Origin callers use, such as `https://api.example.org`: the `iss` of receipts.  Default: made from `listen`."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """Worker processes that share the port; each has a receipt key of its own."""
    tls_certificate_file: str | None = None
    """PEM chain, leaf first."""
    tls_key_file: str | None = None
    """PEM private key of the leaf."""
    allow_plaintext: bool = False
    """Listen without TLS on an address that is not loopback; only behind something that ends TLS on this machine."""
    drain_timeout_s: Seconds = 30.0
    """After SIGTERM, how long running exchanges may take to end."""
    metrics_listen: str | None = None
    """Address and port of `GET /metrics`, for the operator's network only.  Default: none."""


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where customers, keys and receipts are kept."""

    path: str = "tresor.db"
    """SQLite file; relative to the configuration file."""


class ReceiptSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How receipts are signed and how long they are kept."""

    key_directory: str = "receipt-keys"
    """Folder of the signing keys, one file per router process; relative to the configuration file."""
    key_rotation_days: Annotated[int, msgspec.Meta(ge=0)] = 30
    """Age at which a signing key is replaced; 0 for never."""
    retention_days: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Age at which a receipt is deleted; 0 for never."""


class IdentitySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the router proves what it is: which hardware attests it, and as which workload."""

    tee: Literal["none", "auto", "sev-snp", "tdx", "azure-sev-snp", "azure-tdx", "simulated"] = "none"
    """Where evidence comes from; `auto` looks for what this machine has, `none` has the router attest nothing."""
    manifest_file: str | None = None
    """Workload identity manifest, as `tresor release manifest` writes it; needed unless `tee` is `none`."""
    trust_bundle_file: str | None = None
    """Trust bundle, as `tresor release bundle` writes it: served, and kept with receipts.  Read anew when changed."""
    trust_bundle_url: str | None = None
    """Where callers find the trust bundle.  Default: the router's own `/.well-known/tresor-trust-bundle`."""
    max_age_seconds: Annotated[int, msgspec.Meta(ge=2, le=86_400)] = 600
    """How long evidence counts; it is renewed at half of that."""
    nonces_per_minute: Positive = 12
    """Fresh evidence for `GET /attestation?nonce=`, per caller's address."""
    fetch_collateral: bool = True
    """Ask AMD, Intel or NVIDIA for what endorses the evidence, so that receipts verify offline."""
    collateral_directory: str = "collateral"
    """Folder in which it is kept; relative to the configuration file."""
    tsm_path: str = "/sys/kernel/config/tsm/report"
    """The kernel's configfs-tsm reports."""
    sev_guest_path: str = "/dev/sev-guest"
    """The kernel's SEV-SNP guest device."""
    tpm_path: str = "/dev/tpmrm0"
    """The kernel's TPM resource manager."""
    simulated_root_file: str = "simulated-root.pem"
    """Private key of the root that signs simulated evidence; made where it does not exist."""


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes to standard error, a JSON object a line."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity written."""
    access: bool = False
    """A line per request that was handled: request id, method, endpoint, status, milliseconds; no body, no key."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the customers on this plan, over all processes that share the store."""

    requests_per_minute: Positive = 6_000
    """Authenticated requests in a minute of the clock."""
    requests_per_day: Positive = 1_000_000
    """Authenticated requests in a day (UTC)."""


class Pricing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model costs, shown by `GET /v1/models`; per million tokens, or per another unit."""

    currency: str
    input_per_mtok: float | None = None
    output_per_mtok: float | None = None
    billing_unit: str | None = None
    unit_amount: float | None = None


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of an upstream."""

    key: Name
    """Last part of its route."""
    upstream_name: str
    """What the upstream calls it."""
    type: Literal["chat", "embedding", "transcription"] = "chat"
    """Which endpoint serves it."""
    created: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Unix seconds, shown by `GET /v1/models`."""
    pricing: Pricing | None = None
    """What it costs."""


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenAI-compatible server."""

    provider: Name
    """Second part of its routes."""
    region: Name
    """First part of its routes."""
    base_url: str
    """URL up to and with `/v1`."""
    attestation: Literal["none", "tresor", "tinfoil", "dstack", "aci"]
    """How it proves what it is; `none` says in so many words that nothing does."""
    policy_file: str | None = None
    """Policy for its evidence, TOML or JSON; not of kind `tresor`, whose trust bundle says it.  Default: strict."""
    release_root_file: str | None = None
    """Of kind `tresor`: public key of whoever releases its software."""
    trust_bundle_file: str | None = None
    """Of kind `tresor`: its trust bundle.  Default: the one it serves."""
    workload: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")] = "inference"
    """Of kind `tresor`: name of its workload: `inference`, or `router` for another router."""
    allow_simulated: bool = False
    """Of kind `tresor`: take evidence behind which there is no hardware; it proves nothing and says so."""
    attestation_with_api_key: bool = False
    """Send the upstream's key with the question for evidence too: some providers demand it before they answer."""
    attestation_max_age_s: Seconds = 600.0
    """How long its evidence counts; it is renewed at half of that."""
    api_key_env: str | None = None
    """Environment variable that holds the upstream's key."""
    api_key_file: str | None = None
    """File that holds it; relative to the configuration file."""
    ca_file: str | None = None
    """PEM certificates to trust in place of the system's; relative to the configuration file."""
    allow_plaintext: bool = False
    """Send prompts over plain HTTP to an address that is not loopback."""
    keep_alive: bool = True
    """Use a connection for more than one request."""
    connect_timeout_s: Seconds = 5.0
    """TCP and TLS handshake."""
    first_byte_timeout_s: Seconds = 120.0
    """Of a stream: from the request to the first event with content."""
    idle_timeout_s: Seconds = 60.0
    """Silence inside a stream that has begun."""
    total_timeout_s: NotNegative = 0.0
    """Of a stream: from the request to its end; 0 for no limit."""
    weight: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0
    """Its share among the upstreams that could serve a request as well as it, at most 1000."""
    max_concurrent_requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Requests it serves at one time, per worker process; 0 for no limit."""
    max_queued_requests: Annotated[int, msgspec.Meta(ge=0)] = 64
    """Requests that wait for one of these to end; one more goes to the next candidate."""
    queue_timeout_s: Seconds = 5.0
    """How long one waits at most."""
    models: Annotated[tuple[ModelSettings, ...], msgspec.Meta(min_length=1)]
    """What it serves."""


class BackendSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The inference server that a sidecar stands in front of, in the same machine."""

    base_url: str
    """Its origin, such as `http://127.0.0.1:8000`."""
    connect_timeout_s: Seconds = 5.0
    """TCP handshake."""
    idle_timeout_s: Seconds = 300.0
    """Silence before or inside an answer."""
    keep_alive: bool = True
    """Use a connection for more than one request."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every attested node has, router or sidecar."""

    server: ServerSettings = ServerSettings()
    identity: IdentitySettings = IdentitySettings()
    log: LogSettings = LogSettings()
    limits: Limits = Limits()


class SidecarSettings(NodeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of a sidecar's configuration file."""

    backend: BackendSettings


class Settings(NodeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of `tresor.toml`."""

    store: StoreSettings = StoreSettings()
    receipts: ReceiptSettings = ReceiptSettings()
    plans: dict[Name, Plan] = msgspec.field(default_factory=lambda: {"default": Plan()})
    upstreams: Annotated[tuple[UpstreamSettings, ...], msgspec.Meta(min_length=1)]
