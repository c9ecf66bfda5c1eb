// The calculator: limits of memory, tokens and FLOPs → the best model of every precision.
function budget() {
  if (REPORT.law === null) return;
  const names = ["memory", "tokens", "flops"];
  const fields = names.map((name) => document.getElementById(`budget-${name}`));
  const [memory, tokens] = fields;
  const answer = document.getElementById("budget-answer");
  const rows = document.getElementById("budget-rows");
  const known = { params: REPORT.law.paramsRange, tokens: REPORT.law.tokensRange };
  memory.value = String(Number((known.params[1] / 2e9).toPrecision(2))); // at 4 bits, all measured
  tokens.value = countText(known.tokens[1]);

  function element(name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  }

  function row(plan, index) {
    const line = document.createElement("tr");
    line.classList.toggle("best", index === 0);
    line.dataset.precision = plan.look.label;
    line.dataset.loss = plan.loss;
    const head = element("th", plan.look.text);
    head.scope = "row";
    head.prepend(swatch(plan.look));
    const texts = [
      countText(plan.params),
      countText(plan.tokens),
      digits(plan.tokens / plan.params),
      bytesText(plan.bytes),
      scientific(plan.flops),
      plan.loss.toFixed(4),
      "low" in plan ? `${plan.low.toFixed(4)} – ${plan.high.toFixed(4)}` : "–",
      "share" in plan ? `${(100 * plan.share).toFixed(1)}%` : "–",
    ];
    line.append(head, ...texts.map((text) => element("td", text)));
    return line;
  }

  function say(best) {
    const size = `${countText(best.params)} parameters on ${countText(best.tokens)} tokens`;
    const beyond = ["params", "tokens"].map((what) => outside(best[what], what)).filter(Boolean);
    const warning = beyond.length ? ` It extrapolates: ${beyond.join(" and ")}.` : "";
    return `${best.look.text}, ${size}: predicted loss ${best.loss.toFixed(4)}.${warning}`;
  }

  // A remark where a number lies beyond the law's data, null inside.
  function outside(value, what) {
    const [low, high] = known[what];
    const name = what === "params" ? "parameters" : "tokens";
    if (value > 1.05 * high) return `${digits(value / high)} times the most ${name} of the runs`;
    if (value < low / 1.05) return `${digits(value / low)} times the fewest ${name} of the runs`;
    return null;
  }

  // The number in a field, Infinity where it is empty, NaN where it is none.
  function limit(field) {
    const value = field.value.trim() ? readCount(field.value) : Infinity;
    const bad = !(value > 0);
    field.setAttribute("aria-invalid", String(bad));
    return bad ? NaN : value;
  }

  function update() {
    const [gigabytes, tokenCount, flops] = fields.map(limit);
    const given = { bytes: 1e9 * gigabytes, tokens: tokenCount, flops };
    const bounded = flops < Infinity || (gigabytes < Infinity && tokenCount < Infinity);
    const wrong = Object.values(given).some(Number.isNaN);
    const found = bounded && !wrong ? plans(given) : [];
    rows.replaceChildren(...found.map(row));
    if (wrong) answer.textContent = "A limit is a positive number, such as 1.6, 80B or 3e20.";
    else if (!bounded) answer.textContent = "Give memory and tokens, or FLOPs.";
    else answer.textContent = found.length ? say(found[0]) : "No precision of known bits is in the law.";
  }

  for (const field of fields) field.addEventListener("input", update);
  document.getElementById("budget-form").addEventListener("submit", (event) => event.preventDefault());
  update();
}
budget();
