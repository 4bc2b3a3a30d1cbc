// The explorer's first two views: mechanisms on the same queries and keys, and trained models.

import { SIDE, square, pixels, dimmed, drawMap, drawQuery } from "./draw.js";
import { start, run, unpacked } from "./runtime.js";
import { projected } from "./parts.js";
import { showRecords } from "./records.js";

const $ = (id) => document.getElementById(id);
const MECHANISMS = ["softmax", "linformer", "performer", "nystrom"];
const KEPT = { linformer: "rank", performer: "features", nystrom: "landmarks" };
let about, state, photo, background, random;
let ready = false; // whether the wasm is there
const alone = {}; // by mechanism: {map, rows, whole, n, kept}
const trained = {}; // by model: {maps, heads, tokens, logits}
const photos = new Map();
const cards = {};

// ---- what is asked and what is there ----

const side = () => (state.view === "trained" ? 16 : Math.sqrt(alone.softmax?.n ?? state.tokens));
const query = () => state.query.map((at) => Math.min(side() - 1, Math.floor(at * side())));

/** The weights that the query gives to each place, for one card. */
function weights(name) {
  const [row, column] = query(), at = row * side() + column;
  if (state.view === "alone") {
    const { map, n } = alone[name];
    return map.subarray(at * n, (at + 1) * n);
  }
  const { maps, heads, tokens, prefix } = trained[name];
  const from = state.cls ? 0 : at + prefix, out = new Float32Array(tokens - prefix);
  const chosen = state.head < 0 ? [...Array(heads).keys()] : [state.head];
  for (const head of chosen) {
    const begin = ((state.layer * heads + head) * tokens + from) * tokens + prefix;
    for (let i = 0; i < out.length; i++) out[i] += maps[begin + i] / chosen.length;
  }
  return out;
}

// ---- computing ----

let wanted = 0;

/** Computes what the settings ask; of several calls in a row the last alone ends. */
async function compute() {
  if (!ready) return;
  const mine = ++wanted, settings = structuredClone(state);
  try {
    if (settings.view === "trained") await computeTrained(mine);
    else await computeAlone(settings, mine);
    if (mine === wanted) say("");
  } catch (error) {
    console.error(error);
    say(`This could not be computed: ${error.message}`);
  }
}

async function computeAlone(settings, mine) {
  const n = settings.tokens, s = Math.sqrt(n), width = about.width;
  const { q, k } = await queries(settings, s);
  const begin = performance.now(), found = {};
  for (const name of MECHANISMS) {
    const inputs = { q: [q, [1, 1, n, width]], k: [k, [1, 1, n, width]] };
    inputs.sharpness = [Float32Array.of(settings.sharpness), []];
    const part = partOf(name, settings, n);
    if (part) inputs.part = part;
    if (mine !== wanted) return;
    const out = await run(name === "nystrom" ? name + settings.kept.nystrom : name, inputs);
    const kept = settings.kept[name] ?? 0;
    found[name] = { map: out.map.data, rows: out.rows.data, whole: out.whole.data[0], n, kept };
  }
  if (mine !== wanted) return;
  Object.assign(alone, found);
  state.milliseconds = performance.now() - begin;
  draw();
}

/** Queries and keys: of colours and places, or of a trained ViT's layer and head. */
async function queries({ source }, s) {
  if (source === "colour") {
    const { q, k } = await run("colour", { images: [pixels(photo, s), [1, 3, s, s]] });
    return { q: q.data, k: k.data };
  }
  const images = [pixels(photo, 2 * s), [1, 3, 2 * s, 2 * s]];
  const { q, k } = await run(`queries${s * s}`, { images });
  const [, heads, n, width] = q.dims, [layer, head] = source.split(" ");
  const from = (layer * heads + Number(head)) * n * width;
  return { q: q.data.slice(from, from + n * width), k: k.data.slice(from, from + n * width) };
}

/** What is drawn at random or learned: Linformer's projection, Performer's directions. */
function partOf(name, { kept, draw, projection }, n) {
  const r = kept[name];
  if (name === "performer") {
    const from = draw * Math.max(...about.kept.performer) * about.width;
    return [random.directions.slice(from, from + r * about.width), [r, about.width]];
  }
  if (name === "linformer") {
    const fresh = projection === "fresh" ? random.projection : null;
    return [projected(r, n, fresh, about.most), [r, n]];
  }
  return null;
}

