// Keys and clicks of the whole page. A asks, Escape closes a note or clears the selection; a click on a number copies it.
// And the height of the prompt's column.
() => {
  const typing = (node) => node.isContentEditable || /^(TEXTAREA|SELECT)$/.test(node.tagName) || (node.tagName === "INPUT" && !/^(radio|checkbox|range|button)$/.test(node.type));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "a" || event.repeat || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const ask = document.querySelector("#ask");
    if (ask) { event.preventDefault(); ask.click(); }
  });
  // Notes lie over what is below them, so one that isn't looked at any more is closed.
  const notes = () => document.querySelectorAll("details.vi-info[open]");
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    const open = [...notes()];
    for (const note of open) { if (note.contains(event.target)) note.querySelector("summary").focus(); note.open = false; }
    if (open.length || typing(event.target) || !window.vlmBus || window.vlmBus.position === null) return;
    window.vlmBus.position = null;
    document.dispatchEvent(new CustomEvent("vlm:select", { detail: { position: null, origin: "page" } }));
  });
  document.addEventListener("click", (event) => {
    for (const note of notes()) if (!note.contains(event.target)) note.open = false;
  });
  document.addEventListener("click", (event) => {
    const number = event.target.closest("[data-copy]");
    if (!number || !navigator.clipboard) return;
    navigator.clipboard.writeText(number.dataset.copy || number.textContent.trim()).then(() => {
      number.classList.add("vi-copied");
      setTimeout(() => number.classList.remove("vi-copied"), 1200);
    }, () => {});
  });
  // The column ends at the window's foot, however much of the header and the examples still stands above it.
  const fit = () => {
    const column = document.querySelector(".vi-prompt");
    if (!column) return;
    const above = `${Math.max(8, Math.ceil(column.parentElement.getBoundingClientRect().top))}px`;
    if (column.style.getPropertyValue("--vi-above") !== above) column.style.setProperty("--vi-above", above);
  };
  new ResizeObserver(fit).observe(document.body);
  addEventListener("resize", fit);
  addEventListener("scroll", fit, { passive: true });
}
