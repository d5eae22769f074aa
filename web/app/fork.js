// The dialog in which an answer is continued from a chosen place: the text before it is kept, what stands in the field is taken as if
// the model had written it, and the model goes on from there.

import { around } from "./events.js";
import { byId } from "./dom.js";

const KEPT_LETTERS = 220;

/**
 * @param {import("./state.js").Store} store
 * @param {{continueFrom: (run: import("./events.js").Run, token: number, text: string) => void}} actions
 * @returns {{open: (run: import("./events.js").Run, token: number) => void}}
 */
export function forkDialog(store, actions) {
  const dialog = byId("fork");
  const kept = byId("fork-kept");
  const field = byId("fork-text");
  const hint = byId("fork-hint");
  let place = null;

  // A greedy model that gets back its own words writes the same again: better said before than wondered about after.
  function advise() {
    const same = store.settings.greedy && field.value === place.line;
    hint.textContent = same
      ? "The model is greedy: with this text unchanged it will write the same again."
      : "Everything behind this is written again. The old version stays beside the new one.";
  }

  field.addEventListener("input", advise);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("fork-form").requestSubmit();
  });
  byId("fork-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    actions.continueFrom(place.run, place.token, field.value);
  });
  byId("fork-empty").addEventListener("click", () => {
    field.value = "";
    field.focus();
    advise();
  });

  return {
    open(run, token) {
      place = { run, ...around(run, token) };
      kept.textContent = place.kept.length > KEPT_LETTERS ? `…${place.kept.slice(-KEPT_LETTERS)}` : place.kept;
      field.value = place.line;
      field.rows = Math.min(6, Math.max(1, Math.ceil(place.line.length / 60)));
      advise();
      dialog.showModal();
      kept.scrollTop = kept.scrollHeight;
      field.focus();
      field.setSelectionRange(field.value.length, field.value.length);
    },
  };
}
