//! Text into markup: everything that comes from outside goes through [`Esc`].

use std::fmt::{self, Display, Write};

/// Writes `T` with everything escaped that HTML or XML gives a meaning to.
/// Characters that XML 1.0 (section 2.2) does not allow become U+FFFD.
pub struct Esc<T>(pub T);

struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                '\t' | '\n' | '\r' => self.0.write_char(c)?,
                '\0'..'\x20' | '\u{fffe}' | '\u{ffff}' => self.0.write_char('\u{fffd}')?,
                _ => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl<T: Display> Display for Esc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

/// A number with its thousands set apart, as people read it.
#[must_use]
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1 cell`, `2 cells`.
#[must_use]
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n), if n == 1 { one } else { many })
}

/// Writes into a `String`, which cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        let _ = ::std::fmt::Write::write_fmt($out, ::std::format_args!($($arg)*));
    }};
}
pub(super) use put;

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing that is escaped can end a tag, an attribute or an entity.
    #[test]
    fn markup_is_text() {
        let nasty = "<script>alert('&\"')</script>\u{0}\u{1b}[31m";
        let text = Esc(nasty).to_string();
        assert!(!text.contains(['<', '>', '"', '\'', '\0', '\u{1b}']), "{text}");
        assert_eq!(Esc("a & b\n").to_string(), "a &amp; b\n");
    }

    /// Thousands are set apart from the right.
    #[test]
    fn thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(count(1, "cell", "cells"), "1 cell");
    }
}
