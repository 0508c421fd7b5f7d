// The token strip: one button per token, long runs folded into one, and the whole row drawn small above them.
const WHY_PADDING = "The row begins with <|im_end|> because nanoVLM pads on the left and its padding token is <|im_end|>. Attention mask 0 and label −100: nothing reads it and nothing is trained on it.";
const WHY_SEPARATOR = "Packing puts one masked <|im_end|> after each sample. Without a document mask nothing else keeps the samples apart.";
const ABOUT = "Every position of the row in order, as chat template, images and text make it; labels and mask are what the collator hands to training, losses come from one pass over the finished row. Colours tell what is there and how much attention it got, not what the answer depends on.";
const MODES = [
  ["kind", "kind", "what each token is"], ["label", "label", "what the loss is computed on, and what each position learns to say next"],
  ["mask", "mask", "the attention mask"], ["loss", "loss", "−ln p of each token, given all before it"], ["attention", "attention", "share of the selected token's attention"],
];
const KINDS = { padding: "padding", separator: "separator", special: "special token", role: "role", region: "tile marker", image: "image tokens", text: "question text", answer: "answer" };
const state = { row: null, heat: null, mode: "kind", open: new Set(), nodes: new Map(), chips: new Map(), hits: [] };
const fold = (span) => span.kind === "image" || (span.kind === "padding" && span.stop - span.start > 1);

const count = el("span", { class: "vlm-count" });
const modes = switcher("Colour the tokens by", "vlm-mode", MODES, state.mode, (mode) => { state.mode = mode; paintAll(); });
const find = el("input", { type: "search", class: "vlm-find", placeholder: "find text or #position   /", "aria-label": "Find tokens by text, or one by #position. Enter goes to the next, Shift Enter to the one before", spellcheck: "false", autocomplete: "off" });
const found = el("span", { class: "vlm-found", role: "status" });
const unfold = el("button", { type: "button", class: "vlm-plain", onclick: toggleAll }, "unfold all");
const legend = el("div", { class: "vlm-legend" });
const map = el("canvas", { class: "vlm-map", "aria-hidden": "true", title: "the whole row; click to go there" });
const line = el("div", { class: "line", role: "toolbar", "aria-label": "Tokens. Arrows move the selection, with Shift they select a stretch, Enter opens or closes a run, Escape clears", "aria-orientation": "horizontal" });
const spoken = el("div", { class: "vlm-spoken", "aria-live": "polite" });
const tip = tooltip();
const tools = el("div", { class: "vlm-tools" }, modes.node, el("span", { class: "vlm-finder" }, find, found), unfold);
root.append(el("div", { class: "vlm-head" }, el("h3", {}, "Tokens"), info("Tokens", ABOUT), count, tools), legend, map, line, spoken, tip.box);

// ---- drawing

function draw() {
  state.nodes.clear();
  state.chips.clear();
  const row = state.row;
  tools.hidden = map.hidden = !row;
  if (!row) {
    line.replaceChildren(el("p", { class: "vlm-empty" }, "Ask something, and every position that the model reads appears here in order: template, image tokens folded per tile, question, answer. Pick one to see where it looked."));
    legend.replaceChildren();
    count.textContent = "";
    return;
  }
  const parts = document.createDocumentFragment();
  let block = null, group = null;
  row.spans.forEach((span, index) => {
    // One block per message, named in the gutter by its role; padding and separators stand alone.
    const own = span.kind === "padding" || span.kind === "separator" ? `${span.kind}${index}` : `${span.segment} ${span.message}`;
    if (own !== group) {
      group = own;
      block = el("span", { class: "vlm-run" });
      parts.append(el("div", { class: `vlm-block${span.kind === "separator" ? " vlm-cut" : ""}` }, el("span", { class: "vlm-gutter", "aria-hidden": "true" }, gutter(span, index)), block));
    }
    if (fold(span)) block.append(chip(span, index));
    if (!fold(span) || state.open.has(index)) for (let p = span.start; p < span.stop; p++) block.append(token(p, span));
    if (span.kind === "separator") block.append(el("span", { class: "vlm-why" }, WHY_SEPARATOR));
    if (span.kind === "padding") block.append(el("span", { class: "vlm-why" }, WHY_PADDING));
  });
  line.replaceChildren(parts);
  const tokens = row.spans.reduce((sum, span) => sum + (span.kind === "image" ? span.stop - span.start : 0), 0);
  const images = new Set(row.spans.filter((span) => span.kind === "image").map((span) => span.image)).size;
  count.textContent = `${grouped(row.n)} positions` + (images ? `, ${grouped(tokens)} of them image tokens (${Math.round((100 * tokens) / row.n)} %) of ${images} ${images === 1 ? "image" : "images"}` : ", no image");
  paintAll();
}

