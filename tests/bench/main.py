"""The command line of the benchmark; see `run`."""

import argparse
import sys

import gate
from processes import Failed


def main():
    """Runs what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="What a request costs, beside other proxies.")
    commands = parser.add_subparsers(dest="command", required=True)
    gated = commands.add_parser("gate", help="instructions and system calls a request against the recorded figures")
    gated.add_argument("--record", action="store_true", help="record the new figures instead")
    chosen = parser.parse_args()

    try:
        return gate.run(chosen.record)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
