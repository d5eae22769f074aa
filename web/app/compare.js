// The same question with and without a reflection, side by side.

import { answerOf, sameAnswer } from "./events.js";
import { el } from "./dom.js";

/** @typedef {import("./events.js").Run} Run */

/**
 * @param {Run} run  the run with the reflection
 * @param {Run} without  the same run from before the reflection, with reflections banned
 * @param {number} token  where the two part
 * @param {{show: (run: number) => void}} actions
 * @returns {{node: HTMLElement, update: () => void}}
 */
export function compareView(run, without, token, actions) {
  const difference = el("p", { class: "difference", role: "status" });
  const left = column(run, token, "With this reflection");
  const right = column(without, token, "Without it or a later one");
  right.node.append(el("button", { type: "button", class: "quiet", onclick: () => actions.show(without.run) }, "Open this version"));
  const node = el("div", { class: "compare", role: "group", "aria-label": "With and without this reflection" }, difference, el("div", { class: "columns" }, left.node, right.node));

  function verdict() {
    if (without.status === "queued") return ["Waiting for its turn…", ""];
    if (without.status === "running") return ["Writing the answer without this reflection…", ""];
    if (without.status !== "done") return [without.problem ?? "It was interrupted.", ""];
    const [a, b] = [answerOf(run), answerOf(without)];
    if (!b) return ["Without it, no answer came.", "differ"];
    return sameAnswer(a, b) ? ["The same answer, with and without it.", "same"] : ["The answers differ.", "differ"];
  }

  return {
    node,
    update() {
      const [text, state] = verdict();
      if (difference.textContent !== text) difference.textContent = text;
      node.dataset.state = state;
      left.update();
      right.update();
    },
  };
}

// One of the two answers, and what was written behind the place where they part.
function column(run, token, title) {
  const answer = el("p", { class: "answer" });
  const rest = el("div", { class: "rest", tabindex: 0, role: "region", "aria-label": `${title}: what was written from there on` });
  const text = document.createTextNode("");
  rest.append(text);
  let at = 0;
  let ends = "";
  return {
    node: el("section", {}, el("h4", {}, title), answer, rest),
    update() {
      if (at > 0 && at === run.pieces.length && answer.textContent !== "…") return;
      let added = "";
      for (; at < run.pieces.length; at += 1) {
        const piece = run.pieces[at];
        if (piece.token >= token && piece.kind !== "output") added += piece.text;
      }
      // Line ends wait for the text behind them: none at the beginning, none at the end.
      added = ends + (text.length === 0 ? added.trimStart() : added);
      ends = /\s*$/.exec(added)[0];
      text.appendData(added.slice(0, added.length - ends.length));
      const found = answerOf(run) || "…";
      if (answer.textContent !== found) answer.textContent = found;
    },
  };
}
