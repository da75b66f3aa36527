// A matrix that can be pointed at: by mouse, by touch, and, once focused, by the arrow keys.
//
//   const view = new MatrixView(host, { colours, onpoint: (i, j) => ..., onchoose: i => ... });
//   view.show({ values, shape: [rows, columns], rowNames, columnNames, kind, masked, title });
//   view.point(i, j); view.mark(first, last);
//
// values: Float32Array, row by row; masked: cells right of the diagonal are hatched, for they are not seen. A window of
// MOST_COLUMNS columns is drawn of what is wider: the keys move it on, and so do the buttons below.
const MOST_COLUMNS = 128, LONGEST_SIDE = 4096, MOST_CELLS = 20000; // of which each is drawn by itself

const number = value => {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "NaN";
  return String(Number(value.toPrecision(4))).replace("-", "−");
};

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const channels = hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));

const mixed = (from, to, share) => from.map((c, n) => Math.round(c + (to[n] - c) * share));

// The largest size in the colours of signed values: beyond a far outlier, what most values need.
const limitOf = values => {
  const sizes = Float32Array.from(values, Math.abs).filter(Number.isFinite).sort();
  const most = sizes.at(-1) || 1, usual = sizes[Math.floor(0.99 * (sizes.length - 1))];
  return most > 4 * usual && usual > 0 ? { limit: usual, beyond: true } : { limit: most, beyond: false };
};

// As a cell of about five characters has room for it.
const brief = value => {
  if (!Number.isFinite(value)) return number(value);
  const size = Math.abs(value), text = size < 99995 ? value.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0) : value.toExponential(0);
  return text.replace("e+", "e").replace("-", "−").replace(/^(−?)0\./, "$1.");
};

// Text that is cut off, where it is wider than `most` pixels, between two characters.
const fit = (ctx, text, most) => {
  const characters = [...text];
  while (characters.length > 1 && ctx.measureText(text).width > most) {
    characters.pop();
    text = `${characters.join("")}…`;
  }
  return text;
};

class MatrixView {
  constructor(host, { onpoint, onchoose }) {
    Object.assign(this, { host, onpoint, onchoose, at: [0, 0], first: 0, marked: null });
    this.plot = host.querySelector(".plot");
    this.plot.innerHTML = `<canvas class="names"></canvas><div class="scroll frame" tabindex="0" role="application"
      aria-roledescription="matrix"><div class="sheet"><canvas class="cells"></canvas><div class="mark" hidden></div>
      <div class="cell" hidden></div></div></div>`;
    [this.names, this.frame, this.sheet, this.cells, this.band, this.cell] =
      ["canvas.names", ".frame", ".sheet", "canvas.cells", ".mark", ".cell"].map(name => this.plot.querySelector(name));
    this.pager = document.createElement("p");
    this.pager.className = "pager";
    this.plot.after(this.pager);
    const onCell = go => event => {
      const found = this.cellAt(event);
      if (found) go(...found);
    };
    this.cells.addEventListener("pointermove", onCell((i, j) => this.point(i, j, false)));
    this.cells.addEventListener("pointerdown", onCell((i, j) => this.point(i, j, false)));
    this.cells.addEventListener("click", onCell(i => this.onchoose(i)));
    this.frame.addEventListener("keydown", event => this.key(event));
  }

  show(matrix) {
    const [rows, columns] = matrix.shape;
    Object.assign(this, matrix, { n: rows, m: columns, hatch: undefined });
    this.shades = matrix.palette.map(channels);
    this.first = Math.min(this.first, Math.max(0, columns - MOST_COLUMNS));
    this.scale = matrix.kind === "weights" ? { limit: 1, beyond: false } : limitOf(matrix.values);
    this.host.querySelector(".size").textContent = `${rows} × ${columns}`;
    const title = `${matrix.title}, ${rows} rows, ${columns} columns; arrow keys move, Enter chooses the query token`;
    this.frame.setAttribute("aria-label", title);
    this.at = [Math.min(this.at[0], rows - 1), Math.min(this.at[1], columns - 1)];
    this.draw();
    this.drawBar();
    this.point(...this.at, false);
  }

  value(i, j) { return this.values[i * this.m + j]; }

  hidden(i, j) { return this.masked && j > i; }

