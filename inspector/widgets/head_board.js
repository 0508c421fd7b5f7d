// All layers and heads at once: a number of each as a map that is the control, and a small map of each over the images.
const ABOUT = "Each square of the map is one head of one layer, its colour one number of that head's pattern. A small map is the same head's pattern over the images, up to its own largest cell or up to the largest of all; the number on it is absolute. Choosing one shows it large, here and over the images above. They tell where each head looks and how widely, not whether the answer needs it.";
if (!document.getElementById("vlm-board-style")) {
  const sheet = document.createElement("style");
  sheet.id = "vlm-board-style";
  sheet.textContent = OWN_STYLE;
  document.head.append(sheet);
}
const HUE = [224, 0, 122], GAP = 1;
const state = { data: null, measure: 0, order: "layer", scale: "own", values: null, tops: null, parts: null, minis: [] };

const measures = el("div", {});
const orders = switcher("Sort the small maps", "vlm-order", [["layer", "by layer", "one line for each layer"], ["share", "by share", "the largest first"]], state.order, (order) => { state.order = order; arrange(); });
const scales = switcher("Scale of the small maps", "vlm-scale", [["own", "own scale", "each up to its own largest cell"], ["all", "one scale", "all up to the largest cell of any"]], state.scale, (scale) => { state.scale = scale; paintMinis(); });
const legend = el("div", { class: "vlm-legend" });
const map = el("div", { class: "vlm-heads", tabindex: "0", role: "application", "aria-roledescription": "map of layers and heads" });
const large = el("div", { class: "vlm-large" });
const minis = el("div", { class: "vlm-minis", role: "group", "aria-label": "Small maps of all heads. Arrows move, Enter chooses" });
const note = el("div", { class: "vlm-legend" });
const spoken = el("div", { class: "vlm-spoken", "aria-live": "polite" });
const tip = tooltip();
const tools = el("div", { class: "vlm-tools" }, orders.node, scales.node);
const empty = el("p", { class: "vlm-empty" }, "Every layer and head appears here once something is asked.");
const left = el("div", { class: "vlm-board-map" }, measures, legend, map);
const right = el("div", { class: "vlm-board-maps" }, large, tools, note, minis);
const board = el("div", { class: "vlm-board" }, left, right);
root.append(el("div", { class: "vlm-head" }, el("h3", {}, "Layers × heads"), info("Layers × heads", ABOUT)), empty, board, spoken, tip.box);

// ---- numbers

const nameOf = (layer, head) => `${layer === null ? "all layers" : `layer ${layer}`}, ${head === null ? "all heads" : `head ${head}`}`;
const formatShort = (v) => (!v ? "0 %" : v < 0.001 ? "<0.1 %" : `${(100 * v).toFixed(v < 0.0995 ? 1 : 0)} %`);
// One number for a cell of the map; its first line and column are means.
function valueAt(layer, head) {
  const { layers, heads } = state.data;
  if (layer !== null && head !== null) return state.values[layer * heads + head];
  let sum = 0, count = 0;
  for (let l = layer === null ? 0 : layer; l < (layer === null ? layers : layer + 1); l++)
    for (let h = head === null ? 0 : head; h < (head === null ? heads : head + 1); h++) { sum += state.values[l * heads + h]; count++; }
  return sum / count;
}
const formatValue = (value) => (state.data.measures[state.measure].unit === "nats" ? `${value.toFixed(2)} nats` : formatPercent(value));

// ---- the map

