//! Scenario files: TOML in, a checked scenario with its expectation out. One loader for every
//! kind; what a scenario leads to is not known here.

pub mod cause;
pub mod claims;
pub mod matrix;
pub mod saturation;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, Deserializer};

use cause::{Cause, Need};
use matrix::Matrix;
use saturation::Saturation;

macro_rules! texts {
    ($($name:literal)+) => { &[$(include_str!(concat!("../scenarios/", $name, ".toml"))),+] };
}

/// The scenarios in the binary, in the order that `run` takes them.
const SHIPPED: &[&str] = texts! {
    "cluster-ip" "same-node" "same-node-bridge" "same-node-bridge-no-nf" "node-port-cluster"
    "node-port-cluster-remote" "node-port-local" "upload-cluster-ip" "upload-node-port-local"
    "upload-node-port-cluster-remote" "hairpin" "host-network" "host-network-remote" "snat"
    "pod-ip" "one-node-protected" "overshoot" "entry-deleted" "entry-expired" "own-rules"
    "endpoint-replaced" "mtu-black-hole" "close-unread" "masqueraded" "upload-node-port"
    "mesh-redirect" "node-rejects" "asymmetric-route" "untracked-data" "half-closed-expires"
    "endpoint-gone" "multi-homed" "snat-ports" "synproxy" "port-reuse" "ignore-invalid-rst"
    "table-full" "software-flowtable" "ipvs" "ipvs-upload" "ipvs-node-port"
    "ipvs-upload-node-port" "ipvs-idle" "ipvs-port-reuse" "ipvs-closed" "saturation" "post"
};
/// What errors call these.
const BUILT_IN: &str = "(shipped)";
/// The name of the scenario that is added to a run without a positive control.
pub const POSITIVE_CONTROL: &str = "positive-control";

/// What every scenario says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// One line on what it is.
    pub title: String,
    /// Why the expectation should hold.
    pub why: String,
    /// Where that is known from.
    pub source: String,
}

/// One scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// What it says of itself.
    pub about: About,
    /// What it does.
    pub body: Body,
    /// The file that it was read from.
    pub file: String,
}

/// What a scenario does; `kind` in its file, which a matrix may leave out.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Paths under protections.
    Matrix(Matrix),
    /// Another cause of resets.
    Cause(Cause),
    /// A table that fills.
    Saturation(Saturation),
}

impl Scenario {
    /// Whether a run that names no scenario has it: saturation takes minutes and the whole
    /// machine, and few kernels have the modules that some need.
    #[must_use]
    pub fn by_default(&self) -> bool {
        match &self.body {
            Body::Matrix(matrix) => !matrix.extra(),
            Body::Cause(cause) => cause.needed().all(|need| need == Need::IgnoreInvalidRst),
            Body::Saturation(_) => false,
        }
    }

    /// Its cells, where it has any.
    #[must_use]
    pub const fn matrix(&self) -> Option<&Matrix> {
        match &self.body {
            Body::Matrix(m) => Some(m),
            Body::Cause(_) | Body::Saturation(_) => None,
        }
    }

    /// What runs first: cells side by side, then causes, then what needs the whole machine.
    const fn turn(&self) -> u8 {
        match self.body {
            Body::Matrix(_) => 0,
            Body::Cause(_) => 1,
            Body::Saturation(_) => 2,
        }
    }
}

/// What can be wrong with a value that was read.
trait Checked: DeserializeOwned {
    /// What makes no sense, and how to mend it.
    fn check(&self) -> Result<(), String>;

    /// Which of its cases [`Self::check`] speaks of, if it speaks of one.
    fn senseless_case(&self) -> Option<usize> {
        None
    }

    /// Finds the lines of what can turn out wrong in a run only.
    fn find_lines(&mut self, _file: &str) {}
}

impl Checked for About {
    fn check(&self) -> Result<(), String> {
        if !legal(&self.name) {
            return Err("name: use lower-case letters, digits and hyphens".to_owned());
        }
        Ok(())
    }
}

/// Whether a scenario can be called that: names are parts of files' names.
fn legal(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.chars().all(legal)
}

