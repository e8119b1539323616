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
  const rows = Array.from(document.querySelectorAll(form.dataset.rows)), count = document.getElementById("count");
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

theme();
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("form[data-rows]").forEach(searchable);
