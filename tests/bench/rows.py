"""The rows of the table: each function measures one thing and returns what it found."""

import itertools
import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field

import counting
from lab import BEFORE, HAPROXY, NGINX, OURS, PROFILED, cpu_us, ratio
from origin import TOKEN
from peers import PEERS, ROOT, Setup
from processes import Failed, free_port
from tokens import token_server

KIB = 1024
CONNECTIONS = 64
# So many times the rounds, where a program that mostly sleeps differs more from round to round than from its peers.
MANY = 3
MANY_CONNECTIONS = 9500
GIVEN_BACK_WITHIN_SECS = 60
# Connections are idle on which nothing was asked for that long.
IDLE_SECS = 5
CHANGES = 20
# Both builds of ours, as far as they are there.
BUILDS = [peer for peer in (OURS, PROFILED) if peer in PEERS]


@dataclass
class Goal:
    """One line of what must be reached. `must` and `aim` are the most that `reached` may be."""

    what: str
    reached: float | None
    must: float
    aim: float
    unit: str = ""


@dataclass
class Found:
    """What a row found: goals, and a table of figures by peer."""

    goals: list = field(default_factory=list)
    # {title of a column: {peer: figure}}, and the same as ratios to nginx.
    figures: dict = field(default_factory=dict)
    ratios: dict = field(default_factory=dict)


def median_of(measured):
    """The median of each peer's figures."""
    return {name: statistics.median(figures) for name, figures in measured.items()}


def compared(title, measured, goals):
    """A row of processor time. `goals` are (build, base, must, aim)."""
    found = Found(figures={title: median_of(measured)})
    found.ratios[title] = {name: ratio(measured, name, NGINX) for name in measured}
    for ours, base, must, aim in [*goals, (OURS, BEFORE, 1.03, 1.0)]:
        if ours in BUILDS and base in PEERS:
            reached = ratio(measured, ours, base)
            found.goals.append(Goal(f"CPU a request, {title}, {ours} to {base}", reached, must, aim, "x"))
    return found


def small(lab):
    """1 KiB on 64 connections, HTTP/1.1 over TLS to the origin."""
    measured = lab.among_peers(lambda proxy: cpu_us(proxy, lambda: lab.wrk(proxy.port, "1k", CONNECTIONS)))
    goals = [(OURS, NGINX, 0.90, 0.75), (OURS, HAPROXY, 1.0, 1.0), (PROFILED, NGINX, 0.80, 0.75)]
    return compared("1 KiB, 64 connections", measured, goals)


def at_500(lab):
    """500 requests a second, on 16 connections: processor time, and latency beside the origin alone."""
    goals = [(ours, NGINX, 1.0, 1.0) for ours in BUILDS]
    found, latencies, direct = at_rate(lab, "500/s", 500, 16, MANY * lab.rounds, goals)
    for part in ("p50", "p99"):
        added = {name: [each[part] for each in rounds] for name, rounds in latencies.items()}
        base = [each[part] for each in direct]
        added = {name: [one - zero for one, zero in zip(rounds, base)] for name, rounds in added.items()}
        found.figures[f"500/s, added {part}, µs"] = median_of(added)
        for ours in BUILDS:
            reached = ratio(added, ours, NGINX)
            found.goals.append(Goal(f"latency added at 500/s, {part}, {ours} to nginx", reached, 1.0, 0.85, "x"))
    return found


def at_20(lab):
    """20 requests a second: on one connection, as of one program; and on 16 new ones each time, where accepting counts."""
    goals = [(ours, NGINX, 0.85, 0.60) for ours in BUILDS]
    found, _, _ = at_rate(lab, "20/s", 20, 1, MANY * lab.rounds, goals)
    of_new, _, _ = at_rate(lab, "20/s, 16 new connections", 20, 16, lab.rounds, [])
    found.figures |= of_new.figures
    found.ratios |= of_new.ratios
    return found


