// Chromium as all tests start it: a fresh profile, no traffic of its own, no name that isn't given to it.

import { chromium } from 'playwright-core';

// playwright-core throws, where nobody can catch it, when Chromium tells something late about a frame that is gone.
process.on('uncaughtException', (error) => {
  if (error.message !== 'Frame has been detached.') throw error;
  console.error('something late about a frame that is gone');
});

/** `rules` are Chromium's `--host-resolver-rules`; what they do not map does not exist. Ends when standard input does. */
export async function launchChromium(rules, more = []) {
  const browser = await launch(rules, more);
  process.stdin.on('end', () => browser.close().finally(() => process.exit(1))).resume();
  return browser;
}

/** The same for a script that a person starts. */
export function launch(rules, more = []) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', `--host-resolver-rules=${rules.join(', ')}`, ...more,
    ],
  });
}

/** Collects what the browser minds on the pages of an origin. */
export async function listenForComplaints(context, origin) {
  const minded = { csp_violations: [], console_errors: [], failed_requests: [] };
  const isTheirs = (url) => url.startsWith(`${origin}/`);
  await context.exposeBinding('reportViolation', (_source, violation) => minded.csp_violations.push(violation));
  await context.addInitScript((own) => {
    addEventListener('securitypolicyviolation', (event) => {
      if (location.origin === own) {
        window.reportViolation(`${event.effectiveDirective} refused ${event.blockedURI} on ${location.pathname}`);
      }
    });
  }, origin);
  context.on('console', (message) => {
    if (message.type() === 'error' && isTheirs(message.page()?.url() ?? message.location().url)) {
      minded.console_errors.push(message.text());
    }
  });
  context.on('weberror', (error) => {
    if (isTheirs(error.page()?.url() ?? '')) {
      minded.console_errors.push(`${error.error()}`);
    }
  });
  context.on('requestfailed', (request) => {
    if (isTheirs(request.url())) {
      minded.failed_requests.push(`${request.method()} ${new URL(request.url()).pathname}: ${request.failure()?.errorText}`);
    }
  });
  return minded;
}
