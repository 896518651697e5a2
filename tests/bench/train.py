"""Training: the program under the load that it is built for; what ran how often is written by what was built in."""

import tempfile

from lab import OURS, Lab
from origin import Origin
from rows import ROWS

# What many requests, slow ones, large bodies and new tokens are in the table.
LOADS = ["small", "small-http2", "500", "100k", "download", "upload", "token-changes"]


def run():
    """Runs every load once; what a load measures is of no interest here."""
    with tempfile.TemporaryDirectory() as directory, Origin(f"{directory}/origin") as origin:
        lab = Lab(directory, origin, [OURS], rounds=1, secs=3)
        for load in LOADS:
            ROWS[load](lab)
    return 0
