// What is shown: charts from specifications and records, the slider's place among the records, and what follows it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SPACE = 62; // pixels of a heat map's width that are no cells, and
const BELOW = 104; // of its height

const known = (value) => value !== null && value !== undefined;
const control = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function html(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children); // strings become text, never markup
  return node;
}

/** A value for people, in its unit: as `told` of layersim/report/quantity.py. */
function say(value, unit, layers) {
  if (!known(value)) return unit === "layer" ? "none" : "nan";
  if (unit === "share") return `${(100 * value).toFixed(1)}%`;
  if (unit === "layer") return Number.isInteger(value) ? `${value} of ${layers}` : `${value.toFixed(2)} of ${layers}`;
  if (Math.abs(value) < 1e4) return value.toFixed(3);
  return value.toPrecision(3).replace(/\.?0*e/, "e").replace(/\+(\d)$/, "+0$1"); // as Python has it
}

/** A value in a cell, as short as it can be. */
function short(value) {
  if (!known(value)) return "";
  return (Math.abs(value) < 9.995 ? value.toFixed(2) : value.toPrecision(3)).replace(/^(-?)0(?=\.)/, "$1").replace("-", "−");
}

/** The values of a quantity, one a row: its place along the axes, its interval, whether chance makes it, and in words where it stands. */
function rowsOf(chart, quantity, record) {
  if (!quantity) return [];
  const { ticks = {} } = quantity;
  const axes = chart.axes.slice(0, chart.plane ? 2 : undefined);
  const tick = (axis, place) => (ticks[axis] ? ticks[axis][place] ?? "none" : place + 1);
  const round = (one) => (typeof one === "number" ? Number(one.toPrecision(4)) : one);
  const named = (axis, place) => `${axis.replaceAll("_", " ")} ${round(tick(axis, place))}`;
  const [least, most] = chart.range;
  const within = (end) => (known(end) ? Math.min(Math.max(end, least ?? end), most ?? end) : null);
  const counted = chart.unit === "samples" || chart.unit === "tokens";
  const scaled = (one) => (counted && known(one) ? one / record.samples : one);
  const last = (part) => (chart.last ? part?.map((row) => row.at(-1)) : part);
  const rows = [];
  const walk = (values, low, high, at) => {
    if (at.length < axes.length) return values.forEach((one, place) => walk(one, low?.[place], high?.[place], [...at, place]));
    const places = axes.map((axis, place) => tick(axis, at[place]));
    const words = axes.map((axis, place) => named(axis, at[place]));
    if (chart.along && ticks[chart.along]) words.push(named(chart.along, at[0]));
    const [x, one] = chart.plane ? values : [chart.along ? tick(chart.along, at[0]) : places.at(-1), values];
    const value = scaled(one);
    const told = (number) => say(scaled(number), counted ? "share" : chart.unit, record.layers);
    const interval = known(low) ? `, interval ${told(low)} to ${told(high)}` : "";
    const [p, calibrated] = [quantity.p_family, quantity.calibrated].map((part) => at.reduce((some, place) => some?.[place], last(part)));
    const tested = known(p) ? `, family-wise p ${say(p)}, calibrated ${told(calibrated)}` : "";
    const y = places.slice(0, -1).join(", ");
    rows.push({ x, y, value, low: within(low), high: within(high), chance: p > 0.05, at: words.join(", "), said: told(one), interval: interval + tested });
  };
  walk(last(quantity.values), quantity.low, quantity.high, []);
  return rows;
}

/** What a chart shows with the slider at this place: rows now, those of other epochs, and the time. */
function contents(chart, run, place) {
  const record = chart.record ?? run.records[place];
  const rows = (one) => Object.entries(chart.keys).flatMap(([key, name]) =>
    rowsOf(chart, one.quantities[key], one).map((row) => ({ ...row, y: name || row.y, series: name })));
  let now = rows(record);
  let [others, time] = [[], []];
  if (chart.mode === "training") {
    const { axis, records } = run;
    time = [{ x: record[axis] }];
    now = records.length < 2 ? [] : records.flatMap((one) => rows(one).map((row) =>
      ({ ...row, x: one[axis], y: row.series || row.x, at: [row.at, `${axis} ${one[axis]}`].filter(Boolean).join(", ") })));
  } else if (!chart.record && chart.axes.length === 1) {
    others = run.records.flatMap((one, group) => (one === record ? [] : rows(one).map((row) => ({ ...row, group }))));
  }
  const extra = (chart.extra ?? []).map((row) => ({ ...row, said: say(row.value, chart.unit) }));
  if (extra.length) now = [...now, ...extra].sort((one, other) => one.x - other.x);
  const told = ({ series, at, said, interval }) => `${[series, at].filter(Boolean).join(", ")}: ${said}${interval ?? ""}`;
  return { now: now.map((row, id) => ({ ...row, id, told: told(row), short: short(row.value) })), others, time };
}