/// Reads one scenario. `file` names it in errors.
pub fn parse(file: &str, text: &str) -> Result<Scenario, String> {
    let loader = Loader { file, text };
    let table = DeTable::parse(text).map_err(|e| loader.toml(&e))?;
    if table.get_ref().is_empty() {
        let what = "it is empty: `conntrack-lab new NAME` writes one to begin with";
        return Err(loader.wrong(None, what));
    }
    let span = table.span();
    let (mut about, mut body) = (DeTable::new(), table.into_inner());
    let kind = body.remove("kind");
    for field in ABOUT {
        if let Some((key, value)) = body.remove_entry(field) {
            about.insert(key, value);
        }
    }
    let read = |body| toml::Spanned::new(span.clone(), body);
    let at = kind.as_ref().map(|k| k.span().start);
    if let (None, Some((field, _))) =
        (&kind, ["case", "host"].iter().find_map(|f| body.get_key_value(*f)))
    {
        let what = format!(
            "{field}: only of a situation: write kind = \"cause\" at the top",
            field = field.get_ref()
        );
        return Err(loader.wrong(Some(field.span().start), what));
    }
    let body = match kind.as_ref().map_or(Some("matrix"), |k| k.get_ref().as_str()) {
        Some("matrix") => loader.read(read(body)).map(Body::Matrix),
        Some("cause") => loader.read(read(body)).map(Body::Cause),
        Some("saturation") => loader.read(read(body)).map(Body::Saturation),
        _ => Err(loader.wrong(at, "kind: use matrix, cause or saturation")),
    }?;
    Ok(Scenario { about: loader.read(read(about))?, body, file: file.to_owned() })
}

/// The fields of [`About`].
const ABOUT: [&str; 4] = ["name", "title", "why", "source"];

/// A field, and whatever is below it.
struct Place {
    /// The names of the fields that lead to it; of a list each element has the list's own.
    path: Vec<String>,
    /// Its text, where it is one.
    text: Option<String>,
    /// The octet of the file where it stands.
    at: usize,
}

/// Every field of a table, at every depth, in order.
fn places(table: &DeTable<'_>) -> Vec<Place> {
    fn below(path: &[String], at: usize, value: &DeValue<'_>, all: &mut Vec<Place>) {
        let text = value.as_str().map(str::to_owned);
        all.push(Place { path: path.to_vec(), text, at });
        for element in value.as_array().into_iter().flatten() {
            below(path, element.span().start, element.get_ref(), all);
        }
        for (key, value) in value.as_table().into_iter().flatten() {
            let path = [path, &[key.get_ref().to_string()]].concat();
            below(&path, key.span().start, value.get_ref(), all);
        }
    }
    let mut all = Vec::new();
    for (key, value) in table {
        below(&[key.get_ref().to_string()], key.span().start, value.get_ref(), &mut all);
    }
    all
}

/// The same of each case.
fn case_places(table: &DeTable<'_>) -> Vec<Vec<Place>> {
    let cases = table.get("case").and_then(|cases| cases.get_ref().as_array());
    let tables = cases.into_iter().flatten().filter_map(|case| case.get_ref().as_table());
    tables.map(places).collect()
}

/// Where the field is that a message begins with: `FIELD: FIELD: 'value' ...`, or `'field'`. The deepest
/// that it names; of several the one with the value.
fn place(what: &str, fields: &[Place]) -> Option<usize> {
    let said: Vec<_> = what.split(": ").collect();
    let quoted = |n: usize, word: &str| {
        said.get(n).is_some_and(|said| said.starts_with(&format!("'{word}'")))
    };
    let named = |n: usize, field: &String| said.get(n) == Some(&&**field) || quoted(n, field);
    let fits = fields.iter().filter(|f| f.path.iter().enumerate().all(|(n, f)| named(n, f)));
    let how_well = |f: &&Place| {
        let depth = f.path.len();
        (depth, f.text.as_ref().is_some_and(|text| quoted(depth, text)))
    };
    // Of equals the last is taken.
    fits.rev().max_by_key(how_well).map(|f| f.at)
}

/// What is wrong in a case, without the case's title.
fn in_case<'a>(what: &'a str, fields: &[Place]) -> &'a str {
    let title = fields.iter().find(|f| f.path == ["title"]).and_then(|f| f.text.as_ref());
    title.and_then(|title| what.strip_prefix(&format!("case '{title}': "))).unwrap_or(what)
}

struct Loader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Loader<'_> {
    fn read<T: Checked>(&self, table: toml::Spanned<DeTable<'_>>) -> Result<T, String> {
        let (fields, cases) = (places(table.get_ref()), case_places(table.get_ref()));
        let mut value = T::deserialize(Deserializer::from(table)).map_err(|e| self.toml(&e))?;
        value.find_lines(self.text);
        value.check().map_err(|what| {
            let case = value.senseless_case().and_then(|n| cases.get(n));
            let at = case.map_or_else(
                || place(&what, &fields),
                |case| place(in_case(&what, case), case).or_else(|| place("title: ", case)),
            );
            self.wrong(at, what)
        })?;
        Ok(value)
    }

    /// `at` is the octet of the text where it is wrong; of what makes no sense, its field or its case's title.
    fn wrong(&self, at: Option<usize>, what: impl Display) -> String {
        let before = at.map(|at| self.text.get(..at).unwrap_or_default());
        let line = before.map(|before| format!(", line {}", before.matches('\n').count() + 1));
        format!("scenario {}{}: {what}", self.file, line.unwrap_or_default())
    }

    fn toml(&self, e: &toml::de::Error) -> String {
        let at = e.span().map_or(0, |span| span.start);
        let what = match e.message().trim().replace('\n', " ") {
            two if two.starts_with("wanted exactly 1 element") => {
                "one step a table: write `{ ... }, { ... }`".to_owned()
            }
            one if one == "invalid type: map, expected a sequence" => {
                "there can be several of these: write `[[...]]`, with two brackets".to_owned()
            }
            one if one.starts_with("invalid type: ") && one.ends_with("expected a sequence") => {
                one.replace("expected a sequence", "write a list, `[...]`")
            }
            value if value == "wanted string or table" => "write a name, in quotes".to_owned(),
            what => unquoted(&what)
                .or_else(|| whole_number(&what))
                .unwrap_or_else(|| with_nearest(&what)),
        };
        self.wrong(Some(at), what)
    }
}

