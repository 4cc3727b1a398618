//! The store of another process, and ends that do not do what they should: other clusters, other versions, noise, floods, and servers that
//! do not answer.

use crate::raw::{Raw, addr, hello, made, put};
use crate::rig::{CLUSTER, serve};
use peristyle_base::Duration;
use peristyle_control::served::wire::*;
use peristyle_control::*;
use peristyle_rt::sim::run;
use peristyle_rt::sync::Event;
use peristyle_rt::{Listener, now, sleep, spawn, timeout};
use std::cell::Cell;
use std::rc::Rc;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

#[test]
fn another_cluster_is_refused_in_words_that_reach_the_caller() {
    run(7, |_| async {
        let (_, stop) = serve(&addr(), MemoryStore::default()).await;
        let stranger = ServedStore::new(addr(), "prod");
        let Err(MetaError::Unavailable(words)) = stranger.commit(put("a")).await else {
            panic!("it is done")
        };
        assert!(words.contains("`dev`") && words.contains("`prod`"), "{words}");
        assert!(matches!(stranger.get("a").await, Err(MetaError::Unavailable(_))));
        assert_eq!(timeout(5 * SECOND, stranger.watch("", Revision::ABSENT).next()).await, None);
        let long = ServedStore::new(addr(), &"n".repeat(256));
        assert!(matches!(long.get("a").await, Err(MetaError::Unavailable(_))));
        stop.set();
    });
}

#[test]
fn versions_that_have_none_in_common_are_refused_in_words_and_others_agree_on_the_newest() {
    run(7, |_| async {
        let (_, stop) = serve(&addr(), MemoryStore::default()).await;
        for versions in [(2, 9), (0, 0)] {
            let mut raw = Raw::connect().await;
            raw.say(&hello(versions, CLUSTER)).await;
            let words = raw.refused().await;
            assert!(words.contains("version"), "{words}");
            assert_eq!(raw.hear().await, None);
        }
        let mut newer = Raw::connect().await;
        let mut bytes = hello((1, 9), CLUSTER);
        bytes.extend(b"what will be there one day");
        let length = (bytes.len() - LENGTH_BYTES) as u32;
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        newer.say(&bytes).await;
        assert_eq!(newer.hear().await, Some(Answer::Welcome { version: 1 }));
        stop.set();
    });
}

#[test]
fn who_breaks_the_protocol_is_told_and_cut_off_and_others_never_notice() {
    run(7, |_| async {
        let (good, stop) = serve(&addr(), MemoryStore::default()).await;
        let watch = Request::Watch { prefix: "x".into(), from: Revision::ABSENT }.encode();
        let twice = [&[0, 0, 2, 0][..], &[0, 1, 0, b'a'], &[0, 1, 0, b'a']].concat();
        let welcomed: [Vec<u8>; 9] = [
            vec![0; 4],
            u32::MAX.to_le_bytes().into(),
            made(0x12, &twice),
            made(0x10, &[2, 0, b'a']),
            made(0x10, &[1, 0, b'a', b'b']),
            made(0x77, &[]),
            Request::More.encode(),
            hello((1, 1), CLUSTER),
            [watch.clone(), watch].concat(),
        ];
        for (case, bytes) in welcomed.iter().enumerate() {
            let mut raw = Raw::welcomed().await;
            raw.say(bytes).await;
            let words = raw.refused().await;
            assert!(!words.is_empty());
            assert_eq!(raw.hear().await, None, "case {case}");
            good.commit(put("a")).await.unwrap();
        }
        let strangers = [b"GET / HTTP/1.1\r\n\r\n".to_vec(), Request::More.encode(), made(1, b"PERIPEER")];
        for bytes in strangers {
            let mut raw = Raw::connect().await;
            raw.say(&bytes).await;
            raw.refused().await;
            assert_eq!(raw.hear().await, None);
            good.commit(put("a")).await.unwrap();
        }
        stop.set();
    });
}

#[test]
fn who_says_nothing_or_only_half_of_it_is_cut_off_in_time() {
    run(7, |_| async {
        let (good, stop) = serve(&addr(), MemoryStore::default()).await;
        let commit = Request::Commit(Txn::default().put("big", vec![7; 60_000])).encode();
        for half in [vec![], hello((1, 1), CLUSTER)[..9].to_vec(), commit[..50_000].to_vec()] {
            let mut raw = if half.len() > 100 { Raw::welcomed().await } else { Raw::connect().await };
            raw.say(&half).await;
            let begun = now();
            assert_eq!(raw.hear().await, None);
            assert!(now().since(begun) < 3 * SECOND);
        }
        // A byte a second is no reason to wait longer.
        let mut raw = Raw::welcomed().await;
        let begun = now();
        spawn(async move {
            for byte in commit {
                raw.say(&[byte]).await;
                sleep(SECOND).await;
            }
        });
        sleep(4 * SECOND).await;
        assert_eq!(good.get("big").await, Ok(None));
        assert!(now().since(begun) < 5 * SECOND);
        stop.set();
    });
}

#[test]
fn connections_above_the_limit_are_closed_and_free_places_are_given_again() {
    run(7, |_| async {
        let (good, stop) = serve(&addr(), MemoryStore::default()).await;
        let mut flood = Vec::new();
        while flood.len() < 600 {
            flood.push(Raw::connect().await);
        }
        sleep(100 * MS).await;
        let refused = good.commit(put("a")).await;
        assert!(matches!(refused, Err(MetaError::Unavailable(_))), "nothing was sent: {refused:?}");
        sleep(2 * SECOND).await;
        good.commit(put("a")).await.unwrap();
        drop(flood);
        stop.set();
    });
}

