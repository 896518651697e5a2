// Between the browser and the daemon: passes all on as it is, and keeps what the browser really sent and was answered.

import { once } from 'node:events';
import http from 'node:http';

/** Listens for the daemon at `authority`; `heard` gets an entry for each request. */
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
  return { heard, address: `127.0.0.1:${server.address().port}` };
}

function forward(authority, heard, request, onAnswer, onFailure) {
  const entry = { method: request.method, target: request.url, fields: request.headers, status: null, answer: null };
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
  request.pipe(upward);
}
