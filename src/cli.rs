//! The commands: arguments in, exit code out. The only module that prints and that reads the environment.

mod check;
mod daemon;
mod status_line;
mod log;
mod login;
mod man_pages;
mod on_store;
mod run;
mod serve;
mod show;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use zeroize::Zeroizing;

use daemon::Daemon;
use man_pages::Page;
use show::Change;

use crate::config::{Config, ConfigError, Environment};
use crate::processes;
use crate::server::listen::ListenError;
use crate::store::{self, StoreError};

/// Puts a fresh Cnblogs access token on every request of your local programs.
///
/// Log in once with a browser; point any HTTP client at <http://127.0.0.1:8262> from then on. The daemon keeps the
/// token fresh and adds it to every request.
#[derive(Parser)]
#[command(name = "cnblogs-proxy", version = VERSION, max_term_width = 100, subcommand_value_name = "COMMAND")]
#[command(after_help = format!("{FIRST_STEPS}\n\nExit codes: {EXIT_CODES}"))]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Common {
    #[arg(long, global = true, value_name = "FILE", help = CONFIG_HELP)]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (also what happens without a command)
    Serve,
    /// Log in from this terminal: open the printed address in any browser, paste where it ends
    ///
    /// Works with the daemon running, which takes the login over at once, and without.
    Login(OneAccount),
    /// Show how the running daemon is; exit code 3 when a login is required
    Status {
        /// Print the status document as JSON
        #[arg(long)]
        json: bool,
    },
    /// Refresh the access token now
    Refresh(OneAccount),
    /// Print a current access token, for scripts
    ///
    /// Only for someone who may read the store. Programs that can be pointed at the proxy need no token.
    Token(OneAccount),
    /// Revoke the refresh token at the server and erase the stored login
    Logout(OneAccount),
    /// Run a program whose address can't be changed: its HTTPS requests to the API go through the daemon
    ///
    /// The program, and what it starts, trust a certificate authority that exists only as long as this command. Its
    /// exit status is the program's: 127 when there is no such program, 126 when it can't be started.
    Run(run::Run),
    /// Read the configuration and everything it names, and say what would be used; connects to nothing
    Check {
        /// Try the API and the authorization server as well: names, connections, certificates; sends no secret
        #[arg(long)]
        connect: bool,
    },
    /// Make the running daemon read its configuration again, as SIGHUP does, and say what came of it
    ///
    /// It takes over secrets, caller keys, CA files and the log filter. When anything else has changed it takes over
    /// nothing, and the exit code is 1: the message names the keys that need a restart.
    Reload,
    /// Print a new key to seal stored logins with
    ///
    /// `cnblogs-proxy seal-key | install -m 600 /dev/stdin seal.key` puts it where `seal_key_files` of [store] may name
    /// it. Keep a copy elsewhere than the store and its backups: without it nobody opens them.
    SealKey,
    /// How and where logins are stored
    #[command(subcommand, disable_help_subcommand = true)]
    Store(OnStore),
    /// Exit 0 when the daemon can serve requests, asked as its callers ask: for container health checks
    Health {
        /// Exit 0 when it answers at all, whether somebody has to log in or not
        #[arg(long)]
        live: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: Shell,
    },
    /// Print a manual page: `cnblogs-proxy man | man -l -`
    ///
    /// With `config`, the page of the configuration file.
    Man {
        /// Which page
        #[arg(value_enum, default_value = "command")]
        page: Page,
    },
}

#[derive(Subcommand)]
enum OnStore {
    /// Make the tables that replicas share their logins through, where they are not there yet
    ///
    /// The daemon does it by itself when it may.
    Init {
        /// Print it for an administrator of the database instead
        #[arg(long)]
        print: bool,
    },
    /// Take the logins of this machine's files along into the database, once
    ///
    /// They are erased from the files: two daemons that spend one login lose it. No daemon may run on this
    /// `state_dir` meanwhile.
    Import,
    /// Seal every stored login with the first key, and leave none behind that is not
    ///
    /// Works with the daemon running, which uses the keys that it was started with, or that it read at the last
    /// `reload`, and without.
    Rekey,
}

#[derive(Args)]
struct OneAccount {
    /// Name of the account [default: the only one, else "main"]
    account: Option<String>,
}

/// What carries out a command.
enum Doer {
    /// The running daemon, which has the configuration.
    Daemon(Daemon),
    /// This process, where none is running.
    Here(Box<Config>),
}

/// How the program ends (sysexits has 78 for a configuration error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
    Usage,
    LoginRequired,
    Configuration,
    /// As the program that `run` ran.
    Child(u8),
}

