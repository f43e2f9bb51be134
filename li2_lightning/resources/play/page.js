"use strict";
// The page around trainer.js: controls, charts over the step, and the features of every node.
const BLUE = "#0072b2", ORANGE = "#d55e00", PALE = "#57606a", RULE = "#e6eaee";
const FRAME_MS = 14, MOST_UPDATES = 5; // for so long, and so often, the network is updated before the page is drawn again
const MOST_ROWS = 1500; // of the history; then every second row is left out
// The power of ten of the learning rate at which an optimizer starts, as a multiple of its own.
const START = {adam: 0.5, sgd: 0, muon: 0.5};
const CHARTS = [
  {title: "Accuracy", columns: [["train/accuracy", "train"], ["test/accuracy", "test"]], range: [0, 1]},
  {title: "Backpropagated gradient ‖G_F‖", columns: [["gradient/norm", "‖G_F‖"]], range: [0, null]},
  {title: "What drives the nodes", columns: [["gradient/independence", "independence"], ["gradient/coupling", "coupling"]], range: [-1, 1]},
  {title: "Energy at unit norm", columns: [["energy/max", "largest"], ["energy/mean", "mean"]], range: [0, null]},
  {title: "Loss", columns: [["train/loss", "train"], ["test/loss", "test"]], range: [0, null]},
  {title: "Features", columns: [["features/purity", "mean purity"], ["covered", "share of k found"]], range: [0, 1]},
];
// Stops of the colour map of our pictures (magma).
const MAGMA = [[0, 0, 4], [40, 17, 89], [101, 26, 128], [158, 47, 127], [212, 72, 103], [244, 118, 91], [254, 186, 128], [252, 253, 191]];

const element = id => document.getElementById(id);
let trainer, history, running = true;

function settings() {
  const exponent = element("decay").valueAsNumber;
  const M = Number(element("M").value);
  return {
    optimizer: element("optimizer").value,
    multiple: 10 ** element("rate").valueAsNumber,
    // The left end of the slider is no decay at all.
    decay: exponent < -5 ? 0 : 10 ** exponent,
    rows: Math.min(Math.max(Math.round(element("share").valueAsNumber * M * M), 2), M * M - 1),
    M,
    K: Number(element("K").value),
    seed: element("seed").valueAsNumber || 0,
  };
}

function showSettings() {
  const {optimizer, multiple, decay, rows, M} = settings();
  const rates = [...new Set(["W", "V"].map(role => Number((multiple * OPTIMIZERS[optimizer][role][1]).toPrecision(2))))];
  element("rate-shown").textContent = rates.join(" / ");
  element("decay-shown").textContent = decay ? decay.toExponential(1) : "0";
  element("share-shown").textContent = `${rows} of ${M * M}`;
  element("run").textContent = running ? "Pause" : "Train";
}

function restart() {
  const {M, K, seed, optimizer} = settings();
  trainer = Trainer.fromSeed(M, K, seed);
  trainer.choose(optimizer);
  history = [];
  record();
  draw();
}

function record() {
  const row = trainer.measure(settings().rows);
  row.covered = row["features/coverage"] / Math.floor(trainer.M / 2);
  history.push(row);
  element("note").textContent = diverged() ? "The loss is no longer a number: lower the learning rate and restart." : "";
  if (history.length > MOST_ROWS) history = history.filter((_, i) => i % 2 === 0);
}

const diverged = () => !Number.isFinite(history.at(-1)["train/loss"]);

/** At most `most` updates, until a time in milliseconds, and the row after them. */
function train(most, until) {
  const {rows, multiple, decay} = settings();
  for (let i = 0; i < most && (i === 0 || performance.now() < until); i++) trainer.update(rows, multiple, decay);
  record();
}

function frame() {
  if (running && !diverged()) {
    train(MOST_UPDATES, performance.now() + FRAME_MS);
    draw();
  }
  requestAnimationFrame(frame);
}

function draw() {
  element("step").textContent = trainer.step;
  for (const chart of CHARTS) drawChart(chart);
  const shares = trainer.shares();
  drawNodes(shares);
  drawWaves(shares);
}

/** The context of a canvas at the resolution of the screen, cleared, and its size. */
function prepared(canvas, height) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  return [context, width, height];
}

const short = value => (value === 0 ? "0" : Math.abs(value) >= 0.01 ? String(Number(value.toPrecision(3))) : value.toExponential(1));

