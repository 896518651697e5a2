//! What happened to an account: refreshes and events, the last few and how many, and what a person was told of.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::{Refresh, RefreshOutcome};
use crate::notify::{Event, Notice, Notifier, Text};
use crate::token::{At, Clock};

/// How many events the status shows.
const EVENTS_KEPT: usize = 20;
/// How many refreshes the status shows.
const REFRESHES_KEPT: usize = 10;

/// What happened to an account since the start.
#[derive(Debug)]
pub(super) struct Journal {
    account: String,
    clock: Clock,
    notifier: Notifier,
    refreshes: VecDeque<Refresh>,
    events: VecDeque<Notice>,
    refresh_counts: BTreeMap<RefreshOutcome, u64>,
    event_counts: BTreeMap<Event, u64>,
    /// Raised and not cleared.
    raised: HashSet<Event>,
}

impl Journal {
    pub(super) fn new(account: String, clock: Clock, notifier: Notifier) -> Self {
        Self {
            account,
            clock,
            notifier,
            refreshes: VecDeque::new(),
            events: VecDeque::new(),
            refresh_counts: BTreeMap::new(),
            event_counts: BTreeMap::new(),
            raised: HashSet::new(),
        }
    }

    /// Tells a person of an event, once until it is cleared.
    pub(super) fn raise(&mut self, event: Event, message: impl FnOnce() -> Text) {
        if self.raised.insert(event) {
            self.note(event, message());
        }
    }

    /// The event is over; true when it was raised.
    pub(super) fn clear(&mut self, event: Event) -> bool {
        self.raised.remove(&event)
    }

    /// True when the event was raised and is not over.
    pub(super) fn is_raised(&self, event: Event) -> bool {
        self.raised.contains(&event)
    }

    /// Tells a person of an event.
    pub(super) fn note(&mut self, event: Event, message: Text) {
        *self.event_counts.entry(event).or_default() += 1;
        let at = At(self.clock.now().wall_ms());
        self.events.push_back(self.notifier.emit(at, event, &self.account, message));
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    /// A refresh is over.
    pub(super) fn note_refresh(&mut self, outcome: RefreshOutcome, error: Option<String>) {
        match &error {
            None => tracing::info!(account = self.account, "refreshed the token"),
            Some(reason) => tracing::warn!(account = self.account, ?outcome, reason, "the refresh failed"),
        }
        *self.refresh_counts.entry(outcome).or_default() += 1;
        self.refreshes.push_back(Refresh { at: At(self.clock.now().wall_ms()), outcome, error });
        if self.refreshes.len() > REFRESHES_KEPT {
            self.refreshes.pop_front();
        }
    }

    /// True before the first refresh of this process.
    pub(super) fn has_no_refresh(&self) -> bool {
        self.refreshes.is_empty()
    }

    /// The last refreshes, the newest last.
    pub(super) fn refreshes(&self) -> &VecDeque<Refresh> {
        &self.refreshes
    }

    /// The last events, the newest last.
    pub(super) fn events(&self) -> &VecDeque<Notice> {
        &self.events
    }

    /// How many refreshes ended how.
    pub(super) fn refresh_counts(&self) -> &BTreeMap<RefreshOutcome, u64> {
        &self.refresh_counts
    }

    /// How many events there were.
    pub(super) fn event_counts(&self) -> &BTreeMap<Event, u64> {
        &self.event_counts
    }
}
