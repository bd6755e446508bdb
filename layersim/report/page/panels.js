"use strict";
// Which drawings a run has, and the one of the comparison. `state` is { place }: the slider's place among the records.

const layersAxis = (layers) => ({ low: 0.5, high: layers + 0.5, ticks: whole(1, layers), name: "layer" });

/** Across a training: epochs, or steps where an epoch holds more than one record. */
function timeAxis(run) {
  const times = run.records.map((record) => record[run.axis]);
  const [first, last] = [times[0], times[times.length - 1]];
  const ticks = run.axis === "epoch" ? whole(first, last, 9) : spread(times, { low: first, high: last }).ticks.filter((tick) => tick >= first && tick <= last);
  return { low: first, high: last, ticks, name: run.axis, times };
}

/** The colour of layer 1 … L: dark to light, or light to dark, whichever stands out from the page. */
function layerColor(layer, layers) {
  const portion = layers > 1 ? (layer - 1) / (layers - 1) : 0;
  const [from, to] = matchMedia("(prefers-color-scheme: dark)").matches ? [0.35, 1] : [0, 0.78];
  return shade(DATA.layerColors, from + portion * (to - from));
}

/** Of places 0 … count - 1 those that a legend has room for: all, or the first, the middle and the last one. */
const few = (count) => (count <= 8 ? Array.from({ length: count }, (_, place) => place) : [0, Math.round(count / 2) - 1, count - 1]);

function layerLegend(layers) {
  return few(layers).map((place) => place + 1).map((layer) => legendEntry(`layer ${layer}`, { color: layerColor(layer, layers) }));
}

/** One number a layer at the slider's epoch, over the curves of all other epochs. The axis holds every epoch. */
function byLayer(run, title, get, axis = spread) {
  const all = run.records.map(get);
  if (!all.some(Boolean)) return null;
  const y = axis(all.flat());
  return panel(title, ({ place }) => {
    const values = all[place];
    if (!values) return null;
    const faint = all.filter((one, other) => one && other !== place)
      .map((one) => ({ faint: true, points: one.map((value, layer) => [layer + 1, value]) }));
    const points = values.map((value, layer) => [layer + 1, value, `Layer ${layer + 1}: ${number(value)}`]);
    const label = `Epoch ${run.records[place].epoch}: ${number(values[0])} at layer 1, ${number(values[values.length - 1])} at layer ${values.length}`;
    const shown = { name: `epoch ${run.records[place].epoch}`, points, ...look(0) };
    const legend = [legendEntry(shown.name, shown)];
    if (faint.length) legend.push(legendEntry("the other epochs", { color: "var(--faint)" }));
    return chart({ x: layersAxis(values.length), y, series: [...faint, shown], legend, label });
  });
}

/** One number a layer across the training, a curve for each layer. */
function overTraining(run, title, get, axis = spread) {
  const all = run.records.map(get);
  if (run.records.length < 2 || !all.some(Boolean)) return null;
  const x = timeAxis(run);
  const y = axis(all.flat());
  const layers = run.records[0].layers;
  return panel(title, ({ place }) => {
    const series = Array.from({ length: layers }, (_, layer) => ({
      color: layerColor(layer + 1, layers),
      points: all.map((values, time) => [x.times[time], values?.[layer], `Layer ${layer + 1}, ${run.axis} ${x.times[time]}: ${number(values?.[layer])}`]),
    }));
    const label = `One curve for each of ${layers} layers, ${run.axis} ${x.low} to ${x.high}`;
    return chart({ x, y, series, rule: x.times[place], legend: layerLegend(layers), label });
  });
}

/** Several things that have one number an epoch, and layers as their unit. */
function depths(run) {
  const found = [
    ["mean saturation layer", run.records.map((record) => record.meanSaturationLayer)],
    ["effective depth", run.records.map((record) => record.effectiveDepth?.layer)],
  ].filter(([, values]) => values.some(known));
  if (run.records.length < 2 || !found.length) return null;
  const x = timeAxis(run);
  const y = { low: 1, high: Math.max(2, run.records[0].layers), ticks: whole(1, Math.max(2, run.records[0].layers), 8) };
  return panel("Depth over training", ({ place }) => {
    const series = found.map(([name, values], one) => ({
      name,
      ...look(one),
      mark: run.records.length > 30 ? null : one,
      points: values.map((value, time) => [x.times[time], value, `${name}, ${run.axis} ${x.times[time]}: ${number(value, 2)}`]),
    }));
    const legend = series.map((one) => legendEntry(one.name, one));
    return chart({ x, y, series, rule: x.times[place], legend, label: `${found.map(([name]) => name).join(" and ")} in layers` });
  });
}