function drawChart({columns, range, canvas, values}) {
  const [context, width, height] = prepared(canvas, 130), left = 42, bottom = 16;
  const points = columns.map(([name]) => history.map(row => row[name]));
  const [low, high] = [range[0], range[1] ?? (Math.max(...points.flat().filter(Number.isFinite)) * 1.05 || 1)];
  const last = Math.max(history.at(-1).step, 1);
  const x = step => left + (width - left - 6) * step / last, y = value => 5 + (height - bottom - 5) * (high - value) / (high - low);
  context.fillStyle = PALE;
  context.strokeStyle = RULE;
  for (const value of [low, (low + high) / 2, high]) {
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(short(value), left - 5, y(value));
    context.beginPath();
    context.moveTo(left, y(value));
    context.lineTo(width, y(value));
    context.stroke();
  }
  context.textBaseline = "bottom";
  context.fillText(last, width - 4, height);
  context.textAlign = "left";
  context.fillText("step 0", left, height);
  points.forEach((series, index) => {
    context.strokeStyle = [BLUE, ORANGE][index];
    context.setLineDash(index ? [] : columns.length > 1 ? [5, 3] : []);
    context.lineWidth = 1.8;
    context.beginPath();
    let open = false;
    series.forEach((value, i) => {
      const seen = Number.isFinite(value);
      if (seen) context[open ? "lineTo" : "moveTo"](x(history[i].step), y(Math.min(Math.max(value, low), high)));
      open = seen;
    });
    context.stroke();
    values[index].textContent = Number.isFinite(series.at(-1)) ? short(series.at(-1)) : "undefined";
  });
  context.setLineDash([]);
}

function color(share) {
  const at = Math.min(Math.max(share, 0), 1) * (MAGMA.length - 1), i = Math.min(Math.floor(at), MAGMA.length - 2);
  return `rgb(${MAGMA[i].map((low, c) => Math.round(low + (at - i) * (MAGMA[i + 1][c] - low)))})`;
}

/** For every frequency the nodes that it leads, as [share, node], the purest first. */
function leaders(shares) {
  const rows = shares.map(() => []);
  for (let j = 0; j < trainer.K; j++) {
    let best = 0;
    shares.forEach((block, k) => { if (block[j] > shares[best][j]) best = k; });
    // A node without weights, and one that has diverged, has no share.
    rows[best].push([shares[best][j] || 0, j]);
  }
  return rows.map(row => row.sort((a, b) => b[0] - a[0]));
}

function drawNodes(shares) {
  const [context, width, height] = prepared(element("nodes"), 230), left = 44, rows = leaders(shares);
  const cellHeight = height / rows.length, most = Math.max(...rows.map(row => row.length), 12);
  rows.forEach((row, k) => {
    context.fillStyle = PALE;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(`k = ${k + 1}`, left - 6, (k + 0.5) * cellHeight);
    row.forEach(([share], i) => {
      context.fillStyle = color(share);
      context.fillRect(left + i * (width - left) / most, k * cellHeight, (width - left) / most - 1, cellHeight - 1);
    });
  });
}

function drawWaves(shares) {
  const [context, width, height] = prepared(element("waves"), 230), {M, K, W} = trainer;
  const shown = leaders(shares).map((row, k) => [k + 1, ...(row[0] || [0, -1])]).filter(row => row[2] >= 0)
    .sort((a, b) => b[1] - a[1]).slice(0, 6).sort((a, b) => a[0] - b[0]);
  shown.forEach(([k, , node], row) => {
    const weights = Array.from({length: M}, (_, x) => W[x * K + node]);
    const size = Math.max(...weights.map(Math.abs)) || 1, middle = (row + 0.5) * height / shown.length;
    context.strokeStyle = BLUE;
    context.lineWidth = 1.5;
    context.beginPath();
    weights.forEach((value, x) =>
      context.lineTo(4 + x * (width - 56) / (M - 1), middle - value / size * 0.4 * height / shown.length));
    context.stroke();
    context.fillStyle = PALE;
    context.textBaseline = "middle";
    context.fillText(`k = ${k}`, width - 44, middle);
  });
}

for (const chart of [...CHARTS].reverse()) {
  const section = document.createElement("section"), title = document.createElement("h2"), key = document.createElement("p");
  title.textContent = chart.title;
  key.className = "key";
  chart.values = chart.columns.map(([name, label], index) => {
    const entry = document.createElement("span"), value = document.createElement("output"), bold = document.createElement("b");
    entry.className = index ? "second" : "first";
    bold.textContent = `${index || chart.columns.length === 1 ? "—" : "- -"} ${label} `;
    value.id = name;
    entry.append(bold, value, "   ");
    key.append(entry);
    return value;
  });
  chart.canvas = document.createElement("canvas");
  section.append(title, key, chart.canvas);
  element("charts").prepend(section);
}

element("controls").addEventListener("input", event => {
  if (["M", "K", "seed"].includes(event.target.id)) restart();
  else if (event.target.id === "optimizer") {
    trainer.choose(event.target.value);
    element("rate").value = START[event.target.value];
  }
  showSettings();
});
element("run").addEventListener("click", () => { running = !running; showSettings(); });
element("restart").addEventListener("click", () => { restart(); showSettings(); });
window.addEventListener("resize", draw);

// A link may set any control, and the number of steps that are made before the page is shown, which then waits:
// #M=11&K=32&decay=-6&steps=200.
const asked = new URLSearchParams(location.hash.slice(1));
if (asked.get("optimizer") in START) element("rate").value = START[asked.get("optimizer")];
for (const [key, value] of asked) if (key !== "steps" && element(key)) element(key).value = value;
running = !asked.has("steps");
restart();
while (trainer.step < Number(asked.get("steps")) && !diverged()) {
  train(Math.min(MOST_UPDATES, Number(asked.get("steps")) - trainer.step), Infinity);
}
draw();
showSettings();
requestAnimationFrame(frame);
