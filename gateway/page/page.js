// The page: asks the gateway that it came from every two seconds, and draws what it says. Texts that
// came from requests or nodes are only ever set as text, never read as markup.
"use strict";

const POLL_MS = 2000, SLOW_POLL_MS = 10000, REQUESTS_SHOWN = 25, CONTEXTS_SHOWN = 20, AUDITS_SHOWN = 6;
const TIERS = ["device", "host", "disk", "remote"];
const SPANS = ["queue", "match", "load", "compute", "transfer", "decode"];
const SPAN_WORDS = {
  queue: "waiting for a place", match: "looking for its prefix", load: "loading what was found",
  compute: "computing the prompt", transfer: "moving KV, waiting at nodes", decode: "generating",
};
// What each reason means, and what to do about it.
const REASONS = {
  "evicted:device": ["left device memory for want of room",
    "Keep below what leaves it: store.host_bytes, store.disk_bytes, or a kvist-store."],
  "evicted:host": ["left host memory for want of room",
    "Raise store.host_bytes or add a disk tier; kvist why REQUEST says who needed the room, a quota bounds them."],
  "evicted:disk": ["left the disk for want of room", "Raise store.disk_bytes, or bound tenants by quotas."],
  "evicted": ["was dropped on request", "Nothing, if the drop was meant."],
  "expired": ["came back after its time was over", "Ask for a longer TTL where the context is made."],
  "elsewhere": ["another node holds it and was not asked",
    "Are all nodes each other's peers (kvist status)? Is gateway.routing prefix?"],
  "pending": ["another request was computing it just then",
    "Where many begin alike at once, send one ahead, or ask for several answers by n."],
  "bypassed": ["came only in requests that keep nothing",
    "x-kvist-cache-mode: readwrite; background requests bypass the cache unless they say so."],
  "not-admitted": ["was kept off the disk by the write budget",
    "Raise store.write_bytes_per_day if the drive's endurance allows, or store.host_bytes."],
  "cheaper": ["computing it was quicker than fetching it", "Nothing; a faster link or drive would change it."],
  "damaged": ["proved wrong when it was read, and was dropped", "Look after the drive: kvist verify, the node's log."],
  "failed": ["was held, but could not be read or sent", "The nodes' logs say which drive or link failed."],
  "cancelled": ["the request ended before it was looked for", "Nothing."],
  "namespace": ["is stored under another salt or model alone", "kvist why --tokens names the field that differs."],
  "forgotten": ["the node does not know that it ever had it",
    "After a restart: a disk tier survives it. Otherwise raise store.history_bytes to learn why."],
  "untold": ["the engine gives no reasons", "vLLM tells none; behind kvist-store's connector it hits more."],
  "other": ["the node gave another reason", "kvist why REQUEST says it."],
  "diverged": ["the prompt parted early from the one before",
    "What changed is shown below: move timestamps, ids and counters behind what stays."],
  "new": ["never seen before", "Nothing: no cache could have had it."],
  "short": ["the tail that is less than a block", "Nothing: it is always computed."],
};

const by = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { weekday: "short", hour: "2-digit", minute: "2-digit" });

