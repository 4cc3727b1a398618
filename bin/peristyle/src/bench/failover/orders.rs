//! What standard input says: a thread reads it, since that may take for ever.

use std::io::{BufRead, IsTerminal};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines that were read and not looked at yet.
const WAITING_MAX: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    Mark(String),
    Status,
    End,
}

fn parse(line: &str) -> Option<Order> {
    match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
        ("mark", name) if !name.trim().is_empty() => Some(Order::Mark(name.trim().to_owned())),
        ("status", "") => Some(Order::Status),
        ("end", "") => Some(Order::End),
        _ => None,
    }
}

/// The lines so far.
pub struct Orders {
    lines: Option<Receiver<Order>>,
    ended: bool,
}

impl Orders {
    /// Nobody says anything on a terminal.
    pub fn listen() -> Orders {
        let input = std::io::stdin();
        let lines = (!input.is_terminal()).then(|| {
            let (sender, receiver) = sync_channel(WAITING_MAX);
            std::thread::spawn(move || follow(input.lock(), &sender));
            receiver
        });
        Orders { lines, ended: false }
    }

    pub fn next(&mut self) -> Option<Order> {
        let order = self.lines.as_ref()?.try_recv().ok()?;
        self.ended |= order == Order::End;
        Some(order)
    }

    /// The end was said.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// An input that says nothing before it ends, as that of a program in the background, ends nothing.
fn follow(input: impl BufRead, to: &SyncSender<Order>) {
    let mut spoke = false;
    for line in input.lines().map_while(Result::ok) {
        let Some(order) = parse(&line) else {
            if !line.trim().is_empty() {
                eprintln!("`{line}`: say mark NAME, status or end");
            }
            continue;
        };
        spoke = true;
        if to.send(order).is_err() {
            return;
        }
    }
    if spoke {
        // Nobody listens any more when it is over already.
        let _ = to.send(Order::End);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<Order> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        follow(text.as_bytes(), &sender);
        drop(sender);
        receiver.iter().collect()
    }

    #[test]
    fn lines_are_orders_and_others_are_passed_over() {
        let orders = said("mark kill 1\n\nmark\nstop\n status \nend\n");
        assert_eq!(orders, [Order::Mark("kill 1".into()), Order::Status, Order::End, Order::End]);
    }

    #[test]
    fn the_end_of_the_input_is_the_end_only_behind_a_line() {
        assert_eq!(said(""), []);
        assert_eq!(said("status\n"), [Order::Status, Order::End]);
    }
}
