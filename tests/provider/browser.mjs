// A person with a browser: logs in through the daemon's login page, on the provider's own pages.
//
//   node browser.mjs paste    BASE   copies the address the browser ends at into the daemon's page
//   node browser.mjs callback BASE   the browser ends at the daemon's /-/callback by itself
//
// BASE is the daemon's address. Prints one line of JSON: what the daemon's last page was, and what the browser minded
// on the daemon's pages. BROWSER_SCREENSHOTS names a directory for pictures of every step, CHROMIUM another program.
// Ends, with its browser, when standard input does.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { launchChromium, listenForComplaints } from './chromium.mjs';

const TIMEOUT_MS = 45_000; // some token endpoints answer after 15 s
const LOGIN = 'alice';

const [flow, base] = process.argv.slice(2);
if (!['paste', 'callback'].includes(flow) || !URL.canParse(base ?? '')) {
  console.error('usage: node browser.mjs paste|callback BASE');
  process.exit(2);
}
const daemon = new URL(base).origin;
const pictures = process.env.BROWSER_SCREENSHOTS;

const browser = await launchChromium(['MAP * ~NOTFOUND', 'EXCLUDE 127.0.0.1', 'EXCLUDE localhost']);

const step = { name: 'start', count: 0 };
let minded = {};
try {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1000, height: 800 } });
  context.setDefaultTimeout(TIMEOUT_MS);
  minded = await listenForComplaints(context, daemon);
  const outcome = await logIn(context);
  process.stdout.write(`${JSON.stringify({ flow, outcome, ...minded })}\n`);
} catch (error) {
  process.stdout.write(`${JSON.stringify({ flow, failed_at: step.name, error: `${error.message}`, ...minded })}\n`);
  process.exitCode = 1;
} finally {
  await browser.close();
  process.stdin.destroy();
}

async function logIn(context) {
  const loginPage = await context.newPage();
  const answer = await loginPage.goto(`${daemon}/-/login`);
  if (answer.status() !== 200) {
    throw new Error(`the login page answered ${answer.status()}`);
  }
  await picture('login page', loginPage);

  const opened = context.waitForEvent('page');
  await submit(loginPage, 'form[action$="/start"]');
  const tab = await opened;
  const finalAnswer = flow === 'callback' ? waitForCallbackAnswer(tab) : undefined;
  finalAnswer?.catch(() => {}); // awaited below; an earlier step may fail first
  await logInAtProvider(tab);

  if (flow === 'callback') {
    return outcomeOf(tab, await finalAnswer);
  }
  step.name = 'redirect page';
  await tab.waitForURL((url) => url.hash.includes('code=') || url.searchParams.has('code'));
  await picture('redirect page', tab);
  await loginPage.bringToFront();
  await loginPage.fill('[name=callback]', tab.url());
  const pasted = loginPage.waitForResponse((response) => response.request().method() === 'POST'
    && new URL(response.url()).pathname.startsWith('/-/login/'));
  await submit(loginPage, 'form:has([name=callback])');
  return outcomeOf(loginPage, await pasted);
}

/** The provider's own sign-in page, then its page of consent. */
async function logInAtProvider(tab) {
  step.name = 'sign-in page';
  await tab.fill('[name=login]', LOGIN);
  await tab.fill('[name=password]', 'any');
  await picture('sign-in page', tab);
  await submit(tab, 'form:has([name=login])');

  step.name = 'consent page';
  await tab.waitForSelector('form:has([name=prompt][value=consent])');
  await picture('consent page', tab);
  await submit(tab, 'form:has([name=prompt][value=consent])');
}

/** The answer to the code: a fragment never reaches the server before the page's script has posted it. */
function waitForCallbackAnswer(tab) {
  return tab.waitForResponse((response) => {
    const url = new URL(response.url());
    return url.origin === daemon && url.pathname === '/-/callback'
      && (response.request().method() === 'POST' || url.searchParams.has('code') || url.searchParams.has('error'));
  }, { timeout: 2 * TIMEOUT_MS });
}

async function outcomeOf(page, answer) {
  step.name = 'outcome page';
  await answer.finished();
  await page.waitForLoadState('load');
  await page.waitForTimeout(500); // a page's script may still have something to show
  await picture('outcome page', page);
  return {
    status: answer.status(),
    method: answer.request().method(),
    url: page.url(),
    title: await page.title(),
    text: (await page.innerText('body')).trim(),
  };
}

async function submit(page, form) {
  await page.locator(`${form} button:not([type=button]), ${form} [type=submit]`).first().click();
}

async function picture(name, page) {
  step.name = name;
  if (pictures) {
    mkdirSync(pictures, { recursive: true });
    step.count += 1;
    await page.screenshot({ path: join(pictures, `${step.count}-${name.replaceAll(' ', '-')}.png`), fullPage: true });
  }
}
