// The loss chart: a canvas that is redrawn from points kept here. Python only ever sends what is new.
if (!document.getElementById("vlm-chart-style")) {
  const sheet = document.createElement("style");
  sheet.id = "vlm-chart-style";
  sheet.textContent = OWN_STYLE;
  document.head.append(sheet);
}
const blank = () => ({ key: null, total: 0, link: null, stages: [], curves: [] });
let shown = blank(), what = 1, logarithmic = false, cursor = null, last = null;
const canvas = el("canvas", { "aria-hidden": "true" });
const frame = el("div", { class: "vlm-chart", tabindex: "0", role: "img", "aria-label": "curves of the run; left and right arrows read it step by step" }, canvas);
const legend = el("div", { class: "vlm-curves" }), reading = el("div", { class: "vlm-read", role: "status" });
const copy = el("button", { type: "button", class: "vlm-plain", title: "copies the address of this run", onclick: copyLink }, "Copy link");
const empty = el("p", { class: "vlm-empty" }, "Curves appear with the first step: loss on what is trained on and on held-out data, learning rate, gradient norm.");
const view = switcher("what is drawn", "curve", [["1", "loss", "nats per trained token"], ["2", "learning rate", "the highest of all parts"], ["3", "gradient norm", "before clipping"]], "1", (value) => { what = Number(value); draw(); });
const scale = el("input", { type: "checkbox", onchange: () => { logarithmic = scale.checked; draw(); } });
const head = el("div", { class: "vlm-head" }, el("h3", {}, "Curves"), el("div", { class: "vlm-tools" }, view.node, el("span", { class: "vlm-checks" }, el("label", {}, scale, "log scale")), copy));
const body = el("div", {}, head, frame, legend, reading);
body.hidden = true;
root.append(body, empty);

