// The edit board: an image of the page's viewer, a rectangle on it, and what is to be done there, as one line of text.
if (!document.getElementById("vlm-edit-style")) {
  const sheet = document.createElement("style");
  sheet.id = "vlm-edit-style";
  sheet.textContent = OWN_STYLE;
  document.head.append(sheet);
}
const WAYS = [["blur", "blur", "so much that nothing finer than an eighth of the rectangle is left"], ["grey", "grey", "painted in middle grey"], ["mean", "mean colour", "painted in the image's mean colour"], ["black", "black", "painted black"], ["keep", "keep only this", "all around it is painted in the image's mean colour"], ["paste", "paste from", "what lies at the same place of another image"]];
const SIDES = ["left", "top", "right", "bottom"];
const state = { images: [], edited: {}, index: 0, box: [0, 0, 1, 1], way: "blur", source: null, snap: true };

const pictures = el("div", { class: "vlm-ed-images" });
const img = el("img", { alt: "", draggable: "false" });
const svg = el("svg:svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
const frame = el("div", { class: "vlm-frame vlm-ed-frame", tabindex: "0", role: "application", "aria-roledescription": "rectangle on an image" }, img, svg);
const fields = SIDES.map((side, k) => el("input", { type: "number", class: "vlm-find vlm-ed-side", min: 0, step: 1, onchange: () => type(k) }));
const snap = el("input", { type: "checkbox", onchange: () => { state.snap = snap.checked; if (state.snap) put(toCells(state.box)); } });
snap.checked = state.snap;
const ways = switcher("What is done", "vlm-ed-way", WAYS, state.way, (way) => { state.way = way; paint(); });
const source = el("select", { class: "vlm-plain", "aria-label": "paste from", onchange: () => { state.source = Number(source.value); paint(); } });
const covered = el("p", { class: "vlm-note" });
const spoken = el("div", { class: "vlm-spoken", "aria-live": "polite" });
const empty = el("p", { class: "vlm-empty" }, "Ask about an image first: it appears here, to draw a rectangle on.");
const tools = el("div", { class: "vlm-ed-tools" },
  ways.node, source,
  el("div", { class: "vlm-ed-sides" }, ...SIDES.map((side, k) => el("label", {}, side, fields[k]))),
  el("label", { class: "vlm-checks vlm-ed-snap" }, snap, "whole cells of image tokens"),
  covered,
  el("p", { class: "vlm-note" }, "Drag to draw, inside to move, at a corner to resize; a click takes one cell, with Shift up to it. Arrow keys move, with Shift they resize."));
const body = el("div", { class: "vlm-ed-body" }, el("div", { class: "vlm-ed-left" }, pictures, frame), tools);
root.append(empty, body, spoken);

const image = () => state.images[state.index];
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
const tilesOf = (one) => { const cut = one.tiles.filter((tile) => tile.row !== null); return cut.length ? cut : one.tiles; };
// Boxes of all cells of its tiles, in pixels of the image as uploaded, as far as they show any of it.
function cellsOf(one) {
  if (one.cells) return one.cells;
  const [wide, high] = one.original_size;
  one.cells = [];
  for (const tile of tilesOf(one)) {
    const [rows, cols] = tile.cells, [l, t, r, b] = tile.box, w = (r - l) / cols, h = (b - t) / rows;
    for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++) {
      const cell = [Math.max(0, l + col * w), Math.max(0, t + row * h), Math.min(wide, l + (col + 1) * w), Math.min(high, t + (row + 1) * h)];
      if (cell[0] < cell[2] && cell[1] < cell[3]) one.cells.push(cell);
    }
  }
  return one.cells;
}
const touched = (box) => cellsOf(image()).filter(([l, t, r, b]) => l < box[2] && box[0] < r && t < box[3] && box[1] < b);
const centred = (box) => cellsOf(image()).filter(([l, t, r, b]) => (l + r) / 2 >= box[0] && (l + r) / 2 < box[2] && (t + b) / 2 >= box[1] && (t + b) / 2 < box[3]);
// The smallest rectangle of whole cells around one, as far as the model gets the image at all.
function toCells(box) {
  const cells = touched(box);
  if (!cells.length) return box;
  const side = (k, pick) => pick(...cells.map((cell) => cell[k]));
  return within([side(0, Math.min), side(1, Math.min), side(2, Math.max), side(3, Math.max)]);
}
// In whole pixels of the image, at least one wide and high.
function within(box) {
  const [w, h] = image().original_size, [l, t, r, b] = box.map(Math.round);
  const left = clamp(Math.min(l, r), 0, w - 1), top = clamp(Math.min(t, b), 0, h - 1);
  return [left, top, clamp(Math.max(l, r), left + 1, w), clamp(Math.max(t, b), top + 1, h)];
}
function put(box) { state.box = within(box); paint(); }

