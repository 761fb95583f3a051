"""docs/operations/ and the code say the same: settings, command lines, metrics, log events, backups."""

import ast
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from pages import PAGES, ROOT, Page, source_files
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from tresor.app.metrics import Metrics
from tresor.app.supervisor import _KILL_AFTER_S
from tresor.attestation.hop import HOP_KINDS
from tresor.attestation.policy import STRICT, parse_policy
from tresor.cli import verify
from tresor.cli.commands import make_parser
from tresor.errors import SettingsError
from tresor.limits import Limits
from tresor.settings import load, model
from tresor.settings.load import load_settings, load_sidecar_settings
from tresor.store.sqlite.store import SqliteStore

OPERATIONS = ROOT / "docs" / "operations"
CONFIGURATION = Page(OPERATIONS / "configuration.md")
RUNNING = Page(OPERATIONS / "running.md")
METRICS = Page(OPERATIONS / "metrics.md")

STRUCTS: dict[str, type[msgspec.Struct]] = {
    "server": model.ServerSettings,
    "store": model.StoreSettings,
    "receipts": model.ReceiptSettings,
    "identity": model.IdentitySettings,
    "log": model.LogSettings,
    "limits": Limits,
    "plans": model.Plan,
    "upstreams": model.UpstreamSettings,
    "upstreams.models": model.ModelSettings,
    "upstreams.models.pricing": model.Pricing,
    "backend": model.BackendSettings,
}
_NAME = next(item.pattern for item in get_args(model.Name)[1:])
# Of these the page says more than the code does.
OWN_WORDS = {
    "server.public_origin",
    "upstreams.keep_alive",
}


# Settings


def meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the docstrings under the members of a struct, from its source."""
    source = Path(sys.modules[struct.__module__].__file__ or "").read_text()
    (definition,) = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == struct.__name__
    )
    found: dict[str, str] = {}
    for member, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(member, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(member.target)] = str(below.value.value)
    return found


def type_in_words(kind: msgspec.inspect.Type) -> str:
    """Return a type as the page words it."""
    words = "tables"
    match kind:
        case (
            msgspec.inspect.Metadata(type=inner) | msgspec.inspect.UnionType(types=(inner, msgspec.inspect.NoneType()))
        ):
            words = type_in_words(inner)
        case msgspec.inspect.StrType(pattern=pattern):
            words = "name" if pattern == _NAME else "string"
        case msgspec.inspect.BoolType():
            words = "boolean"
        case msgspec.inspect.LiteralType(values=values):
            words = " ".join(f"`{value}`" for value in values)
        case msgspec.inspect.FloatType(gt=gt):
            words = "number" if gt is None else f"number above {gt}"
        case msgspec.inspect.IntType(ge=ge, le=le):
            words = f"integer{'' if ge is None else f' from {ge}'}{'' if le is None else f' to {le}'}"
    return words


def settings_in_code() -> Iterator[tuple[str, list[str]]]:
    for place, struct in STRUCTS.items():
        said = meanings(struct)
        info = msgspec.inspect.type_info(struct)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            default = (
                "none"
                if field.default is None
                else msgspec.json.encode(field.default).decode()
                if not field.required
                else ""
            )
            value = "required" if field.required else default if default == "none" else f"`{default}`"
            yield (
                f"{place}.{field.name}",
                [f"`{field.name}`", type_in_words(field.type), value, " ".join(said.get(field.name, "").split())],
            )


def settings_on_page() -> Iterator[tuple[str, list[str]]]:
    for place in STRUCTS:
        _, found, rest = CONFIGURATION.text.partition(f"### `{place}`\n")
        assert found, place
        for row in re.findall(
            r"^\| (`\w+` \|.*) \|$", re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE
        ):
            cells = row.split(" | ")
            yield f"{place}.{cells[0].strip('`')}", cells


def test_settings() -> None:
    in_code, on_page = dict(settings_in_code()), dict(settings_on_page())
    assert list(on_page) == list(in_code)
    for name, cells in in_code.items():
        if name in OWN_WORDS or not cells[3]:
            assert on_page[name][:3] == cells[:3]
            assert on_page[name][3] != cells[3]
        else:
            assert on_page[name] == cells


def test_every_table_of_the_file_is_on_the_page() -> None:
    fields = {*model.Settings.__struct_fields__, *model.SidecarSettings.__struct_fields__}
    assert {place for place in STRUCTS if "." not in place} == fields


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_configurations_on_pages_are_good(page: Page, tmp_path: Path) -> None:
    for toml in page.blocks("toml"):
        text = toml if "[[upstreams]]" in toml else toml + CONFIGURATION.blocks("toml")[0].partition("\n\n")[2]
        for name in re.findall(r'^(?!api_key)\w+_file = "(.*)"', text, re.MULTILINE):
            (tmp_path / Path(name).name).touch()
            text = text.replace(name, Path(name).name)
        for name in re.findall(r'^api_key_file = "(.*)"', text, re.MULTILINE):
            (tmp_path / Path(name).name).write_text("sk-secret")
            text = text.replace(name, Path(name).name)
        (tmp_path / "tresor.toml").write_text(text)
        load_settings(tmp_path / "tresor.toml", dict.fromkeys(re.findall(r'api_key_env = "(\w+)"', text), "sk-secret"))


def test_the_sidecar_on_the_page_is_good(tmp_path: Path) -> None:
    text = CONFIGURATION.examples()["sidecar"]
    for name in re.findall(r'_file = "(.*)"', text):
        (tmp_path / name).touch()
    (tmp_path / "sidecar.toml").write_text(text)
    load_sidecar_settings(tmp_path / "sidecar.toml", {}, allow_simulated=False)


@pytest.mark.parametrize("name", ["policy-tinfoil", "policy-dstack"])
def test_policies_on_the_page_are_policies(name: str) -> None:
    assert parse_policy(CONFIGURATION.examples()[name].encode()) != STRICT


def test_every_kind_of_upstream_has_an_example() -> None:
    examples = "\n".join(CONFIGURATION.blocks("toml"))
    kinds = set(re.findall(r'^attestation = "(\w+)"', examples, re.MULTILINE))
    assert kinds == {"none", *HOP_KINDS}


def test_variables() -> None:
    variables = set(re.findall(r"\bTRESOR_\w+__\w+", CONFIGURATION.text))
    assert variables
    for variable in variables:
        path = [step.lower() for step in variable.removeprefix(load._PREFIX).split(load._JOINT)]
        name = ".".join(step for step in path if not step.isdigit())
        assert name in dict(settings_in_code()) or path[0] == "plans", variable


def test_refusals_on_the_page_are_those_of_the_program(tmp_path: Path) -> None:
    shown = CONFIGURATION.examples()
    (tmp_path / "tresor.toml").write_text(shown["wrong"] + "\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(tmp_path / "tresor.toml", {})
    assert f"tresor: {refused.value}".replace(f"{tmp_path}/", "") == shown["refusal"]


# Command line


def command_lines() -> Iterator[tuple[str, str, bool]]:
    """Yield the page, the words, and whether it is whole, of every command line of ours that a page shows."""
    for page in PAGES:
        code = "\n".join(code for language in ("sh", "ini") for code in page.blocks(language)).replace("\\\n", " ")
        shown = [(line, True) for line in code.splitlines()]
        shown += [(line, False) for line in re.findall(r"`([^`\n]+)`", page.prose)]
        for line, whole in shown:
            found = re.search(r"(?:^|[=/| ])(tresor(?:-verify)? +[a-z].*)$", line)
            if found is not None:
                yield str(page), re.split(r" +(?:[|;#>]|&&)", found[1])[0], whole


@pytest.mark.parametrize(("page", "line", "whole"), sorted(set(command_lines())))
def test_commands_on_pages_exist(page: str, line: str, whole: bool) -> None:
    program, *words = [word.strip("\"'") for word in line.split()]
    parser = {"tresor": make_parser, "tresor-verify": verify._parser}[program]()
    if whole:
        parser.parse_args(words)
    else:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*words, "--help"])
        assert ended.value.code == 0


def test_commands_are_all_on_the_page() -> None:
    def leaves(parser: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
        for action in parser._actions:
            for choice in getattr(action, "_choices_actions", ()):
                below = action.choices[choice.dest]
                if below._defaults.get("command") is None:
                    yield from leaves(below, (*path, choice.dest))
                else:
                    yield " ".join(("tresor", *path, choice.dest)), choice.help

    assert {row[0].strip("`"): row[1] for row in RUNNING.table("Command")} == dict(leaves(make_parser()))


# Metrics and logs


def test_metrics() -> None:
    rows = {row[0].strip("`"): row for row in METRICS.table("Metric")}
    counted: dict[str, tuple[str, list[str], str]] = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if isinstance(metric, Counter) else "")
            kind = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}[type(metric)]
            counted[name] = (kind, list(metric._labelnames), metric._documentation)
    assert {name: (row[1], re.findall(r"`(\w+)`", row[2]), row[3]) for name, row in rows.items()} == counted


def test_log_events() -> None:
    logged = {
        (level, event)
        for path in source_files()
        for level, event in re.findall(r'_log\.(\w+)\(\s*"([^"]+)"', path.read_text())
    }
    assert {(row[1], row[0].strip("`")) for row in RUNNING.table("Event")} == logged


# Running


def test_the_unit_waits_longer_than_the_drain() -> None:
    (unit,) = RUNNING.blocks("ini")
    stop = re.search(r"TimeoutStopSec=(\d+)", unit)
    assert stop is not None
    assert int(stop[1]) > model.ServerSettings().drain_timeout_s + _KILL_AFTER_S


def test_the_backup_on_the_page_is_a_store(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tresor.db")
    store.add_customer("acme", "default", now=1)
    store.register_signing_key("kid", "x", "y", now=1)
    (command,) = (line for code in RUNNING.blocks("sh") for line in code.splitlines() if "VACUUM INTO" in line)
    statement = command.partition('"')[2].rpartition('"')[0].replace("/backup/", f"{tmp_path}/backup-")
    with sqlite3.connect(tmp_path / "tresor.db") as database:
        database.execute(statement)
    database.close()
    store.close()
    (copied,) = tmp_path.glob("backup-*")
    copy = SqliteStore(copied)
    assert [customer.name for customer in copy.customers()] == ["acme"]
    assert [key.kid for key in copy.signing_keys()] == ["kid"]
    copy.close()
