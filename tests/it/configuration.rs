//! The configuration: the two files that people start from, what is refused and how that is said, and where values
//! come from when the file does not say.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use cnblogs_proxy::config::{Config, Environment};

use crate::standin::{Options, Person, RecordedRequest, Standin};
use crate::support::{Daemon, Home, World, config, eventually};

/// Stands wherever a person may have put a secret by mistake; it must never be shown.
const CANARY: &str = "c4n4ry";
const MINIMAL: &str = include_str!("../../config/minimal.toml");
const COMPLETE: &str = include_str!("../../config/complete.toml");
/// What a fixture ends with when it has no account of its own.
const ACCOUNT: &str = "\n[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\n";

/// What the value of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Texts,
    Users,
    Whole,
    Truth,
    Fraction,
    Table,
    Tables,
    NamedTables,
}

/// Every key of every table, in the order in which the program names them.
const KEYS: &[(&str, &[(&str, Kind)])] = &[
    (
        "",
        &[
            ("listen", Kind::Texts),
            ("state_dir", Kind::Text),
            ("workers", Kind::Whole),
            ("log", Kind::Text),
            ("log_format", Kind::Text),
            ("account", Kind::NamedTables),
            ("route", Kind::Tables),
            ("callers", Kind::Table),
            ("limits", Kind::Table),
            ("notify", Kind::Table),
            ("store", Kind::Table),
        ],
    ),
    (
        "account.main",
        &[
            ("grant", Kind::Text),
            ("client_id", Kind::Text),
            ("client_secret_file", Kind::Text),
            ("token_file", Kind::Text),
            ("scope", Kind::Text),
            ("redirect_uri", Kind::Text),
            ("pkce", Kind::Text),
            ("response_type", Kind::Text),
            ("response_mode", Kind::Text),
            ("issuer", Kind::Text),
            ("authorization_url", Kind::Text),
            ("token_url", Kind::Text),
            ("revocation_url", Kind::Text),
            ("jwks_url", Kind::Text),
            ("client_auth", Kind::Text),
            ("ca_file", Kind::Text),
            ("proxy", Kind::Text),
            ("proxy_auth_file", Kind::Text),
            ("refresh_at", Kind::Fraction),
            ("identity_url", Kind::Text),
            ("login_lifetime", Kind::Text),
            ("expires", Kind::Text),
            ("required", Kind::Truth),
        ],
    ),
    (
        "route",
        &[
            ("prefix", Kind::Text),
            ("name", Kind::Text),
            ("upstream", Kind::Text),
            ("account", Kind::Text),
            ("ca_file", Kind::Text),
            ("proxy", Kind::Text),
            ("proxy_auth_file", Kind::Text),
            ("http", Kind::Text),
        ],
    ),
    (
        "callers",
        &[
            ("users", Kind::Users),
            ("hosts", Kind::Texts),
            ("allowed_origins", Kind::Texts),
            ("allow_remote", Kind::Truth),
            ("key", Kind::Tables),
        ],
    ),
    (
        "callers.key",
        &[
            ("name", Kind::Text),
            ("file", Kind::Text),
            ("methods", Kind::Texts),
            ("paths", Kind::Texts),
            ("routes", Kind::Texts),
        ],
    ),
    (
        "limits",
        &[
            ("connections", Kind::Whole),
            ("header_timeout", Kind::Text),
            ("connect_timeout", Kind::Text),
            ("response_timeout", Kind::Text),
            ("stall_timeout", Kind::Text),
            ("token_timeout", Kind::Text),
            ("token_wait", Kind::Text),
            ("idle_timeout", Kind::Text),
            ("drain_timeout", Kind::Text),
            ("replay_buffer", Kind::Text),
        ],
    ),
    ("notify", &[("command", Kind::Texts), ("webhook", Kind::Text)]),
    (
        "store",
        &[
            ("url", Kind::Text),
            ("password_file", Kind::Text),
            ("ca_file", Kind::Text),
            ("seal_key_files", Kind::Texts),
            ("schema", Kind::Text),
        ],
    ),
];

/// Keys that do not exist. `»` marks the place that the error names.
const UNKNOWN: &[(&str, &str, &str)] = &[
    ("»lissten = [\"c4n4ry\"]", "lissten", "did you mean `listen`?"),
    ("»statedir = \"c4n4ry\"", "statedir", "did you mean `state_dir`?"),
    ("[»acount.main]\nclient_id = \"c4n4ry\"", "acount", "did you mean `account`?"),
    ("[[»routes]]\nupstream = \"c4n4ry\"", "routes", "did you mean `route`?"),
    ("[account.main]\n  »clientid = \"c4n4ry\"", "account.main.clientid", "did you mean `client_id`?"),
    ("[account.main]\n»client_secret = \"c4n4ry\"", "account.main.client_secret", "client_secret_file"),
    ("[account.main]\n»secret = \"c4n4ry\"", "account.main.secret", "client_secret_file"),
    ("[account.main]\n»password = \"c4n4ry\"", "account.main.password", "client_secret_file"),
    ("[account.main]\n»token = \"c4n4ry\"", "account.main.token", "token_file"),
    ("[account.main]\n»pat = \"c4n4ry\"", "account.main.pat", "token_file"),
    ("account.main = { »scopes = \"c4n4ry\" }", "account.main.scopes", "did you mean `scope`?"),
    ("[[route]]\n[[route]]\n»upstrem = \"c4n4ry\"", "route[1].upstrem", "did you mean `upstream`?"),
    ("[callers]\n»user = [\"c4n4ry\"]", "callers.user", "did you mean `users`?"),
    ("[[callers.key]]\n»method = [\"c4n4ry\"]", "callers.key[0].method", "did you mean `methods`?"),
    ("[limits]\n# 中文\n»conections = 1", "limits.conections", "did you mean `connections`?"),
    ("[notify]\n»webhok = \"c4n4ry\"", "notify.webhok", "did you mean `webhook`?"),
    ("[notify]\n\t»comand = \"c4n4ry\"", "notify.comand", "did you mean `command`?"),
];

