// What a program with Node's `fetch` does. It prints a line for each step.
// usage: node-fetch.mjs BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...    (TOKEN: what the upstream itself asks for)
import { createHash } from "node:crypto";
import { openAsBlob } from "node:fs";

const [base, upload, redirect, ...oddTargets] = process.argv.slice(2);
const authorization = process.env.TOKEN ? { Authorization: `Bearer ${process.env.TOKEN}` } : {};

function call(target, options = {}) {
  return fetch(base + target, { ...options, headers: { ...authorization, ...options.headers } });
}

async function show(name, response) {
  const digest = createHash("sha256");
  for await (const piece of response.body ?? []) digest.update(piece);
  console.log(name, response.status, response.headers.get("content-type"), digest.digest("hex"));
}

async function status(response) {
  await response.arrayBuffer();
  return response.status;
}

function json(method, value) {
  return { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) };
}

await show("get", await call("/api/blogposts/@sitehome?pageIndex=1&pageSize=2"));
const head = await call("/bytes/123456", { method: "HEAD" });
console.log("head", head.status, head.headers.get("content-type"), head.headers.get("content-length"));
await show("post-json", await call("/echo/json?raw", json("POST", { Content: "你好, 博客园", Number: 1 })));
const form = new URLSearchParams({ title: "你好 & more", tags: "a b+c", empty: "" });
await show("post-form", await call("/echo/form?raw", { method: "POST", body: form }));
const parts = new FormData();
parts.append("title", "你好");
parts.append("file", await openAsBlob(upload), "upload.bin");
console.log("upload", await status(await call("/echo/upload", { method: "POST", body: parts })));
await show("patch", await call("/echo/patch?raw", json("PATCH", { Content: "patched" })));
await show("delete", await call("/echo/delete?raw", json("DELETE", { Ids: [1, 2] })));
await show("download", await call("/bytes/67108864"));
await show("redirect", await call(redirect));

// The upstream sends the next event only when it has heard that this one was seen.
const seen = [];
const events = await call("/lockstep");
let text = "";
for await (const piece of events.body.pipeThrough(new TextDecoderStream())) {
  text += piece;
  for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
    const line = text.slice(0, end);
    text = text.slice(end + 1);
    if (!line.startsWith("data: ")) continue;
    seen.push(line.slice(6));
    await status(await call(`/echo/seen/${line.slice(6)}`));
  }
}
console.log("events", ...seen);
for (const target of oddTargets) console.log("odd", await status(await call(target)));
