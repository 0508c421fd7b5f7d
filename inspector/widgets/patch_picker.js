// Pictures with a grid of patches each, that come as HTML (.cl-pick): a click or the arrow keys choose a patch, and
// Python is told which.
let focused = null, timer = null;
const gridOf = (event) => {
  const grid = event.target.closest && event.target.closest(".cl-pick");
  return grid && element.contains(grid) ? grid : null;
};
function choose(grid, row, col, wait) {
  const { rows, cols, image, start } = Object.fromEntries(Object.entries(grid.dataset).map(([name, text]) => [name, Number(text)]));
  row = Math.min(rows - 1, Math.max(0, row));
  col = Math.min(cols - 1, Math.max(0, col));
  for (const other of element.querySelectorAll(".cl-chosen")) other.classList.remove("cl-chosen");
  grid.classList.add("cl-chosen");
  Object.assign(grid.dataset, { row, col });
  grid.style.setProperty("--row", row);
  grid.style.setProperty("--col", col);
  clearTimeout(timer);
  // Whoever holds an arrow key wants where it ends.
  timer = setTimeout(() => trigger("pick", { image, patch: start + row * cols + col }), wait);
}
element.addEventListener("click", (event) => {
  const grid = gridOf(event);
  if (!grid) return;
  const box = grid.getBoundingClientRect(), { rows, cols } = grid.dataset;
  grid.focus({ preventScroll: true });
  choose(grid, Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * cols), 0);
});
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] };
element.addEventListener("keydown", (event) => {
  const grid = gridOf(event), step = STEPS[event.key];
  if (!grid || !step) return;
  event.preventDefault();
  choose(grid, Number(grid.dataset.row) + step[0], Number(grid.dataset.col) + step[1], 120);
});
// A new drawing has no focus; who moves with the keys goes on from where they were.
element.addEventListener("focusin", (event) => { const grid = gridOf(event); focused = grid ? [grid.dataset.image, grid.dataset.start] : null; });
element.addEventListener("focusout", (event) => { if (event.relatedTarget) focused = null; });
watch(["value"], () => {
  if (!focused || element.contains(document.activeElement)) return;
  const grid = [...element.querySelectorAll(".cl-pick")].find((one) => one.dataset.image === focused[0] && one.dataset.start === focused[1]);
  if (grid) grid.focus({ preventScroll: true });
});
