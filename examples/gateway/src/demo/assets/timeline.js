// The demo page: sends bursts of calls and draws the requests that the servers behind the gateway report.

const $ = (id) => document.getElementById(id);
const MAX_CALLS = 200; // the gateway's limit for a burst
const UNREACHABLE = "the gateway can't be reached";
const DENSE_ABOVE = 50; // more rows than this are drawn as thin lines
const totals = { ok: 0, bad: 0, refused: 0, refreshes: 0, replays: 0 };
const bursts = []; // newest first
// GET /session returns no user name. The name is not secret and is kept across reloads.
let user = sessionStorage.getItem("user");

class Burst {
  constructor(number, size) {
    Object.assign(this, { number, size, entries: [], statuses: [], finished: null, started: performance.now() });
    this.article = $("burst").content.firstElementChild.cloneNode(true);
    $("bursts").querySelector(".empty")?.remove();
    $("bursts").prepend(this.article);
    this.article.classList.toggle("dense", size > DENSE_ABOVE);
    this.draw();
  }

  // Coalesces all entries before the next frame into one drawing.
  drawSoon() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  // Groups the entries into rows: the refreshes first, then each call with its attempts.
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
    const count = (kind) => all.filter((other) => other === kind).length;
    const refused = this.entries.filter((entry) => entry.route === "refresh" && entry.status !== 200).length;
    const behind = [
      [count("ok"), "succeeded"],
      [count("refused"), "401"],
      [count("refresh"), "refresh"],
      [refused, "refresh refused"],
      [count("replay"), "replayed"],
      [count("failed") - refused, "failed"],
    ];
    const summary = behind.filter(([count]) => count > 0).map(([count, label]) => `${count} × ${label}`);
    const groups = Object.entries(Object.groupBy(this.statuses, (status) => status));
    const received = groups.map(([status, group]) => `${group.length} × ${status}`).join(", ");
    const browser = this.problem ?? (received || "waiting");
    const took = this.finished === null ? "" : ` in ${Math.round(this.finished - this.started)}\u00a0ms`;
    return [`Burst ${this.number}: ${this.size} calls`, summary.join(" → ") || "no requests yet", `${browser}${took}`];
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
        bar.title = `${entry.method} ${entry.path}: ${entry.status ?? "no response"}, token ${entry.generation ?? "-"}, `
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

function showTotals() {
  $("browser-ok").textContent = totals.ok;
  $("browser-bad").textContent = totals.bad;
  $("refused").textContent = totals.refused;
  $("refreshes").textContent = totals.refreshes;
  $("replays").textContent = totals.replays;
}

async function updateState() {
  const { state, generation } = await (await fetch("/session")).json();
  const signedIn = ["active", "refreshing", "failing"].includes(state);
  showStatus(signedIn ? `${user ?? "signed in"}: ${state}, token ${generation}` : state.replace("_", " "));
  $("state").dataset.state = state;
  for (const id of ["fire", "logout"]) $(id).disabled = !signedIn;
  for (const id of ["expire", "revoke"]) $(id).disabled = !signedIn || user === null;
}

function showStatus(text) {
  $("state").textContent = text;
}

async function fire() {
  const size = Math.min(Math.max(Math.trunc(Number($("count").value)) || 1, 1), MAX_CALLS);
  $("count").value = size;
  const burst = new Burst((bursts[0]?.number ?? 0) + 1, size);
  bursts.unshift(burst);
  try {
    const response = await post("/demo/calls", { number: burst.number, size });
    burst.statuses = response.ok ? await response.json() : [];
    if (!response.ok) burst.problem = `the gateway returned ${response.status}`;
  } catch (error) {
    burst.problem = UNREACHABLE;
    throw error;
  } finally {
    burst.finished = performance.now();
    for (const status of burst.statuses) totals[status < 400 ? "ok" : "bad"] += 1;
    showTotals();
    burst.draw();
    burst.article.dataset.finished = "";
  }
  await updateState();
  if (burst.statuses.includes(401)) showStatus("session ended: log in again");
}

function addEntry(entry) {
  if (entry.user !== user) return;
  // A call has the number of its burst in its query; a refresh is assigned to the newest burst.
  const number = new URLSearchParams(entry.path.split("?")[1]).get("burst");
  const burst = entry.route === "refresh" ? bursts[0] : bursts.find((other) => String(other.number) === number);
  if (burst === undefined) return;
  if (entry.route === "refresh") totals.refreshes += 1;
  else if (entry.route !== "api") return;
  else if (entry.status === 401) totals.refused += 1;
  else if (burst.entries.some((earlier) => earlier.path === entry.path && earlier.status === 401)) totals.replays += 1;
  burst.entries.push(entry);
  burst.drawSoon();
  showTotals();
}

function post(path, body) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
}

// Wraps an event handler: a failure is shown as the status.
function handler(work) {
  return (event) => work(event).catch(() => showStatus(UNREACHABLE));
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  handler(async () => {
    const credentials = Object.fromEntries(new FormData(event.target));
    const response = await post("/login", credentials);
    if (response.ok) sessionStorage.setItem("user", (user = credentials.username));
    await updateState();
    if (!response.ok) showStatus((await response.json()).title);
  })(event);
});
$("fire").addEventListener("click", handler(fire));
$("expire").addEventListener("click", handler(async () => {
  await post("/demo/expire", { user });
  showStatus(`${user}: access token expired`);
}));
$("revoke").addEventListener("click", handler(async () => {
  await post("/demo/revoke", { user });
  showStatus(`${user}: tokens revoked, the next call ends the session`);
}));
$("logout").addEventListener("click", handler(async () => { await post("/logout"); await updateState(); }));

const events = new EventSource("/demo/events");
events.addEventListener("message", (event) => addEntry(JSON.parse(event.data)));
events.addEventListener("open", () => { document.body.dataset.live = ""; });
// The browser reconnects by itself. Requests in between are not drawn.
events.addEventListener("error", () => { delete document.body.dataset.live; });
handler(updateState)();
