// The readout: everything that is known of the selected token. A click copies a value.
let own = { row: null, heat: null };
const ABOUT = "Id, label and mask are those of the row that the model read; loss is −ln of the probability that one pass over the finished row gives this token after all before it. A low loss says that the token was expected here, not why.";
const body = el("div", { class: "vlm-readout-body" });
const said = el("div", { class: "vlm-said", role: "status" });
root.append(el("div", { class: "vlm-head" }, el("h3", {}, "Selected token"), info("Selected token", ABOUT), said), body);
let quiet = null;

function copyable(value, label) {
  return el("button", {
    type: "button", class: "vlm-copy", "aria-label": `${label} ${value}, copy`, title: "click copies",
    onclick: () => {
      const done = (text) => { said.textContent = text; clearTimeout(quiet); quiet = setTimeout(() => { said.textContent = ""; }, 1600); };
      // No clipboard on plain http pages other than localhost.
      (navigator.clipboard ? navigator.clipboard.writeText(String(value)) : Promise.reject()).then(() => done(`copied ${value}`), () => done("this browser doesn't let a page copy"));
    },
  }, String(value));
}
const line = (name, gloss, ...values) => [el("dt", { title: gloss }, name), el("dd", {}, ...values)];
const note = (text) => el("span", { class: "vlm-note" }, ` ${text}`);
const piece = (row, p, css) => {
  const image = row.spanOf(p).kind === "image";
  return el("span", { class: `vlm-piece ${css}` }, image ? "image token" : visibleText(row.text(p)));
};

function draw() {
  const row = own.row || bus.row, heat = own.heat || bus.heat, images = bus.images, p = bus.position;
  if (!row || p === null || p < 0 || p >= row.n) {
    body.replaceChildren(el("p", { class: "vlm-empty" }, row ? "Select a token in the strip or a cell on an image. What the model was given there, what it had to predict and how much attention it got appears here." : "Once something is asked, this names whatever you select: its id, its pixels, its label, its loss."));
    return;
  }
  const span = row.spanOf(p), cell = findCell(images, p), next = p + 1 < row.n ? p + 1 : null, loss = row.loss[p];
  const parts = [];
  // The shift first: what is read here, and what must come out of it.
  const shift = el("div", { class: "vlm-shift" },
    el("div", {}, el("div", { class: "vlm-cap" }, `at ${p} it reads`), piece(row, p, "")),
    el("div", { class: "vlm-arrow", "aria-hidden": "true" }, "→"));
  if (next === null) shift.append(el("div", {}, el("div", { class: "vlm-cap" }, "and says next"), el("span", { class: "vlm-note" }, "nothing, the row ends")));
  else shift.append(el("div", {}, el("div", { class: "vlm-cap" }, row.trained[next] ? `and learns to say next, at ${next}` : `then comes, at ${next} (not learned)`), piece(row, next, row.trained[next] ? "vlm-goal" : "vlm-hollow")));
  parts.push(shift);
  const list = el("dl", {});
  const add = (...nodes) => list.append(...nodes);
  add(...line("position", "counted from 0, padding included", copyable(p, "position"), note(`of ${grouped(row.n)}`)));
  add(...line("id", "entry of the vocabulary", copyable(row.ids[p], "id")));
  add(...line("text", "⏎ is a newline, · a space", span.kind === "image" ? note("replaced by the image's embedding") : copyable(visibleText(row.text(p)), "text")));
  const kind = el("span", {}, span.title);
  if (span.image !== null) kind.prepend(badge(span.image), " ");
  add(...line("is", null, kind));
  if (cell) {
    add(...line("cell", "of the tile's image tokens, counted from 1", copyable(`tile ${cell.tile.name}, row ${cell.row + 1}, column ${cell.col + 1}`, "cell")));
    add(...line("pixels", "of the image as it was uploaded", copyable(boxText(cell.box), "pixels")));
  }
  add(...line("label", "what the loss compares this position's id with; −100 is ignored", copyable(row.trained[p] ? row.ids[p] : -100, "label"), note(row.trained[p] ? `trained on, predicted at ${p - 1}` : "ignored by the loss")));
  add(...line("mask", "attention mask", copyable(row.masked[p] ? 0 : 1, "attention mask"), note(row.masked[p] ? "no token attends to it" : "attended to")));
  if (!Number.isNaN(loss)) add(...line("loss", "−ln p of this token, given all before it", copyable(loss.toFixed(3), "loss"), note(`nats, p = ${Math.exp(-loss).toPrecision(3)}`)));
  if (heat && heat.values.length === row.n) {
    const shares = sharesByImage(row, heat);
    add(...line("attention", heat.label, isUnseen(heat, p) ? note(`none: ${shareText(heat, p)}`) : copyable(formatShare(heat.values[p]), "attention"), isUnseen(heat, p) ? null : note(heat.readers ? `of its own goes to ${whose(heat)}, ${formatPercent(heat.values[p])}` : `of the attention of ${whose(heat)}, ${formatPercent(heat.values[p])}`)));
    parts.push(list);
    if (shares.size) {
      let total = 0;
      const bars = el("div", { class: "vlm-shares" });
      const top = Math.max(...shares.values(), 1e-9);
      for (const [image, share] of shares) {
        total += share;
        const fill = el("span", { class: "vlm-fill" + (image >= IMAGE_COLOURS.length ? " vlm-again" : "") });
        fill.style.cssText = `width:${(100 * share) / Math.max(top, 0.0001)}%;--image:${imageColour(image)}`;
        bars.append(badge(image), el("span", { class: "vlm-track" }, fill), copyable(formatShare(share), `image ${image + 1}`));
      }
      parts.push(el("div", { class: "vlm-cap" }, `attention of ${whoseRow(heat)}; ${heat.label}` + (heat.readers ? ": mean over each image's tokens" : `: ${formatPercent(total)} goes to images, ${formatPercent(Math.max(0, 1 - total))} to text and markers`)), bars);
    }
  } else parts.push(list);
  body.replaceChildren(...parts);
}
function take() {
  const data = decode(props.data);
  own = { row: data && readRow(data), heat: readHeat(props.heat) };
  draw();
}
listen("vlm:select", draw);
listen("vlm:data", draw);
watch(Object.keys({ data: 0, heat: 0 }), take);
take();
