// Between the browser and the daemon: passes all on as it is, and keeps what the browser really sent and was answered.

import { once } from 'node:events';
import http from 'node:http';

const SETTLE_MS = 30_000;

/**
 * Listens for the daemon at `authority`; `heard` gets an entry for each request. `settled` comes when each is answered,
 * or given up by the browser before all of it was sent.
 */
export async function startWiretap(authority) {
  const heard = [];
  const server = http.createServer((request, response) => {
    forward(authority, heard, request, (answer) => {
      response.writeHead(answer.statusCode, answer.rawHeaders);
      answer.pipe(response);
    }, () => response.destroy());
  });
  server.on('upgrade', (request, socket) => {
    forward(authority, heard, request, (answer) => {
      socket.end(`HTTP/1.1 ${answer.statusCode} Answered\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
      answer.resume();
    }, () => socket.destroy());
    socket.on('error', () => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { heard, address: `127.0.0.1:${server.address().port}`, settled: () => settle(heard) };
}

async function settle(heard) {
  const deadline = Date.now() + SETTLE_MS;
  const isOpen = (entry) => entry.status === null && !entry.given_up;
  while (heard.some(isOpen)) {
    if (Date.now() > deadline) throw new Error(`no answer: ${JSON.stringify(heard.find(isOpen))}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return heard.filter((entry) => !entry.given_up);
}

function forward(authority, heard, request, onAnswer, onFailure) {
  const entry = {
    method: request.method, target: request.url, fields: request.headers, status: null, answer: null, given_up: false,
  };
  heard.push(entry);
  const keep = (answer) => {
    entry.status = answer.statusCode;
    entry.answer = answer.headers;
  };
  const [host, port] = authority.split(':');
  const { method, url: path, rawHeaders: headers } = request;
  const upward = http.request({ host, port, method, path, headers, setHost: false, agent: false }, (answer) => {
    keep(answer);
    onAnswer(answer);
  });
  upward.on('upgrade', (answer, socket) => {
    keep(answer);
    socket.destroy();
    onFailure();
  });
  upward.on('error', onFailure);
  request.on('close', () => {
    if (request.complete || entry.status !== null) return;
    entry.given_up = true;
    upward.destroy();
  });
  request.pipe(upward);
}
