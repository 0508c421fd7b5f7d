// Marks when the message that brings the finished row is there, however Gradio listens to its queue, and when the strip
// is painted. The row comes twice: while the event goes on, and once more when it is over.
(() => {
  const arrived = (text) => { if (text.includes("spans")) performance.mark("answered"); };
  const plain = window.EventSource, fetched = window.fetch;
  window.EventSource = class extends plain {
    constructor(...rest) { super(...rest); this.addEventListener("message", (event) => arrived(event.data)); }
  };
  window.fetch = async (...rest) => {
    const response = await fetched(...rest), address = String(rest[0].url || rest[0]);
    if (!address.includes("/queue/data") || !response.body) return response;
    const reader = response.clone().body.getReader(), decoder = new TextDecoder();
    (async () => {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        arrived(decoder.decode(value, { stream: true }));
      }
    })();
    return response;
  };
  // Every position has its node: a token of its own or the folded run that holds it.
  const covered = () => [...document.querySelectorAll("#strip .line button")].reduce((sum, node) => {
    const run = node.classList.contains("chip") && window.vlmBus.row.spans[Number(node.dataset.span)];
    return sum + (run ? run.stop - run.start : 1);
  }, 0);
  window.watchStrip = () => {
    const before = window.vlmBus.row && window.vlmBus.row.key, line = document.querySelector("#strip .line");
    window.painted = new Promise((resolve) => {
      const watcher = new MutationObserver(() => {
        const row = window.vlmBus.row;
        if (!row || row.key === before || covered() < row.n) return;
        watcher.disconnect();
        // The second frame begins when the first has been painted.
        requestAnimationFrame(() => requestAnimationFrame(() => resolve({ at: performance.now(), tokens: row.n })));
      });
      watcher.observe(line, { childList: true });
    });
  };
})();