def at_rate(lab, title, rate, connections, rounds, goals):
    """An open loop; returns the row, the latencies of every round, and those of the origin alone."""
    count, direct, latencies = max(rate * lab.secs, 60), [], {}

    def ask(port, token=None):
        said = lab.load("open", port, "/1k", lab.file("1k"), rate, count, connections, token=token)
        return said["requests"], {"p50": said["p50_us"], "p99": said["p99_us"]}

    def measure(proxy):
        before = proxy.program.cpu_ns()
        requests, seen = ask(proxy.port)
        latencies.setdefault(names[type(proxy)], []).append(seen)
        if type(proxy) is first:
            direct.append(ask(lab.origin.plain, TOKEN)[1])
        return (proxy.program.cpu_ns() - before) / requests / 1000

    names = {kind: name for name, kind in PEERS.items()}
    first = PEERS[lab.peers[0]]
    measured = lab.among_peers(measure, rounds=rounds)
    return compared(title, measured, goals), latencies, direct


def bulk(lab, without=()):
    """All as they come, and the two that gain by it with large buffers as well."""
    setups = {peer: (peer, Setup()) for peer in lab.peers if peer not in without}
    large = {f"{peer}, large": (peer, Setup(bulk=True)) for peer in (NGINX, HAPROXY) if peer in setups}
    return setups | large


def medium(lab):
    """100 KiB on 64 connections."""

    def measure(proxy):
        return cpu_us(proxy, lambda: lab.wrk(proxy.port, "100k", CONNECTIONS))

    measured = lab.in_turns(bulk(lab), measure)
    goals = [(OURS, NGINX, 0.65, 0.55), (OURS, HAPROXY, 0.85, 0.70), (PROFILED, NGINX, 0.60, 0.55)]
    return compared("100 KiB", measured, goals)


def download(lab):
    """64 MiB down."""

    def measure(proxy):
        return cpu_us(proxy, lambda: lab.load("get", proxy.port, "/64m", lab.file("64m"), 8)["requests"])

    measured = lab.in_turns(bulk(lab), measure)
    goals = [(OURS, NGINX, 0.75, 0.50), (OURS, HAPROXY, 1.0, 1.0), (PROFILED, NGINX, 0.65, 0.50)]
    return compared("64 MiB down", measured, goals)


def upload(lab):
    """16 MiB up, kept by the origin and compared there."""
    sent = lab.directory / "16m"
    sent.write_bytes(lab.file("64m").read_bytes()[: 16 * KIB * KIB])

    def measure(proxy):
        path = f"/put/{proxy.port}"
        spent = cpu_us(proxy, lambda: lab.load("put", proxy.port, path, sent, 6)["requests"])
        if (lab.origin.files / path[1:]).read_bytes() != sent.read_bytes():
            raise Failed("an upload did not arrive as it was sent")
        return spent

    measured = lab.in_turns(bulk(lab, without=("kubectl proxy",)), measure)
    return compared("16 MiB up", measured, [(OURS, NGINX, 0.50, 0.40), (OURS, HAPROXY, 1.0, 1.0)])


def instructions(lab):
    """User-space instructions of one request."""
    found = Found()
    for ours, (title, upstream) in itertools.product(BUILDS, (("TLS", "http1"), ("plain text", "plain"))):

        def start(prefix, ours=ours, upstream=upstream):
            return lab.start(ours, Setup(upstream=upstream), prefix)

        thousands = counting.instructions_a_request(start, lab.directory) / 1000
        found.goals.append(Goal(f"instructions a request, {title}, {ours}", thousands, 45.0, 45.0, "k"))
    return found


def system_calls(lab):
    """System calls of one request."""
    found = Found()
    for connections, title, must in ((1, "1 connection", 6.0), (32, "32 connections", 4.3)):

        def start(prefix):
            return lab.start(OURS, Setup(), prefix)

        # Those of the heartbeat, a few in thousands of requests, are no request's.
        calls = round(counting.system_calls_a_request(start, lab.directory, connections), 2)
        found.goals.append(Goal(f"system calls a request, {title}", calls, must, must))
    return found


def memory(lab):
    """PSS: idle, with idle connections, after they went, and with slow readers."""
    found = Found(figures={"idle, MiB": {}, "a connection of 1,000, KiB": {}, "a connection of 9,500, KiB": {},
                           "after 9,500, MiB": {}, "8 slow readers, + MiB": {}})
    for peer in [peer for peer in lab.peers if peer in (*BUILDS, NGINX, HAPROXY, BEFORE)]:
        for column, figure in zip(found.figures.values(), memory_of(lab, peer)):
            column[peer] = figure

    for ours, must, aim in ((OURS, 11, 8), (PROFILED, 6, 6)):
        if ours in found.figures["idle, MiB"]:
            idle, _, each, after, slow = (column[ours] for column in found.figures.values())
            found.goals += [
                Goal(f"idle memory, {ours}", idle, must, aim, " MiB"),
                Goal(f"memory an idle connection, 9,500, {ours}", each, 18, 18, " KiB"),
                Goal(f"memory within 60 s of 9,500 closing, {ours}, to idle", after / idle, 1.5, 1.2, "x"),
                Goal(f"8 slow readers of 64 MiB, {ours}, above idle", slow, 12, 4, " MiB"),
            ]
    return found


