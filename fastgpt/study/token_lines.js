// The text whose tokens show what one of them attends to: their colours, and lines whose width is the weight.

class TokenLines {
  constructor(box, tokens) {
    this.box = box;
    this.spans = tokens.map((token, i) => {
      const span = document.createElement("span");
      span.textContent = token;
      span.dataset.token = i;
      box.append(span, "\u200b");
      return span;
    });
    this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.lines.setAttribute("aria-hidden", "true");
    box.append(this.lines);
  }

  // The number of the token that an event is about; null: none.
  tokenOf(event) {
    const span = event.target.closest?.("[data-token]");
    return span ? Number(span.dataset.token) : null;
  }

  // colourOf(key) -> [background, ink]; `tops`: [[key, weight], ...] to which lines go.
  show(query, key, colourOf, tops) {
    this.spans.forEach((span, i) => {
      const [background, ink] = i <= query ? colourOf(i) : ["", ""];
      span.style.background = background;
      span.style.color = ink;
      span.classList.toggle("future", i > query);
      span.classList.toggle("query", i === query);
      span.classList.toggle("key", i === key);
    });
    this.draw(query, tops);
  }

  draw(query, tops) {
    const middle = span => [span.offsetLeft + span.offsetWidth / 2, span.offsetTop];
    const [x, y] = middle(this.spans[query]);
    this.lines.setAttribute("width", 0); // or its own size would count in the box's
    this.lines.setAttribute("height", 0);
    this.lines.setAttribute("width", this.box.clientWidth);
    this.lines.setAttribute("height", this.box.scrollHeight);
    this.lines.replaceChildren(...tops.filter(([key, weight]) => key !== query && weight >= 0.005).map(([key, weight]) => {
      const [to, on] = middle(this.spans[key]);
      const rise = Math.min(40, 10 + Math.abs(x - to) / 10);
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", `M${x} ${y} C${x} ${y - rise} ${to} ${on - rise} ${to} ${on}`);
      path.setAttribute("stroke-width", (1 + 5 * weight).toFixed(2));
      path.setAttribute("opacity", (0.25 + 0.75 * Math.sqrt(weight)).toFixed(2));
      path.dataset.key = key;
      return path;
    }));
  }

  // Scroll the box, and not the page, so that a token is in sight.
  reveal(token) {
    const span = this.spans[token], box = this.box;
    if (span.offsetTop < box.scrollTop + 24) box.scrollTop = span.offsetTop - 24;
    else if (span.offsetTop + 40 > box.scrollTop + box.clientHeight) box.scrollTop = span.offsetTop + 40 - box.clientHeight;
  }
}
