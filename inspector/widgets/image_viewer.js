// The image viewer: pictures with grids and heat on one canvas each.
const root = shell();
const state = { images: [], heat: null, view: "resized", grids: { tile: true, token: true, patch: false }, opacity: 0.75, cards: [], hover: null };

const tools = el("div", { class: "tools" });
for (const [view, label] of [["resized", "as the model sees it"], ["original", "as uploaded"]]) {
  const input = el("input", { type: "radio", name: "vlm-view", value: view, onchange: () => { state.view = view; draw(); } });
  input.checked = view === state.view;
  tools.append(el("label", {}, input, label));
}
for (const grid of ["tile", "token", "patch"]) {
  const input = el("input", { type: "checkbox", onchange: () => { state.grids[grid] = input.checked; paintAll(); } });
  input.checked = state.grids[grid];
  tools.append(el("label", { title: { tile: "crops that the encoder sees one by one", token: "what one image token covers", patch: "the encoder's own grid" }[grid] }, input, { tile: "tiles", token: "image tokens", patch: "patches" }[grid]));
}
const slider = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity, "aria-label": "Opacity of the heat", oninput: () => { state.opacity = Number(slider.value); paintAll(); } });
const heatOn = el("label", { class: "heat" }, "heat", slider);
tools.append(heatOn);
const bar = el("div", { class: "legend" });
const stage = el("div", { class: "cards" });
const tip = el("div", { class: "tip", role: "status" });
root.append(el("div", { class: "head" }, el("h3", {}, "Images"), tools), bar, stage, tip);

function draw() {
  stage.replaceChildren();
  state.cards = [];
  if (!state.images.length) {
    stage.append(el("p", { class: "empty" }, "No images in this prompt. Add some on the left to see them resized, cut into tiles and patches."));
    bar.replaceChildren();
    return;
  }
  stage.classList.toggle("one", state.images.length === 1);
  for (const image of state.images) {
    const [w, h] = image.original_size, [rw, rh] = image.resized_size, [rows, cols] = image.grid;
    const stretch = (rw / w) / (rh / h);
    const card = el("figure", { class: "card", style: `--image:${imageColour(image.index)}` },
      el("figcaption", {}, el("span", { class: "badge" }, circled(image.index)), ` ${image.name}`,
        el("div", { class: "sub" }, `${w}×${h} → ${rw}×${rh} px · ${rows}×${cols} ${rows * cols === 1 ? "tile" : "tiles"}` + (Math.abs(stretch - 1) > 0.005 ? ` · stretched ×${stretch.toFixed(2)} across` : "") + (image.notes.length ? ` · ${image.notes.join("; ")}` : ""))));
    const pictures = el("div", { class: "pictures" });
    const main = image.tiles.filter((tile) => tile.row !== null);
    pictures.append(picture(image, state.view === "resized" ? image.resized : image.original, main.length ? main : image.tiles, main.length ? rows : 1, main.length ? cols : 1, state.view === "resized" ? [rw, rh] : [w, h], false));
    const thumb = image.tiles.find((tile) => tile.row === null);
    if (thumb) pictures.append(picture(image, image.thumbnail, [thumb], 1, 1, [image.tile_px, image.tile_px], true));
    card.append(pictures);
    stage.append(card);
  }
  paintAll();
}

function picture(image, source, tiles, rows, cols, size, isThumbnail) {
  const what = isThumbnail ? "thumbnail" : "image";
  const canvas = el("canvas", { tabindex: "0", role: "application", "aria-label": `${what} ${image.index + 1}: arrows move over its image tokens, Enter selects` });
  const img = el("img", { src: source, alt: `${image.name}, ${isThumbnail ? "the whole image as one tile" : state.view === "resized" ? "as the model sees it" : "as uploaded"}`, style: `aspect-ratio:${size[0]}/${size[1]}`, draggable: "false" });
  const frame = el("div", { class: "frame" + (isThumbnail ? " thumb" : "") }, img, canvas);
  const card = { image, tiles, rows, cols, canvas, frame };
  state.cards.push(card);
  const across = cols * image.cells, down = rows * image.cells;
  let cursor = null;
  const at = (event) => { const r = canvas.getBoundingClientRect(); return [Math.min(down - 1, Math.max(0, Math.floor(((event.clientY - r.top) / r.height) * down))), Math.min(across - 1, Math.max(0, Math.floor(((event.clientX - r.left) / r.width) * across)))]; };
  const hover = (cell) => { cursor = cell; state.hover = cell ? { card, cell } : null; paint(card); if (cell) { const p = positionOf(card, ...cell); tip.textContent = `${cellText(findCell([image], p))} · position ${p}` + (state.heat ? ` · attention ${formatShare(state.heat.values[p])}` : ""); } };
  canvas.addEventListener("mousemove", (event) => hover(at(event)));
  canvas.addEventListener("mouseleave", () => hover(null));
  canvas.addEventListener("blur", () => hover(null));
  canvas.addEventListener("click", (event) => selectPosition(positionOf(card, ...at(event)), "viewer"));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key in moves) {
      const [dr, dc] = moves[event.key], from = cursor || own(card) || [0, 0];
      hover(cursor ? [Math.min(down - 1, Math.max(0, from[0] + dr)), Math.min(across - 1, Math.max(0, from[1] + dc))] : from);
    } else if (event.key === "Enter" && cursor) selectPosition(positionOf(card, ...cursor), "viewer");
    else if (event.key === "Escape") selectPosition(null, "viewer");
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => paint(card)).observe(canvas);
  return el("div", {}, frame, isThumbnail ? el("div", { class: "sub" }, "thumbnail") : null);
}

