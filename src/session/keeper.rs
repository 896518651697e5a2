//! The one task that obtains, persists and publishes the tokens of an account: the walk of a token.
//!
//! ```text
//! store.reserve -> oauth -> store.commit -> ArcSwap.store -> answer all who wait
//! ```

mod login;
mod report;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::{Ask, AskError, Confirmation, Refresh, RefreshOutcome, Shared, State, Status};
use crate::config::{Account, Grant};
use crate::notify::{Event, Notifier, with_causes};
use crate::oauth::{GrantError, Granted, Oauth};
use crate::store::{Record, Reservation, Store};
use crate::token::{Lifetime, Moment, Token, now};

/// Nothing sleeps longer, so that suspend and clock jumps are noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long a login of somebody else waits for a yes.
const CONFIRM_WITHIN: Duration = Duration::from_secs(600);
/// How often a store that refuses is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    oauth: Arc<Oauth>,
    store: Arc<Store>,
    notifier: Notifier,
    record: Option<Record>,
    unsaved: Option<Reservation>,
    awaiting: Option<Awaiting>,
    plan: Plan,
    jitter: f64,
    is_in_doubt: bool,
    is_refreshing: bool,
    is_misconfigured: bool,
    serial: u64,
    refreshes: VecDeque<Refresh>,
    events: VecDeque<crate::notify::Notice>,
    refresh_counts: BTreeMap<RefreshOutcome, u64>,
    event_counts: BTreeMap<Event, u64>,
    told: HashSet<Event>,
}

/// A login of somebody else than the stored one.
struct Awaiting {
    confirmation: Confirmation,
    since: Moment,
    record: Record,
    remarks: Vec<String>,
}

/// What the wake-up was for.
enum Wake {
    Stop,
    Asked(Ask),
    Time,
}

/// Before the keeper's first look at the store.
pub(super) fn first_status(account: &Account) -> Status {
    Status {
        grant: account.grant.as_str(),
        state: State::Refreshing,
        person: None,
        obtained_at: None,
        expires_at: None,
        next_refresh_at: None,
        login_expires_at: None,
        last_refresh: None,
        refreshes: VecDeque::new(),
        events: VecDeque::new(),
        refresh_counts: BTreeMap::new(),
        event_counts: BTreeMap::new(),
    }
}

impl Keeper {
    /// Loads and publishes what is stored, so that the session serves at once.
    pub(super) fn new(
        shared: Arc<Shared>,
        oauth: Arc<Oauth>,
        store: Arc<Store>,
        is_in_flight: bool,
        notifier: Notifier,
    ) -> Self {
        let mut keeper = Self {
            shared,
            oauth,
            store,
            notifier,
            record: None,
            unsaved: None,
            awaiting: None,
            plan: Plan::default(),
            jitter: dice(),
            is_in_doubt: is_in_flight,
            is_refreshing: false,
            is_misconfigured: false,
            serial: 0,
            refreshes: VecDeque::new(),
            events: VecDeque::new(),
            refresh_counts: BTreeMap::new(),
            event_counts: BTreeMap::new(),
            told: HashSet::new(),
        };
        keeper.load();
        keeper.look_around();
        keeper
    }