function gutter(span, index) {
  if (span.kind === "padding") return "padding";
  if (span.kind === "separator") return "separator";
  if (span.message === null) return "";
  for (let i = index; i < state.row.spans.length && state.row.spans[i].message === span.message; i++) {
    if (state.row.spans[i].kind !== "role") continue;
    let text = "";
    for (let p = state.row.spans[i].start; p < state.row.spans[i].stop; p++) text += state.row.text(p);
    const word = text.match(/[a-z]+/i);
    if (word) return word[0];
  }
  return "";
}

function dress(node, span) {
  if (span.image === null) return node;
  node.style.setProperty("--image", imageColour(span.image));
  if (span.image >= IMAGE_COLOURS.length) node.classList.add("vlm-again");
  return node;
}

function chip(span, index) {
  const n = span.stop - span.start, open = state.open.has(index);
  const node = el("button", { type: "button", class: `chip k-${span.kind}`, tabindex: "-1", "aria-expanded": String(open), "data-span": index, "data-p": span.start });
  const aside = (text) => el("span", { class: "vlm-spoken" }, text);
  if (span.image !== null) node.append(aside("image "), badge(span.image));
  node.append(`${span.kind === "padding" ? visibleText(state.row.text(span.start)) : span.title.split("tile ").pop()} ×${n}`, aside(`, positions ${span.start} to ${span.stop - 1}${span.kind === "padding" ? ", padding" : ""}`));
  if (span.kind === "image") {
    const side = Math.round(Math.sqrt(n));
    // A square run gets a picture of its tile, anything else a bar.
    node.append(el("canvas", { class: "vlm-mini", width: side * side === n ? side : n, height: side * side === n ? side : 1 }), el("span", { class: "vlm-sum" }));
  }
  state.chips.set(index, node);
  if (!open) for (let p = span.start; p < span.stop; p++) state.nodes.set(p, node);
  return dress(node, span);
}

function token(p, span) {
  const row = state.row, image = span.kind === "image", text = image ? "▪" : visibleText(row.text(p));
  const node = el("button", { type: "button", class: `tok k-${span.kind}`, tabindex: "-1", "data-p": p, "aria-label": `${p}, ${image ? "image token" : text}, ${span.title}` }, text);
  // The shift: the output here is compared with the token after it.
  if (p + 1 < row.n && row.trained[p + 1]) node.dataset.next = `→ ${visibleText(row.text(p + 1))}`;
  state.nodes.set(p, node);
  return dress(node, span);
}

function fill(node, share) {
  node.classList.toggle("hot", share !== null);
  if (share === null) { node.style.removeProperty("--fill"); node.style.removeProperty("--on"); return; }
  node.style.setProperty("--fill", `rgb(${viridis(share)})`);
  node.style.setProperty("--on", INKS[step(share)]);
}

const heats = () => state.mode === "attention" && state.heat;
function paintAll() {
  const { row, mode } = state;
  if (!row) return;
  line.dataset.mode = mode;
  const heat = heats(), top = Math.max(row.topLoss, 1e-6);
  for (const [p, node] of state.nodes) {
    if (node.classList.contains("chip")) continue;
    node.classList.toggle("trained", !!row.trained[p]);
    node.classList.toggle("masked", !!row.masked[p]);
    node.classList.toggle("seen", !row.masked[p]);
    fill(node, heat ? heat.values[p] / heat.max : mode === "loss" && !Number.isNaN(row.loss[p]) ? row.loss[p] / top : null);
  }
  for (const [index, node] of state.chips) {
    const span = row.spans[index];
    node.classList.toggle("trained", !!row.trained[span.start]);
    node.classList.toggle("masked", !!row.masked[span.start]);
    node.classList.toggle("seen", !row.masked[span.start]);
    node.classList.toggle("vlm-mapped", !!heat);
    if (span.kind !== "image" || !heat) continue;
    const small = node.querySelector("canvas"), pen = small.getContext("2d"), pixels = pen.createImageData(small.width, small.height);
    for (let k = 0; k < span.stop - span.start; k++) { pixels.data.set(viridis(heat.values[span.start + k] / heat.max), 4 * k); pixels.data[4 * k + 3] = 255; }
    pen.putImageData(pixels, 0, 0);
    node.querySelector(".vlm-sum").textContent = isRunUnseen(heat, span) ? "unseen" : formatShare(gather(heat, [span.start, span.stop]));
  }
  drawLegend();
  drawMap();
  mark();
}

