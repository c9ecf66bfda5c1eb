// What both charts share: colours that follow the page, a quiet layout, one legend a precision.
const DARK = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

function pageColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colourOf(look) {
  return DARK.matches ? look.dark : look.colour;
}

function swatch(look) {
  const dot = document.createElement("i");
  dot.className = "swatch";
  dot.style.setProperty("--light", look.colour);
  dot.style.setProperty("--dark", look.dark);
  return dot;
}

function axis(title, extra) {
  return {
    title: { text: title, standoff: 8 },
    gridcolor: pageColour("--line"),
    linecolor: pageColour("--soft"),
    tickcolor: pageColour("--soft"),
    ticks: "outside",
    zeroline: false,
    exponentformat: "B",
    ...extra,
  };
}

function layout(xaxis, yaxis) {
  const narrow = innerWidth < 640;
  return {
    uirevision: "kept",
    font: { family: getComputedStyle(document.querySelector("nav")).fontFamily, size: 13, color: pageColour("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: narrow ? 48 : 60, r: 10, t: 10, b: 50 },
    hovermode: "closest",
    hoverlabel: { bgcolor: pageColour("--surface"), bordercolor: pageColour("--soft"), font: { color: pageColour("--ink") }, align: "left", namelength: -1 },
    legend: narrow ? { orientation: "h", y: -0.18, yanchor: "top" } : {},
    xaxis,
    yaxis,
  };
}

// The precisions of the given labels, in the page's order.
function looksOf(labels) {
  const wanted = new Set(labels);
  return REPORT.precisions.filter((look) => wanted.has(look.label));
}

function geometric(low, high, count) {
  return Array.from({ length: count }, (_, i) => low * (high / low) ** (i / (count - 1)));
}

function paddedLog(values, factor) {
  return [Math.log10(Math.min(...values) / factor), Math.log10(Math.max(...values) * factor)];
}

// Draw now, and again when the page turns dark or light.
function keepDrawn(draw) {
  draw();
  DARK.addEventListener("change", draw);
}
