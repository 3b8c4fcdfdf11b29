//! The small protocol that `load-client probe` speaks; what is none of it is echoed.

use std::io;

use canary_record::probe::{Body, BodyHash, Line, MAX_LINE, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::accept::Counters;

const CHUNK: usize = 16 * 1024;

/// One connection, to the client's FIN. An error is that of reading or writing it.
pub(crate) async fn serve(mut stream: TcpStream, counters: &Counters) -> io::Result<()> {
    let mut told = false;
    let mut buf = Vec::new();
    loop {
        let Some(end) = buf.iter().position(|&b| b == b'\n') else {
            // What is too long for a request is echoed without waiting for its end.
            if buf.len() >= MAX_LINE {
                stream.write_all(&buf).await?;
                buf.clear();
            }
            if buf.capacity() == 0 {
                buf.reserve_exact(MAX_LINE);
            }
            if stream.read_buf(&mut buf).await? == 0 {
                stream.write_all(&buf).await?;
                return stream.shutdown().await;
            }
            continue;
        };
        let rest = buf.split_off(end + 1);
        let line = std::str::from_utf8(&buf).ok().and_then(Line::read);
        if let Some(called) = line.and_then(|l| l.called)
            && !std::mem::replace(&mut told, true)
        {
            counters.called(called, stream.local_addr()?);
        }
        match line.map(|l| l.request) {
            Some(Request::Answer { delay, length, seed }) => {
                tokio::time::sleep(delay).await;
                answer(&mut stream, length, seed).await?;
                buf = rest;
            }
            Some(Request::Take { length, .. }) => buf = take(&mut stream, rest, length).await?,
            None => {
                stream.write_all(&buf).await?;
                buf = rest;
            }
        }
    }
}

async fn answer(stream: &mut TcpStream, mut length: u64, seed: u64) -> io::Result<()> {
    let mut body = Body::new(seed);
    let mut chunk = vec![0; CHUNK.min(length as usize)];
    while length > 0 {
        let n = chunk.len().min(usize::try_from(length).unwrap_or(CHUNK));
        body.fill(&mut chunk[..n]);
        stream.write_all(&chunk[..n]).await?;
        length -= n as u64;
    }
    Ok(())
}

/// Reads a body of which `first` has arrived; returns what came behind it.
async fn take(stream: &mut TcpStream, mut first: Vec<u8>, length: u64) -> io::Result<Vec<u8>> {
    let own = first.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    let rest = first.split_off(own);
    let mut hash = BodyHash::default();
    hash.update(&first);
    let mut left = length - own as u64;
    let mut chunk = vec![0; CHUNK.min(left as usize)];
    while left > 0 {
        let most = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let n = stream.read(&mut chunk[..most]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&chunk[..n]);
        left -= n as u64;
    }
    stream.write_all(format!("ok {}\n", hash.hex()).as_bytes()).await?;
    Ok(rest)
}
