"""The command line of the benchmark; see `run`."""

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import gate
import table
import train
from lab import HAPROXY, NGINX, OURS, PROFILED, Lab
from origin import Origin
from peers import PEERS
from processes import Failed
from rows import ROWS

HERE = Path(__file__).parent
QUICK = ["small", "500", "100k", "download", "upload", "instructions", "system-calls", "cold-start"]
QUICK_PEERS = [peer for peer in PEERS if peer in (OURS, PROFILED, NGINX, HAPROXY)]


def main():
    """Runs what was asked for; returns the exit code."""
    chosen = arguments()
    # Ending early still stops what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        match chosen.command:
            case "gate":
                return gate.run(chosen.record)
            case "train":
                return train.run()
            case "order":
                return train.order()
            case _:
                return measure(chosen)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1


def arguments():
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="What a request costs, beside other proxies.")
    commands = parser.add_subparsers(dest="command", required=True)
    gated = commands.add_parser("gate", help="instructions and system calls a request against the recorded figures")
    gated.add_argument("--record", action="store_true", help="record the new figures instead")
    commands.add_parser("train", help="the loads by which the compiler learns what runs often")
    commands.add_parser("order", help="the functions that run, for the linker to put beside each other")
    rows = commands.add_parser("table", help="everything, beside the others; writes results.md and results.svg")
    rows.add_argument("--quick", action="store_true", help="fewer rows, peers and rounds; nothing is written")
    rows.add_argument("--rows", type=some_of(ROWS), metavar="NAME,...", help=", ".join(ROWS))
    rows.add_argument("--peers", type=some_of(PEERS), metavar="NAME,...", help=", ".join(PEERS))
    rows.add_argument("--rounds", type=int, help="how often the proxies take turns (5; quick 3)")
    rows.add_argument("--seconds", type=int, help="of one measure (3; quick 1)")
    return parser.parse_args()


def some_of(known):
    """Parses names with commas between them."""

    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def measure(chosen):
    """Measures the rows, prints what was found, and writes it down when all of them were measured."""
    rows = chosen.rows or (QUICK if chosen.quick else list(ROWS))
    peers = chosen.peers or (QUICK_PEERS if chosen.quick else list(PEERS))
    rounds, secs = chosen.rounds or (3 if chosen.quick else 5), chosen.seconds or (1 if chosen.quick else 3)
    begun_at, found, failures = time.monotonic(), {}, []
    busy = os.getloadavg()[0]
    if busy > 1:
        print(f"warning: others use this machine (load average {busy:.1f}): times will be off", file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory, Origin(f"{directory}/origin") as origin:
        lab = Lab(directory, origin, peers, rounds, secs)
        for name in rows:
            row_begun_at = time.monotonic()
            print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
            try:
                found[name] = ROWS[name](lab)
            except Failed as failure:
                failures.append(f"{name}: {failure}")
            print(f"{time.monotonic() - row_begun_at:.0f} s", file=sys.stderr)
            if name in found:
                print(table.summary(found[name]), file=sys.stderr)

    said = f"{datetime.now(UTC):%Y-%m-%d}, {rounds} rounds of {secs} s, in {(time.monotonic() - begun_at) / 60:.0f} minutes."
    said += f" Load average before it began: {busy:.1f}; above 1, times and latencies say little."
    written = table.markdown(found, said)
    print(written)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if list(rows) == list(ROWS) and not failures:
        (HERE / "results.md").write_text(written)
        (HERE / "results.svg").write_text(table.picture(found))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