async function copyLink() {
  const url = window.location.origin + window.location.pathname + (shown.link || "");
  try { await navigator.clipboard.writeText(url); reading.textContent = "link copied"; } catch { reading.textContent = url; }
}
function take(text) {
  // The same points must not be appended twice.
  if (!text || text === last) return;
  last = text;
  const message = decode(text);
  // What came before this chart was on the page went by unseen: the whole is asked for.
  if (!message.fresh && message.key !== shown.key) { trigger("missed", {}); return; }
  if (message.fresh) { shown = blank(); cursor = null; }
  shown.key = message.key;
  if (message.runs) {
    shown.curves = message.runs.map((run, i) => ({ name: run.name, colour: IMAGE_COLOURS[i % IMAGE_COLOURS.length], train: run.train, held: run.held }));
    shown.total = Math.max(1, ...shown.curves.flatMap((curve) => curve.train.map((p) => p[0])));
  } else {
    if (!shown.curves.length) shown.curves = [{ name: "", colour: IMAGE_COLOURS[0], heldColour: IMAGE_COLOURS[1], train: [], held: [] }];
    const curve = shown.curves[0];
    for (const point of message.train || []) curve.train.push(point);
    for (const point of message.held || []) curve.held.push(point);
    Object.assign(shown, { total: message.total || shown.total, stages: message.stages || [], link: message.link });
  }
  const any = shown.curves.some((curve) => curve.train.length || curve.held.length);
  body.hidden = !any; empty.hidden = any; copy.hidden = !shown.link;
  if (any) draw();
}
// Exponential mean, its start corrected, so that the first steps don't hang on the very first. The longer the run, the more it remembers: over few steps a long memory would only lag behind.
function smooth(points) {
  let mean = 0, weight = 0;
  const kept = points.filter((p) => p[what] !== null && p[what] !== undefined), old = Math.min(0.9, 1 - 2 / (1 + Math.sqrt(Math.max(1, kept.length))));
  return kept.map((p) => { mean = old * mean + (1 - old) * p[what]; weight = old * weight + 1 - old; return [p[0], mean / weight]; });
}
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough || 1)), size = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough) || power;
  const found = [];
  for (let v = Math.ceil(low / size) * size; v <= high + size * 1e-6; v += size) found.push(v);
  return found;
}
const plain = (v) => (v === 0 ? "0" : Math.abs(v) >= 1000 || Math.abs(v) < 0.001 ? v.toExponential(1) : String(Number(v.toPrecision(3))));
function draw() {
  if (body.hidden) return;
  const box = frame.getBoundingClientRect(), ratio = window.devicePixelRatio || 1, width = box.width, height = box.height;
  if (width < 10) return;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d"), style = getComputedStyle(root), ink = style.getPropertyValue("--ink"), sub = style.getPropertyValue("--sub"), rule = style.getPropertyValue("--rule");
  pen.scale(ratio, ratio); pen.clearRect(0, 0, width, height); pen.font = "12px system-ui, sans-serif";
  const left = 56, right = width - 12, top = 12, bottom = height - 34;
  const values = shown.curves.flatMap((c) => [...c.train.map((p) => p[what]), ...(what === 1 ? c.held.map((p) => p[1]) : [])]).filter((v) => v !== null && v !== undefined && (!logarithmic || v > 0));
  if (!values.length) return;
  const map = (v) => (logarithmic ? Math.log10(Math.max(v, 1e-9)) : v);
  // A spike must not flatten the rest: the scale ends above 99 % of each curve's points, but no loss is cut off where it begins.
  const top99 = (points) => { const all = points.filter((v) => v !== null && v !== undefined).sort((a, b) => a - b); return all[Math.ceil((what === 2 ? 1 : 0.99) * (all.length - 1))]; };
  const tops = shown.curves.flatMap((c) => [top99(c.train.map((p) => p[what])), ...(what === 1 ? [c.train[0]?.[1], top99(c.held.map((p) => p[1])), c.held[0]?.[1]] : [])]).filter((v) => v !== null && v !== undefined);
  let high = map(Math.max(Math.max(...tops) * 1.05, 1e-9)), low = logarithmic ? map(Math.min(...values)) : 0;
  if (high <= low) high = low + 1e-6;
  const first = 0, span = Math.max(1, shown.total), x = (s) => left + ((s - first) / span) * (right - left), y = (v) => Math.max(top, bottom - ((map(v) - low) / (high - low)) * (bottom - top));
  pen.lineWidth = 1; pen.strokeStyle = rule; pen.fillStyle = sub; pen.textAlign = "right"; pen.textBaseline = "middle";
  for (const t of ticks(low, high, 4)) {
    const at = bottom - ((t - low) / (high - low)) * (bottom - top);
    pen.beginPath(); pen.moveTo(left, at); pen.lineTo(right, at); pen.stroke();
    pen.fillText(plain(logarithmic ? 10 ** t : t), left - 6, at);
  }
  pen.textAlign = "center"; pen.textBaseline = "top";
  for (const t of ticks(0, span, Math.max(2, Math.floor(width / 130)))) pen.fillText(String(Math.round(t)), x(t), bottom + 4);
  pen.textAlign = "left"; pen.fillText("step", left, height - 15);
  for (const [name, offset] of shown.stages.length > 1 ? shown.stages : []) {
    pen.setLineDash([4, 4]); pen.strokeStyle = sub; pen.beginPath(); pen.moveTo(x(offset), top); pen.lineTo(x(offset), bottom); pen.stroke(); pen.setLineDash([]);
    pen.fillText(name, x(offset) + 4, top);
  }
  const line = (points, colour, thick, alpha, dash) => {
    pen.globalAlpha = alpha; pen.strokeStyle = colour; pen.lineWidth = thick; pen.setLineDash(dash || []); pen.beginPath();
    let open = false;
    if (points.length === 1 && points[0][1] !== null && points[0][1] !== undefined) { pen.arc(x(points[0][0]), y(points[0][1]), 3, 0, 7); pen.fillStyle = colour; pen.fill(); }
    for (const [s, v] of points) { if (v === null || v === undefined) { open = false; continue; } open ? pen.lineTo(x(s), y(v)) : pen.moveTo(x(s), y(v)); open = true; }
    pen.stroke(); pen.setLineDash([]); pen.globalAlpha = 1;
  };
  for (const curve of shown.curves) {
    const raw = curve.train.map((p) => [p[0], p[what]]);
    if (what === 2) line(raw, curve.colour, 2, 1);
    else { line(raw, curve.colour, 1, shown.curves.length > 1 ? 0.25 : 0.5); line(smooth(curve.train), curve.colour, 2.5, 1); }
    if (what !== 1) continue;
    line(curve.held, curve.heldColour || curve.colour, 2, 1, [6, 4]);
    for (const [s, v] of curve.held) { pen.fillStyle = curve.heldColour || curve.colour; pen.beginPath(); pen.arc(x(s), y(v), 4, 0, 7); pen.fill(); }
  }
  if (cursor !== null) { pen.strokeStyle = ink; pen.lineWidth = 1; pen.beginPath(); pen.moveTo(x(cursor), top); pen.lineTo(x(cursor), bottom); pen.stroke(); }
  frame.stepOf = (px) => ((px - left) / (right - left)) * span;
  drawLegend();
}
function drawLegend() {
  const key = (colour, name, dashed) => { const mark = el("i", { class: dashed ? "vlm-dashed" : null }); mark.style.setProperty("--curve", colour); return el("span", {}, mark, name); };
  const keys = shown.curves.flatMap((curve) => shown.curves.length > 1 || curve.name
    ? [key(curve.colour, curve.name)]
    : what === 1 ? [key(curve.colour, "training data (thin: each step, bold: running mean)"), curve.held.length ? key(curve.heldColour, "held-out data", true) : null] : [key(curve.colour, what === 2 ? "learning rate" : "gradient norm")]);
  if (shown.curves.length > 1 && what === 1) keys.push(el("span", {}, "solid: training data · dashed: held-out data"));
  legend.replaceChildren(...keys.filter(Boolean));
}
const nearest = (points, step) => points.reduce((best, p) => (best === null || Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best), null);
function read(step) {
  const texts = [];
  for (const curve of shown.curves) {
    const point = nearest(curve.train, step), held = nearest(curve.held, step);
    if (!point) continue;
    cursor = point[0];
    const name = curve.name ? `${curve.name}: ` : "";
    texts.push(`${name}step ${point[0]}: loss ${plain(point[1] ?? NaN)}, rate ${plain(point[2] ?? NaN)}, |gradient| ${plain(point[3] ?? NaN)}` + (held ? `; held out at ${held[0]}: ${plain(held[1] ?? NaN)}` : ""));
  }
  reading.textContent = texts.join("   ");
  draw();
}
frame.addEventListener("pointermove", (event) => { if (frame.stepOf) read(frame.stepOf(event.clientX - frame.getBoundingClientRect().left)); });
frame.addEventListener("pointerleave", () => { cursor = null; reading.textContent = ""; draw(); });
frame.addEventListener("keydown", (event) => {
  const points = shown.curves.length ? shown.curves[0].train : [], move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
  if (!move || !points.length) return;
  event.preventDefault();
  const at = cursor === null ? points.length - 1 : points.indexOf(nearest(points, cursor));
  read(points[Math.min(Math.max(at + move, 0), points.length - 1)][0]);
});
new ResizeObserver(draw).observe(frame);
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: Object.keys({ class: 0 }) });
watch(Object.keys({ data: 0 }), () => take(props.data));
take(props.data);