function drawLegend() {
  const { row, mode, heat } = state, items = [];
  const key = (css, text) => el("span", { class: "vlm-key" }, el("i", { class: css }, css === "k-image" || css === "k-region" ? "" : null), text);
  const note = (text, css) => el("span", { class: css || "vlm-key" }, text);
  if (mode === "kind") {
    for (const [kind, name] of Object.entries(KINDS)) if (row.spans.some((span) => span.kind === kind)) items.push(key(`k-${kind}`, name));
    if (row.spans.some((span) => span.kind === "image")) items.push(note("tiles and their markers in the image's colour"));
  } else if (mode === "label") items.push(key("trained", "trained on"), key("vlm-ignored", "label −100, ignored"), note("→ what the loss wants predicted there: the token after it"));
  else if (mode === "mask") items.push(key("seen", "1, attended to"), key("masked", "0, nothing attends to it"));
  else if (mode === "loss") items.push(row.topLoss ? colourBar(row.topLoss, "nats", false) : note("No token of this row has a loss."), note(row.topLoss ? "−ln p of each token given all before it; plain: nothing predicts it, or not worth scoring" : ""));
  else if (heat) items.push(colourBar(heat.max, "of 1", heat.clipped), note(`share of the attention of ${whoseRow(heat)}, ${heat.label}; on a folded run its ${heat.readers ? "mean" : "sum"}${heat.clipped ? "; brightest: beyond the scale" : ""}`, "vlm-note-line"));
  else items.push(note("Select a token to see where it looked."));
  legend.replaceChildren(...items);
}

// The row from end to end, one column of pixels per position or several positions to a column.
function drawMap() {
  const row = state.row, scale = window.devicePixelRatio || 1, width = Math.round(map.clientWidth * scale), height = Math.round(18 * scale);
  if (!row || !width) return;
  map.width = width;
  map.height = height;
  const pen = map.getContext("2d"), x = (p) => Math.round((p / row.n) * width), dark = DARK(), heat = heats();
  const paper = dark ? "#1e293b" : "#e2e8f0", ink = dark ? "#e2e8f0" : "#1e293b", grey = dark ? "#64748b" : "#94a3b8";
  pen.fillStyle = paper;
  pen.fillRect(0, 0, width, height);
  const column = (start, stop, colour, top, bottom) => { pen.fillStyle = colour; pen.fillRect(x(start), top * height, Math.max(x(stop) - x(start), 1), (bottom - top) * height); };
  for (const span of row.spans) {
    const own = span.image !== null ? imageColour(span.image) : { padding: grey, separator: ink, special: "#7F63B8", role: "#7F63B8", answer: ink }[span.kind];
    if (state.mode === "kind") {
      if (own) column(span.start, span.stop, own, span.kind === "answer" ? 0.5 : 0, span.kind === "region" || span.kind === "image" ? 1 : 0.999);
    } else if (span.image !== null) column(span.start, span.stop, own, 0.85, 1);
  }
  if (state.mode !== "kind") {
    const top = Math.max(row.topLoss, 1e-6);
    // The largest of the positions that share a column wins, or it would vanish between its neighbours.
    const level = new Float32Array(width).fill(-1);
    for (let p = 0; p < row.n; p++) {
      const v = heat ? heat.values[p] / heat.max : state.mode === "loss" ? (Number.isNaN(row.loss[p]) ? -1 : row.loss[p] / top) : state.mode === "label" ? (row.trained[p] ? 1 : -1) : state.mode === "mask" ? (row.masked[p] ? -1 : 1) : -1;
      for (let i = x(p), end = Math.max(x(p + 1), i + 1); i < end && i < width; i++) level[i] = Math.max(level[i], v);
    }
    const flat = state.mode === "label" ? (DARK() ? "#cbd5e1" : "#334155") : state.mode === "mask" ? grey : null;
    for (let i = 0; i < width; i++) if (level[i] >= 0) { pen.fillStyle = flat || `rgb(${viridis(level[i])})`; pen.fillRect(i, 0, 1, height * 0.8); }
  }
  if (bus.position !== null && bus.position < row.n) {
    const at = Math.min(width - 2 * scale, x(bus.position));
    pen.fillStyle = paper; pen.fillRect(at - 2 * scale, 0, 6 * scale, height);
    pen.fillStyle = ink; pen.fillRect(at, 0, 2 * scale, height);
  }
}

