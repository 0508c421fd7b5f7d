// The list of images under the gallery: an image is dragged to its place by its row, or moved by arrow keys on its grip.
// The rows come from Python as HTML and are drawn again after each move, so listeners sit on the element around them.
const rowOf = (node) => node.closest && node.closest("li[data-index]");
const rows = () => [...element.querySelectorAll("li[data-index]")];
let dragged = null, moved = null;

function move(start, stop) {
  if (start === stop || stop < 0 || stop >= rows().length) return;
  moved = stop;
  trigger("move", { start, stop });
}
function hint(row, after) {
  rows().forEach((other) => other.classList.remove("vi-before", "vi-after"));
  if (row) row.classList.add(after ? "vi-after" : "vi-before");
}
element.addEventListener("dragstart", (event) => {
  const row = rowOf(event.target);
  if (!row) return;
  dragged = Number(row.dataset.index);
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", row.textContent.trim());
});
element.addEventListener("dragover", (event) => {
  const row = rowOf(event.target);
  if (dragged === null || !row) return;
  event.preventDefault();
  hint(row, Number(row.dataset.index) > dragged);
});
element.addEventListener("drop", (event) => {
  const row = rowOf(event.target);
  if (dragged === null || !row) return;
  event.preventDefault();
  const start = dragged;
  dragged = null;
  hint(null);
  move(start, Number(row.dataset.index));
  moved = null;
});
element.addEventListener("dragend", () => { dragged = null; hint(null); });
element.addEventListener("keydown", (event) => {
  const way = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key], row = rowOf(event.target);
  if (!way || !row || !event.target.closest(".vi-grip") || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const start = Number(row.dataset.index);
  move(start, start + way);
});
// The focus follows the image that was moved by key.
watch(Object.keys({ value: 0 }), () => {
  if (moved === null) return;
  const grip = element.querySelector(`li[data-index="${moved}"] .vi-grip`);
  moved = null;
  if (grip) grip.focus();
});
