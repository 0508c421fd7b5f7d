// The token strip: one button per token, long runs folded into one.
const MODES = [["kind", "kind"], ["label", "label"], ["mask", "mask"], ["loss", "loss"], ["attention", "attention"]];
const root = shell();
const state = { row: null, heat: null, mode: "kind", open: new Set(), nodes: new Map(), focus: 0, timer: null };

const tools = el("div", { class: "tools", role: "radiogroup", "aria-label": "Colour tokens by" });
const radios = MODES.map(([mode, label]) => {
  const input = el("input", { type: "radio", name: "vlm-mode", value: mode, onchange: () => setMode(mode) });
  tools.append(el("label", {}, input, label));
  return input;
});
radios[0].checked = true;
const find = el("input", { type: "search", class: "find", placeholder: "find  /", "aria-label": "Find a token by its text, Enter goes to the next" });
const unfold = el("button", { type: "button", class: "plain", onclick: toggleAll }, "unfold all");
const legend = el("div", { class: "legend" });
const line = el("div", { class: "line", role: "toolbar", "aria-label": "Tokens: arrows move, Enter opens a fold, Escape clears" });
const tip = el("div", { class: "tip", role: "status" });
root.append(el("div", { class: "head" }, el("h3", {}, "Tokens"), tools, find, unfold), legend, line, tip);

function setMode(mode) {
  state.mode = mode;
  radios.forEach((radio) => { radio.checked = radio.value === mode; });
  paintAll();
}

function isFolded(span, index) {
  return (span.kind === "image" || span.kind === "padding") && !state.open.has(index) && span.stop - span.start > 2;
}

function draw() {
  state.nodes.clear();
  line.replaceChildren();
  if (!state.row) {
    line.append(el("p", { class: "empty" }, "Ask something: every position that the model reads appears here, images as folded runs."));
    legend.replaceChildren();
    return;
  }
  const parts = document.createDocumentFragment();
  let segment = null;
  state.row.data.spans.forEach((span, index) => {
    if (segment !== null && span.segment !== segment) parts.append(el("span", { class: "break" }));
    segment = span.segment;
    if (span.kind === "image" || span.kind === "padding") parts.append(chip(span, index));
    if (!isFolded(span, index)) for (let p = span.start; p < span.stop; p++) parts.append(token(p, span));
  });
  line.append(parts);
  paintAll();
}

function chip(span, index) {
  const count = span.stop - span.start, folded = isFolded(span, index);
  const name = span.kind === "padding" ? "padding" : span.title.replace(/^image \d+ · tile /, "");
  const node = el("button", { type: "button", class: `chip k-${span.kind}`, tabindex: "-1", "aria-expanded": String(!folded), "data-span": index, "data-p": span.start,
    "aria-label": `${span.title}, ${count} tokens, positions ${span.start} to ${span.stop - 1}` },
    `${folded ? "▸" : "▾"} ${span.image !== null ? circled(span.image) + " " : ""}${name} ×${count}`);
  if (span.image !== null) { node.style.setProperty("--image", imageColour(span.image)); if (span.image > 5) node.classList.add("pattern"); }
  if (folded) for (let p = span.start; p < span.stop; p++) state.nodes.set(p, node);
  return node;
}

function token(p, span) {
  const text = span.kind === "image" ? "▪" : visibleText(state.row.text(p));
  const node = el("button", { type: "button", class: `tok k-${span.kind}`, tabindex: "-1", "data-p": p, "aria-label": `position ${p}, ${span.title}: ${span.kind === "image" ? "image token" : text}` }, text);
  if (span.image !== null) { node.style.setProperty("--image", imageColour(span.image)); if (span.image > 5) node.classList.add("pattern"); }
  if (span.kind === "separator") node.prepend("⟂ ");
  state.nodes.set(p, node);
  return node;
}

function paint(node, p, stop) {
  const { row, heat, mode } = state;
  node.style.color = "";
  node.style.removeProperty("--heat-fill");
  node.classList.remove("hot");
  node.classList.toggle("trained", mode === "label" && !!row.trained[p]);
  node.classList.toggle("ignored", mode === "label" && !row.trained[p]);
  node.classList.toggle("unseen", mode === "mask" && !!row.masked[p]);
  node.classList.toggle("seen", mode === "mask" && !row.masked[p]);
  let share = null;
  if (mode === "loss" && row.loss[p] !== undefined) share = row.loss[p] / state.maxLoss;
  if (mode === "attention" && heat) {
    // A folded run shows its largest share, so that its colour is on the same scale as a single token's.
    share = 0;
    for (let q = p; q < stop; q++) share = Math.max(share, heat.values[q] / heat.max);
  }
  if (share !== null) { node.classList.add("hot"); node.style.setProperty("--heat-fill", `rgb(${viridis(share)})`); node.style.color = onViridis(share); }
}

