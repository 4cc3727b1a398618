//! Entries for fuzzers: bytes of the other end.

use super::answers::{Follower, Pages};
use super::wire::*;
use crate::meta::{Item, LeaseId, MetaError, Revision, Txn, WatchChange};

/// A client that says anything. Whatever is taken for a request can be written again as it came, and be given to a store.
pub fn server(input: &[u8]) {
    let mut messages = Messages::default();
    messages.push(input);
    match messages.take(HELLO_BYTES_MAX) {
        Ok(Some(message)) if Hello::decode(&message).is_ok() => {}
        _ => return,
    }
    while let Ok(Some(message)) = messages.take(REQUEST_BYTES_MAX) {
        let Ok(request) = Request::decode(&message) else { return };
        assert_eq!(request.encode()[LENGTH_BYTES..], [&[message.kind][..], &message.body].concat());
        if let Request::Commit(txn) = request {
            let _ = txn.check();
        }
    }
}

/// A server that says anything to a list and to a watch.
pub fn client(input: &[u8]) {
    let mut messages = Messages::default();
    messages.push(input);
    let (mut pages, mut follower) = (Pages::new("a", 100), Follower::new("a", Revision(4)));
    let mut last = Revision(4);
    while let Ok(Some(message)) = messages.take(ANSWER_BYTES_MAX) {
        let Ok(answer) = Answer::decode(&message) else { return };
        assert_eq!(answer.encode()[LENGTH_BYTES..], [&[message.kind][..], &message.body].concat());
        match answer {
            Answer::Page { revision, items, last } => {
                if pages.add(revision, items).is_err() {
                    return;
                }
                if last {
                    let (items, _) = std::mem::replace(&mut pages, Pages::new("a", 100)).whole();
                    assert!(items.len() <= 100 && items.is_sorted_by_key(|(key, _)| key.clone()));
                }
            }
            Answer::Changes(changes) => {
                let Ok(new) = follower.take(changes) else { return };
                assert!(
                    new.iter().all(|change| change.revision > Revision(4) && change.key.starts_with('a'))
                );
                assert!(new.iter().map(|change| change.revision).is_sorted());
                assert!(new.first().is_none_or(|change| change.revision >= last));
                last = new.last().map_or(last, |change| change.revision);
            }
            // Another connection.
            Answer::Done => drop(follower.resume()),
            _ => {}
        }
    }
}

/// What a client says and what a server says: one of each kind, and some behind each other.
pub fn seeds() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let hello = Hello { versions: (VERSION_MIN, VERSION), cluster: "dev".into() }.encode();
    let asked: Vec<_> = requests().iter().map(|request| [&hello[..], &request.encode()].concat()).collect();
    let all = requests().iter().fold(hello, |bytes, request| [bytes, request.encode()].concat());
    let told: Vec<_> = answers().iter().map(Answer::encode).collect();
    let watched = [told[8].clone(), told[7].clone(), told[8].clone(), told[8].clone()].concat();
    let both = [told[4].clone(), told[8].clone()].concat();
    ([asked, vec![all]].concat(), [told, vec![watched, both]].concat())
}

/// One request of each kind.
pub fn requests() -> Vec<Request> {
    let txn = Txn::default().compare("a", Revision(7)).compare("b", Revision::ABSENT);
    let txn = txn.put("c", [1, 2, 3]).put_leased("d", [4], LeaseId(5)).delete("e");
    vec![
        Request::Get { key: "record/3".into() },
        Request::List { prefix: "volume/".into(), limit: 1000 },
        Request::Commit(txn),
        Request::Grant { ttl_ms: 3000 },
        Request::KeepAlive(LeaseId((2 << 32) + 1)),
        Request::Revoke(LeaseId(-1)),
        Request::Watch { prefix: "manager".into(), from: Revision(0x0102_0304) },
        Request::More,
    ]
}

/// One answer of each kind.
pub fn answers() -> Vec<Answer> {
    let item = |revision| Item { value: vec![9, 8, 7], revision: Revision(revision) };
    let change = |key: &str, value: Option<&[u8]>, revision| WatchChange {
        key: key.into(),
        value: value.map(<[u8]>::to_vec),
        revision: Revision(revision),
    };
    vec![
        Answer::Welcome { version: VERSION },
        Answer::Refused("another cluster".into()),
        Answer::Item(None),
        Answer::Item(Some(item(12))),
        Answer::Page {
            last: false,
            revision: Revision(12),
            items: vec![("a1".into(), item(3)), ("a2".into(), item(12))],
        },
        Answer::Committed(Revision(13)),
        Answer::Granted(LeaseId(77)),
        Answer::Done,
        Answer::Changes(vec![change("a", Some(b"x"), 5), change("ab", None, 5), change("a", Some(b""), 6)]),
        Answer::ReadAnew,
        Answer::Failed(MetaError::Conflict { key: "a".into() }),
        Answer::Failed(MetaError::Unavailable("full".into())),
        Answer::Failed(MetaError::Unknown("disk".into())),
        Answer::Failed(MetaError::TooLarge),
        Answer::Failed(MetaError::NoLease),
    ]
}
