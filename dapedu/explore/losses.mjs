// The loss explorer: one pair, three answers, and the book's losses of pairs, in the page, where no Python runs.
//
// The upper half is pure and is compared with the package under node (tests/test_loss_explorer.py). The lower half
// draws it: an anywidget in JupyterLab and in the rendered book.
import { build, cells, change, CORNERS, diamond, field, follow, inTriangle, listed, named, nextId, path, percent, player, recordedSteps, sigmoid, speaker, stepper, sum, svg, text, tilt, triangleGround } from "./page.mjs";

export const METHODS = ["DPO", "IPO", "SLiC-HF", "RRHF", "CLICK", "SPIN"];
const [STEPS, RATE, LONGEST] = [1000, 0.1, 0.05]; // of gradient descent; no step moves θ by more than the last

// ---- one margin: eq-one-margins and the table under it ----

const softplus = (z) => (z > 0 ? z + Math.log1p(Math.exp(-z)) : Math.log1p(Math.exp(z)));
const LOGISTIC = { margin: "h", value: (h, { beta }) => softplus(-beta * h), push: (h, { beta }) => beta * sigmoid(-beta * h) };
const FUNCTIONS = {
  "DPO": LOGISTIC,
  "IPO": { margin: "h", value: (h, { tau }) => (h - 1 / (2 * tau)) ** 2, push: (h, { tau }) => 2 * (1 / (2 * tau) - h) },
  "SLiC-HF": { margin: "m", value: (m, { delta }) => Math.max(0, delta - m), push: (m, { delta }) => Number(m < delta) },
  "RRHF": { margin: "mean", value: (mean) => Math.max(0, -mean), push: (mean) => Number(mean < 0) },
  "CLICK": {
    margin: "m",
    value: (m, { delta, contrastWeight }) => contrastWeight * Math.max(0, delta - m),
    push: (m, { delta, contrastWeight }) => contrastWeight * Number(m < delta),
  },
  "SPIN": LOGISTIC,
};

/** What the losses look at: h with the reference, m without, and the difference of means per token. */
export function margins(logps, start, lengths) {
  const m = logps[0] - logps[1];
  return { h: m - (start[0] - start[1]), m, mean: logps[0] / lengths[0] - logps[1] / lengths[1] };
}

/** A method's margin of a policy. */
function marginOf(name, policy, { reference, lengths }) {
  const [logps, start] = [policy, reference].map((ps) => ps.slice(0, 2).map(Math.log));
  return margins(logps, start, lengths)[FUNCTIONS[name].margin];
}

/** Mean loss at a margin: the chosen answer wins a share, and what loses has the opposite margin. */
export function value(name, margin, setting) {
  const one = (M) => FUNCTIONS[name].value(M, setting);
  return setting.wins * one(margin) + (1 - setting.wins) * one(-margin);
}

/** Its slope, with the sign turned: how hard a step drives the margin up. */
export function push(name, margin, setting) {
  const one = (M) => FUNCTIONS[name].push(M, setting);
  return setting.wins * one(margin) - (1 - setting.wins) * one(-margin);
}

/** Weight of the likelihood of a comparison's winner, which is of length `length`: CLICK's is a mean per token. */
function likelihoodWeight(name, length, { sftWeight }) {
  return { "SLiC-HF": sftWeight, "RRHF": sftWeight, "CLICK": sftWeight / length }[name] ?? 0;
}

// ---- the road: eq-one-road ----

const dot = (left, right) => sum(left.map((value, k) => value * right[k]));

/** c of eq-one-road: how much each answer has of what tells the chosen from the rejected one. */
function tilts(features) {
  const difference = features[0].map((value, k) => value - features[1][k]);
  return features.map((row) => dot(row, difference) / dot(difference, difference));
}

/** The policy where the margin has grown by h, for every loss of sums. */
export const road = ({ reference, features }, h) => tilt(reference, tilts(features).map((c) => h * c));

/** The margin gained, from 0 on, at which the chosen answer is likeliest on the road; Infinity if it always rises. */
export function peak(setting) {
  const c = tilts(setting.features);
  const rises = (h) => dot(c, road(setting, h)) < c[0]; // eq-one-slope
  if (!rises(0)) return 0;
  if (Math.max(...c) <= c[0]) return Infinity;
  let [low, high] = [0, 1];
  while (rises(high)) [low, high] = [high, 2 * high];
  while (high - low > 1e-9) {
    const middle = (low + high) / 2;
    if (rises(middle)) low = middle;
    else high = middle;
  }
  return low;
}

