// The three-response laboratory: `dapedu.bandit` once more, in the page, where no Python runs.
//
// The upper half is pure and is compared with the package under node (tests/test_laboratory.py). The lower half
// draws it: an anywidget in JupyterLab and in the rendered book.
import { build, cells, change, CORNERS, DASHES, diamond, field, follow, inTriangle, listed, matrix, named, nextId, path, percent, player, recordedSteps, sigmoid, speaker, stepper, sum, svg, text, tilt, triangleGround } from "./page.mjs";

export const NAMES = ["a", "b", "c"];
const [BETA_1, BETA_2, EPSILON] = [0.9, 0.999, 1e-8]; // Adam's defaults

/** wins[i][j]: how often i beat j. */
export function countWins(pairs, n = NAMES.length) {
  const wins = matrix(n, () => 0);
  for (const [winner, loser] of pairs) wins[winner][loser] += 1;
  return wins;
}

/** The win graph's strongly connected components, and what they say of DPO's optimum. */
export function winGraph(wins) {
  const n = wins.length;
  const reaches = matrix(n, (i, j) => i === j || wins[i][j] > 0);
  for (let k = 0; k < n; k++)
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) reaches[i][j] ||= reaches[i][k] && reaches[k][j];
  const same = matrix(n, (i, j) => reaches[i][j] && reaches[j][i]);
  const indices = [...wins.keys()];
  const undefeated = indices.map((j) => indices.every((i) => !reaches[i][j] || reaches[j][i]));
  return {
    same,
    groups: same.map((row) => row.indexOf(true)),
    undefeated,
    hasFiniteOptimum: undefeated.every(Boolean),
    isUnique: same.flat().every(Boolean),
  };
}

/** Gaussian elimination with pivoting, for the few unknowns there are. */
function solve(coefficients, right) {
  const rows = coefficients.map((row, i) => [...row, right[i]]);
  const n = rows.length;
  for (let k = 0; k < n; k++) {
    const pivot = rows.slice(k).reduce((best, row, i) => (Math.abs(row[k]) > Math.abs(rows[best][k]) ? k + i : best), k);
    [rows[k], rows[pivot]] = [rows[pivot], rows[k]];
    for (let i = 0; i < n; i++) {
      if (i === k) continue;
      const factor = rows[i][k] / rows[k][k];
      for (let j = k; j <= n; j++) rows[i][j] -= factor * rows[k][j];
    }
  }
  return rows.map((row, i) => row[n] / row[i]);
}

const laplacian = (weights, anchor) => matrix(weights.length, (i, j) => (i === j ? sum(weights[i]) : -weights[i][j]) + anchor[i][j]);

/** Bradley–Terry's rewards: −∞ for a group that is beaten and never beats back, mean 0 in each other group. */
export function bradleyTerryRewards(wins) {
  const { same, undefeated } = winGraph(wins);
  const n = wins.length;
  const anchor = matrix(n, (i, j) => Number(same[i][j])); // the level of each group is open
  let rewards = Array(n).fill(0);
  for (let step = 0; step < 100; step++) {
    const win = matrix(n, (i, j) => sigmoid(rewards[i] - rewards[j]));
    const met = matrix(n, (i, j) => (same[i][j] ? wins[i][j] + wins[j][i] : 0));
    const gradient = met.map((row, i) => sum(row.map((m, j) => m * win[i][j] - (same[i][j] ? wins[i][j] : 0))));
    const curvature = matrix(n, (i, j) => met[i][j] * win[i][j] * (1 - win[i][j]));
    const newton = solve(laplacian(curvature, anchor), gradient);
    const shrink = 2 / Math.max(2, ...newton.map(Math.abs)); // at most 2 nats a step
    rewards = rewards.map((reward, i) => reward - shrink * newton[i]);
    if (Math.max(...newton.map(Math.abs)) < 1e-13) break;
  }
  return rewards.map((reward, i) => {
    const group = rewards.filter((_, j) => same[i][j]);
    return undefeated[i] ? reward - sum(group) / group.length : -Infinity;
  });
}

