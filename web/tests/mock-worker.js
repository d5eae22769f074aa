// A worker for tests: it speaks the whole protocol, with recorded streams instead of a model. Its address takes settings:
//   rate=N         tokens a second; 0 is as fast as messages go
//   device=cpu|webgpu, load_ms=N, first=N (milliseconds to the first token)
//   hold=STAGE,…   a load waits in the middle of these stages (download, check, upload) for a message `go`; hold_at=N holds a run after N tokens.
//                  A test that looks at something in between would else depend on how fast the machine is.
// Some names and questions ask for trouble: a source with "70b" is too large, one with "corrupt" arrives damaged, "crash" in a question
// is a fatal error after some tokens, "throw" an exception, "refuse" an error of the run; "long N" writes N tokens of thinking,
// "prose N" an answer of N tokens, "paragraph N" the same without line ends, "endless" never comes to an answer, "html" answers with tags.

import { continueWith, cut, itemsOf, longAnswer, longScript, player, scriptOf } from "./mock-script.js";

const settings = new URLSearchParams(self.location.search);
const number = (name, fallback) => (settings.has(name) ? Number(settings.get(name)) : fallback);
const rate = number("rate", 400);
const loadMs = number("load_ms", 300);
const firstMs = number("first", 30);
const held = (settings.get("hold") ?? "").split(",");
const holdAt = number("hold_at", Infinity);
let go = () => {};
const gate = () => new Promise((resolve) => (go = resolve));

const names = ["easy", "hard", "graph", "state", "add", "wrong_first", "three"];
let scripts = null;
const ready = Promise.all(
  names.map(async (name) => [name, scriptOf(await (await fetch(new URL(`fixtures/${name}.jsonl`, import.meta.url))).text())]),
).then((entries) => (scripts = Object.fromEntries(entries)));

const MEGA = 1e6;
let cached = [
  { name: "smollm2-135m-q4_1", bytes: 98_362_432, files: 1, last_used: Date.UTC(2026, 9, 3) },
  { name: "reflect-1b-q4_0", bytes: 702_118_912, files: 3, last_used: Date.UTC(2026, 8, 21) },
];
/** What was written, by run: a fork copies from it. */
const written = new Map();
let loading = 0;
let device = "cpu";
let active = null;

const post = (message) => self.postMessage(message);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const nameOf = (source) => source.name ?? source.url?.split("/").at(-1) ?? source.files.map((file) => file.name).join(", ");
const sizeOf = (source) => (/70b/i.test(nameOf(source)) ? 39_600 * MEGA : source.name === "reflect-tiny" ? 4_457_187 : source.files ? source.files.reduce((sum, file) => sum + file.size, 0) : 98_362_432);

const handlers = {
  hello({ prefer }) {
    const wanted = prefer === "auto" ? settings.get("device") ?? "cpu" : prefer;
    device = wanted === "cpu" ? "cpu" : "webgpu";
    if (device === "cpu") {
      const why = prefer === "cpu" ? "The CPU was chosen." : "No WebGPU adapter was found, so the model runs on the CPU, which is slower.";
      post({ type: "adapter", device: "cpu", name: "CPU", why });
    } else post({ type: "adapter", device: "webgpu", name: "mock adapter", why: "A WebGPU adapter was found." });
  },
  models: () => listModels(),
  delete({ name }) {
    cached = cached.filter((model) => model.name !== name);
    listModels();
  },
  check({ source }) {
    const bytes = sizeOf(source);
    const ok = bytes < 4000 * MEGA;
    const sentence = ok
      ? `${nameOf(source)} fits: it needs about ${Math.ceil((bytes * 1.3) / MEGA)} MB of memory.`
      : `${nameOf(source)} does not fit: it needs 43 GB of memory, and this browser gives a page at most 4 GB. The native program can run it.`;
    post({ type: "fit", ok, sentence, bytes, memory: bytes * 1.3 });
  },
  load: ({ source, load }) => loadModel(source, load),
  cancel_load() {
    loading += 1;
    go();
  },
  generate: (message) => generate(message),
  stop({ run }) {
    if (active?.run !== run) return;
    active.stopped = true;
    go();
  },
  go: () => go(),
  release({ run }) {
    written.delete(run);
  },
  async png({ trace, theme, width }) {
    if (!trace.runs.length) throw new Error("an empty trace");
    const canvas = new OffscreenCanvas(width, 60);
    const pen = canvas.getContext("2d");
    pen.fillStyle = theme === "dark" ? "#141517" : "#fbfbfa";
    pen.fillRect(0, 0, width, 60);
    post({ type: "png", bytes: new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer()) });
  },
};

function listModels() {
  post({ type: "models", cached, quota: 4300 * MEGA, used: cached.reduce((sum, model) => sum + model.bytes, 0) });
}

async function loadModel(source, load) {
  loading += 1;
  const mine = loading;
  const total = sizeOf(source);
  const name = nameOf(source);
  const from_cache = source.kind === "cached";
  const steps = 2 * Math.max(2, Math.round(loadMs / 60));
  for (const stage of ["download", "check", "upload"]) {
    const count = stage === "download" ? steps : 2;
    for (let step = 1; step <= count; step += 1) {
      await sleep(loadMs / (steps + 4));
      if (loading !== mine) return;
      post({ type: "progress", load, stage, done: Math.round((total * step) / count), total, name, from_cache });
      if (held.includes(stage) && step === count / 2) await gate();
    }
    if (stage === "check" && /corrupt/i.test(name)) {
      post({ type: "error", load, message: `${name} arrived damaged (its checksum is another one) and was thrown away: try again.`, fatal: false });
      return;
    }
  }
  if (!from_cache && !source.files) cached = [{ name, bytes: total, files: 3, last_used: Date.now() }, ...cached.filter((model) => model.name !== name)];
  const parameters = name === "reflect-tiny" ? 1_101_952 : 134_515_008;
  post({
    type: "loaded", load, model: { name, parameters, bytes: total, context: 1024, format: name === "reflect-tiny" ? "f32" : "q4_1" },
    device, load_ms: loadMs, memory: { wasm: 24 * MEGA, gpu: 0 },
  });
}