// ---- drawing

const part = (css) => svg.appendChild(el("svg:rect", { class: css }));
const path = (css) => svg.appendChild(el("svg:path", { class: css }));
const halo = path("vlm-halo g-token"), grid = path("vlm-grid g-token"), cover = path("vlm-ed-cover"), out = part("vlm-ed-out"), inside = part("vlm-ed-in");
const corners = [0, 1, 2, 3].map(() => frame.appendChild(el("i", { class: "vlm-ed-corner", "aria-hidden": "true" })));

function draw() {
  body.hidden = !state.images.length;
  empty.hidden = !body.hidden;
  pictures.replaceChildren();
  if (body.hidden) { tell(); return; }
  if (state.images.length > 1) pictures.append(switcher("Image to edit", "vlm-ed-image", state.images.map((one) => [String(one.index), `image ${one.index + 1}`, one.name]), String(state.index), (index) => { state.index = Number(index); draw(); begin(); }).node);
  const one = image(), [w, h] = one.original_size;
  frame.style.aspectRatio = `${w} / ${h}`;
  frame.style.setProperty("--ratio", w / h);
  frame.style.setProperty("--image", imageColour(one.index));
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  const lines = cellsOf(one).map(([l, t, r, b]) => `M${l} ${t}H${r}V${b}H${l}Z`).join("");
  halo.setAttribute("d", lines);
  grid.setAttribute("d", lines);
  const others = state.images.filter((other) => other.index !== one.index);
  ways.input("paste").disabled = !others.length;
  ways.input("paste").closest("label").hidden = !others.length;
  source.replaceChildren(...others.map((other) => el("option", { value: other.index }, `image ${other.index + 1}`)));
  if (!others.some((other) => other.index === state.source)) state.source = others.length ? others[0].index : null;
  if (others.length) source.value = state.source;
  else if (state.way === "paste") { state.way = "blur"; ways.set("blur"); }
  show();
}
function show() {
  const one = image();
  if (!one) return;
  img.src = state.edited[one.index] || one.original;
  img.classList.toggle("vlm-pixels", Math.max(...one.original_size) <= 256);
}
// A new image begins with its middle, so that something can be done at once.
function begin() {
  const [w, h] = image().original_size, box = [w / 4, h / 4, (3 * w) / 4, (3 * h) / 4];
  state.box = within(box);
  put(state.snap ? toCells(state.box) : box);
}
function paint() {
  const one = image();
  if (!one) return;
  source.hidden = state.way !== "paste";
  const [w, h] = one.original_size, [l, t, r, b] = state.box, all = cellsOf(one), exact = centred(state.box), inner = exact.length ? exact : touched(state.box), cells = state.way === "keep" ? all.filter((cell) => !inner.includes(cell)) : inner;
  for (const rect of [out, inside]) for (const [name, value] of [["x", l], ["y", t], ["width", r - l], ["height", b - t]]) rect.setAttribute(name, value);
  cover.setAttribute("d", cells.map(([x, y, x2, y2]) => `M${x} ${y}H${x2}V${y2}H${x}Z`).join(""));
  corners.forEach((corner, k) => { corner.style.left = `${(100 * (k % 2 ? r : l)) / w}%`; corner.style.top = `${(100 * (k < 2 ? t : b)) / h}%`; });
  fields.forEach((field, k) => { field.value = state.box[k]; field.max = k % 2 ? h : w; });
  frame.setAttribute("aria-label", `image ${one.index + 1}, ${w} by ${h} pixels: the rectangle is ${state.box.join(", ")}. Arrows move it, with Shift they resize it`);
  covered.textContent = `${r - l} × ${b - t} px; beside it ${grouped(cells.length)} of ${grouped(all.length)} image tokens are cut` + (tilesOf(one).length < one.tiles.length ? ", and those of the thumbnail there" : "") + ".";
  tell();
}
let timer = null;
function tell() {
  const one = image(), end = state.way === "paste" ? ` from image ${state.source + 1}` : "";
  bus.edit = one ? `image ${one.index + 1}: ${state.way} ${state.box.join(",")}${end}` : "";
  clearTimeout(timer);
  timer = setTimeout(() => trigger("draw", {}), 60);
}
function type(k) {
  const box = state.box.slice(), value = Number(fields[k].value);
  if (fields[k].value === "" || !Number.isFinite(value)) { paint(); return; }
  box[k] = value;
  // Its other side gives way, so that what was typed stands.
  if (box[k % 2] >= box[(k % 2) + 2]) box[(k + 2) % 4] = value + (k < 2 ? 1 : -1);
  put(box);
}