/** IPO's log-ratios at τ = 1, of least norm. */
export function ipoLogRatios(wins) {
  const met = matrix(wins.length, (i, j) => wins[i][j] + wins[j][i]);
  const { same } = winGraph(met); // whom a chain of comparisons connects
  const halfNetWins = wins.map((row, i) => sum(row.map((count, j) => count - wins[j][i])) / 2);
  return solve(laplacian(met, matrix(wins.length, (i, j) => Number(same[i][j]))), halfNetWins);
}

/** Where a method's policy should end, or its limit. */
export function optimum({ wins, method, strength, reference }) {
  const fitted = method === "DPO" ? bradleyTerryRewards(wins) : ipoLogRatios(wins);
  return tilt(reference, fitted.map((value) => value / strength));
}

/** Adam on the whole dataset from the reference on; π after each recorded step. */
export function train({ wins, method, strength, reference, steps, lr = 0.01, records = recordedSteps(steps) }) {
  const total = sum(wins.flat());
  const pairs = wins.flatMap((row, w) => row.map((count, l) => [w, l, count / total])).filter(([, , share]) => share > 0);
  const slope =
    method === "DPO" ? (h) => -strength * sigmoid(-strength * h) : (h) => 2 * (h - 1 / (2 * strength)); // dL/dh
  const [logRatios, gradient, first, second] = Array.from({ length: 4 }, () => new Float64Array(wins.length));
  const probabilities = [];
  let next = 0;
  let [power1, power2] = [1, 1]; // of Adam's constants, for the bias of its moments
  for (let step = 0; step <= steps; step++) {
    if (records[next] === step) {
      probabilities.push(tilt(reference, logRatios));
      next += 1;
    }
    gradient.fill(0);
    power1 *= BETA_1;
    power2 *= BETA_2;
    for (const [winner, loser, share] of pairs) {
      const push = share * slope(logRatios[winner] - logRatios[loser]);
      gradient[winner] += push;
      gradient[loser] -= push;
    }
    for (let i = 0; i < gradient.length; i++) {
      first[i] += (1 - BETA_1) * (gradient[i] - first[i]);
      second[i] = BETA_2 * second[i] + (1 - BETA_2) * gradient[i] ** 2;
      const scale = Math.sqrt(second[i] / (1 - power2)) + EPSILON;
      logRatios[i] -= (lr / (1 - power1)) * (first[i] / scale);
    }
  }
  return { steps: records, probabilities };
}

// ---- words ----

const shares = (policy) => policy.map((p, i) => `${NAMES[i]} ${percent(p)}`).join(", ");

/** What the win graph says, in a sentence or two. */
export function verdict(wins) {
  if (!sum(wins.flat())) return "No comparisons: nothing to learn, the policy stays at the reference.";
  const { same, undefeated, hasFiniteOptimum, isUnique } = winGraph(wins);
  const leaders = [...new Set(same.filter((_, i) => undefeated[i]).map((row) => `{${NAMES.filter((_, j) => row[j]).join(", ")}}`))];
  const open = leaders.length > 1 ? ` The level between ${listed(leaders)} is left open by the likelihood.` : "";
  if (hasFiniteOptimum)
    return `Finite optimum: every win lies on a cycle of wins.${isUnique ? " It is the only one." : open}`;
  const stray = wins.flatMap((row, w) => row.flatMap((count, l) => (count && !same[w][l] ? [`${NAMES[w]} over ${NAMES[l]}`] : [])));
  const lost = NAMES.filter((_, i) => !undefeated[i]);
  return `Finite optimum: none for DPO. The ${stray.length > 1 ? "wins" : "win"} of ${listed(stray)} ${stray.length > 1 ? "lie" : "lies"} on no cycle of wins, so DPO sends ${listed(lost)} to 0 at every β.${open}`;
}

