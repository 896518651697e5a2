'use strict';

// On a page of a stranger: every way to make a browser ask another origin for something. Each gets an address and
// says what the page learned of the answer, which has to be nothing.

const PATIENCE_MS = 3000;
const NOTHING = '';
const taken = [];

/** Takes these ways at once, each at `BASE/NAME`. */
function take(names, base) {
  for (const name of names) {
    taken.push([name, (async () => WAYS[name](`${base}/${name}`))().catch(() => NOTHING)]);
  }
}

/** What was learned by each way until now and for a while, by name: some ways say nothing of their end. */
async function whatWasLearned() {
  const late = new Promise((resolve) => setTimeout(() => resolve(NOTHING), PATIENCE_MS));
  const all = {};
  await Promise.all(taken.map(async ([name, learned]) => {
    const more = await Promise.race([learned, late]) ?? NOTHING;
    all[name] = `${all[name] ?? NOTHING}${more}`;
  }));
  return all;
}

/** Lets the browser fetch what the person might open next; says what. */
function speculate(base) {
  const about = (what, more) => [{ source: 'list', urls: [`${base}/${what}`], eagerness: 'immediate', ...more }];
  const rules = { prefetch: about('to-prefetch', { referrer_policy: 'no-referrer' }), prerender: about('to-prerender', {}) };
  add('script', { type: 'speculationrules', textContent: JSON.stringify(rules) });
  return [`${base}/to-prefetch`, `${base}/to-prerender`];
}

/** Adds things to click on, each with its name as its id; says where each leads in the end. */
function addThingsToClick(base, local) {
  const form = (name, method, kind, to, action = to) => {
    const made = add('form', { method, action, enctype: kind, target: '_blank' });
    made.append(make('input', { name: 'callback', value: 'x' }), make('button', { id: name, textContent: name }));
    return { name, to };
  };
  const link = (name, more) => {
    const to = `${base}/${name}`;
    add('a', { id: name, href: to, textContent: name, target: '_blank', ...more });
    return { name, to };
  };
  const [urlencoded, multipart, text] = ['application/x-www-form-urlencoded', 'multipart/form-data', 'text/plain'];
  return [
    form('form-get', 'get', urlencoded, `${base}/form-get`),
    form('form-urlencoded', 'post', urlencoded, `${base}/form-urlencoded`),
    form('form-multipart', 'post', multipart, `${base}/form-multipart`),
    form('form-text', 'post', text, `${base}/form-text`),
    form('form-redirected', 'post', text, `${base}/form-redirected`, redirectTo(`${base}/form-redirected`)),
    form('form-start', 'post', urlencoded, `${local}/-/login/main/start`),
    form('form-paste', 'post', urlencoded, `${local}/-/login/main`),
    form('form-refresh', 'post', multipart, `${local}/-/refresh/main`),
    form('form-logout', 'post', text, `${local}/-/logout/main`),
    link('link', {}),
    link('link-no-referrer', { rel: 'noreferrer' }),
    link('link-download', { download: '' }),
  ];
}

/** What a page can still send while it goes away. */
function sendWhenLeaving(base) {
  addEventListener('pagehide', () => {
    navigator.sendBeacon(`${base}/beacon-leaving`, 'x');
    fetch(`${base}/keepalive-leaving`, { method: 'POST', mode: 'no-cors', keepalive: true, body: 'x' }).catch(() => {});
  });
}

