// Answers the questions on stdin, one JSON object a line, with what the loss explorer's module computes.
import { createInterface } from "node:readline";
import { describe, describeRoad, descend, end, isOnRoad, margins, peak, push, road, value } from "../dapedu/explore/losses.mjs";

const answers = {
  functions: ({ name, setting, logps, start }) => {
    const found = logps.map((pair, i) => margins(pair, start[i], setting.lengths));
    const key = { "DPO": "h", "IPO": "h", "SPIN": "h", "RRHF": "mean" }[name] ?? "m";
    return { values: found.map((one) => value(name, one[key], setting)), pushes: found.map((one) => push(name, one[key], setting)) };
  },
  road: ({ setting, gained }) => {
    const top = peak(setting);
    return { policies: gained.map((h) => road(setting, h)), peak: top === Infinity ? "never" : top }; // no ∞ in JSON
  },
  end: ({ name, setting }) => ({ end: end(name, setting) }),
  run: ({ name, setting, records }) => {
    const run = descend(name, setting, records);
    return { ...run, roads: run.gained.map((h) => road(setting, h)), isOnRoad: isOnRoad(setting, run), words: [describeRoad(setting), describe(name, setting, run)] };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line);
  console.log(JSON.stringify(answers[question.ask](question)));
}
