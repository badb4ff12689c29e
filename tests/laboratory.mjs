// Answers the questions on stdin, one JSON object a line, with what the laboratory's module computes.
import { createInterface } from "node:readline";
import { bradleyTerryRewards, countWins, describe, optimum, train, verdict, winGraph } from "../dapedu/explore/laboratory.mjs";

for await (const line of createInterface({ input: process.stdin })) {
  const { pairs, method, strength, reference, steps, records } = JSON.parse(line);
  const wins = countWins(pairs);
  const setting = { wins, method, strength, reference };
  const run = train({ ...setting, steps, records });
  const limit = optimum(setting);
  const { groups, undefeated, hasFiniteOptimum, isUnique } = winGraph(wins);
  const rewards = bradleyTerryRewards(wins).map((reward) => (reward === -Infinity ? null : reward)); // no −∞ in JSON
  const words = [verdict(wins), describe({ ...setting, run, limit })];
  console.log(JSON.stringify({ ...run, limit, groups, undefeated, hasFiniteOptimum, isUnique, rewards, words }));
}
