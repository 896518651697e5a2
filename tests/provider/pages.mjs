// A person who looks at the daemon's own pages in Chromium, told what to do step by step.
//
//   node pages.mjs
//
// Reads a line of JSON a step, `[verb, ...arguments]`, the verbs being the functions of `verbs`, and prints one of what
// it came to, `{"is": ...}` or `{"error": ...}`. BROWSER_SCREENSHOTS names a directory for pictures of what is judged,
// CHROMIUM another program. Ends, with its browser, when standard input does.

import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { launchChromium, listenForComplaints } from './chromium.mjs';

const TIMEOUT_MS = 30_000;
const AXE = readFileSync(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');
const pictures = process.env.BROWSER_SCREENSHOTS;

const browser = await launchChromium(['MAP * ~NOTFOUND', 'EXCLUDE 127.0.0.1']);
let page;
let tab;
let minded;
let runsScripts;

const verbs = {
  /** A browser of its own: `locale`, `width`, `dark`, `scripts`, `clock` (to be moved), all of them with defaults. */
  async open({ origin, locale = 'en-US', width = 1000, dark = false, scripts = true, clock = false }) {
    await page?.context().close();
    const context = await browser.newContext({
      locale, viewport: { width, height: 800 }, colorScheme: dark ? 'dark' : 'light', javaScriptEnabled: scripts, baseURL: origin,
    });
    context.setDefaultTimeout(TIMEOUT_MS);
    minded = await listenForComplaints(context, origin);
    runsScripts = scripts;
    if (clock) await context.clock.install();
    page = await context.newPage();
  },

  /** The status of the answer. */
  async visit(path) {
    return (await page.goto(path)).status();
  },

  async fill(selector, text) {
    await page.fill(selector, text);
  },

  async click(selector) {
    await page.click(selector);
  },

  /** Something that leads to another page; the status of its answer. */
  async follow(selector) {
    return (await Promise.all([page.waitForNavigation(), page.click(selector)]))[0].status();
  },

  /** What a text is, once it is seen. */
  async text(selector) {
    await page.waitForSelector(selector);
    return page.innerText(selector);
  },

  /** Waits until a part of the page says something, and is there to be read. */
  async says(selector, words) {
    await page.waitForFunction(([where, what]) => {
      const part = document.querySelector(where);
      return part?.checkVisibility() && part.innerText.includes(what);
    }, [selector, words]);
  },

  async attribute(selector, name) {
    return page.getAttribute(selector, name);
  },

  /** How much of an element is seen in another one that cuts what is beyond its edges. */
  async seen_width(selector, within) {
    const [part, whole] = await Promise.all([selector, within].map((one) => page.locator(one).boundingBox()));
    return Math.min(part.x + part.width, whole.x + whole.width) - Math.max(part.x, whole.x);
  },

  async count(selector) {
    return page.locator(selector).count();
  },

  /** Keys, one after the other; `Enter` that leads to another page is for `follow_key`. */
  async press(...keys) {
    for (const key of keys) await page.keyboard.press(key);
  },

  async follow_key(key) {
    return (await Promise.all([page.waitForNavigation(), page.keyboard.press(key)]))[0].status();
  },

  /** What an unseen hand pastes. */
  async paste(text) {
    await page.keyboard.insertText(text);
  },

  /** The name of what the keyboard works on. */
  async focused() {
    return page.evaluate(() => document.activeElement.innerText || document.activeElement.id);
  },

  /** The tab that a press of the start button opens, up to the address where it ends; the stand-in's page is allowed. */
  async allow_in_new_tab(person, key = null) {
    const opened = page.waitForEvent('popup');
    await (key ? page.keyboard.press(key) : page.click('#start button'));
    tab = await opened;
    await tab.check(`[value=${person}]`);
    await tab.click('[value=allow]');
    await tab.waitForURL((url) => url.hash.includes('code=') || url.pathname === '/-/callback');
    return tab.url();
  },

  /** What the new tab says at last. */
  async tab_says(words) {
    await tab.waitForFunction((what) => document.body.innerText.includes(what), words);
    return tab.url();
  },

  /** Time passes in the browser alone, `mm:ss`: it can't ask the daemon any more, whose clock it would follow. */
  async pass(time) {
    await page.route('**', (route) => route.abort());
    await page.clock.fastForward(time);
  },

  async close_tab() {
    await tab.close();
    await page.bringToFront();
  },

  /** All that is wrong with the page as it is now; axe-core is a script itself. */
  async judge(name) {
    if (pictures) {
      mkdirSync(pictures, { recursive: true });
      await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
    }
    const violations = runsScripts ? await violationsByAxe() : [];
    const looks = await page.evaluate(() => {
      const { scrollWidth, clientWidth } = document.documentElement;
      const [image] = [...document.images].filter((one) => !one.complete || one.naturalWidth === 0);
      return [
        scrollWidth > clientWidth ? `it is ${scrollWidth} wide on a screen of ${clientWidth}` : '',
        image ? `no image ${image.src}` : '',
        document.body.innerText.includes('{{') ? 'a placeholder is shown' : '',
      ].filter(Boolean);
    });
    return [...violations, ...looks, ...minded.csp_violations, ...minded.failed_requests, ...minded.console_errors];
  },
};

async function violationsByAxe() {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => window.axe.run({ resultTypes: ['violations'] }));
  return found.violations.map(({ id, nodes }) => `axe: ${id}: ${nodes.map((node) => node.html).join(' ')}`);
}

for await (const line of createInterface(process.stdin)) {
  const [verb, ...given] = JSON.parse(line);
  try {
    process.stdout.write(`${JSON.stringify({ is: (await verbs[verb](...given)) ?? null })}\n`);
  } catch (error) {
    const seen = await page?.evaluate(() => document.body.innerText).catch(() => '');
    process.stdout.write(`${JSON.stringify({ error: `${line}: ${error.stack}\n${seen}` })}\n`);
  }
}
