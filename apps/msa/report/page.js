"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const bitsPerNat = 1 / Math.LN2;

function element(tag, text, className) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

const percent = (share, digits = 1) => (100 * share).toFixed(digits) + " %";
const milliseconds = (ms) => (ms >= 10 ? ms.toFixed(1) : ms >= 1 ? ms.toFixed(2) : ms.toFixed(3)) + " ms";
const keys = (count) => (count % 1024 === 0 ? count / 1024 + "K" : String(count));
const whole = (count) => Math.round(count).toLocaleString("en");

function showHeadline() {
  const h = data.headline;
  byId("lead").textContent =
    `Two language models with ${(h.parameters_msa / 1e6).toFixed(1)} million parameters, one with sparse and one with ` +
    `dense attention, were trained from scratch on the same ${(h.tokens / 1e6).toFixed(1)} million bytes of text ` +
    `(${h.seconds_msa.toFixed(0)} s and ${h.seconds_dense.toFixed(0)} s), evaluated on files they had not seen, ` +
    `and their attention was timed on this machine.`;
  const sign = h.difference >= 0 ? "+" : "\u2212";
  const tiles = [
    [h.bits_per_byte_msa.toFixed(3), "bits per byte, MSA, held-out files"],
    [h.bits_per_byte_dense.toFixed(3), "bits per byte, dense, held-out files"],
    [sign + percent(Math.abs(h.difference), 2), "MSA against dense (lower is better)"],
    [`${percent(h.score_recall_first, 0)} \u2192 ${percent(h.score_recall_last, 0)}`, "score recall, first to last measurement"],
    [`${percent(h.block_recall_first, 0)} \u2192 ${percent(h.block_recall_last, 0)}`, "block recall, first to last measurement"],
  ];
  for (const at of [h.bench_first, h.bench_last]) {
    tiles.push([
      `${milliseconds(at.sparse_ms)}`,
      `attention per token at ${keys(at.context)}; dense ${milliseconds(at.dense_ms)}`,
    ]);
  }
  tiles.push([(h.bench_last.dense_ms / h.bench_last.sparse_ms).toFixed(1) + "\u00d7", `faster than dense at ${keys(h.bench_last.context)}`]);
  for (const [figure, text] of tiles) {
    const tile = document.createElement("div");
    tile.append(element("b", figure), element("span", text));
    byId("headline").append(tile);
  }
}

/* Chart colours are read when a chart is drawn, so that a change between light and dark redraws all. */
const charts = [];

function lineChart(id, lines, x, y, warmupEnd) {
  const datasets = lines.map((line) => ({
    label: line.label, data: line.points, borderWidth: line.thin ? 1 : 2.5, pointRadius: line.dots ? 3 : 0,
    pointHitRadius: 6, borderDash: line.dash, tension: 0, thin: line.thin, colour: line.colour,
    order: line.dash ? 0 : line.thin ? 2 : 1,  // 0 is on top: where a dashed line equals a whole one, both are seen
  }));
  const shade = {
    id: "shade",
    beforeDatasetsDraw(chart) {
      if (!warmupEnd) return;
      const { ctx, chartArea: area, scales } = chart;
      ctx.fillStyle = colour("shade");
      ctx.fillRect(area.left, area.top, scales.x.getPixelForValue(warmupEnd) - area.left, area.height);
    },
  };
  const axis = (options) => ({
    type: options.type || "linear", min: options.min, max: options.max,
    title: { display: true, text: options.title }, grid: {}, ticks: { maxRotation: 0, ...options.ticks },
    afterBuildTicks: options.afterBuildTicks,
  });
  const chart = new Chart(byId(id), {
    type: "line",
    data: { datasets },
    plugins: [shade],
    options: {
      animation: false, parsing: false, responsive: true, maintainAspectRatio: false,
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: { x: axis(x), y: axis(y) },
      plugins: {
        legend: { labels: { usePointStyle: true, pointStyle: "line", pointStyleWidth: 29, sort: (a, b) => a.datasetIndex - b.datasetIndex, filter: (item, all) => !all.datasets[item.datasetIndex].thin } },
        tooltip: { filter: (item) => !item.dataset.thin, callbacks: { title: (items) => (items.length ? x.tooltip(items[0].parsed.x) : ""), label: (item) => `${item.dataset.label}: ${y.tooltip(item.parsed.y)}` } },
      },
    },
  });
  charts.push(chart);
}

function paintCharts() {
  for (const chart of charts) {
    for (const set of chart.data.datasets) {
      const line = colour(set.colour);
      set.borderColor = set.thin ? line + "55" : line;
      set.backgroundColor = line;
    }
    for (const scale of Object.values(chart.options.scales)) {
      scale.grid.color = colour("line");
      scale.ticks.color = scale.title.color = colour("muted");
    }
    chart.options.plugins.legend.labels.color = colour("text");
    chart.update();
  }
}

