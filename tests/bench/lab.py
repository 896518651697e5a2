"""What every row needs: the origin, started proxies, load, and rounds that take turns."""

import itertools
import json
import os
import statistics
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers import PEERS, Setup
from processes import LOAD_CORE, Failed, Program

HERE = Path(__file__).parent
OURS, PROFILED, NGINX, HAPROXY, BEFORE = "cnblogs-proxy", "profiled", "nginx", "haproxy", "before"


class Lab:
    """The place where rows are measured."""

    def __init__(self, directory, origin, peers, rounds, secs):
        self.directory, self.origin = Path(directory), origin
        self.peers, self.rounds, self.secs = peers, rounds, secs
        self.target = Path(os.environ["TARGET"])
        self.numbers = itertools.count()

    def start(self, peer, setup=Setup(), prefix=()):
        """Starts one proxy; a context manager."""
        return PEERS[peer](self.origin, setup, self.directory / f"{next(self.numbers)}", prefix)

    def file(self, name):
        """The file of the origin that an answer must equal."""
        return self.origin.files / name

    def wrk(self, port, name, connections, secs=None, header=()):
        """Saturates with so many connections; returns the number of requests, all answered in full length."""
        url = f"http://localhost:{port}/{name}"
        words = ["wrk", "-t1", f"-c{connections}", f"-d{secs or self.secs}s", "--timeout", "30s"]
        said = run_load([*words, *header, "-s", str(HERE / "wrk.lua"), url])
        length = said["bytes"] / max(said["requests"], 1)
        size = self.file(name).stat().st_size
        if not size < length < size + 1200:
            raise Failed(f"{said['requests']} answers brought {said['bytes']} bytes")
        return said["requests"]

    def load(self, *words, token=None):
        """Runs a command of load.rs to its end; the token is for where no proxy puts one on."""
        return run_load([os.environ["LOAD"], *words], {"LOAD_TOKEN": token} if token else {})

    @contextmanager
    def relay(self, port, to, delay_ms):
        """A way to a port on which every byte takes that long, in both directions."""
        command = [os.environ["LOAD"], "relay", port, to, delay_ms]
        with Program(command, LOAD_CORE, self.directory / "relay.log") as relay:
            relay.wait_for_port(port)
            yield

    @contextmanager
    def kept(self, *words):
        """A command of load.rs that goes on until the block ends; it has begun when the block does."""
        command = ["taskset", "--cpu-list", str(LOAD_CORE), os.environ["LOAD"], *map(str, words)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                must_be_without_errors(process.stdout.readline())
                yield
            finally:
                process.stdin.close()
                process.wait()

    def in_turns(self, setups, measure, rounds=None):
        """Measures several proxies in interleaved rounds. `setups` is {name: (peer, setup)}; returns {name: figures}."""
        with ExitStack() as stack:
            proxies = {name: stack.enter_context(self.start(*setup)) for name, setup in setups.items()}
            measured = {name: [] for name in proxies}
            for number in range(1 + (rounds or self.rounds)):
                # There and back, lest one always profit from who was before it.
                for name, proxy in list(proxies.items())[:: -1 if number % 2 else 1]:
                    measured[name].append(measure_named(name, measure, proxy))
            # In the first round connections, caches and code were cold.
            return {name: figures[1:] for name, figures in measured.items()}

    def among_peers(self, measure, rounds=None):
        """The same for all chosen peers."""
        return self.in_turns({peer: (peer, Setup()) for peer in self.peers}, measure, rounds)


def cpu_us(proxy, ask):
    """Processor time a request. `ask` returns how many there were."""
    before = proxy.program.cpu_ns()
    requests = ask()
    return (proxy.program.cpu_ns() - before) / requests / 1000


def measure_named(name, measure, proxy):
    """Measures once; a failure says whose."""
    try:
        return measure(proxy)
    except Failed as failure:
        raise Failed(f"{name}: {failure}; it said: {proxy.program.said()[-600:]}") from failure


def ratio(measured, name, base):
    """The median of the round-by-round ratios, or None when there is nothing to compare with."""
    if name not in measured or base not in measured:
        return None
    return statistics.median(one / other for one, other in zip(measured[name], measured[base]))


def run_load(command, environment=None):
    """Runs a load generator on its core; returns what it counted."""
    done = subprocess.run(
        ["taskset", "--cpu-list", str(LOAD_CORE), *map(str, command)],
        capture_output=True, text=True, env={**os.environ, **(environment or {})},
    )
    if not done.stdout.strip():
        raise Failed(f"{command[0]} said nothing: {done.stderr[-300:]}")
    return must_be_without_errors(done.stdout.splitlines()[-1])


def must_be_without_errors(line):
    """A measure with a single failed request is none."""
    said = json.loads(line)
    if "error" in said or said["errors"]:
        raise Failed(f"the load saw errors: {line.strip()}")
    return said
