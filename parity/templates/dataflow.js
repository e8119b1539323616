// The dataflow of one stage: a node a checkpoint, what it is computed from on its left. The layers are the longest ways
// from what enters; edges over several layers are led through them, so that none runs behind a node.

const NODE = 38, BEND = 13, MOST_NODES = 48;
const MARKS = { match: "✓", suspect: "!", diverged: "✕", uncertain: "?", missing: "∅", skipped: "–" };
const parentsOf = (data, row) => (row.parents ? row.parents.split(",").map((back) => data.rows[row.i - Number(back)]) : []);
const svgNode = (tag, attributes, parent, text = null) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
};

// Rows of a stage; of a large one those nearest to `focus`, along the edges in both directions.
function stageRows(data, rows, focus) {
  if (rows.length <= MOST_NODES) return rows;
  const beside = new Map(rows.map((row) => [row, []]));
  for (const row of rows) for (const parent of parentsOf(data, row)) if (beside.has(parent)) { beside.get(row).push(parent); beside.get(parent).push(row); }
  const near = new Set([beside.has(focus) ? focus : rows.find((row) => row.source) || rows[0]]);
  // A Set is walked in the order of its entries, those added meanwhile too: nearest first.
  for (const row of near) for (const one of beside.get(row)) if (near.size < MOST_NODES) near.add(one);
  return rows.filter((row) => near.has(row));
}

// Nodes with `row`, `layer`, `lane`, and the ways between them, each a list of nodes; nodes without a row are bends.
function flowOf(data, rows, lanes) {
  const nodes = new Map(), lane = (row) => (lanes.includes(row.stream) ? lanes.indexOf(row.stream) : Math.min(0.5, lanes.length));
  const inside = new Set(rows), edges = [];
  // Isolated stages are fed the reference's values, so that nothing of an earlier stage has reached them.
  const fed = (row) => row.entry.mode === "isolated" && row.stage !== rows[0].stage;
  const add = (row, layer) => nodes.set(row.i, { row, layer, lane: lane(row), ghost: !inside.has(row), fed: fed(row), weight: NODE, near: [] }).get(row.i);
  for (const row of rows) {
    const parents = parentsOf(data, row);
    add(row, Math.max(1, ...parents.map((parent) => (inside.has(parent) ? nodes.get(parent.i).layer + 1 : 1))));
    for (const parent of parents) edges.push([parent, row]);
  }
  for (const [parent, row] of edges) {
    // What enters stands right before where it is needed first.
    if (!inside.has(parent)) { const node = nodes.get(parent.i) || add(parent, Infinity); node.layer = Math.min(node.layer, nodes.get(row.i).layer - 1); }
  }
  const ways = edges.map(([parent, row]) => {
    const from = nodes.get(parent.i), to = nodes.get(row.i), way = [from];
    for (let layer = from.layer + 1; layer < to.layer; layer++) {
      const key = `${parent.i} ${to.lane} ${layer}`;
      if (!nodes.has(key)) nodes.set(key, { row: null, layer, lane: to.lane, weight: BEND, near: [] });
      way.push(nodes.get(key));
    }
    return [...way, to];
  });
  for (const way of ways) way.slice(1).forEach((node, k) => { node.near.push(way[k]); way[k].near.push(node); });
  return { nodes: [...nodes.values()], ways };
}

// Gives each node its `y`: by lane, then by where its neighbours are; returns the height.
function placeNodes(nodes) {
  const sparse = [], mean = (node, of) => node.near.reduce((sum, one) => sum + of(one), 0) / (node.near.length || 1);
  for (const node of nodes) (sparse[node.layer] ||= []).push(node);
  const layers = sparse.filter(Boolean);
  const order = (layer) => layer.sort((a, b) => a.lane - b.lane || a.at - b.at).forEach((node, k) => { node.at = k; });
  for (const layer of layers) { layer.forEach((node, k) => { node.at = k; }); order(layer); }
  for (let sweep = 0; sweep < 8; sweep++) for (const layer of sweep % 2 ? [...layers].reverse() : layers) {
    const wanted = new Map(layer.map((node) => [node, node.near.length ? mean(node, (one) => one.at) : node.at]));
    layer.forEach((node) => { node.at = wanted.get(node); });
    order(layer);
  }
  const tops = laneTops(layers);
  for (let sweep = 0; sweep < 24; sweep++) for (const layer of sweep % 2 ? [...layers].reverse() : layers) settle(layer, tops, mean);
  return tops.get("end");
}

// Lane -> its upper edge, as high as its fullest layer needs; "end" -> the lower edge of the last.
function laneTops(layers) {
  const tops = new Map();
  let top = 0;
  for (const lane of [...new Set(layers.flat().map((node) => node.lane))].sort((a, b) => a - b)) {
    tops.set(lane, top);
    top += Math.max(...layers.map((layer) => layer.filter((node) => node.lane === lane).reduce((sum, node) => sum + node.weight, 0)));
  }
  return tops.set("end", top);
}

