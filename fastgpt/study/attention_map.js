// Attention maps in the browser: inflating what the page carries, colours, small maps, and the enlarged one.
// Weights are the lower triangle, row after row: query t's weight on key j is at t (t + 1) / 2 + j.

const AttentionMap = (() => {
  const at = (query, key) => query * (query + 1) / 2 + key;

  // Bytes of base64 of what zlib deflated.
  async function inflate(text) {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // Float32Array of weights, of a buffer of float32 or of uint8, c = 255 √w.
  function weightsOf(buffer, stored) {
    if (stored === "float32") return new Float32Array(buffer);
    const codes = new Uint8Array(buffer), table = Float32Array.from({ length: 256 }, (_, c) => (c / 255) ** 2);
    const weights = new Float32Array(codes.length);
    for (let i = 0; i < codes.length; i++) weights[i] = table[codes[i]];
    return weights;
  }

  // By how much a weight that is kept as uint8 may be off.
  const errorOf = weight => (2 * Math.sqrt(weight) + 1 / 510) / 510;

  // Where a weight lies in the palette, from 0 to 1.
  function shade(weight, scale, floor) {
    if (scale === "linear") return weight;
    if (scale === "sqrt") return Math.sqrt(weight);
    return 1 - Math.log10(Math.max(weight, floor)) / Math.log10(floor);
  }

  // 256 x [r, g, b] of 256 x "rrggbb".
  const coloursOf = text => text.match(/.{6}/g).map(hex => [0, 2, 4].map(n => parseInt(hex.slice(n, n + 2), 16)));

  // Black or white, whichever reads better on a colour (WCAG's relative luminance).
  function inkOn([r, g, b]) {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "#000000" : "#ffffff";
  }

  // What the page's style says of colours, now: [r, g, b] of a variable.
  function styled(name) {
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return [1, 3, 5].map(n => parseInt(hex.slice(n, n + 2), 16));
  }

  const hatching = () => ({ line: styled("--line"), paper: styled("--paper") });

  function hatched(x, y, period, hatch) {
    return (x + y) % period < Math.max(1, period / 6) ? hatch.line : hatch.paper;
  }

  // A small map of n x n shades (0 to 255), drawn so large that its hatching can be seen.
  function drawSmall(canvas, shades, n, colours) {
    const factor = Math.max(1, Math.ceil(96 / n)), side = n * factor, hatch = hatching();
    canvas.width = canvas.height = side;
    const draw = canvas.getContext("2d"), image = draw.createImageData(side, side);
    for (let y = 0, i = 0; y < side; y++) {
      const query = Math.floor(y / factor);
      for (let x = 0; x < side; x++, i += 4) {
        const key = Math.floor(x / factor);
        const [r, g, b] = key > query ? hatched(x, y, Math.round(side / 8), hatch) : colours[shades[query * n + key]];
        image.data[i] = r; image.data[i + 1] = g; image.data[i + 2] = b; image.data[i + 3] = 255;
      }
    }
    draw.putImageData(image, 0, 0);
  }

  // The part of the map from (x, y), in tokens, that `span` tokens long fills `side` pixels of an image. Where several
  // weights share a pixel it shows the largest.
  function imageOf(shades, n, colours, side, { x, y, span }, period, hatch) {
    const image = new ImageData(side, side);
    const edges = from => Int32Array.from({ length: side + 1 }, (_, p) => Math.min(n, Math.floor(from + p * span / side)));
    const columns = edges(x), rows = edges(y);
    for (let py = 0, i = 0; py < side; py++) {
      const first = Math.min(n - 1, rows[py]), last = Math.max(first, rows[py + 1] - 1);
      for (let px = 0; px < side; px++, i += 4) {
        const from = Math.min(n - 1, columns[px]), to = Math.max(from, columns[px + 1] - 1);
        let most = -1;
        for (let query = first; query <= last; query++)
          for (let key = from; key <= to && key <= query; key++) most = Math.max(most, shades[at(query, key)]);
        const [r, g, b] = most < 0 ? hatched(px, py, period, hatch) : colours[most];
        image.data[i] = r; image.data[i + 1] = g; image.data[i + 2] = b; image.data[i + 3] = 255;
      }
    }
    return image;
  }

  // The enlarged map on a canvas: labels, zoom, and the cell that is chosen.
  class View {
    constructor(canvas, tokens) {
      this.canvas = canvas;
      this.tokens = tokens;
      this.n = tokens.length;
      this.zoom = 1;
      this.x = this.y = 0;
    }

    get span() { return this.n / this.zoom; }

    // Lay it out for the width that there is.
    measure() {
      const width = Math.max(200, this.canvas.clientWidth), left = width < 420 ? 76 : 92;
      this.left = left; this.top = 26;
      this.side = width - left - 6;
      this.bottom = left;
      this.ratio = Math.min(2, window.devicePixelRatio || 1);
      this.width = width; this.height = this.top + this.side + this.bottom;
      this.canvas.style.height = `${this.height}px`;
      this.canvas.width = Math.round(width * this.ratio);
      this.canvas.height = Math.round(this.height * this.ratio);
    }

    // `zoom` times as large as the whole, about a cell that stays in sight.
    zoomTo(zoom, query, key) {
      this.zoom = Math.max(1, Math.min(zoom, this.n / 4));
      if (this.n <= 4) this.zoom = 1;
      this.moveTo(key + 0.5 - this.span / 2, query + 0.5 - this.span / 2);
    }

    moveTo(x, y) {
      const most = this.n - this.span;
      [this.x, this.y] = [x, y].map(v => Math.max(0, Math.min(most, v)));
    }

    // Move as little as shows a cell.
    reveal(query, key) {
      const near = (from, cell) => Math.min(cell, Math.max(from, cell + 1 - this.span));
      this.moveTo(near(this.x, key), near(this.y, query));
    }

    // The cell under a pointer; null beside the map.
    cellAt(event) {
      const box = this.canvas.getBoundingClientRect();
      const px = event.clientX - box.left - this.left, py = event.clientY - box.top - this.top;
      if (px < 0 || py < 0 || px >= this.side || py >= this.side) return null;
      const cell = (from, p) => Math.min(this.n - 1, Math.floor(from + p / this.side * this.span));
      return { query: cell(this.y, py), key: cell(this.x, px) };
    }

    draw(shades, colours, { query, key }) {
      this.measure();
      const side = Math.round(this.side * this.ratio), draw = this.canvas.getContext("2d");
      const hatch = hatching(), now = [shades, side, this.x, this.y, this.span, String(hatch.paper)];
      if (!this.made || now.some((value, i) => value !== this.made[i])) {
        this.image = imageOf(shades, this.n, colours, side, this, Math.round(8 * this.ratio), hatch);
        this.made = now; // another query or key is only another frame
      }
      draw.putImageData(this.image, Math.round(this.left * this.ratio), Math.round(this.top * this.ratio));
      draw.scale(this.ratio, this.ratio);
      const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
      this.mark(draw, query, key, colour("--focus"), colour("--paper"));
      this.label(draw, query, key, colour("--ink"), colour("--focus"), colour("--faint"));
    }

    // Frames about the query's row and the chosen cell.
    mark(draw, query, key, focus, paper) {
      const cell = this.side / this.span, left = this.left + (0 - this.x) * cell;
      const y = this.top + (query - this.y) * cell, x = left + key * cell, size = Math.max(cell, 3);
      draw.save();
      draw.beginPath();
      draw.rect(this.left - 1, this.top - 1, this.side + 2, this.side + 2);
      draw.clip();
      for (const [style, width] of [[paper, 4], [focus, 2]]) {
        draw.strokeStyle = style; draw.lineWidth = width;
        draw.strokeRect(left, y, (query + 1) * cell, size);
        draw.strokeRect(x - 1, y - 1, size + 2, size + 2);
      }
      draw.restore();
    }

    // Tokens on both axes, as many as can be read; those that are chosen stand out.
    label(draw, query, key, ink, focus, faint) {
      const cell = this.side / this.span, every = Math.max(1, Math.ceil(14 / cell));
      draw.textBaseline = "middle"; draw.textAlign = "right";
      const one = (index, from, chosen, place) => {
        const centre = (index + 0.5 - from) * cell;
        if (centre < 0 || centre > this.side) return;
        if (!chosen && Math.abs(index - place.chosen) * cell < 14) return;
        draw.font = `${chosen ? "bold " : ""}12px ui-monospace, monospace`;
        draw.fillStyle = chosen ? focus : ink;
        draw.save();
        place.go(centre);
        draw.fillText(clipped(this.tokens[index], index, this.n > 64, draw, this.left - 10), 0, 0);
        draw.restore();
      };
      const rows = { chosen: query, go: c => draw.translate(this.left - 6, this.top + c) };
      const columns = { chosen: key, go: c => {
        draw.translate(this.left + c, this.top + this.side + 6); draw.rotate(-Math.PI / 2);
      } };
      for (const [from, place] of [[this.y, rows], [this.x, columns]]) {
        for (let i = Math.ceil(from / every) * every; i < Math.min(this.n, from + this.span); i += every)
          one(i, from, i === place.chosen, place);
        if (place.chosen % every || place.chosen < from) one(place.chosen, from, true, place);
      }
      draw.font = "12px system-ui, sans-serif"; draw.fillStyle = faint;
      draw.fillText("query ↓", this.left - 6, 9);
      draw.fillText("key →", this.left - 6, this.height - 10);
    }
  }

  function clipped(token, index, numbered, draw, room) {
    let text = numbered ? `${index} ${token}` : token;
    if (draw.measureText(text).width <= room) return text;
    while (text.length > 1 && draw.measureText(`${text}…`).width > room) text = text.slice(0, -1);
    return `${text}…`;
  }

  return { at, inflate, weightsOf, errorOf, shade, coloursOf, inkOn, drawSmall, View };
})();
