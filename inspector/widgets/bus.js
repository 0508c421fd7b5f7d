// Shared by all widgets: what is selected, and how they hear of it and of new data.
// Every widget gets its own copy of these functions; what is selected lives once, on the window.
// Property names are never written in quotes here: Gradio takes a quoted word for the name of an event.
const bus = (window.vlmBus = window.vlmBus || { position: null, row: null, heat: null, images: [] });
bus.inSight = bus.inSight || {}; // by name: whether what takes long to draw is near the window's visible part
bus.stretch = bus.stretch || null; // [first, last] where several tokens are selected

if (STYLE !== null && !document.getElementById("vlm-style")) {
  const sheet = document.createElement("style");
  sheet.id = "vlm-style";
  sheet.textContent = STYLE;
  document.head.append(sheet);
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("[data-vlm-position]");
    if (link) selectPosition(Number(link.dataset.vlmPosition), "page");
  });
}

function selectPosition(position, origin, stretch = null) {
  bus.position = position;
  bus.stretch = stretch;
  document.dispatchEvent(new CustomEvent("vlm:select", { detail: { position, origin } }));
}
const hoverPosition = (position, origin) => document.dispatchEvent(new CustomEvent("vlm:hover", { detail: { position, origin } }));
const tellData = () => document.dispatchEvent(new CustomEvent("vlm:data"));

// Calls back at once, unless it was called a moment ago: of several quick calls (a key held down) the first and the last.
function settle(call, ms = 120) {
  let timer = null, last = -Infinity;
  const later = (...values) => {
    clearTimeout(timer);
    const wait = performance.now() - last < ms ? ms : 0;
    last = performance.now();
    timer = setTimeout(() => call(...values), wait);
  };
  later.drop = () => clearTimeout(timer);
  return later;
}

// A widget that Gradio has taken away stops listening.
function listen(name, react) {
  const once = (event) => { if (element.isConnected) react(event.detail || {}); else document.removeEventListener(name, once); };
  document.addEventListener(name, once);
}
