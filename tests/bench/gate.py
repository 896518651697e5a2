"""The gate: what a request costs in instructions and system calls must not grow unnoticed."""

import re
import tempfile
import tomllib
from pathlib import Path

import counting
from origin import Origin
from peers import CnblogsProxy, Setup

RECORD = Path(__file__).parent / "gate.toml"
# A figure may be off its record by this part, either way; what repeats stays within a tenth of it.
TOLERANCE = 0.03
INSTEAD = """\
A request has become dearer. The compiler may not know any more what runs often: `tests/bench/run train`. If it is
not that, and not what you meant, `valgrind --tool=callgrind` on a release build with
RUSTFLAGS=-Cstrip=none, and `strace -f`, say where. If it is worth its price, write the new figures down:
    tests/bench/run gate --record"""

# What valgrind shows of a processor, however new, and what ring and memchr choose their code by: it hides AVX-512 and
# VAES, so all machines with these count alike.
FEATURES = {"aes", "avx2", "bmi2", "pclmulqdq"}


def measure():
    """The figures of the release binary, by name."""
    with tempfile.TemporaryDirectory() as directory, Origin(f"{directory}/origin") as origin:

        def below(upstream):
            return lambda prefix: CnblogsProxy(origin, Setup(upstream=upstream), f"{directory}/proxy", prefix)

        return {
            "instructions_tls": counting.instructions_a_request(below("http1"), directory),
            "instructions_plain": counting.instructions_a_request(below("plain"), directory),
            "system_calls": counting.system_calls_a_request(below("http1"), directory),
        }


def run(record):
    """Prints the figures beside their records; returns the exit code."""
    measured = measure()
    recorded = tomllib.loads(RECORD.read_text())
    if record:
        write(measured)
        recorded = measured

    verdicts = [verdict(name, measured[name], recorded[name]) for name in measured]
    for line, _ in verdicts:
        print(line)
    if all(held for _, held in verdicts):
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
    line = f"{name:18} {figure:10.2f} a request, recorded {recorded:10.2f} ({change:+.2%})"
    if change > TOLERANCE:
        return f"{line}: MORE than {TOLERANCE:.0%} above", False
    if change < -TOLERANCE:
        return f"{line}: cheaper, please record it: tests/bench/run gate --record", True
    return line, True


def write(measured):
    """Puts new figures in the place of the recorded ones; what is said around them stays."""
    text = RECORD.read_text()
    for name, figure in measured.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {figure:.2f}", text, flags=re.MULTILINE)
    RECORD.write_text(text)
