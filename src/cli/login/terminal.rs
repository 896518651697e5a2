//! The terminal that a person pastes into, and the standard input of a script.
//!
//! A terminal in canonical mode, in which the kernel edits lines, cuts them at 4,095 bytes (`termios(3)`), and an
//! address may be longer. So lines are edited here, and the terminal's modes are restored whatever ends the program.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _, stderr, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::super::{Exit, Failure, daemon, say_error};
use super::Language;
use crate::config::Environment;
use crate::control::login::PENDING_LIVES;

/// The lines of a paste come one right after the other; when nothing came for so long, it was all. What is whole is
/// waited for less.
const SILENCE: Duration = Duration::from_secs(1);
const SILENCE_BEHIND_WHOLE: Duration = Duration::from_millis(300);
/// More than anybody takes for an address.
const LONGEST_TEXT: usize = 256 * 1024;
/// What is said when, and at last nothing: the login is not waited for any longer.
const REMINDERS: [(Duration, Option<[&str; 2]>); 5] = [
    (Duration::ZERO, Some(["(10 minutes are left)", "（还剩 10 分钟）"])),
    (Duration::from_secs(5 * 60), Some(["(5 minutes are left)", "（还剩 5 分钟）"])),
    (Duration::from_secs(8 * 60), Some(["(2 minutes are left)", "（还剩 2 分钟）"])),
    (Duration::from_secs(9 * 60), Some(["(1 minute is left)", "（还剩 1 分钟）"])),
    (PENDING_LIVES, None),
];
/// A terminal that knows them says where a paste begins and ends.
const MARK_PASTES: &str = "\x1b[?2004h";
const MARK_PASTES_NO_MORE: &str = "\x1b[?2004l";

/// A person who writes, or a script; the person is told how the time passes.
pub(super) struct Terminal {
    pieces: Receiver<io::Result<Vec<u8>>>,
    editor: Editor,
    started: Instant,
    told: usize,
    language: Language,
    modes: Option<Modes>,
}

/// The modes of a terminal that hands over every byte as it comes. Dropping this restores those before.
struct Modes {
    before: Termios,
    are_ours: Arc<AtomicBool>,
}

/// What was typed or pasted so far.
#[derive(Default)]
struct Editor {
    text: Vec<u8>,
    escape: Option<Vec<u8>>,
    is_in_paste: bool,
    was_pasted: bool,
    has_line: bool,
    is_at_end: bool,
}

impl Terminal {
    pub(super) fn new(environment: &Environment, language: Language) -> Self {
        let (sender, pieces) = channel();
        let modes = Modes::set(environment.var("TERM").is_some_and(|terminal| terminal != "dumb"));
        let by_line = modes.is_none();
        // It waits for a person, whom nothing but the end of the program interrupts.
        std::thread::spawn(move || if by_line { send_lines(&sender) } else { send_bytes(&sender) });
        Self { pieces, editor: Editor::default(), started: Instant::now(), told: 0, language, modes }
    }

    /// True when a person sits in front of it.
    pub(super) const fn is_a_persons(&self) -> bool {
        self.modes.is_some()
    }

    /// Progress, for a person who sits in front of it.
    pub(super) fn tell(&self, words: &str) {
        if self.is_a_persons() {
            say_error(words);
        }
    }

    /// Another ten minutes.
    pub(super) fn start_again(&mut self) {
        (self.started, self.told) = (Instant::now(), 0);
    }

    /// What the person writes or pastes next, in several lines if it came so; none when nothing more will come. What
    /// `is_whole` in a paste needs no Enter behind it.
    pub(super) fn next(&mut self, is_whole: &dyn Fn(&str) -> bool) -> Result<Option<String>, Failure> {
        loop {
            let can_be_whole = self.editor.was_pasted || self.editor.has_line;
            let is_whole = can_be_whole && is_whole(&String::from_utf8_lossy(&self.editor.text));
            if self.editor.was_pasted && is_whole {
                self.show(b"\n");
                return Ok(Some(self.editor.take()));
            }
            // A script's lines are whole, however soon the next one comes.
            if self.editor.has_line && !self.is_a_persons() {
                return Ok(Some(self.editor.take()));
            }
            if self.editor.is_at_end {
                return Ok(None);
            }
            let reminder = REMINDERS.get(self.told).filter(|_| self.is_a_persons());
            let left = reminder.map(|(at, _)| at.saturating_sub(self.started.elapsed()));
            let silence = if is_whole { SILENCE_BEHIND_WHOLE } else { SILENCE };
            let wait = if self.editor.has_line { Some(silence) } else { left };
            let piece = match wait {
                None => self.pieces.recv().map_err(|_ended| RecvTimeoutError::Disconnected),
                Some(wait) => self.pieces.recv_timeout(wait),
            };
            match (piece, reminder) {
                (Ok(piece), _) => self.take_in(&piece.map_err(|error| Failure::of(&error.into()))?),
                (Err(_), _) if self.editor.has_line => return Ok(Some(self.editor.take())),
                (Err(RecvTimeoutError::Disconnected), _) => return Ok(None),
                (Err(RecvTimeoutError::Timeout), Some((_, Some(words)))) => {
                    self.tell(self.language.of(*words));
                    self.told += 1;
                }
                (Err(RecvTimeoutError::Timeout), _) => return Err(too_late(self.language)),
            }
        }
    }

