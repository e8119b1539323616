// What all charts on a canvas have in common: the style sheet's colours, one box of words at the pointer, and the table
// of figures behind a chart.

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';

// The colour of a custom property as it is now: by theme, and light while the page is printed.
const colour = (() => {
  const probe = document.createElement("i"), known = new Map();
  probe.hidden = true;
  const read = (name) => {
    if (!probe.isConnected) document.body.append(probe);
    if (!known.has(name)) { probe.style.color = `var(--${name})`; known.set(name, getComputedStyle(probe).color); }
    return known.get(name);
  };
  read.forget = () => known.clear();
  return read;
})();

// A bare canvas in `box` for `width` × `height` CSS pixels at the screen's resolution.
function sheet(box, width, height) {
  const ratio = window.devicePixelRatio || 1, canvas = make("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio), "aria-hidden": "true" });
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  ctx.font = FONT;
  box.replaceChildren(canvas);
  return { canvas, ctx };
}

// Words with a rim of the panel's colour, so that they are read over lines.
function write(ctx, words, x, y, { align = "left", bold = false, ink = "muted" } = {}) {
  ctx.save();
  if (bold) ctx.font = "600 " + ctx.font;
  Object.assign(ctx, { textAlign: align, textBaseline: "alphabetic", lineJoin: "round", lineWidth: 3, strokeStyle: colour("panel"), fillStyle: colour(ink) });
  if (bold) ctx.strokeText(words, x, y);
  ctx.fillText(words, x, y);
  ctx.restore();
}

// The words at the pointer; lines are [class of a mark or "", text].
const tip = {
  box: null,
  show(event, lines) {
    tip.box ||= make("div", { class: "tip", "aria-hidden": "true" }, document.body);
    tip.box.hidden = false;
    tip.box.replaceChildren(...lines.map(([mark, text]) => {
      const line = make("div");
      if (mark) make("i", { class: "line " + mark }, line);
      make("bdi", {}, line, text);
      return line;
    }));
    const { width, height } = tip.box.getBoundingClientRect(), right = event.clientX + 14, below = event.clientY + 14;
    tip.box.style.left = Math.max(4, right + width > innerWidth ? event.clientX - width - 14 : right) + "px";
    tip.box.style.top = Math.max(4, below + height > innerHeight ? event.clientY - height - 14 : below) + "px";
  },
  hide() { if (tip.box) tip.box.hidden = true; },
};

// Folded figures of a chart, made when they are opened: `table()` gives the heads and the rows, first cell a row's head.
const BEHIND = new WeakMap();

function tableBehind(box, title, table) {
  const old = BEHIND.get(box), details = make("details", { class: "behind" });
  const fill = () => {
    if (!details.open || details.children.length > 1) return;
    const place = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, details), list = make("table", { class: "metrics" }, place);
    const [heads, rows] = table(), tr = make("tr", {}, make("thead", {}, list)), body = make("tbody", {}, list);
    for (const head of heads) make("th", { scope: "col" }, tr, head);
    for (const cells of rows) { const line = make("tr", {}, body); cells.forEach((text, k) => make(k ? "td" : "th", k ? {} : { scope: "row" }, line, text)); }
  };
  make("summary", { "aria-label": title }, details, "Figures");
  details.ontoggle = fill;
  details.open = Boolean(old?.open);
  if (old) old.replaceWith(details); else box.parentNode.append(details);
  BEHIND.set(box, details);
  fill();
}

// Draws again when the colours change, by the theme's button, the system or the printer, and when the width does.
function whenSizeOrColoursChange(draw) {
  let timer = 0, width = innerWidth;
  // A phone's bars change the height alone as one scrolls.
  addEventListener("resize", () => { clearTimeout(timer); if (innerWidth !== width) timer = setTimeout(() => { width = innerWidth; draw(); }, 120); });
  const root = document.documentElement, again = () => { colour.forget(); draw(); };
  let before;
  new MutationObserver(again).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; again(); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; again(); });
}
