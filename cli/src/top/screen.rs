//! The whole screen: keys in, pictures out. However it ends, the terminal is given back as it was.

use std::io;
use std::path::Path;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::Readings;
use super::view::View;
use crate::admin::Watch;
use crate::{CliError, text};

/// Shows rates `count` times, or until a person has seen enough.
pub(super) async fn run(mut watch: Watch, socket: &Path, count: Option<u64>) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let mut view = View::new(socket.display().to_string(), text::colour_wanted());
    let mut readings = Readings::default();
    let mut screen = Screen::enter()?;
    let mut events = events();
    // The first reading only gives the second something to be compared with.
    let mut left = count.map(|count| count.saturating_add(1));
    loop {
        screen.terminal.draw(|frame| view.draw(frame))?;
        if left == Some(0) {
            return Ok(());
        }
        tokio::select! {
            reading = watch.next() => {
                readings.push(reading?);
                view.update(readings.rates(), readings.loads());
                left = left.map(|left| left - 1);
            }
            // No more events: the terminal is gone.
            event = events.recv() => match event.map(|event| wish(&event)) {
                Some(Wish::Nothing) => {}
                Some(Wish::Sort) => view.sort_next(),
                Some(Wish::Select(by)) => view.select(by),
                Some(Wish::Quit) | None => return Ok(()),
            },
            () = signals.recv() => return Ok(()),
        }
    }
}

/// The terminal in raw mode on its other screen, until dropped. A panic gives it back too.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        Ok(Self { terminal: ratatui::try_init()? })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Signals that would otherwise end us with the terminal in raw mode.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// What a person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Sort,
    Select(isize),
    Quit,
}

fn wish(event: &Event) -> Wish {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) = event else {
        return Wish::Nothing;
    };
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Wish::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Char('s') => Wish::Sort,
        KeyCode::Up | KeyCode::Char('k') => Wish::Select(-1),
        KeyCode::Down | KeyCode::Char('j') => Wish::Select(1),
        KeyCode::PageUp => Wish::Select(-PAGE),
        KeyCode::PageDown => Wish::Select(PAGE),
        KeyCode::Home => Wish::Select(isize::MIN),
        KeyCode::End => Wish::Select(isize::MAX),
        _ => Wish::Nothing,
    }
}

/// Keys and resizes, read by a thread of their own that ends with the process.
fn events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    receiver
}

const PAGE: isize = 10;
const EVENTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_wishes() {
        let key = |code| wish(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        assert_eq!(key(KeyCode::Char('q')), Wish::Quit);
        assert_eq!(key(KeyCode::Char('s')), Wish::Sort);
        assert_eq!(key(KeyCode::Up), Wish::Select(-1));
        assert_eq!(key(KeyCode::Down), Wish::Select(1));
        assert_eq!(key(KeyCode::Char('c')), Wish::Nothing);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(wish(&Event::Key(interrupt)), Wish::Quit);
        assert_eq!(wish(&Event::Resize(80, 24)), Wish::Nothing);
    }
}
