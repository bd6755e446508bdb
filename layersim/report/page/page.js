"use strict";
// What is shown: the run, the slider's place among its records, and the table that follows them.

const DATA = JSON.parse(document.getElementById("data").textContent);

const controls = {
  run: document.getElementById("run"),
  epoch: document.getElementById("epoch"),
  told: document.getElementById("epoch-text"),
  play: document.getElementById("play"),
};
let shown = { run: null, panels: [] };
let playing = null;

function fillNumbers(section, record) {
  const said = (values) => values?.map((value) => (known(value) ? digits_of(value) : "nan"));
  const columns = { perplexity: said(record.perplexity), accuracy: said(record.accuracy), loss: said(record.loss), "saturated here": record.saturation };
  for (const [measure, matrix] of Object.entries(record.similarity)) {
    columns[`${measure} to the last layer`] = said(matrix.map((row) => row[row.length - 1]));
  }
  const headings = [...section.querySelectorAll(".numbers thead th")].slice(1).map((heading) => heading.textContent);
  section.querySelectorAll(".numbers tbody tr").forEach((row, layer) => row.querySelectorAll("td").forEach((cell, column) => {
    cell.textContent = columns[headings[column]]?.[layer] ?? ""; // empty where this epoch did not measure it
  }));
  section.querySelector(".numbers caption").textContent = `Epoch ${record.epoch}, step ${record.step}, ${record.samples.toLocaleString("en")} ${record.unit}`;
}

function showEpoch() {
  const { run, panels, section } = shown;
  const place = Number(controls.epoch.value);
  const record = run.records[place];
  const said = `epoch ${record.epoch}, step ${record.step}`;
  controls.told.value = said;
  controls.epoch.setAttribute("aria-valuetext", said);
  for (const one of panels) one.update({ place });
  fillNumbers(section, record);
}

function showRun(place) {
  const run = DATA.runs[place];
  document.querySelectorAll("section.run").forEach((section, other) => { section.hidden = other !== place; });
  const section = document.getElementById(`run-${place}`);
  shown = { run, section, panels: runPanels(run) };
  section.querySelector(".panels").replaceChildren(...shown.panels.map((one) => one.node));
  controls.epoch.max = run.records.length - 1;
  controls.epoch.value = run.first;
  controls.epoch.disabled = controls.play.disabled = run.records.length < 2;
  showEpoch();
}

function pause() {
  clearInterval(playing);
  playing = null;
  controls.play.textContent = "▶";
  controls.play.setAttribute("aria-label", "Play the epochs");
}

function play() {
  if (playing !== null) return pause();
  if (controls.epoch.value === controls.epoch.max) controls.epoch.value = 0;
  controls.play.textContent = "❚❚";
  controls.play.setAttribute("aria-label", "Pause");
  showEpoch();
  playing = setInterval(() => {
    controls.epoch.value = Number(controls.epoch.value) + 1;
    showEpoch();
    if (controls.epoch.value === controls.epoch.max) pause();
  }, 500);
}

function showComparison() {
  const host = document.querySelector("#comparison .panels");
  if (!host) return;
  const quantities = [...new Set(DATA.groups.flatMap((group) => Object.keys(group.quantities)))];
  const drawn = quantities.map((quantity) => comparisonPanel(DATA.groups, quantity));
  for (const one of drawn) one.update({});
  host.replaceChildren(...drawn.map((one) => one.node));
}

controls.run.append(...DATA.runs.map((run, place) => html("option", { value: place }, run.name)));
controls.run.addEventListener("change", () => { pause(); showRun(Number(controls.run.value)); });
controls.epoch.addEventListener("input", () => { pause(); showEpoch(); });
controls.play.addEventListener("click", play);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showEpoch);
document.getElementById("run-choice").hidden = DATA.runs.length < 2;
document.getElementById("controls").hidden = false;
showComparison();
showRun(0);