/** What the curves do, for who hears the page. */
export function describe({ method, strength, run, reference, limit }) {
  const symbol = method === "DPO" ? "β" : "τ";
  const end = run.probabilities.at(-1);
  const moves = end.map((p, i) => {
    const change = p - reference[i];
    return `${NAMES[i]} ${Math.abs(change) < 0.005 ? "stays" : change > 0 ? "rises" : "falls"}`;
  });
  const settled = limit.flatMap((p, i) => (p === null ? [] : [`${NAMES[i]} ${percent(p)}`]));
  const there = limit.every((p, i) => Math.abs(p - end[i]) < 0.005);
  const target =
    settled.length < limit.length
      ? `The comparisons do not settle its limit${settled.length ? `, except for ${listed(settled)}` : ""}.`
      : `${there ? "It has reached its limit" : "Its limit is further on"}: ${settled.join(", ")}.`;
  return `${method}, ${symbol} = ${strength}: ${moves.join(", ")}; after ${run.steps.at(-1).toLocaleString("en")} steps ${shares(end)}. ${target}`;
}

// ---- drawing ----

/** The win graph: an arrow from winner to loser, dashed where the win lies on no cycle. */
function drawGraph(wins) {
  const { same } = winGraph(wins);
  const parts = [];
  for (const [w, row] of wins.entries())
    for (const [l, count] of row.entries()) {
      if (!count) continue;
      const [[x1, y1], [x2, y2]] = [CORNERS[w], CORNERS[l]];
      const length = Math.hypot(x2 - x1, y2 - y1);
      const [ux, uy] = [(x2 - x1) / length, (y2 - y1) / length];
      const bend = wins[l][w] ? 20 : 0; // two arrows between the same two bow apart
      const [mx, my] = [(x1 + x2) / 2 - uy * bend, (y1 + y2) / 2 + ux * bend];
      const [sx, sy, ex, ey] = [x1 + 20 * ux, y1 + 20 * uy, x2 - 24 * ux, y2 - 24 * uy];
      const [tx, ty] = [ex - mx, ey - my].map((value, _, both) => value / Math.hypot(...both));
      const head = [[ex + 5 * tx, ey + 5 * ty], [ex - 6 * tx - 5 * ty, ey - 6 * ty + 5 * tx], [ex - 6 * tx + 5 * ty, ey - 6 * ty - 5 * tx]];
      const kind = same[w][l] ? "lab-arrow" : "lab-arrow lab-stray";
      parts.push(build("svg:path", { d: `M${sx},${sy}Q${mx},${my} ${ex},${ey}`, class: kind }));
      parts.push(build("svg:path", { d: `${path(head)}Z`, class: `${kind} lab-head` }));
      const [cx, cy] = [(x1 + x2) / 2 - uy * (bend / 2 + 12), (y1 + y2) / 2 + ux * (bend / 2 + 12)]; // beside the bow
      if (count > 1) parts.push(text(cx, cy + 4, `×${count}`, { "text-anchor": "middle", class: "lab-small" }));
    }
  for (const [i, [x, y]] of CORNERS.entries())
    parts.push(build("svg:circle", { cx: x, cy: y, r: 15, class: "lab-node" }), text(x, y + 5, NAMES[i], { "text-anchor": "middle" }));
  const arrows = wins.flatMap((row, w) => row.flatMap((n, l) => (n ? [`${NAMES[w]} beats ${NAMES[l]} ${n === 1 ? "once" : `${n} times`}`] : [])));
  return svg(260, 220, `Win graph: ${arrows.length ? listed(arrows) : "no arrows"}.`, ...parts);
}

