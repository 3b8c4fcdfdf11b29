//! Reads the Prometheus text format (0.0.4), as far as these programs write it.

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The metric's name.
    pub name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    /// Its value.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// A label's value; empty where there is none, which the format takes for the same.
    #[must_use]
    pub fn label(&self, key: &str) -> &'a str {
        self.labels.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v)
    }

    /// One line; none for a comment, and for what is no sample.
    #[must_use]
    pub fn read(line: &'a str) -> Option<Self> {
        // No timestamp follows: a page of the moment has none.
        let (series, value) = line.rsplit_once(' ')?;
        let (name, mut rest) = match series.split_once('{') {
            None => (series, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        if name.is_empty() || !name.chars().all(legal) {
            return None;
        }
        let mut labels = Vec::new();
        while !rest.is_empty() {
            // Values come from closed sets without a quotation mark or a backslash in them.
            let (key, more) = rest.split_once("=\"")?;
            let (value, more) = more.split_once('"')?;
            labels.push((key, value));
            rest = more.strip_prefix(',').unwrap_or(more);
        }
        Some(Self { name, labels, value: value.parse().ok()? })
    }
}

/// Every sample of a page.
pub fn samples(page: &str) -> impl Iterator<Item = Sample<'_>> {
    page.lines().filter_map(Sample::read)
}

/// The value of the sample without labels that has this name.
#[must_use]
pub fn value(page: &str, name: &str) -> Option<f64> {
    samples(page).find(|s| s.name == name && s.labels.is_empty()).map(|s| s.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE load_failures_total counter\n\
        load_failures_total{phase=\"connect\",cause=\"early EOF\"} 3\n\n\
        load_conntrack_entries 12\nload_conntrack_limit 2.5e5\n";

    /// Names, labels with spaces in them and values are read; comments are none.
    #[test]
    fn reads_samples() {
        let all: Vec<_> = samples(PAGE).collect();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].name, all[0].label("cause")), ("load_failures_total", "early EOF"));
        assert_eq!((all[0].label("phase"), all[0].label("node")), ("connect", ""));
        assert_eq!(value(PAGE, "load_conntrack_limit"), Some(250_000.0));
    }

    /// A name that only begins alike is another, and what has labels is no single value.
    #[test]
    fn other_samples_are_not_taken() {
        assert_eq!(value(PAGE, "load_conntrack"), None);
        assert_eq!(value(PAGE, "load_failures_total"), None);
    }

    /// Lines that are no sample are passed over, wherever they are cut.
    #[test]
    fn other_lines_are_none() {
        for bad in ["", "x", "x y", "x{a=\"b\" 1", "x{a} 1", "{} 1", "# HELP x 1"] {
            assert_eq!(Sample::read(bad), None, "{bad:?}");
        }
        let line = "x{a=\"b\",c=\"d\"} 1";
        for cut in 0..line.len() {
            assert_eq!(Sample::read(&line[..cut]), None, "{cut}");
        }
    }
}
