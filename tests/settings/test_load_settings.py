"""Reading the configuration: what is in effect, what is refused and where it stands, and secrets that stay secret."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.errors import SettingsError
from tresor.settings.load import LoadedSettings, Secret, is_loopback, load_settings, parse_address
from tresor.settings.show import show_settings

SECRET = "sk-upstream-0123456789abcdef"
UPSTREAM = """\
[[upstreams]]
provider = "alpha"
region = "eu"
base_url = "https://alpha.test/v1"
attestation = "none"
"""
MODEL = """\
[[upstreams.models]]
key = "m"
upstream_name = "m-upstream"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tresor.toml"


def load(file: Path, text: str, environ: dict[str, str] | None = None) -> LoadedSettings:
    file.write_text(text, encoding="utf-8")
    return load_settings(file, environ or {})


def refusal(file: Path, text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(file, text, environ)
    assert SECRET not in str(caught.value)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_paths_are_relative_to_the_file(file: Path) -> None:
    loaded = load(file, '[store]\npath = "x/tresor.db"\n' + UPSTREAM + MODEL)
    assert loaded.path(loaded.settings.store.path) == file.parent / "x" / "tresor.db"
    assert loaded.path("/var/x") == Path("/var/x")


@pytest.mark.parametrize(
    ("server", "origin"),
    [
        ("", "http://127.0.0.1:8443"),
        ('listen = "[::1]:99"', "http://[::1]:99"),
        ('listen = "0.0.0.0:1"\nallow_plaintext = true', "http://0.0.0.0:1"),
        ('tls_certificate_file = "c"\ntls_key_file = "c"', "https://127.0.0.1:8443"),
        ('public_origin = "https://api.example.org"', "https://api.example.org"),
        ('public_origin = "http://[::1]:8443"', "http://[::1]:8443"),
    ],
)
def test_the_origin_is_as_set_or_made_from_the_address(file: Path, server: str, origin: str) -> None:
    (file.parent / "c").touch()
    assert load(file, f"[server]\n{server}\n{UPSTREAM}{MODEL}").public_origin == origin


@pytest.mark.parametrize(
    "origin",
    [
        "https://[x",
        "https://x#fragment",
        "https://x?query",
        "https://x?",
        "https://x/",
        "https://x/path",
        "https://user@x",
        "https://:password@x",
        "https://x:65536",
        "https://x:y",
        "https://",
        "https://x y",
        "https://münchen.example",
        "ftp://x",
        "//x",
        "x",
        "",
    ],
)
def test_what_is_no_origin_is_refused(file: Path, origin: str) -> None:
    said = refusal(file, f'[server]\npublic_origin = "{origin}"\n{UPSTREAM}{MODEL}')
    assert said == "tresor.toml:2: server.public_origin is not an origin such as https://api.example.org"


@pytest.mark.parametrize(
    "base_url",
    [
        "https://[x/v1",
        "https://:p@h/v1",
        "https://h/v1#x",
        "https://h/v 1",
        "https://h/\\nv1",
        "https://h/模型",
        "h/v1",
    ],
)
def test_what_is_no_base_url_is_refused(file: Path, base_url: str) -> None:
    said = refusal(file, UPSTREAM.replace("https://alpha.test/v1", base_url) + MODEL)
    assert said.startswith("tresor.toml:4: upstreams[0].base_url is not an http or https URL")


@pytest.mark.parametrize(
    "base_url", ["http://localhost/v1", "http://127.9.9.9:1/v1", "http://[::1]/v1", "HTTPS://H/v1"]
)
def test_plain_http_is_for_this_machine(file: Path, base_url: str) -> None:
    loaded = load(file, UPSTREAM.replace("https://alpha.test/v1", base_url) + MODEL)
    assert loaded.settings.upstreams[0].base_url == base_url


@pytest.mark.parametrize(
    ("before", "behind", "fault"),
    [
        ('[server]\nlisten = "127.0.0.1:²"\n', "", "tresor.toml:2: server.listen '127.0.0.1:²' is not host:port"),
        ('[server]\nlisten = ":80"\n', "", "tresor.toml:2: server.listen ':80' is not host:port"),
        ('[server]\nlisten = "[::]:80"\n', "", "tresor.toml:2: server.listen is not loopback"),
        ('[server]\ntls_certificate_file = "c"\n', "", "tresor.toml:2: server.tls_certificate_file needs its other"),
        (
            '[server]\ntls_certificate_file = "c"\ntls_key_file = "k"\n',
            "",
            "tresor.toml:2: server.tls_certificate_file names c, which is no file",
        ),
        ("[server]\nworkers = 257\n", "", "tresor.toml:2: server.workers expected `int` <= 256"),
        ("[receipts]\nretention_days = -1\n", "", "tresor.toml:2: receipts.retention_days expected `int` >= 0"),
        ("[receipts]\nretention_days = 1.5\n", "", "tresor.toml:2: receipts.retention_days expected `int`, got"),
        ("server = 5\n", "", "tresor.toml:1: server expected `object`, got `int`"),
        ("[plans]\ndefault = 5\n", "", "tresor.toml:2: plans.default expected `object`, got `int`"),
        ('[plans."a b"]\n', "", "tresor.toml: expected `str` matching regex"),
        ("", "models = []\n", "tresor.toml:6: upstreams[0].models expected `array` of length >= 1"),
        ("", 'region = "us"\n', "tresor.toml: Cannot overwrite a value (at line 6"),
        ("", 'api_key_file = "a\\u0000b"\n', "tresor.toml:6: upstreams[0].api_key_file names a\0b, which cannot be"),
        ("", 'ca_file = "."\n', "tresor.toml:6: upstreams[0].ca_file names "),
        ("", 'api_key_env = ""\n', "tresor.toml:6: upstreams[0].api_key_env names no usable key"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_stands(file: Path, before: str, behind: str, fault: str) -> None:
    models = "" if behind.startswith("models") else MODEL
    assert refusal(file, before + UPSTREAM + behind + models).startswith(fault)


def test_what_nests_too_deeply_is_refused(file: Path) -> None:
    assert refusal(file, "a = " + "[" * 100_000) == "tresor.toml: nested too deeply"
    said = refusal(file, UPSTREAM + MODEL, {"TRESOR_SERVER__WORKERS": "[" * 100_000})
    assert said == "environment variable TRESOR_SERVER__WORKERS: server.workers expected `int`, got `str`"


def test_an_open_address_needs_a_word_or_tls(file: Path) -> None:
    (file.parent / "c").touch()
    for more in ("allow_plaintext = true", 'tls_certificate_file = "c"\ntls_key_file = "c"'):
        load(file, f'[server]\nlisten = "0.0.0.0:443"\n{more}\n{UPSTREAM}{MODEL}')


def test_two_routes_of_one_name_are_refused_and_other_names_are_not(file: Path) -> None:
    load(file, UPSTREAM + MODEL + MODEL.replace('"m"', '"n"') + UPSTREAM.replace("eu", "us") + MODEL)
    said = refusal(file, UPSTREAM + MODEL + UPSTREAM.replace("alpha.test", "beta.test") + MODEL)
    assert said == "tresor.toml:15: upstreams[1].models[0].key gives the route eu/alpha/m a second time"


# The environment.


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("127.0.0.1:99", "127.0.0.1:99"),
        ('"127.0.0.1:99"', "127.0.0.1:99"),
        ("'[::1]:99'", "[::1]:99"),
        ("[::1]:99", "[::1]:99"),
    ],
)
def test_a_value_is_toml_or_a_string(file: Path, value: str, meant: str) -> None:
    assert load(file, UPSTREAM + MODEL, {"TRESOR_SERVER__LISTEN": value}).settings.server.listen == meant


@pytest.mark.parametrize("value", ["a\nb = 2", "a\nb", "", "# x", "x = 1", "'''a"])
def test_a_value_that_is_no_toml_is_a_string_as_it_stands(file: Path, value: str) -> None:
    variables = {"TRESOR_UPSTREAMS__0__MODELS__0__UPSTREAM_NAME": value}
    assert load(file, UPSTREAM + MODEL, variables).settings.upstreams[0].models[0].upstream_name == value


def test_lists_are_given_item_by_item_in_the_order_of_numbers(file: Path) -> None:
    variables: dict[str, str] = {}
    for n in range(12):
        path = f"TRESOR_UPSTREAMS__{n}"
        values = {"PROVIDER": "p", "REGION": f"r{n}", "BASE_URL": "https://h/v1", "ATTESTATION": "none"}
        variables |= {f"{path}__{name}": value for name, value in values.items()}
        variables |= {f"{path}__MODELS__0__KEY": "m", f"{path}__MODELS__0__UPSTREAM_NAME": "u"}
    loaded = load(file, "", variables)
    assert [upstream.region for upstream in loaded.settings.upstreams] == [f"r{n}" for n in range(12)]


def test_a_list_is_given_whole_changed_and_made_longer(file: Path) -> None:
    whole = {"TRESOR_UPSTREAMS__0__MODELS": '[{key = "x", upstream_name = "y"}, {key = "z", upstream_name = "y"}]'}
    (upstream,) = load(file, UPSTREAM + MODEL, whole).settings.upstreams
    assert [model.key for model in upstream.models] == ["x", "z"]
    changed = {
        "TRESOR_UPSTREAMS__0__MODELS__0__KEY": "first",
        "TRESOR_UPSTREAMS__0__MODELS__1__KEY": "second",
        "TRESOR_UPSTREAMS__0__MODELS__1__UPSTREAM_NAME": "u",
    }
    (upstream,) = load(file, UPSTREAM + MODEL, changed).settings.upstreams
    assert [(model.key, model.upstream_name) for model in upstream.models] == [("first", "m-upstream"), ("second", "u")]


@pytest.mark.parametrize(
    ("variable", "fault"),
    [
        ("TRESOR_UPSTREAMS__2__REGION", "names no setting"),
        ("TRESOR_UPSTREAMS__²__REGION", "names no setting"),
        ("TRESOR_UPSTREAMS__99999999999999999999__REGION", "names no setting"),
        ("TRESOR_UPSTREAMS__-1__REGION", "names no setting"),
        ("TRESOR_UPSTREAMS__0__REGION__X", "names no setting"),
        ("TRESOR_SERVER____LISTEN", "names no setting"),
        ("TRESOR___X", "names no setting"),
        ("TRESOR_0__X", "names no setting"),
        ("TRESOR_SERVER__LISTENS", "server.listens is not a setting"),
        ("TRESOR_SEVER__LISTEN", "sever is not a setting"),
        ("TRESOR_UPSTREAMS__1__REGION", "upstreams[1].provider is missing"),
    ],
)
def test_a_variable_that_names_no_setting_is_refused(file: Path, variable: str, fault: str) -> None:
    said = refusal(file, UPSTREAM + MODEL, {variable: "x"})
    assert said.startswith(f"environment variable {variable}: ") or "is missing" in said
    assert said.endswith(fault)


def test_other_variables_are_no_settings(file: Path) -> None:
    load(file, UPSTREAM + MODEL, {"TRESOR_CONFIG": "x", "TRESOR": "x", "PATH": "x", "XTRESOR_SERVER__LISTEN": "x"})


# Secrets.


def test_secrets_are_read_and_never_shown(file: Path) -> None:
    (file.parent / "key").write_text(f"  {SECRET}\n")
    text = UPSTREAM + 'api_key_env = "UPSTREAM_KEY"\n' + MODEL
    text += UPSTREAM.replace("eu", "us") + 'api_key_file = "key"\n' + MODEL + UPSTREAM.replace("eu", "ap") + MODEL
    loaded = load(file, text, {"UPSTREAM_KEY": SECRET})
    assert [key and key.reveal() for key in loaded.api_keys] == [SECRET, SECRET, None]
    for shown in (repr(loaded), str(loaded.api_keys), f"{loaded.api_keys[0]}", show_settings(loaded)):
        assert SECRET not in shown
    assert repr(loaded.api_keys[0]) == "<Secret from environment variable UPSTREAM_KEY>"
    assert not hasattr(loaded.api_keys[0], "__dict__")


def test_who_needs_no_secrets_does_not_read_them(file: Path) -> None:
    file.write_text(UPSTREAM + 'api_key_file = "not-there"\n' + MODEL)
    assert load_settings(file, {}, with_secrets=False).api_keys == (None,)
    with pytest.raises(SettingsError):
        load_settings(file, {})


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff", "é".encode(), b"a\0b", b"tab\tbed"])
def test_a_key_file_holds_one_line(file: Path, content: bytes) -> None:
    (file.parent / "key").write_bytes(content)
    said = refusal(file, UPSTREAM + 'api_key_file = "key"\n' + MODEL)
    assert said.startswith("tresor.toml:6: upstreams[0].api_key_file names ")


def test_a_secret_is_equal_to_nothing_and_shows_its_origin_alone() -> None:
    secret = Secret(SECRET, "file key")
    assert (repr(secret), str(secret), f"{secret!s}") == ("<Secret from file key>",) * 3


# Addresses.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("::1:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@given(text=st.text(max_size=20) | st.from_regex(r"[a-z0-9.\[\]:]{0,12}:[0-9²٣-]{0,7}", fullmatch=True))
def test_any_text_is_an_address_or_refused_in_one_way(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ValueError as error:
        assert str(error) == f"{text!r} is not host:port"  # noqa: PT017 - the other way round is a pass
    else:
        assert host
        assert 0 <= port <= 65535
        assert re.search(r":[0-9]+\Z", text)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104 - the point
        ("::", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) is own
