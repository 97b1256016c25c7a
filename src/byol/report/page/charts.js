"use strict";
// Curves: a figure.chart with its data in data-chart, drawn anew at every width.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const charts = [];
  let byTime = false;

  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  // Round steps, 1, 2 or 5 times a power of ten.
  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [10, 5, 2, 1].find((each) => each * power <= rough * 1.001) * power;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0);
    return found;
  };

  const number = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
  };

  const duration = (seconds) => (seconds < 100 ? `${number(seconds)} s` : seconds < 6000 ? `${number(seconds / 60)} min` : `${number(seconds / 3600)} h`);

  function draw(chart) {
    const { figure, data } = chart;
    const svg = figure.querySelector("svg");
    const output = figure.querySelector("output");
    const width = svg.clientWidth, height = svg.clientHeight;
    if (!width) return;
    const left = 42, right = 8, top = 10, bottom = 20;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    // A point is [step, seconds, value, low, high].
    const x = (point) => (data.labels ? Math.log10(point[0]) : byTime && data.time ? point[1] / unit[0] : point[0]);
    const lines = data.lines.filter((line) => line.points.length);
    const all = lines.flatMap((line) => line.points);
    const longest = Math.max(...all.map((point) => point[1] || 0));
    const unit = longest < 100 ? [1, "s"] : longest < 6000 ? [60, "min"] : [3600, "h"];
    const xs = all.map(x);
    const values = all.flatMap((point) => point.slice(2)).concat((data.marks || []).map((mark) => mark[0]));
    let x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...values), y1 = Math.max(...values);
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    if (data.zero) y0 = Math.min(0, y0);
    if (y0 === y1) { y0 -= Math.abs(y0) * 0.05 || 0.5; y1 += Math.abs(y1) * 0.05 || 0.5; }
    const px = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
    const py = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
    const say = data.percent ? (value) => `${number(value * 100)} %` : number;
    for (const tick of ticks(y0, y1, 3)) {
      make("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }, svg);
      make("text", { x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, svg, data.percent ? `${number(Math.round(tick * 1e6) / 1e4)} %` : number(tick));
    }
    const places = data.labels ? [...new Set(all.map((point) => point[0]))].map((count) => [Math.log10(count), count.toLocaleString("en")]) : ticks(x0, x1, Math.max(2, width / 110)).map((tick) => [tick, tick >= 1e5 ? `${number(tick / 1000)}k` : tick.toLocaleString("en")]);
    // From the right, where the last one also says of what; one that would touch the next is left out.
    let free = width;
    places.reverse().forEach(([at, text], i) => {
      const named = i ? text : `${text} ${data.labels ? "labels" : byTime && data.time ? unit[1] : "steps"}`;
      const half = named.length * 3.2, middle = Math.min(px(at), width - half);
      if (middle + half > free) return;
      free = middle - half - 6;
      make("text", { x: middle, y: height - 4, "text-anchor": "middle" }, svg, named);
    });
    for (const [value, text] of data.marks || []) {
      make("line", { class: "ref", x1: left, x2: width - right, y1: py(value), y2: py(value) }, svg);
      make("text", { x: width - right, y: py(value) - 4, "text-anchor": "end" }, svg, text);
    }
    const path = (points, at) => points.map((point, i) => `${i ? "L" : "M"}${px(x(point)).toFixed(1)},${py(at(point)).toFixed(1)}`).join("");
    for (const line of lines) {
      const colour = `var(--s${line.colour})`;
      if (line.points[0].length > 3) {
        const back = [...line.points].reverse();
        make("path", { class: "band", d: `${path(line.points, (p) => p[3])}${path(back, (p) => p[4]).replace("M", "L")}Z`, style: `fill:${colour}` }, svg);
      }
      make("path", { d: path(line.points, (point) => point[2]), style: `stroke:${colour}` }, svg);
      if (line.points.length < 12) for (const point of line.points) make("circle", { cx: px(x(point)), cy: py(point[2]), r: 2.6, style: `fill:${colour}` }, svg);
    }
    const cursor = make("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" }, svg);
    const tell = (place) => {
      const parts = lines.map((line) => {
        const point = place === null ? line.points[line.points.length - 1] : line.points.reduce((best, each) => (Math.abs(x(each) - place) < Math.abs(x(best) - place) ? each : best));
        return [point, lines.length > 1 && line.short ? `${line.short} ${say(point[2])}` : say(point[2])];
      });
      const first = parts[0][0];
      const where = place === null ? "" : data.labels ? `${first[0].toLocaleString("en")} labels: ` : `step ${first[0].toLocaleString("en")}${first[1] === null ? "" : `, ${duration(first[1])}`}: `;
      output.textContent = where + parts.map((part) => part[1]).join(", ");
      if (place !== null) { const at = px(x(first)); cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); }
      cursor.setAttribute("visibility", place === null ? "hidden" : "visible");
    };
    svg.onpointermove = (event) => {
      const box = svg.getBoundingClientRect();
      tell(x0 + ((event.clientX - box.left - left) / (width - left - right)) * (x1 - x0));
    };
    svg.onpointerleave = () => tell(null);
    tell(null);
  }

  for (const figure of document.querySelectorAll("figure.chart")) charts.push({ figure, data: JSON.parse(figure.dataset.chart) });
  const redraw = () => charts.forEach(draw);
  new ResizeObserver(redraw).observe(document.body);
  document.querySelectorAll("details").forEach((each) => each.addEventListener("toggle", redraw));
  document.querySelectorAll("[data-axis]").forEach((button) => {
    button.addEventListener("click", () => {
      byTime = button.dataset.axis === "time";
      document.querySelectorAll("[data-axis]").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
      redraw();
    });
  });
  redraw();

  document.querySelectorAll(".copy button").forEach((button) => {
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("pre").textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // pages from a disk may not reach the clipboard
        const range = document.createRange();
        range.selectNodeContents(button.parentElement.querySelector("pre"));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });
})();