async function computeTrained(mine) {
  const images = [pixels(photo, 32), [1, 3, 32, 32]], found = {};
  for (const { system, prefix } of about.models) {
    if (mine !== wanted) return;
    const { logits, maps } = await run(system, { images });
    const [layers, heads, tokens] = maps.dims;
    found[system] = { maps: maps.data, layers, heads, tokens, prefix, logits: logits.data };
  }
  if (mine !== wanted) return;
  Object.assign(trained, found);
  choices($("layer"), trained.ViT.layers, (i) => `${i + 1}`, state.layer);
  choices($("head"), trained.ViT.heads, (i) => `${i + 1}`, state.head, "mean of all");
  draw();
}

// ---- drawing ----

let drawn = false;

function draw() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    paint();
  });
}

function paint() {
  const context = $("photo").getContext("2d");
  context.drawImage(photo, 0, 0);
  const cls = state.view === "trained" && state.cls;
  if (!cls) drawQuery(context, side(), query());
  const [row, column] = query();
  $("where").textContent = cls
    ? "query: the class token"
    : `query: row ${row + 1}, column ${column + 1} of ${side()} × ${side()}`;
  if (state.view === "records") return;
  const models = state.view === "trained";
  const names = models ? about.models.map((m) => m.system) : MECHANISMS;
  if (models && !trained.ViT) return;
  const rows = names.map(weights);
  const most = rows.map((row) => row.reduce((m, w) => Math.max(m, Math.abs(w)), 1e-12));
  names.forEach((name, i) => {
    const card = cards[name], top = state.alike[state.view] ? most[0] : most[i];
    drawMap(card.canvas, background, rows[i], side(), top, cls ? null : query());
    const least = rows[i].reduce((m, w) => Math.min(m, w), 0);
    card.scale.replaceChildren(...scale(top, least < -1e-6 * top));
    const sum = rows[i].reduce((a, b) => a + b, 0);
    const cut = most[i] > 1.005 * top ? `; largest ${short(most[i])}` : "";
    card.sum.textContent = `weights sum to ${short(sum)}${cut}`;
    if (models) card.guess.textContent = guesses(trained[name].logits);
    else facts(name, row * side() + column);
  });
}

function scale(top, signed) {
  const bar = document.createElement("span");
  bar.className = signed ? "bar signed" : "bar";
  return [signed ? `−${short(top)}` : "0", bar, short(top)];
}

/** Error, FLOPs and memory of a mechanism. */
function facts(name, at) {
  const { rows, whole, n, kept } = alone[name];
  const [flops, plain, fused] = about.costs[`${name} ${n} ${kept}`] ?? [];
  const softmax = about.costs[`softmax ${n} 0`];
  const cell = cards[name].facts;
  cell.here.textContent = name === "softmax" ? "–" : percent(rows[at]);
  cell.whole.textContent = name === "softmax" ? "–" : percent(whole);
  const times = name === "softmax" ? "" : ` (${Math.round((100 * flops) / softmax[0])} %)`;
  cell.flops.textContent = `${short(flops / 1e6)} M${times}`;
  cell.memory.textContent = `${short(plain)} MB; ${short(fused)}`;
}

function guesses(logits) {
  const most = Math.max(...logits), shares = [...logits].map((x) => Math.exp(x - most));
  const total = shares.reduce((a, b) => a + b), order = [...shares.keys()];
  order.sort((a, b) => shares[b] - shares[a]);
  return order
    .slice(0, 3)
    .map((i) => `${about.classes[i]} ${Math.round((100 * shares[i]) / total)} %`)
    .join(", ");
}

const percent = (x) => (x > 10 ? `${Math.round(x)} ×` : `${(100 * x).toFixed(1)} %`);
const short = (x) => (Math.abs(x) >= 99.5 ? x.toFixed(0) : x.toPrecision(2));

// ---- the page ----

