//! The blocking client of a node's admin socket.

use crate::failure::{Failure, Kind};
use peristyle_control::api::{self, Lines, Request, Response};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A node answers at once; a store's commit on a busy disk may take seconds.
const TIMEOUT: Duration = Duration::from_secs(30);
const SYSTEM_SOCKET: &str = "/run/peristyle/admin.sock";
const DEV_SOCKET: &str = "./peristyle-dev/admin.sock";

pub struct Client {
    stream: UnixStream,
    lines: Lines,
}

/// The socket that was asked for, or the one that is there.
pub fn socket_path(asked: Option<PathBuf>) -> PathBuf {
    asked.unwrap_or_else(|| {
        let dev = Path::new(DEV_SOCKET);
        if dev.exists() { dev.into() } else { SYSTEM_SOCKET.into() }
    })
}

impl Client {
    pub fn connect(asked: Option<PathBuf>) -> Result<Client, Failure> {
        Client::connect_within(asked, TIMEOUT)
    }

    /// A call that takes longer than `limit` is given up.
    pub fn connect_within(asked: Option<PathBuf>, limit: Duration) -> Result<Client, Failure> {
        let path = socket_path(asked);
        let stream = UnixStream::connect(&path).map_err(|e| {
            let hint = match e.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    "no node is running there; start one (`peristyle dev`), or name its socket with --admin"
                }
                ErrorKind::PermissionDenied => {
                    "this user may not talk to the node; use the node's user, or sudo"
                }
                _ => "name the node's socket with --admin",
            };
            Failure::new(Kind::NoNode, format!("{}: {e}: {hint}", path.display()))
        })?;
        let timeouts = stream.set_read_timeout(Some(limit)).and(stream.set_write_timeout(Some(limit)));
        timeouts.map_err(Failure::failed)?;
        Ok(Client { stream, lines: Lines::default() })
    }

    pub fn call(&mut self, request: &Request) -> Result<Response, Failure> {
        let lost = |e: &dyn std::fmt::Display| {
            Failure::new(
                Kind::Unknown,
                format!("the node did not answer ({e}): whether it happened is not known"),
            )
        };
        self.stream.write_all(&api::encode_request(request)).map_err(|e| lost(&e))?;
        let mut buffer = [0; 64 << 10];
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => return Ok(api::decode_response(&line)?),
                Ok(None) => {}
                Err(_) => return Err(lost(&"its answer is too long")),
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(lost(&"it closed the connection")),
                Ok(n) => self.lines.push(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(&e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_control::api::{ApiError, Code};
    use std::os::unix::net::UnixListener;

    /// A node that answers each connection's first request with the given pieces of bytes.
    fn node(name: &str, pieces: Vec<Vec<u8>>) -> PathBuf {
        let path = std::env::temp_dir().join(format!("peristyle-{name}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = Lines::default();
            let mut buffer = [0; 7];
            while lines.next_line().unwrap().is_none() {
                let n = stream.read(&mut buffer).unwrap();
                lines.push(&buffer[..n]);
            }
            pieces.iter().for_each(|piece| stream.write_all(piece).unwrap());
        });
        path
    }

    fn call(path: PathBuf) -> Result<Response, Failure> {
        let result = Client::connect(Some(path.clone())).unwrap().call(&Request::Status);
        let _ = std::fs::remove_file(path);
        result
    }

    #[test]
    fn an_answer_in_pieces_is_one_answer() {
        let answer = api::encode_response(&Ok(Response::Done));
        let pieces = answer.iter().map(|&b| vec![b]).collect();
        assert_eq!(call(node("pieces", pieces)), Ok(Response::Done));
    }

    #[test]
    fn the_nodes_error_is_ours_with_an_exit_code() {
        let answer = api::encode_response(&Err(ApiError::new(Code::NotFound, "there is no volume `x`")));
        let failure = call(node("error", vec![answer])).unwrap_err();
        assert_eq!((failure.exit_code(), failure.to_string().as_str()), (4, "there is no volume `x`"));
    }

    #[test]
    fn a_node_that_goes_away_leaves_it_unknown() {
        assert_eq!(call(node("gone", vec![b"{\"version\"".to_vec()])).unwrap_err().exit_code(), 6);
    }

    #[test]
    fn no_node_is_said_with_what_to_do() {
        let Err(failure) = Client::connect(Some("/nonexistent/admin.sock".into())) else {
            panic!("connected")
        };
        assert_eq!(failure.exit_code(), 3);
        assert!(failure.to_string().contains("peristyle dev"));
    }
}
