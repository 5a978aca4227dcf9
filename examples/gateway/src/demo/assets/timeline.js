// The page: fires calls, and draws what the servers behind the gateway tell of them.

const $ = (id) => document.getElementById(id);
const MOST = 200; // as many as the gateway makes at once
const DENSE = 50; // so many rows are drawn as thin lines
const totals = { ok: 0, bad: 0, refused: 0, refreshes: 0, replays: 0 };
const bursts = []; // the newest first
// The session says nothing of its user. A name is no secret, so it may outlive a reload.
let user = sessionStorage.getItem("user");

class Burst {
  constructor(number, size) {
    Object.assign(this, { number, size, entries: [], seen: [], finished: null, begun: performance.now() });
    this.article = $("burst").content.firstElementChild.cloneNode(true);
    $("bursts").querySelector(".empty")?.remove();
    $("bursts").prepend(this.article);
    this.article.classList.toggle("dense", size > DENSE);
    this.draw();
  }

  // Draws it once for all that is told before the next frame.
  drawSoon() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  // What a row shows: the refreshes first, then the browser's calls, each with all its attempts.
  rows() {
    const rows = new Map();
    for (const entry of this.entries) {
      const key = entry.route === "refresh" ? "" : entry.path;
      rows.set(key, [...(rows.get(key) ?? []), entry]);
    }
    for (const entries of rows.values()) entries.sort((a, b) => a.at - b.at);
    return [...rows].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  }

  static kind(entry, attempt) {
    if (entry.route === "refresh") return entry.status === 200 ? "refresh" : "failed";
    if (entry.status === 401) return "refused";
    if (entry.status !== 200) return "failed";
    return attempt === 0 ? "ok" : "replay";
  }

  heading() {
    const all = this.rows().flatMap(([, entries]) => entries.map((entry, attempt) => Burst.kind(entry, attempt)));
    const count = (kind) => all.filter((it) => it === kind).length;
    const refused = this.entries.filter((entry) => entry.route === "refresh" && entry.status !== 200).length;
    const behind = [
      [count("ok"), "answered"],
      [count("refused"), "401"],
      [count("refresh"), "refresh"],
      [refused, "refresh refused"],
      [count("replay"), "sent again"],
      [count("failed") - refused, "failed"],
    ];
    const told = behind.filter(([count]) => count > 0).map(([count, what]) => `${count} × ${what}`);
    const seen = Object.entries(Object.groupBy(this.seen, (status) => status));
    const browser = this.problem ?? (seen.map(([status, of]) => `${of.length} × ${status}`).join(", ") || "waits");
    const took = this.finished === null ? "" : ` in ${Math.round(this.finished - this.begun)}\u00a0ms`;
    return [`Burst ${this.number}: ${this.size} calls`, told.join(" → ") || "nothing yet", `${browser}${took}`];
  }

  draw() {
    this.frame = undefined;
    const from = Math.min(...this.entries.map((entry) => entry.at));
    const span = Math.max(...this.entries.map((entry) => entry.at + entry.took)) - from || 1;
    const [title, behind, browser] = this.heading();
    this.article.querySelector("h2").textContent = title;
    this.article.querySelector(".behind").textContent = behind;
    this.article.querySelector(".browser").textContent = browser;
    this.article.querySelector(".end").textContent = this.entries.length ? `${Math.round(span)} ms` : "";
    this.article.querySelector(".rows").replaceChildren(...this.rows().map(([key, entries]) => {
      const row = document.createElement("li");
      if (key === "") row.className = "refresh";
      const label = document.createElement("span");
      const [, group, name] = key === "" ? [, "POST /auth/", "refresh"] : `GET ${key.split("?")[0]}`.match(/(.*\/)(.*)/);
      label.append(Object.assign(document.createElement("small"), { textContent: group }), name);
      const track = document.createElement("span");
      track.className = "track";
      entries.forEach((entry, attempt) => {
        const bar = document.createElement("i");
        bar.className = Burst.kind(entry, attempt);
        bar.title = `${entry.method} ${entry.path}: ${entry.status ?? "no answer"}, token ${entry.generation ?? "-"}, `
          + `${entry.took.toFixed(1)} ms${entry.note ? `, ${entry.note}` : ""}`;
        bar.style.left = `${(100 * (entry.at - from)) / span}%`;
        bar.style.width = `${(100 * entry.took) / span}%`;
        track.append(bar);
      });
      row.append(label, track);
      return row;
    }));
  }
}