function drawMap() {
  const { layers, heads, measures: all } = state.data, measure = all[state.measure];
  state.values = readHalves(measure.values);
  map.style.gridTemplateColumns = `24px repeat(${heads + 1}, ${heads <= 6 ? 48 : heads <= 12 ? 28 : heads <= 16 ? 20 : 10}px)`;
  map.style.setProperty("--high", `${layers <= 8 ? 32 : layers <= 16 ? 20 : layers <= 32 ? 14 : 10}px`);
  const parts = document.createDocumentFragment();
  const every = (count) => (count <= 12 ? 1 : count <= 24 ? 2 : 5);
  const label = (text, css) => el("span", { class: css, "aria-hidden": "true" }, text);
  parts.append(label("", "vlm-axis"), label("∅", "vlm-axis vlm-mean"));
  for (let h = 0; h < heads; h++) parts.append(label(h % every(heads) ? "" : String(h), "vlm-axis"));
  for (let l = -1; l < layers; l++) {
    parts.append(label(l < 0 ? "∅" : l % every(layers) ? "" : String(l), "vlm-axis vlm-axis-y"));
    for (let h = -1; h < heads; h++) {
      const layer = l < 0 ? null : l, head = h < 0 ? null : h, value = valueAt(layer, head);
      const cell = el("span", { class: `vlm-cell${l < 0 ? " vlm-mean-row" : ""}${h < 0 ? " vlm-mean" : ""}`, "data-layer": l, "data-head": h });
      cell.style.background = `rgb(${viridis(value / measure.top)})`;
      parts.append(cell);
    }
  }
  map.replaceChildren(parts);
  map.setAttribute("aria-label", `${measure.name} of ${layers} layers and ${heads} heads. Arrows choose one; the first line and column are means over layers and heads`);
  legend.replaceChildren(el("span", { class: "vlm-key" }, colourBar(measure.top, measure.unit === "nats" ? "nats" : "of 1", false)), el("span", { class: "vlm-key" }, `${measure.about}; ↓ layer → head, ∅ mean`));
  markChosen();
}
const cellAt = (layer, head) => map.querySelector(`[data-layer="${layer === null ? -1 : layer}"][data-head="${head === null ? -1 : head}"]`);
function markChosen() {
  for (const node of root.querySelectorAll(".vlm-picked")) { node.classList.remove("vlm-picked"); node.removeAttribute("aria-current"); }
  const { layer, head, heads } = state.data;
  const mini = layer !== null && head !== null ? state.minis[layer * heads + head] : null;
  for (const node of [cellAt(layer, head), mini && mini.button]) if (node) { node.classList.add("vlm-picked"); node.setAttribute("aria-current", "true"); }
  for (const one of state.minis) one.button.tabIndex = -1;
  const entry = mini || state.sorted[0];
  if (entry) entry.button.tabIndex = 0;
}
const ask = settle((place) => trigger("choose", place));
function choose(layer, head) {
  Object.assign(state.data, { layer, head });
  markChosen();
  spoken.textContent = `${nameOf(layer, head)}: ${formatValue(valueAt(layer, head))}`;
  ask({ layer: layer === null ? -1 : layer, head: head === null ? -1 : head });
}
const placeOf = (node) => [node.dataset.layer, node.dataset.head].map((one) => (one === "-1" ? null : Number(one)));
map.addEventListener("click", (event) => { const cell = event.target.closest(".vlm-cell"); if (cell) choose(...placeOf(cell)); });
map.addEventListener("pointerover", (event) => {
  const cell = event.target.closest(".vlm-cell");
  if (!cell || event.pointerType === "touch") return;
  const place = placeOf(cell);
  tip.show(cell.getBoundingClientRect(), [nameOf(...place), `${state.data.measures[state.measure].name} ${formatValue(valueAt(...place))}`]);
});
map.addEventListener("pointerleave", tip.hide);
map.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.data) return;
  const way = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key], { layers, heads } = state.data;
  const number = (one) => (one === null ? -1 : one), back = (one) => (one < 0 ? null : one);
  if (way) choose(back(Math.min(layers - 1, Math.max(-1, number(state.data.layer) + way[0]))), back(Math.min(heads - 1, Math.max(-1, number(state.data.head) + way[1]))));
  else if (event.key === "Home" || event.key === "Escape") choose(null, null);
  else return;
  event.preventDefault();
  event.stopPropagation();
});

// ---- small maps

