"use strict";

// The redirect page of an application that is registered with our address: the answer stands behind the #.
function bringFragment(form) {
  const said = document.getElementById("fragment");
  const fragment = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  if (!fragment) {
    said.textContent = "There is nothing behind the # of this address: please start the login again.";
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

// Says while pasting what is wrong with an address, before anything is sent.
function watchPaste(form) {
  const field = form.elements.callback;
  const hint = document.getElementById("hint");
  const wrong = () => {
    const text = field.value.trim();
    if (!text) return "";
    if (text.includes("://") && !text.startsWith(form.dataset.redirect)) {
      return "This is the address of another page. It has to begin with " + form.dataset.redirect;
    }
    const parts = new URLSearchParams(text.replace(/^[^#?]*[#?]/, ""));
    if (parts.has("error")) return "";
    if (!parts.has("code") || !parts.has("state")) {
      return "A part is missing. Copy the whole address, with everything behind the #.";
    }
    return "";
  };
  field.addEventListener("input", () => {
    hint.textContent = wrong();
    hint.className = hint.textContent ? "wrong" : "";
  });
}

// Loads the status page again when an account's state changes.
function live(url) {
  const shown = () =>
    JSON.stringify([...document.querySelectorAll("[data-account]")].map((s) => [s.dataset.account, s.querySelector(".state").textContent]));
  setInterval(async () => {
    const answer = await fetch(url, { cache: "no-store" }).catch(() => null);
    if (!answer || !answer.ok) return;
    const status = await answer.json();
    const now = JSON.stringify(Object.entries(status.accounts).map(([name, account]) => [name, account.state]));
    if (now !== shown()) location.reload();
  }, 5000);
}

const bring = document.getElementById("bring");
if (bring) bringFragment(bring);
const paste = document.getElementById("paste");
if (paste) watchPaste(paste);
if (document.body.dataset.live) live(document.body.dataset.live);
