//! SIGTERM and SIGINT as one future.

use std::io;
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};

use canary_record::names::EndedBy;

/// Both signals, caught from the moment this is made.
#[derive(Debug)]
pub struct Shutdown {
    term: Signal,
    int: Signal,
}

impl Shutdown {
    /// Begins to catch SIGTERM and SIGINT. Must be called inside a tokio runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the next of the two.
    pub async fn signalled(&mut self) -> EndedBy {
        tokio::select! {
            _ = self.term.recv() => EndedBy::Sigterm,
            _ = self.int.recv() => EndedBy::Sigint,
        }
    }

    /// Resolves at the next of the two, or at `end`, where there is one.
    pub async fn ended(&mut self, end: Option<Instant>) -> EndedBy {
        let timer = async {
            match end {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            signal = self.signalled() => signal,
            () = timer => EndedBy::Duration,
        }
    }
}
