// Buttons that stay pressed: what is on is told to Python as a list. The buttons themselves come as HTML. A click or a
// key switches one; dragging a mouse or pen across several switches them all the way the first one goes.
const buttonOf = (event) => {
  const button = event.target.closest && event.target.closest("[data-thing]");
  return button && element.contains(button) ? button : null;
};
const isOn = (button) => button.getAttribute("aria-pressed") === "true";
const turn = (button, on) => button.setAttribute("aria-pressed", String(on));
const tell = () => {
  const things = [...element.querySelectorAll('[data-thing][aria-pressed="true"]')].map((one) => one.dataset.thing);
  trigger("choose", { things });
};
let sweep = null;
let swept = false;
element.addEventListener("pointerdown", (event) => {
  const button = buttonOf(event);
  swept = false;
  // A finger that moves scrolls the page.
  if (button && event.button === 0 && event.pointerType !== "touch") sweep = { from: button, on: !isOn(button), moved: false };
});
element.addEventListener("pointerover", (event) => {
  const button = sweep && buttonOf(event);
  if (!button || (button === sweep.from && !sweep.moved)) return;
  sweep.moved = true;
  turn(sweep.from, sweep.on);
  turn(button, sweep.on);
});
document.addEventListener("pointerup", () => {
  swept = sweep !== null && sweep.moved;
  sweep = null;
  if (!swept) return;
  tell();
  setTimeout(() => { swept = false; }, 0);
});
document.addEventListener("pointercancel", () => { sweep = null; });
element.addEventListener("dragstart", (event) => event.preventDefault());
element.addEventListener("click", (event) => {
  const scissors = event.target.closest("[data-snip]");
  if (scissors) trigger("snip", { thing: scissors.dataset.snip });
  const button = buttonOf(event);
  // After a drag that ended where it began there is a click too.
  if (!button || swept) return;
  turn(button, !isOn(button));
  tell();
});
// Which whole things are cut is the server's to say: a cut may be refused, or taken back elsewhere.
const mark = () => {
  const result = beside.querySelector("[data-cuts]"), lines = result ? JSON.parse(result.dataset.cuts) : [];
  for (const one of element.querySelectorAll("[data-snip]")) turn(one, lines.includes(`${one.dataset.snip} -> later`));
};
const beside = element.closest(".row") || element;
new MutationObserver(mark).observe(beside, { childList: true, subtree: true });
