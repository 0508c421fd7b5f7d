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
  // A list of contents has one item open. What was pressed stays where it is when one above it closes.
  const fold = (item, open) => {
    item.dataset.fold = open ? "open" : "closed";
    item.querySelector(".wi-fold").setAttribute("aria-expanded", String(open));
  };
  document.addEventListener("click", (event) => {
    const title = event.target.closest(".wi-fold"), item = event.target.closest(".wi-item");
    if (!item || !(title || event.target.closest(".wi-item > button"))) return;
    const open = !title || title.getAttribute("aria-expanded") !== "true", before = item.getBoundingClientRect().top;
    for (const other of document.querySelectorAll(".wi-item")) if (other !== item) fold(other, false);
    fold(item, open);
    scrollBy(0, item.getBoundingClientRect().top - before);
  });
  // What is drawn belongs to the prompt that was asked. From the first edit on it steps back and says so, and when the
  // edit is undone it comes forward again. What an example brings is asked as it comes.
  const typed = (selector) => [...document.querySelectorAll(selector)].map((one) => (one.type === "radio" || one.type === "checkbox" ? one.checked : one.value));
  const written = () => JSON.stringify([
    [...document.querySelectorAll("#plans li")].map((row) => row.querySelector("b").textContent + row.querySelector("img").src),
    typed(".vi-prompt [id^=question-] :is(textarea, input)"), typed(".vi-prompt [id^=answer-] :is(textarea, input)"),
    typed("#layout input"), typed("#document-mask input"), typed("#model input"),
  ]);
  let pressed = null, asked = null, row = null;
  const compare = () => {
    const results = document.querySelector(".vi-results");
    if (!results || asked === null) return;
    const earlier = written() !== asked;
    if (results.hasAttribute("data-earlier") !== earlier) results.toggleAttribute("data-earlier", earlier);
  };
  // What is said of one tab may lead to another.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-goto]");
    const tab = link && document.querySelector(`[role=tab][data-tab-id="${link.dataset.goto}"]`);
    if (tab) { tab.click(); tab.focus(); }
  });
  // Moments are written in the zone of whoever reads them.
  const localise = () => {
    for (const time of document.querySelectorAll("time[datetime]:not([data-local])")) {
      time.dataset.local = "yes";
      time.textContent = new Date(time.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    }
  };
  new MutationObserver(localise).observe(document.body, { childList: true, subtree: true });
  let due = 0;
  const later = () => { cancelAnimationFrame(due); due = requestAnimationFrame(compare); };
  document.addEventListener("vlm:data", () => {
    const shown = window.vlmBus.row && window.vlmBus.row.key;
    if (!shown || shown === row) return;
    row = shown;
    asked = pressed || written();
    pressed = null;
    later();
  });
  for (const name of ["input", "change"]) document.addEventListener(name, later);
  new MutationObserver(later).observe(document.body, { childList: true, subtree: true });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#ask")) pressed = written();
    else if (event.target.closest(".vi-examples button") || event.target.closest(".vi-lessons")) pressed = null;
    else if (event.target.closest(".vi-again")) document.querySelector("#ask").click();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target.closest("[id^=question-]")) pressed = written();
  });
  // A lecture: large print, nothing beside the matter, and keys (a presenter's too) that go through the questions.
  const root = document.documentElement, lecturing = () => root.classList.contains("vi-present");
  const present = (on) => {
    root.classList.toggle("vi-present", on);
    const button = document.querySelector(".vi-present-switch");
    if (button) button.setAttribute("aria-pressed", String(on));
    requestAnimationFrame(() => dispatchEvent(new Event("resize")));
  };
  const address = new URL(location.href);
  if (address.searchParams.has("present")) present(true);
  document.addEventListener("click", (event) => {
    if (event.target.closest(".vi-skip")) {
      event.preventDefault();
      document.querySelector(".vi-results [role=tab][aria-selected=true]").focus();
      return;
    }
    if (!event.target.closest(".vi-present-switch")) return;
    present(!lecturing());
    const now = new URL(location.href);
    if (lecturing()) now.searchParams.set("present", ""); else now.searchParams.delete("present");
    history.replaceState(history.state, "", now);
  });
  const STEPS = { ArrowRight: "#lesson-next", PageDown: "#lesson-next", ArrowLeft: "#lesson-back", PageUp: "#lesson-back" };
  document.addEventListener("keydown", (event) => {
    const button = lecturing() && STEPS[event.key];
    if (!button || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || typing(event.target)) return;
    // Where arrows move something already they go on doing so.
    if (event.key.startsWith("Arrow") && event.target.closest("#strip, #viewer, #head-board, [role=tablist], [role=radiogroup], input, canvas")) return;
    event.preventDefault();
    document.querySelector(button).click();
  });
  // On a phone what changes is below what was touched, so the page goes there.
  const narrow = matchMedia("(max-width: 899px)"), calm = matchMedia("(prefers-reduced-motion: reduce)");
  const goTo = (selector, block) => {
    const goal = narrow.matches && document.querySelector(selector);
    if (goal && goal.offsetParent) goal.scrollIntoView({ block, behavior: calm.matches ? "auto" : "smooth" });
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest(".vi-why")) document.querySelector('.vi-results [data-tab-id="Which image?"]').click();
    else if (event.target.closest("#ask, .vi-examples-line button, .vi-again")) goTo(".vi-answer-panel", "start");
    else if (event.target.closest(".vi-results > .tabs [role=tab]")) setTimeout(goTo, 150, ".vi-results > .tabs > .tabitem, .vi-results > #viewer", "nearest");
  });
  document.addEventListener("vlm:select", (event) => {
    if (event.detail.position !== null && event.detail.origin !== "server") goTo("#readout", "nearest");
  });
  // The column ends at the window's foot, however much of the header and the examples still stands above it.
  const fit = () => {
    const column = document.querySelector(".vi-prompt");
    if (!column) return;
    const above = `${Math.max(8, Math.ceil(column.parentElement.getBoundingClientRect().top))}px`;
    if (column.style.getPropertyValue("--vi-above") !== above) column.style.setProperty("--vi-above", above);
  };
  // What sticks to the window's top stands below the text of a lesson.
  const lower = () => {
    const said = document.querySelector("#lesson-text:has(.vi-lesson)");
    document.documentElement.style.setProperty("--vi-top", `${said ? said.offsetHeight : 0}px`);
  };
  new ResizeObserver(() => { fit(); lower(); }).observe(document.body);
  addEventListener("resize", fit);
  addEventListener("scroll", fit, { passive: true });
}
