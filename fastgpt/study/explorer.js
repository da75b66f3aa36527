// The attention explorer: which head, query and key are chosen, and what is shown of them.

for (const root of document.querySelectorAll("section.explorer")) {
  const find = name => root.querySelector(name), A = AttentionMap;
  const data = JSON.parse(find(".explorer-data").textContent), blobs = root.querySelectorAll(".map-data");
  const colours = A.coloursOf(data.palette), exact = data.stored === "float32", n = data.tokens.length;
  const view = new A.View(find(".map"), data.tokens), text = new TokenLines(find(".text"), data.tokens);
  const grid = find(".grid"), kept = new Map(), TOP = 10, KEPT = 12;
  const chosen = { head: -1, query: n - 1, key: 0, scale: data.scale, order: "" };
  let pointed = null, weights = null, shades = null, small = null, tiles = [];

  const shadeOf = weight => Math.min(255, Math.round(255 * A.shade(weight, chosen.scale, data.floor)));
  const weight = (query, key) => weights[A.at(query, key)];
  const named = token => `${token} “${data.tokens[token]}”`;
  const said = w => exact ? String(Number(w.toPrecision(6))) : `≈ ${rounded(w)}`;
  const brief = w => w === 0 || w >= 0.0001 ? w.toFixed(4) : w.toExponential(1);

  // A weight that is kept as uint8, with as many decimals as its error leaves.
  function rounded(w) {
    const error = A.errorOf(w), decimals = Math.ceil(-Math.log10(error)), unit = 10 ** -decimals;
    return `${w.toFixed(decimals)} ± ${(Math.ceil(error / unit) * unit).toFixed(decimals)}`;
  }

  function strongest(query) {
    let best = 0;
    for (let key = 1; key <= query; key++) if (weight(query, key) > weight(query, best)) best = key;
    return best;
  }

  function top(query) {
    const keys = Array.from({ length: query + 1 }, (_, key) => key);
    keys.sort((a, b) => weight(query, b) - weight(query, a));
    return keys.slice(0, TOP).map(key => [key, weight(query, key)]);
  }

  // --- what is shown ---

  function showColours() {
    const canvas = find(".colours"), draw = canvas.getContext("2d"), image = draw.createImageData(256, 1);
    colours.forEach((rgb, i) => image.data.set([...rgb, 255], 4 * i));
    draw.putImageData(image, 0, 0);
    find(".ticks").replaceChildren(...data.ticks[chosen.scale].map(tick => {
      const span = document.createElement("span");
      span.textContent = tick;
      span.style.left = `${100 * A.shade(tick, chosen.scale, data.floor)}%`;
      return span;
    }));
    find(".scale-name").textContent = `attention weight; colours: ${data.scales[chosen.scale]}`;
  }

  function showSmall() {
    const size = data.small * data.small, lookup = Uint8Array.from({ length: 256 }, (_, c) => shadeOf((c / 255) ** 2));
    tiles.forEach((tile, i) => {
      const shaded = small.subarray(i * size, (i + 1) * size).map(c => lookup[c]);
      A.drawSmall(tile.querySelector("canvas"), shaded, data.small, colours);
    });
  }

  // The query and key in sight: those that are pointed at, else those that are chosen.
  function show() {
    const { query, key } = pointed ?? chosen;
    view.draw(shades, colours, { query, key });
    const seen = Math.min(key, query), tops = top(query);
    text.show(query, key, other => {
      const rgb = colours[shadeOf(weight(query, other))];
      return [`rgb(${rgb})`, A.inkOn(rgb)];
    }, tops);
    const value = document.createElement("b");
    value.textContent = key > query ? "not seen: future" : `weight ${said(weight(query, key))}`;
    find(".readout").replaceChildren(`query ${named(query)} → key ${named(key)}: `, value);
    showTop(query, tops);
    Object.assign(root.dataset, { query, key, head: chosen.head, seen });
  }

  function showTop(query, tops) {
    find(".top-title").textContent = `Most attended by query ${named(query)}`;
    find(".top").replaceChildren(...tops.map(([key, w]) => {
      const item = document.createElement("li"), button = document.createElement("button");
      const [place, name, share, value] = ["span", "span", "span", "b"].map(tag => document.createElement(tag));
      place.className = "place"; place.textContent = key;
      name.className = "name"; name.textContent = data.tokens[key];
      share.className = "share"; share.append(document.createElement("i"));
      share.firstChild.style.width = `${100 * w}%`;
      share.firstChild.style.background = `rgb(${colours[shadeOf(w)]})`;
      value.textContent = exact ? brief(w) : `≈ ${brief(w)}`;
      button.type = "button";
      button.append(place, name, share, value);
      button.onclick = () => choose({ query, key });
      item.append(button);
      return item;
    }));
  }

  // --- the grid of heads ---

  function layOut() {
    const scores = data.scores[chosen.order.replace("-", "")], sorted = scores !== undefined;
    const order = data.panels.map((_, i) => i);
    const sign = chosen.order.startsWith("-") ? 1 : -1, value = i => scores[i] ?? (sign > 0 ? Infinity : -Infinity);
    if (sorted) order.sort((a, b) => sign * (value(a) - value(b)));
    const cells = [], columns = data.columns, axis = label => {
      const div = document.createElement("div");
      div.className = "axis"; div.textContent = label;
      return div;
    };
    if (!sorted) cells.push(axis(""), ...data.panels.slice(0, columns).map(panel => axis(`H${panel.head}`)));
    order.forEach((i, place) => {
      const panel = data.panels[i], tile = tiles[i];
      if (!sorted && place % columns === 0) cells.push(axis(`L${panel.layer}`));
      const score = sorted ? (scores[i] === null ? "–" : scores[i].toFixed(3)) : "";
      tile.querySelector("span").textContent = sorted ? `L${panel.layer} H${panel.head}: ${score}` : "";
      tile.setAttribute("aria-label", panel.title + (sorted ? `, ${data.names[chosen.order.replace("-", "")]} ${score}` : ""));
      tile.title = tile.getAttribute("aria-label");
      cells.push(tile);
    });
    grid.style.gridTemplateColumns = sorted ? "repeat(auto-fill, minmax(104px, 1fr))"
      : `auto repeat(${columns}, minmax(${columns > 8 ? 40 : 48}px, 110px))`;
    grid.replaceChildren(...cells);
    const pooled = data.pooled > 1 ? ` A small map's pixel is the largest weight of ${data.pooled} x ${data.pooled}.` : "";
    find(".grid-note").textContent = (sorted ? "Heads in the order of that score." : "Rows: layers (L), columns: heads (H).") + pooled;
  }

  function makeTiles() {
    tiles = data.panels.map((panel, i) => {
      const tile = document.createElement("button"), label = document.createElement("span");
      tile.type = "button";
      tile.dataset.head = i;
      tile.append(document.createElement("canvas"), label);
      tile.onclick = () => chooseHead(i);
      return tile;
    });
    grid.addEventListener("keydown", event => {
      const inOrder = [...grid.querySelectorAll("button")], here = inOrder.indexOf(document.activeElement);
      const across = inOrder.filter(tile => tile.offsetTop === inOrder[0].offsetTop).length;
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
      if (step === undefined || !inOrder[here + step]) return;
      event.preventDefault();
      inOrder[here + step].focus();
      chooseHead(Number(inOrder[here + step].dataset.head));
    });
  }

  // --- what is chosen ---

  async function chooseHead(head) {
    chosen.head = head;
    tiles.forEach((tile, i) => {
      tile.setAttribute("aria-pressed", i === head);
      tile.tabIndex = i === head ? 0 : -1;
    });
    find(".choose-head").value = head;
    for (const row of rows()) row.setAttribute("aria-current", row.dataset.head === String(head));
    if (!kept.has(head)) {
      const made = A.inflate(blobs[head].textContent).then(buffer => A.weightsOf(buffer, data.stored));
      kept.set(head, made);
      if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    }
    const found = await kept.get(head);
    if (chosen.head !== head) return; // another was chosen meanwhile
    const first = weights === null;
    weights = found;
    if (first) chosen.key = strongest(chosen.query);
    find(".map-title").textContent = `Attention weights of ${data.panels[head].title}`;
    recolour();
    if (first) text.reveal(chosen.query);
    root.dataset.shown = head;
  }

  function recolour() {
    shades = new Uint8Array(weights.length);
    for (let i = 0; i < shades.length; i++) shades[i] = shadeOf(weights[i]);
    show();
  }

  function choose({ query = chosen.query, key }) {
    pointed = null;
    chosen.query = Math.max(0, Math.min(n - 1, query));
    chosen.key = key === undefined || key > chosen.query ? strongest(chosen.query) : Math.max(0, key);
    view.reveal(chosen.query, chosen.key);
    text.reveal(chosen.query);
    show();
  }

  function chooseScale(scale) {
    chosen.scale = scale;
    showColours();
    showSmall();
    if (weights) recolour();
  }

  function zoom(factor) {
    view.zoomTo(factor === 0 ? 1 : view.zoom * factor, chosen.query, chosen.key);
    view.canvas.classList.toggle("zoomed", view.zoom > 1);
    find(".map-note").textContent = view.zoom > 1 ? `${Math.round(view.zoom)} times; drag to move` : "";
    show();
  }

  function hear() {
    const map = view.canvas;
    let drag = null;
    map.addEventListener("keydown", event => {
      const { query, key } = chosen;
      const act = {
        ArrowUp: () => choose({ query: query - 1, key: Math.min(key, Math.max(0, query - 1)) }),
        ArrowDown: () => choose({ query: query + 1, key }), ArrowLeft: () => choose({ key: Math.max(0, key - 1) }),
        ArrowRight: () => choose({ key: Math.min(query, key + 1) }), Home: () => choose({ query: 0 }),
        End: () => choose({ query: n - 1 }), "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), 0: () => zoom(0),
        "[": () => chooseHead((chosen.head + data.panels.length - 1) % data.panels.length),
        "]": () => chooseHead((chosen.head + 1) % data.panels.length),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey || !weights) return;
      event.preventDefault();
      act();
    });
    map.addEventListener("pointerdown", event => {
      drag = { x: event.clientX, y: event.clientY, from: [view.x, view.y], moved: false };
      if (view.zoom > 1) map.setPointerCapture(event.pointerId);
    });
    map.addEventListener("pointermove", event => {
      if (!weights) return;
      if (drag && view.zoom > 1) {
        const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y], scale = view.span / view.side;
        drag.moved ||= Math.hypot(dx, dy) > 5;
        if (drag.moved) view.moveTo(drag.from[0] - dx * scale, drag.from[1] - dy * scale);
      } else if (event.pointerType === "touch") return; // a tap chooses
      if (!drag?.moved) pointed = view.cellAt(event);
      show();
    });
    map.addEventListener("pointerup", event => {
      const cell = view.cellAt(event);
      if (cell && weights && drag && !drag.moved) choose(cell);
      drag = null;
    });
    map.addEventListener("pointercancel", () => { drag = null; });
    map.addEventListener("pointerleave", () => { if (pointed && weights) { pointed = null; show(); } });
    text.box.addEventListener("click", event => {
      const token = text.tokenOf(event);
      if (token !== null && weights) choose({ query: token });
    });
    text.box.addEventListener("pointerover", event => {
      const token = text.tokenOf(event);
      if (token === null || !weights || event.pointerType === "touch") return;
      pointed = { query: chosen.query, key: token };
      show();
    });
    text.box.addEventListener("pointerleave", () => { if (pointed && weights) { pointed = null; show(); } });
    text.box.addEventListener("keydown", event => {
      const to = { ArrowLeft: chosen.query - 1, ArrowRight: chosen.query + 1, Home: 0, End: n - 1 }[event.key];
      if (to === undefined || !weights) return;
      event.preventDefault();
      choose({ query: to });
    });
    find(".zoom-in").onclick = () => zoom(2);
    find(".zoom-out").onclick = () => zoom(0.5);
    find(".zoom-all").onclick = () => zoom(0);
    find(".choose-head").onchange = event => chooseHead(Number(event.target.value));
    find(".choose-scale").onchange = event => chooseScale(event.target.value);
    find(".choose-order").onchange = event => { chosen.order = event.target.value; layOut(); };
    new ResizeObserver(() => { if (weights && Math.abs(map.clientWidth - view.width) > 0.5) show(); }).observe(map);
    const redraw = () => { if (small) showSmall(); if (weights) show(); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    for (const moment of ["beforeprint", "afterprint"]) window.addEventListener(moment, redraw);
  }

  // --- the table of scores, which follows the explorer ---

  const table = root.nextElementSibling?.matches(".explorer-scores") ? root.nextElementSibling.querySelector("table") : null;
  const rows = () => table ? table.tBodies[0].rows : [];
  [...rows()].forEach((row, head) => {
    row.dataset.head = head;
    row.tabIndex = 0;
    const pick = () => { chooseHead(head); find(".map-title").scrollIntoView({ block: "nearest" }); };
    row.addEventListener("click", pick);
    row.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      pick();
    });
  });

  // --- and begin ---

  const orders = [["", "layer and head"], ["-entropy", "entropy, narrow first"], ["entropy", "entropy, wide first"]];
  for (const name of ["previous_token", "first_token", "same_token", "induction"]) orders.push([name, data.names[name]]);
  orders.forEach(([value, label]) => find(".choose-order").add(new Option(label, value)));
  data.panels.forEach((panel, i) => find(".choose-head").add(new Option(panel.title, i)));
  find(".choose-scale").value = chosen.scale;
  makeTiles();
  layOut();
  hear();
  A.inflate(find(".small-data").textContent).then(buffer => {
    small = new Uint8Array(buffer);
    chooseScale(chosen.scale);
    return chooseHead(0);
  });
}
