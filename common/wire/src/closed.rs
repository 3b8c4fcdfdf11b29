//! Closed sets of names, each with one spelling.

/// A closed set of names: the enum, its spelling, its list. Who calls it depends
/// on serde and schemars.
#[macro_export]
macro_rules! names {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $text:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        pub enum $name { $( $(#[$vmeta])* #[serde(rename = $text)] $variant, )+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The one spelling of this name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::closed::UnknownName;
            fn from_str(s: &str) -> Result<Self, $crate::closed::UnknownName> {
                Self::ALL.iter().copied().find(|v| v.as_str() == s).ok_or_else(|| $crate::closed::UnknownName {
                    name: s.to_owned(),
                    known: Self::ALL.iter().map(|v| v.as_str()).collect(),
                })
            }
        }
    };
}

/// A name outside its closed set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name '{name}': use one of {}", known.join(", "))]
pub struct UnknownName {
    /// As it was written.
    pub name: String,
    /// The right ones.
    pub known: Vec<&'static str>,
}