def memory_of(lab, peer):
    """The five figures of one proxy."""
    with lab.start(peer) as proxy:
        lab.load("get", proxy.port, "/1k", lab.file("1k"), 10)
        idle = proxy.program.pss_kib()
        each = []
        for connections in (1000, MANY_CONNECTIONS):
            with lab.kept("hold", proxy.port, "/1k", lab.file("1k"), connections):
                time.sleep(IDLE_SECS)
                each.append((proxy.program.pss_kib() - idle) / connections)
        after = lowest_within(proxy, idle * 1.2)
    with lab.start(peer) as proxy:
        lab.load("get", proxy.port, "/1k", lab.file("1k"), 10)
        fresh = proxy.program.pss_kib()
        with lab.kept("slow", proxy.port, "/64m", lab.file("64m"), 8):
            time.sleep(5)
            slow = proxy.program.pss_kib() - fresh
    return idle / KIB, *each, after / KIB, slow / KIB


def lowest_within(proxy, enough):
    """The memory when it is back at what is enough, or when its time is over."""
    until = time.monotonic() + GIVEN_BACK_WITHIN_SECS
    while (now := proxy.program.pss_kib()) > enough and time.monotonic() < until:
        time.sleep(1)
    return now


def cold_start(lab):
    """From spawn to the first proxied answer."""
    found = {peer: [] for peer in lab.peers}
    for _ in range(max(lab.rounds, 5)):
        for peer in lab.peers:
            with lab.start(peer) as proxy:
                counting.ask(proxy.port, 1)
                found[peer].append((time.monotonic() - proxy.program.begun_at) * 1000)
    figures = median_of(found)
    goals = [Goal("cold start to first byte", figures.get(OURS), 20, 12, " ms")]
    return Found(goals, {"cold start, ms": figures})


def token_changes(lab):
    """20 changes of the token at 2,000 requests a second, in turns with none."""
    rate, old, p99_without, p99_with = 2000, 0, [], []
    with token_server(lab) as server:
        with lab.start(OURS, Setup(account=server.account(lab.directory))) as proxy:
            words = ("change", proxy.port, "/token", rate, rate * max(lab.secs, 4), 32)
            for _ in range(MANY * lab.rounds):
                p99_without.append(lab.load(*words, 0, "/-/refresh/main")["p99_us"])
                said = lab.load(*words, CHANGES, "/-/refresh/main")
                if said["changed"] != CHANGES:
                    raise Failed(f"the token changed {said['changed']} times, not {CHANGES}")
                old += said["old_tokens"]
                p99_with.append(said["p99_us"])
    ratio_of_p99 = statistics.median(p99_with) / statistics.median(p99_without)
    # A request that failed has ended the row.
    return Found([
        Goal("20 token changes at 2,000/s: failed requests", 0, 0, 0),
        Goal("20 token changes at 2,000/s: requests with an old token", old, 0, 0),
        Goal("p99 with them, to p99 without", ratio_of_p99, 1.1, 1.1, "x"),
    ])


def growth(lab):
    """Processor time a request when there is more of everything."""
    found = Found()

    def measure(connections, header=()):
        return lambda proxy: cpu_us(proxy, lambda: lab.wrk(proxy.port, "1k", connections, header=header))

    found.goals.append(Goal("CPU a request, 64 connections with 9,400 idle ones to 64", crowded(lab), 1.3, 1.3, "x"))

    header = ("-H", "Authorization: Bearer " + "k" * 40 + "0")
    setups = {
        "plain": (OURS, Setup()),
        "1,000 routes": (OURS, Setup(more=routes(lab, 1000))),
        "16 accounts": (OURS, Setup(account=accounts(lab, 16), more='account = "main"')),
        "1 key": (OURS, Setup(more=keys(lab, 1))),
        "1,000 keys": (OURS, Setup(more=keys(lab, 1000))),
    }
    measured = lab.in_turns(setups, measure(CONNECTIONS, header))
    for more, base in (("1,000 routes", "plain"), ("16 accounts", "plain"), ("1,000 keys", "1 key")):
        found.goals.append(Goal(f"CPU a request, {more} to 1", ratio(measured, more, base), 1.05, 1.05, "x"))
    return found