function positionOf(card, row, col) {
  const n = card.image.cells, tile = card.tiles[Math.floor(row / n) * card.cols + Math.floor(col / n)];
  return tile.start + (row % n) * n + (col % n);
}
function own(card) {
  if (bus.position === null) return null;
  const cell = findCell([card.image], bus.position);
  const index = cell ? card.tiles.indexOf(cell.tile) : -1;
  return index < 0 ? null : [Math.floor(index / card.cols) * card.image.cells + cell.row, (index % card.cols) * card.image.cells + cell.col];
}

function paint(card) {
  const { canvas, image, rows, cols } = card, scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const pen = canvas.getContext("2d"), across = cols * image.cells, down = rows * image.cells;
  pen.clearRect(0, 0, width, height);
  const rect = ([row, col]) => { const x = Math.round((col / across) * width), y = Math.round((row / down) * height); return [x, y, Math.round(((col + 1) / across) * width) - x, Math.round(((row + 1) / down) * height) - y]; };
  if (state.heat && state.opacity > 0) {
    pen.globalAlpha = state.opacity;
    for (let row = 0; row < down; row++) for (let col = 0; col < across; col++) {
      pen.fillStyle = `rgb(${viridis(state.heat.values[positionOf(card, row, col)] / state.heat.max)})`;
      pen.fillRect(...rect([row, col]));
    }
    pen.globalAlpha = 1;
  }
  const lines = (nx, ny, w, style) => {
    pen.strokeStyle = style; pen.lineWidth = w * scale; pen.beginPath();
    for (let i = 1; i < nx; i++) { const x = Math.round((i / nx) * width); pen.moveTo(x, 0); pen.lineTo(x, height); }
    for (let i = 1; i < ny; i++) { const y = Math.round((i / ny) * height); pen.moveTo(0, y); pen.lineTo(width, y); }
    pen.stroke();
  };
  const patches = image.tile_px / image.patch_px;
  if (state.grids.patch) lines(cols * patches, rows * patches, 0.5, "rgba(128,128,128,.55)");
  if (state.grids.token) lines(across, down, 1, "rgba(128,128,128,.75)");
  if (state.grids.tile) lines(cols, rows, 3, imageColour(image.index));
  const box = (cell, style, w) => { const [x, y, cw, ch] = rect(cell); pen.lineWidth = (w + 2) * scale; pen.strokeStyle = "#000"; pen.strokeRect(x, y, cw, ch); pen.lineWidth = w * scale; pen.strokeStyle = style; pen.strokeRect(x, y, cw, ch); };
  const selected = own(card);
  if (selected) box(selected, "#fff", 3);
  if (state.hover && state.hover.card === card) box(state.hover.cell, "#ffd84d", 2);
}
function paintAll() {
  for (const card of state.cards) paint(card);
  heatOn.style.display = state.heat ? "" : "none";
  if (state.heat && state.images.length) bar.replaceChildren(colourBar(state.heat.max, "of 1"), el("span", { class: "key" }, `attention of position ${state.heat.from}, ${state.heat.label}`));
  else bar.replaceChildren();
}
document.addEventListener("vlm:select", () => state.cards.forEach(paint));
function takeHeat() { state.heat = readHeat(props.heat); }
watch("data", () => { state.images = (props.data && props.data.images) || []; takeHeat(); draw(); });
watch("heat", () => { takeHeat(); paintAll(); });
state.images = (props.data && props.data.images) || [];
takeHeat();
draw();
