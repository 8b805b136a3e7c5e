"use strict";
// Line charts: SVG drawn from lines {name, style, points: [[x, y, low, high, said], ...], ring}.
// Colours and dashes are classes of the style sheet; every text goes in as text, never as markup.

const PAD = { top: 26, right: 14, bottom: 40, left: 54 };

function svg(name, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function size(tokens) {
  if (tokens && tokens % 1048576 === 0) return `${tokens / 1048576}M`;
  if (tokens && tokens % 1024 === 0) return `${tokens / 1024}k`;
  return figure(tokens);
}

function figure(value) {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size >= 1e6 ? value.toExponential(2) : String(Number(value.toPrecision(5)));
  return text.replace("-", "−");
}

// The scale of one axis: values to pixels.
function scale(log, [low, high], [from, to]) {
  const bend = log ? Math.log2 : (value) => value;
  const unit = (to - from) / (bend(high) - bend(low) || 1);
  return (value) => from + (bend(value) - bend(low)) * unit;
}

function decades([low, high]) {
  const all = [];
  for (let power = -6; power <= 12; power += 1)
    for (const digit of [1, 2, 5]) all.push(Number(`${digit}e${power}`));
  const inside = all.filter((value) => value >= low && value <= high);
  const tens = inside.filter((value) => Number.isInteger(Math.log10(value)));
  if (inside.length > 8 && tens.length > 2) return tens;
  return inside.length > 2 ? inside : evenly([low, high]);
}

function evenly([low, high], binary = false) {
  const rough = (high - low) / 6 || 1;
  const base = binary ? 2 ** Math.floor(Math.log2(rough)) : 10 ** Math.floor(Math.log10(rough));
  const step = (binary ? [1, 2] : [1, 2, 5, 10]).find((each) => each * base >= rough) * base;
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, place) => Number(((first + place) * step).toPrecision(12)));
}

// Doublings first, as many as fit side by side, then other ticks that fit between them.
function doublings(values, place, room) {
  const twofold = (value) => Number.isInteger(Math.log2(value / values[0]));
  const kept = [];
  for (const value of [...values.filter(twofold), ...values])
    if (kept.every((other) => Math.abs(place(other) - place(value)) >= room)) kept.push(value);
  return kept;
}

function powers([low, high]) {
  const first = Math.ceil(Math.log2(low));
  return Array.from({ length: Math.floor(Math.log2(high)) - first + 1 }, (_, more) => 2 ** (first + more));
}

class Chart {
  // options: {label, hidden, x: {title, log, binary, measured, read}, y: {title, log, most, near,
  // read}, marks: [{x|y, text}]}. Values from y.most on are cut off; with y.close, the chart
  // ends at y.near(lowest).
  constructor(host, options) {
    Object.assign(this, { host, options, lines: [], at: null, strong: null });
    this.canvas = html("div", { class: "canvas" });
    this.reading = html("div", { class: "reading", "aria-live": "polite" });
    this.reading.hidden = true;
    host.append(this.canvas);
    new ResizeObserver(() => this.canvas.clientWidth !== this.width && this.draw()).observe(this.canvas);
  }

  show(lines) {
    this.lines = lines.map((line) => ({
      ...line,
      points: line.points.map(([x, y, low, high, said]) => ({
        x, y: Number(y), said,
        low: low === null ? null : Number(low), high: high === null ? null : Number(high),
      })),
    }));
    this.at = null;
    this.draw();
  }

  get shown() {
    return this.lines.filter((line) => !this.options.hidden.has(line.name));
  }

  get places() {
    return [...new Set(this.shown.flatMap((line) => line.points.map((point) => point.x)))].sort((a, b) => a - b);
  }

  draw() {
    this.width = this.canvas.clientWidth || 640;
    this.height = Math.round(Math.min(430, Math.max(270, this.width * 0.48)));
    this.root = svg("svg", {
      viewBox: `0 0 ${this.width} ${this.height}`, tabindex: 0, role: "group",
      "aria-label": `${this.options.label}. Arrow keys read the values.`,
    });
    this.fit();
    this.axes();
    for (const mark of this.options.marks) this.mark(mark);
    for (const line of this.shown) this.band(line);
    for (const line of this.shown) this.line(line);
    this.cursor = this.root.appendChild(svg("g", { class: "cursor" }));
    this.listen();
    this.canvas.replaceChildren(this.root, this.reading);
    this.read(this.at);
  }