def crowded(lab):
    """The same load with 9,400 idle connections beside it, to without them."""
    with lab.start(OURS) as proxy:

        def measure():
            return cpu_us(proxy, lambda: lab.wrk(proxy.port, "1k", CONNECTIONS))

        measure()
        alone = statistics.median(measure() for _ in range(lab.rounds))
        with lab.kept("hold", proxy.port, "/1k", lab.file("1k"), 9400):
            return statistics.median(measure() for _ in range(lab.rounds)) / alone


def routes(lab, count):
    """Tables of more routes beside the first, to the same origin."""
    table = '[[route]]\nprefix = "/r{0}"\nupstream = "http://localhost:{1}"\n'
    return "\n" + "".join(table.format(number, lab.origin.plain) for number in range(count - 1))


def keys(lab, count):
    """Tables of caller keys; the one that is sent is the first, which a search from the end finds last."""
    tables = ["\n"]
    for number in range(count):
        file = lab.directory / f"key-{number}"
        file.write_text("k" * 40 + f"{number}\n")
        file.chmod(0o600)
        tables.append(f'[[callers.key]]\nname = "k{number}"\nfile = "{file}"\n')
    return "".join(tables)


def accounts(lab, count):
    """Tables of accounts, `main` and others."""
    token = lab.directory / "token"
    token.write_text("bench-" + "0123456789abcdef" * 4 + "\n")
    token.chmod(0o600)
    names = ["main", *(f"a{number}" for number in range(count - 1))]
    table = '[account.{}]\ngrant = "personal_access_token"\ntoken_file = "{}"\n'
    return "".join(table.format(name, token) for name in names)


def waiting(lab):
    """1,000 callers who wait for one token."""
    with token_server(lab, delay_ms=2000) as server:
        with lab.start(OURS, Setup(account=server.account(lab.directory))) as proxy:
            said = lab.load("burst", proxy.port, "/1k", lab.file("1k"), 1000)
            granted = server.granted()
    return Found([
        Goal("1,000 waiting on one refresh: grants", granted, 1, 1),
        Goal("1,000 waiting 2 s on one refresh: until the last answer", said["secs"], 4, 3, " s"),
    ])


def delay(lab):
    """Our own program: 64 MiB down, when the way to the origin takes its time."""
    found = Found()
    for delay_ms in (0, 20, 100):
        title = f"64 MiB down, {delay_ms} ms each way, s"
        found.figures[title] = {OURS: delayed(lab, delay_ms)}
    return found


def delayed(lab, delay_ms):
    """Seconds of a download through a relay that holds every byte back."""
    port = free_port()
    with lab.relay(port, lab.origin.http1, delay_ms):
        with lab.start(OURS, Setup(port=port)) as proxy:
            lab.load("get", proxy.port, "/1k", lab.file("1k"), 1)
            return statistics.median(
                lab.load("get", proxy.port, "/64m", lab.file("64m"), 1)["secs"] for _ in range(min(lab.rounds, 3))
            )


def size(lab):
    """The static program, stripped: without a profile, and as releases bring it."""
    subprocess.run(
        ["deploy/release/static", "--without-profile", lab.directory],
        check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "CARGO_TARGET_DIR": str(lab.target)},
    )
    programs = {OURS: lab.directory / "cnblogs-proxy"}
    if PROFILED in PEERS:
        programs[PROFILED] = PEERS[PROFILED].binary
    return Found([
        Goal(f"binary, stripped, static, {ours}", os.stat(program).st_size / 1e6, 10, 6, " MB")
        for ours, program in programs.items()
    ])


ROWS = {
    "small": small,
    "500": at_500,
    "20": at_20,
    "100k": medium,
    "download": download,
    "upload": upload,
    "instructions": instructions,
    "system-calls": system_calls,
    "memory": memory,
    "cold-start": cold_start,
    "token-changes": token_changes,
    "waiting": waiting,
    "growth": growth,
    "delay": delay,
    "size": size,
}
