// The address keeps what is selected: #CASE.DTYPE.MODE/CHECKPOINT, or the entry alone. A checkpoint alone is one of the
// entry that is shown, or else of the first that has it. Each selection is a step that the browser's Back undoes.

const entryLabel = (entry) => `${entry.name}.${entry.dtype}.${entry.mode}`;
const addressOf = (entry, row) => "#" + [entryLabel(entry), ...(row ? [row.name] : [])].map(encodeURIComponent).join("/");

// The parts of an address; none where it is garbled or names a section of the page.
function addressParts(hash) {
  try {
    const whole = decodeURIComponent(hash.slice(1));
    return whole === "" || document.getElementById(whole) ? [] : hash.slice(1).split("/").map(decodeURIComponent);
  } catch {
    return [hash.slice(1)];
  }
}

// What an address selects: {which, row}, row null for an entry alone; null where the run has nothing of that name.
function selectionOf(data, parts, now) {
  const named = (name) => data.rows.filter((row) => row.name === name);
  const which = data.entries.findIndex((entry) => entryLabel(entry) === parts[0]);
  if (which >= 0 && parts.length === 1) return { which, row: null };
  const found = parts.length === 1 ? named(parts[0]) : named(parts[1]).filter((row) => row.which === which);
  const row = found.find((one) => one.which === now) || found[0];
  return row ? { which: row.which, row } : null;
}

// j and k go to the next and the previous source, Escape lets go of what is selected.
function watchKeys(data, chosen, select) {
  const sources = data.rows.filter((row) => row.source);
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
    const at = chosen(), key = event.key.toLowerCase();
    if (key === "escape" && at) select(at.entry, null);
    const next = key === "j" ? sources.find((row) => !at || row.i > at.i) : key === "k" ? sources.findLast((row) => at && row.i < at.i) : null;
    if (next) select(next.entry, next);
  });
}
