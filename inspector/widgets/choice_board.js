// Buttons that stay pressed: what is on is told to Python as a list. The buttons themselves come as HTML.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-thing]");
  if (!button || !element.contains(button)) return;
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "true" ? "false" : "true");
  const things = [...element.querySelectorAll('[data-thing][aria-pressed="true"]')].map((one) => one.dataset.thing);
  trigger("choose", { things });
});
