// Loss curves: a line a run for training, markers for validation, one legend entry a precision.
function lossCurves() {
  if (!REPORT.curves.length) return;
  const chart = document.getElementById("curve-chart");
  const filter = document.getElementById("curve-filter");
  const model = document.getElementById("curve-model");
  const scale = document.getElementById("curve-x");

  function shown() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return REPORT.curves.filter((curve) => {
      const text = `${curve.name} ${curve.model} ${curve.status} ${lookOf(curve).text}`.toLowerCase();
      return (!model.value || curve.model === model.value) && words.every((word) => text.includes(word));
    });
  }

  function lookOf(curve) {
    return LOOKS.get(curve.precision) ?? { label: "", text: "unknown precision", colour: "#777777", dark: "#999999", symbol: "circle", dash: "solid" };
  }

  function traces(curve, first) {
    const look = lookOf(curve);
    const colour = colourOf(look);
    const name = `<b>${plain(curve.name)}</b>${curve.status === "completed" ? "" : ` (${plain(curve.status)})`}`;
    const common = { type: "scatter", legendgroup: look.label, name: plain(look.text) };
    const at = "%{x:.3s} tokens<br>%{y:.4f}<extra></extra>";
    return [
      { ...common, mode: "lines", showlegend: first, x: curve.x, y: curve.y, line: { color: colour, width: 1.2 }, opacity: 0.85, hovertemplate: `${name}<br>training, ${at}` },
      { ...common, mode: "markers", showlegend: false, x: curve.vx, y: curve.vy, marker: { symbol: look.symbol, size: 6, color: colour }, hovertemplate: `${name}<br>validation, ${at}` },
    ];
  }

  function draw() {
    const curves = shown();
    const order = [...LOOKS.keys()];
    const sorted = [...curves].sort((a, b) => order.indexOf(a.precision) - order.indexOf(b.precision));
    const drawn = sorted.flatMap((curve, i) => traces(curve, i === 0 || sorted[i - 1].precision !== curve.precision));
    document.getElementById("curve-count").textContent = `${curves.length} of ${REPORT.curves.length} runs`;
    const xaxis = axis("training tokens", { type: scale.value, uirevision: scale.value });
    const yaxis = axis("loss (nats/token)", { uirevision: "loss" });
    Plotly.react(chart, drawn, layout(xaxis, yaxis), CONFIG);
  }

  for (const control of [filter, model, scale]) control.addEventListener("input", draw);
  keepDrawn(draw);
}
lossCurves();
