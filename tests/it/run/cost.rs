//! Many requests, large bodies and many connections at a time go through `run` as through the daemon, in little memory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

use super::Named;
use super::programs::built_with_go;
use crate::support::eventually;

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
fn a_body_is_asked_for_when_the_daemon_asks_for_it() {
    let key = "[[callers.key]]\nname = \"reader\"\nfile = \"KEY\"\nmethods = [\"GET\"]\n";
    let directory = tempfile::tempdir().unwrap();
    let (secret, file) = (directory.path().join("key"), directory.path().join("large"));
    std::fs::write(&secret, "a-key\n").unwrap();
    std::fs::write(&file, crate::standin::pattern(1 << 20)).unwrap();
    let (secret, file) = (secret.display().to_string(), file.display().to_string());
    let curl = |named: &Named, arguments: &[&str]| {
        // Without the 100, curl would wait for ten minutes.
        let upload = ["curl", "-svH", "Expect: 100-continue", "--expect100-timeout", "600", "-T", &file];
        let told = ["-o", "/dev/null", "--write-out", "%{http_code} %{size_upload}", &named.url("/echo?raw")];
        let output = named.output(&[arguments, &["--"], &upload, &told].concat());
        let is_asked = String::from_utf8_lossy(&output.stderr).contains("< HTTP/1.1 100 Continue");
        (String::from_utf8_lossy(&output.stdout).into_owned(), is_asked)
    };

    assert_eq!(curl(&Named::start(), &[]), ("200 1048576".to_owned(), true));

    let named = Named::with("", "", &key.replace("KEY", &secret));
    assert_eq!(curl(&named, &["--key", &secret]), ("403 0".to_owned(), false));
    let at_once = ["curl", "-sH", "Expect:", "-o", "/dev/null", "--write-out", "%{http_code}", "-T", &file];
    let url = named.url("/echo");
    let at_once = [&["--key", &secret, "--"], &at_once[..], &[&url]].concat();
    for refused in (0..8).map(|_| named.output(&at_once)) {
        assert_eq!(String::from_utf8_lossy(&refused.stdout), "403", "{refused:?}");
    }
}

#[test]
fn who_has_no_more_to_send_is_answered_and_who_is_gone_is_not_waited_for() {
    let named = Named::with("", "", "[limits]\nresponse_timeout = \"600s\"\n");
    let program = built_with_go("end.go");

    assert_eq!(named.printed(&["--", &program.1, "half", &named.url("/slow?ms=500")]), "slow\n");

    let mut command = named.run(&["--", &program.1, "whole", &named.url("/slow?ms=600000")]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "asked");
    // The status page's own request is one of them.
    let in_flight = || named.world.daemon.status()["requests"]["in_flight"].as_u64().unwrap() - 1;
    eventually("it is on its way", || (in_flight() == 1).then_some(()));
    process.stdin.as_mut().unwrap().write_all(b"close\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "closed");
    eventually("it is given up", || (in_flight() == 0).then_some(()));
    assert!(process.try_wait().unwrap().is_none(), "while the program lives");
    drop(process.stdin.take());
    process.wait().unwrap();
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

/// By processor time, which others on the machine do not change: what a request costs in the daemon alone is less.
#[test]
fn a_request_costs_at_most_two_and_a_half_times_what_the_daemon_spends_on_it() {
    let named = Named::start();
    let script = "
import os, sys, requests
ticks = lambda pid: sum(map(int, open(f'/proc/{pid}/stat').read().rsplit(') ', 1)[1].split()[11:13]))
session = requests.Session()
for number in range(1200):
    if number == 200:
        before = [ticks(pid) for pid in (os.getppid(), sys.argv[2])]
    assert session.get(f'{sys.argv[1]}/bytes/1000').status_code == 200
print(*[ticks(pid) - old for pid, old in zip((os.getppid(), sys.argv[2]), before)])";

    let daemon = named.world.daemon.pid().to_string();
    let printed = named.printed(&["--", PYTHON, "-c", script, &named.api, &daemon]);

    let spent: Vec<u32> = printed.split_whitespace().map(|ticks| ticks.parse().unwrap()).collect();
    assert!(spent[0] * 2 <= spent[1] * 5, "ticks of `run`, and of the daemon: {spent:?}");
}

/// By processor time, of the program and all that `run` does before it.
#[test]
fn a_program_begins_at_once() {
    let named = Named::start();
    let run = named.run(&["--", "true"]);
    let mut command = Command::new("bash");
    command.args(["-c", "TIMEFORMAT='%3U %3S'; time \"$0\" \"$@\""]);
    command.arg(run.get_program()).args(run.get_args()).env_clear();
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));

    let spent = (0..5).map(|_| {
        let output = command.output().unwrap();
        let times = String::from_utf8(output.stderr).unwrap();
        let times = times.split_whitespace().map(|time| time.replace('.', "").parse::<u64>().unwrap());
        times.sum::<u64>()
    });

    // The promise is for a release build.
    let promised_ms = if cfg!(debug_assertions) { 300 } else { 30 };
    let spent_ms = spent.min().unwrap();
    assert!(spent_ms < promised_ms, "{spent_ms} ms");
}