#[test]
fn of_large_requests_only_so_many_are_read_at_once_and_small_ones_pass_them() {
    run(7, |_| async {
        let (good, stop) = serve(&addr(), MemoryStore::default()).await;
        let large = || (0..4).fold(Txn::default(), |txn, i| txn.put(format!("{i}"), vec![7; 50_000]));
        let begun = now();
        let mut halves = Vec::new();
        for _ in 0..16 {
            let mut raw = Raw::welcomed().await;
            raw.say(&Request::Commit(large()).encode()[..100_000]).await;
            halves.push(raw);
        }
        assert!(now().since(begun) < SECOND);
        let small = timeout(100 * MS, good.commit(put("a"))).await;
        assert!(matches!(small, Some(Ok(_))), "{small:?}");
        let late = good.commit(large()).await;
        assert!(late.is_err() || now().since(begun) > 3 * SECOND / 2, "it was read beside the others");
        sleep(2 * SECOND).await;
        good.commit(large()).await.unwrap();
        stop.set();
    });
}

/// What a server does with a request.
#[derive(Clone, Copy)]
enum Does {
    Silent,
    Ends,
    Says(fn() -> Answer),
    SaysGarbage,
}

/// Welcomes everybody; how many requests have come.
async fn strange_server(does: Does) -> (Rc<Cell<usize>>, Event) {
    let listener = Listener::bind(&addr(), false).await.unwrap();
    let (asked, stop) = (Rc::new(Cell::new(0)), Event::default());
    let (its, over) = (asked.clone(), stop.clone());
    spawn(async move {
        let accept = async {
            loop {
                let (stream, asked) = (listener.accept().await.unwrap(), its.clone());
                spawn(async move {
                    let mut raw = Raw::new(stream);
                    raw.message().await;
                    raw.say(&Answer::Welcome { version: 1 }.encode()).await;
                    if raw.message().await.is_none() {
                        return;
                    }
                    asked.set(asked.get() + 1);
                    match does {
                        Does::Silent => sleep(60 * SECOND).await,
                        Does::Ends => {}
                        Does::Says(what) => raw.say(&what().encode()).await,
                        Does::SaysGarbage => raw.say(&[0xff; 64]).await,
                    }
                });
            }
        };
        peristyle_rt::select(over.wait(), accept).await;
    });
    (asked, stop)
}

#[test]
fn of_a_change_only_what_certainly_did_not_happen_is_called_so_and_none_is_asked_for_twice() {
    let conflict = || Answer::Failed(MetaError::Conflict { key: "never compared".into() });
    for (does, reads, done_for_certain) in [
        (Does::Silent, 1, false),
        (Does::Ends, 2, false),
        (Does::SaysGarbage, 2, false),
        (Does::Says(|| Answer::ReadAnew), 1, false),
        (Does::Says(conflict), 1, false),
        (Does::Says(|| Answer::Refused("no".into())), 2, true),
        (Does::Says(|| Answer::Failed(MetaError::Unavailable("no".into()))), 1, true),
    ] {
        run(7, move |_| async move {
            let (asked, stop) = strange_server(does).await;
            let store = ServedStore::new(addr(), CLUSTER);
            let begun = now();
            let outcomes = [
                store.commit(put("a")).await.map(drop),
                store.grant(SECOND).await.map(drop),
                store.keep_alive(LeaseId(1)).await,
                store.revoke(LeaseId(1)).await,
            ];
            assert!(now().since(begun) <= 4 * (2 * SECOND + 10 * MS));
            assert_eq!(asked.get(), 4, "asked for twice");
            let is_right = |outcome: &Result<(), MetaError>| match outcome {
                Err(MetaError::Unknown(_)) => !done_for_certain,
                Err(MetaError::Unavailable(_)) => done_for_certain,
                Err(MetaError::Conflict { .. }) => true, // of a call that compares nothing
                _ => false,
            };
            assert!(outcomes.iter().all(is_right), "{outcomes:?}");
            assert!(!matches!(outcomes[0], Err(MetaError::Conflict { .. })), "{outcomes:?}");
            asked.set(0);
            let read = store.get("a").await;
            assert!(matches!(read, Err(MetaError::Unavailable(_) | MetaError::Conflict { .. })), "{read:?}");
            assert_eq!(asked.get(), reads);
            stop.set();
        });
    }
}

#[test]
fn a_transaction_of_which_the_end_was_not_sent_was_not_done() {
    run(7, |_| async {
        let listener = Listener::bind(&addr(), false).await.unwrap();
        spawn(async move {
            let mut raw = Raw::new(listener.accept().await.unwrap());
            raw.message().await;
            raw.say(&Answer::Welcome { version: 1 }.encode()).await;
            sleep(SECOND).await; // it takes nothing
        });
        let large = (0..15).fold(Txn::default(), |txn, i| txn.put(format!("{i}"), vec![7; VALUE_BYTES_MAX]));
        let outcome = ServedStore::new(addr(), CLUSTER).commit(large).await;
        assert!(matches!(outcome, Err(MetaError::Unavailable(_))), "{outcome:?}");
    });
}