function show() {
  $("browser-ok").textContent = totals.ok;
  $("browser-bad").textContent = totals.bad;
  $("refused").textContent = totals.refused;
  $("refreshes").textContent = totals.refreshes;
  $("replays").textContent = totals.replays;
}

async function learnState() {
  const { state, generation } = await (await fetch("/session")).json();
  const signedIn = state === "active" || state === "refreshing";
  say(signedIn ? `${user ?? "signed in"}: ${state}, token ${generation}` : state.replace("_", " "));
  $("state").dataset.state = state;
  for (const id of ["fire", "logout"]) $(id).disabled = !signedIn;
  for (const id of ["expire", "revoke"]) $(id).disabled = !signedIn || user === null;
}

function say(text) {
  $("state").textContent = text;
}

async function fire() {
  const size = Math.min(Math.max(Math.trunc(Number($("count").value)) || 1, 1), MOST);
  $("count").value = size;
  const mine = new Burst((bursts[0]?.number ?? 0) + 1, size);
  bursts.unshift(mine);
  try {
    const response = await post("/demo/calls", { number: mine.number, size });
    mine.seen = response.ok ? await response.json() : [];
    if (!response.ok) mine.problem = `the gateway answered ${response.status}`;
  } catch (unreachable) {
    mine.problem = "the gateway can't be reached";
    throw unreachable;
  } finally {
    mine.finished = performance.now();
    for (const status of mine.seen) totals[status < 400 ? "ok" : "bad"] += 1;
    show();
    mine.draw();
    mine.article.dataset.finished = "";
  }
  await learnState();
  if (mine.seen.includes(401)) say("the session has ended: log in again");
}

function told(entry) {
  if (entry.user !== user) return;
  // A call says which burst it is of; a refresh is that of the newest.
  const number = new URLSearchParams(entry.path.split("?")[1]).get("burst");
  const mine = entry.route === "refresh" ? bursts[0] : bursts.find((burst) => String(burst.number) === number);
  if (mine === undefined) return;
  if (entry.route === "refresh") totals.refreshes += 1;
  else if (entry.route !== "api") return;
  else if (entry.status === 401) totals.refused += 1;
  else if (mine.entries.some((before) => before.path === entry.path && before.status === 401)) totals.replays += 1;
  mine.entries.push(entry);
  mine.drawSoon();
  show();
}

function post(path, body) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
}

// What a button does; what comes of it otherwise is said.
function act(work) {
  return (event) => work(event).catch(() => say("the gateway can't be reached"));
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  act(async () => {
    const credentials = Object.fromEntries(new FormData(event.target));
    const response = await post("/login", credentials);
    if (response.ok) sessionStorage.setItem("user", (user = credentials.username));
    await learnState();
    if (!response.ok) say((await response.json()).title);
  })(event);
});
$("fire").addEventListener("click", act(fire));
$("expire").addEventListener("click", act(async () => {
  await post("/demo/expire", { user });
  say(`${user}: the API refuses the token from now on`);
}));
$("revoke").addEventListener("click", act(async () => {
  await post("/demo/revoke", { user });
  say(`${user}: revoked, the next call will find out`);
}));
$("logout").addEventListener("click", act(async () => { await post("/logout"); await learnState(); }));

const events = new EventSource("/demo/events");
events.addEventListener("message", (event) => told(JSON.parse(event.data)));
events.addEventListener("open", () => { document.body.dataset.live = ""; });
// It is opened again by itself; what happens meanwhile is not drawn.
events.addEventListener("error", () => { delete document.body.dataset.live; });
act(learnState)();