const WAYS = {
  'fetch-get': (to) => fetch(to).then(text),
  'fetch-post': (to) => fetch(to, { method: 'POST', body: 'x' }).then(text),
  'fetch-json': (to) => fetch(to, { method: 'POST', body: '{}', headers: { 'Content-Type': 'application/json' } }).then(text),
  'fetch-field': (to) => fetch(to, { headers: { 'X-Own': '1' } }).then(text),
  'fetch-authorization': (to) => fetch(to, { headers: { Authorization: 'Bearer x' } }).then(text),
  'fetch-put': (to) => fetch(to, { method: 'PUT', body: 'x' }).then(text),
  'fetch-credentials': (to) => fetch(to, { credentials: 'include' }).then(text),
  'fetch-no-cors': (to) => fetch(to, { mode: 'no-cors' }).then(text),
  'fetch-no-cors-post': (to) => fetch(to, { mode: 'no-cors', method: 'POST', body: 'x' }).then(text),
  'fetch-no-referrer': (to) => fetch(to, { mode: 'no-cors', referrerPolicy: 'no-referrer' }).then(text),
  'fetch-redirected': (to) => fetch(redirectTo(to)).then(text),
  'fetch-keepalive': (to) => fetch(to, { mode: 'no-cors', method: 'POST', keepalive: true, body: 'x' }).then(text),
  'xhr-get': (to) => xhr('GET', to),
  'xhr-post': (to) => xhr('POST', to),
  img: (to) => loaded(add('img', { src: to })),
  'img-cors': (to) => loaded(add('img', { crossOrigin: 'anonymous', src: to })),
  'img-no-referrer': (to) => loaded(add('img', { referrerPolicy: 'no-referrer', src: to })),
  'img-redirected': (to) => loaded(add('img', { src: redirectTo(to) })),
  script: (to) => loaded(add('script', { src: to })),
  module: (to) => loaded(add('script', { type: 'module', src: to })),
  'dynamic-import': (to) => import(to).then(() => 'ran'),
  stylesheet: (to) => loaded(add('link', { rel: 'stylesheet', href: to })),
  'style-import': (to) => void add('style', { textContent: `@import url("${to}");` }),
  background: (to) => void add('p', { style: `background-image: url("${to}")`, textContent: 'x' }),
  font: (to) => new FontFace('stolen', `url("${to}")`).load().then(() => 'loaded'),
  preload: (to) => loaded(add('link', { rel: 'preload', as: 'image', href: to })),
  modulepreload: (to) => loaded(add('link', { rel: 'modulepreload', href: to })),
  prefetch: (to) => loaded(add('link', { rel: 'prefetch', href: to })),
  prerender: (to) => loaded(add('link', { rel: 'prerender', href: to })),
  manifest: (to) => void add('link', { rel: 'manifest', href: to }),
  iframe: (to) => framed(add('iframe', { src: to })),
  'iframe-no-referrer': (to) => framed(add('iframe', { referrerPolicy: 'no-referrer', src: to })),
  'iframe-sandboxed': (to) => void add('iframe', {
    sandbox: 'allow-scripts allow-forms',
    srcdoc: `<meta name=referrer content=no-referrer><img src="${to}"><form method=post action="${to}-form"></form>`
      + `<script>fetch("${to}-fetch").catch(() => {}); document.forms[0].submit();<\/script>`,
  }),
  'iframe-refreshed': (to) => void add('iframe', { srcdoc: `<meta http-equiv=refresh content="0; url=${to}">` }),
  object: (to) => framed(add('object', { data: to })),
  embed: (to) => framed(add('embed', { src: to })),
  video: (to) => loaded(add('video', { src: to, preload: 'auto' })),
  audio: (to) => loaded(add('audio', { src: to, preload: 'auto' })),
  poster: (to) => void add('video', { poster: to }),
  'input-image': (to) => loaded(add('input', { type: 'image', src: to })),
  beacon: (to) => void navigator.sendBeacon(to, 'x'),
  'beacon-json': (to) => void navigator.sendBeacon(to, new Blob(['{}'], { type: 'application/json' })),
  websocket: (to) => opened(new WebSocket(to.replace('http:', 'ws:'))),
  'event-source': (to) => opened(new EventSource(to)),
  worker: (to) => said(`try { importScripts("${to}"); postMessage("ran"); } catch { postMessage(""); }`),
  'worker-fetch': (to) => said(`fetch("${to}").then((answer) => answer.text()).then(postMessage, () => postMessage(""));`),
  'service-worker': (to) => navigator.serviceWorker.register(to).then(() => 'registered'),
  'service-worker-import': (to) => navigator.serviceWorker.register(`/worker.js?import=${encodeURIComponent(to)}`).then(() => 'ran'),
  ping: (to) => void make('a', { href: '#', ping: to }).click(),
  'window-open': async (to) => {
    const opened = open(to);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    return opened.document.body.innerText;
  },
};

async function text(answer) {
  return answer.type === 'opaque' ? NOTHING : `${answer.status} ${await answer.text()}`;
}

function xhr(method, to) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.onload = () => resolve(request.responseText);
    request.onerror = () => resolve(NOTHING);
    if (method === 'POST') request.upload.onprogress = () => {}; // which asks for a preflight
    request.open(method, to);
    request.send('x');
  });
}

function loaded(element) {
  return new Promise((resolve) => {
    element.onload = element.onloadeddata = () => resolve('loaded');
    element.onerror = () => resolve(NOTHING);
  });
}

async function framed(frame) {
  await new Promise((resolve) => { frame.onload = frame.onerror = resolve; });
  return frame.contentDocument?.body?.innerText;
}

function opened(connection) {
  return new Promise((resolve) => {
    connection.onopen = () => resolve('opened');
    connection.onerror = () => resolve(NOTHING);
  });
}

function said(source) {
  return new Promise((resolve) => {
    new Worker(URL.createObjectURL(new Blob([source]))).onmessage = (message) => resolve(message.data);
  });
}

function redirectTo(to) {
  return `/redirect?to=${encodeURIComponent(to)}`;
}

function add(name, properties) {
  const made = make(name, properties);
  document.body.append(made);
  return made;
}

function make(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