  sizes() {
    const phone = this.host.clientWidth < 560, ctx = this.names.getContext("2d");
    const height = this.n <= 32 ? 22 : this.n <= 64 ? 16 : this.n <= 128 ? 12 : Math.max(2, Math.floor(1536 / this.n));
    ctx.font = "12px ui-monospace, monospace";
    const widest = names => Math.ceil(Math.max(0, ...names.map(name => ctx.measureText(name).width)));
    const left = Math.min(widest(this.rowNames), phone ? 84 : 130) + 10;
    this.shown = Math.min(this.m, MOST_COLUMNS > this.n || !this.square ? MOST_COLUMNS : this.n);
    const room = Math.floor((this.host.clientWidth - left - 2) / this.shown);
    const width = this.square && this.n > 24 ? Math.max(height, Math.min(room, 22)) : Math.max(Math.min(height, 11), Math.min(room, 38));
    const columns = this.columnNames.slice(this.first, this.first + this.shown);
    this.upright = columns.some(name => ctx.measureText(name).width > width - 4 && !/^\d+$/.test(name));
    const top = this.upright ? Math.min(widest(columns), 90) + 8 : 18;
    return { height, width, left, top };
  }

  draw() {
    if (!this.values || !this.host.clientWidth) return;
    const { height, width, left, top } = Object.assign(this.box = {}, this.sizes());
    const total = [this.shown * width, top + this.n * height];
    const ratio = Math.min(window.devicePixelRatio || 1, LONGEST_SIDE / Math.max(...total));
    const pen = (canvas, w, h) => {
      canvas.width = Math.ceil(w * ratio);
      canvas.height = Math.ceil(h * ratio);
      canvas.style.width = `${w}px`;
      canvas.style.height = `${h}px`;
      const ctx = canvas.getContext("2d");
      ctx.scale(canvas.width / w, canvas.height / h);
      ctx.font = "12px ui-monospace, monospace";
      ctx.fillStyle = colour("--ink");
      ctx.textBaseline = "middle";
      return ctx;
    };
    this.sheet.style.width = `${total[0]}px`;
    const names = pen(this.names, left, total[1]);
    names.textAlign = "right";
    const rowStep = Math.ceil(13 / height);
    for (let i = 0; i < this.n; i += rowStep) {
      names.fillText(fit(names, this.rowNames[i], left - 8), left - 6, top + (i + 0.5) * height);
    }
    const [paper, low, high, nan] = ["--paper", "--s0", "--s1", "--s4"].map(name => channels(colour(name)));
    this.ink = { paper, low, high, nan };
    const ctx = pen(this.cells, ...total);
    this.drawColumns(ctx);
    if (this.n * this.shown > MOST_CELLS) this.drawImage(ctx);
    else for (let i = 0; i < this.n; i++) for (let j = 0; j < this.shown; j++) this.drawCell(ctx, i, j);
    this.place();
    this.drawPager();
  }

  drawColumns(ctx) {
    const { width, top } = this.box, columns = this.columnNames.slice(this.first, this.first + this.shown);
    const need = this.upright ? 13 : Math.max(...columns.map(name => ctx.measureText(name).width)) + 5;
    const step = Math.ceil(need / width);
    columns.forEach((name, j) => {
      if (j % step) return;
      ctx.save();
      ctx.translate((j + 0.5) * width, top - 5);
      if (this.upright) ctx.rotate(-Math.PI / 2);
      ctx.textAlign = this.upright ? "left" : "center";
      ctx.textBaseline = this.upright ? "middle" : "alphabetic";
      ctx.fillText(this.upright ? fit(ctx, name, top - 8) : name, 0, 0);
      ctx.restore();
    });
  }

  rgb(value) {
    if (Number.isNaN(value)) return this.ink.nan;
    if (this.kind === "weights") {
      return this.shades[Math.round(Math.max(0, Math.min(1, value)) * (this.shades.length - 1))];
    }
    const share = Math.min(1, Math.abs(value) / this.scale.limit);
    return mixed(this.ink.paper, value < 0 ? this.ink.low : this.ink.high, share);
  }

  drawCell(ctx, i, j) {
    const { height, width, top } = this.box, column = this.first + j, gap = width > 6 && height > 6 ? 1 : 0;
    const x = j * width, y = top + i * height;
    if (this.hidden(i, column)) {
      ctx.fillStyle = this.hatch ??= this.hatching(ctx);
      ctx.fillRect(x, y, width - gap, height - gap);
      return;
    }
    const value = this.value(i, column), rgb = this.rgb(value);
    ctx.fillStyle = `rgb(${rgb.join(" ")})`;
    ctx.fillRect(x, y, width - gap, height - gap);
    if (width >= 34 && height >= 16 && this.numbers !== false) {
      const light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
      ctx.fillStyle = light ? "#111" : "#fff";
      ctx.textAlign = "center";
      ctx.font = "11px ui-monospace, monospace";
      ctx.fillText(brief(value), x + (width - gap) / 2, y + height / 2);
    }
  }

