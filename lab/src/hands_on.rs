//! For people who want to look for themselves: a shell in a host, and a
//! topology that stays up.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use canary_common::exit::Exit;

use crate::app::find_program;
use crate::cli::ShellArgs;
use crate::exec::{ExecError, Interrupt, Tools};
use crate::netns;
use crate::place::{Place, PlaceError};
use crate::scenario::{self, Scenario};
use crate::topology::Topology;

fn say(text: &str) {
    // stderr may be closed; the shell is what matters.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn chosen(args: &ShellArgs) -> Result<Scenario, String> {
    let one = scenario::choose(std::slice::from_ref(&args.scenario)).map_err(|e| e.to_string())?;
    one.into_iter().next().ok_or_else(|| "no scenario".to_owned())
}

/// Whether the scenario is known and has the host.
pub fn check(args: &ShellArgs) -> Result<(), String> {
    let hosts = Topology::new(chosen(args)?.path, "").hosts;
    if hosts.contains(&args.host.as_str()) {
        return Ok(());
    }
    Err(format!("--in: no host '{}' in {}: use {}", args.host, args.scenario, hosts.join(", ")))
}

/// Builds the topology and gives the terminal to a shell in the host. The lab
/// ends with the shell; its status is the shell's, as success or failure.
pub fn shell(args: &ShellArgs) -> Result<Exit, PlaceError> {
    let wrong = |why: String| PlaceError::Io {
        what: "open a shell".to_owned(),
        source: std::io::Error::other(why),
    };
    let scenario = chosen(args).map_err(wrong)?;
    let (front_end, family) = (
        args.front_end.unwrap_or(scenario.front_ends[0]),
        args.family.unwrap_or(scenario.families[0]),
    );
    let tools = Tools::find();
    let place = Place::build(Topology::new(scenario.path, ""), &tools)?;
    place.protect(front_end, family, &args.protection)?;
    let protections: Vec<_> = args.protection.iter().map(ToString::to_string).collect();
    let protections =
        if protections.is_empty() { "none".to_owned() } else { protections.join(", ") };
    say(&format!(
        "{}: {front_end} {family} rules, protections: {protections}\n\
         hosts: {} (ip netns exec HOST ...)\n\
         boom-server belongs in {}, load-client in {}: load-client probe --target tcp://{} ...",
        scenario.title,
        place.topology.hosts.join(", "),
        place.topology.server(),
        place.topology.client(),
        place.topology.target(family),
    ));
    let mut env = Vec::new();
    if let Some(dir) =
        find_program(&args.bin, "boom-server").ok().as_deref().and_then(|p| p.parent())
    {
        let path = std::env::var("PATH").unwrap_or_default();
        env.push(("PATH".to_owned(), format!("{}:{path}:/usr/sbin:/sbin", dir.display())));
    }
    env.push(("LAB_HOST".to_owned(), args.host.clone()));
    let program = std::env::var_os("SHELL").map_or_else(|| PathBuf::from("/bin/sh"), PathBuf::from);
    let status = place.foreground(&args.host, program, env)?;
    Ok(if status.success() { Exit::Ok } else { Exit::Failed })
}

/// Stays up until a signal, having said how to enter each host. `pid` is this
/// process's number outside.
pub fn keep(pid: &str, interrupt: &Interrupt) -> Result<(), ExecError> {
    say("The hosts stay up until Ctrl-C, with the rules of their last cell. To enter one as root:");
    for name in netns::names() {
        say(&format!("  nsenter --target {pid} --mount ip netns exec {name} sh"));
    }
    loop {
        match interrupt.sleep(Duration::from_secs(3600)) {
            Ok(()) => {}
            Err(ExecError::Interrupted(_)) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}
