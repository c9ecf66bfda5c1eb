// The table of runs: a head's button sorts by its column, the fields above filter.
const NAMES = new Intl.Collator("en", { numeric: true });

// Numbers by size, texts as people order them; sign is 1 or -1, empty cells stay last both ways.
function compareCells(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [Number(a), Number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? NAMES.compare(a, b) : x - y);
}

function runTable() {
  const table = document.querySelector("#run-table table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const find = document.getElementById("run-filter");
  const status = document.getElementById("run-status");
  const precision = document.getElementById("run-precision");

  function value(row, column) {
    return row.cells[column].dataset.value ?? row.cells[column].textContent;
  }

  function sort(column) {
    const rising = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.setAttribute("aria-sort", "none");
    heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
    const sign = rising ? 1 : -1;
    const compare = (a, b) => compareCells(value(a, column), value(b, column), sign);
    body.append(...[...body.rows].sort(compare));
  }

  function isWanted(row) {
    const { status: state, precision: format } = row.dataset;
    if (status.value && state !== status.value) return false;
    if (precision.value && format !== precision.value) return false;
    return hasWords(row.textContent, find.value);
  }

  function filter() {
    const rows = [...body.rows];
    for (const row of rows) row.hidden = !isWanted(row);
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("run-count").textContent = `${shown} of ${rows.length} runs`;
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sort(column));
  });
  for (const control of [find, status, precision]) control.addEventListener("input", filter);
}
runTable();