  // All cells as one picture: a pixel each, enlarged.
  drawImage(ctx) {
    const { height, width, top } = this.box, small = document.createElement("canvas"), pen = small.getContext("2d");
    small.width = this.shown;
    small.height = this.n;
    const image = pen.createImageData(this.shown, this.n);
    for (let i = 0; i < this.n; i++) {
      for (let j = 0; j < this.shown && !this.hidden(i, this.first + j); j++) {
        image.data.set([...this.rgb(this.value(i, this.first + j)), 255], 4 * (i * this.shown + j));
      }
    }
    pen.putImageData(image, 0, 0);
    ctx.fillStyle = this.hatch ??= this.hatching(ctx);
    ctx.fillRect(0, top, this.shown * width, this.n * height);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(small, 0, top, this.shown * width, this.n * height);
  }

  hatching(ctx) {
    const tile = document.createElement("canvas"), pen = tile.getContext("2d");
    tile.width = tile.height = 6;
    pen.fillStyle = colour("--shade");
    pen.fillRect(0, 0, 6, 6);
    pen.strokeStyle = colour("--line");
    pen.lineWidth = 1.2;
    pen.beginPath();
    for (const at of [-6, 0, 6]) { pen.moveTo(at, 6); pen.lineTo(at + 6, 0); }
    pen.stroke();
    return ctx.createPattern(tile, "repeat");
  }

  drawBar() {
    const bar = this.host.querySelector(".bar"), end = number(this.scale.limit), signed = this.kind !== "weights";
    const [low, high] = this.scale.beyond ? [`≤ −${end}`, `≥ ${end}`] : signed ? [`−${end}`, end] : ["0", "1"];
    const shades = signed ? "var(--s0), var(--paper), var(--s1)" : this.palette.join(", ");
    bar.innerHTML = `<span>${low}</span><span class="ramp" style="background:linear-gradient(to right, ${shades})"></span>
      <span>${high}</span>${signed ? "<span>(middle: 0)</span>" : ""}
      ${this.values.some(Number.isNaN) ? '<span class="nan"></span><span>NaN: not a number</span>' : ""}
      ${this.masked ? '<span class="unseen"></span><span>not seen: a later token</span>' : ""}`;
  }

  drawPager() {
    this.pager.hidden = this.shown >= this.m;
    if (this.pager.hidden) return;
    const last = this.first + this.shown;
    this.pager.innerHTML = `<button type=button aria-label="earlier columns">◀</button> columns ${this.first} to
      ${last - 1} of ${this.m} <button type=button aria-label="later columns">▶</button>`;
    const [back, on] = this.pager.querySelectorAll("button");
    back.disabled = this.first === 0;
    on.disabled = last >= this.m;
    back.onclick = () => this.turn(this.first - MOST_COLUMNS);
    on.onclick = () => this.turn(this.first + MOST_COLUMNS);
  }

  turn(first) {
    this.first = Math.max(0, Math.min(this.m - this.shown, first));
    this.at[1] = Math.max(this.first, Math.min(this.first + this.shown - 1, this.at[1]));
    this.draw();
    this.point(...this.at, false);
  }

  cellAt(event) {
    const { height, width, top } = this.box, box = this.cells.getBoundingClientRect();
    const i = Math.floor((event.clientY - box.top - top) / height);
    const j = this.first + Math.floor((event.clientX - box.left) / width);
    return i >= 0 && i < this.n && j >= this.first && j < this.first + this.shown ? [i, j] : null;
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [i, j] = this.at, moves = {
      ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1], ArrowUp: [i - 1, j], ArrowDown: [i + 1, j],
      Home: [i, 0], End: [i, this.m - 1], PageUp: [0, j], PageDown: [this.n - 1, j],
    };
    if (event.key === "Enter") this.onchoose(i);
    else if (moves[event.key]) this.point(...moves[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  point(i, j, follow = true) {
    if (!this.values) return;
    this.at = [Math.max(0, Math.min(this.n - 1, i)), Math.max(0, Math.min(this.m - 1, j))];
    [i, j] = this.at;
    if (j < this.first || j >= this.first + this.shown) {
      this.turn(j < this.first ? j - this.shown + 1 : j);
      return;
    }
    this.place(follow);
    this.onpoint(i, j);
  }

  mark(first, last) {
    this.marked = first === null ? null : [first, last];
    this.place();
  }

  place(follow = false) {
    if (!this.box) return;
    const { height, width, top } = this.box, [i, j] = this.at;
    const put = (element, x, y, w, h) => {
      element.hidden = false;
      Object.assign(element.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
    };
    put(this.cell, (j - this.first) * width - 1, top + i * height - 1, width + 1, height + 1);
    this.band.hidden = !this.marked;
    if (this.marked) {
      const [from, to] = this.marked;
      put(this.band, 0, top + from * height - 1, this.shown * width, (to - from + 1) * height + 1);
    }
    if (follow) {
      const x = (j - this.first) * width, { scrollLeft, clientWidth } = this.frame;
      if (x < scrollLeft) this.frame.scrollLeft = x - 8;
      else if (x + width > scrollLeft + clientWidth) this.frame.scrollLeft = x + width - clientWidth + 8;
    }
  }
}