function choices(select, count, title, chosen, first) {
  const options = [...Array(count).keys()].map((i) => new Option(title(i), i));
  if (first) options.unshift(new Option(first, -1));
  select.replaceChildren(...options);
  select.value = chosen;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function card(name, title, mixer, parent) {
  const canvas = element("canvas", { width: SIDE, height: SIDE });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Map of ${title}: the weights that the query gives`);
  const swatch = element("span", { className: "swatch" });
  swatch.style.setProperty("--color", mixer.color);
  if (mixer.color === "#000000") swatch.classList.add("black");
  const made = { canvas, scale: element("div", { className: "scale" }) };
  made.scale.ariaHidden = "true";
  made.sum = element("p", { className: "sum" });
  const heading = element("h2", {}, swatch, title);
  made.box = element("article", { className: "card" }, heading, canvas, made.scale, made.sum);
  parent.append(made.box);
  movable(canvas);
  cards[name] = made;
  return made;
}

function aloneCard(name) {
  const { title } = about.mixers[name], made = card(name, title, about.mixers[name], $("cards-alone"));
  made.facts = {};
  const list = element("dl", {});
  const rows = { here: "error, this query", whole: "error, all queries", flops: "FLOPs" };
  rows.memory = "memory as written; fused";
  for (const [key, label] of Object.entries(rows)) {
    made.facts[key] = element("dd");
    list.append(element("dt", { textContent: label }), made.facts[key]);
  }
  made.box.append(list);
  if (name !== "softmax") {
    const list = about.kept[name], now = element("output", { value: state.kept[name] });
    const slider = element("input", { type: "range", min: 0, max: list.length - 1, step: 1 });
    slider.id = `kept-${name}`;
    slider.value = list.indexOf(state.kept[name]);
    slider.addEventListener("input", () => {
      state.kept[name] = list[slider.value];
      now.value = state.kept[name];
      slider.setAttribute("aria-valuetext", now.value);
      compute();
    });
    made.box.append(element("label", {}, `${KEPT[name]}: `, now, slider));
  }
  if (name === "linformer") {
    const select = element("select", { id: "projection" });
    select.append(new Option("averages"), new Option("fresh"));
    select.value = state.projection;
    select.addEventListener("change", () => set({ projection: select.value }));
    made.box.append(element("label", {}, "projection ", select));
  }
  if (name === "performer") {
    const again = element("button", { id: "again", textContent: "draw other directions" });
    again.addEventListener("click", () => set({ draw: (state.draw + 1) % about.draws }));
    made.box.append(again);
  }
}

function modelCard(model) {
  const mixer = about.mixers[model.mixer];
  const made = card(model.system, `${model.system}: ${mixer.title}`, mixer, $("cards-trained"));
  made.guess = element("p", { className: "guess" });
  const record =
    `top-1 ${model.top1} %, ${model.parameters.toLocaleString("en")} parameters, ` +
    `${short(model.flops / 1e6)} M FLOPs an image, ${model.peak_memory_mb} MB to train`;
  made.box.append(made.guess, element("p", { className: "record", textContent: record }));
}

/** Pointer, mouse or touch: the query goes where it is. */
function movable(canvas) {
  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    ask(at);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    move(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) move(event);
  });
}

function ask(at) {
  state.query = at.map((x) => Math.min(0.9999, Math.max(0, x)));
  if (state.cls && state.view === "trained") {
    state.cls = $("cls").checked = false;
  }
  draw();
}

function keys(event) {
  const s = side(), [row, column] = query();
  const moves = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], Home: [row, 0] };
  Object.assign(moves, { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1] });
  moves.End = [row, s - 1];
  if (!(event.key in moves)) return;
  event.preventDefault();
  ask(moves[event.key].map((i) => (Math.min(s - 1, Math.max(0, i)) + 0.5) / s));
}

function set(change) {
  Object.assign(state, change);
  labels();
  compute();
}

function labels() {
  $("sharpness-now").value = short(state.sharpness).replace(/\.?0+$/, "");
  $("tokens-now").value = `${state.tokens} (${Math.sqrt(state.tokens)} × ${Math.sqrt(state.tokens)})`;
}

function say(text) {
  const took = state.view === "alone" && state.milliseconds;
  const done = took ? `Computed in your browser: four maps in ${Math.round(took)} ms.` : "";
  $("status").textContent = text || done || "Computed in your browser.";
}

function view(name) {
  state.view = name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  for (const each of ["alone", "trained"]) {
    $(`cards-${each}`).hidden = $(`settings-${each}`).hidden = name !== each;
  }
  $("alike").checked = state.alike[name];
  $("stage").hidden = $("status").hidden = name === "records";
  history.replaceState(null, "", name === "alone" ? location.pathname : `#${name}`);
  if (name === "records") showRecords($("records"), about);
  else if (name === "trained" && !trained.ViT) compute();
  else draw();
}

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const names = all.map((tab) => tab.id.slice(4));
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => view(names[i]));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (!step) return;
      const next = (i + step + all.length) % all.length;
      all[next].focus();
      view(names[next]);
    });
  });
  const asked = location.hash.slice(1);
  view(names.includes(asked) ? asked : "alone");
}

