//! What happens when descriptors run out.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::forwarding::caller::Caller;
use crate::forwarding::one_worker;
use crate::standin::{Gate, Scripted};
use crate::support::{Daemon, eventually};

/// What is left to a daemon that runs out of descriptors.
const LEFT: u64 = 20;

const CROWD: usize = 60;

#[test]
fn without_descriptors_it_waits_quietly_and_serves_again_as_soon_as_there_are_some() {
    let world = one_worker().logged_in();
    let gate = Gate::default();
    let held = gate.clone();
    world.standin.on_api(move |_| Some(Scripted::Hold(held.clone())));
    leave_descriptors(&world.daemon, LEFT);
    let crowd: Vec<_> = (0..CROWD)
        .map(|_| {
            let mut caller = Caller::connect(&world.daemon);
            caller.send_head("GET /held", "");
            caller
        })
        .collect();
    eventually("descriptors are gone", || world.daemon.output().contains("can't be accepted").then_some(()));

    let (started, ticks) = (Instant::now(), cpu_ticks(&world.daemon));
    std::thread::sleep(Duration::from_secs(3));
    let used = (cpu_ticks(&world.daemon) - ticks) * 10;
    let share = u128::from(used) * 100 / started.elapsed().as_millis();
    assert!(share < 20, "{share} % of a core while it waits");
    let complaints = world.daemon.output().matches("can't be accepted").count();
    assert!(complaints <= 2, "{complaints} times");

    drop(crowd);
    gate.open();
    let started = Instant::now();
    assert_eq!(Caller::connect(&world.daemon).get("/echo").status, 200);
    assert!(started.elapsed() < Duration::from_secs(2), "served again after {:?}", started.elapsed());
}

#[test]
fn idle_connections_give_way_when_descriptors_run_out() {
    let world = one_worker().logged_in();
    leave_descriptors(&world.daemon, LEFT);

    let mut idle = Vec::new();
    for _ in 0..CROWD {
        let mut caller = Caller::connect(&world.daemon);
        assert_eq!(caller.get("/echo").status, 200);
        idle.push(caller);
    }
}

/// Leaves the daemon so many descriptors beside those that it has open.
fn leave_descriptors(daemon: &Daemon, count: u64) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() as u64;
    let limit = Some(open + count);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
}

/// What the daemon has used of processors, in ticks of 10 ms.
fn cpu_ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
