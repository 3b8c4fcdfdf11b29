//! What the operating system refused.

use std::borrow::Cow;
use std::io;

/// An operation on the system failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct OsError {
    what: String,
    source: io::Error,
}

impl OsError {
    /// What kind of refusal it was.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// The most of another program's words, or of a file's line, that an error quotes.
const QUOTED: usize = 160;

/// What is quoted, without its middle where it is long.
#[must_use]
pub fn cut(text: &str) -> Cow<'_, str> {
    let all: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
    if all.len() <= QUOTED {
        return text.into();
    }
    let (head, tail) = (all[QUOTED / 2], all[all.len() - QUOTED / 2]);
    format!("{} ... {}", &text[..head], &text[tail..]).into()
}

/// For `map_err`: names the operation and its object.
pub fn os<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> OsError {
    let what = what.into();
    move |source| OsError { what, source: source.into() }
}

/// The same with a reason that is no errno.
pub fn wrong<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> OsError {
    let what = what.into();
    move |why| OsError { what, source: io::Error::other(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is long has its ends, each letter whole; what is short is as it is.
    #[test]
    fn the_middle_of_what_is_long_is_cut() {
        let short = "\u{e9}".repeat(QUOTED);
        assert_eq!(cut(&short), short);
        let long = format!("begin {} end", "\u{e9}".repeat(57_000));
        let said = cut(&long);
        assert_eq!(said.chars().count(), QUOTED + " ... ".len());
        assert!(said.starts_with("begin ") && said.ends_with(" end"), "{said}");
    }
}
