// Sort a table by the column whose heading is pressed, by mouse or keyboard: numbers by value (data-value), else by text;
// empty cells last, whichever way.
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
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const isEmpty = row => key(row) === "";
      const rows = [...body.rows].filter(row => !isEmpty(row));
      const numeric = rows.every(row => row.cells[column].dataset.value !== undefined);
      const order = (a, b) => numeric ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true });
      rows.sort((a, b) => down ? order(b, a) : order(a, b));
      body.append(...rows, ...[...body.rows].filter(isEmpty));
    });
  });
}
