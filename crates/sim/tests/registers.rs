//! The checker of reads and writes of many hosts sees what is wrong.

use peristyle_sim::cluster::register::Registers;

/// Whether the read is taken.
fn reads(registers: &mut Registers, began: u64, salt: u64) -> bool {
    let end = std::panic::AssertUnwindSafe(|| registers.end_read(began, 100, 0, salt, 0));
    std::panic::catch_unwind(end).is_ok()
}

#[test]
fn a_read_brings_what_was_there_at_some_moment_of_it() {
    let mut r = Registers::new(1);
    let first = r.begin_write(0).unwrap();
    assert!(r.begin_write(0).is_none(), "one at a time");
    assert!(reads(&mut r, 5, 0) && reads(&mut r, 5, first), "before or after");
    r.end_write(10, 0, first, true);
    assert!(reads(&mut r, 9, 0), "it began before the write was acknowledged");
    assert!(!reads(&mut r, 11, 0), "stale");
    assert!(!reads(&mut r, 11, 77), "never written");
}

#[test]
fn an_unanswered_write_may_be_there_until_another_is_acknowledged() {
    let mut r = Registers::new(1);
    let lost = r.begin_write(0).unwrap();
    r.end_write(10, 0, lost, false);
    assert!(reads(&mut r, 20, 0) && reads(&mut r, 20, lost));
    let second = r.begin_write(0).unwrap();
    r.end_write(30, 0, second, true);
    assert!(reads(&mut r, 31, second) && !reads(&mut r, 31, lost) && !reads(&mut r, 31, 0));
}
