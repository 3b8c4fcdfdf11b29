//! Command lines: values with units, one clear line for what is wrong, and what every
//! option came to.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use canary_record::result::{Config, Origin, Setting};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Parser};

use crate::exit::Exit;

/// The process's own arguments, and every option of the subcommand that was chosen.
pub fn effective<T: Parser>() -> Result<(T, Config), ExitCode> {
    effective_from(std::env::args_os())
}

/// [`effective`] of given arguments, the program's name first. Help and version go to stdout with
/// status 0; anything wrong is one line on stderr with status 2.
pub fn effective_from<T: Parser>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<(T, Config), ExitCode> {
    let args: Vec<_> = args.into_iter().collect();
    let parsed = T::command()
        .try_get_matches_from(&args)
        .and_then(|matches| Ok((T::from_arg_matches(&matches)?, config(&T::command(), &matches))));
    parsed.map_err(|e| {
        let e = e.format(&mut T::command());
        if e.use_stderr() {
            let set = from_environment(&T::command(), &args, |name| std::env::var_os(name));
            eprintln!("{}{}", one_line(&e.to_string()), set);
            Exit::Usage.into()
        } else {
            let _ = e.print();
            Exit::Ok.into()
        }
    })
}

/// What of the environment takes part in a command line, said where that is wrong: clap names
/// the option, which may stand nowhere on it.
fn from_environment(
    command: &Command,
    args: &[OsString],
    get: impl Fn(&OsStr) -> Option<OsString>,
) -> String {
    let chosen = args.iter().skip(1).find_map(|a| command.find_subcommand(a)).unwrap_or(command);
    let given = |arg: &Arg| {
        let flag = format!("--{}", arg.get_long().unwrap_or_default());
        let is = |a: &OsString| a.to_str().and_then(|a| a.split('=').next()) == Some(&flag);
        args.iter().any(is)
    };
    let set = chosen.get_arguments().filter(|arg| !given(arg)).filter_map(|arg| {
        let name = arg.get_env()?;
        Some(format!("{}={}", name.to_string_lossy(), get(name)?.to_string_lossy()))
    });
    match set.collect::<Vec<_>>() {
        set if set.is_empty() => String::new(),
        set => format!("; set in the environment, unset what does not belong: {}", set.join(" ")),
    }
}

/// Every option that a user can see, as clap found it.
fn config(command: &Command, matches: &ArgMatches) -> Config {
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        return config(command, matches);
    }
    command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !is_help(arg))
        .map(|arg| (name(arg), setting(arg, matches)))
        .collect()
}

/// clap's own --help and --version.
fn is_help(arg: &Arg) -> bool {
    use clap::ArgAction::{Help, HelpLong, HelpShort, Version};
    matches!(arg.get_action(), Help | HelpLong | HelpShort | Version)
}

/// An option's name without its dashes, or a positional argument's.
fn name(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().as_str().replace('_', "-"), str::to_owned)
}

fn setting(arg: &Arg, matches: &ArgMatches) -> Setting {
    let id = arg.get_id().as_str();
    let origin = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => Origin::CommandLine,
        Some(ValueSource::EnvVariable) => Origin::Environment {
            variable: arg.get_env().unwrap_or_default().to_string_lossy().into_owned(),
        },
        _ => Origin::Default,
    };
    let value = match matches.try_get_many::<Duration>(id) {
        // One spelling, whoever wrote it how.
        Ok(durations) => durations.map(|all| all.copied().map(spell).collect::<Vec<_>>()),
        Err(_) => {
            matches.get_raw(id).map(|all| all.map(|v| v.to_string_lossy().into_owned()).collect())
        }
    };
    Setting { value: value.map(|v| v.join(",")), origin }
}

/// Sets what the program worked out for an option that nobody set, or a fact that belongs to
/// the options.
pub fn derive(config: &mut Config, name: &str, value: &dyn Display) {
    if config.get(name).is_none_or(|set| set.value.is_none()) {
        let value = Some(value.to_string());
        config.insert(name.to_owned(), Setting { value, origin: Origin::Derived });
    }
}

/// clap's message without its usage and hints, on one line.
fn one_line(message: &str) -> String {
    let kept = message
        .lines()
        .map(str::trim)
        .take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more information"))
        .filter(|l| !l.is_empty());
    kept.collect::<Vec<_>>().join(" ")
}

/// A duration with its unit: `500ms`, `30s`, `2m`.
pub fn duration(s: &str) -> Result<Duration, String> {
    humantime::parse_duration(s)
        .map_err(|_| format!("'{s}' is not a duration: write 500ms, 30s or 2m"))
}

/// A duration as [`duration`] takes it, in one unit, the largest that keeps it whole.
#[must_use]
pub fn spell(d: Duration) -> String {
    const UNITS: [(&str, u128); 6] = [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1000),
        ("ns", 1),
    ];
    let ns = d.as_nanos();
    if ns == 0 {
        return "0s".to_owned();
    }
    let (unit, length) = UNITS.iter().find(|(_, n)| ns.is_multiple_of(*n)).unwrap_or(&("ns", 1));
    format!("{}{unit}", ns / length)
}

