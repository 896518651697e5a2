//! The `[account.*]` tables, the variables that stand in for them, and the combinations that make sense.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;
use url::Url;

use super::files::{ca_file, secret, secret_file};
use super::http_proxy;
use super::reader::{Known, TableReader};
use super::{
    Account, Address, BrowserLogin, Client, ClientAuth, ConfigError, Endpoints, Environment, Grant,
    GrantType, HttpProxy, Identity, ResponseMode, ResponseType, Route, Secret, parse,
};
use crate::token::is_b64token;

/// The account that variables and the shortest set-up speak of.
const MAIN: &str = "main";
pub(super) const ACCOUNT: Known = &[
    "grant",
    "client_id",
    "client_secret_file",
    "token_file",
    "scope",
    "redirect_uri",
    "pkce",
    "response_type",
    "response_mode",
    "issuer",
    "authorization_url",
    "token_url",
    "revocation_url",
    "jwks_url",
    "client_auth",
    "ca_file",
    "proxy",
    "proxy_auth_file",
    "refresh_at",
    "identity_url",
    "login_lifetime",
    "expires",
    "required",
];
const DEFAULT_SCOPE: &str = "openid profile CnBlogsApi offline_access";
const DEFAULT_REDIRECT_URI: &str = "https://oauth.cnblogs.com/auth/callback";
/// The keys of [`Endpoints::all`], in its order.
pub(super) const ENDPOINTS: [&str; 4] = ["authorization_url", "token_url", "revocation_url", "jwks_url"];
const DEFAULT_LOGIN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn read(
    root: &TableReader<'_>,
    environment: &Environment,
    file: Option<&Path>,
) -> Result<BTreeMap<String, Account>, ConfigError> {
    let mut accounts = BTreeMap::new();
    for (name, table) in root.named_tables("account", ACCOUNT)? {
        if !is_account_name(&name) {
            return Err(table.error("an account's name has 1 to 64 letters, digits, `-` and `_`"));
        }
        let account = read_account(&name, &table, environment)?;
        accounts.insert(name, account);
    }

    if !accounts.contains_key(MAIN)
        && let Some(account) = from_environment(environment, accounts.is_empty())?
    {
        accounts.insert(MAIN.to_owned(), account);
    }
    if accounts.is_empty() {
        return Err(ConfigError::at("", "", "no account is configured".to_owned())
            .with_hint(teaching(file, environment)));
    }
    Ok(accounts)
}

/// The shortest ways to an account.
fn teaching(file: Option<&Path>, environment: &Environment) -> String {
    let usual = match environment.directory("XDG_CONFIG_HOME", ".config") {
        Some(_) => "~/.config/cnblogs-proxy/config.toml",
        None => "/etc/cnblogs-proxy/config.toml",
    };
    format!(
        "the shortest set-up is two variables: CNBLOGS_CLIENT_ID=... CNBLOGS_CLIENT_SECRET=... cnblogs-proxy (from \
         https://api.cnblogs.com, \"create an application\"), or CNBLOGS_PAT=... with a personal access token from \
         your account settings; or write an [account.main] table into {}",
        file.unwrap_or_else(|| Path::new(usual)).display()
    )
}

/// Where an account's person is asked for, when the file does not say: on the account's first upstream.
pub(super) fn fill_identity(accounts: &mut BTreeMap<String, Account>, routes: &[Route]) {
    for account in accounts.values_mut() {
        if let Grant::AuthorizationCode(_, login) = &mut account.grant
            && let Some(identity) = login.identity.as_mut().filter(|identity| identity.url.is_none())
            && let Some(route) = routes.iter().find(|route| route.account == account.name)
        {
            identity.url = Url::parse(&format!("{}/api/users", route.upstream.origin())).ok();
        }
    }
}