function scriptFor({ messages, sampling }) {
  const question = messages.at(-1).content;
  const long = /\b(long|prose|paragraph) (\d+)/.exec(question);
  if (long) return long[1] === "long" ? longScript(scripts.wrong_first, Number(long[2])) : longAnswer(scripts.wrong_first, Number(long[2]), long[1] === "prose");
  if (/endless/.test(question)) return longScript(scripts.hard, 1e5);
  if (/html/.test(question)) return itemsOf('<thinking>\n<b onclick="x">bold?\n</thinking><output><img src=x onerror="window.broken=1"><b>hi</b></output>');
  if (/47|86/.test(question)) return sampling.temperature > 0 && sampling.seed % 2 === 0 ? scripts.hard : scripts.wrong_first;
  if (/346|964/.test(question)) return scripts.add;
  if (/78 \+ 65/.test(question)) return scripts.three;
  if (/bags/.test(question)) return scripts.graph;
  if (/drawer|jar|each/.test(question)) return messages.length > 2 ? scripts.state : itemsOf("<output>drawer 9, jar 7</output>");
  if (/nothing/.test(question)) return scripts.hard.slice(0, scripts.hard.findIndex((item) => item.close === "thinking"));
  return scripts.easy;
}

// The items of a run that this worker has never seen, by its tokens.
function byTokens(ids) {
  return Object.values(scripts).find((items) => {
    const all = items.flatMap((item) => item.ids);
    return ids.every((id, index) => all[index] === id);
  });
}

async function generate(request) {
  const { run, messages, from, banned, budgets, max_tokens } = request;
  const question = messages.at(-1).content;
  if (/refuse/.test(question)) {
    post({ type: "error", run, message: "The question is longer than the context of this model: shorten it.", fatal: false });
    return;
  }
  const me = { run, stopped: false, held: false };
  active = me;
  const play = player(() => performance.now());
  let kept = [];
  let todo = scriptFor(request);
  if (from) {
    const source = written.get(from.run) ?? (from.token_ids && byTokens(from.token_ids));
    if (!source) {
      post({ type: "error", run, message: "That run is not held any more: ask the question again.", fatal: false });
      return;
    }
    const parts = cut(source, from.token);
    kept = parts.kept;
    todo = [...itemsOf(from.text), ...continueWith(parts.rest, { written: from.text, banned })];
  } else if (banned.includes("<reflection>")) todo = continueWith(todo, { written: "", banned });
  written.set(run, [...kept, ...todo]);

  if (kept.length) post({ type: "events", run, replayed: true, events: kept.flatMap((item) => play.play(item)) });
  const began = performance.now();
  await sleep(firstMs);
  const start = performance.now();
  const first = play.token;
  const stats = () => {
    const ms = performance.now() - start;
    post({
      type: "stats", run, ttft_ms: start - began, tokens: play.token, tokens_per_s: ((play.token - first) / Math.max(ms, 1)) * 1000,
      thinking_ms: thought, memory: { wasm: 24 * MEGA, gpu: 0 },
    });
  };
  let thought = 0;
  const spent = { thinking: 0, reflection: 0, output: 0 };
  let batch = [];
  let reason = "stop";
  let told = start;
  for (let at = 0; at < todo.length; at += 1) {
    if (me.stopped) {
      reason = "cancelled";
      break;
    }
    if (play.token >= max_tokens) {
      reason = "length";
      break;
    }
    let item = todo[at];
    let how = {};
    const kind = play.kind;
    if (kind && item.text !== undefined && budgets?.[kind] && (spent[kind] += 1) > budgets[kind]) {
      // The budget is used up: the rest of this segment is not written.
      while (todo[at].close !== kind) at += 1;
      item = todo[at];
      how = { closed: "forced", reason: "budget" };
    }
    batch.push(...play.play(item, how));
    if (kind === "thinking" || kind === "reflection") thought = performance.now() - start;
    if (play.token > 12 && /crash/.test(question)) {
      post({ type: "events", run, events: batch, replayed: false });
      post({ type: "error", message: "The graphics driver was lost.", fatal: true });
      return;
    }
    if (play.token > 12 && /throw/.test(question)) setTimeout(() => { throw new Error("out of memory"); });
    const due = rate === 0 ? play.token % 500 === 0 : play.token - first >= ((performance.now() - start) / 1000) * rate;
    const holds = play.token >= holdAt && !me.held;
    if (!due && !holds) continue;
    post({ type: "events", run, events: batch, replayed: false });
    batch = [];
    if (holds) {
      me.held = true;
      await gate();
    }
    if (performance.now() - told > 200) {
      told = performance.now();
      stats();
    }
    await sleep(rate === 0 ? 0 : Math.min(16, 1000 / rate));
  }
  const tokens_per_s = ((play.token - first) / Math.max(performance.now() - start, 1)) * 1000;
  post({ type: "events", run, events: [...batch, ...play.finish(reason, { prompt_tokens: 20, tokens_per_s })], replayed: false });
  stats();
  if (active === me) active = null;
}

// Set before anything is awaited: a message that comes while a module still waits at its top level is lost.
self.onmessage = async ({ data }) => {
  await ready;
  handlers[data.type]?.(data);
};
