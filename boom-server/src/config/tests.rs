use super::*;
use canary_record::names::Forgery;
use canary_record::result::{self, Origin, Setting};
use clap::CommandFactory;

fn parse(args: &[&str]) -> Result<Config, String> {
    let args = std::iter::once("boom-server").chain(args.iter().copied());
    Config::try_parse_from(args).map_err(|e| e.to_string())
}

/// The help is what a user was shown last; read the difference before taking it.
#[test]
fn help_is_as_committed() {
    let help = Config::command().term_width(100).render_long_help().to_string();
    canary_testbed::golden::check(env!("CARGO_MANIFEST_DIR"), "help.txt", &help);
}

/// The defaults are those of the documentation.
#[test]
fn defaults() {
    let c = parse(&[]).unwrap();
    assert_eq!(c.listen, [SocketAddr::from(([0u16; 8], 9000))]);
    assert_eq!(c.admin, Admin(Some(SocketAddr::from(([0u16; 8], 9100)))));
    assert_eq!(c.forge.0, [Forgery::AboveWindow, Forgery::BelowWindow]);
    assert_eq!((c.on_reset, c.receive_buffer), (OnReset::Exit, 16 << 20));
}

/// Sets and names mix, and none is forged twice as often by being named twice.
#[test]
fn sets_of_forgeries() {
    let list = |s| parse(&["--forge", s]).map(|c| c.forge.0);
    assert_eq!(list("all").unwrap(), Forgery::ALL);
    assert_eq!(
        list("syn-fin,safe,control").unwrap(),
        [Forgery::SynFin, Forgery::Control, Forgery::AckAhead, Forgery::NoFlags]
    );
}

/// What is wrong is refused, with the option's name in the message.
#[test]
fn refuses_what_is_wrong() {
    for (option, value) in [
        ("--listen", "9000"),
        ("--listen", "localhost:9000"),
        ("--admin", "off"),
        ("--forge", "nothing"),
        ("--forge", ""),
        ("--on-reset", "stop"),
        ("--connections", "0"),
        ("--connections", "-1"),
        ("--duration", "5"),
        ("--duration", "0s"),
        ("--outcome-timeout", "0s"),
        ("--min-forged", "0"),
        ("--receive-buffer", "16MB"),
        ("--max-flows", "0"),
        ("--pod-cidr", "10.0.0.0/33"),
        ("--node-ip", "node-1"),
        ("--log", "xml"),
        ("--pod-ip", "pod"),
    ] {
        let e = parse(&[&format!("{option}={value}")]).unwrap_err();
        assert!(e.contains(option), "{option} {value}: {e}");
    }
}

/// An unset downward API field is empty, and both fields together name each address once.
#[test]
fn pod_addresses() {
    let c = parse(&["--pod-ip=", "--pod-ips="]).unwrap();
    assert_eq!(c.local_ips(), [] as [IpAddr; 0]);
    let c = parse(&["--pod-ip=10.0.0.5", "--pod-ips=10.0.0.5,fd00::5"]).unwrap();
    let both: [IpAddr; 2] = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    assert_eq!(c.local_ips(), both);
}

/// Networks contain what they should, at both ends of the prefix's range.
#[test]
fn networks() {
    let within =
        |cidr: &str, ip: &str| network(cidr).unwrap().contains(&ip.parse::<IpAddr>().unwrap());
    assert!(within("10.244.0.0/16", "10.244.255.1") && !within("10.244.0.0/16", "10.245.0.1"));
    assert!(within("0.0.0.0/0", "198.18.0.1") && !within("0.0.0.0/0", "fd00::1"));
    assert!(within("198.18.0.1", "198.18.0.1") && !within("198.18.0.1", "198.18.0.0"));
    assert!(within("fd00:1::/64", "fd00:1::5") && !within("fd00:1::/64", "fd00:1:0:1::5"));
    assert!(within("::/0", "fd00::1"));
}

/// The options in a result repeat the run.
#[test]
fn the_options_repeat_the_run() {
    let effective = |args: &[String]| {
        let args = std::iter::once("boom-server".into()).chain(args.iter().map(Into::into));
        cli::effective_from::<Config>(args).unwrap().1
    };
    let args = [
        "--forge=control",
        "--connections=5",
        "--admin=none",
        "--pod-cidr=10.0.0.0/8",
        "--events=all",
        "--hold=90000ms",
    ];
    let first = effective(&args.map(str::to_owned));
    assert_eq!(first["hold"].value.as_deref(), Some("90s"));
    assert_eq!(first["receive-buffer"].origin, Origin::Default);
    let set = |(name, s): (&String, &Setting)| Some(format!("--{name}={}", s.value.as_ref()?));
    let again = effective(&first.iter().filter_map(set).collect::<Vec<_>>());
    let values = |c: &result::Config| -> Vec<_> { c.values().map(|s| s.value.clone()).collect() };
    assert_eq!(values(&again), values(&first));
}
