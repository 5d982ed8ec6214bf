// Charts: each .plot names where its numbers come from, and draws them again when more arrive.
// A chart's numbers also stand in a table beside it, made by the server.
"use strict";
(() => {
  const plots = new Map();

  // light-dark() is resolved by the browser only where a colour is used, so it is used once, unseen.
  const resolved = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };

  const short = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    if (size !== 0 && size < 1e-3) return value.toExponential(1);
    return String(+value.toPrecision(4));
  };

  const smoothed = (values, weight) => {
    if (!weight) return values;
    let held = null, mass = 0;
    return values.map((value) => {
      if (value === null) return null;
      held = (held ?? 0) * weight + value * (1 - weight);
      mass = mass * weight + (1 - weight);
      return held / mass;
    });
  };

  function draw(element) {
    const state = plots.get(element);
    if (!state?.data) return;
    const { data } = state;
    const width = element.clientWidth, height = element.clientHeight;
    const nothing = element.querySelector(".nothing");
    const some = data.x.length > 0;
    if (nothing) nothing.hidden = some;
    state.plot?.destroy();
    state.plot = null;
    if (!some || !width) return;
    const text = resolved("--pico-muted-color"), grid = resolved("--grid");
    const time = element.dataset.x === "time";
    const logX = element.dataset.logX === "1", logY = element.dataset.logY === "1";
    const bars = element.dataset.bars === "1";
    const legend = data.series.length > 1;
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const weight = Number(element.dataset.smooth || 0);
    const series = data.series.map((one, index) => ({
      label: one.label,
      stroke: resolved(`--series-${(index % 6) + 1}`),
      fill: bars ? resolved(`--series-${(index % 6) + 1}`) : undefined,
      width: bars ? 0 : 2,
      spanGaps: true,
      points: { show: data.x.length < 2 },
      paths: bars ? uPlot.paths.bars({ size: [0.7, 60] }) : undefined,
      value: (_, value) => short(value),
    }));
    let rows = data.series.map((one) => smoothed(one.values, weight));
    let shown = rows;
    if (bars) { // the first series stands on top of all the others, so it is drawn first
      shown = rows.map((_, index) => data.x.map((_, at) =>
        rows.slice(index).reduce((sum, row) => sum + (row[at] ?? 0), 0)));
      series.forEach((one, index) => { one.value = (_, __, ___, at) => short(rows[index][at]); });
    }
    const legendHeight = legend ? 26 : 0;
    state.plot = new uPlot({
      width, height: height - legendHeight,
      legend: { show: legend },
      cursor: { y: false, points: { size: 7 } },
      scales: { x: { time, distr: logX ? 3 : 1 },
        y: { distr: logY ? 3 : 1, range: element.dataset.zero === "1" || bars ? (_, lo, hi) => [0, (hi || 1) * 1.08] : undefined } },
      axes: [{ ...axis, size: time ? 40 : 26, space: 64, values: time ? undefined : (_, ticks) => ticks.map((v) => v === null ? "" : short(v)) },
        { ...axis, size: 52, space: 32, values: (_, ticks) => ticks.map((v) => v === null ? "" : short(v)) }],
      series: [{ label: element.dataset.xLabel || "", value: time ? undefined : (_, v) => short(v) }, ...series],
    }, [data.x, ...shown], element);
    element.dataset.points = String(data.x.length);
    element.querySelector("canvas")?.setAttribute("aria-hidden", "true");
    const now = element.closest(".chart")?.querySelector(".now");
    if (now && data.series.length === 1) {
      const last = data.series[0].values.filter((value) => value !== null).at(-1);
      now.textContent = last === undefined ? "" : short(last);
    }
  }

  async function load(element) {
    const state = plots.get(element);
    if (state.loading) { state.again = true; return; }
    state.loading = true;
    try {
      const answer = await fetch(element.dataset.src, { headers: { accept: "application/json" } });
      if (answer.ok) {
        const all = await answer.json();
        deliver(element.dataset.src, all);
      }
    } finally {
      state.loading = false;
    }
    if (state.again) { state.again = false; load(element); }
  }

  // Several plots may read different columns of one source.
  function deliver(source, all) {
    for (const [element, state] of plots) {
      if (element.dataset.src !== source) continue;
      state.data = all[element.dataset.column] ?? all;
      draw(element);
    }
  }

  function begin(root) {
    const sources = new Set();
    root.querySelectorAll(".plot[data-src]").forEach((element) => {
      if (plots.has(element)) return;
      plots.set(element, { data: null, plot: null });
      sizes.observe(element);
      if (!sources.has(element.dataset.src)) {
        sources.add(element.dataset.src);
        load(element);
      }
    });
  }

  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    const state = plots.get(target);
    if (!target.isConnected) { plots.delete(target); sizes.unobserve(target); return; }
    if (state && state.width !== target.clientWidth) { state.width = target.clientWidth; draw(target); }
  }));

  function again() {
    const seen = new Set();
    for (const element of plots.keys()) {
      if (seen.has(element.dataset.src)) continue;
      seen.add(element.dataset.src);
      load(element);
    }
  }

  document.addEventListener("DOMContentLoaded", () => begin(document));
  document.addEventListener("htmx:after:swap", () => begin(document));
  document.addEventListener("charts", again); // the server says that there are new numbers
  addEventListener("themechange", () => plots.forEach((_, element) => draw(element)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((_, element) => draw(element)));
  document.addEventListener("input", (event) => {
    const control = event.target.closest("[data-plot-setting]");
    if (!control) return;
    const value = control.type === "checkbox" ? (control.checked ? "1" : "0") : control.value;
    document.querySelectorAll(control.dataset.plots || ".plot").forEach((element) => {
      element.dataset[control.dataset.plotSetting] = value;
      draw(element);
    });
  });
})();
