//! Command lines: values with units, and one clear line for what is wrong.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::exit::Exit;

/// Parses the process's arguments. Help and version go to stdout with status 0;
/// anything wrong is one line on stderr with status 2.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    parse_from(std::env::args_os())
}

/// [`parse`] of given arguments.
pub fn parse_from<T: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<T, ExitCode> {
    T::try_parse_from(args).map_err(|e| {
        if e.use_stderr() {
            eprintln!("{}", one_line(&e.to_string()));
            Exit::Usage.into()
        } else {
            let _ = e.print();
            Exit::Ok.into()
        }
    })
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
