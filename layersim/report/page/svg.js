"use strict";
// Elements, numbers for people, and the panel: a drawing that can be explored by pointer and by keyboard.

const WIDTH = 340; // of every drawing, in its own units: text of 12 stays readable on a phone

function element(document_name, name, attributes, children) {
  const node = document.createElementNS(document_name, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children); // strings become text, never markup
  return node;
}

const svg = (name, attributes = {}, ...children) => element("http://www.w3.org/2000/svg", name, attributes, children);
const html = (name, attributes = {}, ...children) => element("http://www.w3.org/1999/xhtml", name, attributes, children);

const known = (value) => value !== null && value !== undefined;
const digits_of = (value, digits = 3) => (Math.abs(value) >= 1e4 ? value.toPrecision(3) : value.toFixed(digits));
const number = (value, digits = 3) => (known(value) ? digits_of(value, digits).replace("-", "−") : "no value");
const percent = (value) => `${(100 * value).toFixed(1)} %`;

/** The ends and ticks of an axis that holds all values: round numbers, at most seven. */
function spread(values, { low = null, high = null } = {}) {
  const present = values.filter(known);
  const bottom = low ?? present.reduce((least, value) => Math.min(least, value), Infinity);
  const top = high ?? present.reduce((most, value) => Math.max(most, value), -Infinity);
  if (!present.length || !(top > bottom)) {
    const middle = present.length ? present[0] : 0.5;
    return { low: middle - 0.5, high: middle + 0.5, ticks: [middle - 0.5, middle, middle + 0.5] };
  }
  const rough = (top - bottom) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.floor(bottom / step + 1e-9);
  const last = Math.ceil(top / step - 1e-9);
  const ticks = [];
  for (let place = first; place <= last; place += 1) ticks.push(Number((place * step).toPrecision(12)));
  return { low: ticks[0], high: ticks[ticks.length - 1], ticks };
}

/** The same in logarithms, for perplexities: round numbers where they are close, else 1, 2 and 5 of each power of ten. */
function spreadLogarithms(values) {
  const present = values.filter(known);
  const least = present.reduce((one, other) => Math.min(one, other), Infinity);
  const most = present.reduce((one, other) => Math.max(one, other), -Infinity);
  if (!(most >= 3 * least)) return { ...spread(values), log: present.length > 0 };
  const factors = most < 1000 * least ? [1, 2, 5] : [1];
  const powers = whole(Math.floor(Math.log10(least)), Math.ceil(Math.log10(most)), 8);
  const every = powers.flatMap((power) => factors.map((factor) => Number((factor * 10 ** power).toPrecision(12))));
  const low = Math.max(...every.filter((tick) => tick <= least));
  const high = Math.min(...every.filter((tick) => tick >= most));
  const say = (tick) => (tick < 1e5 ? String(tick) : tick.toExponential(0));
  return { low, high, ticks: every.filter((tick) => tick >= low && tick <= high), log: true, say };
}

/** Whole numbers along an axis from `first` to `last`, so few that their labels stay apart. */
function whole(first, last, most = 12) {
  const step = [1, 2, 4, 5, 8, 10, 16, 20, 25, 50].find((each) => (last - first) / each < most) ?? Math.ceil((last - first) / most);
  const ticks = [];
  for (let value = first; value < last; value += 1) {
    if ((value === first || value % step === 0) && last - value >= step / 2) ticks.push(value);
  }
  return [...ticks, last];
}

let panels_made = 0;

/**
 * A figure: title, drawing, a line that reads out the value under the pointer or the cursor, and a legend.
 *
 * `draw(state)` gives { nodes, height, label, targets, legend }. Targets are rows of places with a text:
 * { x, y, text, side } (a cell of this side, else a point). The arrow keys walk them: up to the next row.
 */
function panel(title, draw) {
  panels_made += 1;
  const readout_id = `readout-${panels_made}`;
  const picture = svg("svg", { role: "application", tabindex: 0, "aria-roledescription": "chart", "aria-describedby": readout_id });
  const readout = html("output", { id: readout_id, class: "readout", "aria-live": "polite" });
  const legend = html("ul", { class: "legend" });
  const node = html("figure", { class: "panel" }, html("figcaption", {}, title), picture, readout, legend);
  const cursor = svg("g", { class: "cursor" });
  let drawn = null;
  let place = null; // [row, column] of the target that is read out

  function read() {
    cursor.replaceChildren();
    const target = place && drawn.targets[place[0]]?.[place[1]];
    readout.value = target ? target.text : drawn.label;
    if (!target) return;
    const { x, y, side } = target;
    for (const layer of ["halo", "ring"]) { // two strokes, so that it stands out from any colour
      cursor.append(
        side
          ? svg("rect", { class: layer, x: x - side / 2, y: y - side / 2, width: side, height: side })
          : svg("circle", { class: layer, cx: x, cy: y, r: 7 }),
      );
    }
  }

  function walk(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (!step || !drawn.targets.length) return;
    event.preventDefault();
    const held = (value, most) => Math.max(0, Math.min(value, most));
    const row = place ? held(place[0] + step[0], drawn.targets.length - 1) : 0;
    place = [row, held(place ? place[1] + step[1] : 0, drawn.targets[row].length - 1)];
    read();
  }

  function point(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    let nearest = Infinity;
    drawn.targets.forEach((row, i) => row.forEach((target, j) => {
      const distance = (target.x - at.x) ** 2 + (target.y - at.y) ** 2;
      if (distance < nearest) [nearest, place] = [distance, [i, j]];
    }));
    read();
  }

  function leave() {
    place = null;
    read();
  }

  picture.addEventListener("keydown", walk);
  picture.addEventListener("pointermove", point);
  picture.addEventListener("pointerdown", point);
  picture.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
  picture.addEventListener("blur", leave);

  function update(state) {
    drawn = draw(state);
    node.hidden = drawn === null;
    if (drawn === null) return;
    picture.setAttribute("viewBox", `0 0 ${WIDTH} ${drawn.height}`);
    picture.setAttribute("aria-label", `${title}. ${drawn.label}. Arrow keys walk through the values.`);
    picture.replaceChildren(...drawn.nodes, cursor);
    legend.replaceChildren(...(drawn.legend ?? []));
    legend.hidden = !legend.children.length;
    read();
  }

  return { node, update };
}