/// serde's "invalid type: integer `3`, expected a string", with what to write.
fn unquoted(message: &str) -> Option<String> {
    let value = message.strip_prefix("invalid type: ")?.strip_suffix(", expected a string")?;
    let (kind, value) = value.split_once(' ')?;
    let value = value.trim_matches('`');
    Some(match kind {
        "integer" => format!("write \"{value}s\" where it is a time, else \"{value}\": in quotes"),
        _ => format!("write \"{value}\", in quotes"),
    })
}

/// serde's "expected u16", with the numbers that there are.
fn whole_number(message: &str) -> Option<String> {
    let (found, kind) = message.split_once(", expected u")?;
    let most = u64::MAX >> (64 - kind.parse::<u32>().ok().filter(|n| (1..=64).contains(n))?);
    let found = found.split_once(": ").map_or(found, |(_, found)| found).replace('`', "");
    Some(format!("{found}: write a whole number from 0 to {most}, without quotes"))
}

/// serde's "unknown field `x`, expected one of `y`, `z`", with the nearest said first.
fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (Some(wrong), true) = (quoted.next(), message.starts_with("unknown ")) else {
        return message.to_owned();
    };
    let field = message.starts_with("unknown field");
    let known = quoted.chain(ABOUT.into_iter().filter(|_| field));
    match nearest(wrong, known) {
        Some(near) => {
            let what = message.split(',').next().unwrap_or(message);
            format!("{what}: did you mean `{near}`?")
        }
        None => message.to_owned(),
    }
}

/// What somebody meant who wrote `wrong`, if anything is near.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|k| (strsim::damerau_levenshtein(wrong, k), k));
    near.min().filter(|(far, k)| *far * 3 <= k.len().max(wrong.len())).map(|(_, k)| k)
}

/// The scenarios in the binary.
pub fn shipped() -> Result<Vec<Scenario>, String> {
    SHIPPED.iter().map(|text| parse(BUILT_IN, text)).collect()
}

/// The scenario that is added to a run without a positive control.
pub fn positive_control() -> Result<Scenario, String> {
    parse(BUILT_IN, include_str!("../scenarios/positive-control.toml"))
}

/// The text of a scenario to begin with, every field of it explained.
pub fn begun(name: &str) -> Result<String, String> {
    if !legal(name) {
        return Err(format!(
            "no name for a scenario: '{name}': use lower-case letters, digits and hyphens; its file is then NAME.toml"
        ));
    }
    let text = include_str!("../scenarios/new.toml").replace("NAME", name);
    parse(&format!("{name}.toml"), &text)?;
    Ok(text)
}

/// One scenario: a shipped one by name, another by file.
pub fn named(name: &str) -> Result<Scenario, String> {
    if Path::new(name).extension().is_some_and(|e| e == "toml") {
        let text = std::fs::read_to_string(name)
            .map_err(|e| format!("cannot read scenario {name}: {e}"))?;
        return parse(name, &text);
    }
    let shipped = shipped()?;
    let found = shipped.iter().find(|s| s.about.name == name).cloned();
    found.ok_or_else(|| {
        let near = nearest(name, shipped.iter().map(|s| s.about.name.as_str()));
        let near = near.map(|n| format!("did you mean {n}? Or ")).unwrap_or_default();
        format!(
            "no scenario '{name}': {near}name one that `conntrack-lab list` shows, or a file that ends in .toml"
        )
    })
}

/// What names every shipped scenario at once.
pub const ALL: &str = "all";

/// The scenarios asked for, in the order in which they run; those of a default run when none
/// is named.
pub fn choose(names: &[String]) -> Result<Vec<Scenario>, String> {
    let mut chosen = Vec::new();
    for name in names {
        match name.as_str() {
            ALL => chosen.extend(shipped()?),
            _ => chosen.push(named(name)?),
        }
    }
    if names.is_empty() {
        chosen.extend(shipped()?.into_iter().filter(Scenario::by_default));
    }
    chosen.sort_by_key(Scenario::turn);
    Ok(chosen)
}