/** How charts look on this page, light or dark. */
function look(width) {
  const [ink, soft, line, curve, faint] = ["ink", "soft", "line", "curve-0", "faint"].map(css);
  const text = { labelColor: soft, titleColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
  const extent = matchMedia("(prefers-color-scheme: dark)").matches ? [0.35, 1] : [0, 0.8]; // what stands out
  return {
    aria: false, background: css("card"), font: getComputedStyle(document.body).fontFamily, view: { stroke: null },
    axis: { ...text, domain: false, gridColor: line, tickColor: line },
    axisBand: { grid: false, ticks: false },
    legend: { ...text, labelColor: ink, orient: "bottom", labelLimit: Math.min(400, width - 60), symbolLimit: 24 },
    range: { category: [0, 1, 2, 3, 4, 5].map((place) => css(`curve-${place}`)), ramp: { scheme: "viridis", extent } },
    scale: { invalid: { color: { value: "#999999" } } },
    line: { color: curve }, point: { color: curve }, bar: { color: curve }, rule: { color: soft, strokeDash: [4, 3] },
    style: {
      faint: { color: faint, strokeWidth: 1 }, band: { color: curve, opacity: 0.18 }, sum: { color: css("curve-1") },
      walked: { fill: null, filled: false, stroke: ink, strokeWidth: 3 },
    },
  };
}

let queue = Promise.resolve(); // charts are made one after the other, so that the first are there soon
const watcher = new ResizeObserver((entries) => entries.forEach(({ target }) => target.resized()));

/** A figure: title, chart, and a line that reads out the value under the keyboard's cursor. */
function figure(chart) {
  const wide = chart.large && chart.spans && DATA.runs.some((run) => run.records[0].layers > 30);
  const classes = ["panel", chart.large && "large", chart.half && "half", wide && "wide"].filter(Boolean).join(" ");
  const host = html("div", { class: "chart" });
  const readout = html("output", { class: "readout", "aria-live": "polite" });
  const size = html("button", { type: "button", class: "size", "aria-label": `${chart.title}: larger or smaller` }, "⤢");
  const node = html("figure", { class: classes }, html("figcaption", {}, chart.title), html("p", { class: "note" }, chart.note ?? ""), size, host, readout);
  let [shown, made, width, walked] = [{ now: [] }, null, 0, null]; // walked: the line of rows, and the place in it

  async function make() {
    if (!host.clientWidth || !shown.now.length) return;
    width = host.clientWidth;
    const drawn = shown;
    const height = chart.large ? Math.min(0.8 * width, 520) : 250;
    const spec = { ...chart.spec, datasets: structuredClone(drawn), width, height, ...sizes(drawn.now) };
    made?.finalize();
    made = await vegaEmbed(host, spec, {
      mode: "vega-lite", renderer: "svg", ast: true, logLevel: 1, config: look(width), // ast: the policy allows no eval
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: chart.title.replace(/[^\p{L}\p{N}]+/gu, "-"),
    });
    node.view = made.view;
    const label = `${chart.title}. ${drawn.now[0].told}; ${drawn.now.at(-1).told}. Arrow keys walk through the values.`;
    const picture = host.querySelector("svg.marks");
    const told = { role: "application", tabindex: 0, "aria-roledescription": "chart", "aria-label": label };
    for (const [key, value] of Object.entries(told)) picture.setAttribute(key, value);
    picture.addEventListener("keydown", walk);
    picture.addEventListener("blur", () => read(null));
    if (drawn !== shown) update(shown);
  }

  /** Of a heat map: cells as wide as they are high, and the ends of the colours. */
  function sizes(rows) {
    if (!chart.spans) return {};
    const [columns, lines] = ["x", "y"].map((field) => new Set(rows.map((row) => row[field])).size);
    const most = node.classList.contains("wide") ? 90 : chart.large ? 48 : 34;
    const cell = Math.min((Math.min(width, 1000) - SPACE) / columns, most);
    const [low, high] = chart.spans[control("span").value];
    const values = { low, high, cell };
    const params = chart.spec.params.map(({ name, value }) => ({ name, value: values[name] ?? value }));
    return { params, width: cell * columns + SPACE, height: BELOW + Math.max(Math.min(lines, columns) * cell, 24) };
  }

  function redraw() {
    node.view = null;
    queue = queue.then(make).catch(console.error);
  }

  function read(row) {
    if (row === null) walked = null;
    readout.value = row?.told ?? "";
    made.view.signal("walked", row?.id ?? -1).runAsync();
  }

  function walk(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (!step) return;
    event.preventDefault();
    const lines = [...new Set(shown.now.map((row) => row.y))].map((y) => shown.now.filter((row) => row.y === y));
    const held = (value, most) => Math.max(0, Math.min(value, most));
    const line = walked ? held(walked[0] + step[0], lines.length - 1) : 0;
    walked = [line, walked ? held(walked[1] + step[1], lines[line].length - 1) : 0];
    read(lines[line][walked[1]]);
  }

  function update(now) {
    const grown = chart.spans && now.now.length !== shown.now.length;
    shown = now;
    node.hidden = !shown.now.length;
    if (!made || node.hidden || chart.record) return;
    if (grown) return redraw();
    const moving = chart.mode === "training" ? ["time"] : ["now", ...chart.spec.layer.flatMap(({ data }) => data?.name ?? [])];
    for (const name of moving) made.view.data(name, structuredClone(shown[name]));
    read(null);
  }

  size.addEventListener("click", () => node.classList.toggle("wide"));
  host.resized = () => { if (host.clientWidth && host.clientWidth !== width) redraw(); };
  watcher.observe(host);
  return { chart, node, update, redraw };
}

let shown = { run: null, figures: [] };
let playing = null;
let compared = [];

function fillNumbers({ section, run }, place) {
  const record = run.records[place];
  const caption = section.querySelector(".numbers caption");
  if (!caption) return; // nothing has a number by layer
  const columns = {};
  for (const chart of DATA.charts.filter((one) => one.column)) columns[chart.column] = contents(chart, run, place).now.map((row) => row.said);
  section.querySelectorAll(".numbers tbody tr").forEach((row, layer) => row.querySelectorAll("td").forEach((cell, column) => {
    cell.textContent = columns[run.columns[column]]?.[layer] ?? ""; // empty where this epoch did not measure it
  }));
  caption.textContent = `Epoch ${record.epoch}, step ${record.step}, ${record.samples.toLocaleString("en")} ${record.unit}`;
}

/** The figures that carry the story above, the others below. */
function arrange(section, figures) {
  const [above, below] = section.querySelectorAll(".panels");
  above.replaceChildren(...figures.filter(({ chart }) => chart.large).map((one) => one.node));
  below.replaceChildren(...figures.filter(({ chart }) => !chart.large).map((one) => one.node));
}

function showEpoch() {
  const { run, figures } = shown;
  const place = Number(control("epoch").value);
  const record = run.records[place];
  const said = `epoch ${record.epoch}, step ${record.step}`;
  control("epoch-text").value = said;
  control("epoch").setAttribute("aria-valuetext", said);
  for (const one of figures) one.update(contents(one.chart, run, place));
  fillNumbers(shown, place);
}

function showRun(place) {
  const run = DATA.runs[place];
  document.querySelectorAll("section.run").forEach((section, other) => { section.hidden = other !== place; });
  const section = control(`run-${place}`);
  const own = DATA.runs.length > 1 ? [] : DATA.static;
  shown = { run, section, figures: [...DATA.charts, ...own].map(figure) };
  arrange(section, shown.figures);
  control("epoch").max = run.records.length - 1;
  control("epoch").value = run.first;
  control("epoch").disabled = control("play").disabled = run.records.length < 2;
  showEpoch();
}

function pause() {
  clearInterval(playing);
  playing = null;
  control("play").textContent = "▶";
  control("play").setAttribute("aria-label", "Play the epochs");
}

function play() {
  if (playing !== null) return pause();
  if (control("epoch").value === control("epoch").max) control("epoch").value = 0;
  control("play").textContent = "❚❚";
  control("play").setAttribute("aria-label", "Pause");
  showEpoch();
  playing = setInterval(() => {
    control("epoch").value = Number(control("epoch").value) + 1;
    showEpoch();
    if (control("epoch").value === control("epoch").max) pause();
  }, 500);
}

const redraw = (which) => [...compared, ...shown.figures].filter(which).forEach((one) => one.redraw());

function showComparison() {
  const section = control("comparison");
  if (!section) return;
  compared = DATA.static.map(figure);
  for (const one of compared) one.update(contents(one.chart, DATA.runs[one.chart.run], DATA.runs[one.chart.run]?.first));
  arrange(section, compared);
}

control("run").append(...DATA.runs.map((run, place) => html("option", { value: place }, run.name)));
control("run").addEventListener("change", () => { pause(); showRun(Number(control("run").value)); });
control("epoch").addEventListener("input", () => { pause(); showEpoch(); });
control("play").addEventListener("click", play);
control("span").addEventListener("change", () => redraw((one) => one.chart.spans));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(Boolean));
control("run-choice").hidden = DATA.runs.length < 2;
control("controls").hidden = false;
showComparison();
showRun(0);
