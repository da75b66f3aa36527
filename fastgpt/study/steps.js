// Steps of a computation: back and on by buttons, by ← and →, and by #step=3; one query token, followed through all.
{
  const data = JSON.parse(document.getElementById("step-data").textContent);
  const sections = [...document.querySelectorAll(".step")], bar = document.querySelector(".stepper");
  const at = bar.querySelector(".at"), all = bar.querySelector(".all"), { tokens } = data;
  const chosen = { ...data.chosen }, named = tokens.map((token, i) => `${i} ${token}`);
  let step = 1, query = tokens.length - 1;

  const full = name => name.replace(/\{(\w+)\}/g, (_, key) => {
    const [by, numbers] = data.groups[key] ?? [];
    return by ? numbers[chosen[by]] : chosen[key];
  });
  const unpacked = {};
  const array = name => {
    name = full(name);
    const packed = data.arrays[name];
    if (!packed) return undefined;
    unpacked[name] ??= {
      shape: packed.shape, values: new Float32Array(Uint8Array.from(atob(packed.data), c => c.charCodeAt(0)).buffer),
    };
    return unpacked[name];
  };

  const names = (kind, count) => {
    if (kind === "tokens") return named;
    return kind === "dimensions" ? Array.from({ length: count }, (_, n) => String(n)) : kind;
  };
  const called = (kind, names, n) => (kind === "tokens" ? `token ${names[n]}` : kind === "dimensions" ? `dimension ${n}` : names[n]);

  const views = sections.map((section, number) => [...section.querySelectorAll(".matrix")].map((host, n) => {
    const spec = data.matrices[number][n], own = { spec, fresh: true };
    own.view = new MatrixView(host, {
      onpoint: (i, j) => say(own, host, i, j),
      onchoose: i => spec.rows === "tokens" && choose(i),
    });
    return own;
  }));

  const say = ({ spec, view }, host, i, j) => {
    const hidden = view.hidden(i, j), value = view.value(i, j);
    const row = called(spec.rows, view.rowNames, i), column = called(spec.columns, view.columnNames, j);
    const shown = hidden ? "not seen" : number(value);
    host.querySelector(".where").textContent = `${row}, ${column}: ${shown}`;
    host.querySelector(".spelled").textContent = hidden
      ? `token ${i} must not see token ${j}, which comes later: −∞ in place of the score, so the weight is 0`
      : explained(spec.computed, array, i, j, value);
  };

  const mark = ({ spec, view }) => {
    const [first, last] = { row: [query, query], seen: [0, query] }[spec.path] ?? [null, null];
    view.mark(first, last);
  };

  const draw = own => {
    const { spec, view } = own, found = array(spec.source);
    if (own.fresh) {
      view.show({
        ...found, rowNames: names(spec.rows, found.shape[0]), columnNames: names(spec.columns, found.shape[1]),
        square: spec.columns === "tokens", palette: data.palette, kind: spec.kind, masked: spec.masked,
        title: `${spec.name}`,
      });
      if (spec.rows === "tokens") view.point(query, view.at[1], false);
      own.fresh = false;
    }
    mark(own);
  };

  const list = host => {
    const rows = data.tops[full(host.dataset.source)][query], next = tokens[query + 1];
    const cells = rows.map(([token, p, logit], n) => {
      const line = document.createElement("tr"), width = (100 * p / rows[0][1] || 0).toFixed(1);
      line.innerHTML = `<td class=number>${n + 1}</td><td class=token></td><td class=number>${number(logit)}</td>
        <td class=number>${number(p)}</td><td class=share><span style="width:${width}%"></span></td>`;
      line.querySelector(".token").textContent = token;
      line.classList.toggle("next", token === next);
      return line;
    });
    host.innerHTML = `<div class=scroll><table><caption></caption><thead><tr><th>rank<th>token<th>logit<th>probability<th>
      </tr></thead><tbody></tbody></table></div>`;
    const follows = next === undefined ? "the text ends there" : `the text goes on with “${next}”`;
    host.querySelector("caption").textContent = `Likeliest after token ${query}, “${tokens[query]}”: ${follows}`;
    host.querySelector("tbody").append(...cells);
  };

  const visible = () => sections.map((_, n) => n).filter(n => all.getAttribute("aria-pressed") === "true" || n === step - 1);

  const refresh = numbers => numbers.forEach(n => {
    views[n].forEach(draw);
    sections[n].querySelectorAll("[data-source]").forEach(list);
  });

  const renew = () => {
    views.flat().forEach(own => (own.fresh = true));
    refresh(visible());
  };

  const choose = i => {
    query = Math.max(0, Math.min(tokens.length - 1, i));
    chips.forEach((chip, n) => chip.setAttribute("aria-pressed", n === query));
    const chip = chips[query], strip = chip.parentElement, [box, own] = [strip, chip].map(e => e.getBoundingClientRect());
    if (own.left < box.left || own.right > box.right) strip.scrollLeft += (own.left + own.right - box.left - box.right) / 2;
    views.flat().forEach(({ spec, view, fresh }) => {
      if (!fresh && spec.rows === "tokens" && spec.path) view.point(query, view.at[1], false);
    });
    refresh(visible());
  };

  const show = () => {
    const asked = Number(/step=(\d+)/.exec(location.hash)?.[1] ?? 1);
    step = Math.max(1, Math.min(sections.length, asked));
    const together = all.getAttribute("aria-pressed") === "true";
    sections.forEach((section, n) => (section.hidden = !together && n !== step - 1));
    document.querySelectorAll(".contents a").forEach((link, n) => {
      if (n === step - 1) link.setAttribute("aria-current", "step");
      else link.removeAttribute("aria-current");
    });
    at.textContent = `${step} of ${sections.length}`;
    bar.querySelector("[data-go='-1']").disabled = step === 1;
    bar.querySelector("[data-go='1']").disabled = step === sections.length;
    refresh(visible());
  };

  const go = by => {
    const to = Math.max(1, Math.min(sections.length, step + by));
    if (to === step) return;
    location.hash = `step=${to}`;
    show();
  };

  const chips = named.map((name, i) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = tokens[i];
    chip.setAttribute("aria-label", `query token ${name}`);
    chip.onclick = () => choose(i);
    return chip;
  });
  bar.querySelector(".tokens").append(...chips);
  bar.querySelectorAll("[data-go]").forEach(button => (button.onclick = () => go(Number(button.dataset.go))));
  all.onclick = () => {
    all.setAttribute("aria-pressed", all.getAttribute("aria-pressed") !== "true");
    show();
  };
  bar.querySelectorAll("select").forEach(select => {
    select.value = chosen[select.dataset.choice];
    select.onchange = () => {
      chosen[select.dataset.choice] = Number(select.value);
      renew();
    };
  });
  document.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input, .frame")) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      go(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  window.addEventListener("hashchange", show);
  let width = innerWidth;
  window.addEventListener("resize", () => {
    if (width === innerWidth) return; // a phone's toolbar comes and goes
    width = innerWidth;
    renew();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renew);
  window.addEventListener("beforeprint", () => {
    sections.forEach(section => (section.hidden = false));
    views.flat().forEach(own => (own.fresh = true)); // in the colours of paper
    refresh(sections.map((_, n) => n));
  });
  window.addEventListener("afterprint", () => {
    views.flat().forEach(own => (own.fresh = true));
    show();
  });

  document.body.classList.add("stepping-on");
  bar.hidden = false;
  choose(query);
  show();
}
