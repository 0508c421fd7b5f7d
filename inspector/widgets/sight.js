// Asks for what stands below it to be drawn, once that is in sight or nearly and the page has something newer for it.
// Until that is there, what was drawn before steps back.
let near = false, asked = null, drawn = null, timer = null;
const newest = () => bus[TOLD.follows];
const line = element.closest(".block");
const dim = () => line.classList.toggle("vlm-stale", drawn !== null && newest() !== drawn);
function ask() {
  if (!near || !newest() || newest() === asked) return;
  asked = newest();
  trigger("seen", {});
}
// Far above still counts: what stands below may be tall.
new IntersectionObserver((entries) => { near = entries[entries.length - 1].isIntersecting; if (TOLD.named) bus.inSight[TOLD.named] = near; ask(); }, { rootMargin: "1000px 0px 200px" }).observe(element);
// A new row grows for a moment, until its pictures have come, and may push this line out of sight; new heat doesn't. What
// was sent along with it is here a moment later.
let row = null;
listen("vlm:data", () => { dim(); clearTimeout(timer); timer = setTimeout(ask, row === bus.row ? 20 : 200); row = bus.row; });
watch(Object.keys({ data: 0 }), () => setTimeout(() => {
  if (props.data && props.data.endsWith(" along")) asked = newest();
  drawn = asked;
  dim();
}, 0));