/** The simplex: each method's path from the reference (square) to where it is; diamonds where it should end. */
function drawTriangle(runs, reference, place) {
  const parts = triangleGround();
  for (const [i, [x, y]] of CORNERS.entries())
    parts.push(text(x + [-14, 14, 0][i], y + [10, 10, -4][i], NAMES[i], { "text-anchor": "middle" }));
  const [rx, ry] = inTriangle(reference);
  for (const { method, run, limit } of runs) {
    const done = run.probabilities.slice(0, place + 1).map(inTriangle);
    parts.push(build("svg:path", { d: path(done), class: `lab-line lab-${method}`, "stroke-dasharray": method === "IPO" ? "6 3" : "" }));
    if (limit.every((p) => p !== null)) parts.push(diamond(...inTriangle(limit)));
    const [x, y] = done.at(-1);
    parts.push(build("svg:circle", { cx: x, cy: y, r: 5, class: `lab-dot lab-${method}` }), text(x + 9, y + (method === "DPO" ? -4 : 13), method, { class: "lab-small" }));
  }
  parts.push(build("svg:rect", { x: rx - 4, y: ry - 4, width: 8, height: 8, class: "lab-mark" }));
  const where = runs.map(({ method, run }) => `${method} at ${shares(run.probabilities[place])}`);
  return svg(260, 212, `Triangle of policies: ${listed([`the reference at ${shares(reference)}`, ...where])}.`, ...parts);
}

/** Probability of each response over the steps, on a logarithmic axis, with diamonds at the limit. */
function drawCurves({ method, symbol, strength, run, limit, place }) {
  const [left, right, top, bottom] = [34, 268, 22, 172];
  const across = (step) => left + (Math.log(Math.max(step, 1)) / Math.log(run.steps.at(-1))) * (right - left);
  const up = (p) => bottom - p * (bottom - top);
  const parts = [text((left + right) / 2, 13, `${method}, ${symbol} = ${strength}`, { "text-anchor": "middle" })];
  for (const p of [0, 0.5, 1]) {
    parts.push(build("svg:path", { d: `M${left},${up(p)}H${right}`, class: "lab-grid" }));
    parts.push(text(left - 6, up(p) + 4, p, { "text-anchor": "end", class: "lab-small" }));
  }
  for (let step = 1; step <= run.steps.at(-1); step *= 10) {
    const words = step.toLocaleString("en");
    parts.push(text(across(step), bottom + 16, words, { "text-anchor": "middle", class: "lab-small" }));
  }
  parts.push(text((left + right) / 2, bottom + 31, "step", { "text-anchor": "middle", class: "lab-small" }));
  const done = run.probabilities.slice(0, place + 1);
  for (const i of NAMES.keys()) {
    const points = done.map((policy, at) => [across(run.steps[at]), up(policy[i])]);
    parts.push(build("svg:path", { d: path(points), class: `lab-line lab-${method}`, "stroke-dasharray": DASHES[i] }));
  }
  for (const p of limit) if (p !== null) parts.push(diamond(right, up(p)));
  const now = done.at(-1);
  const order = [...NAMES.keys()].sort((i, j) => now[i] - now[j]);
  let lowest = Infinity; // names pushed apart that would overlap, and joined where the lines are
  for (let k = 0; k < order.length; k++) {
    const together = [order[k]];
    while (k + 1 < order.length && now[order[k + 1]] - now[order[k]] < 0.02) together.push(order[++k]);
    const y = Math.min(up(now[together[0]]) + 4, lowest - 14);
    lowest = y;
    parts.push(text(across(run.steps[done.length - 1]) + 10, y, together.sort().map((i) => NAMES[i]).join(", ")));
  }
  const label = `${method}: ${shares(now)} at step ${run.steps[place].toLocaleString("en")}.`;
  return svg(324, 208, label, ...parts);
}

/** A limit of which the data leave the level open has no mark there: null. */
function decided(limit, method, wins) {
  const { same, undefeated } = winGraph(wins);
  const isOpen = method === "DPO" && sum(wins.flat()) > 0 && undefeated.some((a, i) => undefeated.some((b, j) => a && b && !same[i][j]));
  return limit.map((p, i) => (isOpen && undefeated[i] ? null : p));
}