/** The margin gained at which a method stops; null where it never does, or where no formula says. */
export function end(name, setting) {
  const { wins, beta, tau, delta, sftWeight, lengths, reference } = setting;
  if (name === "DPO" || name === "SPIN") return wins < 1 ? Math.log(wins / (1 - wins)) / beta : null;
  if (name === "IPO") return (2 * wins - 1) / (2 * tau);
  if (sftWeight > 0 || (name === "RRHF" && lengths[0] !== lengths[1])) return null;
  const [target, start] = [name === "RRHF" ? 0 : delta, Math.log(reference[0] / reference[1])];
  if (wins === 1) return Math.max(0, target - start); // beyond the kink it is silent
  if (wins === 0.5) return Math.min(target, Math.max(-target, start)) - start; // so it is between the two kinks
  return target - start;
}

// ---- gradient descent ----

/** ∇_θ of a method's margin where π ∝ reference · exp(features θ), by g_y = φ_y − E[φ]. */
function slopes(name, mean, { features, lengths }) {
  const [chosen, rejected] = FUNCTIONS[name].margin === "mean" ? lengths.map((length) => 1 / length) : [1, 1];
  return mean.map((value, k) => chosen * (features[0][k] - value) - rejected * (features[1][k] - value));
}

/** ∇_θ of the mean likelihood term, with the winner of each comparison for its target. */
function leash(name, mean, setting) {
  const { features, lengths, wins } = setting;
  const weights = [wins, 1 - wins].map((share, i) => share * likelihoodWeight(name, lengths[i], setting));
  return mean.map((value, k) => weights[0] * (features[0][k] - value) + weights[1] * (features[1][k] - value));
}

/** Margins at which a hinge's mean push jumps. */
function kinksOf(name, { delta }) {
  return { "SLiC-HF": [delta, -delta], "CLICK": [delta, -delta], "RRHF": [0] }[name] ?? [];
}

/** The push of a step that would change the margin by `change`. Gradient descent would jump back and forth across a kink
 *  for ever; so where there is one on the way, the push is what carries the margin just there, if one between those of
 *  the kink's two sides does. `perPush` is by how much a push of 1 changes the margin. */
function drive(name, margin, change, perPush, setting) {
  const here = push(name, margin, setting);
  const sign = Math.sign(change);
  const kink = kinksOf(name, setting).sort((a, b) => sign * (a - b)).find((one) => sign * (one - margin) >= 0);
  if (change === 0 || kink === undefined || sign * (kink - margin) > sign * change) return here;
  const beyond = push(name, kink + sign * 1e-9, setting);
  const needed = here + (kink - margin - change) / perPush;
  return Math.min(Math.max(needed, Math.min(here, beyond)), Math.max(here, beyond));
}

/** Gradient descent from the reference on: the policies at the recorded steps, and the margin gained by each. */
export function descend(name, setting, records = recordedSteps(STEPS)) {
  const { features, reference } = setting;
  const policies = [];
  let theta = features[0].map(() => 0);
  let next = 0;
  for (let step = 0; step <= records.at(-1); step++) {
    const policy = tilt(reference, features.map((row) => dot(row, theta)));
    if (records[next] === step) {
      policies.push(policy);
      next += 1;
    }
    const mean = theta.map((_, k) => sum(policy.map((p, y) => p * features[y][k])));
    const exact = marginOf(name, policy, setting);
    const margin = kinksOf(name, setting).find((kink) => Math.abs(kink - exact) < 1e-9) ?? exact; // on it, but for rounding
    const [ofMargin, ofTarget] = [slopes(name, mean, setting), leash(name, mean, setting)];
    const force = (one) => ofMargin.map((value, k) => one * value + ofTarget[k]); // eq-one-gradient
    const plain = force(push(name, margin, setting));
    const rate = Math.min(RATE, LONGEST / Math.hypot(...plain)); // short enough for the way to be drawn
    const landing = drive(name, margin, rate * dot(ofMargin, plain), rate * dot(ofMargin, ofMargin), setting);
    theta = force(landing).map((value, k) => theta[k] + rate * value);
  }
  const gained = policies.map((policy) => Math.log(policy[0] / policy[1]) - Math.log(reference[0] / reference[1]));
  return { steps: records, policies, gained };
}

