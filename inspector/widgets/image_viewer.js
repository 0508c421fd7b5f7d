// The image viewer: each image with its grids, the heat and the selected cell, and its thumbnail beside it.
const state = { images: [], heat: null, view: "resized", shown: null, grids: { tile: true, token: true, patch: false }, opacity: 0.8, frames: [] };
const ABOUT = "Each picture is resized and cut by the model's own rules; a cell is the square whose patches are put together into one image token, and its heat is the share of attention that token got. The encoder mixes all patches of a tile, so a token may carry what lies elsewhere in its tile, and heat doesn't say that the answer depends on it.";
const GRIDS = [["tile", "tiles", "crops of the resized image that the encoder sees one by one"], ["token", "image tokens", "what one position of the row covers"], ["patch", "patches", "what the encoder cuts a tile into; several make one image token"]];

const views = switcher("Show the images", "vlm-view", [["resized", "as the model sees it", "resized and stretched to whole tiles"], ["original", "as uploaded", "in its own proportions; the grids are laid over it"], ["apart", "apart", "tile by tile, as the encoder gets them"]], state.view, (view) => { state.view = view; draw(); });
const tabs = el("div", { class: "vlm-tabs", role: "tablist", "aria-label": "Images" });
const grids = el("div", { class: "vlm-checks", role: "group", "aria-label": "Grids" }, ...GRIDS.map(([grid, name, gloss]) => {
  const input = el("input", { type: "checkbox", onchange: () => { state.grids[grid] = input.checked; paintAll(); } });
  input.checked = state.grids[grid];
  return el("label", { title: gloss }, input, name);
}));
const slider = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: state.opacity, "aria-label": "Opacity of the heat", oninput: () => { state.opacity = Number(slider.value); stage.style.setProperty("--opacity", state.opacity); } });
const heatTools = el("div", { class: "vlm-legend" });
const heatBar = el("span", { class: "vlm-key" }), heatNote = el("span", { class: "vlm-note-line" });
heatTools.append(heatBar, el("label", { class: "vlm-key" }, "heat over the image", slider), heatNote);
const stage = el("div", { class: "vlm-stage", id: `vlm-stage-${Math.random().toString(36).slice(2, 8)}` });
stage.style.setProperty("--opacity", state.opacity);
const spoken = el("div", { class: "vlm-spoken", "aria-live": "polite" });
const tip = tooltip();
const tools = el("div", { class: "vlm-tools" }, grids);
root.append(el("div", { class: "vlm-head" }, el("h3", {}, "Images"), info("Images", ABOUT), tabs, views.node, tools), stage, heatTools, spoken, tip.box);

// ---- drawing

function draw() {
  state.frames = [];
  tools.hidden = views.node.hidden = !state.images.length;
  drawTabs();
  if (!state.images.length) {
    stage.replaceChildren(el("p", { class: "vlm-empty" }, bus.row ? "This prompt has no image. Add one, and its tiles, its patches and the position of every cell in the row appear here." : "Upload an image and ask something: you will see it resized, cut into tiles and patches, and where each piece went in the row of tokens."));
    paintAll();
    return;
  }
  const shown = state.shown === null ? state.images : state.images.filter((image) => image.index === state.shown);
  stage.className = `vlm-stage vlm-n${Math.min(shown.length, 4)}`;
  stage.replaceChildren(...shown.map(card));
  paintAll();
}