    /// Runs until `stop`; what has begun is finished first.
    pub(super) async fn keep(mut self, mut asked: mpsc::Receiver<Ask>, stop: CancellationToken) {
        loop {
            self.shared.pulse.beat();
            if !stop.is_cancelled() && self.should_refresh() {
                // Its outcome is published and, when it failed, planned for.
                let _outcome = self.refresh().await;
                continue;
            }
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => Wake::Stop,
                Some(ask) = asked.recv() => Wake::Asked(ask),
                () = self.shared.poke.notified() => Wake::Time,
                () = tokio::time::sleep(self.until_next()) => Wake::Time,
            };
            match wake {
                Wake::Stop => return self.end().await,
                Wake::Asked(ask) => self.obey(ask).await,
                Wake::Time => self.on_time().await,
            }
        }
    }

    /// What must not be left behind.
    async fn end(&mut self) {
        self.save_if_needed().await;
        self.drop_awaiting().await;
    }

    /// Publishes the stored login of this application, or the personal access token.
    fn load(&mut self) {
        let account = self.oauth.account();
        let lifetime = if account.grant == Grant::PersonalAccessToken {
            Some((account.secret.value.clone(), Lifetime::endless(now())))
        } else {
            self.record =
                self.store.record(&account.name).filter(|record| record.client_id == account.client_id);
            self.record.as_ref().map(|record| (record.access_token.clone(), self.lifetime_of(record)))
        };
        let Some((access_token, lifetime)) = lifetime else { return };
        self.publish_token(&access_token, lifetime);
    }

    /// Counted from the receipt of the answer, in this process or an earlier one.
    fn lifetime_of(&self, record: &Record) -> Lifetime {
        let expires_in = Duration::from_secs(record.expires_in_secs);
        Lifetime::restored(record.obtained_at_ms, expires_in, self.oauth.account().refresh_at, now())
    }

    fn publish_token(&mut self, access_token: &SecretString, lifetime: Lifetime) {
        self.serial += 1;
        let is_personal = self.oauth.account().grant == Grant::PersonalAccessToken;
        match Token::new(self.serial, access_token, is_personal, lifetime) {
            Ok(token) => self.shared.current.store(Some(Arc::new(token))),
            Err(error) => tracing::error!(account = self.shared.account, %error, "the token can't be used"),
        }
        self.jitter = dice();
    }

    async fn on_time(&mut self) {
        self.save_if_needed().await;
        if self.awaiting.as_ref().is_some_and(|waiting| now().since(waiting.since) >= CONFIRM_WITHIN) {
            self.drop_awaiting().await;
        }
        self.look_around();
        let lifetime = self.lifetime();
        let is_rejected = self.serial != 0 && self.shared.rejected.load(Ordering::Acquire) >= self.serial;
        if !is_rejected {
            return;
        }
        // One 401 is one ask: it is granted or turned down, and those who wait for it are told.
        self.shared.rejected.store(0, Ordering::Release);
        if self.can_refresh() && lifetime.is_some() && self.plan.admit_rejection(now()) {
            tracing::info!(account = self.shared.account, "the upstream refused the token: refreshing it");
            let _outcome = self.refresh().await;
        } else {
            self.answer();
        }
    }

    async fn obey(&mut self, ask: Ask) {
        match ask {
            Ask::Refresh(reply) => {
                let outcome = self.refresh_for_a_person().await;
                let _listening = reply.send(outcome);
            }
            Ask::LogIn { login, reply } => {
                let (pending, code, verified) = *login;
                let outcome = self.log_in(&pending, &code, verified).await;
                let _listening = reply.send(outcome);
            }
            Ask::Confirm { id, yes, reply } => {
                let outcome = self.confirm(&id, yes).await;
                let _listening = reply.send(outcome);
            }
            Ask::LogOut(reply) => {
                let outcome = self.log_out().await;
                let _listening = reply.send(outcome);
            }
            Ask::Reconfigure(account) => self.reconfigure(*account),
        }
        self.look_around();
    }

    async fn refresh_for_a_person(&mut self) -> Result<(), AskError> {
        if self.oauth.account().grant == Grant::PersonalAccessToken {
            return Err(AskError::Failed("a personal access token is not refreshed".to_owned()));
        }
        if !self.can_refresh() {
            return Err(AskError::LoginRequired(
                "there is nothing to refresh: a login is required".to_owned(),
            ));
        }
        self.plan.forgive();
        match self.refresh().await {
            Ok(()) => Ok(()),
            Err(message) if self.state() == State::LoginRequired => Err(AskError::LoginRequired(message)),
            Err(message) => Err(AskError::Failed(message)),
        }
    }

    /// Reserve, spend, commit, publish.
    async fn refresh(&mut self) -> Result<(), String> {
        self.is_refreshing = true;
        self.publish();
        let outcome = self.try_refresh().await;
        self.is_refreshing = false;
        self.look_around();
        self.answer();
        outcome
    }

    async fn try_refresh(&mut self) -> Result<(), String> {
        let reservation = match self.reserve().await {
            Ok(reservation) => Some(reservation),
            // Nothing is spent and nothing can be lost.
            Err(_) if self.oauth.account().grant == Grant::ClientCredentials => None,
            Err(message) => return Err(message),
        };
        if self.unsaved.is_none() && self.is_superseded() {
            self.load();
            return Ok(());
        }

        self.plan.sending(now());
        let mut outcome = self.spend().await;
        if let Err(GrantError::InDoubt { reason }) = &outcome {
            tracing::warn!(
                account = self.shared.account,
                reason,
                "the answer to a refresh was lost: trying once more"
            );
            self.is_in_doubt = true;
            self.plan.sending(now());
            outcome = self.spend().await;
        }
        match outcome {
            Ok(granted) => {
                let record = self.renewed(&granted);
                // Nothing, be it a line in the log, comes between the answer and its saving.
                self.keep_login(reservation, record).await;
                self.note_refresh(RefreshOutcome::Ok, None);
                Ok(())
            }
            Err(error) => {
                let message = error.to_string();
                self.failed(reservation, error).await;
                Err(message)
            }
        }
    }

    async fn spend(&self) -> Result<Granted, GrantError> {
        match self.record.as_ref().and_then(|record| record.refresh_token.as_ref()) {
            Some(refresh_token) => self.oauth.refresh(refresh_token).await,
            None => self.oauth.client_credentials().await,
        }
    }

    async fn failed(&mut self, mut reservation: Option<Reservation>, error: GrantError) {
        let outcome = match &error {
            GrantError::Refused { .. } => RefreshOutcome::Refused,
            GrantError::Unavailable { .. } | GrantError::Unusable { .. } => RefreshOutcome::Unavailable,
            GrantError::InDoubt { .. } => RefreshOutcome::InDoubt,
        };
        self.note_refresh(outcome, Some(error.to_string()));
        if matches!(error, GrantError::Unavailable { was_sent: false, .. }) {
            self.plan.was_not_sent();
        }
        let is_wanted = self.lifetime().is_none_or(|lifetime| !lifetime.is_usable(now()));
        self.plan.failed(&error, is_wanted, dice(), now());

        if let GrantError::Unusable { successor: Some(successor), .. } = &error {
            self.keep_successor(reservation.take(), successor.clone()).await;
        }
        let needs_login = self.oauth.account().grant == Grant::AuthorizationCode;
        if error.is_final() && needs_login {
            self.refused(reservation).await;
        } else if matches!(error, GrantError::Refused { .. }) {
            self.is_misconfigured = true;
            self.tell(Event::RefreshFailing, format!("{error}: check client_id and client secret"));
        } else if self.plan.should_tell(now()) {
            self.tell(Event::RefreshFailing, format!("refreshing fails: {error}"));
        }
    }

    /// The server has replaced the refresh token, whatever else is wrong with its answer: the one presented is
    /// spent, and its successor is kept with the access token in use.
    async fn keep_successor(&mut self, reservation: Option<Reservation>, successor: SecretString) {
        if let Some(record) = &mut self.record {
            record.refresh_token = Some(successor);
            self.is_in_doubt = false;
            self.unsaved = reservation;
            self.save_if_needed().await;
        }
    }

    /// The refresh token is dead. It is marked, not deleted, and never presented again.
    async fn refused(&mut self, reservation: Option<Reservation>) {
        if let (Some(record), Some(reservation)) = (&mut self.record, reservation) {
            record.is_refused = true;
            self.unsaved = Some(reservation);
            self.save_if_needed().await;
        }
        if self.is_in_doubt {
            self.is_in_doubt = false;
            self.tell(
                Event::RotationInDoubt,
                "the answer to a refresh was lost and the refresh token with it: a new login is needed"
                    .to_owned(),
            );
        }
    }

    /// The login with what a refresh brought.
    fn renewed(&self, granted: &Granted) -> Record {
        let account = self.oauth.account();
        let old = self.record.as_ref();
        Record {
            client_id: account.client_id.clone(),
            access_token: granted.access_token.clone(),
            obtained_at_ms: granted.received.wall_ms(),
            expires_in_secs: granted.expires_in.as_secs(),
            refresh_token: granted
                .refresh_token
                .clone()
                .or_else(|| old.and_then(|record| record.refresh_token.clone())),
            is_refused: false,
            login_at_ms: old.map_or_else(|| granted.received.wall_ms(), |record| record.login_at_ms),
            subject: old.and_then(|record| record.subject.clone()),
            issuer: old.and_then(|record| record.issuer.clone()),
            person: old.and_then(|record| record.person.clone()),
        }
    }

    /// Takes room for what comes next. What is still to be saved goes first: its room is never given to
    /// something that may fail, and the store is never compared with a login that it has not seen.
    async fn reserve(&mut self) -> Result<Reservation, String> {
        self.save_if_needed().await;
        if self.unsaved.is_some() {
            return Err("the login before can't be saved, so nothing new is begun".to_owned());
        }
        let (store, account) = (Arc::clone(&self.store), self.shared.account.clone());
        let reserved = blocking(move || store.reserve(&account)).await;
        match reserved {
            Ok(reservation) => {
                self.untell(Event::StoreFailing, "the login can be saved again");
                Ok(reservation)
            }
            Err(error) => {
                self.plan.postpone(STORE_RETRY, now());
                let message =
                    format!("the login can't be saved, so nothing is spent: {}", with_causes(&error));
                self.tell(Event::StoreFailing, message.clone());
                Err(message)
            }
        }
    }

    /// Makes a login durable, then uses it. When it can't be made durable it is used all the same, since the
    /// one before it is spent, and saving is tried again and again.
    async fn keep_login(&mut self, reservation: Option<Reservation>, record: Record) {
        let lifetime = self.lifetime_of(&record);
        let access_token = record.access_token.clone();
        self.record = Some(record);
        // Without room of its own it takes the place of what is still to be saved, if there is something.
        self.unsaved = reservation.or_else(|| self.unsaved.take());
        self.save_if_needed().await;
        self.publish_token(&access_token, lifetime);
        self.is_in_doubt = false;
        self.is_misconfigured = false;
        let was_told = self.plan.succeeded();
        let was_failing = self.told.remove(&Event::RefreshFailing) | self.told.remove(&Event::LoginRequired);
        self.told.remove(&Event::RotationInDoubt);
        if was_told || was_failing {
            self.note_event(Event::Recovered, "there is a fresh token again".to_owned());
        }
    }

    async fn save_if_needed(&mut self) {
        let (Some(mut reservation), Some(record)) = (self.unsaved.take(), self.record.clone()) else {
            return;
        };
        let (store, account) = (Arc::clone(&self.store), self.shared.account.clone());
        // A disk that hangs is no reason to be restarted and lose what is nowhere else.
        self.shared.pulse.hold();
        let (reservation, saved) = blocking(move || {
            let saved = store.commit(&mut reservation, &account, &record);
            (reservation, saved)
        })
        .await;
        self.shared.pulse.beat();
        match saved {
            Ok(()) => self.untell(Event::StoreFailing, "the login is saved again"),
            Err(error) => {
                self.unsaved = Some(reservation);
                let message = format!(
                    "the new login is in use but can't be saved, and a restart would lose it: {}",
                    with_causes(&error)
                );
                self.tell(Event::StoreFailing, message);
            }
        }
    }

    /// True when another process changed the stored login under us.
    fn is_superseded(&self) -> bool {
        let secret =
            |record: &Record| record.refresh_token.as_ref().map(|token| token.expose_secret().to_owned());
        let stored = self.store.record(&self.shared.account);
        match (&stored, &self.record) {
            (Some(stored), Some(ours)) => secret(stored) != secret(ours),
            _ => false,
        }
    }

    fn should_refresh(&self) -> bool {
        let lifetime = self.lifetime();
        let can = self.can_refresh() && self.unsaved.is_none();
        let in_doubt_at_start = self.is_in_doubt && self.refreshes.is_empty();
        let wait = self.plan.until_refresh(lifetime.as_ref(), self.jitter, now());
        can && (wait.is_zero() || (in_doubt_at_start && self.plan.until_allowed(now()).is_zero()))
    }

    fn until_next(&self) -> Duration {
        if self.unsaved.is_some() {
            return STORE_RETRY;
        }
        if !self.can_refresh() {
            return LONGEST_SLEEP;
        }
        self.plan.until_refresh(self.lifetime().as_ref(), self.jitter, now()).min(LONGEST_SLEEP)
    }

    fn can_refresh(&self) -> bool {
        match self.oauth.account().grant {
            Grant::PersonalAccessToken => false,
            Grant::ClientCredentials => true,
            Grant::AuthorizationCode => self
                .record
                .as_ref()
                .is_some_and(|record| record.refresh_token.is_some() && !record.is_refused),
        }
    }

    fn lifetime(&self) -> Option<Lifetime> {
        self.shared.current.load().as_ref().map(|token| *token.lifetime())
    }
}

/// Runs something that may block beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on the store does not panic")
}

/// A number from 0 to 1.
fn dice() -> f64 {
    #[cfg(test)]
    if let Some(number) = super::histories::dice() {
        return number;
    }
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).expect("the operating system has random numbers");
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}
