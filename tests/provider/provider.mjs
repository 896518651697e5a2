// A real OpenID provider (npm oidc-provider) set up like Cnblogs, and an API that its access tokens protect.
//
//   node provider.mjs --dir DIR [--access-token-lifetime SECONDS]
//
// Prints one line of JSON with every address once all of them accept, and ends when its standard input does:
//
//   issuer, authorization_url, token_url, revocation_url, jwks_url   the provider, over TLS
//   api                                                              the API's origin, over TLS
//   ca_file                                                          the CA that signed both
//   client_id, client_secret, redirect_uri                           the client whose redirect page shows its address
//   admin                                                            plain HTTP:
//
//   GET  /stats           what was seen so far
//   POST /clients         {"redirect_uri", "response_type"?, "client_auth"?} -> {"client_id", "client_secret"}
//   POST /forget-access-tokens   the provider forgets every access token, as if it had lost them: 401 from the API

import { spawnSync } from 'node:child_process';
import { generateKeyPairSync, randomBytes, randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { join, resolve } from 'node:path';
import { json } from 'node:stream/consumers';
import { parseArgs } from 'node:util';

import Provider from 'oidc-provider';

/** Cnblogs' id_token names this same subject for every user. */
const SUBJECT = '00000000-0000-0000-0000-000000000000';
const DAY = 24 * 60 * 60;

const { values: args } = parseArgs({
  options: { dir: { type: 'string' }, 'access-token-lifetime': { type: 'string', default: '3600' } },
});
if (!args.dir) {
  console.error('usage: node provider.mjs --dir DIR [--access-token-lifetime SECONDS]');
  process.exit(2);
}
console.info = console.error; // the provider's notices; standard output is for the one line

const dir = resolve(args.dir);
const tls = makeCertificates(dir);
const stats = {
  token_requests: {},
  refreshes: 0,
  old_refresh_tokens_presented: 0,
  revocations: 0,
  grants_revoked: 0,
  errors: [],
  access_tokens_used: 0,
  used_access_tokens_expired: 0,
  api_requests: 0,
  api_unauthorized: 0,
};

let answerProvider;
const authority = await listen(createHttpsServer(tls, (req, res) => answerProvider(req, res)), 'https');
const signIn = (await listen(createHttpsServer(tls, (req, res) => {
  res.writeHead(302, { location: `${authority}/connect/authorize${req.url.slice(1)}` }).end();
}), 'https')).replace('127.0.0.1', 'localhost');
const provider = makeProvider(authority);
answerProvider = provider.callback();
const presentedRefreshTokens = new Set();
const usedAccessTokens = new Map();
const savedAccessTokens = new Set();
observe(provider);

const api = await listen(createHttpsServer(tls, answerApi), 'https');
const admin = await listen(createHttpServer(answerAdmin), 'http');
const redirectUri = `${authority}/auth/callback`;
const client = await register({ redirect_uri: redirectUri });

process.stdin.on('end', () => process.exit(0)).resume();
process.stdout.write(`${JSON.stringify({
  issuer: authority,
  authorization_url: `${authority}/connect/authorize`,
  token_url: `${authority}/connect/token`,
  revocation_url: `${authority}/connect/revocation`,
  jwks_url: `${authority}/.well-known/openid-configuration/jwks`,
  api,
  ca_file: join(dir, 'ca.crt'),
  ...client,
  redirect_uri: redirectUri,
  admin,
})}\n`);

/** A fresh CA and a certificate for 127.0.0.1 and localhost, in `dir`. */
function makeCertificates(into) {
  mkdirSync(into, { recursive: true });
  const file = (name) => join(into, name);
  writeFileSync(file('openssl.cnf'), `
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
`);
  const request = (name, subject, ...more) => {
    const { error, status, stderr } = spawnSync('openssl', [
      'req', '-x509', '-config', file('openssl.cnf'), '-extensions', name, '-subj', subject, '-days', '2', '-noenc',
      '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-keyout', file(`${name}.key`), '-out', file(`${name}.crt`),
      ...more,
    ]);
    if (status !== 0) {
      console.error(error ? `openssl does not start (${error.code}): install OpenSSL 3` : `${stderr}`);
      process.exit(1);
    }
  };

  request('ca', '/CN=test CA');
  request('leaf', '/CN=test provider', '-CA', file('ca.crt'), '-CAkey', file('ca.key'));
  return { key: readFileSync(file('leaf.key')), cert: readFileSync(file('leaf.crt')) };
}

/** Listens on a free loopback port and returns the server's origin. */
async function listen(server, scheme) {
  server.keepAliveTimeout = 65_000; // an idle connection that closes under a POST is another test's matter
  await new Promise((done, failed) => server.once('error', failed).listen(0, '127.0.0.1', done));
  return `${scheme}://127.0.0.1:${server.address().port}`;
}

function makeProvider(issuer) {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const made = new Provider(issuer, {
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: 'signing' }] },
    cookies: { keys: [randomBytes(32).toString('hex')] },
    routes: {
      authorization: '/connect/authorize',
      token: '/connect/token',
      revocation: '/connect/revocation',
      userinfo: '/connect/userinfo',
      jwks: '/.well-known/openid-configuration/jwks',
    },
    features: { revocation: { enabled: true } },
    responseTypes: ['code id_token', 'code'],
    scopes: ['openid', 'profile', 'CnBlogsApi', 'offline_access'],
    subjectTypes: ['pairwise'],
    pairwiseIdentifier: () => SUBJECT,
    rotateRefreshToken: true,
    ttl: {
      AccessToken: Number(args['access-token-lifetime']),
      AuthorizationCode: 600,
      IdToken: 300,
      RefreshToken: 30 * DAY,
      Interaction: 3600,
      Session: DAY,
      Grant: 30 * DAY,
    },
  });

  // Cnblogs lets an application register a loopback http address for the hybrid flow; the library's own docs say how to allow it.
  const schema = made.Client.Schema.prototype;
  const { invalidate } = schema;
  schema.invalidate = function invalidateUnlessLoopback(message, code) {
    if (code !== 'implicit-force-https' && code !== 'implicit-forbid-localhost') {
      invalidate.call(this, message, code);
    }
  };

  made.use(async (ctx, next) => {
    if (ctx.path === '/auth/callback') {
      ctx.type = 'html';
      ctx.body = '<!doctype html><title>Callback</title><p id="address"></p>'
        + '<script>document.getElementById("address").textContent = location.href</script>';
      return;
    }
    // Without this the library strips offline_access; IdentityServer does not ask for it. And Cnblogs, too, sends the
    // browser to another origin to sign in.
    if (ctx.path === '/connect/authorize' && ctx.query.prompt === undefined) {
      ctx.redirect(`${signIn}/?${ctx.querystring}&prompt=consent`);
      return;
    }
    await next();
    if (ctx.path === '/connect/token') {
      countTokenRequest(ctx.oidc?.params);
    }
    if (ctx.path === '/connect/revocation' && ctx.status === 200) {
      stats.revocations += 1;
    }
  });
  return made;
}