const REFERENCES = { "uniform": [1 / 3, 1 / 3, 1 / 3], "prefers b: .2, .5, .3": [0.2, 0.5, 0.3], "prefers c: .1, .2, .7": [0.1, 0.2, 0.7] };

function render({ model, el }) {
  const id = nextId();
  const get = (name) => model.get(name);
  const set = (values) => change(model, values);

  // Controls are built once, so that focus stays where it is; what they show follows the model.
  const presets = build("select", { id: `${id}-preset`, onchange: () => (presets.value ? set({ pairs: get("presets")[presets.value] }) : update()) });
  presets.append(build("option", { value: "" }, "your own"), ...Object.keys(get("presets")).map((name) => build("option", { value: name }, name)));
  const counters = matrix(NAMES.length, () => null);
  const setCount = (w, l, count) => {
    const wins = countWins(get("pairs"));
    const before = wins[w][l];
    if (!Number.isNaN(count)) wins[w][l] = Math.min(20, Math.max(0, Math.round(count))); // else back to what it was
    counters[w][l].value = wins[w][l];
    if (wins[w][l] === before) return;
    set({ pairs: wins.flatMap((row, i) => row.flatMap((n, j) => Array(n).fill([i, j]))) });
  };
  const rows = [[0, 1], [1, 0], [1, 2], [2, 1], [0, 2], [2, 0]].map(([w, l]) => {
    const name = `${NAMES[w]} beats ${NAMES[l]}`;
    const counter = stepper({ name, id: `${id}-${w}${l}`, min: 0, max: 20, "data-winner": w, "data-loser": l, get: () => countWins(get("pairs"))[w][l], set: (count) => setCount(w, l, count) });
    counters[w][l] = counter.input;
    return counter.row;
  });
  const methods = ["DPO", "IPO"].map((method) => {
    const box = build("input", { type: "checkbox", onchange: () => set({ losses: ["DPO", "IPO"].filter((name) => (name === method ? box.checked : get("losses").includes(name))) }) });
    return [method, box, build("label", { class: `lab-check lab-${method}` }, box, ` ${method}`)];
  });
  const strength = build("input", { id: `${id}-strength`, type: "range", min: -4, max: 2, step: 0.25, oninput: () => set({ beta: 2 ** strength.valueAsNumber }) });
  const matched = build("select", { id: `${id}-matched`, onchange: () => set({ matched: matched.value === "matched" }) },
    build("option", { value: "same" }, "same number, τ = β"), build("option", { value: "matched" }, "matched strength, τ = β/4"));
  const reference = build("select", { id: `${id}-reference`, onchange: () => REFERENCES[reference.value] && set({ reference: REFERENCES[reference.value] }) });
  reference.append(...Object.keys(REFERENCES).map((name) => build("option", {}, name)), build("option", { value: "", hidden: true }, "set in Python"));
  const strengthName = build("label", { for: strength.id });
  const lastRecord = () => recordedSteps(get("steps")).length - 1;
  const playback = player({ id, last: lastRecord, draw });
  const voice = speaker();

  const graph = build("div");
  const words = build("p", { class: "lab-verdict", role: "status" });
  const triangle = build("div");
  const curves = build("div", { class: "lab-curves" });
  const table = build("div", { class: "lab-table" });
  const spoken = build("p", { class: "lab-spoken", role: "status" });

  const root = build("section", { class: "laboratory", "aria-label": "Three-response laboratory" },
    build("div", { class: "lab-controls" },
      build("fieldset", {}, build("legend", {}, "Comparisons"), field(named(presets, "Start from"), presets), build("div", { class: "lab-pairs" }, ...rows)),
      build("fieldset", {}, build("legend", {}, "Training"),
        build("div", { class: "lab-field", role: "group", "aria-label": "Losses" }, ...methods.map(([, , label]) => label)),
        field(strengthName, strength), field(named(matched, "IPO's strength"), matched), field(named(reference, "Reference"), reference))),
    build("div", { class: "lab-stage" }, build("div", { class: "lab-panel" }, graph, words), build("div", { class: "lab-panel" }, triangle)),
    curves, playback.row, table, spoken);
  el.replaceChildren(root);
  // The page's still picture of the laboratory has done its duty.
  document.getElementById("fig-laboratory")?.setAttribute("hidden", "");

  let state = null; // the last computation

  function compute() {
    const wins = countWins(get("pairs"));
    const tau = get("matched") ? get("beta") / 4 : get("beta");
    const runs = ["DPO", "IPO"].filter((method) => get("losses").includes(method)).map((method) => {
      const value = method === "DPO" ? get("beta") : tau;
      const setting = { wins, method, strength: value, reference: get("reference") };
      const run = train({ ...setting, steps: get("steps") });
      const limit = decided(optimum(setting), method, wins);
      return { method, symbol: method === "DPO" ? "β" : "τ", strength: Number(value.toPrecision(2)), run, limit };
    });
    return { wins, tau, runs };
  }

  function draw() {
    const { wins, runs } = state;
    const at = playback.at();
    graph.replaceChildren(drawGraph(wins));
    triangle.replaceChildren(drawTriangle(runs, get("reference"), at));
    curves.replaceChildren(...runs.map((run) => drawCurves({ ...run, place: at })));
    const step = recordedSteps(get("steps"))[at];
    playback.show(step);
    const body = runs.flatMap(({ method, symbol, strength: value, run, limit }) => [
      build("tr", {}, build("th", { scope: "row" }, `${method}, ${symbol} = ${value}`), ...cells("td", run.probabilities[at].map((p) => p.toFixed(3)))),
      build("tr", {}, build("th", { scope: "row" }, "its limit"), ...cells("td", limit.map((p) => (p === null ? "open" : p.toFixed(3))))),
    ]);
    for (const part of [table, playback.row]) part.hidden = runs.length === 0;
    table.replaceChildren(build("table", {}, build("caption", {}, `Probabilities at step ${step.toLocaleString("en")}`),
      build("thead", {}, build("tr", {}, build("td"), ...cells("th", NAMES))), build("tbody", {}, ...body)));
  }

  function update() {
    state = compute();
    const { wins, tau, runs } = state;
    // Not the field in hand: it may hold digits that are still being typed.
    const free = counters.flat().filter((input) => input && input !== document.activeElement);
    for (const input of free) input.value = wins[input.dataset.winner][input.dataset.loser];
    const preset = Object.entries(get("presets")).find(([, pairs]) => JSON.stringify(countWins(pairs)) === JSON.stringify(wins));
    presets.value = preset ? preset[0] : "";
    for (const [method, box] of methods) box.checked = get("losses").includes(method);
    strength.value = Math.log2(get("beta"));
    const value = (number) => String(Number(number.toPrecision(2)));
    strengthName.textContent = `Strength: β = ${value(get("beta"))}, τ = ${value(tau)}`;
    strength.setAttribute("aria-valuetext", `beta ${value(get("beta"))}, tau ${value(tau)}`);
    matched.value = get("matched") ? "matched" : "same";
    const same = ([, policy]) => policy.every((p, i) => Math.abs(p - get("reference")[i]) < 1e-9);
    reference.value = Object.entries(REFERENCES).find(same)?.[0] ?? "";
    voice.speak(() => {
      const told = sum(wins.flat()) ? runs.map((one) => describe({ ...one, reference: get("reference") })) : [];
      return [[words, verdict(wins)], [spoken, runs.length ? told.join(" ") : "No loss is chosen: tick DPO or IPO."]];
    });
    playback.rewind();
    draw();
  }

  const leave = follow(model, ["pairs", "losses", "beta", "matched", "reference", "steps"], update);
  update();
  return () => {
    leave();
    playback.halt();
    voice.hush();
  };
}

export default { render };
