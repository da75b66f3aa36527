// The arithmetic of one cell, in its numbers: "q₅ · k₂ / √32 = (0.31 · 1.2 + …) / 5.657 = 0.84".
//
//   explained(computed, array, i, j): computed is Matrix.computed of step_page.py, array(name) an array of the page or
//   undefined. Numbers have 4 significant digits; of long sums the largest terms are shown, and what the others make.
const MOST_TERMS = 64, LARGEST = 8;

const lowered = n => String(n).replace(/\d/g, digit => "₀₁₂₃₄₅₆₇₈₉"[digit]);

const signed = value => (value < 0 ? `(${number(value)})` : number(value));

// Σ a·b, of pairs.
const spelledSum = pairs => {
  const term = ([a, b]) => `${signed(a)} · ${signed(b)}`;
  if (pairs.length <= MOST_TERMS) return pairs.map(term).join(" + ");
  const order = [...pairs].sort((x, y) => Math.abs(y[0] * y[1]) - Math.abs(x[0] * x[1]));
  const rest = order.slice(LARGEST).reduce((sum, [a, b]) => sum + a * b, 0);
  return `${order.slice(0, LARGEST).map(term).join(" + ")} + ${signed(rest)} of ${pairs.length - LARGEST} smaller terms`;
};

const rowOf = ({ values, shape }, i) => values.subarray(i * shape[1], (i + 1) * shape[1]);

const explanations = {
  row: ({ of, ids }, array, i, j) => `row ${ids ? ids[i] : i} of the ${of}, column ${j}`,

  sum: ({ of, names }, array, i, j, value) => {
    const parts = of.map(name => array(name)), place = `${lowered(i)},${lowered(j)}`;
    const left = names.map(name => name + place).join(" + ");
    if (parts.some(part => !part)) return `${left} = ${number(value)}`;
    return `${left} = ${parts.map(part => signed(rowOf(part, i)[j])).join(" + ")} = ${number(value)}`;
  },

  dot: ({ left, right, bias, divisor, divisorName, names }, array, i, j, value) => {
    const [a, b, c] = [array(left), array(right), bias ? array(bias) : null];
    const over = divisor ? ` / ${divisorName}` : "", plus = bias ? ` + b${lowered(j)}` : "";
    const formula = `${names[0]}${lowered(i)} · ${names[1]}${lowered(j)}${over}${plus}`;
    if (!a || !b) return `${formula} = ${number(value)}, ${names[0]}${lowered(i)} times the weights' row ${j}`;
    const other = rowOf(b, j), pairs = Array.from(rowOf(a, i), (x, d) => [x, other[d]]), sum = spelledSum(pairs);
    const whole = divisor ? `(${sum}) / ${number(divisor)}` : sum;
    return `${formula} = ${whole}${c ? ` + ${signed(c.values[j])}` : ""} = ${number(value)}`;
  },

  mix: ({ left, right, names }, array, i, j, value) => {
    const [a, b] = [array(left), array(right)], seen = Array.from(rowOf(a, i).subarray(0, i + 1));
    const formula = `Σₛ ${names[0]}${lowered(i)},ₛ · ${names[1]}ₛ,${lowered(j)}`;
    return `${formula} = ${spelledSum(seen.map((x, s) => [x, rowOf(b, s)[j]]))} = ${number(value)}`;
  },

  norm: ({ of, stats, weight, bias, name }, array, i, j, value) => {
    const x = rowOf(array(of), i)[j], [mean, deviation] = rowOf(array(stats), i);
    const [w, b] = [array(weight), bias ? array(bias) : null];
    const shift = b ? ` + ${signed(b.values[j])}` : "";
    return `(${name} − mean) / std · weight${b ? " + bias" : ""} = (${number(x)} − ${signed(mean)}) / ` +
      `${number(deviation)} · ${signed(w.values[j])}${shift} = ${number(value)}`;
  },

  masked: ({ of }, array, i, j, value) => `token ${i} sees token ${j}: the score stays ${number(value)}`,

  softmax: ({ of }, array, i, j, value) => {
    const scores = Array.from(rowOf(array(of), i).subarray(0, i + 1)), most = Math.max(...scores);
    const total = scores.reduce((sum, score) => sum + Math.exp(score - most), 0), own = Math.exp(scores[j] - most);
    return `exp(s${lowered(i)},${lowered(j)} − max) / Σ = exp(${number(scores[j])} − ${signed(most)}) / ` +
      `${number(total)} = ${number(own)} / ${number(total)} = ${number(value)}`;
  },

  gelu: ({ of }, array, i, j, value) => `GELU(${number(rowOf(array(of), i)[j])}) = ${number(value)}`,
};

const explained = (computed, array, i, j, value) =>
  computed.kind ? explanations[computed.kind](computed, array, i, j, value) : "";
