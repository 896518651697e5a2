"use strict";

// The pages work without this. With it they count time, follow what happens, and say while pasting what is wrong.

const words = JSON.parse(document.body.dataset.words);
const FOLLOW_MS = 3000;
const LEEWAY_MS = 300_000; // how long after its end an id_token is taken, as the daemon does
let ahead = Date.now() - Number(document.body.dataset.now); // of the daemon's clock

const word = (key, values = {}) => words[key].replace(/\{\{(\w+)\}\}/g, (all, name) => values[name] ?? all);
const now = () => Date.now() - ahead;

// --- times -------------------------------------------------------------------------------------------------

function span(ms) {
  const secs = Math.floor(Math.abs(ms) / 1000);
  const units = [["day", Math.floor(secs / 86400)], ["hour", Math.floor(secs / 3600) % 24], ["minute", Math.floor(secs / 60) % 60], ["second", secs % 60]];
  const first = units.findIndex(([, number]) => number > 0);
  const shown = first < 0 ? units.slice(-1) : units.slice(first, first + 2).filter(([, number], at) => at === 0 || number > 0);
  return shown.map(([unit, number]) => {
    const [one, more] = word(`unit.${unit}`).split("|");
    return `${number} ${number === 1 ? one : more ?? one}`;
  }).join(" ");
}

function showTimes() {
  for (const counted of document.querySelectorAll("[data-at]")) {
    const away = Number(counted.dataset.at) - now();
    const keys = counted.dataset.count === "left" ? ["left", "over"] : ["in", "ago"];
    const text = word(keys[away > 0 ? 0 : 1], { span: span(away) });
    if (counted.textContent !== text) counted.textContent = text;
  }
  const parts = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
  const zone = new Intl.DateTimeFormat(document.documentElement.lang, parts);
  for (const time of document.querySelectorAll("time:not([title])")) {
    time.title = time.textContent;
    time.textContent = zone.format(new Date(time.dateTime));
  }
  const left = document.querySelector("#progress [data-count=left]");
  if (left && Number(left.dataset.at) <= now()) {
    const note = left.closest("p");
    note.textContent = word("timeout");
    note.classList.add("wrong");
  }
}

// --- following what happens --------------------------------------------------------------------------------

// A page's secret is new each time.
const withoutSecrets = (part) => part.innerHTML.replace(/(name="page" value=")[^"]*/g, "$1");

/** `query` is what the page shall be asked with. */
function follow(query) {
  const parts = () => document.querySelectorAll("[data-live]");
  const served = new Map([...parts()].map((part) => [part.id, withoutSecrets(part)]));
  const isInUse = (part) => part.contains(document.activeElement) || part.querySelector("details[open]");
  let asking = false;

  function show(fresh) {
    ahead = Date.now() - Number(fresh.body.dataset.now);
    const secret = fresh.querySelector("[name=page]")?.value;
    for (const field of document.querySelectorAll("[name=page]")) field.value = secret ?? field.value;
    for (const element of document.querySelectorAll("[data-fresh]")) {
      Object.assign(element.dataset, fresh.getElementById(element.id)?.dataset);
    }
    for (const part of parts()) {
      const newer = fresh.getElementById(part.id);
      if (!newer || isInUse(part) || served.get(part.id) === withoutSecrets(newer)) continue;
      if (part.id === "summary") say(newer);
      served.set(part.id, withoutSecrets(newer));
      part.replaceChildren(...document.importNode(newer, true).childNodes);
    }
    showTimes();
  }

  async function ask() {
    if (asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch(location.pathname + query(), { cache: "no-store", signal: AbortSignal.timeout(10_000) });
      if (!answer.ok) throw new Error(answer.status);
      show(new DOMParser().parseFromString(await answer.text(), "text/html"));
      document.getElementById("offline").hidden = true;
    } catch {
      document.getElementById("offline").hidden = false;
    } finally {
      asking = false;
    }
  }

  setInterval(ask, FOLLOW_MS);
  document.addEventListener("visibilitychange", ask);
  addEventListener("focus", ask);
  return ask;
}

/** To those who do not see it. */
function say(part) {
  const said = document.getElementById("said");
  if (said && said.textContent !== part.textContent) said.textContent = part.textContent;
}

// --- pasting -----------------------------------------------------------------------------------------------

