//! The one task that obtains, persists and publishes the tokens of an account: the walk of a token.
//!
//! ```text
//! store.reserve -> oauth -> store.commit -> ArcSwap.store -> answer all who wait
//! ```

mod login;
mod report;

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::mailbox::{Ask, Message};
use super::plan::{Plan, Verdict};
use super::{AskError, Confirmation, RefreshOutcome, SessionState, State, TokenSource};
use crate::config::{Grant, GrantType};
use crate::notify::{Event, Notifier, Text, with_causes};
use crate::oauth::{GrantError, Granted, Loss, Oauth};
use crate::store::{Binding, Changes, Record, Reservation, Saved, Store, StoreError};
use crate::token::{Lifetime, Moment, Token};
pub(super) use login::log_out_unconfigured;
pub(super) use report::first_status;

/// Nothing sleeps longer, so that suspend and clock jumps are noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long a login of somebody else waits for a yes.
const CONFIRM_WITHIN: Duration = Duration::from_secs(600);
/// To a refresh of a token that is none.
const NOT_REFRESHED: &str = "a personal access token is not refreshed";
/// How often a store that refuses is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// How long a person waits for another replica that works on the same login.
const OTHER_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Keeper {
    shared: Arc<SessionState>,
    store: Store,
    changes: Changes,
    record: Option<Record>,
    /// Room for a record that is in use and not on disk yet.
    unsaved: Option<Reservation>,
    /// Logins that `record` replaces, to be revoked when it is on disk.
    replaced: Vec<Record>,
    awaiting: Option<Awaiting>,
    plan: Plan,
    /// From 0 to 1; spreads the refreshes of many accounts.
    jitter: f64,
    random: fastrand::Rng,
    is_in_doubt: bool,
    is_refreshing: bool,
    /// Another process refreshes the login.
    is_elsewhere: bool,
    /// The store was not read yet.
    is_unknown: bool,
    /// The API takes the token in use no more, and no refresh replaces it.
    is_dead: bool,
    /// The API refuses fresh tokens as well, and a person was told.
    is_incurable: bool,
    /// The serial number of the token in use.
    serial: u64,
    journal: Journal,
}

/// A login of somebody else than the stored one.
struct Awaiting {
    confirmation: Confirmation,
    since: Moment,
    record: Record,
    remarks: Vec<String>,
}

impl Awaiting {
    /// Nobody can say yes to it any more.
    fn is_over(&self, now: Moment) -> bool {
        now.since(self.since) >= CONFIRM_WITHIN
    }
}

/// What the wake-up was for.
enum Wake {
    Stop,
    Message(Message),
    Change,
    Time,
}

impl Keeper {
    /// Loads and publishes what is stored, so that the session serves at once.
    pub(super) fn new(
        shared: Arc<SessionState>,
        store: Store,
        is_in_flight: bool,
        notifier: Notifier,
        mut random: fastrand::Rng,
    ) -> Self {
        let journal = Journal::new(shared.account.clone(), shared.clock.clone(), notifier);
        let changes = store.changes();
        let mut keeper = Self {
            shared,
            store,
            changes,
            record: None,
            unsaved: None,
            replaced: Vec::new(),
            awaiting: None,
            plan: Plan::default(),
            jitter: random.f64(),
            random,
            is_in_doubt: is_in_flight,
            is_refreshing: false,
            is_elsewhere: false,
            is_unknown: false,
            is_dead: false,
            is_incurable: false,
            serial: 0,
            journal,
        };
        keeper.load();
        keeper.tell_of_unknown();
        keeper.refresh_status();
        keeper
    }

