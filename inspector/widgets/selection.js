// Shared by the widgets: the selection, colours, and how a row and its images are read.
// Each widget gets a copy of these functions; the selection itself lives on the document.
const IMAGE_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07AA1", "#8C6D1F"];
const imageColour = (i) => IMAGE_COLOURS[i % IMAGE_COLOURS.length];
const CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫";
const circled = (i) => CIRCLED[i] || String(i + 1);
const bus = (window.vlmBus = window.vlmBus || { position: null });

function selectPosition(position, origin) {
  bus.position = position;
  document.dispatchEvent(new CustomEvent("vlm:select", { detail: { position, origin } }));
}

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  // Text only ever enters as a text node, so nothing that a person typed can become markup.
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const visibleText = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";

// The run-length coded row, unfolded once.
function readRow(data) {
  const row = { n: data.n, ids: new Int32Array(data.n), trained: new Uint8Array(data.n), masked: new Uint8Array(data.n), loss: {}, span: new Int32Array(data.n), data };
  let at = 0;
  for (const [id, count] of data.ids) { row.ids.fill(id, at, at + count); at += count; }
  for (const [start, stop] of data.trained) row.trained.fill(1, start, stop);
  for (const [start, stop] of data.masked) row.masked.fill(1, start, stop);
  for (const [start, values] of data.loss) values.forEach((value, i) => { row.loss[start + i] = value; });
  data.spans.forEach((span, i) => row.span.fill(i, span.start, span.stop));
  row.text = (p) => data.texts[String(row.ids[p])];
  return row;
}

// Shares arrive as half-precision numbers: two bytes each, exact to three digits.
function readHeat(heat) {
  if (!heat) return null;
  const bytes = Uint8Array.from(atob(heat.values), (c) => c.charCodeAt(0));
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    const h = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (h >> 10) & 31, fraction = h & 1023;
    values[i] = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  }
  return { values, max: heat.max, label: heat.label, from: heat.from };
}

// Viridis at nine points (Smith & van der Walt 2015), linear in between.
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
function viridis(share) {
  const x = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), i = Math.min(Math.floor(x), VIRIDIS.length - 2), f = x - i;
  return VIRIDIS[i].map((low, c) => Math.round(low + f * (VIRIDIS[i + 1][c] - low)));
}
const onViridis = (share) => (share > 0.55 ? "#000" : "#fff");
const colourBar = (max, unit) => el("span", { class: "bar" }, el("span", { class: "num" }, "0"),
  el("span", { class: "ramp", style: `background:linear-gradient(90deg,${VIRIDIS.map((c) => `rgb(${c})`).join(",")})` }),
  el("span", { class: "num" }, formatShare(max) + " " + unit));
const formatShare = (v) => (v === 0 ? "0" : v >= 0.001 ? v.toFixed(v >= 1 ? 2 : 4) : v.toExponential(1));

// Which cell of which image a position is, from the viewer's geometry; null for other tokens.
function findCell(images, position) {
  for (const image of images || []) {
    const count = image.cells * image.cells;
    for (const tile of image.tiles) {
      const k = position - tile.start;
      if (k < 0 || k >= count) continue;
      const row = Math.floor(k / image.cells), col = k % image.cells, [l, t, r, b] = tile.box;
      const w = (r - l) / image.cells, h = (b - t) / image.cells;
      return { image, tile, row, col, box: [l + col * w, t + row * h, l + (col + 1) * w, t + (row + 1) * h] };
    }
  }
  return null;
}
const cellText = (cell) => `image ${cell.image.index + 1} · tile ${cell.tile.name} · row ${cell.row + 1}, column ${cell.col + 1} · x ${cell.box[0].toFixed(1)}–${cell.box[2].toFixed(1)}, y ${cell.box[1].toFixed(1)}–${cell.box[3].toFixed(1)} px`;
const shell = () => element.querySelector('[class^="vlm-"]');