async function take(canvas) {
  photo = canvas;
  background = dimmed(photo);
  for (const name of Object.keys(trained)) delete trained[name];
  draw();
  await compute();
}

async function loaded(name) {
  if (!photos.has(name)) {
    const image = new Image();
    image.src = `${name}.jpg`;
    await image.decode();
    photos.set(name, square(image));
  }
  return photos.get(name);
}

function credit() {
  const row = about.photos.find(({ name }) => name === $("choose-photo").value);
  $("credit").textContent = row?.by ? `${row.alt}; by ${row.by}, CC BY 2.0` : (row?.alt ?? "");
}

function controls() {
  for (const { name } of about.photos) $("choose-photo").append(new Option(name, name));
  $("choose-photo").value = about.first.photo;
  $("choose-photo").addEventListener("change", async () => {
    credit();
    await take(await loaded($("choose-photo").value));
  });
  $("own").addEventListener("change", async () => {
    const [file] = $("own").files;
    if (!file) return;
    try {
      await take(square(await createImageBitmap(file)));
      $("credit").textContent = "your own photo";
    } catch {
      say("This file is not a picture that the browser can read.");
    }
  });
  $("source").append(new Option("colour and place", "colour"));
  for (let layer = 0; layer < about.queries.layers; layer++) {
    for (let head = 0; head < about.queries.heads; head++) {
      const title = `ViT, layer ${layer + 1}, head ${head + 1}`;
      $("source").append(new Option(title, `${layer} ${head}`));
    }
  }
  $("source").value = state.source;
  $("source").addEventListener("change", () => set({ source: $("source").value }));
  $("sharpness").value = Math.log2(state.sharpness);
  $("sharpness").addEventListener("input", () => set({ sharpness: 2 ** $("sharpness").value }));
  $("tokens").max = about.tokens.length - 1;
  $("tokens").value = about.tokens.indexOf(state.tokens);
  $("tokens").addEventListener("input", () => set({ tokens: about.tokens[$("tokens").value] }));
  for (const name of ["layer", "head"]) {
    $(name).addEventListener("change", () => {
      state[name] = Number($(name).value);
      draw();
    });
  }
  $("cls").addEventListener("change", () => {
    state.cls = $("cls").checked;
    draw();
  });
  $("alike").addEventListener("change", () => {
    state.alike[state.view] = $("alike").checked;
    draw();
  });
  movable($("photo"));
  $("photo").addEventListener("keydown", keys);
}

/** The maps that were computed beforehand: a scale of each row, then a byte a weight. */
function unpack(buffer, n) {
  MECHANISMS.forEach((name, i) => {
    const from = i * (4 * n + n * n);
    const scales = new Float32Array(buffer, from, n), small = new Int8Array(buffer, from + 4 * n, n * n);
    const map = Float32Array.from(small, (w, j) => w * scales[Math.floor(j / n)]);
    alone[name] = { map, n, kept: about.first.kept[name] ?? 0, ...about.errors[name] };
  });
}

function ofModels() {
  const told = about.models.map((m) => `${m.system} reached ${m.top1} % of the test images`);
  const [{ epochs, tokens, name }] = about.models;
  $("of-models").textContent =
    `Four small models of ${tokens} patches and a class token, trained on CIFAR-10 for ${epochs} ` +
    `epochs alone, far from as well as they could: ${told.join(", ")} (runs as ${name}).`;
}

async function main() {
  const [told, first] = await Promise.all([unpacked("about.json"), unpacked("first.bin.gz")]);
  about = JSON.parse(new TextDecoder().decode(told));
  state = { view: "alone", draw: 0, layer: 0, head: -1, cls: false };
  state.alike = { alone: true, trained: false }; // models have their own queries and keys
  Object.assign(state, structuredClone(about.first));
  photo = await loaded(state.photo);
  background = dimmed(photo);
  unpack(first, state.tokens);
  MECHANISMS.forEach(aloneCard);
  about.models.forEach(modelCard);
  controls();
  labels();
  credit();
  ofModels();
  paint();
  performance.mark("first picture");
  $("status").textContent = "These maps were computed beforehand. Drag: the calculator is coming …";
  tabs();
  try {
    const [directions, projection] = await Promise.all([
      unpacked("directions.bin.gz"), unpacked("projection.bin.gz"), start(),
    ]);
    random = { directions: new Float32Array(directions), projection: new Float32Array(projection) };
    ready = true;
    await compute();
    performance.mark("computed");
  } catch (error) {
    console.error(error);
    say("The calculator did not start: only the maps computed beforehand can be seen.");
  }
}

main();
