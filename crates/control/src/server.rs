//! The admin socket's server, on a reactor.

use crate::api::{self, ApiError, Code, Lines, Request, Response};
use peristyle_rt::{Buf, IoVec, Listener, NetError, Stream, StreamReader, StreamWriter};
use std::cell::Cell;
use std::rc::Rc;

/// Connections at the same time; more are closed at once.
const CONNECTIONS_MAX: usize = 16;
/// A response is sent in pieces of this size.
const PIECE_BYTES: usize = 16 << 10;

/// What the node does with a request.
#[allow(async_fn_in_trait)] // generic use on one reactor: futures need not be Send
pub trait AdminHandler {
    async fn handle(&self, request: Request) -> Result<Response, ApiError>;
}

/// Serves until the listener fails. Each connection is a task; its requests are answered one after the other.
pub async fn serve_admin<H: AdminHandler + 'static>(listener: Listener, handler: Rc<H>) -> NetError {
    let connections = Rc::new(Cell::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(NetError::Closed) => continue, // it went away before we took it
            Err(e) => return e,
        };
        if connections.get() == CONNECTIONS_MAX {
            continue; // dropping it closes it
        }
        connections.set(connections.get() + 1);
        let (handler, guard) = (handler.clone(), Guard(connections.clone()));
        peristyle_rt::spawn(async move {
            let _guard = guard;
            // However a connection ends, nobody else needs to know.
            let _ = serve_connection(stream, &*handler).await;
        });
    }
}

struct Guard(Rc<Cell<usize>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn serve_connection(stream: Stream, handler: &impl AdminHandler) -> Result<(), NetError> {
    let (mut reader, mut writer) = stream.split();
    let mut lines = Lines::default();
    loop {
        let response = match next_line(&mut reader, &mut lines).await? {
            Line::End => return Ok(()),
            Line::TooLong => Err(ApiError::new(Code::BadRequest, "the line is too long")),
            Line::Text(line) => match api::decode_request(&line) {
                Ok(request) => handler.handle(request).await,
                Err(e) => Err(e),
            },
        };
        let bad = matches!(&response, Err(e) if e.code == Code::BadRequest);
        send(&mut writer, &api::encode_response(&response)).await?;
        if bad {
            writer.shutdown(); // who breaks the protocol once is not listened to again
            return Ok(());
        }
    }
}

enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

async fn next_line(reader: &mut StreamReader, lines: &mut Lines) -> Result<Line, NetError> {
    loop {
        match lines.next_line() {
            Ok(Some(line)) => return Ok(Line::Text(line)),
            Ok(None) => {}
            Err(_) => return Ok(Line::TooLong),
        }
        let bytes = reader.recv().await?;
        if bytes.is_empty() {
            return Ok(Line::End);
        }
        lines.push(&bytes);
    }
}

async fn send(writer: &mut StreamWriter, bytes: &[u8]) -> Result<(), NetError> {
    for piece in bytes.chunks(PIECE_BYTES) {
        let mut buf = Buf::alloc(piece.len()).await;
        buf[..piece.len()].copy_from_slice(piece);
        buf.truncate(piece.len());
        let mut iov = IoVec::new();
        iov.push(buf.freeze());
        writer.send(iov).await?;
    }
    Ok(())
}
