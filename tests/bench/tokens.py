"""A token server: grants `change-0`, `change-1` and so on, as often as it is asked."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class TokenServer:
    """Listens on `port` of loopback until the block ends."""

    def __init__(self, delay_secs=0):
        self.granted, self.delay_secs = 0, delay_secs
        server = self

        class Handler(BaseHTTPRequestHandler):
            """Answers the token endpoint."""

            def do_POST(self):
                """Whatever comes gets the next token."""
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(server.delay_secs)
                grant = {"access_token": f"change-{server.granted}", "token_type": "Bearer", "expires_in": 3600}
                server.granted += 1
                body = json.dumps(grant).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Says nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def client_credentials(server, directory):
    """The account of our own program that asks this server."""
    secret = directory / "client_secret"
    secret.write_text("bench\n")
    secret.chmod(0o600)
    return (
        '[account.main]\ngrant = "client_credentials"\nclient_id = "bench"\n'
        f'client_secret_file = "{secret}"\ntoken_url = "http://127.0.0.1:{server.port}/connect/token"\n'
    )