// ---- selecting

let marked = [], entry = null;
function mark() {
  for (const node of marked) { node.classList.remove("vlm-sel", "vlm-nxt", "vlm-also", "vlm-kin"); node.removeAttribute("aria-current"); }
  marked = [];
  const p = bus.position, node = p === null ? null : state.nodes.get(p);
  if (node) {
    node.classList.add("vlm-sel");
    node.setAttribute("aria-current", "true");
    marked.push(node);
    const next = state.nodes.get(p + 1);
    if (next && next !== node) { next.classList.add("vlm-nxt"); marked.push(next); }
    for (const kin of kinOf(p)) { kin.classList.add("vlm-kin"); marked.push(kin); }
  }
  for (let q = bus.stretch ? bus.stretch[0] : 1; q <= (bus.stretch ? bus.stretch[1] : 0); q++) {
    const also = state.nodes.get(q);
    if (also) { also.classList.add("vlm-also"); marked.push(also); }
  }
  enter(node || (entry && entry.isConnected ? entry : line.querySelector("button")));
  return node;
}
// A tile's marker and its image tokens belong together: of one, the other's buttons.
function kinOf(p) {
  const span = state.row.spanOf(p), pair = { image: "region", region: "image" }[span.kind], nodes = new Set();
  if (!pair || span.tile === null) return nodes;
  for (const other of state.row.spans) {
    if (other.kind !== pair || other.image !== span.image || other.tile !== span.tile) continue;
    for (let q = other.start; q < other.stop; q++) nodes.add(state.nodes.get(q));
  }
  return nodes;
}
// Roving tabindex: Tab reaches one token, the arrows reach the others.
function enter(node) {
  if (entry) entry.tabIndex = -1;
  entry = node;
  if (entry) entry.tabIndex = 0;
}
// Scrolls the strip's own lines; the page stays where it is.
function reveal(node) {
  const box = line.getBoundingClientRect(), own = node.getBoundingClientRect();
  if (own.top < box.top + 8) line.scrollTop += own.top - box.top - 24;
  else if (own.bottom > box.bottom - 8) line.scrollTop += own.bottom - box.bottom + 24;
  // Where the strip is one line it scrolls sideways, and what comes next is in sight too.
  if (own.left < box.left + 8 || own.right > box.right - 8) line.scrollLeft += own.left - box.left - box.width / 2;
}
// With Shift all from where the selection began to this token are selected.
function go(node, extend) {
  const p = Number(node.dataset.p), from = bus.stretch ? (bus.stretch[0] === bus.position ? bus.stretch[1] : bus.stretch[0]) : bus.position;
  selectPosition(p, "strip", extend && from !== null && from !== p ? [Math.min(from, p), Math.max(from, p)] : null);
  enter(node);
  node.focus({ preventScroll: true });
  reveal(node);
}
function toggle(index) {
  if (state.open.has(index)) state.open.delete(index); else state.open.add(index);
  draw();
  const node = state.chips.get(index);
  enter(node);
  node.focus({ preventScroll: true });
  unfold.textContent = state.open.size ? "fold all" : "unfold all";
}
function toggleAll() {
  const folds = state.row.spans.map((span, i) => [span, i]).filter(([span]) => fold(span)).map(([, i]) => i);
  state.open = new Set(state.open.size ? [] : folds);
  unfold.textContent = state.open.size ? "fold all" : "unfold all";
  draw();
}

