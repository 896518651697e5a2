// A real authorization server (npm oauth2-mock-server) that lets everybody in at once.
//
//   node mock.mjs
//
// Prints one line of JSON with its `issuer` once it accepts, then the address at which a browser ends for each
// authorization URL that it reads, a line. Ends when standard input does.

import { createInterface } from 'node:readline';

import { OAuth2Server } from 'oauth2-mock-server';

const server = new OAuth2Server();
await server.issuer.keys.generate('RS256');
await server.start(0, '127.0.0.1');
process.stdout.write(`${JSON.stringify({ issuer: server.issuer.url })}\n`);

for await (const url of createInterface({ input: process.stdin })) {
  const answer = await fetch(url, { redirect: 'manual' });
  process.stdout.write(`${answer.headers.get('location') ?? `nowhere: ${answer.status} ${await answer.text()}`}\n`);
}
process.exit(0);