function countTokenRequest(params) {
  const grantType = params?.grant_type ?? 'none';
  stats.token_requests[grantType] = (stats.token_requests[grantType] ?? 0) + 1;
  if (grantType !== 'refresh_token') {
    return;
  }
  if (presentedRefreshTokens.has(params.refresh_token)) {
    stats.old_refresh_tokens_presented += 1;
  }
  presentedRefreshTokens.add(params.refresh_token);
}

function observe(observed) {
  observed.on('grant.success', (ctx) => {
    stats.refreshes += ctx.oidc.params.grant_type === 'refresh_token' ? 1 : 0;
  });
  observed.on('grant.revoked', () => { stats.grants_revoked += 1; });
  observed.on('access_token.saved', (token) => savedAccessTokens.add(token));
  for (const event of ['authorization.error', 'grant.error', 'revocation.error', 'jwks.error', 'server_error']) {
    observed.on(event, (_ctx, error) => {
      const text = [event, error.message, error.error_description, error.error_detail].filter(Boolean).join(': ');
      stats.errors.push(text);
      console.error(text);
    });
  }
}

async function register({ redirect_uri, response_type = 'code id_token', client_auth = 'body' }) {
  const metadata = {
    client_id: randomUUID(),
    client_secret: randomBytes(24).toString('base64url'),
    subject_type: 'pairwise',
    token_endpoint_auth_method: client_auth === 'basic' ? 'client_secret_basic' : 'client_secret_post',
    redirect_uris: [redirect_uri],
    response_types: [response_type],
    grant_types: ['authorization_code', 'refresh_token', ...(response_type === 'code' ? [] : ['implicit'])],
  };
  const valid = new provider.Client(metadata);
  await provider.Client.adapter.upsert(valid.clientId, valid.metadata());
  return { client_id: metadata.client_id, client_secret: metadata.client_secret };
}

async function answerApi(req, res) {
  stats.api_requests += 1;
  const [, presented] = /^Bearer (.+)$/.exec(req.headers.authorization ?? '') ?? [];
  const token = await provider.AccessToken.find(presented);
  if (!token) {
    stats.api_unauthorized += 1;
    res.writeHead(401, { 'content-length': 0 }).end();
    return;
  }
  usedAccessTokens.set(presented, token.exp);

  const path = req.url.split('?')[0];
  if (path === '/echo') {
    res.writeHead(200, { 'content-type': req.headers['content-type'] ?? 'application/octet-stream', 'x-method': req.method });
    req.pipe(res);
  } else if (req.method === 'GET' && path === '/api/users') {
    answerJson(res, {
      UserId: `id-of-${token.accountId}`,
      SpaceUserID: 1,
      BlogId: 2,
      DisplayName: token.accountId,
      Face: '',
      Avatar: '',
      Seniority: '1 year',
      BlogApp: token.accountId,
    });
  } else if (req.method === 'GET' && path === '/api/blogposts/@sitehome') {
    answerJson(res, [{ Id: 1, Title: 'a post', Author: 'someone' }]);
  } else {
    answerJson(res, { Message: 'not found' }, 404);
  }
}

async function answerAdmin(req, res) {
  switch (`${req.method} ${req.url}`) {
    case 'GET /stats': {
      const now = Date.now() / 1000;
      stats.access_tokens_used = usedAccessTokens.size;
      stats.used_access_tokens_expired = [...usedAccessTokens.values()].filter((exp) => exp <= now).length;
      return answerJson(res, stats);
    }
    case 'POST /clients':
      return register(await json(req)).then((made) => answerJson(res, made), (error) => answerJson(res, { error: `${error}` }, 400));
    case 'POST /forget-access-tokens':
      await Promise.all([...savedAccessTokens].map((token) => token.destroy()));
      return answerJson(res, {});
    default:
      return answerJson(res, {}, 404);
  }
}

function answerJson(res, value, status = 200) {
  const body = JSON.stringify(value);
  res.writeHead(status, { 'content-type': 'application/json; charset=utf-8', 'content-length': Buffer.byteLength(body) });
  res.end(body);
}