line.addEventListener("click", (event) => {
  const node = event.target.closest("button");
  if (!node) return;
  tip.hide();
  if (node.classList.contains("chip")) toggle(Number(node.dataset.span)); else go(node, event.shiftKey);
});
line.addEventListener("keydown", (event) => {
  const node = event.target.closest("button");
  if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...line.querySelectorAll("button")], i = all.indexOf(node);
  let target = null;
  if (event.key === "ArrowRight") target = all[i + 1];
  else if (event.key === "ArrowLeft") target = all[i - 1];
  else if (event.key === "Home") target = all[0];
  else if (event.key === "End") target = all[all.length - 1];
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") target = neighbour(all, i, event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "Escape") { selectPosition(null, "strip"); tip.hide(); }
  else return;
  event.preventDefault();
  if (target) go(target, event.shiftKey);
});
// The closest token on the line above or below; stops looking once that line has passed.
function neighbour(all, i, way) {
  const here = all[i].getBoundingClientRect(), centre = (here.left + here.right) / 2;
  let best = null, edge = null, least = Infinity;
  for (let k = i + way; k >= 0 && k < all.length; k += way) {
    const there = all[k].getBoundingClientRect();
    if (way > 0 ? there.top < here.bottom - 2 : there.bottom > here.top + 2) continue;
    if (edge === null) edge = there.top;
    else if (Math.abs(there.top - edge) > 8) break;
    const gap = Math.abs((there.left + there.right) / 2 - centre);
    if (gap < least) { least = gap; best = all[k]; }
  }
  return best;
}

line.addEventListener("pointerover", (event) => {
  const node = event.target.closest("button");
  if (!node || event.pointerType === "touch") return;
  const p = Number(node.dataset.p), row = state.row, span = row.spanOf(p);
  hoverPosition(p, "strip");
  if (!node.classList.contains("chip")) { tip.show(node.getBoundingClientRect(), summarise(row, state.heat, bus.images, p)); return; }
  const heat = state.heat;
  tip.show(node.getBoundingClientRect(), [
    `${span.start} – ${span.stop - 1}   ${span.stop - span.start} tokens   id ${row.ids[p]}`, span.title,
    span.kind === "padding" ? WHY_PADDING : "one token per cell, row by row from the top left",
    !heat ? null : isRunUnseen(heat, span) ? shareText(heat, p) : `${formatShare(gather(heat, [span.start, span.stop]))} ${heat.readers ? `of the attention of each goes to ${whose(heat)}` : `of the attention of ${whose(heat)}`}`,
    `click ${state.open.has(Number(node.dataset.span)) ? "folds" : "opens"} the run`,
  ]);
});
line.addEventListener("pointerout", (event) => { if (event.target.closest("button")) { tip.hide(); hoverPosition(null, "strip"); } });
map.addEventListener("click", (event) => {
  const box = map.getBoundingClientRect();
  selectPosition(Math.min(state.row.n - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * state.row.n))), "map");
});
map.addEventListener("pointermove", (event) => {
  const box = map.getBoundingClientRect(), p = Math.min(state.row.n - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * state.row.n)));
  tip.show({ left: event.clientX, top: box.top, bottom: box.bottom }, summarise(state.row, state.heat, bus.images, p).slice(0, 2));
});
map.addEventListener("pointerleave", tip.hide);

// ---- finding

