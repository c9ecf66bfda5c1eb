// Points and curves of the law. Each curve is one precision over sizes N, on ratio·N tokens.
const AXES = {
  memory: ["weight memory (MB)", (params, tokens, look) => (params * look.bits) / 8e6],
  params: ["non-embedding parameters N", (params) => params],
  tokens: ["training tokens D", (params, tokens) => tokens],
  flops: ["training FLOPs, 6·N·D", (params, tokens) => 6 * params * tokens],
};
const SAME_RATIO = 1.08; // nominal sizes and whole batches shift tokens per parameter a little
const CURVE_POINTS = 80;
const POINTS = REPORT.points.map(([name, params, tokens, label, loss]) => {
  return { name, params, tokens, label, loss, ratio: tokens / params, look: LOOKS.get(label) };
});

function isSameRatio(a, b) {
  return a / b < SAME_RATIO && b / a < SAME_RATIO;
}

// The measured ratios, near ones once, the most frequent first.
function measuredRatios() {
  const groups = [];
  for (const { ratio } of POINTS) {
    const group = groups.find((one) => isSameRatio(one.ratio, ratio));
    if (group) group.count += 1;
    else groups.push({ ratio, count: 1 });
  }
  return groups.sort((a, b) => b.count - a.count).map((group) => group.ratio);
}

// A logarithmic slider that stops at ratios that were measured; returns the ratio it stands for.
function ratioSlider(slider) {
  const measured = measuredRatios();
  slider.min = Math.log2(Math.min(...measured) / 4);
  slider.max = Math.log2(Math.max(...measured) * 4);
  slider.value = Math.log2(measured[0]);
  for (const ratio of measured.slice(0, 12)) {
    const mark = document.createElement("option");
    mark.value = Math.log2(ratio);
    document.getElementById("ratio-marks").append(mark);
  }
  return () => {
    const value = 2 ** Number(slider.value);
    return measured.find((ratio) => isSameRatio(ratio, value)) ?? value;
  };
}

function hoverText(p) {
  const lines = [
    `<b>${plain(p.name)}</b>`,
    plain(p.look.text),
    `N ${countText(p.params)} · D ${countText(p.tokens)} (${digits(p.ratio)} a parameter)`,
    `loss ${p.loss.toFixed(4)}`,
  ];
  if (knows(p.label)) {
    const predicted = predict(p.params, p.tokens, p.label);
    const off = residual(p.loss, predicted);
    const sign = off < 0 ? "−" : "+";
    lines.push(`predicted ${predicted.toFixed(4)}, residual ${sign}${Math.abs(off).toFixed(2)}%`);
  }
  return lines.join("<br>");
}

// Faint points have a colour of their own and no opacity, which the legend would take over.
function pointTrace(look, xOf, yOf, isSolid) {
  const own = POINTS.filter((p) => p.label === look.label);
  own.sort((a, b) => isSolid(b) - isSolid(a)); // the legend takes the first one's colour
  const colour = colourOf(look);
  return {
    type: "scatter",
    mode: "markers",
    name: plain(look.text),
    legendgroup: look.label,
    x: own.map((p) => xOf(p.params, p.tokens, look)),
    y: own.map(yOf),
    text: own.map(hoverText),
    hovertemplate: "%{text}<extra></extra>",
    marker: {
      symbol: look.symbol,
      size: 9,
      color: own.map((p) => (isSolid(p) ? colour : faint(colour))),
    },
  };
}

function faint(colour) {
  const parts = [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  return `rgba(${parts.join(",")},0.28)`;
}

function curveTrace(look, xOf, ratio) {
  const [low, high] = REPORT.law.paramsRange;
  const sizes = Array.from({ length: CURVE_POINTS }, (_, i) => {
    return (low / 3) * ((9 * high) / low) ** (i / (CURVE_POINTS - 1));
  });
  return {
    type: "scatter",
    mode: "lines",
    name: plain(look.text),
    legendgroup: look.label,
    showlegend: false,
    x: sizes.map((n) => xOf(n, ratio * n, look)),
    y: sizes.map((n) => predict(n, ratio * n, look.label)),
    text: sizes.map((n) => `N ${countText(n)} · D ${countText(ratio * n)}`),
    hovertemplate: `${plain(look.text)}, the law<br>%{text}<br>loss %{y:.4f}<extra></extra>`,
    line: { color: colourOf(look), dash: look.dash, width: 1.6 },
  };
}

// The axes show the points, so that a slider moves the curves and not the axes.
function lossAxis() {
  const range = rangeOf(POINTS.map((p) => p.loss), 0.06, false);
  return axis("loss (nats/token)", { uirevision: "loss", range });
}

function residualAxis() {
  const zero = { zeroline: true, zerolinecolor: pageColour("--soft") };
  return axis("loss over the law's prediction (%)", { uirevision: "residual", ...zero });
}

function explore() {
  if (!POINTS.length) return;
  const chart = document.getElementById("law-chart");
  const xAxis = document.getElementById("x-axis");
  const yAxis = document.getElementById("y-axis");
  const slider = document.getElementById("ratio");
  const ratioNow = ratioSlider(slider);
  const looks = looksOf(POINTS.map((p) => p.label));

  function draw() {
    const [title, xOf] = AXES[xAxis.value];
    const ratio = ratioNow();
    const residuals = yAxis.value === "residual";
    const yOf = (p) => (residuals ? residual(p.loss, predict(p.params, p.tokens, p.label)) : p.loss);
    const isSolid = (p) => residuals || REPORT.law === null || isSameRatio(p.ratio, ratio);
    const placed = looks.filter((look) => look.bits || xAxis.value !== "memory");
    const shown = placed.filter((look) => !residuals || knows(look.label));
    const points = shown.map((look) => pointTrace(look, xOf, yOf, isSolid));
    const lines = residuals ? [] : shown.filter((look) => knows(look.label));
    const curves = lines.map((look) => curveTrace(look, xOf, ratio));
    document.getElementById("ratio-text").textContent = digits(ratio);
    sayUnplaced(looks.filter((look) => !placed.includes(look)));
    const xs = points.flatMap((trace) => trace.x);
    const range = xs.length ? rangeOf(xs, 0.06, true) : undefined;
    const xaxis = logAxis(title, { uirevision: xAxis.value, range });
    const yaxis = residuals ? residualAxis() : lossAxis();
    Plotly.react(chart, [...curves, ...points], layout(chart, xaxis, yaxis, shown.length), CONFIG);
  }

  function sayUnplaced(missing) {
    const note = document.getElementById("no-memory");
    note.hidden = !missing.length;
    const names = missing.map((look) => look.text).join(", ");
    note.textContent = `Left out, because the label does not say how many bits a weight has: ${names}.`;
  }

  for (const control of [xAxis, yAxis, slider]) control.addEventListener("input", draw);
  keepDrawn(draw);
}
explore();
