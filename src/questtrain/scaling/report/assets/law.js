"use strict";
// The page's data, and the law as scaling/law.py has it: loss in nats of N parameters, D tokens.
const REPORT = JSON.parse(document.getElementById("report-data").textContent);
const LOOKS = new Map(REPORT.precisions.map((look) => [look.label, look]));

// The fit's bootstrap samples, each with the names of REPORT.law.numbers.
const SAMPLES = samplesOf(REPORT.law?.draws ?? {});

function samplesOf(draws) {
  const names = Object.keys(draws);
  const count = names.length ? draws[names[0]].length : 0;
  return Array.from({ length: count }, (_, k) => {
    return Object.fromEntries(names.map((name) => [name, draws[name][k]]));
  });
}

function knows(label) {
  return REPORT.law !== null && REPORT.law.precisions.includes(label);
}

function predict(params, tokens, label, numbers = REPORT.law.numbers) {
  const eff = numbers[`eff ${label}`] ?? 1;
  const size = numbers.A * (params * eff) ** -numbers.alpha;
  return size + numbers.B * tokens ** -numbers.beta + numbers.E;
}

function residual(loss, predicted) {
  return 100 * Math.log(loss / predicted);
}

// scaling/plan.py: the best model of every precision within a budget of bytes, tokens and FLOPs
// (Infinity: no limit), lowest loss first, with what the bootstrap samples say of it.
function plans(budget) {
  const labels = REPORT.precisions.filter((look) => knows(look.label) && look.bits);
  const found = labels.map((look) => bestModel(look, budget));
  if (SAMPLES.length) addIntervals(found);
  return found.sort((a, b) => a.loss - b.loss);
}

function addIntervals(found) {
  const { confidence } = REPORT.law;
  const losses = found.map(({ params, tokens, look }) => {
    return SAMPLES.map((numbers) => predict(params, tokens, look.label, numbers));
  });
  found.forEach((plan, i) => {
    plan.low = quantile(losses[i], (1 - confidence) / 2);
    plan.high = quantile(losses[i], (1 + confidence) / 2);
    const wins = SAMPLES.filter((_, k) => losses.every((other) => losses[i][k] <= other[k]));
    plan.share = wins.length / SAMPLES.length;
  });
}

// With FLOPs limited, more parameters help up to the size at which both terms of the law fall at
// the same rate: α·A/(N·eff)^α = β·B/D^β.
function bestModel(look, budget) {
  let params = (8 * budget.bytes) / look.bits;
  let tokens = budget.tokens;
  if (budget.flops < Infinity) {
    const pairs = budget.flops / 6;
    params = Math.min(params, Math.max(computeOptimal(look.label, pairs), pairs / tokens));
    tokens = Math.min(tokens, pairs / params);
  }
  const loss = predict(params, tokens, look.label);
  return { look, params, tokens, loss, bytes: (params * look.bits) / 8, flops: 6 * params * tokens };
}

function computeOptimal(label, pairs) {
  const { alpha, beta, B, E } = REPORT.law.numbers;
  const size = predict(1, Infinity, label) - E;
  return (((alpha * size) / (beta * B)) * pairs ** beta) ** (1 / (alpha + beta));
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = sorted[Math.min(below + 1, sorted.length - 1)];
  return sorted[below] + (place - below) * (above - sorted[below]);
}

const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]];

function digits(value, count = 3) {
  return value.toLocaleString("en", { maximumSignificantDigits: count });
}

// 30.5M, 3B
function countText(value) {
  if (value >= 0.9995e15) return scientific(value);
  const unit = UNITS.find(([size]) => value >= 0.9995 * size);
  return unit ? digits(value / unit[0]) + unit[1] : digits(value);
}

function scientific(value) {
  const [mantissa, exponent] = value.toExponential(2).split("e");
  const raised = (digit) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(digit)];
  return `${mantissa}×10${[...String(Number(exponent))].map(raised).join("")}`;
}

function bytesText(bytes) {
  return bytes >= 0.9995e9 ? `${digits(bytes / 1e9)} GB` : `${digits(bytes / 1e6)} MB`;
}

// 80B, 3e9, 1.5T or 1,000,000: a count as people type it; NaN for anything else, 1,6 too.
function readCount(text) {
  const grouped = /^\d{1,3}(,\d{3})+(?=\D|$)/;
  const typed = text.trim().replace(grouped, (digits) => digits.replaceAll(",", ""));
  const match = /^(\d*\.?\d+(?:e[+-]?\d+)?)\s*([KMBT]?)$/i.exec(typed);
  if (!match) return NaN;
  const unit = UNITS.find(([, name]) => name === match[2].toUpperCase());
  return Number(match[1]) * (unit ? unit[0] : 1);
}

// Names of runs are text for plotly too, which reads a few tags, entities and %{…}.
const CODES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "%": "&#37;" };

function plain(text) {
  return String(text).replace(/[&<>%]/g, (letter) => CODES[letter]);
}

// Whether a text contains every word that was typed.
function hasWords(text, typed) {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => text.toLowerCase().includes(word));
}