// One layer's nodes as near to their neighbours as order and lanes allow.
function settle(layer, tops, mean) {
  const lanes = [...tops.keys()];
  for (const lane of lanes.slice(0, -1)) {
    const mine = layer.filter((node) => node.lane === lane), end = tops.get(lanes[lanes.indexOf(lane) + 1]);
    const gap = (k) => (mine[k].weight + mine[k + 1].weight) / 2;
    mine.forEach((node) => { node.y = mean(node, (one) => one.y ?? (tops.get(one.lane) + NODE)) || tops.get(lane) + NODE / 2; });
    mine.forEach((node, k) => { node.y = Math.max(node.y, k ? mine[k - 1].y + gap(k - 1) : tops.get(lane) + node.weight / 2); });
    for (let k = mine.length - 1; k >= 0; k--) mine[k].y = Math.min(mine[k].y, k < mine.length - 1 ? mine[k + 1].y - gap(k) : end - mine[k].weight / 2);
  }
}

// The stage of an entry in the element "flow"; `focus` is the row that is selected, or null.
function drawFlow(data, entry, stage, focus) {
  const box = document.getElementById("flow"), all = data.rows.slice(entry.start, entry.start + entry.rows).filter((row) => row.stage === stage);
  const rows = stageRows(data, all, focus), known = data.rows.slice(entry.start, entry.start + entry.rows).some((row) => row.parents);
  document.getElementById("flowwords").textContent = !known ? "This run does not say what its checkpoints are computed from."
    : rows.length < all.length ? `${rows.length} of ${all.length} checkpoints of ${stage}: those nearest to ${(rows.includes(focus) ? focus : rows.find((row) => row.source) || rows[0]).name}.` : "";
  if (!known || !rows.length) return box.replaceChildren();
  const streams = entry.sections[rows[0].section].streams.map(([stream]) => stream), { nodes, ways } = flowOf(data, rows, streams);
  const high = placeNodes(nodes), first = Math.min(...nodes.map((node) => node.layer)), layers = Math.max(...nodes.map((node) => node.layer)) - first + 1;
  const column = Math.max(108, Math.min(150, (box.parentNode.clientWidth - 40) / layers)), width = column * layers, wide = column - 16;
  const svg = svgNode("svg", { viewBox: `0 0 ${width} ${high + 8}`, width, height: high + 8, role: "group", "aria-label": `Dataflow of ${stage}, a link a checkpoint` }, document.createElement("div"));
  const x = (node) => (node.layer - first + 0.5) * column, y = (node) => node.y + 4;
  for (const way of ways) svgNode("path", { class: "edge" + (way[0].row.verdict === "diverged" && !way[0].fed ? " carried" : ""), d: wayPath(way, x, y, wide / 2) }, svg);
  for (const node of nodes) if (node.row) flowNode(svg, node, { x: x(node), y: y(node), wide, stage, focus });
  box.replaceChildren(svg);
  const shown = nodes.find((node) => node.row === focus) || nodes.find((node) => node.row?.source);
  if (shown) box.scrollLeft = x(shown) - box.clientWidth / 2;
}

function wayPath(way, x, y, half) {
  let path = `M${(x(way[0]) + half).toFixed(1)} ${y(way[0]).toFixed(1)}`;
  way.slice(1).forEach((node, k) => {
    const from = x(way[k]) + half, to = x(node) - half, middle = ((from + to) / 2).toFixed(1);
    path += `C${middle} ${y(way[k]).toFixed(1)} ${middle} ${y(node).toFixed(1)} ${to.toFixed(1)} ${y(node).toFixed(1)}`;
    if (!node.row) path += `h${(2 * half).toFixed(1)}`;
  });
  return path;
}

function flowNode(svg, { row, ghost, fed }, { x, y, wide, stage, focus }) {
  const said = row.verdict in UNJUDGED ? row.verdict : `${row.exact ? "" : "excess "}${times(row)}`;
  const words = `${row.name}: ${fed ? "the reference’s value is what this stage was fed; " : ""}${row.verdict}, ${said}${row.source ? ", source" : ""}`;
  // A whole address, to be copied and sent.
  const href = location.href.split("#")[0] + addressOf(row.entry, row);
  const link = svgNode("a", { href, class: `node ${fed ? "fed" : row.verdict}${ghost ? " ghost" : ""}${row === focus ? " chosen" : ""}` }, svg);
  svgNode("title", {}, link, words);
  const local = row.name.startsWith(stage + ".") ? row.name.slice(stage.length + 1) : row.name, letters = Math.floor(wide / 6.5);
  const half = NODE / 2 - 3;
  svgNode("rect", { x: x - wide / 2, y: y - half, width: wide, height: 2 * half, rx: 6 }, link);
  if (row.source && !fed) svgNode("rect", { class: "ring", x: x - wide / 2 - 3, y: y - half - 2, width: wide + 6, height: 2 * half + 4, rx: 8 }, link);
  svgNode("text", { class: "label", x, y: y - 2, "text-anchor": "middle" }, link, local.length > letters ? "…" + local.slice(1 - letters) : local);
  svgNode("text", { x, y: y + 11, "text-anchor": "middle" }, link, fed ? "reference’s" : `${MARKS[row.verdict] || ""} ${row.verdict in UNJUDGED ? row.verdict : times(row)}`);
}

// Offers the stages of an entry, and returns the one that is chosen.
function offerStages(data, entry, stage) {
  const stages = [...new Set(data.rows.slice(entry.start, entry.start + entry.rows).map((row) => row.stage))], select = document.getElementById("stage");
  select.replaceChildren(...stages.map((one) => make("option", { value: one }, null, one)));
  select.value = stage;
  return stage;
}
