"""Programs that the benchmark starts: pinned to a core, measured from /proc, stopped when it ends."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

START_LIMIT_SECS = 30
STOP_LIMIT_SECS = 20
CORES = sorted(os.sched_getaffinity(0))
# What is measured has a core for itself; whoever asks and whoever answers share the other.
PROXY_CORE, LOAD_CORE = CORES[0], CORES[-1]

_given = set()


class Failed(Exception):
    """What was to be measured did not work: there is no figure."""


def free_port():
    """A port of loopback that nobody uses, and that was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


class Program:
    """A running program with its children; a context manager that stops them all."""

    def __init__(self, command, core, log, environment=None):
        self.name = Path(command[0]).name
        self.log = Path(log)
        self.begun_at = time.monotonic()
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_for_port(self, port):
        """Returns as soon as somebody accepts on this port; ends the program when nobody does."""
        try:
            self.poll_port(port)
        except BaseException:
            self.stop()
            raise

    def poll_port(self, port):
        """Tries to connect until it works or takes too long."""
        deadline = time.monotonic() + START_LIMIT_SECS
        while time.monotonic() < deadline:
            self.must_run()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.0005)
        raise Failed(f"{self.name} does not listen: {self.said()}")

    def must_run(self):
        """Fails when the program has ended."""
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}: {self.said()}")

    def said(self):
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]

    def tree(self):
        """The process and all its descendants."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                except OSError:
                    continue
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found.extend(child for child, parent in parents.items() if parent == pid)
        return found

    def cpu_ns(self):
        """The time that all threads of the tree have run on a core until now."""
        total = 0
        for pid in self.tree():
            for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    total += int(schedstat.read_text().split()[0])
                except OSError:
                    continue
        return total

    def pss_kib(self):
        """The memory of the tree, what is shared divided among those who share it."""
        total = 0
        for pid in self.tree():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total

    def stop_child(self):
        """Ends what runs below a tracer, and waits until the tracer has written its summary."""
        os.kill(self.tree()[1], signal.SIGTERM)
        self.process.wait(STOP_LIMIT_SECS)

    def stop(self):
        """Ends it: politely, then not."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_SECS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
