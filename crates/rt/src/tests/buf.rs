use crate::buf::{BufConfig, CLASS_BYTES, Pool};
use crate::{Buf, IoVec, RuntimeConfig, block_on, run, spawn};
use std::cell::Cell;
use std::rc::Rc;

fn tiny() -> BufConfig {
    BufConfig { counts: [4, 2, 0, 0, 0, 0], huge_pages: false }
}

#[test]
fn a_request_gets_the_smallest_class_that_is_free_and_none_when_all_are_out() {
    let pool = Pool::new(tiny());
    let small: Vec<Buf> = (0..4).map(|_| pool.alloc(100).expect("four small ones")).collect();
    assert_eq!(pool.free_counts()[..2], [0, 2]);
    let large = [pool.alloc(100).expect("the next size"), pool.alloc(16 << 10).expect("the last")];
    assert!(pool.alloc(1).is_none());
    assert!(pool.alloc(CLASS_BYTES[5] + 1).is_none());
    drop((small, large));
    assert_eq!(pool.free_counts()[..2], [4, 2]);
}

#[test]
fn whole_buffers_are_page_aligned_and_never_overlap() {
    let pool = Pool::new(tiny());
    let mut all: Vec<Buf> = (0..6).map(|_| pool.alloc(4096).expect("six in all")).collect();
    assert!(all.iter().all(|buf| (buf.as_ptr() as usize).is_multiple_of(4096)));
    for (i, buf) in all.iter_mut().enumerate() {
        buf.fill(i as u8);
    }
    for (i, buf) in all.iter().enumerate() {
        assert!(buf.iter().all(|&b| b == i as u8));
    }
}

#[test]
fn cut_pieces_give_the_buffer_back_when_the_last_of_them_goes() {
    let pool = Pool::new(tiny());
    let mut rest = pool.alloc(4096).expect("one");
    rest.fill(7);
    let mut front = rest.split_to(1000);
    front.fill(1);
    assert!(rest.iter().all(|&b| b == 7));
    let view = front.freeze();
    let shared = view.slice(10..20);
    drop(view);
    drop(rest);
    assert_eq!(pool.free_counts()[0], 3);
    assert_eq!(&shared[..], &[1; 10]);
    drop(shared);
    assert_eq!(pool.free_counts()[0], 4);
}

#[test]
fn parts_of_a_buffer_are_put_together_again_in_their_order_only() {
    let pool = Pool::new(tiny());
    let mut rest = pool.alloc(4096).expect("one");
    rest.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    let mut front = rest.split_to(1000);
    let middle = rest.split_to(500);
    let wrong = std::panic::AssertUnwindSafe(|| {
        let (mut a, b) = (pool.alloc(4096).expect("one"), pool.alloc(4096).expect("one"));
        a.unsplit(b);
    });
    assert!(std::panic::catch_unwind(wrong).is_err());
    front.unsplit(middle);
    front.unsplit(rest);
    assert_eq!(front.len(), 4096);
    assert!(front.iter().enumerate().all(|(i, &byte)| byte == i as u8));
    drop(front);
    assert_eq!(pool.free_counts()[0], 4);
}

#[test]
fn a_view_turns_into_a_buffer_only_when_nobody_else_sees_it() {
    let pool = Pool::new(tiny());
    let view = pool.alloc(4096).expect("one").freeze();
    let other = view.clone();
    let view = view.try_unfreeze().expect_err("a clone lives");
    drop(other);
    let mut buf = view.try_unfreeze().expect("alone");
    buf.fill(9);
    assert_eq!(buf[4095], 9);
}

#[test]
fn pieces_that_follow_one_another_are_joined() {
    let pool = Pool::new(tiny());
    let mut buf = pool.alloc(4096).expect("one");
    buf.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8);
    let view = buf.freeze();
    let mut iov = IoVec::new();
    iov.push(view.slice(0..100));
    iov.push(view.slice(100..200));
    iov.push(view.slice(300..400));
    assert_eq!((iov.pieces().len(), iov.bytes()), (2, 300));
    assert_eq!(&iov.pieces()[0][..], &view[0..200]);
    drop((iov, view));
    assert_eq!(pool.free_counts()[0], 4);
}

#[test]
fn buffers_dropped_on_other_threads_come_back() {
    let pool = Pool::new(tiny());
    for _ in 0..10 {
        let bufs: Vec<Buf> = (0..4).map(|_| pool.alloc(4096).expect("all are back")).collect();
        let views: Vec<_> = bufs.into_iter().map(Buf::freeze).collect();
        let kept: Vec<_> = views.iter().map(|v| v.slice(0..1)).collect();
        let thread = std::thread::spawn(move || drop(views));
        drop(kept);
        thread.join().expect("no panic");
        pool.collect_remote();
    }
    assert_eq!(pool.free_counts()[..2], [4, 2]);
}

#[test]
fn a_buffer_outlives_its_pool() {
    let pool = Pool::new(tiny());
    let mut buf = pool.alloc(4096).expect("one");
    drop(pool);
    buf.fill(3);
    std::thread::spawn(move || drop(buf)).join().expect("no panic");
}

#[test]
#[cfg_attr(miri, ignore)]
fn who_waits_for_a_buffer_gets_it_when_one_comes_back() {
    let config = RuntimeConfig { buffers: tiny(), ..RuntimeConfig::default() };
    block_on(config, async {
        let mut held: Vec<Buf> = (0..6).map(|_| Buf::try_alloc(1).expect("six in all")).collect();
        let got = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let got = got.clone();
            spawn(async move {
                let _buf = Buf::alloc(1).await;
                got.set(got.get() + 1);
            });
        }
        crate::yield_now().await;
        assert_eq!(got.get(), 0);
        held.pop();
        crate::end_of_turn().await;
        assert_eq!(got.get(), 3, "one after the other with the same buffer");
    });
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_starving_reactor_that_sleeps_is_woken_by_a_buffer_from_another() {
    let config =
        RuntimeConfig { reactors: 2, buffers: tiny(), poll: crate::PollMode::Sleep, ..Default::default() };
    let mut ports: Vec<_> = crate::mesh::<Buf>(2, 64).into_iter().map(Some).collect();
    let seeds = ports.iter_mut().map(|p| p.take().expect("once")).collect();
    run(config, seeds, |seed| async move {
        let port = seed.attach();
        for _ in 0..500 {
            if port.me().0 == 0 {
                // The other drops it there; with six buffers we soon wait for those.
                let buf = Buf::alloc(1).await;
                port.send(crate::ReactorId(1), buf).await;
            } else {
                drop(port.recv().await);
            }
        }
    })
    .expect("both ended");
}
