// The list of the prompt's images: an image is dragged to its place by its row, or moved by arrow keys on its grip.
// The rows come from Python as HTML and are drawn again after each move, so listeners sit on the element around them.
const rowOf = (node) => node.closest && node.closest("li[data-index]");
const panel = element.closest(".vi-images");
const rows = () => [...element.querySelectorAll("li[data-index]")];
let dragged = null, moved = null, removed = null;

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
// A finger can't drag as a mouse does: the grip is held and the row under the finger is the goal.
element.addEventListener("pointerdown", (event) => {
  const row = rowOf(event.target);
  if (event.pointerType === "mouse" || !row || !event.target.closest(".vi-grip")) return;
  const start = Number(row.dataset.index), under = (touch) => rowOf(document.elementFromPoint(touch.clientX, touch.clientY) || element);
  const follow = (touch) => { const goal = under(touch); if (goal) hint(goal, Number(goal.dataset.index) > start); };
  const end = (touch) => {
    element.removeEventListener("pointermove", follow);
    hint(null);
    const goal = touch.type === "pointerup" && under(touch);
    if (goal) move(start, Number(goal.dataset.index));
    moved = null;
  };
  event.target.releasePointerCapture(event.pointerId);
  element.addEventListener("pointermove", follow);
  for (const last of ["pointerup", "pointercancel"]) document.addEventListener(last, end, { once: true });
});
element.addEventListener("click", (event) => {
  const row = rowOf(event.target);
  if (!row || !event.target.closest(".vi-remove")) return;
  removed = Number(row.dataset.index);
  trigger("remove", { index: removed });
});
// The focus follows the image that was moved by key, or goes on to the one after a removed one.
watch(Object.keys({ value: 0 }), () => {
  const left = rows().length, goal = moved !== null ? `li[data-index="${moved}"] .vi-grip` : removed === null ? null : left ? `li[data-index="${Math.min(removed, left - 1)}"] .vi-remove` : null;
  if (removed !== null && !left) panel.querySelector("#add-images").focus();
  moved = removed = null;
  const button = goal && element.querySelector(goal);
  if (button) button.focus();
});

// ---- files on their way in

// Gradio turns away what is no picture or too large without a word of which and why, and a file that is dropped beside
// its field would take the page's place and everything typed with it. So files are looked at here first.
let told = false, sifted = false;
function sift(files) {
  const wrong = files.filter((file) => file.size > props.limit || !file.type.startsWith("image/"));
  if (wrong.length || told) trigger("refuse", { files: wrong.map(({ name, size }) => ({ name, size })) });
  told = wrong.length > 0;
  return files.filter((file) => !wrong.includes(file));
}
function parcel(files) {
  const made = new DataTransfer();
  for (const file of files) made.items.add(file);
  return made;
}
panel.addEventListener("change", (event) => {
  if (event.target.type !== "file" || sifted) return;
  const files = [...event.target.files], kept = sift(files);
  if (kept.length === files.length) return;
  event.target.files = parcel(kept).files;
  if (!kept.length) event.stopImmediatePropagation();
}, true);

// What is let in goes the way of the Add button, whose field exists also while the gallery is hidden.
function letIn(files) {
  const kept = sift(files), field = panel.querySelector(".vi-image-buttons input[type=file]");
  if (!kept.length) return;
  field.files = parcel(kept).files;
  sifted = true;
  field.dispatchEvent(new Event("change", { bubbles: true }));
  sifted = false;
}
// The browser fetches it and not the server, which opens nothing that it is told an address of.
function fetchImage(address) {
  const title = decodeURIComponent(new URL(address).pathname.split("/").pop() || "image").slice(0, 80);
  return fetch(address, { credentials: "omit" }).then((answer) => (answer.ok ? answer.blob() : Promise.reject())).then(
    (blob) => letIn([new File([blob], title, { type: blob.type })]),
    () => { told = true; trigger("refuse", { files: [{ name: address, size: 0, fetched: false }] }); });
}
const addressIn = (data) => { const text = (data.getData("text/uri-list") || data.getData("text/plain")).trim().split("\n")[0]; return /^https?:\/\/\S+$/i.test(text) ? text : null; };
const writes = (node) => node.isContentEditable || /^(TEXTAREA|INPUT)$/.test(node.tagName);
function paste(event) {
  if (!element.isConnected) { document.removeEventListener("paste", paste); return; }
  const files = [...event.clipboardData.files], address = files.length || writes(event.target) ? null : addressIn(event.clipboardData);
  if (!files.length && !address) return;
  event.preventDefault();
  if (files.length) letIn(files); else fetchImage(address);
}
document.addEventListener("paste", paste);

const brings = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
// Other fields for files, as for training data, take their own.
const elsewhere = (event) => { const field = event.target.closest && event.target.closest(".upload-container"); return field && !panel.contains(field); };
function over(event) {
  if (!element.isConnected) document.removeEventListener("dragover", over, true);
  else if (brings(event) && !elsewhere(event)) event.preventDefault();
}
function receive(event) {
  if (!element.isConnected) { document.removeEventListener("drop", receive, true); return; }
  if (!brings(event) || !event.dataTransfer.files.length || elsewhere(event)) return;
  event.preventDefault();
  event.stopPropagation();
  const files = [...event.dataTransfer.files];
  // An empty drop, so that the field under the pointer ends its highlight.
  event.target.dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer: new DataTransfer() }));
  letIn(files);
}
document.addEventListener("dragover", over, true);
document.addEventListener("drop", receive, true);
