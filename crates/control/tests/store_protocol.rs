//! The bytes of the store's protocol: golden messages, any segments, and what is refused.

use peristyle_control::served::fuzz::{answers, requests, seeds};
use peristyle_control::served::wire::*;
use peristyle_control::*;
use proptest::prelude::*;

macro_rules! golden {
    ($($name:literal),* $(,)?) => {
        [$(parse(include_str!(concat!("../../../testdata/store/v1-", $name, ".hex")))),*]
    };
}

fn parse(text: &str) -> Vec<u8> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap());
    lines.flat_map(str::split_whitespace).map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn message(bytes: &[u8]) -> Message {
    let mut messages = Messages::default();
    messages.push(bytes);
    messages.take(REQUEST_BYTES_MAX).unwrap().expect("a whole message")
}

/// A message of its kind and fields.
fn made(kind: u8, body: &[u8]) -> Message {
    Message { kind, body: body.to_vec() }
}

#[test]
fn requests_are_the_golden_bytes() {
    let golden = golden!["get", "list", "commit", "grant", "keep-alive", "revoke", "watch", "more"];
    assert_eq!(golden.len(), requests().len());
    for (bytes, request) in golden.iter().zip(requests()) {
        assert_eq!(request.encode(), *bytes, "{request:?}");
        assert_eq!(Request::decode(&message(bytes)), Ok(request));
    }
}

#[test]
fn answers_are_the_golden_bytes() {
    let golden = golden![
        "welcome",
        "refused",
        "nothing",
        "item",
        "page",
        "committed",
        "granted",
        "done",
        "changes",
        "read-anew",
        "failed-conflict",
        "failed-unavailable",
        "failed-unknown",
        "failed-too-large",
        "failed-no-lease",
    ];
    assert_eq!(golden.len(), answers().len());
    for (bytes, answer) in golden.iter().zip(answers()) {
        assert_eq!(answer.encode(), *bytes, "{answer:?}");
        assert_eq!(Answer::decode(&message(bytes)), Ok(answer));
    }
}

#[test]
fn a_hello_is_the_golden_bytes_and_what_a_newer_one_has_behind_them_is_passed_over() {
    let [bytes] = golden!["hello"];
    let hello = Hello { versions: (1, 1), cluster: "dev".into() };
    assert_eq!(hello.encode(), bytes);
    let mut message = message(&bytes);
    assert_eq!(Hello::decode(&message), Ok(hello.clone()));
    message.body.extend(b"and something new");
    assert_eq!(Hello::decode(&message), Ok(hello));
}

#[test]
fn the_largest_transaction_and_the_largest_page_fit_their_messages() {
    let key = |i: usize| format!("{i:0>256}");
    let ops = OPS_MAX / 2;
    let value = vec![7; TXN_BYTES_MAX / ops - 2 * KEY_BYTES_MAX];
    let txn = (0..ops).fold(Txn::default(), |txn, i| {
        txn.compare(key(i), Revision(1)).put_leased(key(i), value.clone(), LeaseId(1))
    });
    let request = Request::Commit(txn);
    assert_eq!(Request::decode(&message(&request.encode())), Ok(request));

    let item = || Item { value: vec![7; VALUE_BYTES_MAX], revision: Revision(1) };
    let items: Vec<_> = (0..9).map(|i| (key(i), item())).collect();
    let tiny = |i| (format!("{i:05}"), Item { value: vec![], revision: Revision(1) });
    for items in [items, (0..60_000).map(tiny).collect()] {
        let n = page_of(&items);
        assert!(n < items.len());
        let page = Answer::Page { last: true, revision: Revision(1), items: items[..n].to_vec() };
        let bytes = page.encode();
        assert!(bytes.len() - LENGTH_BYTES <= ANSWER_BYTES_MAX);
        assert_eq!(Answer::decode(&message(&bytes)), Ok(page));
    }
}

#[test]
fn words_that_are_too_long_are_cut_within_no_character() {
    let refused = Answer::Refused("ä".repeat(1000));
    let Ok(Answer::Refused(words)) = Answer::decode(&message(&refused.encode())) else { panic!("no words") };
    assert_eq!(words, "ä".repeat(512));
}

#[test]
fn a_length_alone_ends_the_connection_when_it_is_impossible() {
    for length in [0, REQUEST_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut messages = Messages::default();
        messages.push(&length.to_le_bytes());
        assert_eq!(messages.take(REQUEST_BYTES_MAX), Err(Violation::Length));
    }
}