    fn take_in(&mut self, piece: &[u8]) {
        if self.is_a_persons() {
            let echo = self.editor.feed(piece);
            self.show(&echo);
        } else {
            // A line, whole.
            self.editor = Editor { text: piece.to_vec(), has_line: true, ..Editor::default() };
        }
    }

    fn show(&self, bytes: &[u8]) {
        if self.is_a_persons() {
            show(bytes);
        }
    }
}

impl Modes {
    /// None when standard input is no terminal.
    fn set(marks_pastes: bool) -> Option<Self> {
        let before = stdin().is_terminal().then(|| tcgetattr(stdin()).ok())??;
        let mut ours = before.clone();
        ours.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        let are_ours = Arc::new(AtomicBool::new(true));
        watch_signals(before.clone(), ours.clone(), Arc::clone(&are_ours))?;

        tcsetattr(stdin(), OptionalActions::Drain, &ours).ok()?;
        if marks_pastes {
            show(MARK_PASTES.as_bytes());
        }
        Some(Self { before, are_ours })
    }
}

impl Drop for Modes {
    fn drop(&mut self) {
        self.are_ours.store(false, Ordering::Release);
        restore(&self.before);
    }
}

impl Editor {
    /// Takes in what came, and returns what is shown of it.
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut echo = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.key(*byte, &mut echo);
        }
        echo
    }

    fn key(&mut self, byte: u8, echo: &mut Vec<u8>) {
        if let Some(escape) = &mut self.escape {
            escape.push(byte);
            self.escape_goes_on();
            return;
        }
        match byte {
            0x1b => self.escape = Some(Vec::new()),
            b'\r' | b'\n' => {
                self.text.push(b'\n');
                self.has_line |= !self.is_in_paste;
                echo.push(b'\n');
            }
            // Backspace.
            0x08 | 0x7f => self.erase(echo),
            // Ctrl-U.
            0x15 => {
                let line = self.text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                self.text.truncate(line);
                echo.extend_from_slice(b"^U\n");
            }
            // Ctrl-D ends a line, and what has none.
            0x04 if self.text.is_empty() => self.is_at_end = true,
            0x04 => self.has_line = true,
            b'\t' | b' '.. if self.text.len() < LONGEST_TEXT => {
                self.text.push(byte);
                echo.push(byte);
            }
            _ => {}
        }
    }

    /// Keys that move and the like are passed over (ECMA-48, section 5.4).
    fn escape_goes_on(&mut self) {
        let escape = self.escape.as_deref().unwrap_or_default();
        let is_over = match escape {
            [b'[' | b'O'] => false,
            [b'[' | b'O', .., last] => (0x40..=0x7e).contains(last) || escape.len() > 32,
            _ => true,
        };
        if is_over {
            self.is_in_paste = escape == b"[200~" || self.is_in_paste && escape != b"[201~";
            self.was_pasted |= escape == b"[201~";
            self.escape = None;
        }
    }

    fn erase(&mut self, echo: &mut Vec<u8>) {
        let is_within = |byte: &u8| (0x80..0xc0).contains(byte);
        let before = self.text.len();
        while self.text.last().is_some_and(is_within) {
            self.text.pop();
        }
        if self.text.pop_if(|byte| *byte != b'\n').is_some() {
            // What takes three bytes or more is as wide as two letters, as a rule.
            let columns = if before - self.text.len() > 2 { 2 } else { 1 };
            (0..columns).for_each(|_| echo.extend_from_slice(b"\x08 \x08"));
        }
    }

    fn take(&mut self) -> String {
        let taken = std::mem::take(self);
        String::from_utf8_lossy(&taken.text).into_owned()
    }
}

fn send_lines(sender: &Sender<io::Result<Vec<u8>>>) {
    let mut lines = stdin().lock().split(b'\n');
    let _gone = lines.try_for_each(|line| sender.send(line));
}

fn send_bytes(sender: &Sender<io::Result<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    loop {
        let read = match stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            read => read.map(|length| buffer[..length].to_vec()),
        };
        let is_over = read.is_err();
        if sender.send(read).is_err() || is_over {
            return;
        }
    }
}

