use crate::{Addr, Buf, BufConfig, Duration, IoVec, KeptBufs, Listener, Receive, RuntimeConfig, Stream};
use crate::{block_on, memory_budget, spawn, timeout};
use std::cell::Cell;
use std::rc::Rc;

fn config() -> RuntimeConfig {
    RuntimeConfig {
        buffers: BufConfig { counts: [3, 4, 0, 0, 0, 0], huge_pages: false },
        ..RuntimeConfig::small()
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_is_kept_back_is_there_when_the_pool_is_empty_and_is_kept_again_when_it_comes_back() {
    block_on(config(), async {
        let kept = KeptBufs::share("test", 2, 8192).await;
        assert_eq!(memory_budget().kept_bytes, 32 << 10);
        let mut all: Vec<Buf> = std::iter::from_fn(|| Buf::try_alloc(4096)).collect();
        assert_eq!(all.len(), 5, "two of seven are kept back");
        let first = kept.try_take(8192).expect("two are there");
        assert!(kept.try_take(16_384).is_none(), "more than was planned for");
        let second = kept.try_take(8192).expect("one is there");
        assert!(kept.try_take(8192).is_none());
        drop((first.freeze(), second));
        assert!(Buf::try_alloc(4096).is_none(), "they are not everybody's");
        // Whoever waits is woken by either.
        let kept = Rc::new(kept);
        let held = (kept.alloc(8192).await, kept.alloc(8192).await);
        let got = Rc::new(Cell::new(0));
        for _ in 0..2 {
            let (kept, got) = (kept.clone(), got.clone());
            spawn(async move {
                let _buf = kept.alloc(4096).await;
                got.set(got.get() + 1);
                crate::yield_now().await;
            });
        }
        crate::yield_now().await;
        drop(held.0);
        crate::end_of_turn().await;
        all.pop();
        crate::end_of_turn().await;
        assert_eq!(got.get(), 2);
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn users_for_one_purpose_share_and_the_last_gives_everything_to_the_pool() {
    block_on(config(), async {
        let one = KeptBufs::share("test", 2, 8192).await;
        let two = KeptBufs::share("test", 2, 8192).await;
        assert_eq!(memory_budget().kept_bytes, 32 << 10);
        let pool: Vec<Buf> = std::iter::from_fn(|| Buf::try_alloc(8192)).collect();
        let out = two.try_take(8192).expect("kept back");
        drop(one);
        assert!(Buf::try_alloc(8192).is_none());
        drop(two);
        assert_eq!(memory_budget().kept_bytes, 0);
        let free = Buf::try_alloc(8192).expect("everybody's now");
        assert!(Buf::try_alloc(8192).is_none());
        drop((out, pool, free));
        assert_eq!(std::iter::from_fn(|| Buf::try_alloc(8192)).collect::<Vec<_>>().len(), 4);
    });
}

/// Answers arrive although whoever waits for them has all the memory.
#[test]
#[cfg_attr(miri, ignore)]
fn a_connection_that_has_memory_of_its_own_receives_while_the_pool_is_empty() {
    for receive in [Receive::Ring, Receive::Calls] {
        let config = RuntimeConfig { receive, ..RuntimeConfig::small() };
        block_on(config, async {
            let listener = Listener::bind(&Addr::Tcp(([127, 0, 0, 1], 0).into()), false).await.unwrap();
            let stream = Stream::connect(&listener.local_addr()).await.unwrap();
            let (_reader, mut writer) = stream.split();
            let (mut reader, _writer) = listener.accept().await.unwrap().split();
            reader.keep(4096).await;
            let mut data = Buf::alloc(100_000).await;
            data.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
            let data = data.freeze();
            let sizes = [4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 2 << 20];
            let rest = sizes.iter().flat_map(|&bytes| std::iter::from_fn(move || Buf::try_alloc(bytes)));
            let _held: Vec<Buf> = rest.collect();
            let sent = data.clone();
            spawn(async move { writer.send(IoVec::from(sent)).await.unwrap() });
            let mut at = 0;
            while at < data.len() {
                let view = timeout(Duration::from_secs(20), reader.recv()).await.expect("arrives").unwrap();
                assert!(!view.is_empty() && view[..] == data[at..at + view.len()]);
                at += view.len();
            }
        });
    }
}