const series = (steps, field, scale = 1) =>
  steps.filter((row) => typeof row[field] === "number").map((row) => ({ x: row.step, y: scale * row[field] }));

function movingAverage(points) {
  const reach = Math.max(1, Math.round(points.length / 40));
  return points.map((point, i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return { x: point.x, y: near.reduce((sum, p) => sum + p.y, 0) / near.length };
  });
}

function showTraining() {
  const { msa, dense } = data.runs;
  const sparse = msa.steps.find((row) => row.phase === "sparse");
  const warmupEnd = sparse && msa.steps.some((row) => row.phase === "warmup") ? sparse.step : 0;
  const step = { title: "step", tooltip: (value) => "step " + value, min: 0, max: msa.steps[msa.steps.length - 1].step };
  const bits = { title: "bits per byte", tooltip: (value) => value.toFixed(3) };
  const losses = [];
  for (const [label, run, name, dash] of [["MSA", msa, "msa"], ["dense", dense, "dense", [7, 4]]]) {
    const points = series(run.steps, "loss", bitsPerNat);
    losses.push({ label: label + " (each step)", points, thin: true, colour: name });
    losses.push({ label, points: movingAverage(points), colour: name, dash });
  }
  lineChart("loss", losses, step, bits, warmupEnd);
  const [ofMsa, ofDense] = losses.filter((line) => !line.thin).map((line) => new Map(line.points.map((p) => [p.x, p.y])));
  const both = [...ofMsa.keys()].filter((x) => ofDense.has(x));
  const points = both.map((x) => ({ x, y: ofMsa.get(x) - ofDense.get(x) }));
  const reach = Math.max(0.05, ...points.map((point) => Math.abs(point.y)));
  lineChart("difference", [{ label: "MSA − dense", points, colour: "msa" }], step,
    { ...bits, min: -reach, max: reach, ticks: { count: 3, callback: (value) => value.toFixed(2) } }, warmupEnd);
  lineChart("kl", [{ label: "KL loss", points: series(msa.steps, "kl_loss"), colour: "index" }], step,
    { title: "nats", type: "logarithmic", tooltip: (value) => value.toPrecision(3) }, warmupEnd);
  lineChart("recall", [
    { label: "score recall", points: series(msa.steps, "score_recall"), colour: "attend", dots: true },
    { label: "block recall", points: series(msa.steps, "block_recall"), colour: "index", dots: true },
  ], step, { title: "recall", min: 0, max: 1, tooltip: (value) => percent(value) }, warmupEnd);
}

function showBench() {
  const { geometry: g, results, threads, repeats } = data.bench;
  byId("bench-note").textContent =
    `One layer of the trained model's geometry (${g.num_heads_q} query and ${g.num_heads_kv} KV heads of ${g.head_dim}, ` +
    `${g.topk} blocks of ${g.block_size} keys per query, ${g.dtype}), batch ${g.batch}, ${threads} threads, ` +
    `median of ${repeats}. Sparse is index branch plus attention over the chosen blocks; only the index branch grows with the context.`;
  const line = (label, part, name, dash) => ({
    label, dash, colour: name, dots: true, points: results.map((row) => ({ x: row.context, y: row[part].median_ms })),
  });
  const contexts = results.map((row) => row.context);
  lineChart("bench", [
    line("dense", "dense", "dense"), line("sparse, whole layer", "sparse", "msa"),
    line("its index branch", "index", "index", [6, 4]), line("its attention", "attend", "attend", [6, 4]),
  ], {
    title: "keys in context", type: "logarithmic", min: contexts[0], max: contexts[contexts.length - 1], tooltip: (value) => keys(value) + " keys",
    ticks: { callback: keys }, afterBuildTicks: (axis) => { axis.ticks = contexts.map((value) => ({ value })); },
  }, {
    title: "ms per token", type: "logarithmic", tooltip: milliseconds,
    ticks: { callback: (value) => ([1, 2, 5].includes(+value.toExponential()[0]) ? String(+value.toPrecision(1)) : "") },
  });
  const table = byId("bench-table");
  const head = document.createElement("tr");
  for (const title of ["context", "dense", "sparse", "index branch", "attention", "dense / sparse", "GB/s dense", "GB/s sparse"]) head.append(element("th", title));
  table.append(head);
  for (const row of results) {
    const cells = [keys(row.context), milliseconds(row.dense.median_ms), milliseconds(row.sparse.median_ms),
      milliseconds(row.index.median_ms), milliseconds(row.attend.median_ms),
      (row.dense.median_ms / row.sparse.median_ms).toFixed(2) + "\u00d7", row.dense.gb_per_s.toFixed(1), row.sparse.gb_per_s.toFixed(1)];
    const line = document.createElement("tr");
    for (const cell of cells) line.append(element("td", cell));
    table.append(line);
  }
}