/// An address with its port.
pub fn address(s: &str) -> Result<SocketAddr, String> {
    s.parse().map_err(|_| {
        format!("'{s}' is not an address with a port: write [::]:9000 or 127.0.0.1:9000")
    })
}

/// A duration above zero.
pub fn positive_duration(s: &str) -> Result<Duration, String> {
    match duration(s)? {
        Duration::ZERO => Err("must be longer than 0".to_owned()),
        d => Ok(d),
    }
}

/// A size in octets: a number, or one with KiB, MiB or GiB.
pub fn size(s: &str) -> Result<usize, String> {
    let wrong = || format!("'{s}' is not a size: write 4096, 512KiB or 16MiB");
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let n: usize = s[..digits].parse().map_err(|_| wrong())?;
    let unit: usize = match &s[digits..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    n.checked_mul(unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: Sub,
        #[arg(long, hide = true, global = true)]
        inside: Option<i32>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        Run {
            #[arg(env = "CLI_TEST_FILES", value_delimiter = ',')]
            some_files: Vec<String>,
            #[arg(long, value_parser = duration, default_value = "1m30s")]
            wait: Duration,
            #[arg(long, value_parser = duration)]
            limit: Option<Duration>,
            #[arg(long, value_delimiter = ',', default_value = "a,b")]
            list: Vec<String>,
            #[arg(long)]
            keep: bool,
            // PATH is in every environment.
            #[arg(long, env = "PATH")]
            path: String,
        },
        Other,
    }

    /// Every option of the chosen subcommand is there, set or not, with where it came from; what
    /// a user cannot see is not.
    #[test]
    fn every_option_is_told() {
        let args = ["p", "--inside=3", "run", "--list=c,d", "--limit", "120000ms", "x"];
        let (parsed, config) = effective_from::<Program>(args.map(OsString::from)).unwrap();
        assert_eq!(parsed.inside, Some(3));
        let told = |name: &str| (config[name].value.as_deref(), config[name].origin.clone());
        assert_eq!(config.len(), 6, "{config:?}");
        assert_eq!(told("some-files"), (Some("x"), Origin::CommandLine));
        assert_eq!(told("wait"), (Some("90s"), Origin::Default));
        assert_eq!(told("limit"), (Some("2m"), Origin::CommandLine));
        assert_eq!(told("list"), (Some("c,d"), Origin::CommandLine));
        assert_eq!(told("keep"), (Some("false"), Origin::Default));
        let path = Origin::Environment { variable: "PATH".to_owned() };
        assert_eq!(told("path"), (std::env::var("PATH").ok().as_deref(), path));

        let args = ["p", "run"].map(OsString::from);
        let (_, config) = effective_from::<Program>(args).unwrap();
        let told = |name: &str| (config[name].value.as_deref(), config[name].origin.clone());
        assert_eq!(told("limit"), (None, Origin::Default));
        assert_eq!(told("list"), (Some("a,b"), Origin::Default));
        let mut config = config;
        derive(&mut config, "limit", &"5m");
        derive(&mut config, "wait", &"5m");
        derive(&mut config, "address", &"[::1]:80");
        let told = |name: &str| (config[name].value.as_deref(), config[name].origin.clone());
        assert_eq!(told("limit"), (Some("5m"), Origin::Derived));
        assert_eq!(told("wait"), (Some("90s"), Origin::Default));
        assert_eq!(told("address"), (Some("[::1]:80"), Origin::Derived));
        let args = ["p", "other"].map(OsString::from);
        assert!(effective_from::<Program>(args).unwrap().1.is_empty());
    }

    proptest::proptest! {
        /// What is spelled is read back as the same.
        #[test]
        fn a_spelling_is_read_back(seconds in 0u64..1 << 34, nanos in 0u32..1_000_000_000) {
            for d in [Duration::new(seconds, nanos), Duration::new(seconds, 0)] {
                proptest::prop_assert_eq!(duration(&spell(d)), Ok(d));
            }
        }
    }

    /// One spelling, in the units that the command line's own examples have.
    #[test]
    fn durations_have_one_spelling() {
        let spelled = |s: &str| spell(duration(s).unwrap());
        for (written, one) in [
            ("500ms", "500ms"),
            ("30s", "30s"),
            ("120s", "2m"),
            ("1m30s", "90s"),
            ("1500ms", "1500ms"),
            ("0ms", "0s"),
            ("24h", "24h"),
        ] {
            assert_eq!(spelled(written), one);
        }
    }

    /// Durations need a unit, and the message says how to write one.
    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5"), Err("'5' is not a duration: write 500ms, 30s or 2m".to_owned()));
        assert!(positive_duration("0s").is_err());
    }

    /// Sizes have binary units, and one too large is refused.
    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("42"), Ok(42));
        for bad in ["", "MiB", "1MB", "-1", "99999999999999999999", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    /// What clap spreads over paragraphs becomes one line.
    #[test]
    fn usage_errors_are_one_line() {
        let text = "error: invalid value 'x' for '--rate <N>': invalid digit\n\n  tip: a\n\nUsage: load\n\nFor more information, try '--help'.\n";
        assert_eq!(
            one_line(text),
            "error: invalid value 'x' for '--rate <N>': invalid digit tip: a"
        );
    }
}