    /// Runs until `stop`; what has begun is finished first.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        loop {
            shared.heartbeat.beat();
            if !stop.is_cancelled() && self.until_refresh().is_some_and(|wait| wait.is_zero()) {
                // Its outcome is published and, when it failed, planned for.
                let _outcome = self.refresh().await;
                continue;
            }
            let until_next = self.until_next();
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => Wake::Stop,
                message = shared.mailbox.next() => Wake::Message(message),
                () = self.changes.next() => Wake::Change,
                () = tokio::time::sleep(until_next) => Wake::Time,
            };
            match wake {
                Wake::Stop => return self.end().await,
                Wake::Message(message) => self.act_on(message).await,
                Wake::Change | Wake::Time => {}
            }
            self.on_time().await;
        }
    }

    /// What must not be left behind.
    async fn end(&mut self) {
        self.save_if_needed().await;
        self.drop_awaiting().await;
    }

    /// Publishes the stored login of this application, or the personal access token.
    fn load(&mut self) {
        let source = self.source();
        let token = if let Grant::PersonalAccessToken { expires_at_ms } = source.account.grant {
            let now = self.now();
            let lifetime =
                expires_at_ms.map_or_else(|| Lifetime::endless(now), |at_ms| Lifetime::until(at_ms, now));
            Some((source.account.secret.value.clone(), lifetime))
        } else {
            self.record = self.stored();
            self.record.as_ref().map(|record| (record.access_token.clone(), self.lifetime_of(record)))
        };
        if let Some((access_token, lifetime)) = token {
            self.publish_token(&access_token, lifetime);
        }
    }

    /// The stored login of the client, the grant and the server that are configured.
    fn stored(&self) -> Option<Record> {
        self.store.record(&self.shared.account, &self.binding()?)
    }

    /// Counted from the receipt of the answer, in this process or an earlier one.
    fn lifetime_of(&self, record: &Record) -> Lifetime {
        let expires_in = Duration::from_secs(record.expires_in_secs);
        let refresh_at = self.source().account.client().map_or(1.0, |client| client.refresh_at);
        Lifetime::restored(record.obtained_at_ms, expires_in, refresh_at, self.now())
    }

    fn publish_token(&mut self, access_token: &SecretString, lifetime: Lifetime) {
        self.serial += 1;
        self.is_dead = false;
        match Token::new(self.serial, access_token, self.grant() == GrantType::PersonalAccessToken, lifetime)
        {
            Ok(token) if self.has_last_token() => {
                self.shared.current.store(Some(Arc::new(token.without_successor())));
            }
            Ok(token) => self.shared.current.store(Some(Arc::new(token))),
            Err(error) => tracing::error!(account = self.shared.account, %error, "the token can't be used"),
        }
        self.jitter = self.random.f64();
    }

    async fn act_on(&mut self, message: Message) {
        match message {
            Message::Reconfigured => self.reconfigured(),
            Message::Asked(Ask::LogIn { login, reply }) => {
                let (pending, code, verified) = *login;
                let outcome = self.log_in(&pending, &code, verified).await;
                let _listening = reply.send(outcome);
            }
            Message::Asked(Ask::Confirm { id, yes, reply }) => {
                let outcome = self.confirm(&id, yes).await;
                let _listening = reply.send(outcome);
            }
            Message::Asked(Ask::LogOut { reply }) => {
                let outcome = self.log_out().await;
                let _listening = reply.send(outcome);
            }
            Message::Refresh => {
                let outcome = self.refresh_for_a_person().await;
                self.answer_refreshes(&outcome);
            }
            Message::Rejected(serial) => self.rejected(serial).await,
            Message::Accepted(serial) => self.accepted(serial),
            // What there is to do about it is done at every wake-up.
            Message::Wanted => {}
        }
    }

    async fn on_time(&mut self) {
        self.save_if_needed().await;
        self.look_at_changes();
        if self.awaiting.as_ref().is_some_and(|awaiting| awaiting.is_over(self.now())) {
            self.drop_awaiting().await;
        }
        self.refresh_status();
    }

    /// One 401 is one ask: it causes a refresh or is turned down, and those who wait for it are told.
    async fn rejected(&mut self, serial: u64) {
        let is_current = serial == self.serial;
        if is_current && self.has_last_token() {
            self.is_dead = true;
        } else if is_current && self.may_present() {
            match self.plan.judge_rejection(serial, self.now()) {
                Verdict::Refresh => return self.refresh_rejected().await,
                Verdict::Incurable => self.tell_incurable(),
                Verdict::TooEarly => {}
            }
        }
        self.turn_down();
    }

    async fn refresh_rejected(&mut self) {
        tracing::info!(account = self.shared.account, "the upstream refused the token: refreshing it");
        if self.refresh().await.is_ok() {
            self.plan.rejection_brought(self.serial);
        }
    }

    fn accepted(&mut self, serial: u64) {
        if serial == self.serial {
            self.plan.rejection_cured();
            self.is_incurable = false;
            self.is_dead = false;
        }
    }

    fn tell_incurable(&mut self) {
        if !std::mem::replace(&mut self.is_incurable, true) {
            let message = Text::from(
                "the API answers 401 to a fresh token as well, so no refresh helps: is this token for that host, and \
                 the route's account the right one?",
            );
            self.journal.note(Event::RefreshFailing, message);
        }
    }

    async fn refresh_for_a_person(&mut self) -> Result<(), AskError> {
        if self.grant() == GrantType::PersonalAccessToken {
            return Err(AskError::Failed(NOT_REFRESHED.to_owned()));
        }
        if !self.may_present() {
            return Err(AskError::LoginRequired(
                "there is nothing to refresh: a login is required".to_owned(),
            ));
        }
        let wait = self.plan.until_answered(self.now());
        if !wait.is_zero() {
            return Err(AskError::Failed(format!(
                "the authorization server may still work on the last refresh, so nothing is sent for {} s",
                wait.as_secs() + 1
            )));
        }
        self.plan.forgive();
        let serial = self.serial;
        let outcome = self.refresh().await;
        match self.is_elsewhere && self.is_free_in_time().await {
            true if self.serial != serial => Ok(()),
            true => self.refresh().await,
            false => outcome,
        }
    }

    /// Reserve, spend, commit, publish; one outcome for all who asked meanwhile.
    async fn refresh(&mut self) -> Result<(), AskError> {
        self.is_refreshing = true;
        self.publish();
        let outcome = self.try_refresh().await;
        self.is_refreshing = false;
        self.refresh_status();
        if self.is_elsewhere {
            // Those who wait for a token wait for that of the other process.
            return outcome.map_err(AskError::NotBegun);
        }
        let outcome = outcome.map_err(|message| match self.state() {
            State::LoginRequired => AskError::LoginRequired(message),
            _ => AskError::Failed(message),
        });
        self.answer_refreshes(&outcome);
        self.finish_try();
        outcome
    }

    fn answer_refreshes(&self, outcome: &Result<(), AskError>) {
        for reply in self.shared.mailbox.take_refreshes() {
            let _listening = reply.send(outcome.clone());
        }
    }

    async fn try_refresh(&mut self) -> Result<(), String> {
        let reservation = match self.reserve().await {
            Ok(reservation) => Some(reservation),
            // Nothing is spent and nothing can be lost.
            Err(_) if self.grant() == GrantType::ClientCredentials && !self.is_elsewhere => None,
            Err(message) => return Err(message),
        };
        if self.unsaved.is_none() && self.is_superseded() {
            self.adopt();
            if let Some(reservation) = reservation {
                self.give_back(reservation).await;
            }
            return Ok(());
        }
        let reservation = self.mark_last_try(reservation).await?;
        self.is_in_doubt |= reservation.as_ref().is_some_and(Reservation::is_in_doubt);
        let serial = self.serial;

        let mut outcome = self.spend(reservation.as_ref()).await;
        if let Err(GrantError::InDoubt { reason, loss }) = &outcome {
            tracing::warn!(account = self.shared.account, reason, "the answer to a refresh was lost");
            self.is_in_doubt = true;
            if *loss == Loss::Broken {
                outcome = self.spend(reservation.as_ref()).await;
            }
        }
        match outcome {
            Ok(granted) => {
                let record = self.renewed(&granted);
                // Nothing, be it a line in the log, comes between the answer and its saving.
                self.keep_login(reservation, record).await;
                self.journal.note_refresh(RefreshOutcome::Ok, None);
                Ok(())
            }
            Err(error) => {
                let message = error.to_string();
                if let Some(reservation) = self.failed(reservation, error).await {
                    self.give_back(reservation).await;
                }
                // What the server says to a token that another process has replaced means nothing.
                if self.serial == serial { Err(message) } else { Ok(()) }
            }
        }
    }

    /// A refused refresh token is shown once more only: that is on disk before it is.
    async fn mark_last_try(
        &mut self,
        reservation: Option<Reservation>,
    ) -> Result<Option<Reservation>, String> {
        match &mut self.record {
            Some(record) if record.is_refused => record.is_retried = true,
            _ => return Ok(reservation),
        }
        self.unsaved = reservation;
        let reserved = self.reserve().await;
        if reserved.is_err() {
            self.forget_last_try();
        }
        reserved.map(Some)
    }

    /// It did not reach the server.
    fn forget_last_try(&mut self) {
        if let Some(record) = &mut self.record {
            record.is_retried = false;
        }
    }

    async fn spend(&mut self, reservation: Option<&Reservation>) -> Result<Granted, GrantError> {
        self.plan.sending(self.now());
        let source = self.source();
        let Some(oauth) = &source.oauth else { return Err(GrantError::unsent(NOT_REFRESHED)) };
        if !reservation.is_none_or(|reservation| reservation.covers_a_request(oauth.timeout(), self.now())) {
            return Err(GrantError::unsent("another process may soon take this refresh over"));
        }
        let subject = self.record.as_ref().and_then(|record| record.subject.as_deref());
        let refresh_token = self.record.as_ref().and_then(|record| record.refresh_token.as_ref());
        match refresh_token {
            Some(refresh_token) if self.grant() == GrantType::AuthorizationCode => {
                self.held(oauth.refresh(refresh_token, subject)).await
            }
            // Some servers send a refresh token with it, against RFC 6749, section 4.4.3: it is not needed.
            _ => self.held(oauth.client_credentials()).await,
        }
    }

    /// Plans what follows from a failure; gives the room back when nothing is kept in it.
    async fn failed(
        &mut self,
        mut reservation: Option<Reservation>,
        error: GrantError,
    ) -> Option<Reservation> {
        let (outcome, retry_after) = match &error {
            GrantError::Refused { .. } | GrantError::Misconfigured { .. } => (RefreshOutcome::Refused, None),
            GrantError::Unavailable { retry_after, .. } | GrantError::NotGranted { retry_after, .. } => {
                (RefreshOutcome::Unavailable, *retry_after)
            }
            GrantError::InDoubt { .. } => (RefreshOutcome::InDoubt, None),
        };
        self.journal.note_refresh(outcome, Some(error.to_string()));
        if matches!(error, GrantError::Unavailable { was_sent: false, .. }) {
            self.plan.was_not_sent();
            self.forget_last_try();
        }
        let remaining =
            self.lifetime().and_then(|lifetime| lifetime.remaining(self.now())).unwrap_or_default();
        let timeout = self.source().oauth.as_ref().map_or(Duration::ZERO, Oauth::timeout);
        let jitter = self.random.f64();
        self.plan.failed(&error, remaining, timeout, jitter, self.now());

        match &error {
            GrantError::NotGranted { successor: Some(successor), .. } => {
                self.keep_successor(reservation.take(), successor.clone()).await;
            }
            GrantError::Refused { .. } => {
                self.refused(reservation).await;
                return None;
            }
            GrantError::Misconfigured { .. } => {
                self.journal.raise(Event::RefreshFailing, || {
                    Text::default().value(&error).words(": check client_id and client secret")
                });
            }
            _ => {}
        }
        if self.plan.should_tell(retry_after, remaining, self.now()) {
            self.journal.raise(Event::RefreshFailing, || {
                let message = Text::from("refreshing fails: ").value(&error);
                match retry_after {
                    Some(asked) => message
                        .words(", and asks not to be tried again for ")
                        .value(asked.as_secs())
                        .words(" s"),
                    None => message,
                }
            });
        }
        reservation
    }

    /// The server has replaced the refresh token, whatever else is wrong with its answer: the one presented is
    /// spent, and its successor is kept with the access token in use.
    async fn keep_successor(&mut self, reservation: Option<Reservation>, successor: SecretString) {
        if let Some(record) = &mut self.record {
            record.refresh_token = Some(successor);
            record.is_refused = false;
            record.is_retried = false;
            self.is_in_doubt = false;
            self.unsaved = reservation;
            self.save_if_needed().await;
        }
    }

    /// The refresh token is dead, by the server's word. It is marked, not deleted: while the access token serves it is
    /// shown once more, since servers err, unless it was shown twice already.
    async fn refused(&mut self, reservation: Option<Reservation>) {
        let was_lost = std::mem::take(&mut self.is_in_doubt);
        if let (Some(record), Some(reservation)) = (&mut self.record, reservation) {
            record.is_retried |= record.is_refused || was_lost;
            record.is_refused = true;
            self.unsaved = Some(reservation);
            if self.save_if_needed().await == Some(Saved::Superseded) {
                return;
            }
        }
        if was_lost {
            self.journal.raise(Event::RotationInDoubt, || {
                Text::from(
                    "the answer to a refresh was lost and the refresh token with it: a new login is needed",
                )
            });
        }
    }

    /// The login with what a refresh brought.
    fn renewed(&self, granted: &Granted) -> Record {
        let fresh = self.begun(granted);
        let Some(old) = &self.record else { return fresh };
        Record {
            refresh_token: fresh.refresh_token.or_else(|| old.refresh_token.clone()),
            login_at_ms: old.login_at_ms,
            subject: old.subject.clone(),
            issuer: old.issuer.clone(),
            person: old.person.clone(),
            ..fresh
        }
    }

    /// A login that begins with this grant, of nobody in particular yet.
    fn begun(&self, granted: &Granted) -> Record {
        Record {
            binding: self.binding().expect("a grant is a client's"),
            access_token: granted.access_token.clone(),
            obtained_at_ms: granted.received.wall_ms(),
            expires_in_secs: granted.expires_in.as_secs(),
            refresh_token: granted.refresh_token.clone(),
            is_refused: false,
            is_retried: false,
            login_at_ms: granted.received.wall_ms(),
            subject: None,
            issuer: None,
            person: None,
        }
    }

    /// Takes room for what comes next. What is still to be saved goes first: its room is never given to
    /// something that may fail, and the store is never compared with a login that it has not seen.
    async fn reserve(&mut self) -> Result<Reservation, String> {
        self.save_if_needed().await;
        self.not_elsewhere();
        if self.unsaved.is_some() {
            return Err("the login before can't be saved, so nothing new is begun".to_owned());
        }
        // Nothing is spent yet: a keeper that a disk holds up here may be taken for stuck.
        let reserved = self.store.reserve(&self.shared.account).await;
        let is_claimed = matches!(reserved, Err(StoreError::Claimed { .. }));
        if self.grant() == GrantType::ClientCredentials && !is_claimed {
            // Its token can be had again at any time, and needs no disk.
            return reserved.map_err(|error| with_causes(&error));
        }
        match reserved {
            Ok(reservation) => {
                self.store_works(Text::from("the login can be saved again"));
                Ok(reservation)
            }
            Err(StoreError::Claimed { replica, left }) => {
                self.plan.postpone(left, self.now());
                self.is_elsewhere = true;
                self.store.await_change(&self.shared.account, true);
                Err(format!("{replica} refreshes this login at the moment"))
            }
            Err(error) => {
                self.plan.postpone(STORE_RETRY, self.now());
                let message =
                    Text::from("the login can't be saved, so nothing is spent: ").value(with_causes(&error));
                self.journal.raise(Event::StoreFailing, || message.clone());
                Err(message.to_string())
            }
        }
    }

    /// Makes a login durable, then uses it. When it can't be made durable it is used all the same, since the
    /// one before it is spent, and saving is tried again and again.
    async fn keep_login(&mut self, reservation: Option<Reservation>, record: Record) -> Option<Saved> {
        let lifetime = self.lifetime_of(&record);
        let access_token = record.access_token.clone();
        let is_first = self.record.replace(record).is_none();
        // Without room of its own it takes the place of what is still to be saved, if there is something.
        self.unsaved = reservation.or_else(|| self.unsaved.take());
        let saved = self.save_if_needed().await;
        if saved == Some(Saved::Superseded) {
            return saved;
        }
        self.publish_token(&access_token, lifetime);
        self.is_well_again(is_first);
        saved
    }

    /// There is a token, and nothing is in doubt.
    fn is_well_again(&mut self, is_first: bool) {
        self.is_in_doubt = false;
        let was_told = self.plan.succeeded();
        let was_failing = self.journal.clear(Event::RefreshFailing);
        let was_required = self.journal.clear(Event::LoginRequired);
        self.journal.clear(Event::RotationInDoubt);
        if was_told || was_failing || was_required {
            let message = match is_first {
                true => Text::from("there is a fresh token"),
                false => Text::from("there is a fresh token again"),
            };
            self.journal.note(Event::Recovered, message);
        }
    }

    /// Saves what is not saved yet. What another process has put in its place meanwhile is used instead of it.
    async fn save_if_needed(&mut self) -> Option<Saved> {
        let (Some(reservation), Some(record)) = (self.unsaved.take(), &self.record) else {
            return None;
        };
        match self.held(self.store.commit(reservation, &self.shared.account, record)).await {
            Ok(saved) => {
                self.store_works(Text::from("the login is saved again"));
                self.revoke_replaced().await;
                if saved == Saved::Superseded {
                    self.give_way().await;
                }
                return Some(saved);
            }
            Err((reservation, error)) if self.grant() == GrantType::ClientCredentials => {
                tracing::warn!(
                    account = self.shared.account,
                    error = with_causes(&error),
                    "a token is not saved"
                );
                self.held(self.store.give_up(reservation)).await;
            }
            Err((reservation, error)) => {
                self.unsaved = Some(reservation);
                self.journal.raise(Event::StoreFailing, || {
                    Text::from("the new login is in use but can't be saved, and a restart would lose it: ")
                        .value(with_causes(&error))
                });
            }
        }
        None
    }

    /// Another process was first. Where that logged out, what is not saved is worth nothing any more.
    async fn give_way(&mut self) {
        let ours = self.record.take();
        self.adopt();
        if let (None, Some(ours)) = (&self.record, ours) {
            self.drop_login(&ours).await;
        }
    }

    /// Uses what another process has stored, be it a login or none.
    fn adopt(&mut self) {
        tracing::info!(account = self.shared.account, "takes over what another process did to this login");
        let is_first = self.record.is_none();
        self.not_elsewhere();
        self.load();
        match &self.record {
            Some(record) if record.is_refused => {}
            Some(_) => self.is_well_again(is_first),
            None => {
                self.shared.current.store(None);
                self.plan = Plan::default();
                self.is_in_doubt = false;
            }
        }
    }

    /// What other processes did meanwhile. A login that is not saved yet is compared when it is saved.
    fn look_at_changes(&mut self) {
        if !self.is_shared() || self.grant() == GrantType::PersonalAccessToken {
            return;
        }
        self.tell_of_unknown();
        if self.is_elsewhere && !self.store.is_claimed(&self.shared.account) {
            // Nobody has it now: whoever had it failed, or what it brought is taken over below.
            self.not_elsewhere();
            self.plan.postpone(Duration::from_secs(1).mul_f64(self.random.f64()), self.now());
        }
        let stored = self.stored();
        let differs = match (&stored, &self.record) {
            (Some(stored), Some(ours)) => !stored.is_same(ours),
            (Some(_), None) => true,
            (None, Some(_)) => self.grant() == GrantType::AuthorizationCode,
            (None, None) => false,
        };
        if differs && self.unsaved.is_none() {
            self.adopt();
            self.refresh_status();
            self.finish_try();
        }
    }

    fn not_elsewhere(&mut self) {
        self.is_elsewhere = false;
        self.store.await_change(&self.shared.account, false);
    }

    /// Waits for another process that works on the login. True when it does not any more.
    async fn is_free_in_time(&mut self) -> bool {
        let _late = tokio::time::timeout(OTHER_WITHIN, async {
            while self.is_elsewhere {
                self.changes.next().await;
                self.look_at_changes();
            }
        })
        .await;
        !self.is_elsewhere
    }

    /// Takes room for what a person wants, after another process that works on the same login.
    async fn reserve_for_a_person(&mut self) -> Result<Reservation, String> {
        match self.reserve().await {
            Err(_) if self.is_elsewhere && self.is_free_in_time().await => self.reserve().await,
            reserved => reserved,
        }
    }

    /// A store that was never read says nothing of a login.
    fn tell_of_unknown(&mut self) {
        if self.grant() != GrantType::AuthorizationCode {
            return;
        }
        let why = self.store.why_unknown();
        let was_unknown = std::mem::replace(&mut self.is_unknown, why.is_some());
        match why {
            Some(why) => self.journal.raise(Event::StoreFailing, || {
                Text::from("it is not known yet whether there is a login: ").value(&why)
            }),
            None if was_unknown => self.store_works(Text::from("the login can be read")),
            None => {}
        }
    }

    fn store_works(&mut self, message: Text) {
        if self.journal.clear(Event::StoreFailing) {
            self.journal.note(Event::Recovered, message);
        }
    }

    /// True when another process changed the stored login under us.
    fn is_superseded(&self) -> bool {
        let secret =
            |record: &Record| record.refresh_token.as_ref().map(|token| token.expose_secret().to_owned());
        match (&self.stored(), &self.record) {
            (Some(stored), Some(ours)) if self.is_shared() => !stored.is_same(ours),
            (Some(stored), Some(ours)) => secret(stored) != secret(ours),
            // Somebody has logged out.
            (None, Some(_)) => self.is_shared() && self.grant() == GrantType::AuthorizationCode,
            _ => false,
        }
    }

    /// True when other processes use the same login.
    fn is_shared(&self) -> bool {
        self.store.database().is_some()
    }

    /// How long until a refresh is to be tried; none when there is nothing to be tried.
    fn until_refresh(&self) -> Option<Duration> {
        let lifetime = self.lifetime();
        if self.unsaved.is_some() {
            return None;
        }
        if self.may_present() {
            let in_doubt_at_start = self.is_in_doubt && self.journal.has_no_refresh();
            return Some(if in_doubt_at_start {
                self.plan.until_allowed(self.now())
            } else {
                self.plan.until_refresh(lifetime.as_ref(), self.jitter, self.now())
            });
        }
        let may_try_once_more =
            self.record.as_ref().is_some_and(|record| record.is_refused && !record.is_retried);
        lifetime
            .filter(|_| may_try_once_more)
            .and_then(|lifetime| self.plan.until_last_try(&lifetime, self.now()))
    }

    fn until_next(&self) -> Duration {
        if self.unsaved.is_some() {
            return STORE_RETRY;
        }
        self.until_refresh().unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    /// True when there is something to present that the server has not refused.
    fn may_present(&self) -> bool {
        match self.grant() {
            GrantType::PersonalAccessToken => false,
            GrantType::ClientCredentials => true,
            GrantType::AuthorizationCode => self
                .record
                .as_ref()
                .is_some_and(|record| record.refresh_token.is_some() && !record.is_refused),
        }
    }

    /// True when no refresh brings another token: for a personal access token, and a login without a refresh token.
    fn has_last_token(&self) -> bool {
        match self.grant() {
            GrantType::PersonalAccessToken => true,
            GrantType::ClientCredentials => false,
            GrantType::AuthorizationCode => {
                self.record.as_ref().is_some_and(|record| record.refresh_token.is_none())
            }
        }
    }

    fn now(&self) -> Moment {
        self.shared.clock.now()
    }

    fn lifetime(&self) -> Option<Lifetime> {
        self.shared.current.load().as_ref().map(|token| *token.lifetime())
    }

    fn source(&self) -> Arc<TokenSource> {
        self.shared.source.load_full()
    }

    fn grant(&self) -> GrantType {
        self.source().account.grant_type()
    }

    /// What logins belong to that are obtained now; none for a personal access token.
    fn binding(&self) -> Option<Binding> {
        let source = self.source();
        source.account.client().map(|client| Binding::of(client, source.account.grant_type()))
    }

    /// Gives room back that nothing is kept in.
    pub(super) async fn give_back(&self, reservation: Reservation) {
        self.held(self.store.give_back(reservation, self.is_in_doubt)).await;
    }

    /// Waits for the server or the disk. They may take their time, which is no reason to take this task for stuck: it
    /// may hold what is nowhere else.
    async fn held<T>(&self, work: impl Future<Output = T>) -> T {
        self.shared.heartbeat.hold();
        let done = work.await;
        self.shared.heartbeat.beat();
        done
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.mailbox.close();
    }
}