function drawTabs() {
  tabs.hidden = state.images.length < 2;
  if (tabs.hidden) { stage.removeAttribute("role"); stage.removeAttribute("aria-label"); tabs.replaceChildren(); return; }
  const focused = tabs.contains(document.activeElement);
  const tab = (index, label, ...content) => {
    const on = state.shown === index;
    return el("button", { type: "button", role: "tab", "aria-selected": String(on), "aria-controls": stage.id, tabindex: on ? "0" : "-1", "aria-label": label, "data-image": index === null ? "all" : index, onclick: () => { state.shown = index; draw(); } }, ...content);
  };
  tabs.replaceChildren(tab(null, "all images", "all"), ...state.images.map((image) => tab(image.index, `image ${image.index + 1}, ${image.name}`, badge(image.index))));
  stage.setAttribute("role", "tabpanel");
  stage.setAttribute("aria-label", state.shown === null ? "all images" : `image ${state.shown + 1}`);
  if (focused) tabs.querySelector('[aria-selected="true"]').focus();
}
tabs.addEventListener("keydown", (event) => {
  const all = [...tabs.children], i = all.indexOf(event.target);
  const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || i < 0) return;
  event.preventDefault();
  all[(to + all.length) % all.length].click();
});

function card(image) {
  const [w, h] = image.original_size, [rw, rh] = image.resized_size, [rows, cols] = image.grid, [l, t, r, b] = image.seen || [0, 0, w, h], stretch = rw / (r - l) / (rh / (b - t));
  const cut = image.tiles.filter((tile) => tile.row !== null), thumb = image.tiles.find((tile) => tile.row === null);
  const tokens = grouped(image.tiles.reduce((sum, tile) => sum + tile.cells[0] * tile.cells[1], 0)), grid = rows * cols === 1 ? "1 tile" : `${rows}×${cols} tiles${thumb ? " + thumbnail" : ""}`;
  // From the file to the row: by which rule it was resized, and how many tiles the model would take at the most.
  const rule = Math.abs(stretch - 1) > 0.005 ? `stretched ×${(stretch > 1 ? stretch : 1 / stretch).toFixed(2)} ${stretch > 1 ? "in width" : "in height"} to` : "to";
  const facts = [`${w}×${h}`, `${rw}×${rh} px (${rule} whole tiles of ${image.tile_px.join("×")})`, image.limit ? `${grid} (${image.limit})` : grid, `${tokens} image tokens`];
  const share = el("span", { class: "vlm-share" });
  const caption = el("figcaption", {}, badge(image.index), el("span", { class: "vlm-name" }, image.name), share, el("div", { class: "vlm-facts" }, facts.join(" → ")));
  for (const note of image.notes || []) caption.append(el("div", { class: "vlm-facts" }, note));
  const pictures = el("div", { class: "vlm-pictures" });
  const seen = state.view !== "original", size = seen ? [rw, rh] : [w, h];
  if (state.view === "apart" && cut.length > 1) {
    const apart = el("div", { class: "vlm-apart" });
    apart.style.cssText = `--cols:${cols};--ratio:${rw / rh}`;
    for (const tile of cut) {
      const one = frame(image, image.resized, [tile], 1, 1, image.tile_px, `tile ${tile.name}`);
      // The whole picture, moved so that this tile lies in the frame.
      one.querySelector("img").style.cssText = `width:${100 * cols}%;height:${100 * rows}%;max-width:none;left:${-100 * tile.col}%;top:${-100 * tile.row}%;right:auto;bottom:auto`;
      apart.append(el("div", { class: "vlm-tile" }, one, el("div", { class: "vlm-facts" }, tile.name)));
    }
    pictures.append(apart);
  } else pictures.append(frame(image, seen ? image.resized : image.original, cut.length ? cut : image.tiles, cut.length ? rows : 1, cut.length ? cols : 1, size, seen ? "as the model sees it" : "as uploaded"));
  if (thumb) pictures.append(el("div", { class: "vlm-side" }, frame(image, image.thumbnail || image.resized, [thumb], 1, 1, [1, 1], "thumbnail"), el("div", { class: "vlm-facts" }, "thumbnail")));
  const figure = el("figure", { class: "vlm-card" + (image.index >= IMAGE_COLOURS.length ? " vlm-again" : "") }, caption, pictures);
  figure.style.setProperty("--image", imageColour(image.index));
  figure.dataset.image = image.index;
  return figure;
}

