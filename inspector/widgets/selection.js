// Shared by the widgets that draw: colours, and how a row and its images are read. Stands behind bus.js.
const IMAGE_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A65628", "#A23E8C"];
const imageColour = (i) => IMAGE_COLOURS[i % IMAGE_COLOURS.length];
const SVG = "http://www.w3.org/2000/svg";
function el(tag, attributes, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  // Text only ever enters as a text node, so nothing that a person typed can become markup.
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const visibleText = (text) => (text || "").replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

// Data lies in the page as JSON text.
const decode = (text) => (text ? JSON.parse(text) : null);

// The run-length coded row, unfolded once.
function readRow(data) {
  const n = data.n, row = { n, key: data.key, texts: data.texts, spans: data.spans, ids: new Int32Array(n), trained: new Uint8Array(n), masked: new Uint8Array(n), loss: new Float32Array(n).fill(NaN), span: new Int32Array(n), topLoss: 0 };
  let at = 0;
  for (const [id, count] of data.ids) { row.ids.fill(id, at, at + count); at += count; }
  for (const [start, stop] of data.trained) row.trained.fill(1, start, stop);
  for (const [start, stop] of data.masked) row.masked.fill(1, start, stop);
  for (const [start, values] of data.loss) values.forEach((value, i) => { row.loss[start + i] = value; row.topLoss = Math.max(row.topLoss, value); });
  data.spans.forEach((span, i) => row.span.fill(i, span.start, span.stop));
  row.text = (p) => { const text = row.texts[row.ids[p]]; return text === undefined ? "" : text; };
  row.spanOf = (p) => row.spans[row.span[p]];
  return row;
}

// Shares arrive as half-precision numbers: two bytes each, exact to three digits.
function readHalves(text) {
  const bytes = atob(text), values = new Float32Array(bytes.length >> 1);
  for (let i = 0; i < values.length; i++) {
    const half = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8), exponent = (half >> 10) & 31, fraction = half & 1023;
    values[i] = (half & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  }
  return values;
}
function readHeat(text) {
  const heat = decode(text);
  if (!heat) return null;
  const values = readHalves(heat.values), top = values.reduce((most, one) => Math.max(most, one), 0);
  // Half precision may round the largest share up; only a real excess counts as beyond the scale.
  return { values, max: heat.max, shared: heat.shared, label: heat.label, readers: !!heat.readers, from: heat.from, first: heat.first === undefined ? heat.from : heat.first, selected: heat.selected === undefined ? heat.from : heat.selected, clipped: top > heat.max * 1.002 };
}
// Heat is what a token, or a stretch of them on average, gives to each position; of readers, what each position gives to it.
const whose = (heat) => (heat.first < heat.from ? `tokens ${heat.first}–${heat.from}` : `token ${heat.from}`);
// A later token (of readers: an earlier one), unless the two see one another, as those of an image do in some models.
const isUnseen = (heat, p) => (heat.readers ? p < heat.first : p > heat.from) && !heat.values[p];
const shareText = (heat, p) => (heat.readers
  ? isUnseen(heat, p) ? `before ${whose(heat)}, which it can't see` : `${formatShare(heat.values[p])} of its attention goes to ${whose(heat)}`
  : isUnseen(heat, p) ? `after ${whose(heat)}, which can't see it` : `${formatShare(heat.values[p])} of the attention of ${whose(heat)}`);
// A folded run of which nothing is seen.
const isRunUnseen = (heat, span) => isUnseen(heat, heat.readers ? span.stop - 1 : span.start) && !gather(heat, [span.start, span.stop]);
// Whose attention it is, in words: a token of the answer was chosen by the output of the row before it.
const whoseRow = (heat) => (heat.readers ? `all later tokens to ${whose(heat)}` : whose(heat)) + (!heat.readers && heat.first === heat.from && heat.selected === heat.from + 1 ? `, whose output chose token ${heat.selected}` : "");
// Of one run or several [start, stop]: shares of one token's attention add up, those of many readers have a mean.
function gather(heat, ...runs) {
  let sum = 0, count = 0;
  for (const [start, stop] of runs) { count += stop - start; for (let p = start; p < stop; p++) sum += heat.values[p]; }
  return heat.readers ? sum / Math.max(count, 1) : sum;
}
// What goes to (of readers: comes from) each image, by its index.
function sharesByImage(row, heat) {
  const runs = new Map();
  for (const span of row.spans) if (span.kind === "image") runs.set(span.image, [...(runs.get(span.image) || []), [span.start, span.stop]]);
  return new Map([...runs].map(([image, own]) => [image, gather(heat, ...own)]));
}

// Viridis at nine points (Smith & van der Walt 2015), linear in between; 256 steps are told apart by nobody.
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const STEPS = Array.from({ length: 256 }, (_, k) => {
  const x = (k / 255) * (VIRIDIS.length - 1), i = Math.min(Math.floor(x), VIRIDIS.length - 2);
  return VIRIDIS[i].map((low, c) => Math.round(low + (x - i) * (VIRIDIS[i + 1][c] - low)));
});
const step = (share) => Math.round(Math.min(Math.max(share || 0, 0), 1) * 255);
const viridis = (share) => STEPS[step(share)];
// Of black and white, one always has a contrast of at least 4.58.
function inkOn(rgb) {
  const [r, g, b] = rgb.map((c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
const INKS = STEPS.map(inkOn);
const hexRgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

const formatShare = (v) => (!v ? "0" : v >= 0.1 ? v.toFixed(3) : v >= 0.001 ? v.toFixed(4) : v.toExponential(1));
const formatPercent = (v) => (!v ? "0 %" : v < 0.0001 ? "< 0.01 %" : `${(100 * v).toFixed(v < 0.1 ? 2 : 1)} %`);
const formatPx = (v) => String(Math.round(v * 10) / 10);

// A colour bar with numbers at both ends and in the middle; a share ("of 1") in percent.
function colourBar(max, unit, clipped) {
  const ramp = el("span", { class: "vlm-ramp" });
  ramp.style.background = `linear-gradient(90deg, ${VIRIDIS.map((c) => `rgb(${c})`).join(",")})`;
  const digits = max >= 1 ? 2 : Math.min(6, Math.max(2, 2 - Math.floor(Math.log10(max || 1))));
  const write = (value) => (unit === "of 1" ? formatPercent(value) : value.toFixed(digits));
  const top = write(max) + (unit === "of 1" ? "" : ` ${unit}`) + (clipped ? " and more" : "");
  return el("span", { class: "vlm-bar" }, ramp, el("span", { class: "vlm-ticks" }, el("span", {}, "0"), el("span", {}, write(max / 2)), el("span", {}, top)));
}
function badge(index) {
  const node = el("span", { class: "vlm-badge" + (index >= IMAGE_COLOURS.length ? " vlm-again" : "") }, String(index + 1));
  node.style.background = imageColour(index);
  node.style.color = inkOn(hexRgb(imageColour(index)));
  return node;
}

// The ⓘ of a panel: how it was computed and what it can't show. The page's own style sheet dresses it.
const info = (what, text) => el("details", { class: "vi-info" }, el("summary", { "aria-label": `${what}: how it was computed, and what it can't show` }, el("span", { "aria-hidden": "true" }, "i")), el("p", {}, text));

// Which cell of which image a position is; null for other tokens.
function findCell(images, position) {
  if (position === null) return null;
  for (const image of images || []) {
    for (const tile of image.tiles) {
      const [rows, cols, step] = tile.cells, k = position - tile.start;
      if (k < 0 || k >= rows * step || k % step >= cols) continue;
      const row = Math.floor(k / step), col = k % step, [l, t, r, b] = tile.box, w = (r - l) / cols, h = (b - t) / rows;
      return { image, tile, row, col, box: [l + col * w, t + row * h, l + (col + 1) * w, t + (row + 1) * h] };
    }
  }
  return null;
}
const boxText = (box) => `x ${formatPx(box[0])}–${formatPx(box[2])}, y ${formatPx(box[1])}–${formatPx(box[3])} px`;

// Radio buttons that look like one switch. Arrow keys come with the browser.
function switcher(label, name, options, current, pick) {
  const group = `${name}-${Math.random().toString(36).slice(2, 8)}`, inputs = {};
  const node = el("div", { class: "vlm-switch", role: "radiogroup", "aria-label": label });
  for (const [value, text, gloss] of options) {
    const input = (inputs[value] = el("input", { type: "radio", name: group, value, onchange: () => pick(value) }));
    input.checked = value === current;
    node.append(el("label", { title: gloss }, input, el("span", {}, text)));
  }
  return { node, set: (value) => { inputs[value].checked = true; }, input: (value) => inputs[value] };
}

// One floating note for the whole widget. The pointer alone opens it: the readout says the same to everybody else.
function tooltip() {
  const box = el("div", { class: "vlm-tooltip", "aria-hidden": "true" });
  box.hidden = true;
  document.addEventListener("scroll", () => { box.hidden = true; }, { capture: true, passive: true });
  return {
    box,
    hide: () => { box.hidden = true; },
    show(rect, lines) {
      box.replaceChildren(...lines.filter(Boolean).map((line, i) => el("div", { class: i ? null : "vlm-first" }, line)));
      box.hidden = false;
      const own = box.getBoundingClientRect(), above = rect.top - own.height - 8;
      box.style.left = `${Math.max(8, Math.min(rect.left, document.documentElement.clientWidth - own.width - 8))}px`;
      box.style.top = `${above >= 8 ? above : rect.bottom + 8}px`;
    },
  };
}

// What every widget says of one position, shortest first.
function summarise(row, heat, images, p) {
  const span = row.spanOf(p), cell = findCell(images, p), next = p + 1 < row.n ? p + 1 : null;
  return [
    `${p}   ${span.kind === "image" ? "image token" : visibleText(row.text(p))}   id ${row.ids[p]}`,
    span.title + (cell ? ` · row ${cell.row + 1}, column ${cell.col + 1}` : ""),
    cell ? `covers ${boxText(cell.box)} of the original` : null,
    `label ${row.trained[p] ? row.ids[p] : "−100, ignored"} · attention mask ${row.masked[p] ? 0 : 1}` + (Number.isNaN(row.loss[p]) ? "" : ` · loss ${row.loss[p].toFixed(3)} nats`),
    next === null ? null : row.trained[next] ? `learns to say ${visibleText(row.text(next))} next, at ${next}` : `followed by ${row.spanOf(next).kind === "image" ? "an image token" : visibleText(row.text(next))}; not trained on it`,
    heat && heat.values.length === row.n ? shareText(heat, p) : null,
  ];
}
const DARK = () => document.body.classList.contains("dark");
const root = element.querySelector(".vlm");
