// The table of checkpoints: search, filters, order, pages, and a row that opens to all of its figures.

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

const VERDICT_FILTERS = { "": () => true, "!match": (row) => row.verdict !== "match", source: (row) => row.source };

function matches(row, want) {
  const text = want.search.trim().toLowerCase();
  // block.NN stands for any block, as in the table of sources.
  const hay = [row.name, row.name.replace(/(^|\.)(block|layer|step)\.\d+(?=\.)/g, "$1$2.NN"), row.reason].join("\n").toLowerCase();
  return (!text || hay.includes(text)) && (VERDICT_FILTERS[want.verdict] ? VERDICT_FILTERS[want.verdict](row) : row.verdict === want.verdict)
    && (want.where === "" || row.where === want.where) && (want.index === "" || row.index === Number(want.index))
    && (want.component === "" || row.entry.component === want.component) && ["name", "dtype", "mode"].every((key) => want[key] === "" || row.entry[key] === want[key]);
}

function factsOf(row, shown) {
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

// Ascending or descending by a column, what has no figure last, equal ones in the order of the run.
function sorted(rows, column, down) {
  const key = new Map(rows.map((row) => [row, column.of(row)]));
  return rows.sort((a, b) => {
    const p = key.get(a), q = key.get(b);
    if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) - Number.isNaN(q) || a.i - b.i;
    return (p === q ? 0 : (p < q) === down ? 1 : -1) || a.i - b.i;
  });
}

// The table in the page: {refresh, filter(values), show(row), close()}.
function checkpointTable(data) {
  const byId = (id) => document.getElementById(id), form = byId("filters"), table = byId("rows"), pager = byId("pager");
  const state = { page: 0, sort: 0, down: false, open: new Set(), found: [] }, head = make("tr", {}, table.tHead);

  function refresh() {
    const want = Object.fromEntries(new FormData(form)), page = () => state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    state.found = sorted(data.rows.filter((row) => matches(row, want)), COLUMNS[state.sort], state.down);
    state.page = Math.min(state.page, Math.max(0, Math.ceil(state.found.length / PAGE) - 1));
    byId("count").textContent = `${state.found.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} checkpoints`;
    sayPage();
    table.tHead.querySelectorAll("th").forEach((th, k) => {
      th.setAttribute("aria-sort", k !== state.sort ? "none" : state.down ? "descending" : "ascending");
      th.querySelector("span").textContent = k !== state.sort ? "" : state.down ? " ↓" : " ↑";
    });
    const several = state.found.some((row) => row.which !== state.found[0].which);
    table.tBodies[0].replaceChildren(...page().flatMap((row) => lines(row, several)));
  }

  function sayPage() {
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    pager.hidden = pages < 2;
    pager.querySelector("span").textContent = `Page ${state.page + 1} of ${pages}`;
    pager.querySelector('[data-step="-1"]').disabled = state.page === 0;
    pager.querySelector('[data-step="1"]').disabled = state.page === pages - 1;
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
    // Columns that a narrow window hides must not be counted, or empty ones take their place.
    const tr = factsOf(row, [...head.children].filter((th) => getComputedStyle(th).display !== "none").length);
    // Charts are as wide as their place, so they are drawn once it is in the page.
    queueMicrotask(() => drawPanel(data, row, make("div", { class: "panels" }, tr.firstChild)));
    return tr;
  }

  const focusRow = (i) => table.querySelector(`tr[data-row="${i}"] button`)?.focus();
  const onPage = (page) => { state.page = page; refresh(); };

  function filter(values) {
    // Not by form.reset(): its event makes the rows again, and who stands on one would lose it.
    for (const field of form.elements) if (field.name) field.value = values[field.name] ?? "";
    Object.assign(state, { page: 0, sort: 0, down: false });
  }

  function show(row, values) {
    filter(values);
    state.open = new Set([row.i]);
    refresh();
    const page = Math.floor(state.found.indexOf(row) / PAGE);
    if (page > 0) onPage(page);
    byId("checkpoints").scrollIntoView();
    focusRow(row.i);
  }

  COLUMNS.forEach((column, k) => {
    const button = make("button", { type: "button" }, make("th", { scope: "col", class: column.name || "" }, head), column.title);
    make("span", { "aria-hidden": "true" }, button);
    button.onclick = () => { Object.assign(state, { down: state.sort === k ? !state.down : k > 0, sort: k }); onPage(0); };
  });
  form.oninput = () => onPage(0);
  form.onsubmit = (event) => event.preventDefault();
  form.onreset = () => setTimeout(() => onPage(0));
  pager.onclick = (event) => {
    if (!event.target.dataset.step) return;
    onPage(state.page + Number(event.target.dataset.step));
    byId("checkpoints").scrollIntoView();
  };
  table.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...table.tBodies[0].querySelectorAll("button")];
    const next = step && all[all.indexOf(event.target) + step];
    if (next) { event.preventDefault(); next.focus(); }
  };
  offerFilters(data, form);
  table.classList.toggle("undocumented", !data.rows.some((row) => row.range));
  for (const node of [form, table]) node.hidden = false;
  return { refresh, filter, show, close: () => state.open.clear() };
}

function offerFilters(data, form) {
  const offer = (key, values) => {
    for (const value of new Set(values)) make("option", { value }, form.elements[key], value);
    form.elements[key].closest("label").hidden = form.elements[key].options.length < 3;
  };
  for (const key of ["component", "name", "dtype", "mode"]) offer(key, data.entries.map((entry) => entry[key]));
  offer("where", data.rows.map((row) => row.where));
}
