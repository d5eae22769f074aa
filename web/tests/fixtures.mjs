// Recorded streams, and the questions for which the mock plays them.

import { readFileSync } from "node:fs";

export const PRODUCT = "What is 47 * 86?";
export const SUM = "What is 346 + 964?";
export const GRAPH = "There are 7 bags. How many cups are there, mod 23?";

/** A recorded stream, one event a line. @param {string} name */
export const fixture = (name) => readFileSync(new URL(`fixtures/${name}.jsonl`, import.meta.url), "utf8");

/** Its events. @param {string} name @returns {object[]} */
export const eventsOf = (name) => fixture(name).trim().split("\n").map((line) => JSON.parse(line));
