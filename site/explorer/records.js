// The third view: every record of the project, filtered, plotted and listed.

import { unpacked } from "./runtime.js";

const AXES = {
  peak_memory_mb: "peak memory of a training step, MB",
  flops: "FLOPs of an image",
  parameters: "parameters",
  seconds_per_epoch: "seconds an epoch, on the machine that trained it",
  tokens: "tokens",
  epochs: "epochs",
};
const MARKERS = {
  plain: "o", RoPE: "^", hybrid: "s", "hybrid + RoPE": "D", LeViT: "v", CCT: "P", CvT: "X",
  baseline: "p",
};
const COLUMNS = { name: "run", profile: "profile", recipe: "recipe", top1: "top-1 %", top5: "top-5 %" };
Object.assign(COLUMNS, { parameters: "parameters", flops: "FLOPs", peak_memory_mb: "peak MB" });
Object.assign(COLUMNS, { tokens: "tokens", epochs: "epochs" });
const SVG = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, BOTTOM] = [440, 44, 48];
let WIDTH = 760; // as wide as there is room

let records, asked, place, mixers;

export async function showRecords(where, about) {
  if (records) return;
  [place, mixers] = [where, about.mixers];
  records = JSON.parse(new TextDecoder().decode(await unpacked("records.json")));
  asked = { x: "peak_memory_mb", y: "top1", text: "", sort: "top1", down: true };
  asked.profile = new Set(values("profile"));
  asked.mixer = new Set(values("mixer"));
  asked.kind = new Set(values("kind"));
  build();
  update();
}

const values = (key) => [...new Set(records.map((row) => row[key]))];
const plain = (value) => (typeof value === "number" ? value.toLocaleString("en") : (value ?? ""));

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// ---- filters ----

function build() {
  const intro = element("p", {
    textContent: "Each point is one training of one seed, by the recipe and for the epochs that its " +
      "name says: those of different profiles or recipes do not compare. What is claimed rests on " +
      "several seeds and stands in README, not here.",
  });
  const bar = element("div", { className: "filters" });
  bar.append(chooser("across", "x", AXES), chooser("upwards", "y", { top1: "top-1, %", top5: "top-5, %" }));
  const text = element("input", { type: "search", placeholder: "RoPE, seed0, ...", id: "find" });
  text.addEventListener("input", () => update({ text: text.value }));
  bar.append(element("label", {}, "name has ", text));
  const groups = [boxes("profile"), boxes("mixer", (name) => mixers[name].title), boxes("kind")];
  const svg = drawn("svg", { class: "plot", role: "img" });
  const count = element("p", { id: "count" });
  count.setAttribute("role", "status");
  const table = element("div", { className: "table", tabIndex: 0 }, element("table"));
  table.setAttribute("role", "region");
  table.setAttribute("aria-label", "Table of the records that are shown");
  place.replaceChildren(intro, bar, ...groups, count, svg, table);
  window.addEventListener("resize", () => update());
}

function chooser(title, key, options) {
  const select = element("select", { id: `axis-${key}` });
  for (const [value, label] of Object.entries(options)) select.append(new Option(label, value));
  select.addEventListener("change", () => update({ [key]: select.value }));
  return element("label", {}, `${title} `, select);
}

function boxes(key, title = (name) => name) {
  const made = element("fieldset", {}, element("legend", { textContent: key }));
  for (const value of values(key)) {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      asked[key][box.checked ? "add" : "delete"](value);
      update();
    });
    const label = element("label", {}, box);
    if (key === "mixer") label.append(swatch(value));
    if (key === "kind") label.append(sign(value));
    label.append(title(value));
    made.append(label);
  }
  return made;
}

function swatch(mixer) {
  const made = element("span", { className: "swatch" });
  colour(made, mixer);
  return made;
}

function colour(node, mixer) {
  node.style.setProperty("--color", mixers[mixer].color);
  if (mixer === "softmax") node.classList.add("black");
}

function sign(kind) {
  const made = drawn("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" });
  made.append(drawn("path", { d: shape(kind), fill: "currentColor" }));
  return made;
}

function shape(kind) {
  const paths = {
    o: "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "^": "M0 -6L6 5H-6z", s: "M-5 -5H5V5H-5z",
    D: "M0 -6.5L6.5 0L0 6.5L-6.5 0z", v: "M0 6L6 -5H-6z",
    p: "M0 -6L5.7 -1.9L3.5 4.9H-3.5L-5.7 -1.9z",
    P: "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2z",
    X: "M-6 -4L-4 -6L0 -2L4 -6L6 -4L2 0L6 4L4 6L0 2L-4 6L-6 4L-2 0z",
  };
  return paths[MARKERS[kind]] ?? "M-6 0L3 -6V6z";
}

