// Asks for what stands below it to be drawn, once that is in sight or nearly and the page has something newer for it.
let near = false, drawn = null, timer = null;
function ask() {
  const newest = bus[props.follows];
  if (!near || !newest || newest === drawn) return;
  drawn = newest;
  trigger("seen", {});
}
// Far above still counts: what stands below may be tall.
new IntersectionObserver((entries) => { near = entries[entries.length - 1].isIntersecting; ask(); }, { rootMargin: "1000px 0px 200px" }).observe(element);
// What is new grows for a moment, until its pictures have come, and may push this line out of sight.
listen("vlm:data", () => { clearTimeout(timer); timer = setTimeout(ask, 200); });
