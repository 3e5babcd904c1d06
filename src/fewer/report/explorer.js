"use strict";
const at = id => document.getElementById(id), NONE = 0xffffffff, ROW = 38;
const DRAWN = new Set(["svg", "rect", "path", "text", "line", "title"]);
const make = (tag, props = {}, ...children) => {
  const node = DRAWN.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(props)) if (v !== undefined) node.setAttribute(k, v);
  node.append(...children);
  return node;
};
const count = n => n.toLocaleString("en");
const digits = x => x === 0 ? "0" : Math.abs(x) >= 1000 ? count(Math.round(x)) : x.toPrecision(3);
const percent = x => x === 0 ? "0 %" : x >= .1 ? `${(100 * x).toFixed(1)} %` : `${(100 * x).toPrecision(2)} %`;

/* Data: the table at once, a block of features when one of them is opened. */
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
async function unpack(id) {
  const stream = new Blob([bytes(at(id).textContent)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
const blocks = new Map();
function block(number) {
  if (!blocks.has(number)) {
    if (blocks.size > 40) blocks.delete(blocks.keys().next().value);
    blocks.set(number, unpack(`block${number}`));
  }
  return blocks.get(number);
}

/* Words: spaces and line ends are shown, faintly. */
const SIGNS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"};
function spelt(word) {
  const sign = run => run.length > 4 ? `${SIGNS[run[0]]}×${run.length}` : SIGNS[run[0]].repeat(run.length);
  return word.split(/( +|\n+|\t+|\r+)/).filter(Boolean).map(part => part[0] in SIGNS ? make("i", {}, sign(part)) : part);
}
const cut = word => word.length > 28 ? word.slice(0, 27) + "…" : word;
const chip = (id, hit) => make("span", {class: hit ? "t hit" : "t"}, ...spelt(cut(table.words[id])));

/* The table. */
const COLUMNS = [
  ["feature", "feature", "its number"], ["spark", "activations", "how its values are spread, from 0 to its largest; heights are logarithmic"],
  ["heard", "speaks on", "the tokens on which most of its activation falls"], ["promoted", "promotes", "the tokens whose logits it raises most"],
  ["count", "frequency", "the share of tokens at which it speaks"], ["mean", "mean", "mean value where it speaks"],
  ["loudest", "max", "its largest value"], ["focus", "focus", "the share of its activation that falls on one token"],
];
const NUMBERS = new Set(["count", "mean", "loudest", "focus"]);
let table, column = {}, order, shown, sortBy = "count", down = true, here = 0, opened = -1, query = [], hits = new Set();

function sortOrder() {
  const n = table.features, key = NUMBERS.has(sortBy) ? column[sortBy] : null;
  order = Uint32Array.from({length: n}, (_, i) => i);
  if (key) order.sort((a, b) => key[b] - key[a] || a - b);
  else if (sortBy !== "feature") {
    const rank = ranks(), width = table[sortBy], first = f => { const id = column[sortBy][f * width]; return id === NONE ? Infinity : rank[id]; };
    order.sort((a, b) => { const x = first(a), y = first(b); return x === y ? a - b : x < y ? -1 : 1; });
  }
  if (key ? !down : down) order.reverse();
  document.body.dataset.sort = sortBy;
  for (const cell of at("head").children) cell.setAttribute("aria-sort", cell.dataset.c === sortBy ? (down ? "descending" : "ascending") : "none");
}
let ranked;
function ranks() {
  if (ranked) return ranked;
  const plain = table.words.map(w => w.trim().toLowerCase()), collate = new Intl.Collator("en").compare;
  const ids = plain.map((_, i) => i).sort((a, b) => (plain[a] === "") - (plain[b] === "") || collate(plain[a], plain[b]));
  ranked = new Uint32Array(ids.length);
  ids.forEach((id, i) => { ranked[id] = i; });
  return ranked;
}

function search(keep) {
  const held = keep ? shown?.[here] : undefined;
  query = at("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const where = at("where").value, sides = where === "both" ? ["heard", "promoted"] : [where];
  const asked = query.map(word => ({number: /^[f#]?(\d+)$/.test(word) ? +word.replace(/\D/g, "") : -1, ids: Uint8Array.from(table.words, w => w.toLowerCase().includes(word) ? 1 : 0)}));
  hits = new Set(asked.flatMap(({ids}) => [...ids.keys()].filter(i => ids[i])));
  const match = f => asked.every(({number, ids}) => f === number || sides.some(side => {
    for (let i = f * table[side], end = i + table[side]; i < end; i++) if (column[side][i] !== NONE && ids[column[side][i]]) return true;
    return false;
  }));
  shown = query.length ? order.filter(match) : order;
  const exact = asked.length === 1 ? shown.indexOf(asked[0].number) : -1;
  if (exact > 0) shown = Uint32Array.from([shown[exact], ...shown.subarray(0, exact), ...shown.subarray(exact + 1)]);
  here = held === undefined ? 0 : Math.max(0, shown.indexOf(held));
  const dead = column.count.reduce((n, c) => n + !c, 0);
  at("found").textContent = query.length ? `${count(shown.length)} of ${count(table.features)} features` : `${count(table.features)} features${dead ? `, ${count(dead)} never speak` : ""}`;
  at("none").hidden = shown.length > 0;
  at("room").style.height = `${shown.length * ROW}px`;
  at("grid").setAttribute("aria-rowcount", shown.length + 1);
  if (!keep) at("scroll").scrollTop = 0;
  draw();
}

function words(side, f, most) {
  const width = table[side], ids = [...column[side].subarray(f * width, f * width + Math.min(width, most))].filter(id => id !== NONE);
  return ids.map(id => chip(id, query.length && hits.has(id)));
}
function spark(f) {
  const n = table.spark, h = column.spark.subarray(f * n, f * n + n);
  let path = "";
  for (let i = 0; i < n; i++) if (h[i]) path += `M${i * 6} 22v${-Math.max(1, h[i] / 255 * 21).toFixed(1)}h5V22z`;
  return make("svg", {class: "spark", viewBox: "0 0 96 22", preserveAspectRatio: "none", "aria-hidden": "true"}, make("path", {d: path}));
}
function row(i) {
  const f = shown[i], silent = !column.count[f];
  const cell = (c, cls, ...inside) => make("div", {role: "gridcell", "data-c": c, class: cls}, ...inside);
  return make("div", {role: "row", id: `row${f}`, "aria-rowindex": i + 2, "aria-selected": i === here, class: `row${i === here ? " here" : ""}${silent ? " quiet" : ""}`, "data-i": i},
    cell("feature", "id", `${f}`), cell("spark", "", spark(f)), cell("heard", "words", ...(silent ? ["never"] : words("heard", f, 9))), cell("promoted", "words", ...words("promoted", f, 9)),
    cell("count", "n", percent(column.frequency[f])), cell("mean", "n", digits(column.mean[f])), cell("loudest", "n", digits(column.loudest[f])), cell("focus", "n", percent(column.focus[f])));
}
function draw() {
  const top = at("scroll").scrollTop, from = Math.max(0, Math.floor(top / ROW) - 6), to = Math.min(shown.length, Math.ceil((top + at("scroll").clientHeight) / ROW) + 6);
  at("rows").style.transform = `translateY(${from * ROW}px)`;
  at("rows").replaceChildren(...Array.from({length: Math.max(0, to - from)}, (_, i) => row(from + i)));
  if (here >= from && here < to) at("grid").setAttribute("aria-activedescendant", `row${shown[here]}`);
  else at("grid").removeAttribute("aria-activedescendant");
}
let frame = 0;
const redraw = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };
function reveal() {
  const box = at("scroll"), y = here * ROW;
  const above = box.scrollTop - y, below = y + ROW - box.scrollTop - box.clientHeight;
  if (Math.max(above, below) > 2 * ROW) box.scrollTop = y - box.clientHeight / 3;
  else if (above > 0) box.scrollTop = y;
  else if (below > 0) box.scrollTop += below;
  redraw();
}
function move(by) {
  if (!shown.length) return;
  here = Math.min(shown.length - 1, Math.max(0, here + by));
  reveal();
  if (opened >= 0) visit(shown[here], true);
}

/* A feature's page. */
let later = 0;  // browsers refuse an address that changes at every repeat of a key
function visit(f, quietly) {
  clearTimeout(later);
  if (!quietly) { location.hash = `f${f}`; return; }
  later = setTimeout(() => history.replaceState(null, "", `#f${f}`), 200);
  open(f);
}
const narrow = matchMedia("(max-width: 760px)");
async function open(f) {
  opened = f;
  document.body.classList.add("open");
  at("page").hidden = false;
  const page = (await block(Math.floor(f / table.block)))[f % table.block];
  if (opened !== f) return;
  at("page").replaceChildren(pageOf(f, page));
  at("page").scrollTop = 0;
  at("page").setAttribute("aria-label", `Feature ${f}`);
  document.title = `Feature ${f} · ${at("title").textContent}`;
  const i = shown.indexOf(f);
  if (i >= 0) { here = i; reveal(); }
  if (narrow.matches) at("page").focus({preventScroll: true});
}
function close() {
  clearTimeout(later);
  opened = -1;
  document.body.classList.remove("open");
  at("page").hidden = true;
  document.title = at("title").textContent;
  reveal();
}
function follow() {
  const asked = /^#f(\d+)$/.exec(location.hash);
  if (asked && +asked[1] < table.features) open(+asked[1]);
  else close();
}

function pageOf(f, [heights, ends, heard, promoted, suppressed, examples, near, together]) {
  const box = make("div"), largest = Math.max(...ends.map(Math.abs)), i = shown.indexOf(f);
  const step = (by, sign, name) => { const b = make("button", {"aria-label": name, title: name}, sign); b.disabled = i < 0 || !(i + by in shown); b.onclick = () => { here = i; move(by); }; return b; };
  const shut = make("button", {"aria-label": "Close", title: "Close (Esc)"}, "✕");
  shut.onclick = () => { location.hash = ""; at("grid").focus(); };
  box.append(make("div", {class: "name"}, make("h2", {}, `Feature ${f}`), step(-1, "↑", "The feature before"), step(1, "↓", "The next feature"), shut));
  if (!column.count[f]) { box.append(make("p", {class: "soft lead"}, "It spoke at none of the tokens that were read.")); }
  else box.append(make("div", {class: "lead"}, ...words("heard", f, 9)));
  const tile = (value, name) => make("div", {}, make("b", {}, value), make("span", {}, name));
  box.append(make("div", {class: "tiles"}, tile(percent(column.frequency[f]), `of tokens, ${count(column.count[f])} of them`), tile(digits(column.mean[f]), "mean where it speaks"), tile(digits(column.loudest[f]), "max"), tile(percent(column.focus[f]), "of it on one token")));
  if (heard.length) box.append(two(part("Activations", "tokens at each value, logarithmic", histogram(heights, ends)), part("Speaks on", "share of its activation", shares(heard.slice(0, 8), percent, ""))));
  if (promoted.length) box.append(two(part("Promotes", "weight on the logit", shares(promoted, signed, "up")), part("Suppresses", "weight on the logit", shares(suppressed, signed, "down"))));
  for (const [quantile, group] of grouped(examples)) {
    const name = quantile === 1 ? ["Loudest", "one stretch a window"] : quantile === 0 ? ["Quietest", "where it only just speaks"] : [quantile === .5 ? "Middle" : `Louder than ${Math.round(100 * quantile)} %`, "of the windows in which it speaks"];
    box.append(make("section", {class: "group"}, make("h3", {}, name[0], make("small", {}, name[1])), ...group.map(e => example(e, largest))));
  }
  box.append(two(near.length ? part("Nearest", "cosine of decoder rows", links(near.map(([g, x]) => [g, x.toFixed(2)]))) : "", together.length ? part("Speaks together with", "correlation · tokens shared", links(together.map(([g, x, both]) => [g, `${x.toFixed(2)} · ${count(both)}`]))) : ""));
  return box;
}
const two = (...parts) => make("div", {class: "two"}, ...parts.filter(Boolean));
const part = (title, small, body) => make("section", {}, make("h3", {}, title, make("small", {}, small)), body);
const signed = x => (x > 0 ? "+" : "−") + Math.abs(x).toPrecision(2);
const grouped = examples => examples.reduce((m, e) => m.set(e[0], [...(m.get(e[0]) ?? []), e]), new Map());

function shares(pairs, write, kind) {
  const most = Math.max(...pairs.map(([, x]) => Math.abs(x)), 1e-9);
  return make("ol", {class: "share"}, ...pairs.map(([id, x]) => make("li", {}, make("span", {}, chip(id)), make("span", {class: `track ${kind}`}, make("b", {style: `width:${(100 * Math.abs(x) / most).toFixed(1)}%`})), make("span", {class: "n"}, write(x)))));
}
function histogram(heights, [low, high]) {
  const w = 388, h = 214, base = 192, n = heights.length, tall = Math.log10(Math.max(...heights) + 1), svg = make("svg", {class: "hist", viewBox: `0 0 ${w + 44} ${h}`, role: "img", "aria-label": `Values from ${digits(low)} to ${digits(high)}`});
  for (let power = 1; power <= tall; power++) {
    const y = base - 180 * power / tall;
    svg.append(make("line", {x1: 0, x2: w, y1: y, y2: y}), make("text", {x: w + 6, y: y + 4}, count(10 ** power)));
  }
  heights.forEach((value, i) => {
    if (!value) return;
    const tall_ = 180 * Math.log10(value + 1) / tall, x = i * w / n, from = low + (high - low) * i / n;
    svg.append(make("rect", {x: x + .7, y: base - tall_, width: w / n - 1.4, height: tall_, rx: 1.5}, make("title", {}, `${count(value)} tokens from ${digits(from)} to ${digits(from + (high - low) / n)}`)));
  });
  svg.append(make("line", {x1: 0, x2: w, y1: base, y2: base}), make("text", {x: 0, y: h - 5}, digits(low)), make("text", {x: w / 2, y: h - 5, "text-anchor": "middle"}, digits((low + high) / 2)), make("text", {x: w, y: h - 5, "text-anchor": "end"}, digits(high)));
  return svg;
}
function example([, place, first, tokens, said], largest) {
  const value = new Map(), text = make("div", {class: "text"});
  for (let i = 0; i < said.length; i += 2) value.set(said[i], said[i + 1]);
  tokens.forEach((id, i) => {
    const parts = table.words[id].split(/(\n+)/).filter(Boolean).map(p => p[0] === "\n" ? make("i", {}, "↵".repeat(p.length)) : p), x = value.get(i);
    if (x === undefined) return text.append(...parts);
    const cls = [x < 0 ? "neg" : "", first + i === place ? "peak" : ""].join(" ").trim();
    text.append(make("mark", {class: cls || undefined, style: `--a:calc(${Math.min(1, .12 + .88 * Math.abs(x) / largest).toFixed(2)} * var(--deep))`, title: `${digits(x)} at token ${count(first + i)}`}, ...parts));
  });
  return make("div", {class: "ex"}, make("span", {class: "n", title: `at token ${count(place)}`}, digits(value.get(place - first) ?? 0)), text);
}
const links = pairs => make("ul", {class: "links"}, ...pairs.map(([g, text]) => make("li", {}, make("a", {href: `#f${g}`}, make("span", {class: "soft"}, `${g}`), make("span", {class: "words"}, ...words("heard", g, 9)), make("span", {class: "n"}, text)))));

/* Keys and clicks. */
function keys(event) {
  const field = event.target.closest("input, select"), inPage = at("page").contains(event.target) || event.target.closest("footer, button");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(at("scroll").clientHeight / ROW) - 1);
  const moves = {ArrowDown: 1, ArrowUp: -1, ...(field ? {} : {PageDown: page, PageUp: -page, Home: -1e9, End: 1e9, j: 1, k: -1})};
  if (event.key === "/" && !field) { at("query").focus(); at("query").select(); }
  else if (event.key === "Escape") {
    if (field && at("query").value) { at("query").value = ""; search(true); reveal(); }
    else if (field) at("grid").focus();
    else if (at("list").querySelector("details[open]")) at("list").querySelector("details").open = false;
    else if (opened >= 0) { location.hash = ""; at("grid").focus(); }
    else return;
  }
  else if (event.key in moves && !(field?.tagName === "SELECT") && (!inPage || event.key === "j" || event.key === "k")) move(moves[event.key]);
  else if (event.key === "Enter" && (field?.tagName === "INPUT" || !event.target.closest("a, button, select, summary"))) { if (shown.length) { visit(shown[here]); at("grid").focus(); } }
  else return;
  event.preventDefault();
}

async function start() {
  if (!("DecompressionStream" in window)) { at("found").textContent = "This browser is too old to open the page: DecompressionStream is missing."; return; }
  table = await unpack("table");
  const kinds = {I: Uint32Array, f: Float32Array, B: Uint8Array};
  for (const [name, [kind, text]] of Object.entries(table.columns)) column[name] = new kinds[kind](bytes(text).buffer);
  for (const [c, name, title] of COLUMNS) {
    const inside = c === "spark" ? make("span", {class: "plain", title}, name) : make("button", {title: `${title}; click to sort`}, name);
    at("head").append(make("div", {role: "columnheader", "data-c": c, class: NUMBERS.has(c) ? "n" : ""}, inside));
  }
  at("head").onclick = ({target}) => {
    const c = target.closest("button")?.parentNode.dataset.c;
    if (!c) return;
    down = c === sortBy ? !down : NUMBERS.has(c);
    sortBy = c;
    sortOrder();
    search(false);
  };
  at("rows").onclick = ({target}) => { const r = target.closest(".row"); if (r) { here = +r.dataset.i; visit(shown[here]); at("grid").focus({preventScroll: true}); redraw(); } };
  at("scroll").onscroll = redraw;
  at("query").oninput = () => search(false);
  at("where").onchange = () => search(false);
  addEventListener("keydown", keys);
  addEventListener("hashchange", follow);
  new ResizeObserver(() => { document.body.style.setProperty("--gutter", `${at("scroll").offsetWidth - at("scroll").clientWidth}px`); redraw(); }).observe(at("scroll"));
  sortOrder();
  search(false);
  at("grid").focus({preventScroll: true});
  follow();
  document.body.dataset.ready = "";
}
start();
