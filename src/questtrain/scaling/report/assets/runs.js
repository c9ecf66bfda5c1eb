// The table of runs: a head's button sorts by its column, the fields above filter.
function runTable() {
  const table = document.querySelector("#run-table table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const find = document.getElementById("run-filter");
  const status = document.getElementById("run-status");
  const precision = document.getElementById("run-precision");
  const names = new Intl.Collator("en", { numeric: true });

  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent;
  }

  // Numbers by size, texts as people order them; empty cells stay last both ways.
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? names.compare(a, b) : x - y);
  }

  function sort(column) {
    const rising = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), rising ? 1 : -1));
    body.append(...rows);
  }

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!status.value || row.dataset.status === status.value) && (!precision.value || row.dataset.precision === precision.value);
      row.hidden = !fits;
      count += fits;
    }
    document.getElementById("run-count").textContent = `${count} of ${body.rows.length} runs`;
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
  for (const control of [find, status, precision]) control.addEventListener("input", filter);
}
runTable();
