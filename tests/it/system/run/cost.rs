//! Many requests, large bodies and many connections at a time go through `run` as through the daemon, in little memory.

use std::process::{Command, Output};

use super::Named;

/// Where `tests/run` puts Python with the packages.
const PYTHON: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../test-tools/venv/bin/python");
const LARGE: usize = 64 << 20;

#[test]
fn a_thousand_requests_take_one_connection() {
    let named = Named::start();
    let script = "
import sys, requests
session = requests.Session()
for number in range(1000):
    answer = session.get(f'{sys.argv[1]}/echo/{number}')
    assert answer.status_code == 200 and f'/echo/{number}' in answer.text, answer.text
managers = session.get_adapter('https://').proxy_manager.values()
print([pools[key].num_connections for pools in [m.pools for m in managers] for key in pools.keys()])";
    let before = named.world.standin.api_connection_count();

    assert_eq!(named.printed(&["--", PYTHON, "-c", script, &named.api]), "[1]\n");

    assert_eq!(named.world.standin.api_requests().len(), 1000);
    assert!(named.world.standin.api_connection_count() - before <= 2);
}

#[test]
fn answers_of_every_kind_come_as_through_the_daemon() {
    let named = Named::start();
    let direct = format!("http://{}", named.world.daemon.authority);
    for (target, arguments) in [
        ("/echo/%E5%8D%9A//x/../y?a=%2F&&b", &["-X", "PROPFIND"][..]),
        ("/echo", &["-d", "x=1"]),
        ("/echo", &["-I"]),
        ("/trailers", &["--raw", "-H", "TE: trailers"]),
        ("/events?n=1", &[]),
        ("/bytes/100000?chunked", &[]),
        ("/bytes/0", &[]),
        ("/status/204", &[]),
        ("/status/304", &[]),
        ("/status/418", &[]),
        ("/early?status=413", &["-d", "x"]),
    ] {
        let curl = [&["curl", "-sS", "-i", "--suppress-connect-headers", "--path-as-is"], arguments].concat();
        let through_run = named.output(&[&["--"], &curl[..], &[&named.url(target)]].concat());
        let of_daemon = Command::new("curl").args(&curl[1..]).arg(format!("{direct}{target}")).output();

        let of_daemon = told(&of_daemon.unwrap());
        assert_eq!(told(&through_run), of_daemon, "{target} {arguments:?}");
        assert!(of_daemon[0].starts_with("HTTP/1.1 "), "{of_daemon:?}");
    }
}

/// An answer, without what differs each time.
fn told(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| !line.starts_with("date:")).map(str::to_owned).collect()
}

#[test]
fn large_bodies_stream_both_ways_in_constant_memory() {
    let named = Named::start();
    let file = named.world.home.path().join("large");
    std::fs::write(&file, crate::standin::pattern(LARGE)).unwrap();
    let script = "
curl -sSf -T \"$0\" \"$1/echo?raw\" | cmp - \"$0\" && curl -sSf \"$1/bytes/$2\" | cmp - \"$0\" &&
curl -sSf -T - \"$1/echo?raw\" <\"$0\" | cmp - \"$0\" && grep VmHWM /proc/$PPID/status";
    let (file, large) = (file.display().to_string(), LARGE.to_string());

    let printed = named.printed(&["--", "sh", "-c", script, &file, &named.api, &large]);

    let peak_kib: usize = printed.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak_kib < LARGE / 1024, "{peak_kib} KiB");
}

#[test]
fn five_hundred_at_once_are_answered() {
    let limits = "[limits]\nconnect_timeout = \"60s\"\nresponse_timeout = \"120s\"\n";
    let named = Named::with("", "", limits);
    let script = "
import aiohttp, asyncio, sys
async def main():
    connector = aiohttp.TCPConnector(limit=500)
    async with aiohttp.ClientSession(trust_env=True, connector=connector) as session:
        async def ask(number):
            async with session.get(f'{sys.argv[1]}/slow?ms=2000&n={number}') as answer:
                return answer.status, await answer.text()
        answers = await asyncio.gather(*map(ask, range(500)))
    assert answers == [(200, 'slow\\n')] * 500, answers
    print('done')
asyncio.run(main())";

    assert_eq!(named.printed(&["--", PYTHON, "-c", script, &named.api]), "done\n");

    assert_eq!(named.world.standin.api_requests().len(), 500);
}

#[test]
fn a_connection_that_the_daemon_closed_meanwhile_is_made_again() {
    let named = Named::with("", "", "[limits]\nidle_timeout = \"1s\"\n");
    let script = "
import os, sys, time, requests
session = requests.Session()
for number in range(3):
    answer = session.post(f'{sys.argv[1]}/echo/{number}', data='x')
    assert answer.status_code == 200, answer.text
    time.sleep(1.5)
print('done')";

    assert_eq!(named.printed(&["--", PYTHON, "-c", script, &named.api]), "done\n");
}