// ---- pointer and keys

let drag = null;
const at = (event) => { const r = svg.getBoundingClientRect(), [w, h] = image().original_size; return [clamp(((event.clientX - r.left) / r.width) * w, 0, w), clamp(((event.clientY - r.top) / r.height) * h, 0, h)]; };
frame.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  const [x, y] = at(event), box = state.box, r = svg.getBoundingClientRect(), near = (event.pointerType === "touch" ? 22 : 10) * (image().original_size[0] / r.width);
  const corner = [0, 1, 2, 3].find((k) => Math.abs(x - box[k % 2 ? 2 : 0]) < near && Math.abs(y - box[k < 2 ? 1 : 3]) < near);
  const kind = event.shiftKey ? "extend" : corner !== undefined ? "corner" : x > box[0] && x < box[2] && y > box[1] && y < box[3] ? "move" : "new";
  drag = { kind, x, y, box, fixed: corner === undefined ? [x, y] : [box[corner % 2 ? 0 : 2], box[corner < 2 ? 3 : 1]], moved: false, id: event.pointerId, from: [event.clientX, event.clientY] };
  frame.setPointerCapture(event.pointerId);
  frame.focus({ preventScroll: true });
  event.preventDefault();
});
frame.addEventListener("pointermove", (event) => {
  if (!drag || event.pointerId !== drag.id) return;
  drag.moved = drag.moved || Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) > 4;
  if (!drag.moved || drag.kind === "extend") return;
  const [x, y] = at(event);
  if (drag.kind === "move") put(shift(drag.box, x - drag.x, y - drag.y));
  else { const box = within([...drag.fixed, x, y]); put(state.snap ? toCells(box) : box); }
});
frame.addEventListener("pointerup", (event) => {
  if (!drag || event.pointerId !== drag.id) return;
  const [x, y] = at(event), cell = touched([x, y, x + 1e-6, y + 1e-6])[0], box = drag.box;
  if (drag.kind === "extend" || !drag.moved) {
    if (cell) put(drag.kind === "extend" ? [Math.min(box[0], cell[0]), Math.min(box[1], cell[1]), Math.max(box[2], cell[2]), Math.max(box[3], cell[3])] : cell);
  } else if (drag.kind === "move" && state.snap) put(atCell(state.box));
  drag = null;
  say();
});
frame.addEventListener("pointercancel", () => { if (drag) put(drag.box); drag = null; });
function shift([l, t, r, b], dx, dy) {
  const [w, h] = image().original_size, x = clamp(dx, -l, w - r), y = clamp(dy, -t, h - b);
  return [l + x, t + y, r + x, b + y];
}
const cellSize = () => { const cell = cellsOf(image())[0]; return cell ? [cell[2] - cell[0], cell[3] - cell[1]] : [1, 1]; };
// A rectangle that was moved keeps its size: it goes to the nearest corner of a cell.
function atCell(box) {
  const nearest = (k) => { const edges = cellsOf(image()).map((cell) => cell[k]); return edges.reduce((best, edge) => (Math.abs(edge - box[k]) < Math.abs(best - box[k]) ? edge : best), edges[0]); };
  const [left, top] = [nearest(0), nearest(1)];
  return left === undefined ? box : shift(box, left - box[0], top - box[1]);
}
frame.addEventListener("keydown", (event) => {
  const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
  if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const [w, h] = image().original_size, step = state.snap ? cellSize() : [w, h].map((side) => Math.max(1, Math.round(side / 100)));
  const [dx, dy] = way.map((one, k) => one * step[k]), [l, t, r, b] = state.box;
  put(event.shiftKey ? [l, t, Math.max(l + 1, r + dx), Math.max(t + 1, b + dy)] : shift(state.box, dx, dy));
  say();
});
function say() { spoken.textContent = `${SIDES.map((side, k) => `${side} ${state.box[k]}`).join(", ")}; ${covered.textContent}`; }

// ---- what comes in

function takeImages() {
  if (state.images === bus.images) return;
  state.images = bus.images;
  state.index = 0;
  draw();
  if (image()) begin();
}
function take() {
  const data = decode(props.data);
  state.edited = data ? data.edited : {};
  show();
}
const [DATA] = Object.keys({ data: 0 });
watch(DATA, take);
listen("vlm:data", takeImages);
take();
draw();
takeImages();
