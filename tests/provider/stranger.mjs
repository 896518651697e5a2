// A person's browser, and pages in it that are somebody else's.
//
//   node stranger.mjs SCENARIO
//
// Prints one line of JSON with the port of the strangers' server, and reads one line of JSON with what the scenario is
// given, `daemon` being the daemon's address as HOST:PORT. Then prints one more: `result`, and in `heard` every request
// of the browser to the daemon with its answer. The browser's console goes to standard error.
// `http://evil.test` and `http://app.test` are the strangers' server, at any port; so are 127.0.0.1 and localhost at its
// own. `http://rebound.test` is that server at first and the daemon later. Ends when standard input does.

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { createInterface } from 'node:readline';

import { launchChromium, listenForComplaints } from './chromium.mjs';
import { startWiretap } from './wiretap.mjs';

const TIMEOUT_MS = 60_000;
const SPECULATION_MS = 5_000;
const AGAIN_MS = 5_000;
const SCENARIOS = { attack, rebind, call, open, use };
const PAGE = '<!doctype html><title>stranger</title><body><script src="/page.js"></script>';

const scenario = SCENARIOS[process.argv[2]];
if (!scenario) {
  console.error(`usage: node stranger.mjs ${Object.keys(SCENARIOS).join('|')}`);
  process.exit(2);
}
const strangers = await startStrangers();
await say({ port: strangers.port });
const given = JSON.parse((await once(createInterface(process.stdin), 'line'))[0]);
const daemon = `http://${given.daemon}`;
const { hostname, port } = new URL(daemon);
const wiretap = await startWiretap(given.daemon);
const relay = await startRelay();
const rules = [
  `MAP ${hostname}:${port} ${wiretap.address}`, `MAP localhost:${port} ${wiretap.address}`,
  'MAP 127.0.0.1 127.0.0.1', 'MAP localhost 127.0.0.1', `MAP rebound.test ${relay.address}`,
  `MAP evil.test 127.0.0.1:${strangers.port}`, `MAP app.test 127.0.0.1:${strangers.port}`, 'MAP * ~NOTFOUND',
];

try {
  // That a browser crashes says nothing of the daemon. Once.
  const result = await play().catch((error) => {
    if (!/crashed|has been closed/.test(error.message)) throw error;
    wiretap.heard.length = 0;
    return play();
  });
  await say({ result, heard: await wiretap.settled() });
} catch (error) {
  await say({ error: `${error.stack}`, heard: wiretap.heard });
  process.exitCode = 1;
} finally {
  process.exit();
}

async function play() {
  const browser = await launchChromium(rules);
  try {
    const context = await browser.newContext();
    context.setDefaultTimeout(TIMEOUT_MS);
    context.on('console', (message) => console.error(`${message.page()?.url()}: ${message.type()}: ${message.text()}`));
    return await scenario(context);
  } finally {
    await browser.close();
  }
}

/**
 * Pages at `given.origins` try everything, with paths that begin with their number; then the person types an address.
 * Fails when the browser does not send what the page wants, but for the ways that `given.not_always_sent` names.
 */
async function attack(context) {
  const pages = [];
  for (const [at, origin] of given.origins.entries()) {
    const base = `${daemon}/echo/${at}`;
    const page = await context.newPage();
    await page.goto(`${origin}/?report=${encodeURIComponent(`${base}/report`)}`);
    // Browsers speculate about what a page that is looked at leads to, when they find that worth while.
    const speculations = await page.evaluate((to) => speculate(to), base);
    const isSpeculation = ({ target }) => speculations.includes(`${daemon}${target}`);
    const framed = ['/-/', '/-/login', '/-/callback'].map((path) => `${daemon}${path}?framed=${at}`);
    await sent(framed, (to, { target }) => `${daemon}${target}` === to, origin, async (left) => {
      await page.evaluate((all) => all.forEach((src) => add('iframe', { src })), left);
    });
    await until(() => wiretap.heard.filter(isSpeculation).length === speculations.length, SPECULATION_MS);
    pages.push([page, origin, base]);
  }
  const learned = [];
  for (const [page, origin, base] of pages) {
    const isFromHere = (to, entry) => isTo(to, origin, entry);
    const addresses = (names) => names.map((name) => `${base}/${name}`);
    const names = await page.evaluate(() => Object.keys(WAYS));
    const [unsure, sure] = [true, false].map((is) => names.filter((name) => given.not_always_sent.includes(name) === is));
    await page.bringToFront(); // what is not looked at loads late, or never
    await page.evaluate(([ways, to]) => take(ways, to), [unsure, base]);
    await sent(addresses(sure), isFromHere, origin, async (left) => {
      await page.bringToFront();
      await page.evaluate(([ways, to]) => take(ways, to), [left.map((to) => to.slice(base.length + 1)), base]);
    });
    await sent(addresses(['report']), isFromHere, origin);
    learned.push(await page.evaluate(() => whatWasLearned()));

    const toClick = await page.evaluate(([to, local]) => addThingsToClick(to, local), [base, daemon]);
    await sent(toClick.map(({ to }) => to), isFromHere, origin, async (left) => {
      await page.bringToFront();
      for (const { name } of toClick.filter(({ to }) => left.includes(to))) {
        await page.evaluate((id) => document.getElementById(id).click(), name); // with a user's gesture, as by a hand
      }
    });
    await page.evaluate((to) => sendWhenLeaving(to), base);
    await page.evaluate((to) => { location = to; }, `${base}/location`).catch(() => {});
    await sent(addresses(['location', 'beacon-leaving', 'keepalive-leaving']), isFromHere, origin);
  }
  const typed = await context.newPage();
  const answer = await typed.goto(`${daemon}/echo/typed`);
  return { learned, typed: answer.status() };
}

