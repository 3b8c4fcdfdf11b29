//! Connections that are there while the table fills: octets go back and forth
//! on them by a clock of their own, so that each is known to live, to hang or
//! to be reset.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use canary_record::names::{Phase, ProbeEnd};

use super::super::connections::end;
use crate::observed::counted;

/// Between two octets of a connection.
const TICK: Duration = Duration::from_millis(250);
/// Silence after which a connection hangs: ten octets are missing, and the
/// retransmissions of the first.
pub(crate) const SILENCE: Duration = Duration::from_millis(2500);

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Talk {
    /// Both, on an established connection.
    Both,
    /// The server alone: the client has sent its FIN.
    HalfClosed,
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    talk: Talk,
    heard: Instant,
    end: Option<ProbeEnd>,
}

/// Both ends of accepted connections, in the order of their making.
pub(crate) fn accept(
    listener: &TcpListener,
    clients: Vec<TcpStream>,
) -> io::Result<Vec<(TcpStream, TcpStream)>> {
    let mut pairs = Vec::new();
    for client in clients {
        // The address that the server sees is the client pod's own: nothing masquerades here.
        let (server, peer) = listener.accept()?;
        if peer != client.local_addr()? {
            return Err(io::Error::other(format!("{peer} came in the place of another")));
        }
        pairs.push((client, server));
    }
    Ok(pairs)
}

/// Connections with a thread that speaks on them.
pub(crate) struct Streams {
    pairs: Arc<Mutex<Vec<Pair>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Streams {
    pub(crate) fn start(
        pairs: Vec<(TcpStream, TcpStream)>,
        half_closed: usize,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let from = pairs.len().saturating_sub(half_closed);
        let pairs = pairs
            .into_iter()
            .enumerate()
            .map(|(n, (client, server))| {
                let talk = if n < from { Talk::Both } else { Talk::HalfClosed };
                if talk == Talk::HalfClosed {
                    client.shutdown(Shutdown::Write)?;
                }
                client.set_nonblocking(true)?;
                server.set_nonblocking(true)?;
                Ok(Pair { client, server, talk, heard: now, end: None })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let pairs = Arc::new(Mutex::new(pairs));
        let stop = Arc::new(AtomicBool::new(false));
        let (mine, until) = (Arc::clone(&pairs), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("streams".into()).spawn(move || {
            while !until.load(Ordering::Acquire) {
                for pair in mine.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
                    pair.tick();
                }
                std::thread::sleep(TICK);
            }
        })?;
        Ok(Self { pairs, stop, thread: Some(thread) })
    }

    pub(crate) fn ends(&self, talk: Talk) -> BTreeMap<ProbeEnd, u64> {
        let now = Instant::now();
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        counted(pairs.iter().filter(|pair| pair.talk == talk).map(|pair| pair.now(now)))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Pair {
    fn tick(&mut self) {
        if self.end.is_some() {
            return;
        }
        let result =
            write(&mut self.server).and_then(|()| read(&mut self.client)).and_then(|heard| {
                if heard {
                    self.heard = Instant::now();
                }
                match self.talk {
                    Talk::Both => {
                        write(&mut self.client)?;
                        read(&mut self.server).map(|_| ())
                    }
                    // The client's FIN is at the end of what the server reads; a reset is
                    // told by the socket's error alone.
                    Talk::HalfClosed => self.server.take_error()?.map_or(Ok(()), Err),
                }
            });
        if let Err(e) = result {
            self.end = Some(end(Phase::Receive, &e));
        }
    }

    fn now(&self, now: Instant) -> ProbeEnd {
        self.end.unwrap_or(if now.duration_since(self.heard) > SILENCE {
            ProbeEnd::Hung
        } else {
            ProbeEnd::Survived
        })
    }
}

fn write(stream: &mut TcpStream) -> io::Result<()> {
    match stream.write(b".") {
        Ok(_) => Ok(()),
        // What hangs fills its buffer some day.
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether anything came.
fn read(stream: &mut TcpStream) -> io::Result<bool> {
    let mut bytes = [0; 512];
    let mut any = false;
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => any = true,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(any),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(n: usize) -> Vec<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let clients = (0..n).map(|_| TcpStream::connect(target).unwrap()).collect();
        accept(&listener, clients).unwrap()
    }

    fn until(streams: &Streams, talk: Talk, end: ProbeEnd, n: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while streams.ends(talk).get(&end).copied().unwrap_or(0) != n {
            assert!(Instant::now() < deadline, "{:?}", streams.ends(talk));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Both kinds survive on a path that works, also past the time of silence.
    #[test]
    fn what_works_survives() {
        let streams = Streams::start(pairs(4), 2).unwrap();
        std::thread::sleep(SILENCE + TICK * 2);
        assert_eq!(streams.ends(Talk::Both), [(ProbeEnd::Survived, 2)].into());
        assert_eq!(streams.ends(Talk::HalfClosed), [(ProbeEnd::Survived, 2)].into());
    }

    /// A reset of a half-closed connection is seen at the server's end.
    #[test]
    fn a_reset_is_seen() {
        let pairs = pairs(2);
        let other = pairs[1].0.try_clone().unwrap();
        let streams = Streams::start(pairs, 1).unwrap();
        // Linger 0, and the last handle of this side goes with the pair.
        socket2::SockRef::from(&other).set_linger(Some(Duration::ZERO)).unwrap();
        drop(other);
        let pair = streams.pairs.lock().unwrap().pop().unwrap();
        let (client, server) = (pair.client, pair.server);
        drop(client);
        let pair = Pair {
            client: server.try_clone().unwrap(),
            server,
            talk: Talk::HalfClosed,
            heard: Instant::now(),
            end: None,
        };
        streams.pairs.lock().unwrap().push(pair);
        until(&streams, Talk::HalfClosed, ProbeEnd::Reset, 1);
        assert_eq!(streams.ends(Talk::Both), [(ProbeEnd::Survived, 1)].into());
    }
}
