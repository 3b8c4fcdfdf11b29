//! For people who want to look for themselves: a shell in a host, and a
//! topology that stays up.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use canary_testbed::exec::{self, Interrupt};
use canary_testbed::netns;
use canary_testbed::os::wrong;
use canary_testbed::testbed::{Testbed, TestbedError};
use canary_testbed::topology::Topology;

use crate::cli::ShellArgs;
use crate::document::lab::Protections;
use crate::scenario::matrix::Matrix;
use crate::scenario::{self, About, Body};
use crate::wrong::say;

fn chosen(args: &ShellArgs) -> Result<(About, Matrix), String> {
    let one = scenario::named(&args.scenario)?;
    match one.body {
        Body::Matrix(matrix) => Ok((one.about, matrix)),
        Body::Cause(_) | Body::Saturation(_) => Err(format!(
            "{} builds its hosts case by case: run it with --keep, which says how to enter each, or name a \
             scenario of paths, as cluster-ip",
            one.about.name
        )),
    }
}

/// Whether the scenario is known and has the host.
pub(crate) fn check(args: &ShellArgs) -> Result<(), String> {
    let hosts = Topology::new(chosen(args)?.1.path, "").hosts;
    if hosts.contains(&args.host.as_str()) {
        return Ok(());
    }
    Err(format!("--in: no host '{}' in {}: use {}", args.host, args.scenario, hosts.join(", ")))
}

/// Builds the topology and gives the terminal to a shell in the host. The lab
/// ends with the shell, and as the shell does.
pub(crate) fn shell(args: &ShellArgs) -> Result<ExitStatus, TestbedError> {
    let (about, matrix) = chosen(args).map_err(wrong("open a shell"))?;
    let proxy_mode = args.proxy_mode.unwrap_or(matrix.proxy_modes[0]);
    let family = args.family.unwrap_or(matrix.families[0]);
    let testbed = Testbed::build(Topology::new(matrix.path, ""))?;
    testbed.protect(proxy_mode, family, &args.protection)?;
    let protections: Protections = args.protection.iter().copied().collect();
    say(format!(
        "{}: {proxy_mode} {family} rules, protections: {protections}\n\
         hosts: {} (ip netns exec HOST ...)\n\
         boom-server belongs in {}, load-client in {}: load-client probe --target tcp://{} ...",
        about.title,
        testbed.topology.hosts.join(", "),
        testbed.topology.server,
        testbed.topology.client,
        testbed.topology.target(family),
    ));
    let mut env = vec![("LAB_HOST".to_owned(), args.host.clone())];
    let found = args.bin.find("boom-server").ok();
    if let Some(dir) = found.as_deref().and_then(|p| p.parent()) {
        let path = std::env::var("PATH").unwrap_or_default();
        env.push(("PATH".to_owned(), format!("{}:{path}:/usr/sbin:/sbin", dir.display())));
    }
    let program = std::env::var_os("SHELL").map_or_else(|| PathBuf::from("/bin/sh"), PathBuf::from);
    Ok(testbed.host(&args.host)?.run(|| exec::foreground(&program, &env))??)
}

/// Stays up until a signal, having said how to enter each host. `pid` is this
/// process's number outside, `prefixes` what a host's prefix stands for.
pub(crate) fn keep(pid: &str, user: bool, prefixes: &[(String, String)], interrupt: &Interrupt) {
    say(entrance(pid, user, prefixes, &netns::names()));
    while interrupt.sleep(Duration::from_secs(3600)).is_ok() {}
}

/// How to enter the hosts, and what runs in which.
fn entrance(pid: &str, user: bool, prefixes: &[(String, String)], hosts: &[String]) -> String {
    let first = hosts.first().map_or("HOST", String::as_str);
    // Whoever owns a user namespace may enter what belongs to it; its capabilities go at exec.
    let own = format!(
        "or as yourself, without capabilities:\n  nsenter --target {pid} --user --preserve-credentials --mount \
         --net=/proc/{pid}/root/run/netns/{first} sh\n"
    );
    let mut text = format!(
        "The hosts stay up until Ctrl-C, each with the rules of its last cell. To enter one as root:\n  \
         nsenter --target {pid} --mount ip netns exec {first} sh\n{}where the hosts are",
        if user { own.as_str() } else { "" }
    );
    let of = |prefix: &str| hosts.iter().filter(|h| h.starts_with(prefix)).cloned().collect();
    let mut groups: Vec<(&str, Vec<String>)> =
        prefixes.iter().map(|(prefix, cell)| (cell.as_str(), of(prefix))).collect();
    let listed = |host: &String| prefixes.iter().any(|(prefix, _)| host.starts_with(prefix));
    groups.push(("others", hosts.iter().filter(|h| !listed(h)).cloned().collect()));
    groups.retain(|(_, hosts)| !hosts.is_empty());
    for (cell, hosts) in groups {
        text.extend(["\n  ", cell, ":\n    ", &hosts.join(" ")]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every host is named once, beside what runs in it, and the command is whole.
    #[test]
    fn every_host_is_named() {
        let prefixes = [("l0-".to_owned(), "a/x".to_owned()), ("l1-".to_owned(), "b/y".to_owned())];
        let hosts = ["l0-client", "l0-node1", "l1-client", "s1-0-client"].map(str::to_owned);
        let text = entrance("7", false, &prefixes, &hosts);
        assert!(text.contains("nsenter --target 7 --mount ip netns exec l0-client sh"), "{text}");
        assert!(text.contains("a/x:\n    l0-client l0-node1\n  b/y:\n    l1-client\n"), "{text}");
        assert!(text.ends_with("others:\n    s1-0-client"), "{text}");
        let own = "--user --preserve-credentials --mount --net=/proc/7/root/run/netns/l0-client sh";
        assert!(entrance("7", true, &prefixes, &hosts).contains(own));
    }
}