/** Whether a request went to an address; on a local route, from that origin: its path does not tell. */
function isTo(address, origin, { target, fields }) {
  const isLocal = address.startsWith(`${daemon}/-/`);
  return `${daemon}${target}`.replace(/[?].*/, '') === address && (!isLocal || fields.origin === new URL(origin).origin);
}

/** A page whose host name turns into the daemon's address while it is open. */
async function rebind(context) {
  const origin = `http://rebound.test:${port}`;
  const page = await context.newPage();
  await page.goto(`${origin}/`);
  const before = await page.title();
  relay.target = given.daemon;
  const seen = await page.evaluate((targets) => Promise.all(targets.map(async ([method, target]) => {
    const answer = await fetch(target, { method, body: method === 'GET' ? undefined : 'callback=x' });
    return { method, target, status: answer.status, body: await answer.text() };
  })), given.targets);
  const socket = await page.evaluate((to) => opened(new WebSocket(to)), `ws://rebound.test:${port}/echo`);
  const loaded = await page.goto(`${origin}/echo`);
  return { before, seen, socket, loaded: loaded.status() };
}

/** Fetches from the page of each origin, as `given.calls` say. */
async function call(context) {
  const pages = given.calls.map(async ({ origin, target, options }) => {
    const page = await context.newPage();
    await page.goto(`${origin}/`);
    const answer = await page.evaluate(async ([to, how]) => {
      try {
        const got = await fetch(to, how);
        return { status: got.status, type: got.type, fields: Object.fromEntries(got.headers), body: await got.text() };
      } catch (error) {
        return { refused: `${error}` };
      }
    }, [`${daemon}${target}`, options]);
    await page.close();
    return answer;
  });
  return Promise.all(pages);
}

/**
 * Opens the API's answers as a person would who types their address, and then where nothing holds them: what runs there
 * has had the same time here.
 */
async function open(context) {
  const own = await context.newPage();
  await own.goto(`${daemon}/-/`);
  await own.evaluate(() => localStorage.setItem('kept', 'yes'));
  for (const kind of given.kinds) {
    await (await context.newPage()).goto(`${daemon}/open/${kind}`).catch(isDownload);
  }
  await own.bringToFront();
  for (const kind of given.kinds_that_run) {
    const here = await context.newPage();
    await here.goto(`${daemon}/open/${kind}`).catch(isDownload);
    const elsewhere = await context.newPage();
    const ran = elsewhere.waitForRequest((request) => request.url().endsWith(`/open/ran-${kind}`));
    await elsewhere.goto(`${given.upstream}/open/${kind}`);
    await ran;
  }

  const page = await context.newPage();
  await page.goto(`${daemon}/open/form`);
  await page.click('button');
  await page.click('a');
  await heard((entry) => entry.target === '/-/login', 'what the link leads to');
  return {
    as_script: await own.evaluate((src) => new Promise((resolve) => {
      const script = Object.assign(document.createElement('script'), { src });
      script.onload = () => resolve('ran');
      script.onerror = () => resolve('refused');
      document.body.append(script);
    }), '/open/json'),
    as_worker: await own.evaluate((script) => navigator.serviceWorker.register(script, { scope: '/' })
      .then(() => 'registered', () => 'refused'), '/open/worker'),
    cookies: await context.cookies(daemon),
    kept: await own.evaluate(() => localStorage.getItem('kept')),
  };
}