/// The account that variables and credentials alone describe.
fn from_environment(environment: &Environment, alone: bool) -> Result<Option<Account>, ConfigError> {
    let has_variable = ["CNBLOGS_CLIENT_ID", "CNBLOGS_PAT", "CNBLOGS_PAT_FILE"]
        .iter()
        .any(|name| environment.var(name).is_some());
    let has_credential = alone && environment.credential("pat").is_some();
    if !has_variable && !has_credential {
        return Ok(None);
    }
    let empty = toml::de::DeTable::new();
    let source = super::Source::new(Path::new("(environment)"), String::new());
    let table = TableReader::new(&source, format!("account.{MAIN}"), None, &empty, ACCOUNT)?;
    read_account(MAIN, &table, environment).map(Some)
}

fn read_account(
    name: &str,
    table: &TableReader<'_>,
    environment: &Environment,
) -> Result<Account, ConfigError> {
    let own = (name == MAIN).then_some(environment);
    let grant_type = read_grant_type(table, own, environment)?;
    let secret = read_secret(grant_type, table, own, environment)?;
    // Every key is checked, also where the grant does not need it.
    let client_id = table.string("client_id")?;
    let client_id = own.and_then(|env| env.var("CNBLOGS_CLIENT_ID")).map(str::to_owned).or(client_id);
    let client_id = client_id.filter(|id| !id.is_empty());
    let client_auth = read_client_auth(table, grant_type, &secret)?;
    let issuer = table.string("issuer")?.filter(|issuer| !issuer.is_empty());
    let endpoints = read_endpoints(table, grant_type, issuer.as_deref())?;
    let login = read_login(table, client_auth, &endpoints)?;
    let expires_at_ms = read_expires(table, grant_type)?;
    let scope = table.string("scope")?.filter(|scope| !scope.trim().is_empty());
    let refresh_at = read_refresh_at(table)?;
    let client = |scope| {
        let client_id = client_id.ok_or_else(|| {
            table.error("needs a `client_id`").with_hint(
                "the application has it at https://api.cnblogs.com; CNBLOGS_CLIENT_ID gives it, too",
            )
        })?;
        Ok(Client { client_id, client_auth, scope, issuer, endpoints, refresh_at })
    };

    Ok(Account {
        name: name.to_owned(),
        grant: match grant_type {
            GrantType::AuthorizationCode => {
                let scope = scope.unwrap_or_else(|| DEFAULT_SCOPE.to_owned());
                Grant::AuthorizationCode(client(Some(scope))?, Box::new(login))
            }
            GrantType::ClientCredentials => Grant::ClientCredentials(client(scope)?),
            GrantType::PersonalAccessToken => Grant::PersonalAccessToken { expires_at_ms },
        },
        secret,
        ca: ca_file(table)?,
        proxy: read_proxy(table, grant_type)?,
        required: table.entry("required").map(|entry| entry.boolean()).transpose()?.unwrap_or(true),
    })
}

fn read_login(
    table: &TableReader<'_>,
    client_auth: ClientAuth,
    endpoints: &Endpoints,
) -> Result<BrowserLogin, ConfigError> {
    let redirect_uri = table.parsed("redirect_uri", parse::redirect_uri)?;
    let default = || parse::redirect_uri(DEFAULT_REDIRECT_URI).expect("the default is a URL");
    let (response_type, response_mode) = read_response(table)?;
    let lifetime = table.parsed("login_lifetime", parse::duration)?.unwrap_or(DEFAULT_LOGIN_LIFETIME);
    let identity = table.parsed("identity_url", |text| match text {
        "" => Ok(None),
        text => parse::endpoint(text).map(|url| Some(Identity { userinfo_first: false, url: Some(url) })),
    })?;
    // The URL is that of the first route, which is not known yet.
    let default_identity = Identity { userinfo_first: endpoints.are_discovered(), url: None };
    Ok(BrowserLogin {
        redirect_uri: redirect_uri.unwrap_or_else(default),
        pkce: read_pkce(table, client_auth)?,
        response_type,
        response_mode,
        identity: identity.unwrap_or(Some(default_identity)),
        lifetime: Some(lifetime).filter(|lifetime| !lifetime.is_zero()),
    })
}

