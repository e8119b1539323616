// Sorting by a column and a search over the rows of a table: what pages without charts of their own need.
// Text stays where the page has it; rows are only moved and hidden.

// A cell sorts by data-value where it has one: a number as a number, what has none behind all others.
function keyOf(row, column) {
  const cell = row.cells[column], value = cell.dataset.value;
  return value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value);
}

function sortable(table) {
  const body = table.tBodies[0];
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      const keyed = Array.from(body.rows, (row) => [keyOf(row, column), row]);
      keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : order(a, b) * (down ? -1 : 1)));
      body.append(...keyed.map(([, row]) => row));
    };
  }
}

function searchable(form) {
  const rows = Array.from(document.querySelectorAll(form.dataset.rows)), count = form.nextElementSibling;
  form.hidden = false;
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = form.onreset = () => setTimeout(() => {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean), verdict = form.elements.verdict.value;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word)) && (!verdict || row.dataset.verdict === verdict));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  });
}

// A drawing of runs: its points are "place:figure"; pointing at one names the run, a click leads to its line.
function pointed(drawing) {
  const points = drawing.dataset.points.split(" "), tip = document.getElementById("tip");
  const { first, step } = drawing.dataset;
  const rowAt = (event) => {
    const box = drawing.getBoundingClientRect(), along = (event.clientX - box.left) / box.width;
    const at = Math.min(Math.max(Math.round((along - first) / step), 0), points.length - 1), [place, figure] = points[at].split(":");
    return [document.getElementById("run-" + place), figure.replaceAll("_", " ")];
  };
  drawing.onpointermove = (event) => {
    const [row, figure] = rowAt(event), said = [row.cells[0].querySelector("bdi"), row.cells[1], row.cells[2]].map((cell) => cell.textContent.trim());
    tip.textContent = [figure ? "excess " + figure : "", said[0].length > 60 ? said[0].slice(0, 59) + "…" : said[0], said[1], figure ? "" : said[2]].filter(Boolean).join(" · ");
    tip.hidden = false;
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = event.clientY + 16 + "px";
  };
  drawing.onpointerleave = () => { tip.hidden = true; };
  drawing.onclick = (event) => {
    const [row] = rowAt(event);
    row.closest("section").querySelector("form").reset();
    row.hidden = false;
    location.hash = row.id;
  };
}

theme();
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("form[data-rows]").forEach(searchable);
document.querySelectorAll("svg[data-points]").forEach(pointed);