function heatMaps(run) {
  return run.measures.map((measure) => {
    const scale = DATA.scales[measure];
    return panel(`${scale.name}, layer by layer`, ({ place }) => {
      const matrix = run.records[place].similarity[measure];
      return matrix ? heatMap(matrix, scale) : null;
    });
  });
}

/** Each layer's similarity to the last, a curve for each measure. */
function toLast(run) {
  if (!run.measures.length) return null;
  const every = run.records.flatMap((record) => Object.values(record.similarity).flatMap((matrix) => matrix.map((row) => row[row.length - 1])));
  const y = spread([...every, ...run.records.flatMap((record) => Object.values(record.toLastInterval).flat(2))]);
  return panel("Similarity to the last layer", ({ place }) => {
    const { layers, similarity, toLastInterval } = run.records[place];
    if (!Object.keys(similarity).length) return null;
    const series = Object.entries(similarity).map(([measure, matrix]) => {
      const band = toLastInterval[measure];
      const interval = (layer) => (known(band?.[layer][0]) ? `, interval ${number(band[layer][0])} to ${number(band[layer][1])}` : "");
      return {
        name: DATA.scales[measure].name + (band ? ", with its interval" : ""),
        ...look(run.measures.indexOf(measure)),
        points: matrix.map((row, layer) => [layer + 1, row[layers - 1], `${DATA.scales[measure].name} of layer ${layer + 1} to the last: ${number(row[layers - 1])}${interval(layer)}`]),
        band,
      };
    });
    const legend = series.map((one) => legendEntry(one.name, one));
    return chart({ x: layersAxis(layers), y, series, legend, label: `Epoch ${run.records[place].epoch}` });
  });
}

/** Each layer's similarity to itself at earlier epochs: where a film strip of layers has got to. */
function toEarlierEpochs(run) {
  const measures = [...new Set(run.records.flatMap((record) => Object.keys(record.toEpoch)))];
  return measures.map((measure) => {
    const { name } = DATA.scales[measure];
    const y = spread(run.records.flatMap((record) => (record.toEpoch[measure] ?? []).flat()));
    return panel(`${name} of each layer to earlier epochs`, ({ place }) => {
      const { layers, epoch, toEpoch: { [measure]: values }, earlierEpochs: { [measure]: earlier } } = run.records[place];
      if (!values?.length) return null;
      const series = few(values.length).map((one, place) => ({
        name: `to epoch ${earlier[one]}`,
        ...look(place),
        points: values[one].map((value, layer) => [layer + 1, value, `Layer ${layer + 1} to itself at epoch ${earlier[one]}: ${number(value)}`]),
      }));
      const legend = series.map((one) => legendEntry(one.name, one));
      return chart({ x: layersAxis(layers), y, series, legend, label: `Epoch ${epoch} against ${series.length < earlier.length ? `${series.length} of ` : ""}${earlier.length} earlier` });
    });
  });
}

/** For which share of the samples a quantity rises from a layer to the next; a step stands between its two layers. */
function rises(run) {
  if (!run.records.some((record) => Object.keys(record.rises).length)) return null;
  const y = { ...spread([0, 1]), say: (tick) => `${Math.round(100 * tick)} %` };
  return panel("Samples for which it rises, step by step", ({ place }) => {
    const { layers, epoch, rises: shares } = run.records[place];
    if (!Object.keys(shares).length) return null;
    const series = Object.entries(shares).map(([name, values], one) => ({
      name,
      ...look(one),
      points: values.map((value, step) => [step + 1.5, value, `From layer ${step + 1} to ${step + 2} the ${name} rises for ${percent(value)}`]),
    }));
    const legend = series.map((one) => legendEntry(one.name, one));
    return chart({ x: layersAxis(layers), y, series, legend, label: `Epoch ${epoch}: share of the samples, for each of ${layers - 1} steps` });
  });
}