/// What is told on standard error before the program ends.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

/// The version, in a release build with its commit: `deploy/release/version.rs` says it.
const VERSION: &str = env!("CNBLOGS_PROXY_VERSION");
/// What the daemon prints, and why a command failed, is printed within this time or not at all.
const PRINTED_WITHIN: Duration = Duration::from_secs(5);
const CONFIG_HELP: &str = "Configuration file [default: $CNBLOGS_PROXY_CONFIG, \
    ~/.config/cnblogs-proxy/config.toml, /etc/cnblogs-proxy/config.toml]";
const FIRST_STEPS: &str = "\
First steps:
  CNBLOGS_CLIENT_ID=... CNBLOGS_CLIENT_SECRET=... cnblogs-proxy
                              run with an application of yours; then open http://127.0.0.1:8262/-/login
  CNBLOGS_PAT=... cnblogs-proxy
                              run with a personal access token: no login needed
  curl http://127.0.0.1:8262/api/users
                              a request with your token on it";
const EXIT_CODES: &str = "0 done, 1 failed, 2 usage, 3 login required, 78 configuration error";

/// Runs the program.
pub fn run() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == processes::LAUNCHER) {
        return processes::launch(arguments);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // What can't be printed has nobody to read it.
            let _printed = error.print();
            let is_help = !error.use_stderr();
            return code(if is_help { Exit::Done } else { Exit::Usage });
        }
    };
    keep_to_ourselves(&cli);
    let environment = Environment::new(
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    );
    match dispatch(cli, &environment) {
        Ok(exit) => code(exit),
        Err(failure) => {
            // The journal takes it for an error by the number in front (`sd-daemon(3)`).
            let priority = if log::is_journal(&environment) { "<3>" } else { "" };
            let Failure { exit, message, hint } = failure;
            in_bounded_time(move || {
                say_error(&format!("{priority}error: {message}"));
                if let Some(hint) = hint {
                    say_error(&format!("{priority}hint: {hint}"));
                }
            });
            code(exit)
        }
    }
}

fn dispatch(cli: Cli, environment: &Environment) -> Result<Exit, Failure> {
    let Cli { common, command } = cli;
    let command = command.unwrap_or(Command::Serve);
    match command {
        Command::Completions { shell } => {
            return print_bytes(man_pages::completions(shell, Cli::command()).as_bytes());
        }
        Command::Man { page } => return print_bytes(&man_pages::page(page, Cli::command())),
        Command::SealKey => {
            return print_bytes(&Zeroizing::new([store::new_key().as_bytes(), b"\n"].concat()));
        }
        Command::Serve => {
            let config = Config::load(common.config.as_deref(), environment)?;
            return serve::serve(config, common, environment.clone());
        }
        Command::Store(OnStore::Init { print }) => return on_store::init(print, &common, environment),
        Command::Store(OnStore::Import) => return on_store::import(&common, environment),
        Command::Check { connect } => {
            let config = Config::load(common.config.as_deref(), environment)?;
            return check::check(&config, connect, environment);
        }
        Command::Run(ref asked) => return run::run(asked, common.config.as_deref(), environment),
        _ => {}
    }

    let state_dir = Config::find_state_dir(common.config.as_deref(), environment)?;
    // What is wrong with the rest of the configuration, a running daemon says, or does not mind.
    let doer = match Daemon::find(&state_dir)? {
        Some(daemon) => Doer::Daemon(daemon),
        None if matches!(command, Command::Reload) => return Err(Daemon::none_to_reload(&state_dir)),
        None => Doer::Here(Config::load(common.config.as_deref(), &environment.without_secrets())?.into()),
    };
    match command {
        Command::Login(one) => {
            let account = one.name(&doer)?;
            login::login(doer, &account, &common, environment)
        }
        Command::Status { json } => show::status(doer.daemon()?, json, environment),
        Command::Refresh(one) => {
            show::change(Change::Refresh, &doer, &one.name(&doer)?, &common, environment)
        }
        Command::Token(one) => show::token(&doer, &one.name(&doer)?, &common, environment),
        Command::Logout(one) => {
            let account = one.stored_name(&state_dir, &doer)?;
            show::change(Change::LogOut, &doer, &account, &common, environment)
        }
        Command::Reload => show::reload(doer.daemon()?),
        Command::Store(OnStore::Rekey) => show::rekey(&doer),
        Command::Health { live } => show::health(&state_dir, live),
        _ => unreachable!("the others have returned"),
    }
}

