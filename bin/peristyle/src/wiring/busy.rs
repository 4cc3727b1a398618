//! What is in use a moment longer: the system takes its time to close the files and sockets of a killed process.

use peristyle_rt::{Duration, NetError, now, sleep};

/// A node that is started at once after kill -9 waits so long for what its former process had.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Tries again and again while `is_busy` says so of the error; says once that it waits.
pub async fn when_free<T, E, F>(
    what: &str,
    say: &impl Fn(String),
    is_busy: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let (started, mut told) = (now(), false);
    loop {
        match attempt().await {
            Err(error) if is_busy(&error) && now().since(started) < LIMIT => {
                if !std::mem::replace(&mut told, true) {
                    say(format!("{what} is in use: waiting for it, {} s at most", LIMIT.as_secs()));
                }
                sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// For listeners.
pub fn in_use(error: &NetError) -> bool {
    *error == NetError::AddrInUse
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn an_address_that_becomes_free_is_taken_and_one_that_does_not_is_said() {
        peristyle_rt::sim::run(1, |_| async {
            let (tries, said) = (Cell::new(0), RefCell::new(Vec::new()));
            let say = |note| said.borrow_mut().push(note);
            let free_after = |n| {
                let tries = &tries;
                move || {
                    tries.set(tries.get() + 1);
                    std::future::ready(if tries.get() > n { Ok(()) } else { Err(NetError::AddrInUse) })
                }
            };
            assert_eq!(when_free("port 1", &say, in_use, free_after(0)).await, Ok(()));
            assert!(said.borrow().is_empty());
            assert_eq!(when_free("port 1", &say, in_use, free_after(4)).await, Ok(()));
            assert_eq!(*said.borrow(), ["port 1 is in use: waiting for it, 5 s at most"]);
            let before = now();
            let never = when_free("port 2", &say, in_use, free_after(1_000_000)).await;
            assert_eq!((never, now().since(before).as_secs()), (Err(NetError::AddrInUse), 5));
            let other = || std::future::ready(Err::<(), _>(NetError::Closed));
            assert_eq!(when_free("port 3", &say, in_use, other).await, Err(NetError::Closed));
        });
    }
}
