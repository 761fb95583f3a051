"""`tresor.toml` and the environment: what is in effect, what is refused and where it stands; secrets stay secret."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from support.ceremony import simulated_ceremony
from support.certificates import Tls, make_tls
from support.router import Completed, UpstreamEntry, toml, tresor, write_config

SECRET = "sk-upstream-0123456789abcdef"
UPSTREAM = """\
[[upstreams]]
provider = "alpha"
region = "eu"
base_url = "http://127.0.0.1:1/v1"
attestation = "none"
"""
MODEL = """\
[[upstreams.models]]
key = "m"
upstream_name = "m-upstream"
"""


def check(folder: Path, text: str, environment: dict[str, str] | None = None) -> Completed:
    path = folder / "tresor.toml"
    path.write_text(text, encoding="utf-8")
    return tresor("config", "check", "--config", path, environment={"UPSTREAM_KEY": SECRET, **(environment or {})})


def effective(folder: Path, text: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    done = check(folder, text, environment)
    assert done.exit_code == 0, done.err
    return tomllib.loads(done.out)


def refusal(folder: Path, text: str, environment: dict[str, str] | None = None) -> str:
    """Return the one line that says why, without the folder."""
    done = check(folder, text, environment)
    assert (done.exit_code, done.out) == (1, "")
    assert done.err.startswith("tresor: ")
    assert done.err.count("\n") == 1
    assert SECRET not in done.err
    return done.err.removeprefix("tresor: ").rstrip("\n").replace(f"{folder}/", "")


def test_defaults_are_shown(tmp_path: Path) -> None:
    shown = effective(tmp_path, UPSTREAM + MODEL)
    assert shown["server"]["listen"] == "127.0.0.1:8443"
    assert shown["server"]["public_origin"] == "http://127.0.0.1:8443"
    assert shown["limits"]["max_body_bytes"] == 32 << 20
    assert shown["plans"] == {"default": {"requests_per_minute": 6000, "requests_per_day": 1000000}}
    assert shown["upstreams"][0]["models"][0] == {
        "key": "m",
        "upstream_name": "m-upstream",
        "type": "chat",
        "created": 0,
    }


def test_what_is_shown_means_the_same(tmp_path: Path) -> None:
    text = (
        "[server]\nworkers = 3\n[plans.default]\n[plans.gold]\nrequests_per_day = 5\n[limits]\nbody_timeout_s = 1.5\n"
    )
    pricing = '[upstreams.models.pricing]\ncurrency = "EUR"\ninput_per_mtok = 0.1\n'
    second = UPSTREAM.replace("alpha", "beta") + MODEL
    shown = check(tmp_path, text + UPSTREAM + MODEL + pricing + second)
    assert shown.exit_code == 0
    assert check(tmp_path, shown.out).out == shown.out


def test_secrets_are_masked(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text(SECRET + "\n")
    from_file = UPSTREAM.replace("alpha", "beta") + 'api_key_file = "key.txt"\n' + MODEL
    done = check(tmp_path, UPSTREAM + 'api_key_env = "UPSTREAM_KEY"\n' + MODEL + from_file)
    assert done.exit_code == 0
    assert SECRET not in done.out + done.err
    assert "# api key of upstreams[0]: ******** from environment variable UPSTREAM_KEY\n" in done.out
    assert f"# api key of upstreams[1]: ******** from file {tmp_path}/key.txt\n" in done.out


@pytest.mark.parametrize(
    ("before", "behind", "line", "fault"),
    [
        ("[server]\nport = 1\n", "", 2, "server.port is not a setting"),
        ("[sever]\n", "", 1, "sever is not a setting"),
        ("verbose = true\n", "", 1, "verbose is not a setting"),
        ("", 'api_key = "sk-1"\n', 6, "upstreams[0].api_key is not a setting"),
        ("", MODEL + "price = 1\n", 9, "upstreams[0].models[0].price is not a setting"),
        ("", MODEL + UPSTREAM + "x = 1\n" + MODEL, 14, "upstreams[1].x is not a setting"),
        ("[plans.default]\nrpm = 1\n", "", 2, "plans.default.rpm is not a setting"),
        ("[limits]\n\n# a comment\nmax_body_byte = 1\n", "", 4, "limits.max_body_byte is not a setting"),
        ("[server]\nworkers = 0\n", "", 2, "server.workers expected `int` >= 1"),
        ('[server]\nworkers = "2"\n', "", 2, "server.workers expected `int`, got `str`"),
        ("[server]\nworkers = true\n", "", 2, "server.workers expected `int`, got `bool`"),
        ("[server]\ndrain_timeout_s = nan\n", "", 2, "server.drain_timeout_s expected `float` > 0.0"),
        ("[limits]\nmax_body_bytes = 0\n", "", 2, "limits.max_body_bytes expected `int` >= 1"),
        ("[limits]\nmax_connections = -1\n", "", 2, "limits.max_connections expected `int` >= 1"),
        ("[limits]\nhead_timeout_s = nan\n", "", 2, "limits.head_timeout_s expected `float` > 0.0"),
        ("[limits]\nmax_nonce_chars = 129\n", "", 2, "limits.max_nonce_chars expected `int` <= 128"),
        ('[log]\nlevel = "loud"\n', "", 2, "log.level invalid enum value 'loud'"),
        ("[plans.gold]\nrequests_per_day = 0\n", "", 2, "plans.gold.requests_per_day expected `int` >= 1"),
        ('[server]\nlisten = "localhost"\n', "", 2, "server.listen 'localhost' is not host:port"),
        ('[server]\nlisten = "127.0.0.1:65536"\n', "", 2, "server.listen '127.0.0.1:65536' is not host:port"),
        ('[server]\nmetrics_listen = "9090"\n', "", 2, "server.metrics_listen '9090' is not host:port"),
        ('[server]\npublic_origin = "https://x/v1"\n', "", 2, "server.public_origin is not an origin such as"),
        ('[server]\ntls_key_file = "k"\n', "", 2, "server.tls_key_file needs its other half"),
        ('[server]\nlisten = "0.0.0.0:8443"\n', "", 2, "server.listen is not loopback and there is no TLS"),
        ("[plans.gold]\n", "", 1, "plans has no plan named default"),
        (
            "",
            'api_key_env = "NOT_THERE"\n',
            6,
            "upstreams[0].api_key_env names no usable key: environment variable NOT_THERE",
        ),
        ("", 'api_key_file = "not-there"\n', 6, "upstreams[0].api_key_file names "),
        (
            "",
            'api_key_env = "UPSTREAM_KEY"\napi_key_file = "x"\n',
            7,
            "upstreams[0].api_key_file contradicts api_key_env",
        ),
        ("", 'ca_file = "not-there.pem"\n', 6, "upstreams[0].ca_file names "),
        ("", MODEL + MODEL, 10, "upstreams[0].models[1].key gives the route eu/alpha/m a second time"),
        ("", MODEL + UPSTREAM, 15, "upstreams[1].models[0].key gives the route eu/alpha/m a second time"),
        ("", "connect_timeout_s = 0\n", 6, "upstreams[0].connect_timeout_s expected `float` > 0.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_stands(
    tmp_path: Path, before: str, behind: str, line: int, fault: str
) -> None:
    said = refusal(tmp_path, before + UPSTREAM + behind + MODEL)
    place, _, what = said.partition(": ")
    assert what.startswith(fault)
    assert place == f"tresor.toml:{line}"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"alpha"', '"auto"', "tresor.toml:2: upstreams[0].provider cannot be auto"),
        ('"eu"', '"a/b"', "tresor.toml:3: upstreams[0].region expected `str` matching regex"),
        ('"eu"', '"a b"', "tresor.toml:3: upstreams[0].region expected `str` matching regex"),
        (
            "http://127.0.0.1:1/v1",
            "http://10.0.0.1/v1",
            "tresor.toml:4: upstreams[0].base_url would send prompts in the",
        ),
        ("http://127.0.0.1:1/v1", "ftp://127.0.0.1/v1", "tresor.toml:4: upstreams[0].base_url is not an http or https"),
        ("http://127.0.0.1:1/v1", "https://u:p@h/v1", "tresor.toml:4: upstreams[0].base_url is not an http or https"),
        ("http://127.0.0.1:1/v1", "https://h:x/v1", "tresor.toml:4: upstreams[0].base_url is not an http or https"),
        ("http://127.0.0.1:1/v1", "https://h/v1?a=b", "tresor.toml:4: upstreams[0].base_url is not an http or https"),
        ('attestation = "none"\n', "", "tresor.toml:1: upstreams[0].attestation is missing"),
        ('"none"', '"full"', "tresor.toml:5: upstreams[0].attestation invalid enum value 'full'"),
        ('key = "m"\n', "", "tresor.toml:6: upstreams[0].models[0].key is missing"),
        (UPSTREAM, "", "tresor.toml:1: upstreams"),
    ],
)
def test_an_upstream_that_cannot_be_meant_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert refusal(tmp_path, (UPSTREAM + MODEL).replace(old, new)).startswith(fault)


@pytest.mark.parametrize("text", ["[server\n", "a = 1\na = 2\n", "\x00", 'server = { listen = "x" '])
def test_a_file_that_is_no_toml_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    assert "tresor.toml: " in refusal(tmp_path, text)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    gone = tresor("config", "check", "--config", tmp_path / "none.toml")
    assert (gone.exit_code, gone.err) == (1, f"tresor: {tmp_path}/none.toml: No such file or directory\n")
    (tmp_path / "tresor.toml").write_bytes(b'a = "\xff"\n')
    binary = tresor("config", "check", "--config", tmp_path / "tresor.toml")
    assert (binary.exit_code, binary.err) == (1, f"tresor: {tmp_path}/tresor.toml: not UTF-8 at byte 5\n")


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    shown = effective(
        tmp_path,
        "[server]\nworkers = 2\n" + UPSTREAM + MODEL,
        {
            "TRESOR_SERVER__WORKERS": "4",
            "TRESOR_SERVER__LISTEN": "127.0.0.1:99",
            "TRESOR_LOG__ACCESS": "true",
            "TRESOR_PLANS__DEFAULT__REQUESTS_PER_DAY": "7",
            "TRESOR_UPSTREAMS__0__BASE_URL": "https://example.org/v1",
            "TRESOR_UPSTREAMS__0__MODELS__0__UPSTREAM_NAME": "other",
            "TRESOR_LIMITS__BODY_TIMEOUT_S": "2.5",
        },
    )
    assert (shown["server"]["workers"], shown["server"]["listen"], shown["log"]["access"]) == (4, "127.0.0.1:99", True)
    assert shown["plans"]["default"]["requests_per_day"] == 7
    assert shown["upstreams"][0]["base_url"] == "https://example.org/v1"
    assert shown["upstreams"][0]["models"][0]["upstream_name"] == "other"
    assert shown["limits"]["body_timeout_s"] == 2.5


def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    model = {"KEY": "m", "UPSTREAM_NAME": "x"}
    upstream = {"PROVIDER": "p", "REGION": "r", "BASE_URL": "https://h/v1", "ATTESTATION": "none"}
    environment = {f"TRESOR_UPSTREAMS__0__{name}": value for name, value in upstream.items()}
    environment |= {f"TRESOR_UPSTREAMS__0__MODELS__0__{name}": value for name, value in model.items()}
    assert effective(tmp_path, "", environment)["upstreams"][0]["models"][0]["key"] == "m"


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("TRESOR_SERVER__WORKERS", "many", "server.workers expected `int`, got `str`"),
        ("TRESOR_SERVER__WORKERS", "0", "server.workers expected `int` >= 1"),
        ("TRESOR_SERVER__PORT", "1", "server.port is not a setting"),
        ("TRESOR_UPSTREAMS__3__REGION", "x", "names no setting"),
        ("TRESOR_UPSTREAMS__ONE__REGION", "x", "names no setting"),
        ("TRESOR_SERVER__", "x", "names no setting"),
        ("TRESOR_UPSTREAMS__0__API_KEY_ENV", "NOT_THERE", "upstreams[0].api_key_env names no usable key"),
        ("TRESOR_UPSTREAMS__0__BASE_URL", "http://10.0.0.1", "upstreams[0].base_url would send prompts in the clear"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_refused_by_its_name(
    tmp_path: Path, variable: str, value: str, fault: str
) -> None:
    said = refusal(tmp_path, UPSTREAM + MODEL, {variable: value})
    assert said.startswith(f"environment variable {variable}: {fault}")


@pytest.mark.parametrize("secret", ["", " ", "two\nlines", "ümlaut", "tab\tbed"])
def test_a_secret_that_cannot_be_sent_is_refused_and_not_shown(tmp_path: Path, secret: str) -> None:
    said = refusal(tmp_path, UPSTREAM + 'api_key_env = "UPSTREAM_KEY"\n' + MODEL, {"UPSTREAM_KEY": secret})
    assert "no usable key" in said
    assert not secret.strip() or secret not in said


def test_the_configuration_is_found_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(UPSTREAM + MODEL)
    done = tresor("config", "check", environment={"TRESOR_CONFIG": str(tmp_path / "other.toml")})
    assert done.exit_code == 0


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["keys"], ["keys", "create"], ["serve", "--port", "1"]])
def test_wrong_usage_has_an_exit_code_of_its_own(arguments: list[str]) -> None:
    done = tresor(*arguments)
    assert (done.exit_code, done.out) == (2, "")
    assert done.err.startswith("usage: tresor")


def test_a_certificate_with_another_key_is_said_by_its_files(tmp_path: Path, tls: Tls) -> None:
    server = {"listen": "127.0.0.1:0", "tls_certificate_file": str(make_tls(tmp_path).certificate_file)}
    server |= {"tls_key_file": str(tls.key_file)}
    router = write_config(tmp_path, [UpstreamEntry("http://127.0.0.1:1/v1")], settings={"server": server})
    identity = simulated_ceremony(tmp_path, "inference").identity()
    sidecar = tmp_path / "sidecar.toml"
    tree = {"server": server, "identity": identity, "backend": {"base_url": "http://127.0.0.1:1"}}
    sidecar.write_text("\n".join(toml((), tree)))
    for done in (tresor("serve", "--config", router), tresor("sidecar", "--config", sidecar)):
        said = [line for line in done.err.splitlines() if "evidence is SIMULATED" not in line]
        assert (done.exit_code, len(said)) == (1, 1)
        assert f"{tmp_path}/server.pem and {tls.key_file} cannot be used together: " in done.err


@pytest.mark.parametrize(
    ("kind", "setting", "fault"),
    [
        ("tresor", "release_root_file", "neither PEM nor JWK"),
        ("tinfoil", "policy_file", "neither JSON nor TOML"),
    ],
)
def test_a_file_of_an_upstream_that_cannot_be_used_is_said_by_its_name(
    kind: str, setting: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no such thing")
    upstream = UpstreamEntry("https://127.0.0.1:1/v1", settings={"attestation": kind, setting: str(tmp_path / "file")})
    done = tresor("serve", "--config", write_config(tmp_path, [upstream]))
    assert (done.exit_code, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith(f"tresor worker: {tmp_path}/file: ")
    assert fault in done.err