impl Doer {
    fn daemon(&self) -> Result<&Daemon, Failure> {
        match self {
            Self::Daemon(daemon) => Ok(daemon),
            Self::Here(config) => Err(Daemon::none(&config.state_dir)),
        }
    }

    fn accounts(&self) -> Result<Vec<String>, Failure> {
        match self {
            Self::Daemon(daemon) => daemon.accounts(),
            Self::Here(config) => Ok(config.accounts.keys().cloned().collect()),
        }
    }
}

impl OneAccount {
    /// Also of an account that is not configured any more, and has a login.
    fn stored_name(self, state_dir: &Path, doer: &Doer) -> Result<String, Failure> {
        match &self.account {
            Some(name) if store::accounts_in(state_dir).contains(name) => Ok(name.clone()),
            _ => self.name(doer),
        }
    }

    fn name(self, doer: &Doer) -> Result<String, Failure> {
        let accounts = doer.accounts()?;
        let names: Vec<_> = accounts.iter().map(String::as_str).collect();
        let wanted = match (&self.account, names.as_slice()) {
            (Some(name), _) => name.as_str(),
            (None, [only]) => only,
            (None, _) => "main",
        };
        if names.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        Err(Failure {
            exit: Exit::Usage,
            message: format!("there is no account \"{wanted}\""),
            hint: Some(format!("the accounts are: {}", names.join(", "))),
        })
    }
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error with all its causes, and what can be done about the known ones.
    fn of(error: &anyhow::Error) -> Self {
        let failure = Self::new(Exit::Failed, format!("{error:#}"));
        if let Some(StoreError::InUse { .. }) = error.downcast_ref() {
            return failure.with_hint("stop the other one, or give this one its own state_dir");
        }
        match error.downcast_ref() {
            Some(StoreError::Newer { .. }) => failure.with_hint(
                "use the newer program again, or move the file away and log in: this version never overwrites it",
            ),
            Some(StoreError::NewerTables { .. }) => Self { exit: Exit::Configuration, ..failure }
                .with_hint("use the newer program again, or another schema: nothing was changed"),
            Some(StoreError::Sealed { .. } | StoreError::SealedRow { .. }) => {
                Self { exit: Exit::Configuration, ..failure }.with_hint(
                    "name the file of that key in seal_key_files of [store], behind the one that is to seal (a \
                     credential is seen by its service alone): nothing was changed",
                )
            }
            Some(StoreError::NotAFile { .. }) => failure.with_hint("move it away, or set another state_dir"),
            Some(StoreError::Foreign { .. }) => failure.with_hint("run as that user, or set another state_dir"),
            _ => match error.downcast_ref() {
                Some(ListenError::InUse(_)) => failure.with_hint(
                    "another program, or another cnblogs-proxy, listens there: stop it, or set another address by \
                     `listen` or CNBLOGS_PROXY_LISTEN",
                ),
                _ => failure,
            },
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { exit: Exit::Configuration, message: error.to_string(), hint: error.hint().map(str::to_owned) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::of(&error)
    }
}

/// No core dumps, and nothing of ours in /proc for other programs of the same user.
fn keep_to_ourselves(cli: &Cli) {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    // Where the kernel refuses, the program works all the same.
    let _set = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // A program is run with the limits that we were started with, and what may not be dumped leaves no core anyway.
    if matches!(cli.command, Some(Command::Run(_))) {
        return;
    }
    let _set = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(match exit {
        Exit::Done => 0,
        Exit::Failed => 1,
        Exit::Usage => 2,
        Exit::LoginRequired => 3,
        Exit::Configuration => 78,
        Exit::Child(status) => status,
    })
}

fn say(text: &str) {
    // A closed pipe is no reason to stop.
    let _written = writeln!(io::stdout().lock(), "{text}");
    let _flushed = io::stdout().lock().flush();
}

fn say_error(text: &str) {
    let _written = writeln!(io::stderr().lock(), "{text}");
}

/// For what the daemon prints: one whose reader does not read starts and ends all the same.
fn in_bounded_time(print: impl FnOnce() + Send + 'static) {
    let (printing, printed) = mpsc::channel::<()>();
    let printer = thread::Builder::new().spawn(move || {
        print();
        drop(printing);
    });
    // Nothing is sent: the channel closes when it is printed, or when there is no thread.
    let _closed = printer.map(|_| printed.recv_timeout(PRINTED_WITHIN));
}

fn print_bytes(bytes: &[u8]) -> Result<Exit, Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Failed, format!("writing to standard output: {error}"))),
    }
}
