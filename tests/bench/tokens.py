"""Our own program with an account that asks a token server; that of load.rs."""

from contextlib import contextmanager
from urllib.request import urlopen

from processes import free_port


class TokenServer:
    """Grants `change-0`, `change-1` and so on, as often as it is asked, on `port` of loopback."""

    def __init__(self, port):
        self.port = port

    def granted(self):
        """How often it has granted."""
        with urlopen(f"http://127.0.0.1:{self.port}/", timeout=60) as answer:
            return int(answer.read())

    def account(self, directory):
        """The account of our own program that asks it."""
        secret = directory / "client_secret"
        secret.write_text("bench\n")
        secret.chmod(0o600)
        return (
            '[account.main]\ngrant = "client_credentials"\nclient_id = "bench"\n'
            f'client_secret_file = "{secret}"\ntoken_url = "http://127.0.0.1:{self.port}/connect/token"\n'
        )


@contextmanager
def token_server(lab, delay_ms=0):
    """A token server that grants after the delay, until the block ends."""
    port = free_port()
    with lab.kept("tokens", port, delay_ms):
        yield TokenServer(port)