/** A pasted text without what mails, chats and terminals put around and into an address. The daemon looks closer. */
function withoutSurroundings(text, redirect) {
  const joined = text.replace(/[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g, "").replaceAll("&amp;", "&")
    .replaceAll("\\u0026", "&").replace(/\\(?=[^\w\s])/g, "").replace(/\s*\n[\s>|]*/g, "");
  const at = joined.indexOf(redirect);
  const encodedAt = joined.indexOf(encodeURIComponent(redirect));
  let found = joined.slice(Math.max(at, 0));
  if (at < 0 && encodedAt >= 0) {
    const encoded = joined.slice(encodedAt).match(/^[^&#\s]*/)[0];
    try { found = decodeURIComponent(encoded); } catch { found = encoded; }
  }
  return found.match(/^[^\s"<>`{}|\\^\u0080-\uffff]*/)[0].replace(/[.,;:!?)\]'*]+$/, "");
}

/** What is wrong with a pasted text, as the key of a word with its values; nothing for an address that is good. */
function wrongWith(text, form) {
  const wrong = wrongWithAddress(text, form);
  const bare = wrong && withoutSurroundings(text, form.dataset.redirect);
  if (!bare || bare === text || !/state=/.test(bare)) return wrong;
  // What is not seen here may be words that stand behind.
  return wrongWithAddress(bare, form) === null ? null : ["paste.unsure"];
}

function wrongWithAddress(text, form) {
  const { redirect, authorize, parts, mark } = form.dataset;
  const isAddress = /^[a-z][a-z0-9+.-]*:\/\//i.test(text);
  if (!isAddress && !text.includes("=")) return ["paste.text"];
  if (isAddress) {
    if (text.startsWith(`${location.origin}/-/login`)) return ["paste.here"];
    const there = URL.canParse(text) ? new URL(text) : null;
    if (!there || there.origin + there.pathname !== new URL(redirect).origin + new URL(redirect).pathname) {
      return there && there.origin === new URL(authorize).origin ? ["paste.early"] : ["paste.elsewhere", { redirect_uri: redirect }];
    }
  }
  const behind = isAddress ? text.replace(/^[^?#]*[?#]?/, "") : text.replace(/^[?#]/, "");
  if (!behind) return ["paste.cut", { mark }];
  const given = new URLSearchParams(behind.replace("#", "&"));
  for (const part of parts.split(" ")) {
    if (given.getAll(part).length > 1) return ["paste.twice", { part }];
  }
  if (given.has("error")) return ["paste.denied", { part: given.get("error") }];
  const missing = parts.split(" ").filter((part) => !given.get(part));
  if (missing.length > 0) return ["paste.part", { part: missing.join(", ") }];

  const asked = JSON.parse(form.dataset.asked);
  stateToAsk = given.get("state");
  if (asked.state !== stateToAsk) return ["paste.unsure"];
  if (asked.is !== "good") return [`paste.${asked.is}`, { part: asked.part }];
  return asked.until <= now() || isOld(given.get("id_token")) ? ["paste.old"] : null;
}

/** Of the pasted address: only the daemon knows whose login it is. */
let stateToAsk = "";

/** The id_token has ended for longer than is granted. What can't be read is the daemon's to judge. */
function isOld(idToken) {
  try {
    const claims = JSON.parse(atob(idToken.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return claims.exp * 1000 + LEEWAY_MS <= now();
  } catch {
    return false;
  }
}

function watchPaste(form, ask) {
  const field = form.elements.callback;
  const hint = document.getElementById("hint");
  const verdict = () => (field.value.trim() ? wrongWith(field.value.trim(), form) : null);
  const judge = () => {
    const wrong = verdict();
    const isUnsure = wrong?.[0] === "paste.unsure";
    const said = !field.value.trim() || isUnsure ? "" : wrong ? word(...wrong) : word("paste.good");
    if (hint.textContent !== said) hint.textContent = said;
    hint.className = `hint ${wrong ? "wrong" : "right"}`;
    if (wrong && !isUnsure) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  };
  field.addEventListener("input", async () => {
    judge();
    if (verdict()?.[0] === "paste.unsure") await ask();
    judge();
  });
  setInterval(() => field.value && judge(), 1000);
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    button.disabled = true;
    button.textContent = word("busy");
  });
  document.getElementById("start")?.addEventListener("submit", () => setTimeout(ask, 700));
  // Back from the next page, the button can be pressed again.
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}

// --- the redirect page of an application that is registered with our address ---------------------------------

function bringFragment(form) {
  const fragment = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  if (!fragment) {
    document.getElementById("fragment").textContent = word("bring.nothing");
    return;
  }
  for (const [name, value] of new URLSearchParams(fragment)) {
    const input = document.createElement("input");
    input.type = "hidden";
    input.name = name;
    input.value = value;
    form.append(input);
  }
  form.submit();
}

const bring = document.getElementById("bring");
if (bring) bringFragment(bring);
const asksFor = () => (stateToAsk ? `?state=${encodeURIComponent(stateToAsk)}` : "");
const ask = "follow" in document.body.dataset ? follow(asksFor) : () => {};
const paste = document.getElementById("paste");
if (paste) watchPaste(paste, ask);
showTimes();
setInterval(showTimes, 1000);
