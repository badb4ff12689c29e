// What the explorers share. `dapedu.explore.bundle` puts this file in the place of their one import.

export const matrix = (n, entry) => Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => entry(i, j)));
export const sum = (values) => values.reduce((total, value) => total + value, 0);
export const sigmoid = (z) => 1 / (1 + Math.exp(-z));

/** π ∝ reference · exp(logRatios); −∞ gives 0. */
export function tilt(reference, logRatios) {
  const logs = reference.map((p, i) => Math.log(p) + logRatios[i]);
  const largest = Math.max(...logs);
  const weights = logs.map((log) => Math.exp(log - largest));
  const total = sum(weights);
  return weights.map((weight) => weight / total);
}

/** Steps at which to record: 0 and then evenly spaced on a logarithmic axis, the last one included. */
export function recordedSteps(steps, count = 120) {
  const spaced = Array.from({ length: count }, (_, i) => Math.round(steps ** (i / (count - 1))));
  return [...new Set([0, ...spaced])];
}

// ---- words ----

export const listed = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
export const percent = (p) => `${p > 0 && p < 0.0005 ? "under 0.1" : (100 * p).toFixed(1)} %`;

/** Live regions speak once the reader's hand rests, and only of what is new: `speak` takes a function to [element, news] pairs. */
export function speaker() {
  let speaking = null;
  let isFirst = true;
  const say = (element, news) => element.textContent !== news && (element.textContent = news);
  return {
    speak(tell) {
      clearTimeout(speaking);
      speaking = setTimeout(() => tell().forEach(([element, news]) => say(element, news)), isFirst ? 0 : 400);
      isFirst = false;
    },
    hush: () => clearTimeout(speaking),
  };
}

// ---- elements ----

const SVG = "http://www.w3.org/2000/svg";

export function build(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export const field = (label, ...controls) => build("div", { class: "lab-field" }, label, ...controls);
export const named = (control, name) => build("label", { for: control.id }, name);
export const cells = (tag, values) => values.map((value) => build(tag, tag === "th" ? { scope: "col" } : {}, value));

/** A whole number to type, between − and +. `set` is given it, or NaN for what is no number; `get` what − and + start from. */
export function stepper({ name, get, set, ...attributes }) {
  const input = build("input", { type: "number", ...attributes, onchange: () => set(input.validity.badInput ? NaN : Number(input.value)) });
  const step = (sign, by) => build("button", { type: "button", tabindex: -1, "aria-label": `${by < 0 ? "one less" : "one more"}: ${name}`, onclick: () => set(get() + by) }, sign);
  return { input, row: build("div", { class: "lab-pair" }, named(input, name), step("−", -1), input, step("+", 1)) };
}

// ---- drawing ----

export const DASHES = ["", "7 4", "2 4"]; // of the responses, as in the book's figures
export const CORNERS = [[30, 190], [230, 190], [130, 17]];

export const svg = (width, height, label, ...children) =>
  build("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);
export const text = (x, y, words, attributes = {}) => build("svg:text", { x, y, ...attributes }, words);
export const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L")}`;
export const inTriangle = (policy) => [0, 1].map((axis) => sum(policy.map((p, i) => p * CORNERS[i][axis])));
export const diamond = (x, y) => build("svg:path", { d: `M${x},${y - 6}L${x + 6},${y}L${x},${y + 6}L${x - 6},${y}Z`, class: "lab-mark" });

/** The simplex: its ground and its grid. */
export function triangleGround() {
  const parts = [build("svg:path", { d: `${path(CORNERS)}Z`, class: "lab-ground" })];
  for (const level of [0.25, 0.5, 0.75])
    for (const corner of [0, 1, 2]) {
      const ends = [1, 2].map((turn) => CORNERS.map((_, i) => (i === corner ? level : i === (corner + turn) % 3 ? 1 - level : 0)));
      parts.push(build("svg:path", { d: path(ends.map(inTriangle)), class: "lab-grid" }));
    }
  return parts;
}

// ---- life ----

/** Ids must differ between the explorers of a page, each of which runs a copy of this file. */
export function nextId() {
  globalThis.laboratories = (globalThis.laboratories ?? 0) + 1;
  return `lab-${globalThis.laboratories}`;
}

export function change(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

/** Calls `update` after changes of the named traits, once for all that fall into one frame; returns what ends it. */
export function follow(model, names, update) {
  let asked = null;
  const changed = () => { asked ??= requestAnimationFrame(() => { asked = null; update(); }); };
  for (const name of names) model.on(`change:${name}`, changed);
  return () => {
    model.off(null, changed);
    cancelAnimationFrame(asked);
  };
}

/** Play and the slider beside it: they go through records 0 to `last()`, and `draw` shows the one at `at()`. */
export function player({ id, last, draw }) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let playing = null; // the frame asked for, while it runs
  let place = null; // index of the record shown; null is the last one
  const halt = () => { cancelAnimationFrame(playing); playing = null; };
  const play = build("button", { type: "button", class: "lab-play", onclick: () => (playing ? (halt(), draw()) : start()) });
  const scrub = build("input", { id: `${id}-step`, type: "range", min: 0, step: 1, oninput: () => { place = scrub.valueAsNumber; halt(); draw(); } });
  const name = named(scrub, "");

  function start() {
    if (calm.matches) { // no motion: a jump to the end, and the slider to go through it
      place = null;
      return draw();
    }
    const from = place === null || place >= last() ? 0 : place;
    const began = performance.now();
    const frame = (now) => {
      place = Math.min(last(), from + Math.max(0, Math.round(((now - began) / 2500) * last())));
      playing = place < last() ? requestAnimationFrame(frame) : null;
      draw();
    };
    playing = requestAnimationFrame(frame);
  }

  const at = () => Math.min(place ?? last(), last());
  return {
    row: field(play, name, scrub),
    at,
    halt,
    rewind() { halt(); place = null; },
    show(step) {
      scrub.max = last();
      scrub.value = at();
      name.textContent = `Step ${step.toLocaleString("en")}`;
      scrub.setAttribute("aria-valuetext", `step ${step}`);
      play.textContent = playing ? "Pause" : "Play";
    },
  };
}