/// Writes to the terminal, wherever standard output goes.
fn show(bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(stdin(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                // Opened for reading only.
                let _shown = stderr().write_all(rest);
                return;
            }
        }
    }
}

fn restore(before: &Termios) {
    show(MARK_PASTES_NO_MORE.as_bytes());
    // A terminal that is gone needs no modes.
    let _restored = tcsetattr(stdin(), OptionalActions::Drain, before);
}

/// Restores the terminal before a signal ends the program, and sets it again after a stop, during which the shell has
/// its own modes. None when signals can't be watched.
fn watch_signals(before: Termios, ours: Termios, are_ours: Arc<AtomicBool>) -> Option<()> {
    let runtime = daemon::runtime().ok()?;
    let (ready, is_ready) = channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let ends =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
            let mut ends = ends.map(|kind| (kind, signal(kind)));
            let Ok(mut continued) = signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))
            else {
                return;
            };
            let [(_, Ok(interrupt)), (_, Ok(terminate)), (_, Ok(hangup)), (_, Ok(quit))] = &mut ends else {
                return;
            };
            let _waited_for = ready.send(());
            loop {
                let ended_by = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = hangup.recv() => SignalKind::hangup(),
                    _ = quit.recv() => SignalKind::quit(),
                    _ = continued.recv() => {
                        if are_ours.load(Ordering::Acquire) {
                            let _set = tcsetattr(stdin(), OptionalActions::Drain, &ours);
                        }
                        continue;
                    }
                };
                end(&before, ended_by);
            }
        });
    });
    is_ready.recv().ok()
}

#[expect(clippy::exit, reason = "the thread that waits for an answer can't be told to end")]
fn end(before: &Termios, by: SignalKind) {
    restore(before);
    std::process::exit(128 + by.as_raw_value());
}

fn too_late(language: Language) -> Failure {
    let [message, hint] = [
        ["the 10 minutes of this login are over", "这次登录的 10 分钟已过"],
        ["run the command again: it gives a new address", "请重新运行这个命令，它会给出新的地址"],
    ]
    .map(|words| language.of(words));
    Failure::new(Exit::Failed, message).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a person sees, and what is taken for written.
    fn typed(pieces: &[&str]) -> (String, Editor) {
        let mut editor = Editor::default();
        let echo: Vec<u8> = pieces.iter().flat_map(|piece| editor.feed(piece.as_bytes())).collect();
        (String::from_utf8(echo).unwrap(), editor)
    }

    #[test]
    fn what_is_typed_is_shown_and_can_be_erased() {
        for (pieces, shown, text) in [
            (&["yes\n"][..], "yes\n", "yes\n"),
            (&["yex\x7fs\r"], "yex\x08 \x08s\n", "yes\n"),
            (&["\x7f\x08a\x7f\x7f"], "a\x08 \x08", ""),
            (&["谢", "\x7f", "é\x7f", "b"], "谢\x08 \x08\x08 \x08é\x08 \x08b", "b"),
            (&["wrong\x15", "right"], "wrong^U\nright", "right"),
            (&["one\ntwo\x15\x7f3"], "one\ntwo^U\n3", "one\n3"),
            (&["a\x1b[Db\x1bOPc\x1b[1;5C\x1bd\x01\0"], "abc", "abc"),
        ] {
            let (echo, mut editor) = typed(pieces);
            assert_eq!((echo.as_str(), editor.take().as_str()), (shown, text), "{pieces:?}");
        }
    }

    #[test]
    fn a_paste_is_whole_with_its_lines() {
        let (echo, mut editor) = typed(&["\x1b[20", "0~one\rtwo\n", "three\x1b[201", "~"]);

        assert_eq!(echo, "one\ntwo\nthree");
        assert!(editor.was_pasted && !editor.has_line && !editor.is_in_paste);
        assert_eq!(editor.take(), "one\ntwo\nthree");
        let (_, editor) = typed(&["\x1b[200~one\n"]);
        assert!(editor.is_in_paste && !editor.was_pasted && !editor.has_line);
    }

    #[test]
    fn control_d_ends_what_is_written_or_says_that_nothing_comes() {
        let (_, editor) = typed(&["\x04"]);
        assert!(editor.is_at_end && !editor.has_line);
        let (_, editor) = typed(&["text\x04"]);
        assert!(!editor.is_at_end && editor.has_line);
    }

    #[test]
    fn a_text_without_end_is_not_kept() {
        let (_, editor) = typed(&[&"x".repeat(LONGEST_TEXT + 5)]);
        assert_eq!(editor.text.len(), LONGEST_TEXT);
    }
}
