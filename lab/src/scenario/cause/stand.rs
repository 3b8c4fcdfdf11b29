//! How connections stand between two steps, and which steps can follow.

use super::step::Step;
use canary_record::names::ProbeEnd;

#[derive(Clone, Copy, Debug)]
pub(super) enum Stand<'a> {
    /// There are none yet.
    None,
    /// They go on.
    Open {
        /// The client has asked, and has not read the answer.
        asked: bool,
        /// The client has sent its FIN.
        fin: bool,
    },
    /// This has ended them.
    Gone(&'a Step),
}

impl<'a> Stand<'a> {
    const OPEN: Self = Self::Open { asked: false, fin: false };

    /// How they stand after a step, or why it cannot come here.
    pub(super) fn after(self, step: &'a Step) -> Result<Self, String> {
        let (asked, fin) = match (self, step) {
            (Self::None, Step::Connect) | (Self::Gone(_), Step::Reconnect) => {
                return Ok(Self::OPEN);
            }
            (_, Step::Connect) => return Err("connect once".to_owned()),
            (_, Step::Reconnect) => {
                return Err("'reconnect' only after close, vanish or restart-server".to_owned());
            }
            (Self::None, _) if step.needs_connections() => {
                return Err(format!("'{step}' before connect"));
            }
            (Self::Gone(by), _) if step.needs_connections() && !can_follow_an_end(step) => {
                return Err(format!(
                    "'{step}' after '{by}': the connections are gone: reconnect first"
                ));
            }
            (Self::None | Self::Gone(_), _) => return Ok(self),
            (Self::Open { asked, fin }, _) => (asked, fin),
        };
        match step {
            Step::Transfer(_) | Step::Ask(_) | Step::HalfClose if fin => Err(format!(
                "'{step}' after 'half-close': the client has sent its FIN, and sends nothing more"
            )),
            Step::Transfer(_) | Step::Ask(_) if asked => {
                Err(format!("answer what was asked before '{step}'"))
            }
            Step::Ask(_) => Ok(Self::Open { asked: true, fin }),
            Step::Answer if !asked => Err("'answer' without ask".to_owned()),
            Step::Answer => Ok(Self::Open { asked: false, fin }),
            Step::HalfClose => Ok(Self::Open { asked, fin: true }),
            Step::Close | Step::Vanish | Step::RestartServer => Ok(Self::Gone(step)),
            _ => Ok(self),
        }
    }
}

/// Whether it can be done to connections that have ended: entries outlive them, and one that failed
/// before did not survive.
fn can_follow_an_end(step: &Step) -> bool {
    match step {
        Step::LetExpire => true,
        Step::Expect(ends) => !ends.0.contains(&ProbeEnd::Survived),
        _ => false,
    }
}
