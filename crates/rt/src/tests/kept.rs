use crate::{Buf, BufConfig, KeptBufs, RuntimeConfig, block_on, memory_budget, spawn};
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