function gridPath(nx, ny) {
  let path = "";
  for (let i = 1; i < nx; i++) path += `M${i / nx} 0V1`;
  for (let i = 1; i < ny; i++) path += `M0 ${i / ny}H1`;
  return path;
}

function frame(image, source, tiles, rows, cols, size, what) {
  const [high, wide] = tiles[0].cells, across = cols * wide, down = rows * high, [px, py] = image.tile_px.map((side) => side / image.patch_px);
  const img = el("img", { src: source, alt: `${image.name}, ${what}`, draggable: "false" });
  // Small pictures are shown with the pixels that the model got, large ones smoothly.
  if (what !== "as uploaded" && Math.max(...image.resized_size) <= 512) img.classList.add("vlm-pixels");
  const heat = el("canvas", { width: across, height: down, tabindex: "0", role: "application", "aria-roledescription": "grid of image tokens", "aria-label": `image ${image.index + 1} ${what}, ${down} rows and ${across} columns of image tokens. Arrows select, with Shift they only look, Escape clears` });
  const svg = el("svg:svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [grid, nx, ny] of [["patch", cols * px, rows * py], ["token", across, down], ["tile", cols, rows]]) {
    const d = gridPath(nx, ny);
    svg.append(el("svg:path", { class: `vlm-halo g-${grid}`, d }), el("svg:path", { class: `vlm-grid g-${grid}`, d }));
  }
  const ring = (css) => ["vlm-ring-out", "vlm-ring-in"].map((part) => svg.appendChild(el("svg:rect", { class: `${part} ${css}` })));
  if (what === "as uploaded" && image.seen) {
    // The model gets a part of the picture only: grids and heat lie over that part, and the rest is darkened.
    const [l, t, r, b] = image.seen, place = `inset:auto;left:${(100 * l) / size[0]}%;top:${(100 * t) / size[1]}%;width:${(100 * (r - l)) / size[0]}%;height:${(100 * (b - t)) / size[1]}%`;
    heat.style.cssText = svg.style.cssText = place;
    svg.style.boxShadow = "0 0 0 100vmax rgba(0, 0, 0, .6)";
  }
  const hots = el("div", { class: "vlm-hots", "aria-hidden": "true" });
  hots.style.cssText = heat.style.cssText;
  const box = el("div", { class: "vlm-frame" }, img, heat, svg, hots);
  box.style.aspectRatio = `${size[0]} / ${size[1]}`;
  box.style.setProperty("--ratio", size[0] / size[1]);
  const own = { image, tiles, cols, across, down, heat, svg, hots, lit: ring("vlm-lit"), sel: ring("vlm-chosen"), cursor: null };
  state.frames.push(own);

  const at = (event) => {
    const r = svg.getBoundingClientRect(), clamp = (v, top) => Math.min(top - 1, Math.max(0, Math.floor(v)));
    return [clamp(((event.clientY - r.top) / r.height) * down, down), clamp(((event.clientX - r.left) / r.width) * across, across)];
  };
  const move = (cell, said) => {
    own.cursor = cell;
    if (!cell) { place(own, own.lit, null); tip.hide(); hoverPosition(null, "viewer"); return; }
    const p = positionOf(own, ...cell), found = findCell([image], p);
    place(own, own.lit, cell);
    hoverPosition(p, "viewer");
    const r = svg.getBoundingClientRect(), left = r.left + (cell[1] / across) * r.width, top = r.top + (cell[0] / down) * r.height;
    tip.show({ left: left + r.width / across + 8, top, bottom: top + r.height / down }, [
      `token ${p}`, `image ${image.index + 1} · tile ${found.tile.name} · row ${found.row + 1}, column ${found.col + 1}`,
      `covers ${boxText(found.box)} of the original`, heatText(p),
    ]);
    if (said) spoken.textContent = `token ${p}, tile ${found.tile.name}, row ${found.row + 1}, column ${found.col + 1}, ${boxText(found.box)}`;
  };
  heat.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") move(at(event), false); });
  heat.addEventListener("pointerleave", () => move(null));
  heat.addEventListener("blur", () => move(null));
  heat.addEventListener("click", (event) => select(positionOf(own, ...at(event)), event.shiftKey));
  heat.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key], clamp = (v, top) => Math.min(top - 1, Math.max(0, v));
    if (way) { move(own.cursor ? [clamp(own.cursor[0] + way[0], down), clamp(own.cursor[1] + way[1], across)] : cellOf(own, bus.position) || [0, 0], true); if (!event.shiftKey) select(positionOf(own, ...own.cursor)); }
    else if (event.key === "Enter" || event.key === " ") { const cell = own.cursor || cellOf(own, bus.position) || [0, 0]; move(cell, true); select(positionOf(own, ...cell)); }
    else if (event.key === "Escape") { move(null); selectPosition(null, "viewer"); }
    else return;
    event.preventDefault();
  });
  return box;
}
function select(position, extend) {
  const stretch = extend && bus.position !== null && bus.position !== position ? [Math.min(bus.position, position), Math.max(bus.position, position)] : null;
  selectPosition(position, "viewer", stretch);
}
function heatText(p) {
  const heat = heatNow();
  if (!heat || p >= heat.values.length) return null;
  return shareText(heat, p);
}
const heatNow = () => state.heat || bus.heat;