// A phrase may run over several tokens, so the whole row is searched; an image token is one character that nobody types.
function search() {
  for (const p of state.hits) { const node = state.nodes.get(p); if (node) node.classList.remove("vlm-hit"); }
  state.hits = [];
  const wanted = find.value.replace(/·/g, " ").replace(/⏎/g, "\n"), row = state.row;
  if (!row || !wanted.trim() && !wanted.includes("\n")) { found.textContent = ""; return; }
  const number = wanted.trim().match(/^#(\d+)$/);
  if (number) { if (Number(number[1]) < row.n) state.hits = [Number(number[1])]; }
  else {
    let text = "";
    const owner = [];
    for (let p = 0; p < row.n; p++) {
      const part = row.spanOf(p).kind === "image" ? "\u0000" : row.text(p).toLowerCase();
      for (let k = 0; k < part.length; k++) owner.push(p);
      text += part;
    }
    const needle = wanted.toLowerCase();
    for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + 1)) {
      // A word with the space before it is one token: report the token that holds the first letter.
      const p = owner[at];
      if (state.hits[state.hits.length - 1] !== p) state.hits.push(p);
    }
  }
  for (const p of state.hits) { const node = state.nodes.get(p); if (node) node.classList.add("vlm-hit"); }
  found.textContent = state.hits.length ? `${state.hits.length} found` : "not in this row";
}
find.addEventListener("input", search);
find.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { find.value = ""; search(); if (entry) entry.focus({ preventScroll: true }); return; }
  if (event.key !== "Enter" || !state.row) return;
  event.preventDefault();
  search();
  const hits = state.hits, from = bus.position === null ? -1 : bus.position;
  if (!hits.length) return;
  const p = event.shiftKey ? [...hits].reverse().find((h) => h < from) ?? hits[hits.length - 1] : hits.find((h) => h > from) ?? hits[0];
  selectPosition(p, "find");
  found.textContent = `${hits.indexOf(p) + 1} of ${hits.length}`;
});
function slash(event) {
  if (!element.isConnected) { document.removeEventListener("keydown", slash); return; }
  if (event.key !== "/" || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !state.row) return;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && !/^(radio|checkbox|range|button)$/.test(event.target.type) || event.target.isContentEditable) return;
  event.preventDefault();
  find.focus();
  find.select();
}
document.addEventListener("keydown", slash);

// ---- what comes in

const ask = settle((token) => trigger("select", token));
listen("vlm:select", ({ position, origin }) => {
  const row = state.row;
  ask.drop();
  if (!row || (position !== null && position >= row.n)) return;
  if (position !== null && origin !== "server") {
    const index = row.span[position];
    // What was asked for by name is shown even inside a run; a cell on the image lights its folded run.
    if (origin === "find" && fold(row.spans[index]) && !state.open.has(index)) { state.open.add(index); draw(); }
    const stretch = bus.stretch;
    ask({ ...(stretch ? { position: stretch[1], first: stretch[0] } : { position }), maps: !!bus.inSight.maps });
    if (origin !== "strip") spoken.textContent = `selected ${position}, ${row.spanOf(position).title}`;
  }
  const node = mark();
  if (origin !== "server") drawMap();
  if (node && origin !== "strip") reveal(node);
});
listen("vlm:hover", ({ position, origin }) => {
  line.querySelectorAll(".vlm-lit").forEach((node) => node.classList.remove("vlm-lit"));
  if (position === null || !state.row || position >= state.row.n) return;
  if (origin !== "strip") state.nodes.get(position).classList.add("vlm-lit");
  for (const kin of kinOf(position)) kin.classList.add("vlm-lit");
});
// Another tab lays the strip out anew.
new ResizeObserver(() => { drawMap(); const node = state.nodes.get(bus.position); if (node && line.clientWidth) reveal(node); }).observe(map);
new MutationObserver(drawMap).observe(document.body, { attributes: true, attributeFilter: ["class"] });

let key, heatText;
function take() {
  const data = decode(props.data), began = performance.now();
  if (!data) { state.row = null; key = undefined; }
  else if (!state.row || data.key !== key || data.n !== state.row.n) {
    key = data.key;
    state.row = readRow(data);
    state.open.clear();
    state.hits = [];
    find.value = found.textContent = "";
    unfold.textContent = "unfold all";
    line.scrollTop = 0;
    entry = null;
  } else state.row = readRow(data);
  const fresh = bus.row === null || !state.row || bus.row.key !== state.row.key;
  bus.row = state.row;
  takeHeat(fresh);
  draw();
  // Drawing the map has made the browser lay the strip out, so this is the time until it can be painted.
  performance.measure("vlm:strip", { start: began });
  tellData();
  if (fresh) selectPosition(bus.position, "server");
}
function takeHeat(fresh) {
  heatText = props.heat;
  state.heat = readHeat(heatText);
  if (state.heat && state.row && state.heat.values.length !== state.row.n) state.heat = null;
  bus.heat = state.heat;
  // Only a new row moves the selection: heat that comes late must not take back what has been picked meanwhile.
  if (fresh) bus.position = state.heat ? state.heat.selected : null;
}
const [DATA, HEAT] = Object.keys({ data: 0, heat: 0 });
watch(DATA, take);
// Heat that came together with the row has been taken with it.
watch(HEAT, () => { if (props.heat === heatText) return; takeHeat(false); if (state.row) paintAll(); tellData(); });
take();