#[test]
fn every_request_and_answer_that_is_cut_short_or_has_more_behind_it_is_refused() {
    let whole: Vec<_> = requests().iter().map(Request::encode).collect();
    let told: Vec<_> = answers().iter().map(Answer::encode).collect();
    for bytes in [whole, told].concat() {
        let Message { kind, body } = message(&bytes);
        let refused = |body: &[u8]| {
            let message = made(kind, body);
            Request::decode(&message).is_err() && Answer::decode(&message).is_err()
        };
        assert!((0..body.len()).all(|n| refused(&body[..n])), "{kind:#x}");
        assert!(refused(&[&body[..], &[0]].concat()), "{kind:#x}");
    }
}

#[test]
fn what_no_store_takes_does_not_become_a_request() {
    let text = |text: &str| [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
    let delete = |key: &str| [&[0][..], &text(key)].concat();
    let commit = |compares: u16, ops: u16, rest: &[Vec<u8>]| {
        let counts = [compares.to_le_bytes(), ops.to_le_bytes()].concat();
        Request::decode(&made(0x12, &[counts, rest.concat()].concat()))
    };
    assert!(commit(0, 2, &[delete("a"), delete("b")]).is_ok());
    assert_eq!(commit(0, 2, &[delete("a"), delete("a")]), Err(Violation::Field("key")));
    assert_eq!(commit(0, 1, &[delete("")]), Err(Violation::Field("key")));
    assert_eq!(commit(0, 1, &[delete(&"k".repeat(257))]), Err(Violation::Field("key")));
    assert_eq!(commit(0, 1, &[vec![3], text("a")]), Err(Violation::Field("operation")));
    assert_eq!(commit(100, 29, &[]), Err(Violation::Field("operations")));
    let large = [vec![1], text("a"), 65_537_u32.to_le_bytes().to_vec(), vec![0; 65_537]];
    assert_eq!(commit(0, 1, &large), Err(Violation::Field("value")));
    assert_eq!(Request::decode(&made(0x10, &[1, 0, 0xff])), Err(Violation::Field("key")));
    assert_eq!(Request::decode(&made(0x18, &[])), Err(Violation::Kind(0x18)));
    assert_eq!(Hello::decode(&made(0x10, &[])), Err(Violation::Kind(0x10)));
    let [mut hello] = golden!["hello"];
    hello[5] = b'p';
    assert_eq!(Hello::decode(&message(&hello)), Err(Violation::Field("magic")));
}

#[test]
fn what_no_store_says_does_not_become_an_answer() {
    let entry =
        |key: &str| [&1_u16.to_le_bytes(), key.as_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    let page = |last: u8, items: &[&str]| {
        let head = [&[last][..], &[1, 0, 0, 0, 0, 0, 0, 0], &(items.len() as u16).to_le_bytes()].concat();
        let items: Vec<_> = items.iter().map(|key| entry(key)).collect();
        Answer::decode(&made(0x91, &[head, items.concat()].concat()))
    };
    assert!(page(0, &["a", "b"]).is_ok() && page(1, &[]).is_ok());
    assert_eq!(page(0, &["b", "a"]), Err(Violation::Field("key")));
    assert_eq!(page(0, &["a", "a"]), Err(Violation::Field("key")));
    assert_eq!(page(0, &[]), Err(Violation::Field("items")), "it would never end");
    assert_eq!(page(2, &["a"]), Err(Violation::Field("last")));
    let changes = |revisions: &[u8]| {
        let count = (revisions.len() as u16).to_le_bytes().to_vec();
        let change = |revision: &u8| vec![1, 0, b'a', 0, *revision, 0, 0, 0, 0, 0, 0, 0];
        let all = [vec![count], revisions.iter().map(change).collect()].concat();
        Answer::decode(&made(0x96, &all.concat()))
    };
    assert!(changes(&[1, 1, 2]).is_ok());
    assert_eq!(changes(&[2, 1]), Err(Violation::Field("revision")));
    assert_eq!(changes(&[0]), Err(Violation::Field("revision")));
    assert_eq!(changes(&[1; 65]), Err(Violation::Field("changes")));
    assert_eq!(Answer::decode(&made(0x92, &[0; 8])), Err(Violation::Field("revision")));
}

proptest! {
    #[test]
    fn messages_come_out_of_a_stream_whatever_pieces_it_comes_in(cuts in prop::collection::vec(1..40_usize, 1..20)) {
        let (asked, _) = seeds();
        let bytes = asked.last().unwrap();
        let (mut messages, mut found, mut rest) = (Messages::default(), Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            messages.push(now);
            while let Some(message) = messages.take(REQUEST_BYTES_MAX).unwrap() {
                found.push(message);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(Hello::decode(&found[0]).is_ok());
        let got: Vec<_> = found[1..].iter().map(|message| Request::decode(message).unwrap()).collect();
        prop_assert_eq!(got, requests());
    }
}