/** Whether a run has kept to the road. */
export const isOnRoad = (setting, { policies, gained }) =>
  policies.every((policy, i) => road(setting, gained[i]).every((p, y) => Math.abs(p - policy[y]) < 1e-6));

// ---- words ----

const NAMES = ["chosen", "rejected", "third"];
const short = (number) => String(Math.abs(number) < 1e-9 ? 0 : Number(number.toPrecision(3))).replace("-", "−");
const fixed = (number) => number.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");

const shares = (policy) => policy.map((p, y) => `${NAMES[y]} ${percent(p)}`).join(", ");

/** A method with its strengths, as "SLiC-HF, δ = 1". */
export function title(name, setting) {
  const strengths = STRENGTHS.filter(({ of, key }) => of.includes(name) && (key !== "sftWeight" || setting.sftWeight > 0));
  return [name, ...strengths.map(({ symbol, key }) => `${symbol} = ${short(setting[key])}`)].join(", ");
}

/** What the road does to the chosen answer. */
export function describeRoad(setting) {
  const top = peak(setting);
  if (top === 0) return "On the road the chosen answer falls from the start.";
  if (top === Infinity) return "On the road the chosen answer rises all the way.";
  return `On the road the chosen answer is likeliest, with ${percent(road(setting, top)[0])}, where the margin has grown by ${top.toFixed(2)}.`;
}

/** Where a run is after its last step, and whether that is its end. */
function describeEnd(name, setting, { policies, gained, steps }) {
  const [stop, now] = [end(name, setting), gained.at(-1)];
  const grown = `the margin has grown by ${fixed(now)}`;
  const after = `after ${steps.at(-1).toLocaleString("en")} steps ${grown}`;
  if (stop !== null && Math.abs(stop - now) < 0.005) return stop === 0 ? "it stays there" : `it stops where ${grown}`;
  if (stop !== null) return `${after}, of ${fixed(stop)}`;
  if (likelihoodWeight(name, 1, setting) > 0) return `${after}, and ${setting.wins < 1 ? "no formula gives its end" : "it goes on until the chosen answer has everything"}`;
  if (name !== "RRHF") return `${after}, and it has no end`;
  return `${after}, and it ${Math.abs(marginOf(name, policies.at(-1), setting)) < 1e-6 ? "stops at" : "is on its way to"} the tie per token`;
}

/** What a run does, for who hears the page. */
export function describe(name, setting, run) {
  const first = push(name, marginOf(name, setting.reference, setting), setting);
  const opening = first === 0 ? "silent at the start" : `pushes with ${short(first)} at the start`;
  const left = isOnRoad(setting, run) ? "" : " It has left the road.";
  const spin = name === "SPIN" ? " SPIN is DPO's function; its pairs are people's text against the last iterate's own." : "";
  return `${title(name, setting)}: ${opening}; ${describeEnd(name, setting, run)}; ${shares(run.policies.at(-1))}.${left}${spin}`;
}

// ---- drawing ----

const DASH = { "DPO": "", "IPO": "6 3", "SLiC-HF": "10 4", "RRHF": "2 3", "CLICK": "8 3 2 3", "SPIN": "4 4" };
const [LEFT, RIGHT, TOP, BOTTOM] = [34, 312, 32, 180];
const [FROM, TO] = [-4, 8]; // margin gained, nats

/** Names at their places, moved on where they would overlap. */
function labels(places) {
  const set = [];
  for (const [name, x, y] of [...places].sort((one, other) => one[2] - other[2])) {
    const line = y > 140 ? -15 : 15; // a name below a level line must clear it
    let at = y;
    while (set.some(([, otherX, otherY]) => Math.abs(otherX - x) < 44 && Math.abs(otherY - at) < 12)) at += line;
    set.push([name, x, at]);
  }
  return set.map(([name, x, y]) => text(x, y, name, { class: "lab-small" }));
}

/** The next of 1, 2, 5, 10, … that is no smaller. */
function ceiling(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].map((digit) => digit * power).find((round) => round >= number * (1 - 1e-9));
}