/** Each layer a point: how alike it is to the last layer, and how often the head is right there. */
function similarityAgainstAccuracy(run) {
  const both = run.records.filter((record) => record.accuracy && Object.keys(record.similarity).length);
  if (!both.length) return null;
  const last = (matrix) => matrix.map((row) => row[row.length - 1]);
  const x = { ...spread(both.flatMap((record) => Object.values(record.similarity).flatMap(last))), name: "similarity to the last layer" };
  const y = spread(both.flatMap((record) => record.accuracy));
  return panel("Similarity against accuracy", ({ place }) => {
    const { accuracy, similarity, epoch } = run.records[place];
    if (!accuracy || !Object.keys(similarity).length) return null;
    const series = Object.entries(similarity).map(([measure, matrix]) => ({
      name: DATA.scales[measure].name,
      ...look(run.measures.indexOf(measure)),
      labels: accuracy.length <= 12 ? accuracy.map((_, layer) => layer + 1) : null,
      points: last(matrix).map((value, layer) => known(value)
        ? [value, accuracy[layer], `Layer ${layer + 1}: ${DATA.scales[measure].name} ${number(value)}, accuracy ${number(accuracy[layer])}`]
        : [0, null, ""]),
    }));
    const legend = series.map((one) => legendEntry(one.name, one));
    return chart({ x, y, series, legend, label: `Epoch ${epoch}: accuracy upwards, similarity to the right, one point a layer and measure` });
  });
}

function saturation(run) {
  if (!run.records.some((record) => record.saturation)) return null;
  return panel("Where predictions become final", ({ place }) => {
    const { saturation: counts, epoch, unit } = run.records[place];
    const total = counts?.reduce((sum, count) => sum + count, 0);
    if (!total) return null;
    let sum = 0;
    const shares = counts.map((count) => count / total);
    const bars = shares.map((share, layer) => [layer + 1, share, `Layer ${layer + 1}: ${percent(share)}, ${counts[layer]} of ${total} ${unit}`]);
    const points = shares.map((share, layer) => {
      sum += share;
      return [layer + 1, sum, `Up to layer ${layer + 1}: ${percent(sum)}`];
    });
    const cumulative = { points, ...look(1) };
    const legend = [
      html("li", {}, svg("svg", { viewBox: "0 0 26 12", class: "key", "aria-hidden": "true" }, svg("rect", { class: "bar", x: 7, y: 0, width: 12, height: 12 })), "at this layer"),
      legendEntry("at this layer or before", cumulative),
    ];
    const y = { ...spread([0, 1]), say: (tick) => `${Math.round(100 * tick)} %` };
    return chart({ x: layersAxis(counts.length), y, bars, series: [cumulative], legend, label: `Epoch ${epoch}: share of ${total} ${unit} by saturation layer` });
  });
}

const sayThreshold = (threshold) => (known(threshold) ? `threshold ${Number(threshold.toPrecision(4))}` : "nobody leaves early");

function exitCurve(curve, name, place) {
  const points = curve.accuracy.map((accuracy, one) =>
    [curve.meanExitLayer[one], accuracy, `${name}, ${sayThreshold(curve.threshold[one])}: accuracy ${number(accuracy)} at ${number(curve.meanExitLayer[one], 2)} layers`]);
  return { name, ...look(place), mark: points.length > 40 ? null : look(place).mark, points, band: curve.interval };
}

const exitAxis = (run) => {
  const deepest = Math.max(2, run.records[0].layers);
  return { low: 1, high: deepest, ticks: whole(1, deepest), name: "mean exit layer" };
};

/** Accuracy against the layers spent, leaving by confidence, at the slider's epoch. */
function exitsOverTraining(run) {
  const curves = run.records.map((record) => record.exitCurve);
  if (!curves.some(Boolean)) return null;
  const y = spread(curves.filter(Boolean).flatMap((curve) => curve.accuracy));
  return panel("Early exit: accuracy against layers spent", ({ place }) => {
    if (!curves[place]) return null;
    const one = exitCurve(curves[place], `confidence, epoch ${run.records[place].epoch}`, 0);
    const label = `Epoch ${run.records[place].epoch}: accuracy ${number(one.points[0][1])} to ${number(one.points[one.points.length - 1][1])}`;
    return chart({ x: exitAxis(run), y, series: [one], legend: [legendEntry(one.name, one)], label });
  });
}

