// The page: fires calls, and draws what the servers behind the gateway tell of them.

const $ = (id) => document.getElementById(id);
const totals = { ok: 0, bad: 0, refused: 0, refreshes: 0, replays: 0 };
let user = null;
let burst = null; // the newest: what the servers tell belongs to it

class Burst {
  constructor(number, size) {
    Object.assign(this, { number, size, entries: [], seen: [], finished: null, begun: performance.now() });
    this.article = $("burst").content.firstElementChild.cloneNode(true);
    $("bursts").querySelector(".empty")?.remove();
    $("bursts").prepend(this.article);
    this.draw();
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
    const seen = Object.entries(Object.groupBy(this.seen, (status) => status));
    const browser = seen.map(([status, of]) => `${of.length} × ${status}`).join(", ") || "waits";
    const refused = this.entries.filter((entry) => entry.route === "refresh" && entry.status !== 200).length;
    const refreshes = refused ? `${refused} × refresh refused` : `${count("refresh")} × refresh`;
    const behind = [`${count("refused")} × 401`, refreshes, `${count("replay")} × sent again`];
    const took = this.finished === null ? "" : ` in ${Math.round(this.finished - this.begun)} ms`;
    return `Burst ${this.number}: ${this.size} calls. Behind the gateway: ${behind.join(" → ")}. The browser saw: ${browser}${took}`;
  }

  draw() {
    const from = Math.min(...this.entries.map((entry) => entry.at));
    const span = Math.max(...this.entries.map((entry) => entry.at + entry.took)) - from || 1;
    this.article.querySelector("h2").textContent = this.heading();
    this.article.querySelector(".end").textContent = this.entries.length ? `${Math.round(span)} ms` : "";
    this.article.querySelector(".rows").replaceChildren(...this.rows().map(([key, entries]) => {
      const row = document.createElement("li");
      if (key === "") row.className = "refresh";
      const label = document.createElement("span");
      label.textContent = key === "" ? "POST /auth/refresh" : `GET ${key.split("?")[0]}`;
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
  $("state").textContent = signedIn ? `${user ?? "signed in"}: ${state}, token ${generation}` : state.replace("_", " ");
  $("state").dataset.state = state;
  for (const id of ["fire", "logout"]) $(id).disabled = !signedIn;
  for (const id of ["expire", "revoke"]) $(id).disabled = !signedIn || user === null;
}

async function fire() {
  const size = Number($("count").value);
  const mine = (burst = new Burst((burst?.number ?? 0) + 1, size));
  const response = await post("/demo/calls", { number: mine.number, size });
  mine.seen = response.ok ? await response.json() : [];
  mine.finished = performance.now();
  for (const status of mine.seen) totals[status < 400 ? "ok" : "bad"] += 1;
  show();
  mine.draw();
  mine.article.dataset.finished = "";
  await learnState();
  if (mine.seen.includes(401)) $("state").textContent = "the session has ended: log in again";
}

function told(entry) {
  if (entry.user !== user || burst === null) return;
  if (entry.route === "refresh") totals.refreshes += 1;
  else if (entry.route !== "api") return;
  else if (entry.status === 401) totals.refused += 1;
  else if (burst.entries.some((before) => before.path === entry.path && before.status === 401)) totals.replays += 1;
  burst.entries.push(entry);
  burst.draw();
  show();
}

function post(path, body) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: body && JSON.stringify(body) });
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const credentials = Object.fromEntries(new FormData(event.target));
  const response = await post("/login", credentials);
  if (response.ok) user = credentials.username;
  await learnState();
  if (!response.ok) $("state").textContent = (await response.json()).title;
});
$("fire").addEventListener("click", fire);
$("expire").addEventListener("click", () => post("/demo/expire", { user }));
$("revoke").addEventListener("click", () => post("/demo/revoke", { user }));
$("logout").addEventListener("click", async () => { await post("/logout"); await learnState(); });

const events = new EventSource("/demo/events");
events.addEventListener("message", (event) => told(JSON.parse(event.data)));
events.addEventListener("open", () => { document.body.dataset.live = ""; });
learnState();