  fit() {
    const { x, y, marks } = this.options;
    const points = this.shown.flatMap((line) => line.points);
    const across = points.map((point) => point.x);
    const near = marks.map((mark) => mark.x).filter((at) => Math.min(...across) <= 2 * at && at <= 2 * Math.max(...across));
    const levels = marks.map((mark) => mark.y).filter((at) => at !== undefined);
    this.most = y.most ?? Infinity;
    if (y.close) this.most = y.near(Math.min(...points.map((point) => point.y).filter(Number.isFinite)));
    this.xs = this.bounds([...across, ...near], x, 0.02);
    this.ys = this.bounds([...points.flatMap((point) => [point.y, point.low, point.high]), ...levels], y, 0.05);
    this.xAt = scale(x.log, this.xs, [PAD.left, this.width - PAD.right]);
    this.yAt = scale(y.log, this.ys, [this.height - PAD.bottom, PAD.top]);
  }

  bounds(values, axis, margin) {
    const most = axis === this.options.y ? this.most : Infinity;
    const known = values.filter((value) => Number.isFinite(value) && value < most && (!axis.log || value > 0));
    const [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [1, 10];
    if (axis.log) return [low / (high / low) ** margin / 1.02, high * (high / low) ** margin * 1.02];
    const more = (high - low) * margin || Math.abs(high) * 0.05 || 1;
    return [low - more, high + more];
  }

  columns() {
    const { x } = this.options;
    if (!x.log) return evenly(this.xs, x.binary).filter((value) => value >= 0);
    return doublings(x.measured ? this.places : powers(this.xs), this.xAt, 40);
  }

  axes() {
    const { x, y } = this.options;
    const [left, right, bottom] = [PAD.left, this.width - PAD.right, this.height - PAD.bottom];
    const group = this.root.appendChild(svg("g", { class: "axes" }));
    for (const value of y.log ? decades(this.ys) : evenly(this.ys)) {
      const at = this.yAt(value);
      group.append(svg("line", { x1: left, x2: right, y1: at, y2: at }));
      group.append(svg("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, value.toLocaleString("en", { maximumFractionDigits: 6 })));
    }
    for (const value of this.columns()) {
      const at = this.xAt(value);
      group.append(svg("line", { class: "tick", x1: at, x2: at, y1: bottom, y2: bottom + 5 }));
      group.append(svg("text", { x: at, y: bottom + 19, "text-anchor": "middle" }, size(value)));
    }
    group.append(svg("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }));
    group.append(svg("text", { class: "title", x: right, y: bottom + 35, "text-anchor": "end" }, x.title));
    group.append(svg("text", { class: "title", x: 2, y: 13 }, y.title));
  }

  mark({ x, y, text }) {
    const group = svg("g", { class: "mark" });
    const [left, right, bottom] = [PAD.left, this.width - PAD.right, this.height - PAD.bottom];
    if (x !== undefined && x >= this.xs[0] && x <= this.xs[1]) {
      const at = this.xAt(x);
      const late = at > right - 90;
      group.append(svg("line", { x1: at, x2: at, y1: PAD.top - 6, y2: bottom }));
      group.append(svg("text", { x: at + (late ? -5 : 5), y: PAD.top + 4, "text-anchor": late ? "end" : "start" }, text));
    }
    if (y !== undefined) {
      const at = this.yAt(y);
      group.append(svg("line", { x1: left, x2: right, y1: at, y2: at }));
      group.append(svg("text", { x: left + 6, y: at - 5 }, text));
    }
    this.root.append(group);
  }

  // A height inside the chart for every value; very large ones are at the upper edge.
  level(value) {
    const [low, high] = this.ys;
    return this.large(value) ? PAD.top - 6 : this.yAt(Math.min(Math.max(value, low), high));
  }

  large(value) {
    return Number.isNaN(value) || value >= this.most;
  }

  // Stretches of points without a gap between them.
  runs(line, known) {
    const found = [[]];
    for (const point of line.points) {
      if (known(point)) found.at(-1).push(point);
      else if (found.at(-1).length) found.push([]);
    }
    return found.filter((run) => run.length);
  }

  band(line) {
    const place = (value) => (point) => `${this.xAt(point.x).toFixed(1)},${this.level(point[value]).toFixed(1)}`;
    const known = (point) => point.low !== null && Number.isFinite(point.y) && point.y < this.most && !Number.isNaN(point.low + point.high);
    for (const run of this.runs(line, known)) {
      if (run.length < 2) continue;
      const edge = [...run.map(place("high")), ...run.toReversed().map(place("low"))];
      this.root.append(svg("polygon", { class: `band ${line.style}`, points: edge.join(" "), "data-name": line.name }));
    }
  }

  line(line) {
    const group = this.root.appendChild(svg("g", { class: `line ${line.style}`, "data-name": line.name }));
    const drawn = (point) => Number.isFinite(point.y) || (point.y > 0 && this.most < Infinity);
    for (const run of this.runs(line, drawn)) {
      const path = run.map((point) => `${this.xAt(point.x).toFixed(1)},${this.level(point.y).toFixed(1)}`);
      group.append(svg("polyline", { points: path.join(" ") }));
    }
    const dots = line.points.length <= 24;
    for (const point of line.points) {
      const [x, y] = [this.xAt(point.x), this.level(point.y)];
      if (Number.isNaN(point.y)) group.append(svg("path", { class: "clipped lost", d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8` }));
      else if (this.large(point.y)) group.append(svg("path", { class: "clipped", d: `M${x - 5},${y + 4}l5,-9l5,9z` }));
      else {
        if (dots) group.append(svg("circle", { cx: x, cy: y, r: 2.6 }));
        if (point.x === line.ring) group.append(svg("circle", { class: "ring", cx: x, cy: y, r: 6.5 }));
      }
    }
  }

  listen() {
    this.root.addEventListener("pointermove", (event) => {
      const x = (event.offsetX / (this.root.clientWidth || this.width)) * this.width;
      const gap = (value) => Math.abs(this.xAt(value) - x);
      this.read(this.places.reduce((best, value) => (gap(value) < gap(best) ? value : best), this.places[0]));
    });
    this.root.addEventListener("pointerleave", () => this.read(null));
    this.root.addEventListener("focus", () => this.root.matches(":focus-visible") && this.read(this.places[0]));
    this.root.addEventListener("blur", () => this.read(null));
    this.root.addEventListener("keydown", (event) => {
      const here = this.places.indexOf(this.at);
      const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: this.places.length - 1 };
      if (event.key === "Escape") this.read(null);
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.read(this.places[Math.max(0, Math.min(moves[event.key], this.places.length - 1))]);
    });
  }

  // Show the values at one place of the x axis, best first.
  read(at) {
    this.at = at ?? null;
    this.reading.hidden = this.at === null;
    this.cursor.replaceChildren();
    if (this.at === null) return;
    const found = this.shown
      .map((line) => ({ line, point: line.points.find((point) => point.x === at) }))
      .filter(({ point }) => point)
      .sort((a, b) => (Number.isNaN(a.point.y) ? 1 : Number.isNaN(b.point.y) ? -1 : a.point.y - b.point.y));
    const x = this.xAt(at);
    this.cursor.append(svg("line", { x1: x, x2: x, y1: PAD.top, y2: this.height - PAD.bottom }));
    for (const { line, point } of found)
      this.cursor.append(svg("circle", { class: line.style, cx: x, cy: this.level(point.y), r: 4 }));
    const rows = found.map(({ line, point }) => {
      const ends = point.low === null ? "" : `${figure(point.low)} to ${figure(point.high)}`;
      return html("tr", {}, html("th", {}, label(line)), html("td", {}, this.options.y.read(point.y)), html("td", {}, ends));
    });
    const title = found[0]?.point.said ?? this.options.x.read(at);
    this.reading.replaceChildren(html("p", {}, title), html("table", {}, html("tbody", {}, ...rows)));
    const share = x / this.width;
    this.reading.style.left = share < 0.5 ? `${100 * share}%` : "auto";
    this.reading.style.right = share < 0.5 ? "auto" : `${100 * (1 - share)}%`;
  }

  emphasise(name) {
    for (const group of this.root.querySelectorAll(".line, .band"))
      group.classList.toggle("faint", name !== null && group.dataset.name !== name);
  }
}

function label(line) {
  return html("span", { class: `name ${line.style}`, title: line.name },
    html("i", { class: "sample" }), html("code", {}, line.name));
}
