"use strict";
// Shows every model, lets one try it, and asks for the figures every 2 seconds.

const POLL_MS = 2000, POINTS = 60, DRAW_MAX = 96, PREFILL_MAX = 4096, BARS_MAX = 12;
const cards = new Map();
const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function call(method, path, body, kind) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  if (kind) headers["Content-Type"] = kind;
  const answer = await fetch(path, {method, body, headers});
  if (answer.status === 401) $("token").hidden = false;
  const text = await answer.text();
  let document;
  try { document = JSON.parse(text); } catch { document = {error: text || answer.statusText}; }
  if (!answer.ok) throw Object.assign(new Error(document.error), {status: answer.status});
  return document;
}

$("token").onsubmit = (submit) => {
  submit.preventDefault();
  sessionStorage.setItem("token", submit.target.token.value);
  submit.target.hidden = true;
  poll();
};

// ------------------------------------------------------------------ figures

const number = (value) => value.toLocaleString("en", {maximumFractionDigits: 1});
const time = (us) => us < 1000 ? `${Number(us.toPrecision(3))} µs` : `${Number((us / 1000).toPrecision(3))} ms`;
const size = (bytes) => bytes < 1e3 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toPrecision(3)} kB` : `${(bytes / 1e6).toPrecision(3)} MB`;

function show(card, stats, now) {
  const {success, fail} = stats.inference_stats, before = card.before;
  const set = (name, text) => { card.node.querySelector(`[data-figure=${name}]`).textContent = text; };
  set("requests", number(success.count));
  set("failed", number(fail.count));
  set("refused", number(Object.values(stats.refused).reduce((sum, one) => sum + one, 0)));
  set("waiting", number(stats.waiting));
  if (before) {
    const count = success.count - before.count;
    set("rate", number(count / (now - before.now) * 1000));
    card.points.push(count > 0 ? (success.ns - before.ns) / count / 1000 : null);
    if (card.points.length > POINTS) card.points.shift();
  } else if (success.count) card.points.push(success.ns / success.count / 1000);
  card.before = {count: success.count, ns: success.ns, now};
  const known = card.points.filter((point) => point !== null);
  if (!known.length) return;
  set("latency", time(known.at(-1)));
  const top = Math.max(...known) * 1.1, step = 120 / (POINTS - 1);
  card.node.querySelector("polyline").setAttribute("points", card.points.map((point, at) =>
    point === null ? "" : `${(120 - (card.points.length - 1 - at) * step).toFixed(1)},${(23 - 22 * point / top).toFixed(1)}`,
  ).join(" "));
}

async function poll() {
  try {
    const [index, stats] = await Promise.all([
      call("POST", "/v2/repository/index"), call("GET", "/v2/models/stats")]);
    const now = performance.now(), seen = new Set();
    const ready = index.length > 0 && index.every((entry) => entry.state === "READY");
    state(index.length ? (ready ? "ready" : "not every model is ready") : "no model", ready);
    for (const entry of index) {
      const key = `${entry.name} ${entry.version}`;
      seen.add(key);
      const card = cards.get(key) || add(entry, key);
      mark(card, entry);
      const found = stats.model_stats.find((one) => one.name === entry.name && one.version === entry.version);
      if (found) show(card, found, now);
      if (entry.state === "READY" && !card.asked) { card.asked = true; await offer(card, entry); }
    }
    for (const [key, card] of cards) if (!seen.has(key)) { card.node.remove(); cards.delete(key); }
  } catch (error) {
    state(error.status ? error.message : "the agent does not answer", false);
  }
}

function state(text, good) {
  $("state").textContent = text;
  $("state").className = `pill ${good ? "good" : "bad"}`;
}

function add(entry, key) {
  const node = $("model").content.cloneNode(true).querySelector("section");
  node.querySelector("h2").textContent = entry.name;
  node.querySelector(".version").textContent = entry.version;
  node.querySelector(".try").hidden = true;
  $("models").append(node);
  const card = {node, points: []};
  cards.set(key, card);
  return card;
}

function mark(card, entry) {
  const pill = card.node.querySelector(".pill"), ready = entry.state === "READY";
  pill.textContent = entry.state.toLowerCase();
  pill.className = `pill ${ready ? "good" : "bad"}`;
  if (ready) return;
  card.asked = false;
  card.node.querySelector(".try").hidden = true;
  card.node.querySelector(".facts").textContent = entry.reason;
}

// ------------------------------------------------------------------ trying a model

async function offer(card, entry) {
  const base = `/v2/models/${entry.name}/versions/${encodeURIComponent(entry.version)}`;
  const [metadata, config] = await Promise.all([call("GET", base), call("GET", `${base}/config`)]);
  const facts = metadata.parameters;
  card.node.querySelector(".facts").textContent = [
    facts.precision, facts.target, facts.runtime, size(facts.size_bytes),
    `${facts.metric} ${Number(facts.metric_value.toPrecision(4))}`].join(" · ");
  const steps = JSON.parse(config.parameters.preprocess.string_value);
  const main = metadata.inputs.find((input) => input.name === config.parameters.preprocess_input.string_value);
  const model = {takes: facts.takes, inputs: metadata.inputs, steps, main, card, picture: picture(main.shape),
    path: `/v1/models/${entry.name}/versions/${encodeURIComponent(entry.version)}/predict`};
  const give = card.node.querySelector(".give");
  give.replaceChildren(...(model.takes === "numbers" ? numbers(model) : file(model)), ...drawing(model));
  const sent = {image: "-T photo.jpg", wav: "-T sound.wav"}[model.takes]
    || (model.inputs.length > 1 ? "-d @inputs.json" : "-T rows.csv");
  card.node.querySelector(".try").hidden = false;
  card.node.querySelector("code").textContent = `curl ${sent} ${location.origin}/v1/models/${entry.name}/predict`;
}

// Height, width and channels where a shape looks like a small image's.
function picture(shape) {
  const [, first, second, third] = shape;
  if (shape.length !== 4) return null;
  if ([1, 3].includes(first)) return {first: true, channels: first, height: second, width: third};
  return [1, 3].includes(third) ? {first: false, channels: third, height: first, width: second} : null;
}

function file(model) {
  const input = make("input", {type: "file", accept: model.takes === "wav" ? ".wav,audio/wav" : "image/*"});
  input.onchange = () => input.files[0] && ask(model, input.files[0]);
  const what = model.takes === "wav" ? "A sound (wav)" : "A picture";
  model.shown = make("div", {className: "shown"});
  return [make("label", {}, what, input), model.shown];
}

function numbers(model) {
  const area = make("textarea", {spellcheck: false, value: prefill(model, () => 0)});
  const send = make("button", {type: "submit", textContent: "Ask"});
  const dice = make("button", {type: "button", className: "plain", textContent: "Random numbers"});
  dice.onclick = () => { area.value = prefill(model, Math.random); ask(model, area.value); };
  model.card.node.querySelector(".try").onsubmit = (submit) => { submit.preventDefault(); ask(model, area.value); };
  const wanted = model.inputs.map((one) => `${one.name}: ${one.datatype} ${JSON.stringify(one.shape)}`).join(", ");
  return [make("label", {}, "Numbers, as JSON or CSV ", make("small", {textContent: wanted}), area),
    make("div", {className: "row"}, send, dice)];
}

function prefill(model, draw) {
  const one = (datatype) => datatype === "BOOL" ? draw() > .5
    : datatype.startsWith("FP") ? Math.round(draw() * 100) / 100 : Math.floor(draw() * 10);
  const fill = (shape, datatype) => shape.length
    ? Array.from({length: shape[0] < 0 ? 4 : shape[0]}, () => fill(shape.slice(1), datatype)) : one(datatype);
  const count = model.inputs.reduce((sum, input) => sum + input.shape.slice(1).reduce((a, b) => a * Math.abs(b), 1), 0);
  if (count > PREFILL_MAX) return "";
  const values = Object.fromEntries(model.inputs.map((input) => [input.name, fill(input.shape.slice(1), input.datatype)]));
  return JSON.stringify(model.inputs.length > 1 ? {inputs: values} : values[model.main.name]);
}

function drawing(model) {
  const spot = model.picture;
  if (!spot || model.inputs.length > 1 || !(spot.height > 0 && spot.height <= DRAW_MAX && spot.width > 0 && spot.width <= DRAW_MAX)) return [];
  const canvas = make("canvas", {width: 192, height: Math.round(192 * spot.height / spot.width)});
  canvas.setAttribute("aria-label", "drawing area");
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  Object.assign(pen, {lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: "#fff"});
  const wipe = () => { pen.fillStyle = "#000"; pen.fillRect(0, 0, canvas.width, canvas.height); };
  const at = (event) => [event.offsetX * canvas.width / canvas.clientWidth, event.offsetY * canvas.height / canvas.clientHeight];
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.beginPath(); pen.moveTo(...at(event)); pen.lineTo(...at(event)); pen.stroke();
  };
  canvas.onpointermove = (event) => { if (event.buttons) { pen.lineTo(...at(event)); pen.stroke(); } };
  canvas.onpointerup = async () => ask(model, await drawn(model, canvas));
  wipe();
  const clear = make("button", {type: "button", className: "plain", textContent: "Clear", onclick: wipe});
  return [make("div", {}, model.takes === "image" ? "or draw one, white on black" : "or draw"), canvas, make("div", {className: "row"}, clear)];
}

// What was drawn, as the model's own size: a file, or numbers before its scale step.
async function drawn(model, canvas) {
  const {height, width, channels, first} = model.picture;
  const small = make("canvas", {width, height}), pen = small.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(canvas, 0, 0, width, height);
  if (model.takes === "image") return new Promise((done) => small.toBlob(done, "image/png"));
  const scale = model.steps.find((step) => step.scale), ink = scale ? 1 / scale.scale.factor : 1;
  const whole = model.main.datatype.includes("INT");
  const levels = pen.getImageData(0, 0, width, height).data;
  const level = (y, x) => whole ? levels[(y * width + x) * 4] : Math.round(levels[(y * width + x) * 4] / 255 * ink * 1e4) / 1e4;
  const map = (inner) => Array.from({length: height}, (_, y) => Array.from({length: width}, (_, x) => inner(y, x)));
  const copies = (value) => Array.from({length: channels}, () => value);
  if (model.steps.length) return JSON.stringify(map(level));
  return JSON.stringify(first ? copies(map(level)) : map((y, x) => copies(level(y, x))));
}

async function ask(model, body) {
  const answer = model.card.node.querySelector(".answer");
  const mine = model.asked = {};
  if (model.shown) preview(model, body);
  try {
    const result = await call("POST", model.path, body);
    if (model.asked !== mine) return; // a later question overtook it
    answer.replaceChildren(...results(result, model));
  } catch (error) {
    if (model.asked === mine) answer.replaceChildren(make("p", {className: "bad", textContent: error.message}));
  }
}

function preview(model, body) {
  if (model.url) URL.revokeObjectURL(model.url);
  model.url = null;
  model.shown.replaceChildren();
  if (!(body instanceof File) || model.takes !== "image") return;
  model.url = URL.createObjectURL(body);
  model.shown.append(make("img", {src: model.url, alt: "the picture that was sent"}));
}

// ------------------------------------------------------------------ answers

function results(result, model) {
  const timing = make("p", {className: "timing", textContent:
    Object.entries(result.timing_ms).map(([part, ms]) => `${part} ${time(ms * 1000)}`).join(" · ")});
  const several = result.rows || (result.predictions?.[0]?.label === undefined && result.predictions);
  if (several && several.length)
    return [...several.slice(0, BARS_MAX).flatMap((one) => answer(one, model)), timing];
  return [...answer(result, model), timing];
}

function answer(one, model) {
  if (one.predictions) return [one.predictions.length ? bars(one.predictions) : make("p", {textContent: "nothing reached the threshold"})];
  if (one.label !== undefined) return [bars([one])];
  if (one.boxes) { boxes(one.boxes, model); return [bars(one.boxes)]; }
  const flat = one.outputs && Object.values(one.outputs).map((values) => [values].flat(Infinity));
  if (flat?.length === 1 && flat[0].length <= BARS_MAX)
    return [bars(flat[0].map((score, index) => ({label: `${index}`, score: Number(score)})))];
  const {model_name, model_version, timing_ms, ...rest} = one;
  return [make("pre", {textContent: JSON.stringify(rest).slice(0, 4000)})];
}

function bars(list) {
  const top = Math.max(1, ...list.map((one) => Math.abs(one.score)));
  return make("ul", {className: "bars"}, ...list.slice(0, BARS_MAX).map(({label, score}) => {
    const bar = make("i");
    bar.style.width = `${Math.max(.5, Math.abs(score) / top * 100)}%`;
    return make("li", {}, bar, make("span", {textContent: label}), make("span", {textContent: score.toFixed(3)}));
  }));
}

function boxes(list, model) {
  if (!model.url) return;
  for (const {box: [left, top, right, bottom]} of list) {
    const frame = make("i");
    Object.assign(frame.style, {left: `${left * 100}%`, top: `${top * 100}%`,
      width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%`});
    model.shown.append(frame);
  }
}

// ------------------------------------------------------------------ begin

call("GET", "/v2").then((server) => { $("version").textContent = server.version; }, () => {});
(async function forever() {
  if (!document.hidden) await poll();
  setTimeout(forever, POLL_MS);
})();
