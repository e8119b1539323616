// Scales and their ticks, for charts on a canvas and in SVG alike. A scale has `low` and `high`, `at(value)` from 0 to 1,
// `ticks`, and `distr` and `asinh` as uPlot names its distributions.

// Indices with a tick, the first and the last among them.
function indexTicks({ first, count }, room) {
  const step = [1, 2, 5, 10, 15, 20, 50, 100, 1000].find((s) => count / s <= room) || count, last = first + count - 1;
  const ticks = [];
  for (let t = Math.ceil(first / step) * step; t <= last; t += step) if (last - t >= 0.6 * step || t === last) ticks.push(t);
  if (count > 0 && !ticks.includes(last)) ticks.push(last);
  return count > 0 && ticks[0] - first >= 0.6 * step ? [first, ...ticks] : ticks;
}

// Not Math.min(...values): a hundred thousand of them are more than a call takes.
const least = (values, start) => values.reduce((a, b) => Math.min(a, b), start);
const most = (values, start) => values.reduce((a, b) => Math.max(a, b), start);

const logScale = (values, pad) => {
  const usable = values.filter((v) => Number.isFinite(v) && v > 0);
  let low = usable.length ? least(usable, Infinity) / pad : 0.1, high = usable.length ? most(usable, 0) * pad : 10;
  if (high / low < 30) { const middle = Math.sqrt(low * high); low = Math.min(low, middle / 6); high = Math.max(high, middle * 6); }
  const first = Math.ceil(Math.log10(low)), last = Math.floor(Math.log10(high)), ticks = [];
  const step = Math.max(1, Math.ceil((last - first + 1) / 6));
  for (let e = first - (last - first < 2); e <= last; e += step) for (const m of last - first < 2 ? [1, 2, 5] : [1]) ticks.push(m * 10 ** e);
  const at = (v) => (Math.log(Math.min(Math.max(v, low), high)) - Math.log(low)) / (Math.log(high) - Math.log(low));
  return { distr: 3, low, high, at, ticks: ticks.filter((v) => v >= low && v <= high) };
};

// Linear around zero, logarithmic beyond: residuals of ±46 million beside attention of ±3.
const signedScale = (values) => {
  const finite = values.filter(Number.isFinite), largest = most(finite.map(Math.abs), 1e-30);
  const asinh = largest < 30 ? largest * 3 : 1, bend = (v) => Math.asinh(v / asinh), back = (share) => asinh * Math.sinh(share);
  const low = back(bend(least(finite, 0)) * 1.12 - 0.02), high = back(bend(most(finite, 0)) * 1.12 + 0.02), ticks = [0];
  // Three or so on each side: even ones where the scale is, powers of ten where it is logarithmic.
  const last = Math.floor(Math.log10(largest * 1.05)), unit = 10 ** Math.floor(Math.log10(largest / 2)), even = [5, 2, 1].find((k) => k * unit <= largest / 2) * unit;
  const steps = largest < 30 ? [1, 2, 3, 4].map((k) => k * even).filter((v) => v <= largest * 1.1) : [0, 1, 2].map((k) => 10 ** (last - k * Math.max(1, Math.ceil(last / 3)))).filter((v) => v >= 10);
  for (const v of steps) ticks.push(v, -v);
  const at = (v) => (bend(v) - bend(low)) / (bend(high) - bend(low));
  return { distr: 4, asinh, low, high, at, ticks: ticks.filter((v) => v >= low && v <= high).sort((a, b) => a - b) };
};

// From zero, for shares.
const shareScale = (values) => {
  const high = most(values.filter(Number.isFinite), 0) || 1;
  return { distr: 1, low: 0, high: high * 1.04, at: (v) => v / (high * 1.04), ticks: [0, high / 2, high] };
};