fn read_grant_type(
    table: &TableReader<'_>,
    own: Option<&Environment>,
    environment: &Environment,
) -> Result<GrantType, ConfigError> {
    let grant = table.parsed("grant", |text| GrantType::try_from(text.to_owned()))?;
    let pat = own.is_some_and(|env| env.var("CNBLOGS_PAT").or_else(|| env.var("CNBLOGS_PAT_FILE")).is_some());
    let client = own.is_some_and(|env| env.var("CNBLOGS_CLIENT_ID").is_some());
    match grant {
        Some(GrantType::AuthorizationCode | GrantType::ClientCredentials) if pat => {
            Err(table.error("CNBLOGS_PAT is set, but this account's grant is not \"personal_access_token\""))
        }
        Some(GrantType::PersonalAccessToken) if client => {
            Err(table
                .error("CNBLOGS_CLIENT_ID is set, but this account's grant is \"personal_access_token\""))
        }
        Some(grant) => Ok(grant),
        None if pat && client => {
            Err(table.error("both CNBLOGS_CLIENT_ID and CNBLOGS_PAT are set: an account has one of them"))
        }
        None if pat || table.entry("token_file").is_some() => Ok(GrantType::PersonalAccessToken),
        None if client || table.entry("client_id").is_some() => Ok(GrantType::AuthorizationCode),
        None if environment.credential("pat").is_some() => Ok(GrantType::PersonalAccessToken),
        None => Ok(GrantType::AuthorizationCode),
    }
}

fn read_secret(
    grant: GrantType,
    table: &TableReader<'_>,
    own: Option<&Environment>,
    environment: &Environment,
) -> Result<Secret, ConfigError> {
    let is_pat = grant == GrantType::PersonalAccessToken;
    let (key, other) =
        if is_pat { ("token_file", "client_secret_file") } else { ("client_secret_file", "token_file") };
    if let Some(entry) = table.entry(other) {
        return Err(entry.error(format!("does not go with grant = \"{}\"", grant.as_str())));
    }
    let (variable, credential) =
        if is_pat { ("CNBLOGS_PAT", "pat") } else { ("CNBLOGS_CLIENT_SECRET", "client_secret") };
    let file_variable = if is_pat { "CNBLOGS_PAT_FILE" } else { "CNBLOGS_CLIENT_SECRET_FILE" };

    let from_file = table.entry(key).map(|entry| (entry.string(), entry));
    let in_variable = |name: &str, found: Result<Secret, String>| {
        found.map_err(|message| ConfigError::at(name, "", message))
    };
    let found = if let Some(text) = own.and_then(|env| env.var(variable)) {
        in_variable(variable, secret(text.as_bytes(), variable.to_owned()))?
    } else if let Some(path) = own.and_then(|env| env.var(file_variable)) {
        in_variable(file_variable, secret_file(Path::new(path)))?
    } else if let Some((path, entry)) = from_file {
        match path?.as_str() {
            "" if !is_pat => return Ok(Secret { value: "".into(), from: String::new() }),
            path => secret_file(Path::new(path)).map_err(|message| entry.error(message))?,
        }
    } else if let Some(path) = environment.credential(credential) {
        in_variable("CREDENTIALS_DIRECTORY", secret_file(&path))?
    } else if environment.may_lack_secrets {
        return Ok(Secret { value: "".into(), from: "the daemon".to_owned() });
    } else {
        let what = if is_pat { "personal access token" } else { "client secret" };
        return Err(table.error(format!("has no {what}")).with_hint(format!(
            "put it in a file that only you can read and set `{key}`, or give {variable} or {file_variable} \
             (a systemd credential `{credential}` is seen by its service alone)"
        )));
    };
    if is_pat && !is_b64token(found.value.expose_secret()) {
        let message = "not a token (RFC 6750): it has other characters than letters, digits and -._~+/";
        return Err(match found.from.strip_prefix("CNBLOGS_") {
            Some(_) => ConfigError::at(&found.from, "", message.to_owned()),
            None => table.error_at(key, message),
        });
    }
    Ok(found)
}

