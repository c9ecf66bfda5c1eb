// Points and curves of the law. Each curve is one precision over sizes N, on ratio·N tokens.
function explore() {
  const points = REPORT.points.map(([name, params, tokens, label, loss]) => ({ name, params, tokens, label, loss, look: LOOKS.get(label) }));
  if (!points.length) return;
  const chart = document.getElementById("law-chart");
  const xAxis = document.getElementById("x-axis");
  const yAxis = document.getElementById("y-axis");
  const slider = document.getElementById("ratio");
  const ratios = points.map((p) => p.tokens / p.params);
  const SAME = 1.08; // ratios so close are one: nominal sizes and whole batches shift them

  const AXES = {
    memory: { title: "weight memory (bytes)", of: (params, tokens, look) => (params * look.bits) / 8 },
    params: { title: "non-embedding parameters N", of: (params) => params },
    tokens: { title: "training tokens D", of: (params, tokens) => tokens },
    flops: { title: "training FLOPs, 6·N·D", of: (params, tokens) => 6 * params * tokens },
  };

  // The slider is logarithmic and stops at ratios that were measured.
  const marks = [...new Set(ratios.map((r) => Number(r.toPrecision(2))))].sort((a, b) => a - b);
  slider.min = Math.log2(Math.min(...ratios) / 4);
  slider.max = Math.log2(Math.max(...ratios) * 4);
  slider.value = Math.log2(commonest(ratios));
  for (const mark of marks.slice(0, 12)) {
    const option = document.createElement("option");
    option.value = Math.log2(mark);
    document.getElementById("ratio-marks").append(option);
  }

  function commonest(values) {
    const near = (value) => values.filter((other) => isSame(other, value)).length;
    return values.reduce((best, value) => (near(value) > near(best) ? value : best));
  }

  function isSame(a, b) {
    return a / b < SAME && b / a < SAME;
  }

  function ratioNow() {
    const value = 2 ** Number(slider.value);
    return ratios.find((ratio) => isSame(ratio, value)) ?? value;
  }

  function hover(p) {
    const parts = [
      `<b>${plain(p.name)}</b>`,
      plain(p.look.text),
      `N ${countText(p.params)} · D ${countText(p.tokens)} (${digits(p.tokens / p.params)} a parameter)`,
      `loss ${p.loss.toFixed(4)}`,
    ];
    if (knows(p.label)) {
      const predicted = predict(p.params, p.tokens, p.label);
      const off = residual(p.loss, predicted);
      parts.push(`predicted ${predicted.toFixed(4)} · residual ${off < 0 ? "−" : "+"}${Math.abs(off).toFixed(2)}%`);
    }
    return parts.join("<br>");
  }

  function pointTrace(look, x, ratio, showResidual) {
    const own = points.filter((p) => p.label === look.label);
    const colour = colourOf(look);
    return {
      type: "scatter",
      mode: "markers",
      name: plain(look.text),
      legendgroup: look.label,
      x: own.map((p) => x.of(p.params, p.tokens, look)),
      y: own.map((p) => (showResidual ? residual(p.loss, predict(p.params, p.tokens, p.label)) : p.loss)),
      text: own.map(hover),
      hovertemplate: "%{text}<extra></extra>",
      marker: {
        symbol: look.symbol,
        size: 9,
        color: colour,
        line: { width: 0 },
        opacity: own.map((p) => (REPORT.law === null || showResidual || isSame(p.tokens / p.params, ratio) ? 1 : 0.25)),
      },
    };
  }

  function curveTrace(look, x, ratio) {
    const sizes = geometric(Math.min(...points.map((p) => p.params)) / 3, Math.max(...points.map((p) => p.params)) * 3, 80);
    return {
      type: "scatter",
      mode: "lines",
      name: plain(look.text),
      legendgroup: look.label,
      showlegend: false,
      x: sizes.map((n) => x.of(n, ratio * n, look)),
      y: sizes.map((n) => predict(n, ratio * n, look.label)),
      text: sizes.map((n) => `N ${countText(n)} · D ${countText(ratio * n)}`),
      hovertemplate: `${plain(look.text)}, law<br>%{text}<br>loss %{y:.4f}<extra></extra>`,
      line: { color: colourOf(look), dash: look.dash, width: 1.6 },
    };
  }

  function draw() {
    const x = AXES[xAxis.value];
    const ratio = ratioNow();
    const showResidual = yAxis.value === "residual";
    const shown = looksOf(points.map((p) => p.label)).filter((look) => (xAxis.value !== "memory" || look.bits) && (!showResidual || knows(look.label)));
    const left = looksOf(points.map((p) => p.label)).filter((look) => !look.bits);
    const note = document.getElementById("no-memory");
    note.hidden = xAxis.value !== "memory" || !left.length;
    note.textContent = `Left out: ${left.map((look) => look.text).join(", ")}, whose bits a weight are not known.`;
    document.getElementById("ratio-text").textContent = digits(ratio);
    const traces = shown.map((look) => pointTrace(look, x, ratio, showResidual));
    if (!showResidual) traces.push(...shown.filter((look) => knows(look.label)).map((look) => curveTrace(look, x, ratio)));
    const xs = traces.filter((t) => t.mode === "markers").flatMap((t) => t.x);
    const losses = points.map((p) => p.loss);
    const pad = 0.06 * (Math.max(...losses) - Math.min(...losses)) + 0.02;
    const xaxis = axis(x.title, { type: "log", range: xs.length ? paddedLog(xs, 1.5) : undefined, uirevision: xAxis.value });
    const yaxis = showResidual
      ? axis("loss over prediction (%)", { uirevision: "residual", zeroline: true, zerolinecolor: pageColour("--soft") })
      : axis("loss (nats/token)", { uirevision: "loss", range: [Math.min(...losses) - pad, Math.max(...losses) + pad] });
    Plotly.react(chart, traces, layout(xaxis, yaxis), CONFIG);
  }

  for (const control of [xAxis, yAxis, slider]) control.addEventListener("input", draw);
  keepDrawn(draw);
}
explore();
