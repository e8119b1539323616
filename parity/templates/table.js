// The table of checkpoints, the cards, and what ties them to the charts.

const PAGE = 100;
const COLUMNS = [
  { title: "Checkpoint", of: (row) => row.i },
  { title: "Verdict", name: "verdict", of: (row) => ["match", "skipped", "uncertain", "missing", "suspect", "diverged"].indexOf(row.verdict) },
  { title: "Excess", name: "number", of: excess },
  { title: "Rel. RMSE", name: "number mid", of: (row) => number(row.rel_rmse), text: (row) => format(row.rel_rmse) },
  { title: "Floor", name: "number mid", of: (row) => number(row.floor), text: (row) => format(row.floor) },
  { title: "Candidate’s range", name: "tail far", of: (row) => number(row.candidate.absmax), text: (row) => `${format(row.candidate.min)} … ${format(row.candidate.max)}` },
  { title: "Documented", name: "tail far documented", of: (row) => number(row.range?.factor), text: (row) => rangeText(row.range) },
];
const rangeText = (range) => (range ? `${short(number(range.low))} … ${short(number(range.high))}, ${range.verdict}${range.verdict === "inside" ? "" : ` (${format(range.factor)}×)`}` : "—");

function start(data) {
  const byId = (id) => document.getElementById(id), form = byId("filters"), table = byId("rows"), pager = byId("pager");
  const state = { entry: 0, part: 0, page: 0, sort: 0, down: false, open: new Set(), kind: null, found: [], chosen: null, stage: "" };
  const first = Number(document.querySelector('.card[aria-pressed="true"]')?.dataset.entry || 0);

  function matches(row, want) {
    const text = want.search.trim().toLowerCase();
    // block.NN stands for any block, as in the table of sources.
    const hay = [row.name, row.name.replace(/(^|\.)(block|layer|step)\.\d+(?=\.)/g, "$1$2.NN"), row.reason].join("\n").toLowerCase();
    return (!text || hay.includes(text)) && (want.verdict === "" || (want.verdict === "!match" ? row.verdict !== "match" : want.verdict === "source" ? row.source : row.verdict === want.verdict))
      && (want.where === "" || row.where === want.where) && (want.index === "" || row.index === Number(want.index))
      && (want.component === "" || row.entry.component === want.component) && ["name", "dtype", "mode"].every((key) => want[key] === "" || row.entry[key] === want[key]);
  }

  function refresh() {
    const want = Object.fromEntries(new FormData(form)), column = COLUMNS[state.sort];
    state.found = data.rows.filter((row) => matches(row, want));
    const key = new Map(state.found.map((row) => [row, column.of(row)]));
    state.found.sort((a, b) => {
      const p = key.get(a), q = key.get(b);
      if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) - Number.isNaN(q) || a.i - b.i;
      return (p === q ? 0 : (p < q) === state.down ? 1 : -1) || a.i - b.i;
    });
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    byId("count").textContent = `${state.found.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} checkpoints`;
    pager.hidden = pages < 2;
    pager.querySelector("span").textContent = `Page ${state.page + 1} of ${pages}`;
    pager.querySelector('[data-step="-1"]').disabled = state.page === 0;
    pager.querySelector('[data-step="1"]').disabled = state.page === pages - 1;
    table.tHead.querySelectorAll("th").forEach((th, k) => {
      th.setAttribute("aria-sort", k !== state.sort ? "none" : state.down ? "descending" : "ascending");
      th.querySelector("span").textContent = k !== state.sort ? "" : state.down ? " ↓" : " ↑";
    });
    const several = new Set(state.found.map((row) => row.which)).size > 1;
    table.tBodies[0].replaceChildren(...state.found.slice(state.page * PAGE, (state.page + 1) * PAGE).flatMap((row) => lines(row, several)));
  }

  function lines(row, several) {
    const tr = make("tr", { "data-row": row.i }), th = make("th", { scope: "row" }, tr), shown = state.open.has(row.i);
    const button = make("button", { type: "button", "aria-expanded": shown }, th);
    make("bdi", {}, button, row.name);
    if (row.source || row.propagated) make("span", { class: "tag" }, th, row.source ? "source" : "propagated");
    if (several) make("bdi", { class: "meta where" }, th, `${row.entry.name} · ${row.entry.dtype} · ${row.entry.mode}`);
    make("span", { class: "chip " + row.verdict }, make("td", {}, tr), row.verdict);
    make("td", { class: "number" }, tr, times(row));
    for (const column of COLUMNS.slice(3)) make("td", { class: column.name }, tr, column.text(row));
    button.onclick = () => { state.open[shown ? "delete" : "add"](row.i); refresh(); focusRow(row.i); };
    return shown ? [tr, detail(row)] : [tr];
  }

  function detail(row) {
    const tr = facts(row);
    // Charts are as wide as their place, so they are drawn once it is in the page.
    queueMicrotask(() => drawPanel(data, row, make("div", { class: "panels" }, tr.firstChild)));
    return tr;
  }

  function facts(row) {
    // Columns that a narrow window hides must not be counted, or empty ones take their place.
    const shown = [...head.children].filter((th) => getComputedStyle(th).display !== "none").length;
    const tr = make("tr", { class: "detail" }), box = make("div", { class: "columns" }, make("td", { colspan: shown }, tr));
    const say = (title, pairs) => {
      const block = make("div", {}, box), list = (make("h3", {}, block, title), make("dl", {}, block));
      for (const [key, value] of pairs) { make("dt", {}, list, key); make("bdi", {}, make("dd", {}, list), value === "" ? "—" : value); }
    };
    say("What", [["verdict", row.verdict], ["reason", row.reason], ["stage", row.stage], ["shape", row.shape], ["dtype", row.dtype],
      ["entry", `${row.entry.name} · ${row.entry.dtype} · ${row.entry.mode}`], ["role", row.source ? "source of a divergence" : row.propagated ? "propagated" : ""]]);
    say("Error", [...MEASURES.filter(([key]) => key !== "mismatches" || row.exact).map(([key, title]) => [title, format(row[key])]), ["floor set by", row.floor_by]]);
    const values = make("div", {}, box), list = (make("h3", {}, values, "Values"), make("table", {}, values));
    const line = (cells, tag) => { const tr = make("tr", {}, list); cells.forEach((text, k) => make(k ? tag : "th", k ? { class: "number" } : { scope: tag === "th" ? "col" : "row" }, tr, text)); };
    line(["figure", "reference", "candidate"], "th");
    for (const key of STATS) line([key, format(row.reference[key]), format(row.candidate[key])], "td");
    if (row.range) say("Documented range", [["row", row.range.row], ["from", format(row.range.low)], ["to", format(row.range.high)], ["verdict", row.range.verdict], ["factor", format(row.range.factor)]]);
    return tr;
  }

  const focusRow = (i) => table.querySelector(`tr[data-row="${i}"] button`)?.focus();

  function setFilters(values) {
    form.reset();
    for (const [key, value] of Object.entries(values)) form.elements[key].value = value;
    Object.assign(state, { page: 0, sort: 0, down: false });
  }
  const entryFilter = (which) => (({ name, dtype, mode }) => ({ name, dtype, mode }))(data.entries[which]);

  // Selects by way of the address, so that it can be sent, and Back undoes it.
  function select(entry, row) {
    const address = addressOf(entry, row);
    if (location.hash === address) followAddress(); else location.hash = address;
  }
  const openRow = (i) => select(data.rows[i].entry, data.rows[i]);

  function followAddress() {
    const parts = addressParts(location.hash);
    if (!parts.length && location.hash.length > 1) return;
    const found = parts.length ? selectionOf(data, parts, state.entry) : { which: first, row: null };
    byId("lost").hidden = Boolean(found);
    byId("lost").textContent = found ? "" : `The address names ${parts.join(", ")}, which this run does not have.`;
    if (found && found.row) showRow(found.row);
    else if (found) { state.open.clear(); state.chosen = null; choose(found.which, parts.length > 0); if (!parts.length) form.reset(); }
  }

  function showRow(row) {
    state.chosen = row;
    if (row.repeats) state.kind = row.kind;
    if (state.entry !== row.which) choose(row.which);
    chooseStage(row.entry);
    state.part = row.section;
    byId("part").value = String(row.section);
    setFilters({ ...entryFilter(row.which), search: row.name });
    state.open = new Set([row.i]);
    refresh();
    state.page = Math.floor(state.found.indexOf(row) / PAGE);
    if (state.page) refresh();
    draw();
    byId("checkpoints").scrollIntoView();
    focusRow(row.i);
  }

  // The cell of what is selected, drawn over its neighbours.
  function markChosen() {
    for (const cell of document.querySelectorAll(".chosen")) cell.classList.remove("chosen");
    const cell = state.chosen && document.querySelector(`#figures [data-row="${state.chosen.i}"]`);
    if (!cell) return;
    cell.classList.add("chosen");
    cell.parentNode.insertBefore(cell, cell.parentNode.querySelector("g, text"));
  }

  function draw() {
    const entry = data.entries[state.entry], section = entry.sections[state.part], select = byId("kind");
    const rows = data.rows.slice(entry.start, entry.start + entry.rows).filter((row) => row.section === state.part);
    const repeated = rows.filter((row) => row.repeats), kinds = [...new Set(repeated.map((row) => row.kind))], source = repeated.find((row) => row.source);
    if (!kinds.includes(state.kind)) state.kind = source ? source.kind : ["out", "latents"].find((kind) => kinds.includes(kind)) || kinds[0] || "";
    select.replaceChildren(...kinds.map((kind) => make("option", {}, null, kind)));
    select.value = state.kind;
    byId("kindname").textContent = state.kind;
    byId("shown").textContent = `${entry.component} · ${entry.name} · ${entry.dtype} · ${entry.mode}`;
    if (rows.length) drawSection(data, entry, section, rows, state.kind, openRow);
    sayIfEmpty(rows.length ? "" : "This entry has no checkpoints: nothing was recorded of it.");
    markChosen();
    drawFlow(data, entry, state.stage, state.chosen);
  }

  function sayIfEmpty(words) {
    byId("message").textContent = words;
    byId("message").hidden = !words;
    byId("figures").hidden = Boolean(words);
  }

  // The stage of what is selected, else of the first source, else the largest one of what repeats.
  function chooseStage(entry) {
    const rows = data.rows.slice(entry.start, entry.start + entry.rows), sizes = new Map();
    const repeats = rows.some((row) => row.repeats);
    for (const row of rows) if (row.repeats || !repeats) sizes.set(row.stage, (sizes.get(row.stage) || 0) + 1);
    const largest = [...sizes].reduce((best, one) => (one[1] > best[1] ? one : best), ["", 0])[0];
    const at = state.chosen?.entry === entry ? state.chosen : rows.find((row) => row.source);
    state.stage = at ? at.stage : largest;
    offerStages(data, entry, state.stage);
  }

  function offerParts(entry) {
    const source = data.rows.slice(entry.start, entry.start + entry.rows).find((row) => row.source);
    state.part = source ? source.section : entry.main;
    const options = entry.sections.map(({ title }, value) => make("option", { value }, null, title));
    byId("part").replaceChildren(...options);
    byId("part").value = String(state.part);
    byId("part").closest("label").hidden = entry.sections.length < 2;
  }

  function choose(which, filter) {
    state.entry = which;
    offerParts(data.entries[which]);
    chooseStage(data.entries[which]);
    document.querySelectorAll(".card").forEach((card) => card.setAttribute("aria-pressed", String(Number(card.dataset.entry) === which)));
    if (filter) { setFilters(entryFilter(which)); refresh(); }
    draw();
  }

  const head = make("tr", {}, table.tHead);
  COLUMNS.forEach((column, k) => {
    const button = make("button", { type: "button" }, make("th", { scope: "col", class: column.name || "" }, head), column.title);
    make("span", { "aria-hidden": "true" }, button);
    button.onclick = () => { Object.assign(state, { down: state.sort === k ? !state.down : k > 0, sort: k, page: 0 }); refresh(); };
  });
  const offer = (key, values) => {
    for (const value of new Set(values)) make("option", { value }, form.elements[key], value);
    form.elements[key].closest("label").hidden = form.elements[key].options.length < 3;
  };
  for (const key of ["component", "name", "dtype", "mode"]) offer(key, data.entries.map((entry) => entry[key]));
  offer("where", data.rows.map((row) => row.where));
  form.oninput = () => { state.page = 0; refresh(); };
  form.onsubmit = (event) => event.preventDefault();
  form.onreset = () => setTimeout(() => { state.page = 0; refresh(); });
  pager.onclick = (event) => {
    if (!event.target.dataset.step) return;
    state.page += Number(event.target.dataset.step);
    refresh();
    byId("checkpoints").scrollIntoView();
  };
  table.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...table.tBodies[0].querySelectorAll("button")];
    const next = step && all[all.indexOf(event.target) + step];
    if (next) { event.preventDefault(); next.focus(); }
  };
  byId("part").onchange = (event) => { state.part = Number(event.target.value); draw(); };
  byId("stage").onchange = (event) => { state.stage = event.target.value; draw(); };
  byId("kind").onchange = (event) => { state.kind = event.target.value; draw(); };
  document.querySelectorAll(".card").forEach((card) => { card.onclick = () => select(data.entries[Number(card.dataset.entry)], null); });
  document.querySelectorAll(".jump").forEach((link) => { link.onclick = (event) => {
    event.preventDefault();
    const { entry, name, search } = link.dataset;
    const row = name && data.rows.find((r) => r.which === Number(entry) && r.name === name);
    if (row) return openRow(row.i);
    setFilters({ search: name || search, verdict: "source" });
    refresh();
    byId("checkpoints").scrollIntoView();
  }; });
  table.classList.toggle("undocumented", !data.rows.some((row) => row.range));
  for (const node of [form, table]) node.hidden = false;
  sayIfEmpty(data.entries.length ? "" : "This run has no entries: it was cut off before one was finished, or nothing was asked for.");
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => { draw(); refresh(); }, 120); });
  watchKeys(data, () => state.chosen, select);
  if (!data.entries.length) return refresh();
  choose(first, true);
  addEventListener("hashchange", followAddress);
  if (location.hash.length > 1) followAddress();
}

theme();
if (typeof DecompressionStream === "undefined") {
  document.getElementById("message").textContent = "This browser cannot unpack the rows (it lacks DecompressionStream). Charts and table need a newer one; parity.json has every figure.";
} else {
  decode(document.getElementById("data").textContent).then(start).catch((error) => {
    document.getElementById("message").textContent = "The rows in this page could not be read: " + error.message;
    throw error;
  });
}