const endOf = (tile) => tile.start + tile.cells[0] * tile.cells[2];
function positionOf(own, row, col) {
  const [high, wide, step] = own.tiles[0].cells, tile = own.tiles[Math.floor(row / high) * own.cols + Math.floor(col / wide)];
  return tile.start + (row % high) * step + (col % wide);
}
function cellOf(own, position) {
  const cell = findCell([own.image], position), index = cell ? own.tiles.indexOf(cell.tile) : -1, [high, wide] = own.tiles[0].cells;
  if (index >= 0) return [Math.floor(index / own.cols) * high + cell.row, (index % own.cols) * wide + cell.col];
  const tile = own.tiles.indexOf(tileOf(position, own.image));
  return tile < 0 ? null : [Math.floor(tile / own.cols) * high, (tile % own.cols) * wide, high, wide];
}
// The tile that a marker in the row speaks of, or null.
function tileOf(position, image) {
  const span = position === null || !bus.row || position >= bus.row.n ? null : bus.row.spanOf(position);
  return span && span.kind === "region" && span.image === image.index && span.tile !== null ? image.tiles[span.tile] : null;
}
// ``cell`` is row and column, and how many of each where it is more than one.
function place(own, rings, cell) {
  for (const rect of rings) {
    rect.style.display = cell ? "" : "none";
    if (!cell) continue;
    const [row, col, high = 1, wide = 1] = cell, sides = { x: col / own.across, y: row / own.down, width: wide / own.across, height: high / own.down };
    for (const [name, value] of Object.entries(sides)) rect.setAttribute(name, value);
  }
}

// One hue, as covering as the share is large: where nothing was attended to the picture is as it was.
const HUE = [224, 0, 122];
const HOTTEST = 3;

// The cells of all images of the prompt, the hottest first, whether they are shown or not: so images stay comparable.
function hottest(heat) {
  const cells = [];
  for (const image of state.images) for (const tile of image.tiles) {
    const [rows, cols, step] = tile.cells;
    for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++) {
      const position = tile.start + row * step + col;
      cells.push({ position, share: heat.values[position] });
    }
  }
  return cells.sort((one, other) => other.share - one.share);
}

function heatKey(top) {
  const ramp = el("span", { class: "vlm-ramp vlm-cover" });
  const ends = [formatPercent(0), formatPercent(top)].map((text) => el("span", {}, text));
  return el("span", { class: "vlm-bar" }, ramp, el("span", { class: "vlm-ticks" }, ...ends));
}

