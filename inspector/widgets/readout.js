// The readout: everything that is known of the selected token; a click copies a value.
const root = shell();
let row = null, heat = null;
const body = el("div", {});
const said = el("div", { class: "tip", role: "status" });
root.append(el("div", { class: "head" }, el("h3", {}, "Selected token")), body, said);

function line(name, value, gloss) {
  const copy = el("button", { type: "button", class: "copy", title: "copy", onclick: () => navigator.clipboard?.writeText(String(value)).then(() => { said.textContent = `copied ${value}`; }) }, String(value));
  return el("tr", {}, el("th", { scope: "row", title: gloss || null }, name), el("td", {}, copy));
}
function draw() {
  const p = bus.position;
  if (!row || p === null || p >= row.n) {
    body.replaceChildren(el("p", { class: "empty" }, "Select a token in the strip, or a cell on an image: what is known of it appears here."));
    return;
  }
  const span = row.data.spans[row.span[p]], cell = findCell(props.cells, p), next = p + 1 < row.n ? p + 1 : null;
  const rows = [
    line("position", p), line("id", row.ids[p]), line("text", visibleText(row.text(p))), line("is", span.title),
    line("label", row.trained[p] ? row.ids[p] : -100, "−100: not trained on"),
    line("attention mask", row.masked[p] ? 0 : 1),
    line("loss", row.loss[p] === undefined ? "–" : `${row.loss[p].toFixed(3)} nats`, "−log p of this token, predicted from the position before it"),
    line("must predict", next === null ? "nothing: the last position" : row.trained[next] ? `“${visibleText(row.text(next))}” at ${next} (trained)` : `“${visibleText(row.text(next))}” at ${next}, label −100: not trained`, "the shift: the output here is compared with the token after it"),
  ];
  if (cell) rows.push(line("cell", `tile ${cell.tile.name}, row ${cell.row + 1}, column ${cell.col + 1}`), line("pixels", `x ${cell.box[0].toFixed(1)}–${cell.box[2].toFixed(1)}, y ${cell.box[1].toFixed(1)}–${cell.box[3].toFixed(1)}`, "in the original image"));
  if (heat && heat.values.length === row.n) {
    rows.push(line(`attention from ${heat.from}`, formatShare(heat.values[p]), heat.label));
    const shares = new Map();
    for (const s of row.data.spans) if (s.kind === "image") { let sum = shares.get(s.image) || 0; for (let q = s.start; q < s.stop; q++) sum += heat.values[q]; shares.set(s.image, sum); }
    let total = 0;
    for (const [image, share] of shares) { total += share; rows.push(line(`${circled(image)} share`, formatShare(share))); }
    rows.push(line("all images", formatShare(total), "of 1, the rest goes to text, markers and special tokens"));
  }
  body.replaceChildren(el("table", {}, el("tbody", {}, ...rows)));
}
function take() {
  row = props.data ? readRow(props.data) : null;
  heat = readHeat(props.heat);
  draw();
}
document.addEventListener("vlm:select", draw);
watch(["data", "heat", "cells"], take);
take();
