// Recorded streams as scripts that can be cut, forked and played again. Pure: mock-worker.js plays them, viewer.mjs tests them.

/**
 * One step of a script: a piece of text, the opening tag of a segment, or the closing tag of one.
 * @typedef {{text: string, ids: number[], logprob?: number, top?: object[]}|{open: string, ids: number[]}|{close: string, ids: number[], verdict?: string, before?: string, after?: string}} Item
 */

/** A recorded stream, one event a line, as items. @param {string} lines @returns {Item[]} */
export function scriptOf(lines) {
  const events = lines.trim().split("\n").map((line) => JSON.parse(line));
  const { token_ids: ids } = events.find((event) => event.type === "done");
  const kinds = new Map();
  const items = [];
  for (const event of events) {
    if (event.type === "segment_start") {
      kinds.set(event.id, event.kind);
      if (event.kind !== "text") items.push({ open: event.kind, ids: [ids[event.token]] });
    } else if (event.type === "text") {
      const { text, token_ids, logprob, top } = event;
      items.push({ text, ids: token_ids, logprob, top });
    } else if (event.type === "segment_end" && kinds.get(event.id) !== "text") {
      const { verdict, before, after } = event;
      items.push({ close: kinds.get(event.id), ids: [ids[event.token - 1]], verdict, before, after });
    }
  }
  return items;
}

/** Text that somebody wrote, as items: tags open and close segments. @param {string} text @returns {Item[]} */
export function itemsOf(text) {
  const pieces = text.match(/<\/?(?:thinking|reflection|output)>|\n| ?[^\s\d<]+| ?\d|\s|./g) ?? [];
  return pieces.map((piece) => {
    const tag = /^<(\/?)(\w+)>$/.exec(piece);
    if (!tag) return { text: piece, ids: [900 + piece.length] };
    return tag[1] ? { close: tag[2], ids: [6], verdict: tag[2] === "reflection" ? "unknown" : undefined } : { open: tag[2], ids: [5] };
  });
}

const tokensOf = (items) => items.reduce((sum, item) => sum + item.ids.length, 0);

/** The items of the first `token` tokens, and the others. @param {Item[]} items @param {number} token */
export function cut(items, token) {
  let at = 0;
  for (let seen = 0; at < items.length && seen < token; at += 1) seen += items[at].ids.length;
  return { kept: items.slice(0, at), rest: items.slice(at) };
}

/**
 * What this model writes behind a place: the rest as recorded where nothing was written in between; else from the next line on, without
 * the doubts about what stood there before. With reflections banned, mistakes stay, up to the answer.
 * @param {Item[]} rest
 * @param {{written: string, banned: string[]}} how
 * @returns {Item[]}
 */
export function continueWith(rest, { written, banned }) {
  let items = rest;
  if (written.trim() !== "") {
    const next = items.findIndex((item) => item.text?.startsWith("\n") || item.close || item.open);
    items = next < 0 ? [] : items.slice(next);
    const reflection = items.findIndex((item) => item.open === "reflection");
    const line = items.slice(1).findIndex((item) => item.text?.startsWith("\n"));
    if (reflection >= 0 && reflection <= line + 1) items = withoutReflections(items, 1);
  }
  return banned.includes("<reflection>") ? withoutReflections(items, Infinity) : items;
}

// Leaves out the first reflections, and what they led to: the line written again, and the right number in the answer.
function withoutReflections(items, most) {
  const left = [];
  let dropped = 0;
  let wrong = null;
  for (let at = 0; at < items.length; at += 1) {
    if (items[at].open !== "reflection" || dropped === most) {
      left.push(items[at]);
      continue;
    }
    dropped += 1;
    while (items[at] && items[at].close !== "reflection") at += 1;
    if (items[at]?.verdict !== "corrected") continue;
    wrong = /(\d+)\D*$/.exec(items[at].before)?.[1] ?? wrong;
    const name = items[at].before.split(" ")[0];
    if (items[at + 2]?.text?.trim() === name || items[at + 2]?.text?.trim() === name.slice(0, 1)) {
      at += 2;
      while (items[at + 1] && !items[at + 1].text?.startsWith("\n") && !items[at + 1].close) at += 1;
    }
  }
  if (wrong === null || most === 1) return left;
  const output = left.findIndex((item) => item.open === "output");
  const answer = [...wrong].map((digit) => ({ text: digit, ids: [26 + Number(digit)], logprob: -0.02 }));
  return [...left.slice(0, output + 1), ...answer, { close: "output", ids: [10] }];
}

