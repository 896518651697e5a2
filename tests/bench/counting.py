"""What repeats to the digit: instructions and system calls of one request, as the slope between two runs."""

import re
import socket
from collections import Counter
from pathlib import Path

from processes import Failed

FEW, MANY = 400, 1400


def instructions_a_request(start, directory):
    """User-space instructions by callgrind. `start(prefix)` starts the proxy below these words."""

    def count(requests):
        found = re.search(r"^(?:summary|totals): (\d+)", callgrind(start, directory, requests), re.MULTILINE)
        if not found:
            raise Failed("callgrind wrote no total")
        return int(found[1])

    return (count(MANY) - count(FEW)) / (MANY - FEW)


def functions_that_run(start, directory):
    """The symbols of all functions that run in a program which starts, answers and ends: first those of a request, the
    others by what they cost in all."""
    few, many = (costs_of_functions(callgrind(start, directory, requests)) for requests in (FEW, MANY))

    def importance(symbol):
        return (many[symbol] - few[symbol]) // (MANY - FEW), many[symbol]

    # What has no symbol is an address.
    return [symbol for symbol in sorted(many, key=importance, reverse=True) if re.match(r"[A-Za-z_]", symbol)]


def costs_of_functions(written):
    """Instructions by symbol, without those of callees. https://valgrind.org/docs/manual/cl-format.html"""
    symbols, costs = {}, Counter()
    function, is_of_callee = None, False
    for line in written.splitlines():
        if named := re.fullmatch(r"(c?)fn=(\(\d+\))(?: (.+))?", line):
            is_callee, number, symbol = named.groups()
            # With the depth of a recursion behind it.
            if symbol:
                symbols[number] = symbol.partition("'")[0]
            function = function if is_callee else number
        elif line.startswith("calls="):
            is_of_callee = True
        elif cost := re.match(r"[-+*\d]\S* (\d+)", line):
            costs[symbols[function]] += 0 if is_of_callee else int(cost[1])
            is_of_callee = False
    return costs


def callgrind(start, directory, requests):
    """What callgrind writes about a proxy that answers so many requests."""
    written = Path(directory) / f"callgrind.{requests}"
    with start(["valgrind", "--tool=callgrind", "--demangle=no", f"--callgrind-out-file={written}"]) as proxy:
        ask(proxy.port, requests)
    return written.read_text()


def system_calls_a_request(start, directory, connections=1):
    """System calls by strace, of all threads."""

    def count(requests):
        written = Path(directory) / f"strace.{connections}.{requests}"
        with start(["strace", "--follow-forks", "--summary-only", "--output", written]) as proxy:
            ask(proxy.port, requests, connections)
            proxy.program.stop_child()
        found = re.search(r"^100\.00 +[\d.]+ +(?:\d+ +)?(\d+) .*total$", written.read_text(), re.MULTILINE)
        if not found:
            raise Failed(f"strace wrote no total into {written}")
        return int(found[1])

    return (count(MANY) - count(FEW)) / (MANY - FEW)


def ask(port, requests, connections=1):
    """Sends so many requests, each connection one after the other, and looks at every answer."""
    request = f"GET /1k HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
    callers = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(connections)]
    for caller in callers:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    done = 0
    while done < requests:
        for caller in callers:
            caller.sendall(request)
        for caller in callers:
            must_be_whole(caller)
            done += 1
    for caller in callers:
        caller.close()


def must_be_whole(caller):
    """Reads one answer and fails unless it is a 200 with 1 KiB."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += read_some(caller, received)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Failed(f"not the answer that was expected: {received[:600]!r}")
    while len(body) < 1024:
        body += read_some(caller, head)
    if len(body) != 1024:
        raise Failed(f"more than the answer came: {body[1024:1324]!r}")


def read_some(caller, before):
    """Reads what there is; the end is a failure."""
    some = caller.recv(65536)
    if not some:
        raise Failed(f"the answer broke off after {before[:300]!r}")
    return some
