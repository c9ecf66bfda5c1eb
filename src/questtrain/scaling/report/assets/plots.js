// What both charts share: colours that follow the page, a quiet layout, one legend a precision.
const DARK = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};
const PLOT_HEIGHT = 470;
const LEGEND_ROW = 24;

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
    title: { text: title, standoff: 10 },
    gridcolor: pageColour("--line"),
    linecolor: pageColour("--soft"),
    tickcolor: pageColour("--soft"),
    ticks: "outside",
    zeroline: false,
    automargin: true,
    exponentformat: "B",
    ...extra,
  };
}

// A range of decades; ticks at 1, 2 and 5 where they have room.
function logAxis(title, extra) {
  const decades = extra.range ? extra.range[1] - extra.range[0] : Infinity;
  const room = decades < (isNarrow() ? 2.5 : 5);
  return axis(title, { type: "log", dtick: room ? "D2" : 1, ...extra });
}

function isNarrow() {
  return innerWidth < 640;
}

// From the lowest to the highest value and a share of that more, in decades where log.
function rangeOf(values, share, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  const pad = share * (high - low) || 0.1;
  return [low - pad, high + pad];
}

// The legend stands beside the plot, and below it where the page is narrow.
function layout(chart, xaxis, yaxis, entries) {
  const narrow = isNarrow();
  const below = narrow ? LEGEND_ROW * Math.ceil(entries / 3) : 0;
  const height = Math.max(PLOT_HEIGHT, narrow ? 0 : LEGEND_ROW * entries + 90) + below;
  chart.style.height = `${height}px`;
  const ink = pageColour("--ink");
  const family = getComputedStyle(document.querySelector("nav")).fontFamily;
  return {
    uirevision: "kept",
    height,
    font: { family, size: 13, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: narrow ? 50 : 62, r: 10, t: 32, b: 52 + below },
    hovermode: "closest",
    hoverlabel: {
      bgcolor: pageColour("--surface"),
      bordercolor: pageColour("--soft"),
      font: { family, size: 13, color: ink },
      align: "left",
      namelength: -1,
    },
    modebar: {
      bgcolor: "rgba(0,0,0,0)",
      color: pageColour("--soft"),
      activecolor: pageColour("--accent"),
    },
    legend: {
      tracegroupgap: 0,
      ...(narrow ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 } : {}),
    },
    xaxis,
    yaxis,
  };
}

// The looks of the precisions among these labels, in the page's order.
function looksOf(labels) {
  const wanted = new Set(labels);
  return REPORT.precisions.filter((look) => wanted.has(look.label));
}

// Draw now, and again when the page turns dark or light, wide or narrow.
function keepDrawn(draw) {
  draw();
  DARK.addEventListener("change", draw);
  matchMedia("(min-width: 40rem)").addEventListener("change", draw);
}
