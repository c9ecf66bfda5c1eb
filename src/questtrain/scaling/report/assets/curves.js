// Loss curves: a line a run for training, markers for validation, one legend entry a precision.
const UNKNOWN = {
  label: "",
  text: "unknown precision",
  colour: "#777777",
  dark: "#999999",
  symbol: "circle",
};

function curveTraces(curve, first) {
  const look = LOOKS.get(curve.precision) ?? UNKNOWN;
  const state = curve.status === "completed" ? "" : ` (${plain(curve.status)})`;
  const head = `<b>${plain(curve.name)}</b>${state}<br>`;
  const hover = (what) => `${head}${what} loss %{y:.4f}<br>%{x:.4s} tokens<extra></extra>`;
  const common = { type: "scatter", legendgroup: look.label, name: plain(look.text) };
  return [
    {
      ...common,
      mode: "lines",
      showlegend: first,
      x: curve.x,
      y: curve.y,
      line: { color: colourOf(look), width: 1.3 },
      hovertemplate: hover("training"),
    },
    {
      ...common,
      mode: "markers",
      showlegend: false,
      x: curve.vx,
      y: curve.vy,
      marker: { symbol: look.symbol, size: 6, color: colourOf(look) },
      hovertemplate: hover("validation"),
    },
  ];
}

// The part below what nearly all runs have left behind after a tenth of their tokens: the first
// steps, from ln(vocabulary) down, would take most of the height. Null where there is none.
function lateHigh(curves) {
  const early = ({ x, y }) => y[x.findIndex((tokens) => tokens >= 0.1 * x.at(-1))];
  const losses = curves.filter((curve) => curve.y.length).map(early);
  return losses.length ? quantile(losses, 0.95) : null;
}

// The ranges that show all points of at most this loss; null shows all.
function rangesBelow(curves, high, log) {
  const points = curves.flatMap((curve) => [
    ...curve.x.map((x, i) => [x, curve.y[i]]),
    ...curve.vx.map((x, i) => [x, curve.vy[i]]),
  ]);
  const shown = high === null ? points : points.filter((point) => point[1] <= high);
  return {
    x: rangeOf(shown.map((point) => point[0]), 0.03, log),
    y: rangeOf(shown.map((point) => point[1]), 0.06, false),
  };
}

function lossCurves() {
  if (!REPORT.curves.length) return;
  const chart = document.getElementById("curve-chart");
  const filter = document.getElementById("curve-filter");
  const model = document.getElementById("curve-model");
  const scale = document.getElementById("curve-x");
  const part = document.getElementById("curve-y");
  const order = [...LOOKS.keys()];
  const place = (curve) => (order.indexOf(curve.precision) + order.length + 1) % (order.length + 1);
  const sorted = [...REPORT.curves].sort((a, b) => place(a) - place(b));

  function fits(curve) {
    const text = [curve.name, curve.model, curve.status, LOOKS.get(curve.precision)?.text];
    return (!model.value || curve.model === model.value) && hasWords(text.join(" "), filter.value);
  }

  function draw() {
    const shown = sorted.filter(fits);
    const isFirst = (curve, i) => i === 0 || shown[i - 1].precision !== curve.precision;
    const traces = shown.flatMap((curve, i) => curveTraces(curve, isFirst(curve, i)));
    document.getElementById("curve-count").textContent = `${shown.length} of ${sorted.length} runs`;
    const log = scale.value === "log";
    const high = part.value === "late" ? lateHigh(shown) : null;
    const ranges = shown.length ? rangesBelow(shown, high, log) : {};
    const view = { uirevision: scale.value + part.value };
    const xaxis = (log ? logAxis : axis)("training tokens", { ...view, range: ranges.x });
    const yaxis = axis("loss (nats/token)", { ...view, range: ranges.y });
    const entries = shown.filter(isFirst).length;
    Plotly.react(chart, traces, layout(chart, xaxis, yaxis, entries), CONFIG);
  }

  for (const control of [filter, model, scale, part]) control.addEventListener("input", draw);
  keepDrawn(draw);
}
lossCurves();
