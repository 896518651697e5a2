"""A real OpenID provider (PyPI canaille) with a person who logs in there.

    python alice_at_canaille.py REDIRECT_URI

Prints a line of JSON with its `issuer` once it accepts. The application `web` is for people, `machine` for itself; the
secret of each is "secret-of-" and its name, sent by Basic. Then it reads an authorization URL a line, logs Alice in as
a browser would, and prints the address at which that ends. Ends when standard input does.
"""

import json
import re
import sys
import threading
from html import unescape
from urllib.parse import urljoin

import httpx
from canaille import create_app
from canaille.app import models
from canaille.backends import Backend
from werkzeug.serving import WSGIRequestHandler, make_server

PASSWORD = "correct horse battery staple"
INPUT = re.compile(r"<input\b[^>]*>", re.DOTALL)


class Quiet(WSGIRequestHandler):
    def log(self, kind, message, *arguments):
        print(message % arguments, file=sys.stderr)


def main(redirect_uri):
    app = create_app(
        {
            "SECRET_KEY": "of a test",
            "CANAILLE": {"DATABASE": "memory", "LOGGING": {"version": 1}, "JAVASCRIPT": False},
            "CANAILLE_OIDC": {},
        },
        env_file="",
    )
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    base = f"http://127.0.0.1:{server.port}/"
    furnish(app, redirect_uri)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    issuer = httpx.get(f"{base}.well-known/openid-configuration").json()["issuer"]
    say(json.dumps({"issuer": issuer}))
    for line in sys.stdin:
        say(walk(line.strip(), base))


def furnish(app, redirect_uri):
    """Alice, and two applications that ask nobody for a consent."""
    with app.app_context():
        alice = models.User(
            formatted_name="Alice 爱丽丝",
            family_name="Alice",
            user_name="alice",
            emails=["a@example.org"],
            password=PASSWORD,
        )
        Backend.instance.save(alice)
        for name, grants in [
            ("web", ["authorization_code", "refresh_token", "implicit"]),
            ("machine", ["client_credentials"]),
        ]:
            client = models.Client(
                client_id=name,
                client_secret=f"secret-of-{name}",
                client_name=name,
                client_uri="http://127.0.0.1",
                redirect_uris=[redirect_uri],
                grant_types=grants,
                response_types=["code", "id_token"],
                scope=["openid", "profile", "email"],
                token_endpoint_auth_method="client_secret_basic",
            )
            Backend.instance.save(client)
            client.audience = [client]
            Backend.instance.save(client)


def walk(url, base):
    """Where a browser ends that starts there."""
    with httpx.Client() as browser:
        answer = browser.get(url)
        for _ in range(20):
            if answer.is_redirect:
                url = urljoin(str(answer.url), answer.headers["location"])
                if not url.startswith(base):
                    return url
                answer = browser.get(url)
            else:
                answer = browser.post(answer.url, data=filled(answer.text))
        return f"nowhere: {answer.status_code} {answer.text}"


def filled(page):
    """The fields of a page's form, as Alice fills them in."""
    form = {}
    for tag in INPUT.findall(page):
        field = {name: unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', tag)}
        if "name" in field:
            form[field["name"]] = {"login": "alice", "password": PASSWORD}.get(field["name"], field.get("value", ""))
    return form


def say(line):
    print(line, flush=True)


main(sys.argv[1])