const sum = (values) => Object.values(values).reduce((total, value) => total + value, 0);
const percent = (part, all) => (all > 0 ? (100 * part / all).toFixed(1) : "–");

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit++;
  }
  return `${count < 10 && unit > 0 ? count.toFixed(1) : count.toFixed(0)} ${units[unit]}`;
}

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 1000) return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
  const seconds = ms / 1000;
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(0)} h` : `${(seconds / 86400).toFixed(0)} days`;
}

// element("td", {class: "number"}, "text", child, ...)
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(id, text) {
  const node = by(id);
  if (node.textContent !== text) node.textContent = text;
}

// Segments in proportion: [[class, value], ...]; all: what the whole bar stands for.
function bar(segments, all) {
  return segments.filter(([, value]) => value > 0).map(([kind, value]) => {
    const made = element("i", { class: kind });
    made.style.width = `${100 * value / all}%`;
    return made;
  });
}

function legend(kind, name, value) {
  return element("li", {}, element("span", { class: `swatch ${kind}` }), name, " ", element("b", {}, value));
}

// ---- asking ----

const state = {
  key: sessionStorage.getItem("kvist-key") || "", paused: false, overview: null, before: null,
  newest: 0, requests: [], open: new Set(), offset: 0, contexts: null, reading: null, failed: false,
  slowAt: 0, timer: 0, turning: false, again: false, picked: false, old: false,
};

class Refused extends Error {}

async function ask(path) {
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store" });
  if (answer.status === 401) throw new Refused();
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

async function look() {
  const slow = performance.now() - state.slowAt >= SLOW_POLL_MS || state.contexts === null ||
    state.contexts.nodes_told < state.contexts.nodes || state.contexts.nodes === 0 || state.old;
  const [overview, requests] = await Promise.all([
    ask(`/v1/overview?span=${chosen("span")}`),
    ask(`/v1/requests?limit=${REQUESTS_SHOWN}&after=${state.newest}`)]);
  if (slow) {
    await lookSlowly();
    state.slowAt = performance.now();
  }
  const begun = performance.now();
  take(overview, requests.data);
  performance.measure("draw", { start: begun });
}

async function lookSlowly() {
  await lookAtContexts();
  drawAudits(await ask(`/v1/audit?limit=${AUDITS_SHOWN}`));
}

async function lookAtContexts() {
  const query = new URLSearchParams({ limit: CONTEXTS_SHOWN, offset: state.offset, sort: by("sort").value });
  if (by("tier").value) query.set("tier", by("tier").value);
  state.contexts = await ask(`/v1/contexts?${query}`);
  // What was told long ago was asked for anew by this: the next look has it.
  state.old = !state.old && state.contexts.told_ms_ago > SLOW_POLL_MS / 2;
  const begun = performance.now();
  drawContexts();
  performance.measure("draw-contexts", { start: begun });
}

async function turn() {
  if (state.turning) {
    state.again = true; // the one under way looks once more
    return;
  }
  state.turning = true;
  state.again = false;
  clearTimeout(state.timer);
  const pause = await turnOnce();
  state.turning = false;
  if (pause !== null) state.timer = setTimeout(turn, state.again ? 0 : pause);
}

// How long to wait for the next one; null: until there is a key.
async function turnOnce() {
  let pause = POLL_MS;
  try {
    if (!state.paused && !document.hidden) await look();
    if (state.overview && (state.overview.nodes || []).some((node) => node.told_ms_ago === null && !node.error)) {
      pause = 250; // nodes were asked for the first time
    }
    state.failed = false;
    by("key").hidden = true;
    by("main").hidden = false;
  } catch (error) {
    if (error instanceof Refused) {
      askForKey();
      return null;
    }
    state.failed = true;
  }
  drawState();
  return pause;
}

function askForKey() {
  setText("state", "a key is needed");
  setText("key-error", state.key ? "This key is wrong, or is in force no longer." : "");
  by("main").hidden = true;
  by("key").hidden = false;
  by("key-text").focus();
}

// ---- drawing ----

function take(overview, requests) {
  if (state.overview && state.overview.started !== overview.started) { // another process: it counts anew
    state.newest = 0;
    state.requests = requests = [];
    state.open.clear();
  }
  state.before = state.overview;
  state.overview = overview;
  setText("model", overview.model || "");
  setText("version", `Kvist ${overview.version}, up ${duration(overview.now_ms - 1000 * overview.started)}` +
    (overview.scope === "tenant" ? `; what tenant ${overview.tenant} may see: its latest requests` : ""));
  by("tiers-section").hidden = !overview.nodes;
  drawRate();
  drawPlot();
  drawLoad();
  drawNodes();
  if (requests.length > 0) {
    state.newest = requests[0].number;
    state.requests = [...requests, ...state.requests].slice(0, REQUESTS_SHOWN);
    drawRequests();
  }
  setText("requests-note", state.requests.length === 0 ? "None yet since the gateway's start." :
    "The latest; kvist why and kvist explain tell more of each by its id.");
}

function drawState() {
  const at = state.overview ? clock.format(state.overview.now_ms) : "";
  const running = state.overview ? `${state.overview.running} in work` : "";
  const text = state.failed ? `the gateway does not answer${at ? `; this is of ${at}` : ""}`
    : state.paused ? `paused at ${at}` : `${running}, ${at}`;
  setText("state", text);
  by("state").className = state.failed ? "bad" : "";
  setText("news", state.failed ? "The gateway does not answer" : state.paused ? "Paused" : "");
}

function partsOf(tokens) {
  const gap = sum(tokens.gap), hit = sum(tokens.hit);
  return { gap, hit, prompt: tokens.prompt };
}

// Until somebody chose: the shortest one in which something was asked.
function chooseWindow() {
  const { windows } = state.overview;
  const name = ["now", "hour", "start"].find((other) => windows[other].answers > 0);
  if (!state.picked && name) document.querySelector(`input[name=window][value=${name}]`).checked = true;
}

function drawRate() {
  chooseWindow();
  const tokens = state.overview.windows[chosen("window")].tokens;
  const { gap, hit, prompt } = partsOf(tokens);
  setText("rate", percent(hit, prompt));
  setText("ideal", prompt > 0 ? `${percent(hit + gap, prompt)} %` : "–");
  setText("gap", prompt > 0 ? `${percent(gap, prompt)} points` : "–");
  setText("prompt", compact.format(prompt));
  const segments = TIERS.map((tier) => [tier, tokens.hit[tier], `hit: ${tier}`]);
  segments.push(["gap-part", gap, "gap"], ["diverged", tokens.diverged, "diverged"],
    ["new", tokens.new, "new"], ["short", tokens.short, "short"]);
  by("parts-bar").replaceChildren(...bar(segments, prompt));
  by("parts").replaceChildren(...segments.filter(([, value]) => value > 0).map(([kind, value, name]) =>
    legend(kind, name, `${percent(value, prompt)} %`)));
  drawMisses(tokens);
}

function drawMisses(tokens) {
  const gap = Object.entries(tokens.gap).sort((a, b) => b[1] - a[1]);
  const rest = ["diverged", "new", "short"].map((name) => [name, tokens[name]]).filter(([, value]) => value > 0);
  const rows = [...gap, ...rest];
  const most = Math.max(1, ...rows.map(([, value]) => value));
  by("misses").replaceChildren(...rows.map(([name, value]) => {
    const kind = gap.some(([other]) => other === name) ? "gap-part" : name;
    const [meaning, remedy] = REASONS[name] || REASONS.other;
    return element("li", {},
      element("p", { class: "line" }, element("span", {}, element("span", { class: "why" }, name), `: ${meaning}`),
        element("span", { class: "number" }, `${percent(value, tokens.prompt)} %`)),
      element("div", { class: "bar thin", "aria-hidden": "true" }, ...bar([[kind, value]], most)),
      element("p", { class: "do" }, `${compact.format(value)} tokens. ${remedy}`));
  }));
  if (rows.length === 0) by("misses").replaceChildren(element("li", { class: "note" }, "Nothing was asked yet."));
}

function drawLoad() {
  const { latency, windows, window_s: seconds, totals } = state.overview;
  const rows = [["first token", latency.ttft_ms], ["of that, queue", latency.queue_ms],
    ["each token after it", latency.tpot_ms]];
  const perMinute = 60 * windows.now.answers / seconds;
  setText("load-note", `${whole.format(windows.now.answers)} answers in ${seconds / 60} minutes, ` +
    `${perMinute.toFixed(perMinute < 10 ? 1 : 0)} a minute` + (latency.answers === 0 ? "." :
    `; times of the latest ${whole.format(latency.answers)}${latency.recent ? "" : ", which are older"}.`));
  by("latency").replaceChildren(...rows.map(([name, values]) => element("tr", {},
    element("th", { scope: "row" }, name),
    ...["p50", "p90", "p99"].map((rank) => element("td", {}, duration(values[rank]))))));
  const spans = SPANS.map((name) => [name, latency.mean_ms[name] || 0]);
  const all = spans.reduce((total, [, value]) => total + value, 0);
  by("mean-bar").replaceChildren(...bar(spans, all || 1));
  by("mean").replaceChildren(...spans.filter(([, value]) => value > 0).map(([name, value]) =>
    legend(name, name, duration(value))));
  by("totals").replaceChildren(...totalsOf(latency, totals).map(([name, value, more]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value), element("dd", { class: "note" }, more))));
}

// What stands below the times: [name, value, what it means].
function totalsOf(latency, totals) {
  const { ttft_ms: first, tpot_ms: token } = state.overview.targets;
  const targets = [first > 0 && `first token ${duration(first)}`, token > 0 && `${duration(token)} a token`]
    .filter(Boolean).join(", ");
  const list = [["within targets", latency.answers > 0 ? `${percent(latency.good, latency.answers)} %` : "–",
    targets || "none are set"]];
  if (totals) {
    const prompt = state.overview.windows.start.tokens.prompt;
    list.push(["prefill saved", duration(1000 * totals.avoided_s), "since the start, estimated"],
      ["computing prompts", duration(1000 * totals.compute_s), "since the start"],
      ["generating", duration(1000 * totals.decode_s), "since the start, of each answer"],
      ["prompt to answer", totals.generated > 0 ? `${(prompt / totals.generated).toFixed(1)} : 1` : "–",
        `${compact.format(totals.generated)} tokens generated`]);
  }
  return list;
}

// ---- over time ----

const PLOT = { width: 640, height: 200, left: 44, bottom: 22, top: 8 };

function drawPlot() {
  const { history, now_ms: now } = state.overview;
  PLOT.width = Math.max(200, by("plot").clientWidth);
  PLOT.height = Math.max(150, by("plot").clientHeight);
  const length = history.span === "hour" ? 3600 : 7 * 86400;
  const end = now / 1000, begin = end - length;
  const points = pointsOf(history, begin);
  const x = (at) => PLOT.left + (PLOT.width - PLOT.left) * Math.max(0, at - begin) / length;
  const y = (rate) => PLOT.top + (PLOT.height - PLOT.top - PLOT.bottom) * (1 - rate);
  const made = svg("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, "aria-hidden": "true" });
  for (const rate of [0, 0.5, 1]) {
    made.append(svg("line", { class: "grid", x1: PLOT.left, x2: PLOT.width, y1: y(rate), y2: y(rate) }),
      svg("text", { x: PLOT.left - 8, y: y(rate) + 4, "text-anchor": "end" }, `${100 * rate} %`));
  }
  for (let tick = 0; tick <= 4; tick++) {
    const at = begin + length * tick / 4, anchor = tick === 0 ? "start" : tick === 4 ? "end" : "middle";
    made.append(svg("text", { x: x(at), y: PLOT.height - 4, "text-anchor": anchor },
      history.span === "hour" ? clock.format(at * 1000).slice(0, 5) : day.format(at * 1000)));
  }
  const runs = runsOf(points, history.step_s);
  for (const run of runs) {
    const last = run[run.length - 1], tail = [last[0] + history.step_s, ...last.slice(1)];
    const drawn = [...run, tail];
    const line = (value) => drawn.map((point) => `${x(point[0])},${y(value(point))}`).join(" ");
    const back = (value) => [...drawn].reverse().map((point) => `${x(point[0])},${y(value(point))}`).join(" ");
    const hit = (point) => point[2] / point[1], ideal = (point) => point[3] / point[1];
    made.append(svg("polygon", { class: "hit", points: `${line(hit)} ${back(() => 0)}` }),
      svg("polygon", { class: "gap", points: `${line(ideal)} ${back(hit)}` }),
      svg("polyline", { class: "hit-line", points: line(hit) }),
      svg("polyline", { class: "ideal", points: line(ideal) }));
  }
  if (points.length === 0) {
    made.append(svg("text", { x: (PLOT.width + PLOT.left) / 2, y: PLOT.height / 2, "text-anchor": "middle" },
      "nothing was asked in this time"));
  }
  drawReading(made, points, x, y);
  by("plot").replaceChildren(made);
}

// Slots with their times, of those that are not over yet.
function pointsOf(history, begin) {
  return history.points.map(([place, ...rest]) => [history.begins + place * history.step_s, ...rest])
    .filter(([at]) => at + history.step_s > begin);
}

// Points whose slots touch, or nearly: the line breaks where nothing was asked for longer.
function runsOf(points, step) {
  const runs = [];
  for (const point of points) {
    const last = runs[runs.length - 1];
    if (last && point[0] - last[last.length - 1][0] <= 6 * step) last.push(point);
    else runs.push([point]);
  }
  return runs;
}

// The point that arrow keys or the pointer chose, in words.
function drawReading(made, points, x, y) {
  const plot = by("plot"), most = Math.max(0, points.length - 1);
  const at = state.reading === null ? most : Math.min(state.reading, most);
  const point = points[at];
  plot.setAttribute("aria-valuemax", String(most));
  plot.setAttribute("aria-valuenow", String(at));
  if (!point) {
    plot.setAttribute("aria-valuetext", "nothing yet");
    setText("reading", "\u00a0");
    return;
  }
  const [begins, prompt, hit, ideal, answers] = point;
  const time = (state.overview.history.span === "hour" ? clock : day).format(begins * 1000);
  const text = `${time}: hit ${percent(hit, prompt)} %, ideal ${percent(ideal, prompt)} %, ` +
    `${whole.format(answers)} ${answers === 1 ? "answer" : "answers"}, ${compact.format(prompt)} tokens`;
  plot.setAttribute("aria-valuetext", text);
  setText("reading", text);
  if (state.reading !== null) {
    made.append(svg("line", { class: "at", x1: x(begins), x2: x(begins), y1: y(1), y2: y(0) }));
  }
}

function moveReading(event) {
  const most = Number(by("plot").getAttribute("aria-valuemax"));
  const at = state.reading === null ? most : state.reading;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10,
    Home: -most, End: most };
  if (!(event.key in steps) || !state.overview) return;
  event.preventDefault();
  state.reading = Math.min(most, Math.max(0, at + steps[event.key]));
  drawPlot();
}

function pointReading(event) {
  if (!state.overview) return;
  const { history, now_ms: now } = state.overview;
  const length = history.span === "hour" ? 3600 : 7 * 86400, begin = now / 1000 - length;
  const box = by("plot").getBoundingClientRect();
  const along = (PLOT.width * (event.clientX - box.left) / box.width - PLOT.left) / (PLOT.width - PLOT.left);
  const points = pointsOf(history, begin);
  let nearest = 0;
  points.forEach(([at], index) => {
    if (Math.abs(at - begin - along * length) < Math.abs(points[nearest][0] - begin - along * length)) nearest = index;
  });
  state.reading = nearest;
  drawPlot();
}

// ---- tiers ----

function flowOf(node, tier) {
  const earlier = state.before && (state.before.nodes || []).find((other) => other.name === node.name);
  const former = earlier && earlier.tiers.find((other) => other.name === tier.name);
  const seconds = former ? (state.overview.now_ms - node.told_ms_ago - state.before.now_ms + earlier.told_ms_ago) / 1000 : 0;
  if (!former || seconds <= 0 || former.written_bytes > tier.written_bytes) {
    return `since its start: ${compact.format(tier.hit_blocks)} hits, ${bytes(tier.read_bytes)} read, ` +
      `${bytes(tier.written_bytes)} written, ${compact.format(tier.evicted)} evicted`;
  }
  const rate = (field) => Math.max(0, tier[field] - former[field]) / seconds;
  return `a second: ${compact.format(rate("hit_blocks"))} hits, ${bytes(rate("read_bytes"))} read, ` +
    `${bytes(rate("written_bytes"))} written, ${compact.format(rate("evicted"))} evicted`;
}

function drawNodes() {
  const nodes = [...(state.overview.nodes || [])].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  by("nodes").replaceChildren(...nodes.map((node) => {
    const words = [node.role];
    if (node.running !== undefined) words.push(`${node.running} running, ${node.queued} queued`);
    if (node.attached_to) words.push(`attached to ${node.attached_to}`);
    if (node.draining) words.push("draining");
    const made = element("article", { class: "node" },
      element("h3", {}, node.name, element("small", {}, words.join(", "))));
    if (node.disk_offline) made.append(element("p", { class: "bad" }, "its disk is offline: see the node's log"));
    if (node.error) made.append(element("p", { class: "note" }, node.error));
    else if (node.told_ms_ago === null) made.append(element("p", { class: "note" }, "has not answered yet"));
    made.append(...node.tiers.map((tier) => element("div", { class: "tier" },
      element("p", { class: "line" }, element("span", {}, tier.name),
        element("span", {}, `${bytes(tier.used_bytes)} of ${bytes(tier.capacity_bytes)}, ` +
          `${percent(tier.used_bytes, tier.capacity_bytes)} %`)),
      element("div", { class: "bar", "aria-hidden": "true" }, ...bar([[tier.name, tier.used_bytes]], tier.capacity_bytes)),
      element("p", { class: "flow" }, flowOf(node, tier)))));
    return made;
  }));
  if (nodes.length === 0) by("nodes").replaceChildren(element("p", { class: "note" }, "No node is up."));
}

// ---- requests ----

function drawRequests() {
  const longest = Math.max(...state.requests.map((request) => sum(request.ms)));
  const focused = document.activeElement && document.activeElement.dataset.number;
  const rows = [];
  for (const request of state.requests) {
    rows.push(requestRow(request, longest));
    if (state.open.has(request.number)) rows.push(requestDetail(request));
  }
  by("requests").replaceChildren(...rows);
  if (focused) {
    const again = by("requests").querySelector(`[data-number="${focused}"]`);
    if (again) again.focus();
  }
}

function timeline(ms, longest) {
  const text = SPANS.filter((name) => ms[name] > 0).map((name) => `${name} ${duration(ms[name])}`).join(", ");
  return element("div", { class: "timeline", role: "img", "aria-label": text || "no time", title: text },
    ...bar(SPANS.map((name) => [name, ms[name]]), longest || 1));
}

function requestRow(request, longest) {
  const { hit, prompt } = partsOf(request.tokens);
  const good = request.code === 200;
  const total = sum(request.ms), first = total - request.ms.decode;
  const button = element("button", { type: "button", "data-number": request.number,
    "aria-expanded": state.open.has(request.number) }, clock.format(request.arrived_ms + total));
  button.addEventListener("click", () => {
    if (!state.open.delete(request.number)) state.open.add(request.number);
    drawRequests();
  });
  const who = [request.tenant, request.agent].filter(Boolean).join(" / ") || request.route;
  return element("tr", {}, element("td", {}, button), element("td", { class: "who", title: who }, who),
    element("td", { class: "number", "data-label": "prompt" }, whole.format(prompt)),
    good ? element("td", { class: "number hit", "data-label": "hit" }, `${percent(hit, prompt)} %`)
      : element("td", { class: "number hit bad" }, `failed, ${request.code}`),
    element("td", { class: "wide" }, timeline(request.ms, longest)),
    element("td", { class: "number", "data-label": "first token" }, good ? duration(first) : "–"),
    element("td", { class: "number", "data-label": "whole" }, duration(total)));
}

function requestDetail(request) {
  const { tokens } = request, list = [["id", element("code", {}, request.id)]];
  const add = (name, value) => value && list.push([name, value]);
  add("node", request.node);
  add("prompt by", request.prefilled_by);
  add("node's reason", request.reason);
  add("generated", `${whole.format(request.generated)} tokens`);
  for (const tier of TIERS) add(`hit: ${tier}`, tokens.hit[tier] && `${whole.format(tokens.hit[tier])} tokens`);
  for (const [name, value] of Object.entries(tokens.gap)) add(`gap: ${name}`, `${whole.format(value)} tokens`);
  for (const name of ["diverged", "new", "short"]) add(name, tokens[name] && `${whole.format(tokens[name])} tokens`);
  for (const name of SPANS) add(`${name}: ${SPAN_WORDS[name]}`, request.ms[name] > 0 && duration(request.ms[name]));
  return element("tr", { class: "detail" }, element("td", { colspan: "7" },
    element("dl", {}, ...list.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))))));
}

// ---- contexts ----

function drawContexts() {
  const { total, offset, tiers, data, nodes, nodes_told: told, told_ms_ago: age } = state.contexts;
  const words = Object.entries(tiers).map(([tier, value]) =>
    `${whole.format(value.contexts)} need ${tier === "device" ? "device memory alone" : tier}`);
  setText("contexts-note", nodes === 0 ? "No node tells what it stores." : told === 0 ? "Asking the nodes." :
    `${whole.format(total)} ${by("tier").value ? "chosen of what is stored" : "contexts"}${words.length > 0 ? `; ${words.join(", ")}` : ""}; as ${told} of ${nodes} nodes ` +
    `said ${duration(age)} ago. Sizes count blocks that contexts share in each of them.`);
  const now = Date.now();
  by("contexts").replaceChildren(...data.map((context) => element("tr", {},
    element("td", { "data-label": "used" }, context.used_ms ? `${duration(Math.max(0, now - context.used_ms))} ago` : "–"),
    element("td", { class: "number", "data-label": "tokens" }, whole.format(context.tokens)),
    element("td", { class: "number", "data-label": "size" }, bytes(context.bytes)),
    element("td", {}, element("span", { class: `swatch ${TIERS.includes(context.tier) ? context.tier : ""}` }), context.tier),
    element("td", { class: "who", "data-label": "at" }, context.node || "–"),
    element("td", { class: "who", "data-label": "of" }, context.tenant || "–"),
    element("td", { "data-label": "kept" }, kept(context, now)),
    element("td", {}, element("code", {}, (context.key || "").slice(0, 12))))));
  const shown = data.length > 0 ? `${whole.format(offset + 1)} to ${whole.format(offset + data.length)} of ${whole.format(total)}` : "none";
  setText("place", shown);
  by("newer").disabled = offset === 0;
  by("older").disabled = offset + data.length >= total;
}

function kept(context, now) {
  if (context.pinned_until_ms > now) return `pinned, ${duration(context.pinned_until_ms - now)} more`;
  if (context.expires_ms > now) return `expires in ${duration(context.expires_ms - now)}`;
  return "–";
}

async function turnTo(offset) {
  state.offset = Math.max(0, offset);
  try {
    await lookAtContexts();
  } catch (error) {
    setText("contexts-note", "The gateway does not answer.");
  }
}

// ---- audits ----

function drawAudits({ enabled, data, totals }) {
  by("audit-section").hidden = !enabled && data.length === 0;
  setText("audits-note", (totals ? `${whole.format(totals.findings)} of ${whole.format(totals.compared)} prompts that ` +
    `had a predecessor parted early from it, which cost ${compact.format(totals.cost)} tokens. ` : "") +
    (data.length > 0 ? "The dearest, both sides from where they part:" : "None was found."));
  by("audits").replaceChildren(...data.map(auditOf));
}

function auditOf(row) {
  const whose = [row.tenant, row.template && `template ${row.template}`, row.session && `session ${row.session}`]
    .filter(Boolean).join(", ");
  const seconds = row.cost_seconds === null ? "" : `, ${duration(1000 * row.cost_seconds)} of computing`;
  const side = (title, id, text) => element("div", {}, element("p", {}, id ? `${title}, ${id}` : title),
    element("pre", {}, row.before, element("mark", {}, text || "(nothing)"), row.after));
  return element("article", { class: "audit" },
    element("p", { class: "line" },
      element("span", {}, element("b", {}, row.kind), ` at token ${whole.format(row.at)}${whose ? ` of ${whose}` : ""}`),
      element("span", {}, `${whole.format(row.count)} ${row.count === 1 ? "time" : "times"}, ` +
        `${compact.format(row.cost)} ${row.unit}${seconds}`)),
    element("p", { class: "note" }, row.do),
    element("div", { class: "sides" }, side("before", row.was_request, row.was), side("then", row.is_request, row.is)));
}

// ---- the beginning ----

function begin() {
  by("span-legend").append(...SPANS.map((name) => element("li", { title: SPAN_WORDS[name] },
    element("span", { class: `swatch ${name}` }), name)));
  by("pause").addEventListener("click", () => {
    state.paused = !state.paused;
    by("pause").setAttribute("aria-pressed", String(state.paused));
    drawState();
  });
  by("window").addEventListener("change", () => {
    state.picked = true;
    if (state.overview) drawRate();
  });
  by("span").addEventListener("change", () => {
    state.reading = null;
    turn();
  });
  for (const id of ["tier", "sort"]) by(id).addEventListener("change", () => turnTo(0));
  by("newer").addEventListener("click", () => turnTo(state.offset - CONTEXTS_SHOWN));
  by("older").addEventListener("click", () => turnTo(state.offset + CONTEXTS_SHOWN));
  by("plot").addEventListener("keydown", moveReading);
  by("plot").addEventListener("pointermove", pointReading);
  by("plot").addEventListener("pointerleave", () => {
    state.reading = null;
    if (state.overview) drawPlot();
  });
  new ResizeObserver(() => state.overview && drawPlot()).observe(by("plot"));
  by("key").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = by("key-text").value.trim();
    sessionStorage.setItem("kvist-key", state.key);
    turn();
  });
  document.addEventListener("visibilitychange", () => document.hidden || turn());
  turn();
}

begin();
