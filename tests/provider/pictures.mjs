// The pictures in the README: the login page and the status page, as the sandbox shows them.
//
//   cargo build --example sandbox && node tests/provider/pictures.mjs [DIRECTORY] [LANGUAGE]
//
// DIRECTORY is tests/sandbox/pictures when left out, LANGUAGE en. Time runs sixty times as fast in the sandbox
// (libfaketime), so that the chart of an hour takes a minute. CHROMIUM names another browser.

import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { launch } from './chromium.mjs';

const FAKETIME = '/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1';
const HOUR_MS = 60_000;
const SANDBOX = fileURLToPath(new URL('../../target/debug/examples/sandbox', import.meta.url));
const [directory = fileURLToPath(new URL('../sandbox/pictures', import.meta.url)), locale = 'en'] = process.argv.slice(2);

const sandbox = spawn(SANDBOX, ['--port', '0', '--expires-in', '14400'], {
  // `true` in place of cargo: what is built is there, and no compiler runs by that clock.
  env: { ...process.env, CARGO: 'true', LD_PRELOAD: FAKETIME, FAKETIME: '+0 x60', NO_FAKE_STAT: '1' },
  stdio: ['ignore', 'pipe', 'inherit'],
});
const browser = await launch(['MAP * ~NOTFOUND', 'EXCLUDE 127.0.0.1']);
try {
  const daemon = await listening();
  const page = await browser.newPage({ viewport: { width: 900, height: 700 }, locale, timezoneId: 'Asia/Shanghai' });
  mkdirSync(directory, { recursive: true });
  await logIn(page, daemon);
  await callFor(HOUR_MS * 1.05, daemon, page);
  await page.goto(`${daemon}/-/`);
  await picture(page, 'status', '[aria-labelledby=requests]');
} finally {
  await browser.close();
  sandbox.kill('SIGINT');
}

async function listening() {
  for await (const line of createInterface(sandbox.stdout)) {
    const found = /^daemon: listening on (http:\S+)/.exec(line);
    if (found) return found[1];
  }
  throw new Error('the sandbox ended');
}

async function logIn(page, daemon) {
  await page.goto(`${daemon}/-/login`);
  const opened = page.waitForEvent('popup');
  await page.click('#start button');
  const tab = await opened;
  await tab.click('[value=allow]');
  await tab.waitForURL((url) => url.hash.includes('code='));
  const address = tab.url();
  await tab.close();
  await page.bringToFront();
  await page.waitForSelector('#progress [data-count=left]');
  await page.fill('#callback', address);
  await page.waitForSelector('.hint.right');
  await picture(page, 'login', '[aria-labelledby=step-2]');
  await page.click('#paste button');
  await page.waitForSelector('.outcome.good');
}

/** Programs come and go, and now and then ask for something that is not there. */
async function callFor(ms, daemon, page) {
  const started = Date.now();
  const passed = () => Date.now() - started;
  for (let calls = 0; passed() < ms; calls += 1) {
    const busy = 1.2 + Math.sin(passed() / 6000) + 0.6 * Math.sin(passed() / 1700);
    await (await fetch(`${daemon}/${calls % 97 === 31 ? 'nowhere' : 'api/users'}`)).arrayBuffer();
    await new Promise((resolve) => { setTimeout(resolve, 60 / Math.max(busy, 0.15)); });
    if (calls % 600 === 599) {
      await page.request.post(`${daemon}/-/refresh/main`, { headers: { Accept: 'application/json', 'Accept-Language': '*' } });
    }
  }
}

/** From the top down to the end of a part. */
async function picture(page, name, last) {
  const path = `${directory}/${name}${locale.startsWith('en') ? '' : `-${locale}`}.png`;
  await page.evaluate(() => scrollTo(0, 0));
  const { y, height } = await page.locator(last).boundingBox();
  const clip = { x: 0, y: 0, width: 900, height: Math.ceil(y + height + 16) };
  await page.screenshot({ path, clip, fullPage: true });
  console.log(path);
}