// ---- what is shown ----

function update(change = {}) {
  Object.assign(asked, change);
  const words = asked.text.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = records.filter(
    (row) => ["profile", "mixer", "kind"].every((key) => asked[key].has(row[key])) &&
      words.every((word) => `${row.name} ${row.recipe}`.toLowerCase().includes(word)),
  );
  document.getElementById("count").textContent = `${shown.length} of ${records.length} records`;
  plot(shown);
  list(shown);
}

function ticks(low, high, count = 5) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const made = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) made.push(Math.abs(at) < step / 2 ? 0 : at);
  return made;
}

const brief = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

function plot(shown) {
  const svg = place.querySelector("svg.plot"), { x, y } = asked;
  const rows = shown.filter((row) => row[x] != null && row[y] != null);
  svg.setAttribute("aria-label", `${rows.length} records: ${AXES[x]} across, ${y} upwards; the table below lists them`);
  WIDTH = Math.min(900, place.clientWidth);
  for (const [key, value] of Object.entries({ width: WIDTH, height: HEIGHT })) svg.setAttribute(key, value);
  svg.replaceChildren();
  if (!rows.length) {
    svg.append(drawn("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing to show"));
    return;
  }
  const [toX, marksX] = axis(rows.map((row) => row[x]), LEFT, WIDTH - 12);
  const [toY, marksY] = axis(rows.map((row) => row[y]), HEIGHT - BOTTOM, 22);
  for (const at of marksX) {
    svg.append(drawn("line", { class: "axis", x1: toX(at), x2: toX(at), y1: 22, y2: HEIGHT - BOTTOM }));
    svg.append(drawn("text", { x: toX(at), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, brief.format(at)));
  }
  for (const at of marksY) {
    svg.append(drawn("line", { class: "axis", x1: LEFT, x2: WIDTH - 12, y1: toY(at), y2: toY(at) }));
    svg.append(drawn("text", { x: LEFT - 8, y: toY(at) + 4, "text-anchor": "end" }, brief.format(at)));
  }
  svg.append(drawn("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, AXES[x]));
  svg.append(drawn("text", { x: 4, y: 12 }, y === "top1" ? "top-1, %" : "top-5, %"));
  for (const row of rows) {
    const at = `translate(${toX(row[x])} ${toY(row[y])})`;
    const point = drawn("path", { d: shape(row.kind), transform: at, class: "point" });
    point.dataset.run = key(row);
    colour(point, row.mixer);
    point.append(drawn("title", {}, `${row.name}: ${row[y]} %, ${plain(row[x])}`));
    point.addEventListener("click", () => choose(key(row), true));
    svg.append(point);
  }
}

/** A scale over values, with room at both ends, and its marks. */
function axis(found, from, to) {
  let [low, high] = [Math.min(...found), Math.max(...found)];
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  [low, high] = [low - room, high + room];
  return [(value) => from + ((value - low) / (high - low)) * (to - from), ticks(low, high, Math.abs(to - from) / 90)];
}

const key = (row) => `${row.profile}/${row.name}`;

function choose(run, scroll) {
  for (const node of place.querySelectorAll(".chosen")) node.classList.remove("chosen");
  for (const node of place.querySelectorAll(`[data-run="${CSS.escape(run)}"]`)) {
    node.classList.add("chosen");
    if (scroll && node.tagName === "TR") node.scrollIntoView({ block: "nearest" });
  }
}

function list(shown) {
  const head = element("tr");
  for (const [name, title] of Object.entries(COLUMNS)) {
    const button = element("button", { textContent: title });
    button.addEventListener("click", () => update({ sort: name, down: asked.sort === name ? !asked.down : true }));
    const cell = element("th", { scope: "col" }, button);
    if (asked.sort === name) cell.setAttribute("aria-sort", asked.down ? "descending" : "ascending");
    head.append(cell);
  }
  const order = (a, b) => {
    const [left, right] = [a[asked.sort] ?? "", b[asked.sort] ?? ""];
    const more = left < right ? -1 : left > right ? 1 : 0;
    return asked.down ? -more : more;
  };
  const rows = [...shown].sort(order).map((row) => {
    const made = element("tr", {}, ...Object.keys(COLUMNS).map((c) => element("td", { textContent: plain(row[c]) })));
    made.dataset.run = key(row);
    made.addEventListener("click", () => choose(key(row)));
    return made;
  });
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  place.querySelector(".table").replaceChildren(table);
}
