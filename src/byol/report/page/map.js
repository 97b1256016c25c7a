"use strict";
// A map of images: points on a canvas, to move, zoom, point at, click and select with a lasso.
class EmbeddingMap {
  // xy: Float32Array [2 N]. group: Int32Array [N], -1 for none. colours: of each group, a CSS colour.
  // on: { hover(row | null, x, y), pick(row | null), select(rows) }.
  constructor(canvas, { xy, group, colours, on }) {
    this.canvas = canvas;
    this.xy = xy;
    this.group = group;
    this.colours = colours;
    this.on = on;
    this.num = xy.length / 2;
    this.hidden = new Set();
    this.marked = [];
    this.picked = null;
    this.chosen = null;
    this.lasso = null;
    this.selecting = false;
    this.pointers = new Map();
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    for (let i = 0; i < this.num; i++) {
      x0 = Math.min(x0, xy[2 * i]); x1 = Math.max(x1, xy[2 * i]);
      y0 = Math.min(y0, xy[2 * i + 1]); y1 = Math.max(y1, xy[2 * i + 1]);
    }
    this.bounds = [x0, x1, y0, y1];
    this.index();
    new ResizeObserver(() => this.fit()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => this.on.hover?.(null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = this.place(event);
      this.zoom(Math.exp(-event.deltaY * 0.0015), x, y);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.fit();
  }

  // A grid over the plane, so that what lies under the pointer is found among many.
  index() {
    const [x0, x1, y0, y1] = this.bounds;
    this.cells = Math.max(1, Math.min(256, Math.round(Math.sqrt(this.num / 4))));
    this.scaleX = this.cells / ((x1 - x0) || 1);
    this.scaleY = this.cells / ((y1 - y0) || 1);
    const cell = new Int32Array(this.num), counts = new Int32Array(this.cells ** 2 + 1);
    for (let i = 0; i < this.num; i++) {
      cell[i] = this.column(this.xy[2 * i]) + this.cells * this.line(this.xy[2 * i + 1]);
      counts[cell[i] + 1]++;
    }
    for (let i = 1; i < counts.length; i++) counts[i] += counts[i - 1];
    this.starts = counts;
    const next = counts.slice();
    this.order = new Int32Array(this.num);
    for (let i = 0; i < this.num; i++) this.order[next[cell[i]]++] = i;
  }

  column(x) { return Math.max(0, Math.min(this.cells - 1, Math.floor((x - this.bounds[0]) * this.scaleX))); }
  line(y) { return Math.max(0, Math.min(this.cells - 1, Math.floor((y - this.bounds[2]) * this.scaleY))); }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const ratio = devicePixelRatio || 1, first = this.width === undefined;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.ratio = ratio;
    this.width = width;
    this.height = height;
    if (first) this.whole(); else this.draw();
  }

  whole() {
    const [x0, x1, y0, y1] = this.bounds;
    const spanX = (x1 - x0) || 1, spanY = (y1 - y0) || 1;
    this.scale = Math.min((this.width - 30) / spanX, (this.height - 30) / spanY);
    this.shiftX = this.width / 2 - (this.scale * (x0 + x1)) / 2;
    this.shiftY = this.height / 2 + (this.scale * (y0 + y1)) / 2;
    this.home = this.scale;
    this.draw();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.max(this.home * 0.5, Math.min(this.home * 200, this.scale * factor));
    this.shiftX = x - (x - this.shiftX) * (scale / this.scale);
    this.shiftY = y - (y - this.shiftY) * (scale / this.scale);
    this.scale = scale;
    this.draw();
  }

  screen(i) { return [this.shiftX + this.scale * this.xy[2 * i], this.shiftY - this.scale * this.xy[2 * i + 1]]; }
  shown(i) { return !this.hidden.has(this.group[i]); }
  size() { return Math.max(1, Math.min(7, (Math.sqrt((this.width * this.height) / this.num) / 9) * Math.sqrt(this.scale / this.home))); }

  draw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => { this.queued = false; this.paint(); });
  }

  paint() {
    const context = this.canvas.getContext("2d"), style = getComputedStyle(this.canvas);
    const ink = style.getPropertyValue("--ink"), soft = style.getPropertyValue("--soft"), accent = style.getPropertyValue("--accent");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const radius = this.size(), many = this.num > 4000;
    const dim = this.chosen !== null;
    const byGroup = new Map();
    for (let i = 0; i < this.num; i++) {
      if (!this.shown(i)) continue;
      const [x, y] = this.screen(i);
      if (x < -9 || y < -9 || x > this.width + 9 || y > this.height + 9) continue;
      const key = dim && !this.chosen.has(i) ? "dim" : this.group[i];
      if (!byGroup.has(key)) byGroup.set(key, []);
      byGroup.get(key).push(x, y);
    }
    for (const [key, places] of [...byGroup].sort((a, b) => (a[0] === "dim" ? -1 : b[0] === "dim" ? 1 : 0))) {
      context.fillStyle = key === "dim" || key < 0 ? soft : this.colours[key];
      context.globalAlpha = key === "dim" ? 0.18 : 0.82;
      context.beginPath();
      for (let i = 0; i < places.length; i += 2) {
        if (many) context.rect(places[i] - radius, places[i + 1] - radius, 2 * radius, 2 * radius);
        else { context.moveTo(places[i] + radius, places[i + 1]); context.arc(places[i], places[i + 1], radius, 0, 7); }
      }
      context.fill();
    }
    context.globalAlpha = 1;
    if (this.picked !== null) {
      const [x0, y0] = this.screen(this.picked);
      context.strokeStyle = accent;
      context.lineWidth = 1;
      context.globalAlpha = 0.6;
      context.beginPath();
      for (const i of this.marked) { const [x, y] = this.screen(i); context.moveTo(x0, y0); context.lineTo(x, y); }
      context.stroke();
      context.globalAlpha = 1;
    }
    for (const i of this.marked) this.ring(context, i, radius + 2.5, accent, 1.6);
    if (this.picked !== null) this.ring(context, this.picked, radius + 4, ink, 2.4);
    if (this.under !== undefined && this.under !== null) this.ring(context, this.under, radius + 2.5, ink, 1.4);
    if (this.lasso) {
      context.strokeStyle = accent;
      context.fillStyle = accent;
      context.lineWidth = 1.5;
      context.beginPath();
      this.lasso.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.stroke();
      context.globalAlpha = 0.1;
      context.fill();
      context.globalAlpha = 1;
    }
  }

  ring(context, i, radius, colour, width) {
    const [x, y] = this.screen(i);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.stroke();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // The nearest shown point within 14 px, or null.
  at(x, y) {
    const reach = 14 / this.scale;
    const px = (x - this.shiftX) / this.scale, py = (this.shiftY - y) / this.scale;
    let best = null, least = reach * reach;
    for (let line = this.line(py - reach); line <= this.line(py + reach); line++) {
      for (let column = this.column(px - reach); column <= this.column(px + reach); column++) {
        const cell = column + this.cells * line;
        for (let k = this.starts[cell]; k < this.starts[cell + 1]; k++) {
          const i = this.order[k];
          const dx = this.xy[2 * i] - px, dy = this.xy[2 * i + 1] - py, distance = dx * dx + dy * dy;
          if (distance < least && this.shown(i)) { least = distance; best = i; }
        }
      }
    }
    return best;
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
    this.moved = 0;
    if (this.pointers.size === 1 && (this.selecting || event.shiftKey)) this.lasso = [this.place(event)];
    else this.lasso = null;
  }

  move(event) {
    const [x, y] = this.place(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      const under = this.at(x, y);
      if (under !== this.under) { this.under = under; this.draw(); }
      this.on.hover?.(under, x, y);
      return;
    }
    this.moved += Math.hypot(x - before[0], y - before[1]);
    if (this.lasso) {
      this.lasso.push([x, y]);
      this.draw();
    } else if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const factor = Math.hypot(x - other[0], y - other[1]) / (Math.hypot(before[0] - other[0], before[1] - other[1]) || 1);
      this.zoom(factor, (x + other[0]) / 2, (y + other[1]) / 2);
    } else {
      this.shiftX += x - before[0];
      this.shiftY += y - before[1];
      this.draw();
    }
    this.pointers.set(event.pointerId, [x, y]);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const [x, y] = this.place(event);
    if (this.lasso && this.moved > 8) {
      const rows = this.inside(this.lasso);
      this.lasso = null;
      this.on.select?.(rows);
    } else if (this.moved <= 8 && event.type === "pointerup") {
      const found = this.at(x, y);
      if (event.pointerType === "touch") this.on.hover?.(found, x, y);
      this.on.pick?.(found);
    }
    this.lasso = null;
    this.draw();
  }

  // Rows inside a polygon of the screen, by the crossings of a ray.
  inside(polygon) {
    const rows = [];
    for (let i = 0; i < this.num; i++) {
      if (!this.shown(i)) continue;
      const [x, y] = this.screen(i);
      let within = false;
      for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
        const [xa, ya] = polygon[a], [xb, yb] = polygon[b];
        if (ya > y !== yb > y && x < ((xb - xa) * (y - ya)) / (yb - ya) + xa) within = !within;
      }
      if (within) rows.push(i);
    }
    return rows;
  }

  key(event) {
    const step = 40;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) {
      this.shiftX += moves[event.key][0];
      this.shiftY += moves[event.key][1];
      this.draw();
    } else if (event.key === "+" || event.key === "=") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "0") this.whole();
    else return;
    event.preventDefault();
  }

  toggle(group) {
    if (!this.hidden.delete(group)) this.hidden.add(group);
    this.draw();
  }

  pick(row, marked = []) { this.picked = row; this.marked = marked; this.draw(); }
  choose(rows) { this.chosen = rows === null ? null : new Set(rows); this.draw(); }
}

// Colours that keep apart on light and dark grounds; beyond the first twelve, by the golden angle.
function groupColours(count) {
  const first = ["#2a9d8f", "#e07a3f", "#7a6ff0", "#d1447f", "#5fa83a", "#3f8ede", "#c49a1c", "#8a8f98", "#a8577a", "#00a3c4", "#b05bd3", "#8c6d46"];
  return Array.from({ length: count }, (_, i) => first[i] || `hsl(${(i * 137.508) % 360} 55% 52%)`);
}
