"""Training: what the compiler is told of the program under the load that it is built for, and the linker."""

import tempfile

import counting
from lab import OURS, Lab
from origin import Origin
from peers import Setup
from rows import ROWS
from tokens import token_server

# What many requests, slow ones, large bodies and new tokens are in the table.
LOADS = ["small", "500", "100k", "download", "upload", "token-changes"]


def run():
    """Runs every load once, for a program that writes down itself what ran how often. What loads measure is unused."""
    with tempfile.TemporaryDirectory() as directory, Origin(f"{directory}/origin") as origin:
        lab = Lab(directory, origin, [OURS], rounds=1, secs=3)
        for load in LOADS:
            ROWS[load](lab)
    return 0


def order():
    """Prints the functions that run where a token stays, and then those that run besides where one is asked for."""
    with tempfile.TemporaryDirectory() as directory, Origin(f"{directory}/origin") as origin:
        lab = Lab(directory, origin, [OURS], rounds=1, secs=3)
        symbols = []
        with token_server(lab) as server:
            for setup in Setup(), Setup(account=server.account(lab.directory)):

                def start(prefix, setup=setup):
                    return lab.start(OURS, setup, prefix)

                symbols += counting.functions_that_run(start, lab.directory)
        print("\n".join(dict.fromkeys(symbols)))
    return 0