function paintAll() {
  if (!state.row) return;
  line.dataset.mode = state.mode;
  state.maxLoss = Math.max(1e-6, ...Object.values(state.row.loss));
  for (const [p, node] of state.nodes) {
    if (node.classList.contains("chip") && Number(node.dataset.p) !== p) continue;
    paint(node, p, node.classList.contains("chip") ? state.row.data.spans[node.dataset.span].stop : p + 1);
  }
  drawLegend();
  mark();
}

function drawLegend() {
  const has = (kind) => state.row.data.spans.some((span) => span.kind === kind);
  const swatch = (css, text) => el("span", { class: "key" }, el("i", { class: css }), text);
  const items = [];
  if (state.mode === "kind") {
    const names = { padding: "padding", separator: "separator", special: "special token", role: "chat template", region: "tile marker", image: "image tokens, in the image's colour", text: "text", answer: "answer" };
    for (const [kind, name] of Object.entries(names)) if (has(kind)) items.push(swatch("k-" + kind, name));
  } else if (state.mode === "label") items.push(swatch("trained", "trained on: the position before must predict it"), swatch("ignored", "label −100: ignored"));
  else if (state.mode === "mask") items.push(swatch("seen", "attention mask 1"), swatch("unseen", "0: nobody attends to it"));
  else if (state.mode === "loss") items.push(colourBar(state.maxLoss, "nats"), el("span", { class: "key" }, "−log p of each token, given all before it"));
  else if (state.heat) items.push(colourBar(state.heat.max, "of 1"), el("span", { class: "key" }, `attention from position ${state.heat.from}, ${state.heat.label}; folded runs show their largest`));
  if (has("separator")) items.push(el("span", { class: "why" }, "⟂ a masked <|im_end|> ends each packed sample; nothing else keeps samples apart."));
  items.push(el("details", { class: "why" }, el("summary", {}, "why does a batch begin with <|im_end|>?"),
    "It is padding: nanoVLM pads rows on the left and its padding token is <|im_end|>, with attention mask 0 and label −100. One row alone, as here, needs none; the Batch tab shows it as soon as two samples of different length lie side by side."));
  legend.replaceChildren(...items);
}

function mark() {
  const p = bus.position;
  line.querySelectorAll(".selected").forEach((node) => { node.classList.remove("selected"); node.removeAttribute("aria-pressed"); });
  const node = p === null ? null : state.nodes.get(p);
  line.querySelectorAll('[tabindex="0"]').forEach((other) => { other.tabIndex = -1; });
  const entry = node || line.querySelector("button");
  if (entry) entry.tabIndex = 0;
  if (node) { node.classList.add("selected"); node.setAttribute("aria-pressed", "true"); }
  return node;
}

function choose(p, focus) {
  selectPosition(p, "strip");
  const node = state.nodes.get(p);
  if (focus && node) node.focus();
}

function describe(node) {
  const row = state.row, p = Number(node.dataset.p), span = row.data.spans[row.span[p]];
  if (node.classList.contains("chip")) {
    let share = "";
    if (state.heat) { let sum = 0; for (let q = span.start; q < span.stop; q++) sum += state.heat.values[q]; share = ` · ${formatShare(sum)} of the attention`; }
    const why = span.kind === "padding" ? " · padding on the left with <|im_end|>, nanoVLM's padding token" : "";
    return `${span.title} · positions ${span.start}–${span.stop - 1}${share}${why}`;
  }
  const label = row.trained[p] ? row.ids[p] : -100, loss = row.loss[p] === undefined ? "–" : row.loss[p].toFixed(3) + " nats";
  return `${p} · id ${row.ids[p]} · “${visibleText(row.text(p))}” · ${span.title} · label ${label} · mask ${row.masked[p] ? 0 : 1} · loss ${loss}` + (state.heat ? ` · attention ${formatShare(state.heat.values[p])}` : "");
}

