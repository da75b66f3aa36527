// Sort a table by the column whose heading is pressed, by mouse or keyboard: numbers by value (data-value), else by text.
// Whichever way, what is no number comes behind the numbers, and empty cells last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const cell = row => row.cells[column], text = row => cell(row).textContent;
      const [numbers, words, empty] = [[], [], []];
      for (const row of body.rows) {
        (cell(row).dataset.value !== undefined ? numbers : text(row) === "" ? empty : words).push(row);
      }
      const sign = down ? -1 : 1;
      numbers.sort((a, b) => sign * (cell(a).dataset.value - cell(b).dataset.value));
      words.sort((a, b) => sign * text(a).localeCompare(text(b), undefined, { numeric: true }));
      body.append(...numbers, ...words, ...empty);
    });
  });
}
