"""A real OpenID provider (Debian's glewlwyd) with a person who logs in there.

    python alice_at_glewlwyd.py DIRECTORY REDIRECT_URI

Prints a line of JSON with its `issuer` once it accepts. The application is `web`, its secret "secret-of-web". Then it
reads a line at a time: an authorization URL, where Alice logs in as its pages would have her, and prints the address at
which that ends; or `end sessions`, where she ends all that her profile page shows, and prints how many. It keeps what
it writes in DIRECTORY, and ends when standard input does.
"""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

CONFIGURATION = """
port = {port}
bind_address = "127.0.0.1"
external_url = "{origin}"
login_url = "login.html"
api_prefix = "api"
static_files_path = "{nothing}"
log_mode = "console"
log_level = "INFO"
cookie_secure = 0
session_key = "SESSION"
admin_scope = "g_admin"
profile_scope = "g_profile"
user_module_path = "/usr/lib/glewlwyd/user"
user_middleware_module_path = "{nothing}"
client_module_path = "/usr/lib/glewlwyd/client"
user_auth_scheme_module_path = "/usr/lib/glewlwyd/scheme"
plugin_module_path = "/usr/lib/glewlwyd/plugin"
hash_algorithm = "SHA512"
database = {{ type = "sqlite3" path = "{database}" }};
"""
TABLES = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
PASSWORD = "correct horse battery staple"
SCOPES = ["openid", "profile"]
# Another program may take the port between our look and the start.
STARTS = 5
LONGEST_START_SECS = 60


def main(directory, redirect_uri):
    database = directory / "glewlwyd.db"
    with sqlite3.connect(database) as connection:
        connection.executescript(TABLES.read_text(encoding="utf-8"))
    connection.close()
    for _ in range(STARTS):
        origin = start(directory, database)
        if origin:
            break
    else:
        sys.exit("glewlwyd (tests/run installs it) does not start: see the lines above")
    issuer = f"{origin}/api/oidc"
    furnish(origin, issuer, redirect_uri)
    say(json.dumps({"issuer": issuer}))
    for line in sys.stdin:
        say(end_sessions(origin) if line.strip() == "end sessions" else log_in(line.strip(), origin))


def start(directory, database):
    """Its origin when it accepts, nothing when it ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    origin = f"http://127.0.0.1:{port}"
    nothing = directory / "nothing"
    nothing.mkdir(exist_ok=True)
    file = directory / "glewlwyd.conf"
    file.write_text(CONFIGURATION.format(port=port, origin=origin, nothing=nothing, database=database))
    # It ends with this script, however that ends.
    command = ["setpriv", "--pdeathsig", "KILL", "glewlwyd", f"--config-file={file}"]
    glewlwyd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    deadline = time.monotonic() + LONGEST_START_SECS
    while glewlwyd.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{origin}/config").is_success and glewlwyd.poll() is None:
                return origin
        except httpx.TransportError:
            time.sleep(0.05)
    glewlwyd.kill()
    return None


def furnish(origin, issuer, redirect_uri):
    """The OpenID plugin, Alice, and an application that she has consented to."""
    with httpx.Client(base_url=f"{origin}/api/") as admin:
        call(admin, "POST", "auth/", {"username": "admin", "password": "password"})
        private, public = key_pair()
        plugin = {
            "iss": issuer,
            "jwt-type": "rsa",
            "jwt-key-size": "256",
            "key": private,
            "cert": public,
            "code-duration": 600,
            "refresh-token-duration": 86400,
            "refresh-token-one-use": "always",
            "access-token-duration": 3600,
            "allow-non-oidc": True,
            "auth-type-code-enabled": True,
            "auth-type-implicit-enabled": True,
            "auth-type-refresh-enabled": True,
            "jwks-show": True,
            "pkce-allowed": True,
            "introspection-revocation-allowed": True,
            "introspection-revocation-allow-target-client": True,
            "name-claim": "mandatory",
        }
        made = {"module": "oidc", "name": "oidc", "display_name": "OpenID", "enabled": True, "parameters": plugin}
        call(admin, "POST", "mod/plugin/", made)
        call(admin, "POST", "scope/", {"name": "profile", "display_name": "profile", "password_required": False})
        alice = {"username": "alice", "name": "Alice 爱丽丝", "password": PASSWORD, "scope": [*SCOPES, "g_profile"]}
        call(admin, "POST", "user/", {**alice, "enabled": True})
        web = {
            "client_id": "web",
            "client_secret": "secret-of-web",
            "redirect_uri": [redirect_uri],
            "authorization_type": ["code", "id_token", "refresh_token"],
            "token_endpoint_auth_method": ["client_secret_post", "client_secret_basic"],
            "confidential": True,
            "enabled": True,
        }
        call(admin, "POST", "client/", web)
    with browser_of_alice(origin) as browser:
        call(browser, "PUT", "auth/grant/web", {"scope": " ".join(SCOPES)})


def key_pair():
    run = lambda *command, **more: subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout
    private = run("openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
    return private, run("openssl", "pkey", "-pubout", input=private)


@contextmanager
def browser_of_alice(origin):
    with httpx.Client(base_url=f"{origin}/api/") as browser:
        call(browser, "POST", "auth/", {"username": "alice", "password": PASSWORD})
        yield browser


def log_in(url, origin):
    """Where a browser ends that starts there and goes on when Alice has logged in."""
    with browser_of_alice(origin) as browser:
        answer = browser.get(url)
        location = answer.headers.get("location", "")
        # Its login page is a script of its own, which goes on with `g_continue`.
        if urlsplit(location).path == "/login.html":
            answer = browser.get(f"{url}&g_continue")
            location = answer.headers.get("location", "")
        return location or f"nowhere: {answer.status_code} {answer.text}"


def end_sessions(origin):
    with browser_of_alice(origin) as browser:
        tokens = call(browser, "GET", "oidc/token/").json()
        enabled = [token["token_hash"] for token in tokens if token["enabled"]]
        for token_hash in enabled:
            call(browser, "DELETE", f"oidc/token/{quote(token_hash, safe='')}")
        return len(enabled)


def call(client, method, path, content=None):
    answer = client.request(method, path, json=content)
    if not answer.is_success:
        sys.exit(f"{method} {path}: {answer.status_code} {answer.text}")
    return answer


def say(line):
    print(line, flush=True)


main(Path(sys.argv[1]), sys.argv[2])