fn read_response(table: &TableReader<'_>) -> Result<(ResponseType, ResponseMode), ConfigError> {
    let response_type = table.parsed("response_type", |text| match text {
        "code id_token" | "id_token code" => Ok(ResponseType::Hybrid),
        "code" => Ok(ResponseType::Code),
        _ => Err("must be \"code id_token\" or \"code\"".to_owned()),
    })?;
    let response_type = response_type.unwrap_or(ResponseType::Hybrid);
    let response_mode = table.parsed("response_mode", |text| match text {
        "fragment" => Ok(ResponseMode::Fragment),
        "form_post" => Ok(ResponseMode::FormPost),
        "query" if response_type == ResponseType::Code => Ok(ResponseMode::Query),
        "query" => Err("\"query\" goes only with response_type = \"code\"".to_owned()),
        _ => Err("must be \"fragment\", \"form_post\" or \"query\"".to_owned()),
    })?;
    let default = match response_type {
        ResponseType::Hybrid => ResponseMode::Fragment,
        ResponseType::Code => ResponseMode::Query,
    };
    Ok((response_type, response_mode.unwrap_or(default)))
}

fn read_refresh_at(table: &TableReader<'_>) -> Result<f64, ConfigError> {
    let Some(entry) = table.entry("refresh_at") else { return Ok(0.5) };
    let fraction = entry.fraction()?;
    if (0.01..=0.95).contains(&fraction) {
        Ok(fraction)
    } else {
        Err(entry.error("must be a fraction from 0.01 to 0.95"))
    }
}

fn read_proxy(table: &TableReader<'_>, grant: GrantType) -> Result<Option<HttpProxy>, ConfigError> {
    let proxy = http_proxy::read(table)?;
    if proxy.is_some() && grant == GrantType::PersonalAccessToken {
        let message = format!("does not go with grant = \"{}\"", grant.as_str());
        return Err(table.error_at("proxy", message).with_hint(
            "no server is asked for such a token: set `proxy` where it is used, at the [[route]]",
        ));
    }
    Ok(proxy)
}

fn read_expires(table: &TableReader<'_>, grant: GrantType) -> Result<Option<i64>, ConfigError> {
    let expires_at_ms = table.parsed("expires", parse::end_of_day)?;
    if expires_at_ms.is_some() && grant != GrantType::PersonalAccessToken {
        return Err(table.error_at("expires", format!("does not go with grant = \"{}\"", grant.as_str())));
    }
    Ok(expires_at_ms)
}

/// The endpoints, all from one place: Cnblogs', the issuer's, or as they are written. What is not written never comes
/// from Cnblogs beside endpoints elsewhere: tokens and secret of another server would be sent there.
fn read_endpoints(
    table: &TableReader<'_>,
    grant: GrantType,
    issuer: Option<&str>,
) -> Result<Endpoints, ConfigError> {
    let is_needed = |key| match grant {
        GrantType::AuthorizationCode => true,
        GrantType::ClientCredentials => key == "token_url",
        GrantType::PersonalAccessToken => false,
    };
    let mut missing = Vec::new();
    let mut address = |key: &'static str, default: Address| {
        let written = table.parsed(key, |text| match text {
            "" => Ok(Address::None),
            text => parse::endpoint(text).map(Address::At),
        })?;
        let must_be_there = is_needed(key) && ["authorization_url", "token_url"].contains(&key);
        match written {
            Some(Address::None) if must_be_there => Err(table.error_at(key, "must not be empty")),
            Some(written) => Ok(written),
            None if !is_needed(key) => Ok(Address::None),
            None => {
                missing.push(key);
                Ok(if issuer.is_some() { Address::Discovered } else { default })
            }
        }
    };
    let cnblogs = Endpoints::default();
    let endpoints = Endpoints {
        authorization: address("authorization_url", cnblogs.authorization)?,
        token: address("token_url", cnblogs.token)?,
        revocation: address("revocation_url", cnblogs.revocation)?,
        jwks: address("jwks_url", cnblogs.jwks)?,
    };
    come_from_one_place(table, &endpoints, issuer, &missing).map(|()| endpoints)
}

