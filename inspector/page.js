// Keys and clicks of the whole page. A asks; a click on a number copies it.
() => {
  const typing = (node) => node.isContentEditable || /^(TEXTAREA|SELECT)$/.test(node.tagName) || (node.tagName === "INPUT" && !/^(radio|checkbox|range|button)$/.test(node.type));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "a" || event.repeat || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const ask = document.querySelector("#ask");
    if (ask) { event.preventDefault(); ask.click(); }
  });
  document.addEventListener("click", (event) => {
    const number = event.target.closest("[data-copy]");
    if (!number || !navigator.clipboard) return;
    navigator.clipboard.writeText(number.dataset.copy || number.textContent.trim()).then(() => {
      number.classList.add("vi-copied");
      setTimeout(() => number.classList.remove("vi-copied"), 1200);
    }, () => {});
  });
}