function paint(own) {
  const heat = heatNow(), { across, down } = own;
  own.hots.replaceChildren();
  for (const [grid] of GRIDS) own.svg.querySelectorAll(`.g-${grid}`).forEach((path) => { path.style.display = state.grids[grid] ? "" : "none"; });
  const last = Math.max(...own.image.tiles.map(endOf));
  const pen = own.heat.getContext("2d");
  pen.clearRect(0, 0, across, down);
  // A very narrow image may have no cell at all.
  if (heat && heat.values.length >= last && across && down) {
    // One pixel a cell, enlarged without smoothing: between two cells nothing was measured.
    const pixels = pen.createImageData(across, down), cells = hottest(heat), top = cells[0].share;
    const named = new Map(cells.slice(0, HOTTEST).filter((cell) => cell.share > 0).map((cell) => [cell.position, cell.share]));
    for (let row = 0; row < down; row++) for (let col = 0; col < across; col++) {
      const k = 4 * (row * across + col), p = positionOf(own, row, col);
      pixels.data.set(HUE, k);
      pixels.data[k + 3] = top > 0 ? Math.round((255 * heat.values[p]) / top) : 0;
      if (!named.has(p)) continue;
      const label = own.hots.appendChild(el("span", {}, formatPercent(named.get(p))));
      label.style.left = `${(100 * (col + 0.5)) / across}%`;
      label.style.top = `${(100 * (row + 0.5)) / down}%`;
    }
    pen.putImageData(pixels, 0, 0);
  }
  place(own, own.sel, cellOf(own, bus.position));
  place(own, own.lit, own.cursor);
}

function paintAll() {
  for (const own of state.frames) paint(own);
  const heat = heatNow(), row = bus.row, fits = heat && state.images.length && (!row || heat.values.length === row.n);
  heatTools.hidden = !fits;
  stage.querySelectorAll(".vlm-share").forEach((node) => { node.textContent = ""; });
  if (!fits) return;
  let total = 0;
  for (const image of state.images) {
    const share = gather(heat, ...image.tiles.map((tile) => [tile.start, endOf(tile)]));
    total += share;
    const node = stage.querySelector(`[data-image="${image.index}"] .vlm-share`);
    if (node) node.textContent = formatPercent(share);
  }
  heatBar.replaceChildren(heatKey(hottest(heat)[0].share));
  heatNote.title = heatNote.textContent = `attention of ${whoseRow(heat)}; ${heat.label}` + (heat.readers ? " · on an image: the mean of its tokens" : ` · ${formatPercent(total)} of it goes to images`);
}

// ---- what comes in

listen("vlm:select", ({ position, origin }) => {
  const cell = findCell(state.images, position), image = cell ? cell.image : state.images.find((one) => tileOf(position, one));
  // A cell of an image that isn't shown brings that image up; "all" shows every one already.
  if (image && state.shown !== null && state.shown !== image.index && origin !== "server") { state.shown = image.index; draw(); return; }
  for (const own of state.frames) place(own, own.sel, cellOf(own, position));
});
listen("vlm:hover", ({ position, origin }) => {
  if (origin === "viewer") { for (const own of state.frames) if (!own.cursor) place(own, own.lit, null); return; }
  for (const own of state.frames) place(own, own.lit, cellOf(own, position));
});
listen("vlm:data", paintAll);

function take() {
  const data = decode(props.data);
  state.images = data ? data.images : [];
  bus.images = state.images;
  if (!state.images.some((image) => image.index === state.shown)) state.shown = null;
  state.heat = readHeat(props.heat);
  draw();
  tellData();
}
const [DATA, HEAT] = Object.keys({ data: 0, heat: 0 });
watch(DATA, take);
watch(HEAT, () => { state.heat = readHeat(props.heat); paintAll(); });
take();
