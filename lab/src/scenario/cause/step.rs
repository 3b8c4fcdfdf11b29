//! What is done to the connections of a case, step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::document::lab::Seen;
use canary_record::names::Forgery;
use canary_runtime::cli::{duration, spell};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use super::Ends;
use super::host::Host;

/// What is done, to every connection of the case at once.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The client makes its connections; boom-server forges on each, and has its time to judge.
    Connect,
    /// A body that needs full-sized segments, asked for by the client, and every octet checked.
    Transfer(Way),
    /// The client asks for a small answer, which the server gives after this long.
    Ask(Wait),
    /// The answer that was asked for is read.
    Answer,
    /// The client sends FIN, and still reads.
    HalfClose,
    /// The client closes, and the server after it; an answer that has come and was not read stays
    /// unread.
    Close,
    /// The client is gone, and says nothing.
    Vanish,
    /// The server's program ends, and with it its connections, so that TIME_WAIT is the server's;
    /// another begins in its place.
    RestartServer,
    /// The client connects again, from the same ports.
    Reconnect,
    /// Nobody sends.
    Idle(Wait),
    /// The client's node forgets every entry.
    DeleteEntries,
    /// The client's node gets entries of others' connections, until its table is full.
    FillTable,
    /// Waits until the client's node has no entry any more.
    LetExpire,
    /// The Service's endpoint is the pod beside the server pod from here on.
    MoveEndpoint,
    /// The server pod's address goes to another pod.
    ReplaceEndpoint,
    /// The server pod's node has no route to it any more.
    RemoveEndpoint,
    /// The link between the nodes takes smaller packets, and nobody says so.
    BlackHole,
    /// The client forges too, on as many connections of its own, and what should become of it.
    Forge(BTreeMap<Forgery, Seen>),
    /// A host gets settings or rules.
    Change(Host),
    /// How connections should have ended so far; one that goes on has survived.
    Expect(Ends),
}

/// The way of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To the server.
    Up,
    /// To the client.
    Down,
    /// One after the other.
    Both,
}

impl Step {
    /// Whether it needs connections.
    pub(super) const fn needs_connections(&self) -> bool {
        matches!(
            self,
            Self::Transfer(_)
                | Self::Ask(_)
                | Self::Answer
                | Self::HalfClose
                | Self::Close
                | Self::Vanish
                | Self::RestartServer
                | Self::Expect(_)
                | Self::LetExpire
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Transfer(Way::Up) => f.write_str("upload"),
            Self::Transfer(Way::Down) => f.write_str("download"),
            Self::Transfer(Way::Both) => f.write_str("upload and download"),
            Self::Ask(after) => write!(f, "ask, the server waits {after}"),
            Self::Answer => f.write_str("answer"),
            Self::HalfClose => f.write_str("half-close"),
            Self::Close => f.write_str("close"),
            Self::Vanish => f.write_str("vanish"),
            Self::RestartServer => f.write_str("restart-server"),
            Self::Reconnect => f.write_str("reconnect"),
            Self::Idle(time) => write!(f, "idle {time}"),
            Self::DeleteEntries => f.write_str("delete-entries"),
            Self::FillTable => f.write_str("fill-table"),
            Self::LetExpire => f.write_str("let-expire"),
            Self::MoveEndpoint => f.write_str("move-endpoint"),
            Self::ReplaceEndpoint => f.write_str("replace-endpoint"),
            Self::RemoveEndpoint => f.write_str("remove-endpoint"),
            Self::BlackHole => f.write_str("black-hole"),
            Self::Forge(_) => f.write_str("forge"),
            Self::Change(host) => write!(f, "change {}", host.name),
            Self::Expect(ends) => write!(f, "expect {ends}"),
        }
    }
}

/// A time, written `500ms`, `2s` or `1m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("pattern" = "^([0-9]+(ms|s|m))+$"))]
pub struct Wait(pub Duration);

/// The longest wait in one step.
const LONGEST: Duration = Duration::from_secs(600);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let time = duration(&text).map_err(de::Error::custom)?;
        if time > LONGEST {
            return Err(de::Error::custom(format!("'{text}' is too long: at most 10m")));
        }
        Ok(Self(time))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&spell(self.0))
    }
}