/**
 * Plays items as events. Numbers of segments and tokens go on from call to call, so a script can be played in parts.
 * @param {() => number} now  milliseconds
 */
export function player(now) {
  const open = [];
  let next = 0;
  let token = 0;
  const ids = [];
  const counts = { reasoning: 0, reflections: 0 };

  function start(kind, at) {
    const segment = { id: next, kind, since: now() };
    next += 1;
    const parent = open.at(-1)?.id ?? null;
    open.push(segment);
    if (kind === "reflection") counts.reflections += 1;
    return { type: "segment_start", id: segment.id, parent, kind, token: at };
  }
  function end(closed, extra = {}) {
    const { id, since } = open.pop();
    const known = Object.fromEntries(Object.entries(extra).filter(([, value]) => value !== undefined));
    return { type: "segment_end", id, token, closed, ms: Math.round(now() - since), ...known };
  }

  return {
    /** @param {Item} item @param {{closed?: string, reason?: string}} [how] @returns {object[]} */
    play(item, { closed = "tag", reason } = {}) {
      const events = [];
      const before = token;
      if (item.text !== undefined) {
        if (open.length === 0) events.push(start("text", token));
        token += item.ids.length;
        const { text, logprob, top } = item;
        const known = Object.fromEntries(Object.entries({ logprob, top }).filter(([, value]) => value !== undefined));
        events.push({ type: "text", id: open.at(-1).id, text, token_ids: item.ids, ...known });
      } else if (item.open) {
        if (open.at(-1)?.kind === "text") events.push(end("tag"));
        token += item.ids.length;
        events.push(start(item.open, before));
      } else {
        token += item.ids.length;
        if (open.at(-1)?.kind === item.close) events.push(end(closed, { reason, verdict: item.verdict, before: item.before, after: item.after }));
      }
      ids.push(...item.ids);
      if (open.some((segment) => segment.kind === "thinking") || item.close === "thinking") counts.reasoning += item.ids.length;
      return events;
    },
    /** The last events. @param {string} finish_reason @param {{prompt_tokens: number, tokens_per_s: number}} figures */
    finish(finish_reason, { prompt_tokens, tokens_per_s }) {
      const events = [];
      while (open.length > 0) events.push(end("eos"));
      const usage = { prompt_tokens, completion_tokens: token, reasoning_tokens: counts.reasoning, reflections: counts.reflections };
      const timings = { load_ms: 8, prefill_tokens_per_s: 6000, decode_tokens_per_s: tokens_per_s };
      return [...events, { type: "done", finish_reason, usage, timings, token_ids: ids }];
    },
    get token() {
      return token;
    },
    get kind() {
      return open.at(-1)?.kind ?? null;
    },
  };
}

/** A long script for measurements: `tokens` tokens of thinking, with reflections, and an answer. @param {Item[]} items @param {number} tokens */
export function longScript(items, tokens) {
  const from = items.findIndex((item) => item.open === "thinking") + 1;
  const to = items.findIndex((item) => item.close === "thinking");
  const inside = items.slice(from, to);
  const long = [];
  while (tokensOf(long) < tokens) long.push(...inside);
  return [...items.slice(0, from), ...long, ...items.slice(to)];
}

/** A long script with one answer of that many tokens. @param {Item[]} items @param {number} tokens @param {boolean} lines */
export function longAnswer(items, tokens, lines) {
  const words = items.filter((item) => item.text && (lines || !item.text.includes("\n")));
  const long = [];
  while (tokensOf(long) < tokens) long.push(...words);
  return [{ open: "output", ids: [9] }, ...long, { close: "output", ids: [10] }];
}
