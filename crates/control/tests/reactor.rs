//! What waits: the embedded store off the reactor, and the admin socket's server, on io_uring.

use crate::common::TempDir;
use peristyle_control::api::{self, ApiError, Code, Lines, Request, Response};
use peristyle_control::{
    AdminHandler, ClusterStore, EmbeddedStore, MetaError, MetaStore, Revision, Txn, Watch, serve_admin,
};
use peristyle_rt::{Addr, Duration, Listener, RuntimeConfig, block_on, spawn, yield_now};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

#[test]
fn the_embedded_store_works_off_the_reactor_and_many_calls_at_once_do_not_mix() {
    let folder = TempDir::new();
    let store = EmbeddedStore::open(&folder.file()).unwrap();
    block_on(RuntimeConfig::small(), async move {
        let results = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..8)
            .map(|i: u8| {
                let (store, results) = (store.clone(), results.clone());
                spawn(async move {
                    let txn = Txn::default().compare("one", Revision::ABSENT).put("one", [i]);
                    let result = store.commit(txn).await;
                    results.borrow_mut().push((i, result));
                })
            })
            .collect();
        while !tasks.iter().all(|task| task.is_finished()) {
            yield_now().await;
        }
        let results = results.take();
        let winners: Vec<_> = results.iter().filter(|(_, r)| r.is_ok()).collect();
        let conflict = Err(MetaError::Conflict { key: "one".into() });
        assert_eq!((winners.len(), results.iter().filter(|(_, r)| *r == conflict).count()), (1, 7));
        assert_eq!(store.get("one").await.unwrap().unwrap().value, [winners[0].0]);
    });
}

#[test]
fn a_watch_of_the_embedded_store_wakes_for_changes_and_for_the_end_of_a_lease() {
    let folder = TempDir::new();
    let store = EmbeddedStore::open(&folder.file()).unwrap();
    block_on(RuntimeConfig::small(), async move {
        let mut watch = store.watch("", Revision::ABSENT);
        let writer = store.clone();
        spawn(async move {
            loop {
                let lease = writer.grant(Duration::from_millis(50)).await.unwrap();
                match writer.commit(Txn::default().put_leased("goes", "1", lease)).await {
                    Err(MetaError::NoLease) => {} // the disk took longer than that
                    put => {
                        put.unwrap();
                        break;
                    }
                }
            }
            writer.commit(Txn::default().put("stays", "1")).await.unwrap();
        });
        let mut told = Vec::new();
        while told.len() < 3 {
            let change = watch.next().await.unwrap();
            told.push((change.key, change.value.is_some()));
        }
        // The two commits may be that slow that the lease ends between them.
        told.sort();
        let told: Vec<_> = told.iter().map(|(key, there)| (key.as_str(), *there)).collect();
        assert_eq!(told, [("goes", false), ("goes", true), ("stays", true)]);
    });
}

/// Answers `volume-show` with an error that carries the name, and all else with `done`.
struct Echo;

impl AdminHandler for Echo {
    async fn handle(&self, request: Request) -> Result<Response, ApiError> {
        match request {
            Request::VolumeShow { name } => Err(ApiError::new(Code::NotFound, name)),
            _ => Ok(Response::Done),
        }
    }
}

/// Runs the server, and `client` on a thread of its own with the socket's path.
fn with_server(client: impl FnOnce(&Path) + Send + 'static) {
    let folder = TempDir::new();
    let path: PathBuf = folder.0.join("admin.sock");
    block_on(RuntimeConfig::small(), async move {
        let listener = Listener::bind(&Addr::Unix(path.clone()), false).await.unwrap();
        spawn(async move {
            serve_admin(listener, Rc::new(Echo)).await;
        });
        peristyle_rt::blocking(move || client(&path)).await;
    });
}

fn answer(stream: &mut UnixStream, lines: &mut Lines) -> Option<Result<Response, ApiError>> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(line) = lines.next_line().unwrap() {
            return Some(api::decode_response(&line));
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(n) => lines.push(&buffer[..n]),
        }
    }
}

#[test]
fn requests_are_answered_in_order_also_when_they_come_together() {
    with_server(|path| {
        let (mut stream, mut lines) = (UnixStream::connect(path).unwrap(), Lines::default());
        let show = |i: usize| Request::VolumeShow { name: "x".repeat(i * 1000) };
        let all: Vec<u8> = (0..50).flat_map(|i| api::encode_request(&show(i))).collect();
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(&all));
        for i in 0..50 {
            let error = answer(&mut stream, &mut lines).unwrap().unwrap_err();
            assert_eq!((error.code, error.message.len()), (Code::NotFound, i * 1000));
        }
        sender.join().unwrap().unwrap();
    });
}

#[test]
fn who_breaks_the_protocol_is_told_and_cut_off_and_others_never_notice() {
    with_server(|path| {
        let (mut good, mut good_lines) = (UnixStream::connect(path).unwrap(), Lines::default());
        for bad in [b"what?\n".to_vec(), vec![b'x'; api::LINE_BYTES_MAX + 1]] {
            let (mut stream, mut lines) = (UnixStream::connect(path).unwrap(), Lines::default());
            stream.write_all(&bad).unwrap();
            assert_eq!(answer(&mut stream, &mut lines).unwrap().unwrap_err().code, Code::BadRequest);
            assert_eq!(answer(&mut stream, &mut lines), None, "the connection has ended");
            good.write_all(&api::encode_request(&Request::Status)).unwrap();
            assert_eq!(answer(&mut good, &mut good_lines), Some(Ok(Response::Done)));
        }
    });
}

#[test]
fn connections_above_the_limit_are_closed_and_free_places_are_given_again() {
    with_server(|path| {
        let ask = |stream: &mut UnixStream| {
            let _ = stream.write_all(&api::encode_request(&Request::Status));
            answer(stream, &mut Lines::default())
        };
        let mut open: Vec<_> = (0..16).map(|_| UnixStream::connect(path).unwrap()).collect();
        assert!(open.iter_mut().all(|stream| ask(stream) == Some(Ok(Response::Done))));
        assert_eq!(ask(&mut UnixStream::connect(path).unwrap()), None);
        drop(open);
        // The server notices the ends in its own time; each attempt is a whole round trip through it.
        assert!((0..10_000).any(|_| ask(&mut UnixStream::connect(path).unwrap()).is_some()));
    });
}