/// What is wrong in itself or does not go together: the file, the key, some words of what is said.
const REFUSED_ACCOUNTS: &[(&str, &str, &str)] = &[
    ("[account.main]\ngrant = »\"c4n4ry\"", "account.main.grant", "must be"),
    (
        "[account.main]\ngrant = \"authorization_code\"\nclient_id = \"id\"\ntoken_file = »\"<pat>\"",
        "account.main.token_file",
        "does not go with grant = \"authorization_code\"",
    ),
    (
        "[account.main]\ngrant = \"client_credentials\"\nclient_id = \"id\"\ntoken_file = »\"<pat>\"",
        "account.main.token_file",
        "does not go with grant = \"client_credentials\"",
    ),
    (
        "[account.main]\ngrant = \"personal_access_token\"\nclient_secret_file = »\"<secret>\"",
        "account.main.client_secret_file",
        "does not go with grant = \"personal_access_token\"",
    ),
    (
        "[account.main]\ntoken_file = \"<pat>\"\nproxy = »\"http://c4n4ry\"",
        "account.main.proxy",
        "set `proxy` where it is used, at the [[route]]",
    ),
    (
        "[account.main]\ntoken_file = \"<pat>\"\nclient_secret_file = »\"<secret>\"",
        "account.main.client_secret_file",
        "does not go with",
    ),
    ("log = \"info\"\n »[account.main]", "account.main", "has no client secret"),
    ("»[account.main]\nclient_id = \"id\"", "account.main", "CNBLOGS_CLIENT_SECRET_FILE"),
    ("»[account.main]\ngrant = \"personal_access_token\"", "account.main", "CNBLOGS_PAT_FILE"),
    ("»[account.main]\nclient_secret_file = \"<secret>\"", "account.main", "needs a `client_id`"),
    ("»[account.\"a b\"]\nclient_id = \"id\"", "account.a b", "letters, digits"),
    ("[account.main]\ntoken_file = »\"<spaced>\"", "account.main.token_file", "RFC 6750"),
    ("[account.main]\ntoken_file = »\"\"", "account.main.token_file", "can't be read"),
    (
        "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"\"\npkce = »\"off\"",
        "account.main.pkce",
        "a client without a secret needs",
    ),
    (
        "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"\"\nclient_auth = »\"basic\"",
        "account.main.client_auth",
        "needs a client secret",
    ),
    (
        "[account.main]\ngrant = \"client_credentials\"\nclient_id = \"id\"\nclient_secret_file = »\"\"",
        "account.main.client_secret_file",
        "must not be empty with grant = \"client_credentials\"",
    ),
];
const REFUSED_LOGINS: &[(&str, &str, &str)] = &[
    ("response_type = »\"token c4n4ry\"", "response_type", "must be"),
    ("response_mode = »\"c4n4ry\"", "response_mode", "must be"),
    ("response_mode = »\"query\"", "response_mode", "only with response_type = \"code\""),
    (
        "response_type = \"code id_token\"\nresponse_mode = »\"query\"",
        "response_mode",
        "only with response_type = \"code\"",
    ),
    ("client_auth = »\"c4n4ry\"", "client_auth", "must be"),
    ("refresh_at = »0", "refresh_at", "fraction"),
    ("refresh_at = »1.0", "refresh_at", "fraction"),
    ("refresh_at = »-0.5", "refresh_at", "fraction"),
    ("refresh_at = »nan", "refresh_at", "fraction"),
    ("refresh_at = »inf", "refresh_at", "fraction"),
    ("login_lifetime = »\"c4n4ry\"", "login_lifetime", "not a duration"),
    ("login_lifetime = »\"30\"", "login_lifetime", "not a duration"),
    ("login_lifetime = »\"-1d\"", "login_lifetime", "not a duration"),
    ("login_lifetime = »\"900years\"", "login_lifetime", "longer than"),
    ("login_lifetime = »\"99999999999999999999999d\"", "login_lifetime", ""),
    ("token_url = »\"c4n4ry\"", "token_url", "not a URL"),
    ("token_url = »\"http://c4n4ry.example/\"", "token_url", "must be https"),
    ("token_url = »\"http://127.0.0.1.c4n4ry.example/\"", "token_url", "must be https"),
    ("token_url = »\"ftp://c4n4ry.example/\"", "token_url", "must be an https:// URL"),
    ("token_url = »\"https://user:c4n4ry@h/\"", "token_url", "password"),
    ("token_url = »\"https://h/#c4n4ry\"", "token_url", "fragment"),
    ("token_url = »\"\"", "token_url", "must not be empty"),
    ("authorization_url = »\"\"", "authorization_url", "must not be empty"),
    ("revocation_url = »\"http://c4n4ry.example/\"", "revocation_url", "must be https"),
    ("jwks_url = »\"https://h:c4n4ry/\"", "jwks_url", "not a URL"),
    ("identity_url = »\"http://c4n4ry.example/\"", "identity_url", "must be https"),
    ("redirect_uri = »\"c4n4ry\"", "redirect_uri", "not a URL"),
    ("redirect_uri = »\"mailto:c4n4ry\"", "redirect_uri", "absolute"),
    ("redirect_uri = »\"https://h/#c4n4ry\"", "redirect_uri", "fragment"),
    ("redirect_uri = »\" https://h/c4n4ry\"", "redirect_uri", "spaces"),
    ("redirect_uri = »\"https://h/c4n\\t4ry\"", "redirect_uri", "can't be seen"),
    ("pkce = »\"plain\"", "pkce", "must be"),
    (
        "token_url = »\"https://c4n4ry.example/\"",
        "token_url",
        "authorization_url, revocation_url, jwks_url must be",
    ),
    (
        "jwks_url = »\"https://c4n4ry.example/\"",
        "jwks_url",
        "authorization_url, token_url, revocation_url must be",
    ),
    (
        "revocation_url = »\"https://c4n4ry.example/\"\njwks_url = \"\"",
        "revocation_url",
        "authorization_url, token_url must be written",
    ),
    (
        "authorization_url = »\"https://c4n4ry.example/\"\ntoken_url = \"https://c4n4ry.example/\"\njwks_url = \"\"",
        "authorization_url",
        "revocation_url = \"\"",
    ),
    (
        "authorization_url = »\"https://c4n4ry.example/\"\ntoken_url = \"https://c4n4ry.example/\"\nrevocation_url = \"\"",
        "authorization_url",
        "jwks_url = \"\"",
    ),
    (
        "grant = \"client_credentials\"\nauthorization_url = »\"https://c4n4ry.example/\"",
        "authorization_url",
        "token_url must be written",
    ),
    (
        "authorization_url = \"https://oauth.cnblogs.com/x\"\ntoken_url = »\"https://c4n4ry.example/\"",
        "token_url",
        "revocation_url, jwks_url must be written",
    ),
    (
        "token_url = \"https://oauth.cnblogs.com/x\"\njwks_url = »\"https://c4n4ry.example/\"",
        "jwks_url",
        "authorization_url, revocation_url must be written",
    ),
    ("issuer = »\"http://c4n4ry.example\"", "issuer", "must be https"),
    ("issuer = »\"https://c4n4ry.example \"", "issuer", "must not contain spaces"),
    ("issuer = »\"https://c4n4ry.example/?c4n4ry\"", "issuer", "query"),
    (
        "issuer = »\"c4n4ry\"\ntoken_url = \"https://h/\"",
        "issuer",
        "(authorization_url, revocation_url, jwks_url)",
    ),
    ("ca_file = »\"/c4n4ry\"", "ca_file", "can't be read"),
    ("ca_file = »\"<secret>\"", "ca_file", "no certificate"),
    ("proxy = »\"c4n4ry:3128\"", "proxy", "hint: write \"http://proxy.example:3128\""),
    ("proxy = »\"//c4n4ry\"", "proxy", "not a URL"),
    ("proxy = »\"http://c4n4ry:c4n4ry@h:3128\"", "proxy", "user name or password\nhint: "),
    ("proxy = »\"http://user@h\"", "proxy", "named in proxy_auth_file"),
    ("proxy = »\"user:c4n4ry@h:3128\"", "proxy", "proxy_auth_file"),
    ("proxy = »\"http://user:c4n/4ry@h:3128\"", "proxy", "proxy_auth_file"),
    ("proxy = »\"https://c4n4ry:3128\"", "proxy", "must be http://"),
    ("proxy = »\"socks5://c4n4ry:3128\"", "proxy", "must be http://"),
    ("proxy = »\"http://h/c4n4ry\"", "proxy", "and nothing else"),
    ("proxy = »\"http://h/?c4n4ry\"", "proxy", "and nothing else"),
    ("proxy = »\"http://h/#c4n4ry\"", "proxy", "and nothing else"),
    ("proxy_auth_file = »\"<secret>\"", "proxy_auth_file", "nothing uses it without `proxy`"),
    ("proxy = \"\"\nproxy_auth_file = »\"/c4n4ry\"", "proxy_auth_file", "nothing uses it"),
    ("proxy = \"http://h\"\nproxy_auth_file = »\"/c4n4ry\"", "proxy_auth_file", "can't be read"),
    ("proxy = \"http://h\"\nproxy_auth_file = »\"<secret>\"", "proxy_auth_file", "\"user:password\""),
];
const REFUSED_ROUTES: &[(&str, &str, &str)] = &[
    ("[[route]]\nupstream = »\"http://c4n4ry.example\"", "route[0].upstream", "must be https"),
    ("[[route]]\nupstream = »\"http://192.168.0.1\"", "route[0].upstream", "must be https"),
    ("[[route]]\nupstream = »\"https://c4n4ry@h\"", "route[0].upstream", "user name"),
    ("[[route]]\nupstream = »\"https://h/?c4n4ry\"", "route[0].upstream", "query"),
    ("[[route]]\nupstream = »\"\"", "route[0].upstream", "not a URL"),
    ("[[route]]\nprefix = »\"c4n4ry\"", "route[0].prefix", "slash"),
    ("[[route]]\nprefix = »\"/-/c4n4ry\"", "route[0].prefix", "/-/"),
    ("[[route]]\nprefix = »\"/c4n4ry 1\"", "route[0].prefix", "bytes of a path"),
    ("[[route]]\nprefix = »\"/c4n4ry?x\"", "route[0].prefix", "bytes of a path"),
    ("[[route]]\nhttp = »\"c4n4ry\"", "route[0].http", "must be"),
    ("[[route]]\nhttp = »\"2\"", "route[0].http", "HTTP/2 to upstreams is gone"),
    ("[[route]]\naccount = »\"c4n4ry\"", "route[0].account", "there is: main"),
    ("[[route]]\nca_file = »\"/c4n4ry\"", "route[0].ca_file", "can't be read"),
    ("[[route]]\nproxy = »\"http://u:c4n4ry@h\"", "route[0].proxy", "proxy_auth_file"),
    ("[[route]]\nproxy_auth_file = »\"<secret>\"", "route[0].proxy_auth_file", "nothing uses it without"),
    (
        "[[route]]\nupstream = \"http://127.0.0.1:1\"\nproxy = »\"http://c4n4ry\"",
        "route[0].proxy",
        "needs an https:// upstream",
    ),
    (
        "[[route]]\nprefix = \"/a\"\n[[route]]\nname = \"b\"\nprefix = »\"/a/\"",
        "route[1].prefix",
        "same prefix",
    ),
    ("[[route]]\nprefix = \"/\"\n »[[route]]", "route[1]", "same prefix"),
    (
        "[[route]]\nname = \"c4n4ry\"\n[[route]]\nprefix = \"/b\"\nname = »\"c4n4ry\"",
        "route[1].name",
        "same name",
    ),
];
const REFUSED_CALLERS: &[(&str, &str, &str)] = &[
    ("[callers]\nusers = [\"self\", »\"c4n4ry\"]", "callers.users[1]", "no user of that name"),
    ("[callers]\nusers = [»4294967296]", "callers.users[0]", "too large"),
    ("[callers]\nusers = [»-1]", "callers.users[0]", ""),
    ("[callers]\nhosts = [»\"http://c4n4ry\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\"c4n4ry@h\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\"h:c4n4ry\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\"h:\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\":80\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\"\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\"c4n4ry:99999\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nhosts = [»\"*.c4n4ry\"]", "callers.hosts[0]", "not a host"),
    ("[callers]\nallowed_origins = [»\"c4n4ry\"]", "callers.allowed_origins[0]", "not an origin"),
    ("[callers]\nallowed_origins = [»\"http://c4n4ry/\"]", "callers.allowed_origins[0]", "not an origin"),
    ("[callers]\nallowed_origins = [»\"http://h:c4n4ry\"]", "callers.allowed_origins[0]", "not an origin"),
    ("[callers]\nallowed_origins = [»\"*\"]", "callers.allowed_origins[0]", "not an origin"),
    ("[callers]\nallowed_origins = [»\"null\"]", "callers.allowed_origins[0]", "not an origin"),
    (" »[[callers.key]]", "callers.key[0]", "needs a `name`"),
    ("»[[callers.key]]\nname = \"c4n4ry\"", "callers.key[0]", "needs a `file`"),
    (
        "[[callers.key]]\nname = \"c4n4ry\"\nfile = \"<key>\"\n[[callers.key]]\nfile = \"<other-key>\"\nname = »\"c4n4ry\"",
        "callers.key[1].name",
        "same name",
    ),
    (
        "[[callers.key]]\nname = \"a\"\nfile = \"<key>\"\n[[callers.key]]\nname = \"b\"\nfile = »\"<key>\"",
        "callers.key[1].file",
        "same",
    ),
];
const REFUSED_KEYS: &[(&str, &str, &str)] = &[
    ("routes = [\"/\", »\"c4n4ry\"]", "routes[1]", "no route of that name"),
    ("methods = [»\"c4n4ry c\"]", "methods[0]", "not a method"),
    ("methods = [»\"\"]", "methods[0]", "not a method"),
    ("paths = [»\"c4n4ry\"]", "paths[0]", "slash"),
    ("paths = [»\"/c4n4ry c\"]", "paths[0]", "bytes of a path"),
];
const REFUSED_AT_THE_TOP: &[(&str, &str, &str)] = &[
    ("listen = [»\"127.0.0.1\"]", "listen[0]", "not an address"),
    ("listen = [»\"c4n4ry:80\"]", "listen[0]", "not an address"),
    ("listen = [\"127.0.0.1:0\", »\"127.0.0.1:99999\"]", "listen[1]", "not an address"),
    ("listen = [»\"unix:c4n4ry\"]", "listen[0]", "absolute path"),
    ("listen = [\"127.0.0.1:1\", »\"0.0.0.0:80\"]", "listen[1]", "other machines"),
    ("listen = [»\"[::]:80\"]\n[callers]\nallow_remote = true", "listen[0]", "[[callers.key]]"),
    (
        "listen = [»\"192.0.2.1:80\"]\n[[callers.key]]\nname = \"a\"\nfile = \"<key>\"",
        "listen[0]",
        "allow_remote",
    ),
    ("workers = »-1", "workers", "whole number"),
    ("workers = »99999999999999999999999", "workers", "whole number"),
    ("log = »\"info,c4n4ry=[=\"", "log", "filter"),
    ("log_format = »\"c4n4ry\"", "log_format", "must be"),
    ("[limits]\nconnections = »0", "limits.connections", "from 1"),
    ("[limits]\nconnections = »1000001", "limits.connections", "1000000"),
    ("[limits]\nheader_timeout = »\"0\"", "limits.header_timeout", "longer than nothing"),
    ("[limits]\nconnect_timeout = »\"0s\"", "limits.connect_timeout", "longer than nothing"),
    ("[limits]\nresponse_timeout = »\"c4n4ry\"", "limits.response_timeout", "not a duration"),
    ("[limits]\ntoken_wait = »\"10\"", "limits.token_wait", "not a duration"),
    ("[limits]\nidle_timeout = »\"\"", "limits.idle_timeout", "not a duration"),
    ("[limits]\ndrain_timeout = »\"1000years\"", "limits.drain_timeout", "longer than"),
    ("[limits]\nreplay_buffer = »\"64 c4n4ry\"", "limits.replay_buffer", "not a size"),
    ("[limits]\nreplay_buffer = »\"-1\"", "limits.replay_buffer", "not a size"),
    ("[limits]\nreplay_buffer = »\"1.5KiB\"", "limits.replay_buffer", "not a size"),
    ("[limits]\nreplay_buffer = »\"18446744073709551615KiB\"", "limits.replay_buffer", "too large"),
];
/// Next to what is refused, and good.
const ACCEPTED: &[&str] = &[
    "[account.main]\ntoken_file = \"<pat>\"",
    "[account.a-1_B]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nresponse_type = \"code\"\nresponse_mode = \"query\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nrefresh_at = 0.95\nlogin_lifetime = \"0\"\njwks_url = \"\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\ngrant = \"client_credentials\"\ntoken_url = \"http://[::1]:1/\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\ngrant = \"client_credentials\"\ntoken_url = \"https://api.cnblogs.com/token\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\ngrant = \"client_credentials\"\nissuer = \"https://h\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\ntoken_url = \"https://oauth.cnblogs.com/x\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nrevocation_url = \"\"\njwks_url = \"\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nauthorization_url = \"https://oauth.cnblogs.com/x\"\ntoken_url = \"https://api.cnblogs.com/token\"\nrevocation_url = \"\"\njwks_url = \"\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nauthorization_url = \"https://a/\"\ntoken_url = \"https://b/\"\nrevocation_url = \"https://c/\"\njwks_url = \"https://d/\"\nissuer = \"anything\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nissuer = \"https://h/realms/x\"\ntoken_url = \"https://b/\"\nrevocation_url = \"\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\npkce = \"off\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"\"\npkce = \"S256\"\nclient_auth = \"body\"",
    "[[route]]\nhttp = \"auto\"",
    "[[route]]\nproxy = \"http://proxy.example\"\nproxy_auth_file = \"\"",
    "[account.main]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\nproxy = \"http://[::1]:3128/\"\ntoken_url = \"https://oauth.cnblogs.com/x\"",
    "[[route]]\nupstream = \"http://localhost:8080/base/\"\nhttp = \"1.1\"",
    "[[route]]\nprefix = \"/a\"\n[[route]]\nprefix = \"/ab\"\n[[route]]\nprefix = \"/a/b\"",
    "[callers]\nusers = [\"self\", \"root\", 1000, \"1001\", \"*\"]\nhosts = [\"proxy.lan\", \"PROXY:8080\", \"[::1]:9\"]",
    "[callers]\nallowed_origins = [\"http://localhost:3000\", \"https://Example.com\"]",
    "listen = [\"0.0.0.0:80\"]\n[callers]\nallow_remote = true\n[[callers.key]]\nname = \"a\"\nfile = \"<key>\"\nroutes = [\"/\"]\nmethods = [\"GET\", \"X-OWN\"]",
    "listen = [\"[::1]:0\", \"unix:/tmp/a b.sock\", \"localhost:80\"]\nworkers = 1_0\nlog = \"info,cnblogs_proxy=debug\"",
    "[limits]\ntoken_wait = \"0\"\ndrain_timeout = \"0\"\nheader_timeout = \"1m 30s\"\nreplay_buffer = \"0\"\nconnections = 10_000",
    "\u{feff}listen = []\r\n[notify]\r\ncommand = [\"/bin/true\", \"\"]\r\n",
];