// Images stand side by side, each over its thumbnail; where every square of a small map is: [left, top] of each frame.
function placeFrames(frames) {
  const tall = Math.max(...frames.filter((frame) => !frame.thumbnail || frames.filter((other) => other.image === frame.image).length === 1).map((frame) => frame.rows));
  const places = [], seen = new Map();
  let right = 0, bottom = 0;
  for (const frame of frames) {
    const below = seen.has(frame.image), left = below ? seen.get(frame.image) : right + (right ? 2 * GAP : 0), top = below ? tall + GAP : 0;
    if (!below) seen.set(frame.image, left);
    right = Math.max(right, left + frame.cols);
    bottom = Math.max(bottom, top + frame.rows);
    places.push([left, top]);
  }
  return { places, wide: right, high: bottom + GAP + 1 };
}
function buildMinis() {
  const { layers, heads, frames } = state.data, { wide, high } = placeFrames(frames);
  const key = JSON.stringify([layers, heads, frames]);
  if (key === state.built) return;
  state.built = key;
  state.minis = [];
  if (frames.length) for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
    const canvas = el("canvas", { width: wide, height: high, "aria-hidden": "true" }), share = el("b", {});
    const button = el("button", { type: "button", class: "vlm-mini-map", tabindex: "-1", "data-layer": l, "data-head": h }, canvas, el("span", { class: "vlm-spoken" }, `layer ${l}, head ${h}: `), el("span", {}, el("i", { "aria-hidden": "true" }, `${l}·${h} `), share));
    state.minis.push({ canvas, share, button, layer: l, head: h });
  }
}
function paintMinis() {
  const { frames, tops } = state.data;
  if (!frames.length || !state.parts) return;
  const { places, wide, high } = placeFrames(frames), each = frames.reduce((sum, frame) => sum + frame.rows * frame.cols, 0);
  const all = Math.max(...state.tops), shares = readHalves(state.data.measures[0].values);
  // An image's colour under its cells tells which it is.
  const lines = frames.map((frame) => hexRgb(imageColour(frame.image)));
  state.minis.forEach((mini, k) => {
    const pen = mini.canvas.getContext("2d"), pixels = pen.createImageData(wide, high);
    const strength = state.scale === "own" ? 1 : all > 0 ? state.tops[k] / all : 0;
    let at = k * each;
    frames.forEach((frame, n) => {
      const [left, top] = places[n];
      for (let r = 0; r < frame.rows; r++) for (let c = 0; c < frame.cols; c++) {
        const pixel = 4 * ((top + r) * wide + left + c);
        pixels.data.set(HUE, pixel);
        pixels.data[pixel + 3] = Math.round(state.parts[at++] * strength);
      }
      for (let c = 0; c < frame.cols; c++) { const pixel = 4 * ((high - 1) * wide + left + c); pixels.data.set(lines[n], pixel); pixels.data[pixel + 3] = 255; }
    });
    pen.putImageData(pixels, 0, 0);
    mini.share.textContent = formatShort(shares[k]);
  });
  const what = state.data.readers ? "what later tokens give it on average" : "the share of all images";
  note.textContent = `The number is ${what}. Each map up to ${state.scale === "own" ? "its own largest cell" : `the largest of all, ${formatPercent(all)}`}; images from left to right, thumbnails below${state.data.side > 1 ? `; a square is the largest of ${state.data.side} × ${state.data.side} cells` : ""}.`;
}
function arrange() {
  const { frames, heads } = state.data;
  const shares = readHalves(state.data.measures[0].values);
  state.sorted = [...state.minis];
  if (state.order === "share") state.sorted.sort((one, other) => shares[other.layer * heads + other.head] - shares[one.layer * heads + one.head]);
  const own = state.order === "layer", axis = (text) => el("span", { class: "vlm-axis vlm-axis-y", "aria-hidden": "true" }, text);
  if (frames.length) {
    const { wide, high } = placeFrames(frames), room = Math.max(52, own ? Math.min(120, Math.floor(((right.clientWidth || 640) - 48) / heads) - 4) : 104);
    // Neither a band nor a tower: of one image the map is as narrow as it may be high.
    minis.style.setProperty("--wide", `${Math.round(Math.min(room - 4, (64 * wide) / high))}px`);
    minis.style.setProperty("--ratio", wide / high);
    minis.style.gridTemplateColumns = own ? `20px repeat(${heads}, ${room}px)` : `repeat(auto-fill, ${room}px)`;
  }
  minis.dataset.order = state.order;
  const lines = state.sorted.flatMap((mini) => (own && mini.head === 0 ? [axis(String(mini.layer)), mini.button] : [mini.button]));
  if (own && lines.length) lines.unshift(axis(""), ...Array.from({ length: heads }, (_, h) => axis(String(h))));
  const held = minis.contains(document.activeElement) ? document.activeElement : null; // taking it out takes the focus away
  minis.replaceChildren(...lines);
  if (held && held.isConnected) held.focus({ preventScroll: true });
  markChosen();
}
minis.addEventListener("click", (event) => { const button = event.target.closest("button"); if (button) choose(...placeOf(button)); });
minis.addEventListener("pointerover", (event) => {
  const button = event.target.closest("button");
  if (button && event.pointerType !== "touch") tip.show(button.getBoundingClientRect(), [nameOf(...placeOf(button)), ...state.data.measures.map((measure) => { const value = readHalves(measure.values)[button.dataset.layer * state.data.heads + Number(button.dataset.head)]; return `${measure.name} ${measure.unit === "nats" ? `${value.toFixed(2)} nats` : formatPercent(value)}`; })]);
});
minis.addEventListener("pointerleave", tip.hide);
minis.addEventListener("keydown", (event) => {
  const button = event.target.closest("button");
  if (!button || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = state.sorted.findIndex((mini) => mini.button === button), across = state.order === "layer" ? state.data.heads : Math.max(1, state.sorted.filter((mini) => mini.button.offsetTop === state.sorted[0].button.offsetTop).length);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + across, ArrowUp: at - across, Home: 0, End: state.sorted.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (!state.sorted[to]) return;
  button.tabIndex = -1;
  state.sorted[to].button.tabIndex = 0;
  state.sorted[to].button.focus();
});

// ---- the chosen one, large, from the heat that the page has

function drawLarge() {
  const heat = bus.heat, images = bus.images || [];
  large.hidden = !state.data || !heat || !images.length;
  if (large.hidden) return;
  const frames = images.map((image) => {
    const cut = image.tiles.filter((tile) => tile.row !== null), tiles = cut.length ? cut : image.tiles, [rows, cols] = cut.length ? image.grid : [1, 1];
    return { image, tiles, rows, cols, high: tiles[0].cells[0], wide: tiles[0].cells[1], step: tiles[0].cells[2] };
  });
  const shareAt = ({ tiles, cols, high, wide, step }, r, c) => heat.values[tiles[Math.floor(r / high) * cols + Math.floor(c / wide)].start + (r % high) * step + (c % wide)];
  let top = 0;
  for (const frame of frames) for (let r = 0; r < frame.rows * frame.high; r++) for (let c = 0; c < frame.cols * frame.wide; c++) top = Math.max(top, shareAt(frame, r, c) || 0);
  large.style.setProperty("--tall", frames.length > 3 ? "120px" : "176px");
  large.replaceChildren(el("p", {}, `${whoseRow(heat)}: ${heat.label}`), ...frames.filter((frame) => frame.high && frame.wide).map((frame) => {
    const across = frame.cols * frame.wide, down = frame.rows * frame.high, canvas = el("canvas", { width: across, height: down }), pen = canvas.getContext("2d"), pixels = pen.createImageData(across, down);
    for (let r = 0; r < down; r++) for (let c = 0; c < across; c++) {
      const pixel = 4 * (r * across + c);
      pixels.data.set(HUE, pixel);
      pixels.data[pixel + 3] = top > 0 ? Math.round((255 * shareAt(frame, r, c)) / top) : 0;
    }
    pen.putImageData(pixels, 0, 0);
    const box = el("div", { class: "vlm-frame" }, el("img", { src: frame.image.resized, alt: `image ${frame.image.index + 1}`, draggable: "false" }), canvas);
    const [w, h] = frame.image.resized_size;
    box.style.cssText = `aspect-ratio:${w} / ${h};--ratio:${w / h};--image:${imageColour(frame.image.index)}`;
    return box;
  }));
}
listen("vlm:data", drawLarge);

// ---- what comes in

function drawMeasures() {
  const all = state.data.measures;
  if (state.measure >= all.length) state.measure = 0;
  const key = all.map((one) => one.name).join();
  if (key === state.named) return;
  state.named = key;
  if (all.length === 1) measures.replaceChildren(el("b", {}, all[0].name)); // nothing to switch
  else measures.replaceChildren(switcher("Colour the map by", "vlm-measure", all.map((one, k) => [String(k), one.name, one.about]), String(state.measure), (k) => { state.measure = Number(k); drawMap(); }).node);
}
// The atlas comes as a picture, so that it is small; its grey is read back.
function readAtlas(data) {
  if (!data.atlas) { state.parts = null; return Promise.resolve(); }
  const picture = new Image();
  picture.src = data.atlas;
  return picture.decode().then(() => {
    const canvas = el("canvas", { width: picture.width, height: picture.height }), pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(picture, 0, 0);
    const pixels = pen.getImageData(0, 0, picture.width, picture.height).data;
    state.parts = new Uint8Array(pixels.length / 4);
    for (let k = 0; k < state.parts.length; k++) state.parts[k] = pixels[4 * k];
  });
}
function take() {
  const data = decode(props.data);
  empty.hidden = !!data;
  board.hidden = !data;
  if (!data) { state.data = null; return; }
  readAtlas(data).then(() => {
    if (props.data && data !== state.coming) return;
    state.data = data;
    state.tops = data.tops ? readHalves(data.tops) : null;
    state.sorted = [];
    buildMinis();
    drawMeasures();
    state.values = readHalves(data.measures[state.measure].values);
    arrange();
    drawMap();
    const none = !data.frames.length ? "This prompt has no image" : !state.tops.some((top) => top > 0) ? (data.readers ? "No image token looks at it" : "No image token is looked at") : null;
    tools.hidden = minis.hidden = none !== null;
    if (none) note.textContent = `${none}, so there are no small maps.`; else paintMinis();
    drawLarge();
    performance.mark("vlm:board");
  });
  state.coming = data;
}
new ResizeObserver(() => { if (state.data) arrange(); }).observe(right);
watch(Object.keys({ data: 0 }), take);
take();