/** The same for the exits that were calibrated for the finished model, with the threshold that was chosen. */
function calibratedExits(run) {
  if (!run.exits) return null;
  const { policy, threshold, meanExitLayer, accuracy, fullAccuracy, curve } = run.exits;
  const chosen = `${policy} ${sayThreshold(threshold)}: accuracy ${number(accuracy)} at ${number(meanExitLayer, 2)} layers`;
  const series = [
    exitCurve(curve, `${policy}, 95 % interval`, 1),
    { name: "chosen", color: "var(--curve-5)", mark: 3, points: [[meanExitLayer, accuracy, `Chosen, ${chosen}`]] },
  ];
  const y = spread([fullAccuracy, ...curve.accuracy, ...(curve.interval ?? []).flat()]);
  const level = { y: fullAccuracy, name: `all layers: ${number(fullAccuracy)}` };
  const legend = series.map((one) => legendEntry(one.name, one));
  return panel("Calibrated exits: the finished model", () => chart({ x: exitAxis(run), y, series, level, legend, label: `Chosen: ${chosen}` }));
}

/** All drawings of a run, those left out for which nothing was recorded. */
function runPanels(run) {
  return [
    ...heatMaps(run),
    byLayer(run, "Perplexity by layer", (record) => record.perplexity, spreadLogarithms),
    byLayer(run, "Accuracy by layer", (record) => record.accuracy),
    byLayer(run, "Loss by layer, nats", (record) => record.loss),
    toLast(run),
    ...toEarlierEpochs(run),
    rises(run),
    byLayer(run, "Neural collapse by layer, NC1", (record) => record.nc1),
    overTraining(run, "Perplexity over training", (record) => record.perplexity, spreadLogarithms),
    overTraining(run, "Accuracy over training", (record) => record.accuracy),
    overTraining(run, "Loss over training, nats", (record) => record.loss),
    depths(run),
    saturation(run),
    exitsOverTraining(run),
    calibratedExits(run),
    similarityAgainstAccuracy(run),
  ].filter(Boolean);
}

/** One quantity by layer, a curve for each group of runs: the mean, and the 95 % interval where there are two or more,
 * which ends with the axis where it is wider than what the quantity can be. */
function comparisonPanel(groups, quantity) {
  const shown = groups.filter((group) => group.quantities[quantity]);
  const axis = quantity === "perplexity" ? spreadLogarithms : spread;
  const bands = shown.map((group) => group.quantities[quantity]);
  const [least, most] = bands[0].limits;
  const reached = (value) => (known(value) ? Math.max(least, Math.min(value, most ?? Infinity)) : value);
  const y = axis(bands.flatMap(({ mean, low, high }) => [...mean, ...low.map(reached), ...high.map(reached)]));
  const series = shown.map((group, place) => {
    const { mean, low, high } = group.quantities[quantity];
    const interval = (layer) => (known(low[layer]) ? `, 95 % interval ${number(low[layer])} to ${number(high[layer])} (${group.runs} runs)` : "");
    return {
      name: group.runs > 1 ? `${group.name}: mean of ${group.runs} runs, 95 % interval` : `${group.name}: one run`,
      ...look(place),
      points: mean.map((value, layer) => [layer + 1, value, `${group.name}, layer ${layer + 1}: ${number(value)}${interval(layer)}`]),
      band: mean.map((_, layer) => [low[layer], high[layer]]),
    };
  });
  const layers = Math.max(...shown.map((group) => group.layers));
  const legend = series.map((one) => legendEntry(one.name, one));
  const title = { perplexity: "Perplexity by layer", accuracy: "Accuracy by layer", loss: "Loss by layer, nats" }[quantity] ?? quantity;
  const label = shown.length === 1 ? "1 group of runs" : `${shown.length} groups of runs`;
  return panel(title, () => chart({ x: layersAxis(layers), y, series, legend, label }));
}