/** Each loss, or its push, against the margin gained; dots where the runs are, diamonds where they stop. */
function drawFunctions(heading, of, runs, setting, at) {
  const along = (name, h) => of(name, marginOf(name, road(setting, h), setting), setting);
  // Where a loss stops its push is 0; in a hinge that is one of the values that the kink has.
  const height = (name, run, stop, at) => (of === push && stop !== null && Math.abs(run.gained[at] - stop) < 1e-6 ? 0 : of(name, marginOf(name, run.policies[at], setting), setting));
  const highest = ceiling(Math.max(0.1, ...runs.map(({ name }) => 1.1 * along(name, 0))));
  const lowest = of === push ? -highest / 2 : 0;
  const across = (h) => LEFT + ((h - FROM) / (TO - FROM)) * (RIGHT - LEFT);
  const up = (y) => BOTTOM - ((y - lowest) / (highest - lowest)) * (BOTTOM - TOP);
  const isIn = ([h, y]) => h >= FROM && h <= TO && y >= lowest && y <= highest;
  const parts = [text((LEFT + RIGHT) / 2, 13, heading, { "text-anchor": "middle" })];
  for (const y of [0, highest / 2, highest]) {
    parts.push(build("svg:path", { d: `M${LEFT},${up(y)}H${RIGHT}`, class: "lab-grid" }));
    parts.push(text(LEFT - 6, up(y) + 4, short(y), { "text-anchor": "end", class: "lab-small" }));
  }
  parts.push(build("svg:path", { d: `M${across(0)},${TOP}V${BOTTOM}`, class: "lab-grid" }));
  for (const h of [FROM, 0, 4, TO])
    parts.push(text(across(h), BOTTOM + 16, h === 0 ? "0 (start)" : short(h), { "text-anchor": "middle", class: "lab-small" }));
  parts.push(text((LEFT + RIGHT) / 2, BOTTOM + 31, "margin gained (nats)", { "text-anchor": "middle", class: "lab-small" }));
  const places = [];
  for (const { name, run, stop } of runs) {
    const points = Array.from({ length: 241 }, (_, i) => FROM + (i * (TO - FROM)) / 240).map((h) => [h, along(name, h)]).filter(isIn);
    const drawn = points.map(([h, y]) => [across(h), up(y)]);
    if (drawn.length) parts.push(build("svg:path", { d: path(drawn), class: `lab-line lab-${name}`, "stroke-dasharray": DASH[name] }));
    if (drawn.length) places.push([name, drawn[0][0] + 5, drawn[0][1] - 4]);
    const now = [run.gained[at], height(name, run, stop, at)];
    if (isIn(now)) parts.push(build("svg:circle", { cx: across(now[0]), cy: up(now[1]), r: 4.5, class: `lab-dot lab-${name}` }));
    if (stop !== null && isIn([stop, 0])) parts.push(diamond(across(stop), up(of === push ? 0 : along(name, stop))));
  }
  const where = runs.map(({ name, run, stop }) => `${name} ${short(height(name, run, stop, at))} where the margin has grown by ${fixed(run.gained[at])}`);
  return svg(324, 216, `${heading}: ${where.length ? listed(where) : "no loss is chosen"}.`, ...parts, ...labels(places));
}

/** The policies: the road, and each run's way from the reference (square) to where it is; diamonds where it stops. */
function drawTriangle(runs, setting, at) {
  const parts = triangleGround();
  const corners = [["start", -26, 16], ["end", 26, 16], ["end", -9, 4]];
  for (const [y, [anchor, dx, dy]] of corners.entries())
    parts.push(text(CORNERS[y][0] + dx, CORNERS[y][1] + dy, NAMES[y], { "text-anchor": anchor, class: "lab-small" }));
  const whole = Array.from({ length: 121 }, (_, i) => inTriangle(road(setting, i / 10)));
  parts.push(build("svg:path", { d: path(whole), class: "lab-road" }));
  const furthest = [...runs].sort((a, b) => b.run.gained[at] - a.run.gained[at]); // the shorter ways on top
  for (const { name, run } of furthest)
    parts.push(build("svg:path", { d: path(run.policies.slice(0, at + 1).map(inTriangle)), class: `lab-line lab-${name}`, "stroke-dasharray": DASH[name] }));
  for (const { stop } of runs) if (stop !== null) parts.push(diamond(...inTriangle(road(setting, stop))));
  const places = furthest.map(({ name, run }) => [name, ...inTriangle(run.policies[at])]);
  for (const [name, x, y] of places) parts.push(build("svg:circle", { cx: x, cy: y, r: 4.5, class: `lab-dot lab-${name}` }));
  const [x, y] = inTriangle(setting.reference);
  parts.push(build("svg:rect", { x: x - 4, y: y - 4, width: 8, height: 8, class: "lab-mark" }));
  const where = runs.map(({ name, run }) => `${name} at ${shares(run.policies[at])}`);
  const label = `Triangle of policies: ${listed([`the reference at ${shares(setting.reference)}`, ...where])}.`;
  return svg(260, 212, label, ...parts, ...labels(places.map(([name, x, y]) => [name, x + 9, y + 4])));
}