fn come_from_one_place(
    table: &TableReader<'_>,
    endpoints: &Endpoints,
    issuer: Option<&str>,
    missing: &[&str],
) -> Result<(), ConfigError> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(", ");
    if let Some(issuer) = issuer {
        return parse::issuer(issuer).map_err(|message| {
            table.error_at("issuer", format!("can't be asked for what is not written ({names}): {message}"))
        });
    }
    let mut written = ENDPOINTS.into_iter().zip(endpoints.all()).filter(|(key, _)| !missing.contains(key));
    let is_foreign = |url: &Url| url.host_str() != Some("oauth.cnblogs.com");
    match written.find(|(_, address)| address.url().is_some_and(is_foreign)) {
        Some((key, _)) => Err(table
            .error_at(key, format!("is not Cnblogs', so {names} must be written, too"))
            .with_hint(
                "write them as the server's documentation says; revocation_url = \"\" when it revokes nothing, \
                 jwks_url = \"\" when it publishes no keys (nobody checks an id_token's signature then, and only TLS \
                 to the token endpoint vouches for a login); or set `issuer`, and its discovery document says them",
            )),
        None => Ok(()),
    }
}

/// None when it is not written; none inside when nobody is to be asked.
fn read_client_auth(
    table: &TableReader<'_>,
    grant: GrantType,
    secret: &Secret,
) -> Result<ClientAuth, ConfigError> {
    let written = table.parsed("client_auth", |text| match text {
        "body" => Ok(ClientAuth::Body),
        "basic" => Ok(ClientAuth::Basic),
        _ => Err("must be \"body\" or \"basic\"".to_owned()),
    })?;
    match (secret.from.is_empty(), written) {
        (false, written) => Ok(written.unwrap_or(ClientAuth::Body)),
        (true, _) if grant == GrantType::ClientCredentials => {
            Err(table.error_at("client_secret_file", "must not be empty with grant = \"client_credentials\""))
        }
        (true, Some(ClientAuth::Basic)) => {
            Err(table
                .error_at("client_auth", "\"basic\" needs a client secret, and client_secret_file is empty"))
        }
        (true, _) => Ok(ClientAuth::None),
    }
}

fn read_pkce(table: &TableReader<'_>, client_auth: ClientAuth) -> Result<bool, ConfigError> {
    let pkce = table.parsed("pkce", |text| match text {
        "S256" => Ok(true),
        "off" if client_auth == ClientAuth::None => {
            Err("a client without a secret needs \"S256\": nothing else proves that a code is its own"
                .to_owned())
        }
        "off" => Ok(false),
        _ => Err("must be \"S256\" or \"off\"".to_owned()),
    })?;
    Ok(pkce.unwrap_or(true))
}

impl Default for Endpoints {
    /// Those of Cnblogs.
    fn default() -> Self {
        let at = |path: &str| {
            let url = Url::parse(&format!("https://oauth.cnblogs.com{path}"));
            Address::At(url.expect("the default is a URL"))
        };
        Self {
            authorization: at("/connect/authorize"),
            token: at("/connect/token"),
            revocation: at("/connect/revocation"),
            jwks: at("/.well-known/openid-configuration/jwks"),
        }
    }
}

/// Stands for "not said" until the routes are known.
fn is_account_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}