/* One row of pixels per sampled query, one column per block; colour: share of the shown KV heads that chose it. */
const heat = {
  draw() {
    const { block_size: size, seqlen, layers } = data.selection;
    const canvas = byId("heatmap");
    const groups = this.groups();
    const rows = groups[0].rows;
    const columns = Math.ceil(seqlen / size);
    const width = canvas.clientWidth, height = Math.min(width * 0.62, Math.max(200, rows.length * 5));
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = height + "px";
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    const edge = (i, count, length) => Math.round((i / count) * length);
    rows.forEach((row, y) => {
      const top = edge(y, rows.length, canvas.height), bottom = edge(y + 1, rows.length, canvas.height);
      const local = Math.floor(row.query / size);
      pen.fillStyle = colour("visible");
      pen.fillRect(0, top, edge(local + 1, columns, canvas.width), bottom - top);
      for (let b = 0; b <= local; ++b) {
        const share = groups.filter((group) => group.rows[y].blocks.includes(b)).length / groups.length;
        if (share === 0) continue;
        const left = edge(b, columns, canvas.width);
        pen.fillStyle = `rgba(${colour("cell")}, ${0.25 + 0.75 * share})`;
        pen.fillRect(left, top, edge(b + 1, columns, canvas.width) - left, bottom - top);
      }
    });
  },
  groups() {
    const layer = data.selection.layers[byId("layer").value];
    const choice = byId("group").value;
    return choice === "all" ? layer.groups : [layer.groups[choice]];
  },
  point(event) {
    const canvas = byId("heatmap"), box = canvas.getBoundingClientRect();
    const groups = this.groups(), rows = groups[0].rows;
    const y = Math.min(rows.length - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows.length)));
    const query = rows[y].query;
    const blocks = [...new Set(groups.flatMap((group) => group.rows[y].blocks))].sort((a, b) => a - b);
    const before = data.selection.text.slice(Math.max(0, query - 60), query + 1).replace(/\s+/g, " ");
    byId("pointed").textContent = `Query ${query}, after \u201c${before}\u201d, reads blocks ${blocks.join(", ")}`;
  },
};

function showSelection() {
  const { block_size: size, topk, seqlen, layers } = data.selection;
  byId("selection-note").textContent =
    `A held-out window of ${whole(seqlen)} bytes. Each row is a query, from the first at the top to the last; each column ` +
    `is a block of ${size} keys, the oldest on the left. A query reads at most ${topk} blocks, always its own.`;
  layers.forEach((layer, i) => byId("layer").append(new Option(layer.layer, i)));
  byId("group").append(new Option("all, overlaid", "all"));
  layers[0].groups.forEach((_, i) => byId("group").append(new Option(i, i)));
  const swatch = (background) => { const box = element("i", ""); box.style.background = background; return box; };
  byId("legend").append(swatch("rgb(var(--cell))"), "chosen by every shown KV head", swatch("rgba(var(--cell), 0.55)"),
    "by some", swatch("var(--visible)"), "visible, not read");
  for (const id of ["layer", "group"]) byId(id).addEventListener("change", () => heat.draw());
  byId("pointed").textContent = "Point at a row to see what the query follows and which blocks it reads.";
  byId("heatmap").addEventListener("pointermove", (event) => heat.point(event));
  heat.draw();
  addEventListener("resize", () => heat.draw());
}

function showText() {
  const { prompt, continuation, file, expected, tokens_per_second: speed } = data.generation;
  byId("sample-note").textContent = (file ? `Begins like ${file}. ` : "") + (speed ? `${whole(speed)} bytes per second.` : "");
  if (expected) byId("expected").querySelector("pre").textContent = expected;
  else byId("expected").remove();
  byId("sample").append(element("span", prompt, "prompt"), element("span", continuation, "continuation"));
  byId("commands").textContent = data.commands;
  const facts = { ...data.machine, cpu_features: [data.machine.cpu_features].flat().join(" ") };
  for (const [name, value] of Object.entries(facts)) {
    if (typeof value === "object") continue;
    const row = document.createElement("tr");
    row.append(element("td", name.replace(/_/g, " ")), element("td", value));
    byId("machine").append(row);
  }
}

showHeadline();
showTraining();
showBench();
showSelection();
showText();
paintCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paintCharts(); heat.draw(); });