line.addEventListener("mouseover", (event) => { const node = event.target.closest("button"); if (node) tip.textContent = describe(node); });
line.addEventListener("focusin", (event) => { const node = event.target.closest("button"); if (node) tip.textContent = describe(node); });
line.addEventListener("click", (event) => {
  const node = event.target.closest("button");
  if (!node) return;
  if (node.classList.contains("chip")) toggle(Number(node.dataset.span), true);
  else choose(Number(node.dataset.p), true);
});
line.addEventListener("keydown", (event) => {
  const node = event.target.closest("button");
  if (!node) return;
  const all = [...line.querySelectorAll("button")], i = all.indexOf(node);
  let target = null;
  if (event.key === "ArrowRight") target = all[i + 1];
  else if (event.key === "ArrowLeft") target = all[i - 1];
  else if (event.key === "Home") target = all[0];
  else if (event.key === "End") target = all[all.length - 1];
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const down = event.key === "ArrowDown", here = node.getBoundingClientRect();
    const rows = all.filter((other) => { const r = other.getBoundingClientRect(); return down ? r.top > here.bottom - 4 : r.bottom < here.top + 4; });
    const edge = down ? Math.min(...rows.map((o) => o.getBoundingClientRect().top)) : Math.max(...rows.map((o) => o.getBoundingClientRect().top));
    target = rows.filter((o) => Math.abs(o.getBoundingClientRect().top - edge) < 6).sort((a, b) => Math.abs(a.getBoundingClientRect().left - here.left) - Math.abs(b.getBoundingClientRect().left - here.left))[0];
  } else if (event.key === "Escape") selectPosition(null, "strip");
  else return;
  event.preventDefault();
  if (!target) return;
  if (target.classList.contains("chip")) { node.tabIndex = -1; target.tabIndex = 0; target.focus(); } else choose(Number(target.dataset.p), true);
});

function toggle(index, focus) {
  if (state.open.has(index)) state.open.delete(index); else state.open.add(index);
  draw();
  if (focus) { const node = line.querySelector(`.chip[data-span="${index}"]`); if (node) { node.tabIndex = 0; node.focus(); } }
}
function toggleAll() {
  const folds = (state.row ? state.row.data.spans : []).map((span, i) => [span, i]).filter(([span]) => span.kind === "image" || span.kind === "padding").map(([, i]) => i);
  const open = folds.some((i) => !state.open.has(i));
  state.open = new Set(open ? folds : []);
  unfold.textContent = open ? "fold all" : "unfold all";
  draw();
}
find.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !state.row || !find.value) return;
  event.preventDefault();
  for (let step = 1; step <= state.row.n; step++) {
    const p = ((bus.position === null ? -1 : bus.position) + step) % state.row.n;
    if (state.row.text(p).toLowerCase().includes(find.value.toLowerCase())) { selectPosition(p, "find"); return; }
  }
  tip.textContent = `No token contains “${find.value}”.`;
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.target.isContentEditable || !element.isConnected) return;
  if (event.key === "/") { event.preventDefault(); find.focus(); }
  else if (event.key === "a") document.getElementById("ask")?.click();
});
document.addEventListener("vlm:select", (event) => {
  if (!state.row) return;
  const p = event.detail.position;
  if (p !== null && event.detail.origin !== "data") {
    const index = state.row.span[p];
    if (event.detail.origin === "find" && isFolded(state.row.data.spans[index], index)) { state.open.add(index); draw(); }
    clearTimeout(state.timer);
    // Moving along with the arrows asks for the last token alone.
    state.timer = setTimeout(() => trigger("select", { position: p }), 120);
  }
  const node = mark();
  if (node && event.detail.origin !== "strip") node.scrollIntoView({ block: "nearest" });
});

function takeData() {
  state.row = props.data ? readRow(props.data) : null;
  state.open.clear();
  unfold.textContent = "unfold all";
  takeHeat();
  draw();
}
function takeHeat() {
  state.heat = readHeat(props.heat);
  if (state.heat && state.row && state.heat.values.length !== state.row.n) state.heat = null;
  if (state.heat) { bus.position = state.heat.from; document.dispatchEvent(new CustomEvent("vlm:select", { detail: { position: state.heat.from, origin: "data" } })); }
}
watch("data", takeData);
watch("heat", () => { takeHeat(); paintAll(); });
takeData();
