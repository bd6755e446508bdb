"use strict";
// The two kinds of drawing, from numbers to what `panel` takes: heat maps, and lines, bars and points between two axes.

const shade = (colors, portion) => colors[Math.round(Math.max(0, Math.min(1, portion)) * (colors.length - 1))];

/** Whether black reads better than white on this colour (WCAG's relative luminance). */
function light(color) {
  const [red, green, blue] = [1, 3, 5].map((at) => (Number.parseInt(color.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18;
}

const text = (x, y, said, attributes = {}) => svg("text", { x, y, "text-anchor": "middle", ...attributes }, said);

/** A matrix (L, L) with layer 1 at the bottom left; the colours' range belongs to the measure, never to the epoch. */
function heatMap(matrix, scale) {
  const layers = matrix.length;
  const left = 34;
  const top = 6;
  const plot = WIDTH - 88;
  const side = plot / layers;
  const portion = (value) => (value - scale.low) / (scale.high - scale.low);
  const nodes = [];
  const targets = matrix.map((row, i) => row.map((value, j) => {
    const x = left + (j + 0.5) * side;
    const y = top + plot - (i + 0.5) * side;
    const fill = known(value) ? shade(scale.colors, portion(value)) : "url(#hatch)";
    nodes.push(svg("rect", { class: "cell", x: x - side / 2, y: y - side / 2, width: side, height: side, fill, "data-value": value }));
    if (known(value) && layers <= 12) {
      const said = number(value, 2).replace("−0.00", "0.00");
      const style = `font-size:${Math.min(12, (1.52 * side) / said.length)}px;fill:${light(fill) ? "#000" : "#fff"}`;
      nodes.push(text(x, y, said, { style, "dominant-baseline": "central" }));
    }
    return { x, y, side, text: `Layers ${i + 1} and ${j + 1}: ${number(value)}` };
  }));
  for (const layer of whole(1, layers)) {
    nodes.push(text(left + (layer - 0.5) * side, top + plot + 15, layer));
    nodes.push(text(left - 6, top + plot - (layer - 0.5) * side + 4, layer, { "text-anchor": "end" }));
  }
  nodes.push(text(left + plot / 2, top + plot + 31, "layer", { class: "axis" }));
  nodes.push(...colorBar(scale, left + plot + 12, top, plot));
  const last = matrix.map((row) => row[layers - 1]);
  const label = `${scale.name} of every pair of ${layers} layers; to the last layer from ${number(last[0])} at layer 1`;
  return { nodes, targets, label, height: top + plot + 38 };
}

function colorBar(scale, x, top, length) {
  const step = length / scale.colors.length;
  const nodes = scale.colors.map((fill, place) =>
    svg("rect", { x, y: top + length - (place + 1) * step, width: 10, height: step + 0.4, fill }));
  for (const portion of [0, 0.5, 1]) {
    const value = scale.low + portion * (scale.high - scale.low);
    const y = top + length * (1 - portion) + (portion === 1 ? 9 : portion === 0 ? 0 : 4);
    nodes.push(text(x + 13, y, number(value, 1).replace(".0", ""), { "text-anchor": "start" }));
  }
  return nodes;
}

const MARKS = [
  (x, y) => svg("circle", { cx: x, cy: y, r: 3.6 }),
  (x, y) => svg("rect", { x: x - 3.3, y: y - 3.3, width: 6.6, height: 6.6 }),
  (x, y) => svg("path", { d: `M${x} ${y - 4.4}l4.2 7.4h-8.4z` }),
  (x, y) => svg("path", { d: `M${x} ${y - 4.8}l4.8 4.8l-4.8 4.8l-4.8 -4.8z` }),
];
const DASHES = [null, "6 3", "2 3", "8 3 2 3"];

/** The look of the n-th of several curves that stand for different things: colour, mark and dashes, all three. */
const look = (place) => ({ color: `var(--curve-${place % 6})`, mark: place % MARKS.length, dashes: DASHES[Math.floor(place / 2) % 4] });

function legendEntry(name, { color, mark, dashes }) {
  const key = svg("svg", { viewBox: "0 0 26 12", class: "key", "aria-hidden": "true" });
  key.append(svg("path", { d: "M1 6H25", class: "curve", style: `stroke:${color}`, "stroke-dasharray": dashes }));
  if (known(mark)) key.append(svg("g", { style: `fill:${color}` }, MARKS[mark](13, 6)));
  return html("li", {}, key, name);
}

/**
 * Lines, bars and points. Axes are { low, high, ticks, name, say, log }.
 *
 * series: [{ name, color, mark, dashes, points: [[x, y, text]], band: [[low, high]], labels, faint }], drawn in order;
 * faint ones are a background that is not read out. bars: [[x, y, text]]. rule: an x to mark.
 * level: { y, name } a line across.
 */
function chart({ x, y, series = [], bars = [], rule = null, level = null, legend = [], label }) {
  const box = { left: 46, right: WIDTH - 14, top: 10, bottom: 214 };
  const across = (value) => box.left + ((value - x.low) / (x.high - x.low)) * (box.right - box.left);
  const level_of = y.log ? (value) => Math.log(Math.max(value, y.low)) : Number;
  const up = (value) => box.bottom - ((level_of(value) - level_of(y.low)) / (level_of(y.high) - level_of(y.low))) * (box.bottom - box.top);
  const within = (value) => Math.max(box.top, Math.min(up(value), box.bottom)); // a band ends where the axis does
  const nodes = [];
  for (const tick of y.ticks) {
    nodes.push(svg("path", { class: "grid", d: `M${box.left} ${up(tick)}H${box.right}` }));
    nodes.push(text(box.left - 6, up(tick) + 4, (y.say ?? String)(tick), { "text-anchor": "end" }));
  }
  for (const tick of x.ticks) nodes.push(text(across(tick), box.bottom + 16, String(tick)));
  nodes.push(text((box.left + box.right) / 2, box.bottom + 33, x.name, { class: "axis" }));
  if (rule !== null) nodes.push(svg("path", { class: "rule", d: `M${across(rule)} ${box.top}V${box.bottom}` }));
  const width = bars.length > 1 ? 0.8 * (across(bars[1][0]) - across(bars[0][0])) : 40;
  for (const [at, value] of bars) {
    nodes.push(svg("rect", { class: "bar", x: across(at) - width / 2, y: up(value), width, height: box.bottom - up(value), "data-value": value }));
  }
  if (level !== null) {
    nodes.push(svg("path", { class: "level", d: `M${box.left} ${up(level.y)}H${box.right}` }));
    nodes.push(text(box.left + 4, up(level.y) - 5, level.name, { "text-anchor": "start" }));
  }
  for (const one of series) nodes.push(...curve(one, across, up, within));
  const place = ([at, value, said]) => ({ x: across(at), y: up(value), text: said });
  const rows = [bars, ...series.filter((one) => !one.faint).map((one) => one.points)];
  const targets = rows.map((row) => row.filter((point) => known(point[1])).map(place)).filter((row) => row.length);
  return { nodes, targets, label, legend, height: box.bottom + 40 };
}

function curve({ points, color, mark, dashes, band, labels, faint }, across, up, within) {
  const style = color ? `stroke:${color};fill:${color}` : null;
  const nodes = [];
  if (band) {
    const there = points.map(([at], place) => [across(at), ...band[place]]).filter(([, low, high]) => known(low) && known(high));
    const edge = [...there.map(([at, , high]) => [at, within(high)]), ...there.reverse().map(([at, low]) => [at, within(low)])];
    if (edge.length) nodes.push(svg("path", { class: "band", style, d: `M${edge.map((corner) => corner.join(" ")).join("L")}Z` }));
  }
  let pen = "M"; // lifted where there is no value
  let d = "";
  for (const [at, value] of points) {
    d += known(value) ? `${pen}${across(at).toFixed(2)} ${up(value).toFixed(2)}` : "";
    pen = known(value) ? "L" : "M";
  }
  if (d) nodes.push(svg("path", { class: faint ? "curve faint" : "curve", style: faint || !color ? null : `stroke:${color}`, d, "stroke-dasharray": dashes }));
  if (faint) return nodes;
  points.forEach(([at, value], place) => {
    if (!known(value)) return;
    const dot = known(mark) ? svg("g", { class: "mark", style, "data-value": value }, MARKS[mark](across(at), up(value))) : null;
    if (dot) nodes.push(dot);
    if (labels) nodes.push(text(across(at) + 6, up(value) - 5, labels[place], { "text-anchor": "start", class: "small" }));
  });
  return nodes;
}
