"""The proxies that are compared: ours, and what an administrator would otherwise put there, configured as fairly."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from origin import TOKEN
from processes import PROXY_CORE, Program, free_port
from templates import write_template

ROOT = Path(__file__).resolve().parents[2]
NGINX_BULK = "proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k; client_body_buffer_size 128k;"

PERSONAL_ACCESS_TOKEN = """\
[account.main]
grant      = "personal_access_token"
token_file = "{}"
"""


@dataclass(frozen=True)
class Setup:
    """How a proxy is set up for one row."""

    # Spoken to the origin: "http1" over TLS, or "plain".
    upstream: str = "http1"
    # Buffers of 64 to 128 KiB instead of what Debian's nginx and haproxy come with.
    bulk: bool = False
    # For our own program: worker threads, another account than one with the token in its store, more tables.
    workers: int = 1
    account: str = ""
    more: str = ""
    # Where to, when it isn't the origin itself.
    port: int = 0

    def but(self, **changes):
        """The same, but for these."""
        return replace(self, **changes)


class Peer:
    """A running proxy on `port`; a context manager."""

    environment = {}

    def __init__(self, origin, setup, directory, prefix=()):
        self.directory = Path(directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.setup, self.origin = setup, origin
        self.port = free_port()
        self.settings = {
            "DIRECTORY": self.directory,
            "PORT": self.port,
            "UPSTREAM": setup.port or getattr(origin, setup.upstream),
            "SCHEME": "http" if setup.upstream == "plain" else "https",
            "TOKEN": TOKEN,
            "CA": origin.ca,
        }
        command = self.prepare()
        self.program = Program([*prefix, *command], PROXY_CORE, self.directory / "log", self.environment)
        self.program.wait_for_port(self.port)

    def prepare(self):
        """Writes the configuration; returns the command."""
        raise NotImplementedError

    def write(self, name, **settings):
        """Fills a template in."""
        return write_template(name, self.directory, {**self.settings, **settings})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.program.stop()


class CnblogsProxy(Peer):
    """Ours, as `cargo build --release` makes it: everything on, the token in its place."""

    binary = os.environ.get("BINARY", ROOT / "target/release/cnblogs-proxy")

    def prepare(self):
        token = self.directory / "token"
        token.write_text(TOKEN + "\n")
        token.chmod(0o600)
        config = self.write(
            "cnblogs-proxy.toml",
            WORKERS=self.setup.workers,
            CA_IF_TLS="" if self.setup.upstream == "plain" else self.settings["CA"],
            ACCOUNT=self.setup.account or PERSONAL_ACCESS_TOKEN.format(token),
            MORE=self.setup.more,
        )
        return [self.binary, "--config", config]


class Profiled(CnblogsProxy):
    """Ours as releases bring it, built with a profile, when it is there."""

    binary = os.environ.get("PROFILED")


class Before(CnblogsProxy):
    """An earlier program of ours, that the environment names: what a change costs."""

    binary = os.environ.get("BEFORE")


class Nginx(Peer):
    """Debian's nginx."""

    def prepare(self):
        return ["nginx", "-c", self.write("nginx.conf", BUFFERS=NGINX_BULK if self.setup.bulk else "")]


class Haproxy(Peer):
    """Debian's haproxy."""

    def prepare(self):
        tls = (
            f"ssl verify required ca-file {self.settings['CA']} verifyhost localhost sni str(localhost) "
            f"ssl-min-ver TLSv1.3 alpn http/1.1"
        )
        buffer = 131072 if self.setup.bulk else 16384
        config = self.write("haproxy.cfg", TLS="" if self.setup.upstream == "plain" else tls, BUFFER=buffer)
        return ["haproxy", "-f", config]


class Kubectl(Peer):
    """`kubectl proxy`, the tool that is nearest in kind. It speaks HTTP/2 whenever it can, as it does in a cluster."""

    def prepare(self):
        if not self.setup.port:
            self.settings["UPSTREAM"] = self.origin.http2
        config = self.write("kubeconfig.yaml")
        return ["kubectl", "--kubeconfig", config, "proxy", "--port", self.port]


class Caddy(Peer):
    """Debian's caddy."""

    def prepare(self):
        self.environment = {"HOME": str(self.directory), "GOMAXPROCS": "1"}
        config = self.write("Caddyfile")
        return ["caddy", "run", "--adapter", "caddyfile", "--config", config]


class Envoy(Peer):
    """Envoy with its `credential_injector`, from PyPI."""

    def prepare(self):
        config = self.write("envoy.yaml")
        program = os.environ.get("ENVOY", "envoy")
        return [program, "--config-path", config, "--concurrency", 1, "--log-level", "error", "--disable-hot-restart"]


PEERS = {
    "cnblogs-proxy": CnblogsProxy,
    **({"profiled": Profiled} if Profiled.binary else {}),
    "nginx": Nginx,
    "haproxy": Haproxy,
    "kubectl proxy": Kubectl,
    "caddy": Caddy,
    "envoy": Envoy,
    **({"before": Before} if Before.binary else {}),
}
