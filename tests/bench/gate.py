"""The gate: what a request costs in instructions and system calls must not grow unnoticed."""

import re
import tempfile
import tomllib
from pathlib import Path

import counting
from origin import Origin
from lab import OURS, PROFILED
from peers import PEERS, Setup

RECORD = Path(__file__).parent / "gate.toml"
# A figure may be off its record by this part, either way; what repeats stays within a tenth of it.
TOLERANCE = 0.03
INSTEAD = """\
A request has become dearer. If that is not what you meant, `valgrind --tool=callgrind` on a release build with
RUSTFLAGS=-Cstrip=none, and `strace -f`, say where. If it is worth its price, write the new figures down:
    tests/bench/run gate --record"""

# What valgrind shows of a processor, however new, and what ring and memchr choose their code by: it hides AVX-512 and
# VAES, so all machines with these count alike.
FEATURES = {"aes", "avx2", "bmi2", "pclmulqdq"}


def measure(build):
    """The figures of a build, by name."""
    with tempfile.TemporaryDirectory() as directory, Origin(f"{directory}/origin") as origin:

        def below(upstream):
            return lambda prefix: PEERS[build](origin, Setup(upstream=upstream), f"{directory}/proxy", prefix)

        return {
            "instructions_tls": counting.instructions_a_request(below("http1"), directory),
            "instructions_plain": counting.instructions_a_request(below("plain"), directory),
            "system_calls": counting.system_calls_a_request(below("http1"), directory),
        }


def run(record):
    """Prints the figures beside their records; returns the exit code."""
    recorded = tomllib.loads(RECORD.read_text())
    measured = {build: measure(build) for build in (OURS, PROFILED) if build in PEERS}
    if PROFILED not in PEERS:
        print(f"{PROFILED}: not there, `deploy/release/build` makes it")
    if record:
        recorded |= measured
        write(recorded)

    held = True
    for build, figures in measured.items():
        for name, figure in figures.items():
            line, holds = verdict(f"{build} {name}", figure, recorded[build][name])
            print(line)
            held = held and holds
    if held:
        return 0
    print(INSTEAD)
    if missing := FEATURES - features():
        print(f"This processor has no {', '.join(sorted(missing))}: other code runs here than where it was recorded.")
    return 1


def features():
    """What the machine's processor says that it can."""
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def verdict(name, figure, recorded):
    """One line about a figure, and whether it holds."""
    change = figure / recorded - 1
    line = f"{name:32} {figure:10.2f} a request, recorded {recorded:10.2f} ({change:+.2%})"
    if change > TOLERANCE:
        return f"{line}: MORE than {TOLERANCE:.0%} above", False
    if change < -TOLERANCE:
        return f"{line}: cheaper, please record it: tests/bench/run gate --record", True
    return line, True


def write(recorded):
    """Puts figures in the place of the recorded ones; what is said above them stays."""
    parts = [RECORD.read_text().partition("\n[")[0]]
    for build, figures in recorded.items():
        parts.append("\n".join([f"[{build}]", *(f"{name} = {figure:.2f}" for name, figure in figures.items())]))
    RECORD.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
