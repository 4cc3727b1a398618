//! `peristyle top`: the profile of the last second, drawn anew each second until a key ends it.

mod model;
#[cfg(test)]
mod tests;
mod view;

use crate::cli::TopOptions;
use crate::client::Client;
use crate::failure::{Failure, Kind};
use crate::profile::Snapshot;
use model::{Key, Model};
use peristyle_rt::StopSignals;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(1);
/// How long a key may have to wait.
const KEY_WAIT: Duration = Duration::from_millis(100);

pub fn top(options: TopOptions, admin: Option<PathBuf>) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::usage("`top` needs a terminal; `peristyle profile` prints the same once"));
    }
    let looks = look_each_second(Client::connect(admin)?);
    let signals = StopSignals::watch();
    // From here on the terminal is given back however it ends: a panic's text is printed behind that.
    let mut terminal = ratatui::try_init().map_err(Failure::failed)?;
    let ended = run(&mut terminal, Model::new(options.focus), &looks, &signals);
    ratatui::restore();
    ended
}

/// Asks on a thread of its own: a node that is slow to answer does not hold up the keys.
fn look_each_second(mut client: Client) -> Receiver<Result<Snapshot, Failure>> {
    let (looks, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        loop {
            let look = Snapshot::fetch(&mut client);
            let failed = look.is_err();
            if looks.send(look).is_err() || failed {
                return;
            }
            std::thread::sleep(PERIOD);
        }
    });
    receiver
}

fn run(
    terminal: &mut DefaultTerminal,
    mut model: Model,
    looks: &Receiver<Result<Snapshot, Failure>>,
    signals: &StopSignals,
) -> Result<(), Failure> {
    while !signals.asked() {
        match looks.try_recv() {
            Ok(Ok(look)) => model.take(look),
            Ok(Err(gone)) => {
                return Err(Failure::new(Kind::NoNode, format!("the node has gone away: {gone}")));
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(Failure::failed("nobody asks the node any more")),
        }
        terminal.draw(|frame| view::draw(frame, &model)).map_err(Failure::failed)?;
        if !event::poll(KEY_WAIT).map_err(Failure::failed)? {
            continue;
        }
        let Event::Key(key) = event::read().map_err(Failure::failed)? else { continue };
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if let (KeyCode::Char(c), KeyEventKind::Press) = (key.code, key.kind)
            && Key::of(c, control).is_some_and(|key| !model.press(key))
        {
            break;
        }
    }
    Ok(())
}