function isDownload(error) {
  if (!error.message.includes('Download is starting')) throw error;
}

/** Goes through the daemon's own pages as a person does; the callbacks are somebody else's than whose login is stored. */
async function use(context) {
  const minded = await listenForComplaints(context, daemon);
  const page = await context.newPage();
  const seen = [];
  const look = async () => seen.push(await page.title());
  const paste = async (address) => {
    await page.goto(`${daemon}/-/login`);
    await look();
    await page.fill('[name=callback]', address);
    await press('Log in');
  };
  const press = async (name) => {
    await Promise.all([page.waitForNavigation(), page.getByRole('button', { name, exact: true }).click()]);
    await look();
  };

  await page.goto(`${daemon}/-/`);
  await press('Refresh now');
  await paste('http://127.0.0.1/elsewhere');
  await paste(given.callbacks[0]);
  await press('Keep the old one');
  await paste(given.callbacks[1]);
  await press('Replace the login');
  await page.goto(`${daemon}/-/`);
  await page.getByText('Log out', { exact: true }).click();
  await press('Yes, log out');
  await page.goto(`${daemon}/-/login/main`);
  const tab = context.waitForEvent('page');
  await page.getByRole('button', { name: 'Open Cnblogs in a new tab' }).click();
  await (await tab).waitForURL((url) => url.pathname === '/connect/authorize');
  await page.goto(`${daemon}/-/callback`);
  await page.waitForFunction(() => document.getElementById('fragment').textContent.includes('start the login again'));
  await look();
  return { seen, ...minded };
}

/**
 * Waits until the browser has sent a request to each of these addresses and was answered. `send` asks it to, and does so
 * anew for what is left after a while: it forgets some when it has much to do.
 */
async function sent(addresses, isFor, origin, send = async () => {}) {
  const isLeft = (to) => !wiretap.heard.some((entry) => isFor(to, entry) && entry.status !== null);
  const deadline = Date.now() + TIMEOUT_MS;
  let left = addresses;
  while (left.length > 0) {
    if (Date.now() > deadline) throw new Error(`the browser did not send this from ${origin}: ${left}`);
    await send(left);
    await until(() => !left.some(isLeft), AGAIN_MS);
    left = left.filter(isLeft);
  }
}

/** Waits until the browser has sent such a request and was answered. */
async function heard(isIt, what) {
  const isThere = await until(() => wiretap.heard.some((entry) => isIt(entry) && entry.status !== null), TIMEOUT_MS);
  if (!isThere) throw new Error(`the browser did not send this: ${what}`);
}

/** Whether it comes true in this time. */
async function until(isTrue, ms) {
  const deadline = Date.now() + ms;
  while (!isTrue()) {
    if (Date.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return true;
}

async function startStrangers() {
  const script = readFileSync(new URL('stranger-page.js', import.meta.url));
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, 'http://strangers');
    const to = url.searchParams.get('to');
    const send = (type, content, more = {}) => response.writeHead(200, { 'Content-Type': type, Connection: 'close', ...more }).end(content);
    request.resume();
    if (url.pathname === '/redirect') {
      response.writeHead(307, { Location: to, 'Access-Control-Allow-Origin': '*' }).end();
    } else if (url.pathname === '/worker.js') {
      send('text/javascript', `importScripts(${JSON.stringify(url.searchParams.get('import'))});`);
    } else if (url.pathname === '/page.js') {
      send('text/javascript', script);
    } else {
      const report = url.searchParams.get('report');
      send('text/html', PAGE, report ? { 'Content-Security-Policy-Report-Only': `img-src 'none'; report-uri ${report}` } : {});
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: server.address().port };
}

/** A name server's second answer, as it were: leads to the strangers until `target` is changed. */
async function startRelay() {
  const made = { target: `127.0.0.1:${strangers.port}` };
  const server = net.createServer((socket) => {
    const [host, at] = made.target.split(':');
    const onward = net.connect(at, host);
    for (const [one, other] of [[socket, onward], [onward, socket]]) {
      one.pipe(other);
      one.on('error', () => other.destroy());
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  made.address = `127.0.0.1:${server.address().port}`;
  return made;
}

/** Comes when all of it is on its way: an exit does not wait for it. */
function say(line) {
  return new Promise((done) => process.stdout.write(`${JSON.stringify(line)}\n`, done));
}