#[test]
fn the_shortest_file_is_accepted() {
    let home = furnished();

    let said = accepted(&home, &with_secret(&home, MINIMAL));

    assert!(said.contains("main: authorization_code, client BDB525D7-13C9-440E-AF03-6ADF87ACC8D6"), "{said}");
    // Somebody may have a daemon of his own there.
    let warnings = said.lines().filter(|line| line.starts_with("warning: ") && !line.contains(":8262 can't"));
    assert_eq!(warnings.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn stating_every_default_changes_nothing() {
    let home = furnished();
    let (minimal, complete) = (with_secret(&home, MINIMAL), with_secret(&home, COMPLETE));

    let said = accepted(&home, &complete);

    assert_eq!(said, accepted(&home, &minimal));
    // An address that is written has to be there, on a machine without IPv6 as well.
    let written = meaning(&home, &complete).replace("is_default_listen: false", "is_default_listen: true");
    assert_eq!(written, meaning(&home, &minimal));
}

#[test]
fn the_complete_file_names_every_key_that_the_program_knows_and_no_other() {
    let home = furnished();
    let mut in_file: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut table = String::new();
    for line in COMPLETE.lines().map(|line| line.strip_prefix('#').unwrap_or(line)) {
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with(' ')) {
            in_file.entry(table.clone()).or_default().push(key);
        }
    }

    for (table, keys) in KEYS {
        let known = keys.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ");
        let asked = fixture(table, "", "»\"🦀\" = 1");
        refused(&home, &asked, &full_key(table, "🦀"), &format!("hint: known here: {known}\n"));

        let is_value = |kind| !matches!(kind, Kind::Table | Kind::Tables | Kind::NamedTables);
        let stated: Vec<_> = keys.iter().filter(|(_, kind)| is_value(*kind)).map(|(key, _)| *key).collect();
        assert_eq!(in_file.remove(*table).unwrap_or_default(), stated, "[{table}] of complete.toml");
    }
    assert!(in_file.is_empty(), "complete.toml has tables that nobody knows: {in_file:?}");
}

#[test]
fn what_the_complete_file_leaves_as_comments_is_accepted_too() {
    let home = furnished();
    let uncommented = |skipped: &[&str]| {
        let lines = COMPLETE.lines().filter(|line| !skipped.iter().any(|skip| line.contains(skip)));
        let lines = lines.map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let key = home.path().join("key").display().to_string();
    let fill = |text: String| text.replace("/etc/cnblogs-proxy/reader.key", &key);

    let with_keys =
        with_secret(&home, &fill(uncommented(&["token_file", "#expires", "#url", "#password_file"])));
    let personal = fill(uncommented(&["client_secret_file", "#url", "#password_file"]))
        .replace("authorization_code\"", "personal_access_token\"");
    let pat = home.path().join("pat").display().to_string();
    let personal = personal.replace("/etc/cnblogs-proxy/personal_access_token", &pat);

    assert!(accepted(&home, &with_keys).contains(&format!("key            reader from file {key}\n")));
    assert!(accepted(&home, &personal).contains(&format!("personal_access_token, token from file {pat}\n")));
}

#[test]
fn a_key_that_does_not_exist_is_refused_at_every_level_with_what_was_meant() {
    let home = furnished();

    for (marked, key, says) in UNKNOWN {
        refused(&home, marked, key, &format!(": {key}: unknown key\n"));
        refused(&home, marked, key, says);
    }
}

#[test]
fn a_key_by_another_name_is_refused_with_the_name_that_it_has_here() {
    let home = furnished();

    for (marked, key, here) in [
        ("»port = 8262", "port", "listen"),
        ("»bind = \"c4n4ry\"", "bind", "listen"),
        ("»threads = 2", "threads", "workers"),
        ("[account.work]\n»jwks_uri = \"c4n4ry\"", "account.work.jwks_uri", "jwks_url"),
        ("[account.main]\n»token_endpoint = \"c4n4ry\"", "account.main.token_endpoint", "token_url"),
        ("[[route]]\n»target = \"c4n4ry\"", "route[0].target", "upstream"),
        ("[[route]]\n»https_proxy = \"c4n4ry\"", "route[0].https_proxy", "proxy"),
        ("[callers]\n»origins = []", "callers.origins", "allowed_origins"),
        ("[[callers.key]]\n»key_file = \"c4n4ry\"", "callers.key[0].key_file", "file"),
        ("[limits]\n»max_connections = 1", "limits.max_connections", "connections"),
        ("[notify]\n»exec = []", "notify.exec", "command"),
    ] {
        refused(&home, marked, key, &format!(": {key}: unknown key\nhint: it is called `{here}` here\n"));
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_whatever_the_key() {
    let literals = [
        ("»\"c4n4ry\"", "string"),
        ("»1", "integer"),
        ("»1.5", "float"),
        ("»true", "boolean"),
        ("»1979-05-27", "datetime"),
        ("»[\"c4n4ry\"]", "array"),
        ("»{ c = \"c4n4ry\" }", "table"),
    ];
    let home = furnished();

    for (table, key, kind) in all_keys() {
        let good: &[&str] = match kind {
            Kind::Text => &["string"],
            Kind::Texts | Kind::Users | Kind::Tables => &["array"],
            Kind::Whole => &["integer"],
            Kind::Truth => &["boolean"],
            Kind::Fraction => &["integer", "float"],
            Kind::Table | Kind::NamedTables => &["table"],
        };
        for (literal, _) in literals.iter().filter(|(_, name)| !good.contains(name)) {
            let marked = fixture(table, key, &format!("{key} = {literal}"));
            refused(&home, &marked, &full_key(table, key), "expected ");
        }
        let inside = match kind {
            Kind::Texts | Kind::Tables => "[»1]",
            Kind::Users => "[»true]",
            Kind::NamedTables => "{ main = »\"c4n4ry\" }",
            _ => continue,
        };
        let below = if kind == Kind::NamedTables { ".main" } else { "[0]" };
        let marked = fixture(table, key, &format!("{key} = {inside}"));
        refused(&home, &marked, &format!("{}{below}", full_key(table, key)), "expected ");
    }
}

#[test]
fn accounts_that_can_not_work_are_refused() {
    let home = furnished();

    refused_all(&home, REFUSED_ACCOUNTS);
    for (lines, key, says) in REFUSED_LOGINS {
        refused(&home, &fixture("account.main", "", lines), &format!("account.main.{key}"), says);
    }
}

#[test]
fn routes_that_can_not_work_are_refused() {
    let home = furnished();

    refused_all(&home, REFUSED_ROUTES);
}

#[test]
fn callers_that_can_not_be_told_apart_or_admitted_are_refused() {
    let home = furnished();

    refused_all(&home, REFUSED_CALLERS);
    for (lines, key, says) in REFUSED_KEYS {
        refused(&home, &fixture("callers.key", "", lines), &format!("callers.key[0].{key}"), says);
    }
}

#[test]
fn addresses_and_limits_that_make_no_sense_are_refused() {
    let home = furnished();

    refused_all(&home, REFUSED_AT_THE_TOP);
}

#[test]
fn several_accounts_need_routes_that_say_which_one() {
    let two = "[account.a]\nclient_id = \"id\"\nclient_secret_file = \"<secret>\"\n\
               [account.b]\ntoken_file = \"<pat>\"\n";
    let home = furnished();

    let config = write(&home, two);
    let told = text_of_refusal(&home.run(&["check"], ""));
    assert!(
        told.starts_with(&format!("error: {}: route: there are several accounts", config.display())),
        "{told}"
    );
    refused(&home, &format!("{two}»[[route]]\n"), "route[0]", "several accounts");
    refused(&home, &format!("{two}[[route]]\naccount = »\"c4n4ry\"\n"), "route[0].account", "there is: a, b");
    refused(
        &home,
        &format!("{two}[[route]]\naccount = \"a\"\n »[[route]]\nprefix = \"/b\"\n"),
        "route[1]",
        "several",
    );
    accepted(
        &home,
        &format!("{two}[[route]]\naccount = \"a\"\n[[route]]\nprefix = \"/b\"\naccount = \"b\"\n"),
    );
}

#[test]
fn what_is_next_to_a_refusal_and_good_is_accepted() {
    let home = furnished();

    for text in ACCEPTED {
        accepted(&home, text);
    }
}

#[test]
fn a_secret_file_that_can_not_be_one_is_refused_without_its_content() {
    let home = furnished();
    home.secret("empty", " \n");
    home.secret("lines", "c4n4ry\nc4n4ry\n");
    home.secret("c4n4ry-large", &"c4n4ry ".repeat(20_000));
    home.secret("c4n4ry-spaced", "c4n4ry c4n4ry");
    fs::write(home.path().join("binary"), b"c4n4ry\xff\xfe").unwrap();
    fs::create_dir(home.path().join("c4n4ry-directory")).unwrap();

    for (name, says) in [
        ("empty", "/empty is empty"),
        ("lines", "/lines has more than one line"),
        // What can't be read may be a secret in the wrong place.
        ("c4n4ry-large", "too large"),
        ("binary", "/binary is not text"),
        ("c4n4ry-directory", "can't be read"),
        ("c4n4ry-missing", "can't be read"),
    ] {
        let value = format!("»\"<home>/{name}\"");
        for (table, key) in
            [("account.main", "client_secret_file"), ("account.main", "token_file"), ("callers.key", "file")]
        {
            let marked = fixture(table, key, &format!("{key} = {value}"));
            refused(&home, &marked, &full_key(table, key), says);
        }
    }
    refused(
        &home,
        "[account.main]\ntoken_file = »\"<home>/c4n4ry-spaced\"",
        "account.main.token_file",
        "RFC 6750",
    );
}

#[test]
fn no_value_of_the_file_is_ever_shown() {
    let shapes = [
        "\"c4n4ry\"",
        "[\"c4n4ry\"]",
        "[[\"c4n4ry\"]]",
        "\"/c4n4ry/c4n4ry\"",
        "\"https://c4n4ry:c4n4ry@c4n4ry.example/c4n4ry\"",
        "\"http://c4n4ry.example:c4n4ry/\"",
        "\"c4n4ry=[c4n4ry\"",
        "c4n4ry",
        "\"c4n4ry",
        "'c4n4ry' c4n4ry",
        "\"\\c4n4ry\"",
        "\"\"\"c4n4ry",
        "12c4n4ry",
        "[ \"c4n4ry\"",
        "{ c = \"c4n4ry\"",
    ];
    let home = furnished();
    let mut refusals = 0;

    for (table, key, _) in all_keys() {
        for shape in shapes {
            write(&home, &fixture(table, key, &format!("{key} = {shape}")));
            let output = home.run(&["check"], "");
            if output.status.code() == Some(0) {
                continue;
            }
            refusals += 1;
            let told = text(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{key} = {shape}: {told}");
            assert!(
                told.starts_with(&format!("error: {}:", home.config().display())),
                "{key} = {shape}: {told}"
            );
            assert_shows_no_value(&output);
        }
    }

    assert!(refusals > 500, "only {refusals} files were refused");
}

#[test]
fn what_is_not_toml_is_refused_at_the_place_where_it_ends_to_be() {
    let home = furnished();

    for (marked, says) in [
        ("# 中文\nlog = »c4n4ry\n", "not valid TOML"),
        ("log = \"info\"\n»log = \"c4n4ry\"\n", "duplicate key"),
        ("\r\n\r\n  log = \"中文\"», \"c4n4ry\"\r\n", "not valid TOML"),
        ("[account.main]\n[account.»main]\nclient_id = \"c4n4ry\"\n", "duplicate key"),
    ] {
        let (text, place) = unmarked(marked);
        fs::write(home.config(), text).unwrap();
        let output = home.run(&["check"], "");
        let start = format!("error: {}:{place}: ", home.config().display());
        let told = text_of_refusal(&output);
        assert!(told.starts_with(&start) && told.contains(says), "{marked}: {told}");
    }
    fs::write(home.config(), b"log = \"c4n4ry\xff\"").unwrap();
    let told = text_of_refusal(&home.run(&["check"], ""));
    assert!(told.contains("UTF-8"), "{told}");
}

#[test]
fn the_first_configuration_file_of_the_documented_order_is_the_one() {
    let home = furnished();
    let file = |path: &str| {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, with_secret(&home, MINIMAL)).unwrap();
        path.display().to_string()
    };
    let argument = file("argument.toml");
    let variable = file("variable.toml");
    let xdg = file("xdg/cnblogs-proxy/config.toml");
    let usual = file(".config/cnblogs-proxy/config.toml");
    let xdg_home = home.path().join("xdg").display().to_string();
    let with_xdg = ("XDG_CONFIG_HOME", xdg_home.as_str());
    let with_variable = ("CNBLOGS_PROXY_CONFIG", variable.as_str());
    let used = |arguments: &[&str], environment: &[(&str, &str)]| {
        let said = done(&command(&home, arguments, environment));
        said.lines().next().unwrap().strip_prefix("configuration  ").unwrap().to_owned()
    };

    assert_eq!(used(&["check", "--config", &argument], &[with_variable, with_xdg]), argument);
    assert_eq!(used(&["--config", &argument, "check"], &[with_variable, with_xdg]), argument);
    assert_eq!(used(&["check"], &[with_variable, with_xdg]), variable);
    assert_eq!(used(&["check"], &[with_xdg]), xdg);
    assert_eq!(used(&["check"], &[("XDG_CONFIG_HOME", "xdg")]), usual, "a relative one is ignored");
    assert_eq!(used(&["check"], &[]), usual);
}

#[test]
fn a_configuration_file_that_was_named_must_be_there() {
    let home = furnished();
    let personal = ("CNBLOGS_PAT", "p4t");
    let missing = home.path().join("missing.toml").display().to_string();

    let by_argument = command(&home, &["check", "--config", &missing], &[personal]);
    let by_variable = command(&home, &["check"], &[personal, ("CNBLOGS_PROXY_CONFIG", &missing)]);
    let a_directory = command(&home, &["check", "--config", "/"], &[personal]);

    for output in [&by_argument, &by_variable] {
        assert!(
            text_of_refusal(output).starts_with(&format!("error: {missing}: can't be read")),
            "{output:?}"
        );
    }
    assert!(text_of_refusal(&a_directory).starts_with("error: /: can't be read"), "{a_directory:?}");
}

#[test]
fn variables_override_the_file() {
    let home = furnished();
    let top = "listen = [\"127.0.0.1:1\"]\nstate_dir = \"/from/file\"\n";
    let routes = "[[route]]\nprefix = \"/a\"\nupstream = \"https://a.example\"\n[[route]]\nupstream = \"https://b.example\"\n";
    write(&home, &format!("{top}{ACCOUNT}{routes}"));
    let line = |name: &str, value: &str| {
        let said = done(&command(&home, &["check"], &[(name, value)]));
        said.lines().filter(|line| !line.starts_with("account")).collect::<Vec<_>>().join("\n")
    };

    let listen = line("CNBLOGS_PROXY_LISTEN", "127.0.0.1:7001, [::1]:0,unix:/x/y.sock");
    assert!(
        listen.contains(
            "\nlisten         http://127.0.0.1:7001\nlisten         http://[::1]:0\nlisten         unix:/x/y.sock\nstate "
        ),
        "{listen}"
    );
    assert!(!listen.contains("127.0.0.1:1\n"), "{listen}");
    let state = line("CNBLOGS_PROXY_STATE_DIR", "/from/variable");
    assert!(state.contains("\nstate          /from/variable (will be made)\n"), "{state}");
    let upstream = line("CNBLOGS_PROXY_UPSTREAM", "http://127.0.0.1:9/base");
    assert!(upstream.contains("route          /a -> https://a.example with"), "{upstream}");
    assert!(upstream.contains("route          / -> http://127.0.0.1:9/base with"), "{upstream}");
    let empty = line("CNBLOGS_PROXY_LISTEN", "");
    assert!(
        empty.contains("\nlisten         http://127.0.0.1:1\n"),
        "an empty variable says nothing: {empty}"
    );
}

#[test]
fn variables_alone_are_a_whole_set_up() {
    let home = furnished();

    let said = done(&command(
        &home,
        &["check"],
        &[
            ("CNBLOGS_CLIENT_ID", "from-variable"),
            ("CNBLOGS_CLIENT_SECRET", "s3cret"),
            ("CNBLOGS_PROXY_UPSTREAM", "https://api.example/v2/"),
        ],
    ));

    assert!(said.starts_with("configuration  built-in defaults and the environment\n"), "{said}");
    assert!(
        said.contains("\nlisten         http://127.0.0.1:8262\nlisten         http://[::1]:8262\n"),
        "{said}"
    );
    assert!(said.contains("\nroute          / -> https://api.example/v2 with account main\n"), "{said}");
    assert!(
        said.contains("authorization_code, client from-variable, secret from CNBLOGS_CLIENT_SECRET,"),
        "{said}"
    );
    assert!(said.ends_with("\nok\n") && !said.contains("s3cret"), "{said}");
}

#[test]
fn a_variable_that_is_wrong_is_refused_by_its_name() {
    let home = furnished();
    let (id, secret) = (("CNBLOGS_CLIENT_ID", "id"), ("CNBLOGS_CLIENT_SECRET", "s3cret"));

    for (name, value) in [
        ("CNBLOGS_PROXY_LISTEN", "127.0.0.1:0,c4n4ry"),
        ("CNBLOGS_PROXY_LISTEN", "0.0.0.0:1"),
        ("CNBLOGS_PROXY_UPSTREAM", "http://c4n4ry.example"),
        ("CNBLOGS_PROXY_UPSTREAM", "https://c4n4ry@h"),
        ("CNBLOGS_PROXY_LOG", "c4n4ry=[="),
        ("CNBLOGS_PROXY_LOG_FORMAT", "c4n4ry"),
        ("CNBLOGS_CLIENT_SECRET", "c4n4ry\nc4n4ry"),
    ] {
        let output = command(&home, &["check"], &[id, secret, (name, value)]);
        assert!(text_of_refusal(&output).starts_with(&format!("error: {name}: ")), "{name}: {output:?}");
    }
    for (name, value) in [("CNBLOGS_CLIENT_SECRET_FILE", "/c4n4ry"), ("CNBLOGS_CLIENT_SECRET_FILE", "c4n4ry")]
    {
        let output = command(&home, &["check"], &[id, (name, value)]);
        assert!(text_of_refusal(&output).starts_with(&format!("error: {name}: ")), "{name}: {output:?}");
    }
    for (name, value) in [("CNBLOGS_PAT", "c4n4ry c4n4ry"), ("CNBLOGS_PAT_FILE", "/c4n4ry")] {
        let output = command(&home, &["check"], &[(name, value)]);
        assert!(text_of_refusal(&output).contains(name), "{name}: {output:?}");
    }
}

#[test]
fn the_secret_comes_from_the_first_place_of_the_documented_order() {
    let home = furnished();
    let pat = "[account.main]\ntoken_file = \"<pat>\"\n";
    let secret = home.path().join("secret").display().to_string();
    let credentials = home.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("client_secret"), "from-credential").unwrap();
    fs::write(credentials.join("pat"), "from-credential").unwrap();
    let id = ("CNBLOGS_CLIENT_ID", "id");
    let by_value = ("CNBLOGS_CLIENT_SECRET", "s3cret");
    let by_file = ("CNBLOGS_CLIENT_SECRET_FILE", secret.as_str());
    let credentials = credentials.display().to_string();
    let by_credential = ("CREDENTIALS_DIRECTORY", credentials.as_str());
    let (pat_by_value, pat_by_file) = (("CNBLOGS_PAT", "p4t"), ("CNBLOGS_PAT_FILE", secret.as_str()));
    let from_credential = format!("secret from file {credentials}/client_secret,");
    let pat_from_credential = format!("personal_access_token, token from file {credentials}/pat\n");
    let without_secret = "[account.main]\nclient_id = \"id\"\n";
    let from_file = format!("file {secret}");

    for (file, environment, expected) in [
        ("", &[id, by_value, by_file, by_credential][..], "secret from CNBLOGS_CLIENT_SECRET,"),
        ("", &[id, by_file, by_credential], &format!("secret from {from_file},")),
        ("", &[id, by_credential], &from_credential),
        ("", &[by_credential], &pat_from_credential),
        ("", &[pat_by_value, pat_by_file], "personal_access_token, token from CNBLOGS_PAT\n"),
        ("", &[pat_by_file], &format!("token from {from_file}\n")),
        (ACCOUNT, &[id, by_value], "client id, secret from CNBLOGS_CLIENT_SECRET,"),
        (ACCOUNT, &[("CNBLOGS_CLIENT_ID", "other")], &format!("client other, secret from {from_file},")),
        (ACCOUNT, &[by_credential], &format!("secret from {from_file},")),
        (without_secret, &[by_credential], &from_credential),
        (pat, &[pat_by_value], "token from CNBLOGS_PAT\n"),
        (pat, &[by_credential], &format!("token from file {}\n", home.path().join("pat").display())),
    ] {
        write(&home, file);
        let said = done(&command(&home, &["check"], environment));
        assert!(said.contains(expected), "{environment:?} with {file:?}: {said}");
        assert!(
            !said.contains("s3cret") && !said.contains("p4t") && !said.contains("from-credential"),
            "{said}"
        );
    }
}

#[test]
fn variables_that_contradict_each_other_or_the_file_are_refused() {
    let home = furnished();
    let (id, pat) = (("CNBLOGS_CLIENT_ID", "id"), ("CNBLOGS_PAT", CANARY));
    let secret = ("CNBLOGS_CLIENT_SECRET", CANARY);
    let grant = |grant: &str| ACCOUNT.replace("client_id", &format!("grant = \"{grant}\"\nclient_id"));

    for (file, environment, says) in [
        ("", &[id, secret, pat][..], "both CNBLOGS_CLIENT_ID and CNBLOGS_PAT"),
        ("", &[id, ("CNBLOGS_PAT_FILE", "/c4n4ry")], "CNBLOGS_PAT"),
        (&grant("authorization_code"), &[pat], "CNBLOGS_PAT"),
        (&grant("client_credentials"), &[pat], "CNBLOGS_PAT"),
        ("", &[id], "CNBLOGS_CLIENT_SECRET"),
        (
            "[[route]]\nprefix = \"/a\"\n[[route]]\nprefix = \"/b\"",
            &[pat, ("CNBLOGS_PROXY_UPSTREAM", "https://c4n4ry.example")],
            "CNBLOGS_PROXY_UPSTREAM",
        ),
        (
            "[[route]]\nproxy = \"http://proxy.example\"",
            &[pat, ("CNBLOGS_PROXY_UPSTREAM", "http://127.0.0.1:1")],
            "CNBLOGS_PROXY_UPSTREAM: a route with a `proxy` needs an https:// upstream",
        ),
    ] {
        write(&home, file);
        let told = text_of_refusal(&command(&home, &["check"], environment));
        assert!(told.contains(says), "{environment:?} with {file:?}: {told}");
    }
}

#[test]
fn without_an_account_the_error_teaches_the_shortest_set_up() {
    let home = furnished();
    let secret_alone = [("CNBLOGS_CLIENT_SECRET", CANARY)];

    for arguments in [&["check"][..], &["serve"], &[], &["status"], &["login"]] {
        for environment in [&[][..], &secret_alone] {
            let told = text_of_refusal(&command(&home, arguments, environment));
            assert!(told.starts_with("error: no account is configured\nhint: "), "{arguments:?}: {told}");
            for lesson in ["CNBLOGS_CLIENT_ID=", "CNBLOGS_CLIENT_SECRET=", "CNBLOGS_PAT=", "[account.main]"] {
                assert!(told.contains(lesson), "{arguments:?} does not teach {lesson}: {told}");
            }
        }
    }
}

#[test]
fn the_state_directory_comes_from_the_first_place_of_the_documented_order() {
    let home = furnished();
    let pat = ("CNBLOGS_PAT", "p4t");
    let variable = ("CNBLOGS_PROXY_STATE_DIR", "/a/variable");
    let systemd = ("STATE_DIRECTORY", "/a/systemd:/a/second");
    let xdg = ("XDG_STATE_HOME", "/a/xdg");
    let below_home = format!("{}/.local/state/cnblogs-proxy", home.path().display());

    for (file, environment, expected) in [
        ("state_dir = \"/a/file\"", &[pat, variable, systemd, xdg][..], "/a/variable"),
        ("state_dir = \"/a/file\"", &[pat, systemd, xdg], "/a/file"),
        ("", &[pat, systemd, xdg], "/a/systemd"),
        ("", &[pat, xdg], "/a/xdg/cnblogs-proxy"),
        ("", &[pat, ("XDG_STATE_HOME", "relative")], &below_home),
        ("", &[pat], &below_home),
    ] {
        write(&home, file);
        let said = done(&command(&home, &["check"], environment));
        assert!(
            said.contains(&format!("\nstate          {expected} (will be made)\n")),
            "{environment:?}: {said}"
        );
    }
}

#[test]
fn without_a_home_the_state_directory_must_be_given() {
    let home = furnished();
    let run = |environment: &[(&str, &str)]| {
        let mut command = home.command(&["check"]);
        command
            .env_remove("HOME")
            .env("CNBLOGS_PAT", "p4t")
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    };

    let told = text_of_refusal(&run(&[]));
    assert!(told.contains("state_dir: ") && told.contains("HOME"), "{told}");
    assert!(told.contains("\nhint: ") && told.contains("CNBLOGS_PROXY_STATE_DIR"), "{told}");
    for given in [("CNBLOGS_PROXY_STATE_DIR", "/a/b"), ("STATE_DIRECTORY", "/a/b")] {
        assert!(done(&run(&[given])).contains("\nstate          /a/b (will be made)\n"), "{given:?}");
    }
}

#[test]
fn the_log_filter_of_the_command_line_wins_over_the_variable_and_that_over_the_file() {
    for (file, variable, argument, shows_info) in [
        ("error", "", "", false),
        ("info", "", "", true),
        ("error", "info", "", true),
        ("info", "error", "", false),
        ("error", "error", "info", true),
        ("info", "info", "error", false),
    ] {
        let home = furnished();
        let top = format!("log = \"{file}\"\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"<home>/state\"\n");
        write(
            &home,
            &format!(
                "{top}[account.main]\ntoken_file = \"<pat>\"\n[[callers.key]]\nname = \"k\"\nfile = \"<key>\"\n"
            ),
        );
        let mut command = home.command(&["serve"]);
        command.env("CNBLOGS_PROXY_LOG", variable);
        if !argument.is_empty() {
            command.args(["--log", argument]);
        }
        let daemon = Daemon::spawn(command);

        home.secret("key", "another-key");
        daemon.signal(rustix::process::Signal::HUP);
        let authorization = [("Authorization", "Bearer another-key")];
        eventually("the key was taken over", || {
            (daemon.request("GET", "/-/status", &authorization, b"").status == 200).then_some(())
        });
        fs::write(home.config(), "c4n4ry").unwrap();
        daemon.signal(rustix::process::Signal::HUP);
        eventually("an error is logged", || daemon.output().contains("not taken over").then_some(()));

        let output = daemon.output();
        assert_eq!(output.contains("took over"), shows_info, "{file}, {variable}, {argument}: {output}");
        assert!(!output.contains(CANARY), "{output}");
    }
}

#[test]
fn log_lines_have_the_format_that_is_asked_for() {
    for (file, environment, looks) in [
        ("json", &[][..], "{\""),
        ("text", &[("CNBLOGS_PROXY_LOG_FORMAT", "json")], "{\""),
        ("json", &[("CNBLOGS_PROXY_LOG_FORMAT", "auto"), ("JOURNAL_STREAM", "ours")], "<6>"),
        ("text", &[("JOURNAL_STREAM", "ours")], "2"),
        ("auto", &[("JOURNAL_STREAM", "8:1")], "2"),
        ("auto", &[], "2"),
    ] {
        let home = furnished();
        let top =
            format!("log_format = \"{file}\"\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"<home>/state\"\n");
        write(&home, &format!("{top}[account.main]\ntoken_file = \"<pat>\"\n"));
        let mut command = in_the_journal(&home.command(&["serve"]));
        command.envs(environment.iter().copied());
        let daemon = Daemon::spawn(command);

        daemon.signal(rustix::process::Signal::HUP);
        let line = eventually("a line is logged", || {
            daemon.output().lines().find(|line| line.contains("took over")).map(str::to_owned)
        });

        assert!(line.starts_with(looks) && !line.contains('\u{1b}'), "{file}, {environment:?}: {line}");
        let as_json = serde_json::from_str::<serde_json::Value>(&line);
        assert_eq!(as_json.is_ok(), looks.starts_with('{'), "{file}, {environment:?}: {line}");
    }
}

/// The command as a service: `JOURNAL_STREAM`, when it is "ours", names its own standard error.
fn in_the_journal(command: &Command) -> Command {
    let script = "[ \"$JOURNAL_STREAM\" != ours ] || export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2); exec \"$@\"";
    let mut service = Command::new("sh");
    service.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    service.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    service
}

#[test]
fn every_route_leads_to_its_upstream_with_the_token_of_its_account() {
    let world = three_accounts();
    world.log_in(Person::Alice);
    let person = token_of(&world, "main");
    let application = token_of(&world, "app");
    assert_ne!(person, application);

    for (asked, arrives, token, kind) in [
        ("/echo/x", "/echo/x", &person, None),
        ("/app", "/echo/of-app", &application, None),
        ("/app/", "/echo/of-app/", &application, None),
        ("/app/x?y=/pat/z", "/echo/of-app/x?y=/pat/z", &application, None),
        ("/app/pat", "/echo/of-app-pat", &"p4t-of-bob".to_owned(), Some("pat")),
        ("/app/pat/x//y", "/echo/of-app-pat/x//y", &"p4t-of-bob".to_owned(), Some("pat")),
        ("/app/patent", "/echo/of-app/patent", &application, None),
        ("/application", "/application", &person, None),
        ("/app%2Fpat", "/app%2Fpat", &person, None),
        ("/APP/x", "/APP/x", &person, None),
        ("//app/x", "//app/x", &person, None),
    ] {
        let before = world.standin.api_requests().len();
        let answer = world.daemon.get(asked);
        let came: Vec<RecordedRequest> = world.standin.api_requests().split_off(before);
        assert_eq!(came.len(), 1, "{asked}: {answer:?}");
        assert_eq!(came[0].target, arrives, "{asked}");
        assert_eq!(came[0].fields_named("authorization"), [format!("Bearer {token}")], "{asked}");
        assert_eq!(came[0].field("authorization-type").as_deref(), kind, "{asked}");
    }
    assert_eq!(world.standin.api_violations(), Vec::<String>::new());
}

#[test]
fn an_account_that_needs_a_login_does_not_hold_up_the_others() {
    let world = three_accounts();

    let refused = world.daemon.get("/echo/x");
    assert_eq!((refused.status, refused.problem()), (503, "login-required".to_owned()));
    eventually("the application has a token", || (world.daemon.get("/app/x").status == 200).then_some(()));
    assert_eq!(world.daemon.get("/app/pat/x").status, 200);
    let grants: Vec<_> =
        world.standin.token_requests().into_iter().map(|request| request.grant_type).collect();
    assert_eq!(grants, ["client_credentials"]);
    assert_eq!(world.daemon.status()["accounts"].as_object().unwrap().len(), 3);
}

/// A person's login at `/`, the application's own token at `/app`, a personal access token at `/app/pat`.
fn three_accounts() -> World {
    let personal = ("p4t-of-bob".to_owned(), Person::Bob);
    let standin = Standin::start(Options { personal_access_tokens: vec![personal], ..Options::default() });
    let home = Home::new(Vec::new());
    let pat = home.secret("pat", "p4t-of-bob\n");
    let (auth, api) = (standin.auth_url(), standin.api_url());
    let accounts = format!(
        "\n[account.app]\ngrant = \"client_credentials\"\nclient_id = \"{id}\"\nclient_secret_file = \"{secret}\"\n\
         token_url = \"{auth}/connect/token\"\n\n\
         [account.pat]\ngrant = \"personal_access_token\"\ntoken_file = \"{pat}\"\n",
        id = standin.options().client_id,
        secret = home.path().join("client_secret").display(),
        pat = pat.display(),
    );
    let routes = format!(
        "account = \"main\"\n\n[[route]]\nprefix = \"/app/\"\nupstream = \"{api}/echo/of-app\"\naccount = \"app\"\n\n\
         [[route]]\nprefix = \"/app/pat\"\nupstream = \"{api}/echo/of-app-pat/\"\naccount = \"pat\"\n"
    );
    fs::write(home.config(), config(&standin, &home, "", &accounts, &routes, "")).unwrap();
    let daemon = home.serve();
    World { daemon, standin, home }
}

#[track_caller]
fn token_of(world: &World, account: &str) -> String {
    done(&world.home.run(&["token", account], "")).trim_end().to_owned()
}

/// A home with everything that fixtures name.
fn furnished() -> Home {
    let home = Home::new(Vec::new());
    home.secret("secret", "s3cret-of-client\n");
    home.secret("pat", "p4t-of-somebody\n");
    home.secret("spaced", "c4n4ry c4n4ry\n");
    home.secret("key", "a-key\n");
    home.secret("other-key", "an-other-key\n");
    home
}

/// A file in which this table has these lines, and everything else that it needs.
fn fixture(table: &str, key: &str, lines: &str) -> String {
    let client_id = if key == "client_id" { "" } else { "client_id = \"id\"\n" };
    let secret = match key {
        "client_secret_file" | "token_file" => "",
        // The end of a personal access token.
        "expires" => "token_file = \"<pat>\"\n",
        _ => "client_secret_file = \"<secret>\"\n",
    };
    let name = if key == "name" { "" } else { "name = \"k\"\n" };
    let file = if key == "file" { "" } else { "file = \"<key>\"\n" };
    match table {
        "" if key == "account" => format!("{lines}\n"),
        "" => format!("{lines}\n{ACCOUNT}"),
        "account.main" => format!("[account.main]\n{client_id}{secret}{lines}\n"),
        "route" => format!("{ACCOUNT}[[route]]\n{lines}\n"),
        "callers.key" => format!("{ACCOUNT}[[callers.key]]\n{name}{file}{lines}\n"),
        _ => format!("{ACCOUNT}[{table}]\n{lines}\n"),
    }
}

/// Every key that has a value of its own or stands for tables with names, and its table.
pub(crate) fn keys_with_values() -> impl Iterator<Item = (&'static str, &'static str)> {
    all_keys().filter(|(_, _, kind)| *kind != Kind::Table).map(|(table, key, _)| (table, key))
}

fn all_keys() -> impl Iterator<Item = (&'static str, &'static str, Kind)> {
    KEYS.iter().flat_map(|(table, keys)| keys.iter().map(move |(key, kind)| (*table, *key, *kind)))
}

/// A key as errors name it.
fn full_key(table: &str, key: &str) -> String {
    match table {
        "" => key.to_owned(),
        "route" | "callers.key" => format!("{table}[0].{key}"),
        _ => format!("{table}.{key}"),
    }
}

/// One of the files of `config/`, with a client secret that is there.
fn with_secret(home: &Home, example: &str) -> String {
    assert!(example.contains("\"/etc/cnblogs-proxy/client_secret\""), "{example}");
    let secret = home.path().join("secret").display().to_string();
    example.replace("/etc/cnblogs-proxy/client_secret", &secret)
}

/// What the library makes of a file.
fn meaning(home: &Home, text: &str) -> String {
    fs::write(home.config(), text).unwrap();
    let home_variable = ("HOME".to_owned(), home.path().display().to_string());
    let config = Config::load(Some(&home.config()), &Environment::new([home_variable])).unwrap();
    format!("{config:#?}")
}

/// Writes the configuration file, with the placeholders filled in; an empty text is no file.
fn write(home: &Home, fixture: &str) -> PathBuf {
    let mut text = fixture.to_owned();
    for name in ["secret", "pat", "spaced", "key", "other-key"] {
        text = text.replace(&format!("<{name}>"), &home.path().join(name).display().to_string());
    }
    text = text.replace("<home>", &home.path().display().to_string());
    if fixture.is_empty() {
        let _absent = fs::remove_file(home.config());
    } else {
        fs::write(home.config(), text).unwrap();
    }
    home.config()
}

/// A text without its mark, and where that stood, as `line:column`.
#[track_caller]
fn unmarked(marked: &str) -> (String, String) {
    assert_eq!(marked.matches('»').count(), 1, "one place is marked: {marked}");
    let before = marked.split('»').next().unwrap();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
    (marked.replace('»', ""), format!("{line}:{column}"))
}

#[track_caller]
fn refused_all(home: &Home, table: &[(&str, &str, &str)]) {
    assert!(!table.is_empty(), "there is something to refuse");
    for (marked, key, says) in table {
        refused(home, marked, key, says);
    }
}

/// `check` refuses the file at the mark, under that key, with some words in the error or the hint.
#[track_caller]
fn refused(home: &Home, marked: &str, key: &str, says: &str) {
    let (mut text, place) = unmarked(marked);
    if !text.contains("[account") && !text.starts_with("account") {
        text.push_str(ACCOUNT);
    }
    let config = write(home, &text);

    let told = text_of_refusal(&home.run(&["check"], ""));
    let start = format!("error: {}:{place}: {key}: ", config.display());
    assert!(told.starts_with(&start), "expected {start}\ngot {told}\nfor {marked}");
    assert!(told.contains(says), "expected {says:?}\ngot {told}\nfor {marked}");
}

/// What `check` says of a file that is good.
#[track_caller]
fn accepted(home: &Home, text: &str) -> String {
    let has_account = text.contains("[account");
    write(home, &if has_account { text.to_owned() } else { format!("{text}{ACCOUNT}") });
    done(&home.run(&["check"], ""))
}

fn command(home: &Home, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    home.command(arguments).envs(environment.iter().copied()).output().unwrap()
}

/// The standard output of a command that did what it was asked.
#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "", "{output:?}");
    text(&output.stdout)
}

/// The standard error of a configuration error: one line, at most one hint, nothing else and no value.
#[track_caller]
fn text_of_refusal(output: &Output) -> String {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(text(&output.stdout), "", "{output:?}");
    let starts: Vec<_> = told.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert!(starts == ["error:"] || starts == ["error:", "hint:"], "{told}");
    assert_shows_no_value(output);
    told
}

#[track_caller]
fn assert_shows_no_value(output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        assert!(!text(stream).to_lowercase().contains(CANARY), "a value is shown: {}", text(stream));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
