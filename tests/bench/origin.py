"""The API that stands behind every proxy: nginx with TLS 1.3, which answers 401 to all but the right token."""

import random
import shutil
import subprocess
from pathlib import Path

from processes import LOAD_CORE, Program, free_port
from templates import write_template

TOKEN = "bench-" + "0123456789abcdef" * 4
FILES = {"1k": 1 << 10, "100k": 100 << 10, "64m": 64 << 20}


class Origin:
    """A running origin; `plain`, `http1` (TLS) and `http2` (TLS) are its ports."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.plain, self.http1, self.http2 = free_port(), free_port(), free_port()
        self.ca = make_certificates(self.directory)
        self.files = self.directory / "files"
        make_files(self.files)
        config = write_template("origin.conf", self.directory, self.settings())
        self.program = Program(["nginx", "-c", config], LOAD_CORE, self.directory / "nginx.log")
        self.program.wait_for_port(self.http1)

    def settings(self):
        """What its configuration leaves open."""
        return {
            "DIRECTORY": self.directory,
            "PLAIN": self.plain,
            "HTTP1": self.http1,
            "HTTP2": self.http2,
            "TOKEN": TOKEN,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.program.stop()

    def body(self, name):
        """What a file holds, byte for byte."""
        return (self.files / name).read_bytes()


def make_certificates(directory):
    """A certificate authority of its own and a certificate for `localhost`; returns the authority's file."""
    ca, key, certificate, request = (directory / name for name in ("ca.pem", "key.pem", "cert.pem", "request.pem"))
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256"]
    openssl("req", "-x509", *new_key, "-keyout", directory / "ca-key.pem", "-out", ca, "-subj", "/CN=bench CA",
            "-days", "30", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", directory / "ca-key.pem", "-CAcreateserial",
            "-out", certificate, "-days", "30", "-sha256", "-extfile", extensions)
    return ca


def openssl(*arguments):
    """Runs openssl, silently unless it fails."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_files(directory):
    """The files that are served; the same bytes in every run, which nothing can compress."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "put").mkdir(parents=True)
    for name, size in FILES.items():
        (directory / name).write_bytes(random.Random(name).randbytes(size))
