//! What a keeper is asked and told, in the order of urgency. What says the same is one message, so that it costs the
//! same however many requests wait, and nobody who posts ever waits.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};

use super::{AskError, LoginOutcome};
use crate::oauth::callback::Code;
use crate::oauth::{Pending, Verified};

/// Where an answer is waited for.
pub(super) type Reply<T> = oneshot::Sender<Result<T, AskError>>;

/// A keeper's mailbox.
#[derive(Default)]
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    arrived: Notify,
}

#[derive(Default)]
struct Inbox {
    is_reconfigured: bool,
    logins: VecDeque<Ask>,
    refreshes: Vec<Reply<()>>,
    rejected: Option<u64>,
    accepted: Option<u64>,
    is_wanted: bool,
    is_closed: bool,
}

/// What a person does to a login.
pub(super) enum Ask {
    LogIn { login: Box<(Pending, Code, Verified)>, reply: Reply<LoginOutcome> },
    Confirm { id: String, yes: bool, reply: Reply<LoginOutcome> },
    LogOut { reply: Reply<Option<String>> },
}

/// What the keeper acts on.
pub(super) enum Message {
    /// There is another client of the authorization server.
    Reconfigured,
    /// A person logs in, confirms or logs out.
    Asked(Ask),
    /// Somebody waits for a refresh; [`Mailbox::take_refreshes`] has them.
    Refresh,
    /// The upstream answered 401 to the token with this serial number.
    Rejected(u64),
    /// The upstream takes the token with this serial number, after it had refused it or the one before.
    Accepted(u64),
    /// A request waits for a token.
    Wanted,
}

impl Mailbox {
    pub(super) fn ask(&self, ask: Ask) {
        self.post(|inbox| inbox.logins.push_back(ask));
    }

    pub(super) fn ask_for_a_refresh(&self, reply: Reply<()>) {
        self.post(|inbox| inbox.refreshes.push(reply));
    }

    pub(super) fn tell_reconfigured(&self) {
        self.post(|inbox| inbox.is_reconfigured = true);
    }

    pub(super) fn tell_rejected(&self, serial: u64) {
        self.post(|inbox| inbox.rejected = inbox.rejected.max(Some(serial)));
    }

    pub(super) fn tell_accepted(&self, serial: u64) {
        self.post(|inbox| inbox.accepted = inbox.accepted.max(Some(serial)));
    }

    pub(super) fn tell_wanted(&self) {
        self.post(|inbox| inbox.is_wanted = true);
    }

    /// The next message; cancelling the wait loses none.
    pub(super) async fn next(&self) -> Message {
        loop {
            let message = self.inbox().next();
            match message {
                Some(message) => return message,
                None => self.arrived.notified().await,
            }
        }
    }

    /// Nothing is acted on any more: all who wait are told so, and those who will.
    pub(super) fn close(&self) {
        *self.inbox() = Inbox { is_closed: true, ..Inbox::default() };
    }

    /// All who wait for a refresh, for the one answer to all of them.
    pub(super) fn take_refreshes(&self) -> Vec<Reply<()>> {
        let mut replies = std::mem::take(&mut self.inbox().refreshes);
        replies.retain(|reply| !reply.is_closed());
        replies
    }

    fn post(&self, post: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.inbox();
        if !inbox.is_closed {
            post(&mut inbox);
            drop(inbox);
            self.arrived.notify_one();
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no thread panics while it holds the mailbox")
    }
}

impl Inbox {
    /// Who has left is not refreshed for.
    fn next(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.is_reconfigured) {
            return Some(Message::Reconfigured);
        }
        if let Some(ask) = self.logins.pop_front() {
            return Some(Message::Asked(ask));
        }
        self.refreshes.retain(|reply| !reply.is_closed());
        if !self.refreshes.is_empty() {
            return Some(Message::Refresh);
        }
        let judged = self.accepted.take().map(Message::Accepted);
        let judged = judged.or_else(|| self.rejected.take().map(Message::Rejected));
        judged.or_else(|| std::mem::take(&mut self.is_wanted).then_some(Message::Wanted))
    }
}