/** One row a loss: what it pushes with at first, where it stops, the policy now, and whether it keeps to the road. */
function drawTable(runs, setting, at) {
  const head = ["push at the start", "stops at", ...NAMES, "on the road"];
  const body = runs.map(({ name, run, stop }) =>
    build("tr", {}, build("th", { scope: "row" }, title(name, setting)), ...cells("td", [
      short(push(name, marginOf(name, setting.reference, setting), setting)),
      stop === null ? "–" : fixed(stop),
      ...run.policies[at].map((p) => p.toFixed(3)),
      isOnRoad(setting, run) ? "yes" : "no",
    ])));
  const caption = `Probabilities at step ${runs[0].run.steps[at].toLocaleString("en")}, and at which margin gained each loss stops`;
  return build("table", {}, build("caption", {}, caption), build("thead", {}, build("tr", {}, build("td"), ...cells("th", head))), build("tbody", {}, ...body));
}

const REFERENCES = { "rejected likelier, third rare: .35, .60, .05": [0.35, 0.6, 0.05], "uniform": [1 / 3, 1 / 3, 1 / 3], "chosen likelier: .60, .30, .10": [0.6, 0.3, 0.1] };
const LIKELIHOODS = [0, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const logarithmic = { to: (place) => 2 ** place, from: Math.log2 };
const linear = { to: (place) => place, from: (strength) => strength };
const listedWeights = { to: (place) => LIKELIHOODS[place], from: (weight) => LIKELIHOODS.findLastIndex((one) => one <= weight) };
const STRENGTHS = [
  { key: "beta", trait: "beta", symbol: "β", of: ["DPO", "SPIN"], range: { min: -4, max: 2, step: 0.25 }, scale: logarithmic },
  { key: "tau", trait: "tau", symbol: "τ", of: ["IPO"], range: { min: -6, max: 0, step: 0.25 }, scale: logarithmic },
  { key: "contrastWeight", trait: "contrast_weight", symbol: "α", of: ["CLICK"], range: { min: 0.1, max: 1, step: 0.1 }, scale: linear },
  { key: "delta", trait: "delta", symbol: "δ", of: ["SLiC-HF", "CLICK"], range: { min: 0, max: 5, step: 0.25 }, scale: linear },
  { key: "sftWeight", trait: "sft_weight", symbol: "λ", words: ", likelihood of the winner", of: ["SLiC-HF", "RRHF", "CLICK"], range: { min: 0, max: LIKELIHOODS.length - 1, step: 1 }, scale: listedWeights },
];

function render({ model, el }) {
  const id = nextId();
  const get = (name) => model.get(name);
  const set = (values) => change(model, values);
  let state = null; // the last computation

  // Controls are built once, so that focus stays where it is; what they show follows the model.
  const features = build("select", { id: `${id}-features`, onchange: () => set({ features: features.value }) },
    build("option", { value: "shared" }, "shared features"), build("option", { value: "free" }, "a parameter each"));
  const reference = build("select", { id: `${id}-reference`, onchange: () => REFERENCES[reference.value] && set({ reference: REFERENCES[reference.value] }) });
  reference.append(...Object.keys(REFERENCES).map((name) => build("option", {}, name)), build("option", { value: "", hidden: true }, "set in Python"));
  const wins = build("input", { id: `${id}-wins`, type: "range", min: 50, max: 100, step: 1, oninput: () => set({ wins: wins.valueAsNumber / 100 }) });
  const winsName = named(wins, "");
  const setLength = (i, length) => {
    const lengths = [...get("lengths")];
    if (!Number.isNaN(length)) lengths[i] = Math.min(100, Math.max(1, Math.round(length))); // else back to what it was
    counters[i].input.value = lengths[i];
    set({ lengths });
  };
  const counters = ["chosen", "rejected"].map((answer, i) =>
    stepper({ name: `tokens of the ${answer}`, id: `${id}-length${i}`, min: 1, max: 100, get: () => get("lengths")[i], set: (length) => setLength(i, length) }));
  const boxes = METHODS.map((method) => {
    const box = build("input", { type: "checkbox", onchange: () => set({ losses: METHODS.filter((name) => (name === method ? box.checked : get("losses").includes(name))) }) });
    return { method, box, label: build("label", { class: `lab-check lab-${method}` }, box, ` ${method}`) };
  });
  const sliders = STRENGTHS.map(({ trait, symbol, words = "", of, range, scale }) => {
    const slider = build("input", { id: `${id}-${trait}`, type: "range", ...range, oninput: () => set({ [trait]: scale.to(slider.valueAsNumber) }) });
    const name = named(slider, "");
    const row = field(name, slider);
    const show = () => {
      const users = of.filter((method) => get("losses").includes(method));
      row.hidden = users.length === 0;
      slider.value = scale.from(get(trait));
      name.textContent = `${symbol} = ${short(get(trait))}${words} (${users.join(", ")})`;
      slider.setAttribute("aria-valuetext", `${symbol} ${short(get(trait))}`);
    };
    return { row, show };
  });
  const playback = player({ id, last: () => recordedSteps(STEPS).length - 1, draw });
  const voice = speaker();

  const pictures = build("div", { class: "lab-stage" });
  const triangle = build("div", { class: "lab-panel" });
  const table = build("div", { class: "lab-table" });
  const spoken = build("p", { class: "lab-spoken", role: "status" });
  const root = build("section", { class: "laboratory loss-explorer", "aria-label": "Loss explorer" },
    build("div", { class: "lab-controls" },
      build("fieldset", {}, build("legend", {}, "The pair"), field(named(features, "Answers"), features), field(named(reference, "Reference"), reference),
        field(winsName, wins), build("div", { class: "lab-pairs" }, ...counters.map(({ row }) => row))),
      build("fieldset", {}, build("legend", {}, "The losses"),
        build("div", { class: "lab-field", role: "group", "aria-label": "Losses" }, ...boxes.map(({ label }) => label)), ...sliders.map(({ row }) => row))),
    pictures, build("div", { class: "lab-stage" }, triangle, build("div", { class: "lab-panel" }, spoken)), playback.row, table);
  el.replaceChildren(root);
  // The page's still picture of the explorer has done its duty.
  document.getElementById("fig-loss-explorer")?.setAttribute("hidden", "");

  function compute() {
    const setting = {
      features: get("matrices")[get("features")], reference: get("reference"), lengths: get("lengths"), wins: get("wins"),
      ...Object.fromEntries(STRENGTHS.map(({ key, trait }) => [key, get(trait)])),
    };
    const chosen = METHODS.filter((name) => get("losses").includes(name));
    return { setting, runs: chosen.map((name) => ({ name, run: descend(name, setting), stop: end(name, setting) })) };
  }

  function draw() {
    const { setting, runs } = state;
    const at = playback.at();
    pictures.replaceChildren(drawFunctions("Loss", value, runs, setting, at), drawFunctions("Push, each on its own margin", push, runs, setting, at));
    triangle.replaceChildren(drawTriangle(runs, setting, at));
    playback.show(recordedSteps(STEPS)[at]);
    for (const part of [table, playback.row]) part.hidden = runs.length === 0;
    table.replaceChildren(...(runs.length ? [drawTable(runs, setting, at)] : []));
  }

  function update() {
    state = compute();
    const { setting, runs } = state;
    features.value = get("features");
    const same = ([, policy]) => policy.every((p, i) => Math.abs(p - setting.reference[i]) < 1e-9);
    reference.value = Object.entries(REFERENCES).find(same)?.[0] ?? "";
    wins.value = 100 * setting.wins;
    winsName.textContent = `Wins of the chosen answer: ${short(100 * setting.wins)} of 100`;
    wins.setAttribute("aria-valuetext", `${short(100 * setting.wins)} of 100`);
    // Not the field in hand: it may hold digits that are still being typed.
    for (const [i, { input }] of counters.entries()) if (input !== document.activeElement) input.value = setting.lengths[i];
    for (const { method, box } of boxes) box.checked = get("losses").includes(method);
    for (const { show } of sliders) show();
    voice.speak(() => {
      const told = runs.map(({ name, run }) => describe(name, setting, run));
      return [[spoken, runs.length ? [describeRoad(setting), ...told].join("\n") : "No loss is chosen: tick one."]];
    });
    playback.rewind();
    draw();
  }

  const traits = ["losses", "features", "matrices", "reference", "wins", "lengths", ...STRENGTHS.map(({ trait }) => trait)];
  const leave = follow(model, traits, update);
  update();
  return () => {
    leave();
    playback.halt();
    voice.hush();
  };
}

export default { render };
