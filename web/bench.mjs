// Speed of the page beside the native program on the same software adapter, and beside wllama (llama.cpp in the browser), in one run: the
// machine's speed varies, so only ratios of one run mean something.
//
//   REFLECT_RUN=… SMOLLM2=… node bench.mjs [--tokens N] [--rounds N] [--wllama FOLDER]
//
// Needs web/dist (`cargo xtask web`). FOLDER is an installed npm package @wllama/wllama; without it there is no peer.

import { execFileSync } from "node:child_process";
import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import { extname, join, normalize } from "node:path";
import { parseArgs } from "node:util";

import { openBrowser, serve } from "./browser.mjs";

const text = { type: "string" };
const { values } = parseArgs({ options: { tokens: { ...text, default: "48" }, rounds: { ...text, default: "3" }, wllama: text } });
const [tokens, rounds] = [Number(values.tokens), Number(values.rounds)];
const PROMPT = "Tell me a story about the sea.";
const { REFLECT_RUN: program, SMOLLM2: model } = process.env;
if (!program || !model) {
  console.error("Set REFLECT_RUN to the native program and SMOLLM2 to the model's file.");
  process.exit(2);
}

/** Tokens a second of the native program on a device. */
function native(device) {
  const args = ["run", PROMPT, "--model", model, "--greedy", "--json", "--top-logprobs", "5", "--device", device, "--max-tokens", `${tokens}`];
  const lines = execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim().split("\n");
  return JSON.parse(lines.at(-1)).timings.decode_tokens_per_s;
}

function swiftshader() {
  const listed = JSON.parse(execFileSync(program, ["devices", "--json"], { encoding: "utf8" }));
  const found = (listed.devices ?? listed).find(({ name }) => /swiftshader/i.test(name));
  if (!found) throw new Error("The native program sees no SwiftShader: set VK_DRIVER_FILES.");
  return `${found.index}`;
}

/** An empty page, the model's file and the peer's package; the rest is web/dist. */
function first(request, response) {
  const path = new URL(request.url, "http://localhost").pathname;
  if (path === "/empty.html") {
    response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html>");
    return true;
  }
  const file = path === "/smollm2.gguf" ? model : values.wllama && path.startsWith("/wllama/") ? join(values.wllama, normalize(path.slice(8))) : null;
  if (!file) return false;
  if (!existsSync(file)) {
    response.writeHead(404).end();
    return true;
  }
  const { size } = statSync(file);
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
  const [start, end] = [Number(from ?? 0), to ? Number(to) : size - 1];
  const type = { ".js": "text/javascript", ".wasm": "application/wasm" }[extname(file)] ?? "application/octet-stream";
  response.writeHead(from ? 206 : 200, { "content-type": type, "content-length": end - start + 1, ...(from ? { "content-range": `bytes ${start}-${end}/${size}` } : {}) });
  if (request.method === "HEAD") response.end();
  else createReadStream(file, { start, end }).pipe(response);
  return true;
}

// Runs in the page: our worker without its viewer.
function ours({ worker: url, device, prompt, max_tokens }) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(url, { type: "module" });
    let timings = null;
    let adapter = "";
    worker.onerror = (event) => reject(new Error(event.message));
    worker.onmessage = ({ data }) => {
      if (data.type === "error") reject(new Error(data.message));
      if (data.type === "adapter") {
        adapter = data.device;
        worker.postMessage({ type: "load", load: 1, source: { kind: "url", url: new URL("smollm2.gguf", location).href } });
      }
      if (data.type === "loaded") {
        const sampling = { temperature: 0, top_p: 1, top_k: 0, min_p: 0, seed: 0 };
        worker.postMessage({ type: "generate", run: 1, messages: [{ role: "user", content: prompt }], from: null, sampling, banned: [], max_tokens, budgets: null });
      }
      if (data.type === "events") timings = data.events.find(({ type }) => type === "done")?.timings ?? timings;
      // The last figures come after the last event.
      if (data.type === "stats" && timings) {
        worker.terminate();
        resolve({ adapter, decode: timings.decode_tokens_per_s, prefill: timings.prefill_tokens_per_s, host_ms: data.host_ms_per_token, memory: data.memory });
      }
    };
    worker.postMessage({ type: "hello", prefer: device });
  });
}

// Runs in the page: the same model and prompt in wllama, on one thread as the page has no others.
async function peers({ gpu, prompt, max_tokens }) {
  const { Wllama } = await import(new URL("wllama/esm/index.js", location).href);
  const log = [];
  const keep = (...words) => log.push(words.join(" "));
  const wllama = new Wllama({ default: new URL("wllama/esm/wasm/wllama.wasm", location).href }, { logger: { debug: keep, log: keep, warn: keep, error: keep } });
  try {
    await wllama.loadModelFromUrl(new URL("smollm2.gguf", location).href, { n_threads: 1, n_ctx: 1024, n_gpu_layers: gpu ? 99999 : 0, useCache: true });
    const times = [];
    const stream = await wllama.createChatCompletion({ messages: [{ role: "user", content: prompt }], max_tokens, temperature: 0, stream: true });
    for await (const _ of stream) times.push(performance.now());
    await wllama.exit();
    return { decode: ((times.length - 1) / (times.at(-1) - times[0])) * 1000, tokens: times.length, log: log.filter((line) => /webgpu|adapter|gpu/i.test(line)).slice(0, 8) };
  } catch (error) {
    return { error: `${error?.message ?? error}`, log: log.slice(-8) };
  }
}

const server = await serve("dist", first);
const browser = await openBrowser({ webgpu: true });
const address = `http://127.0.0.1:${server.address().port}/`;
const folder = /"(\w+)\/app\/main\.js"/.exec(readFileSync(new URL("dist/index.html", import.meta.url), "utf8"))[1];
const shown = (value) => (typeof value === "number" ? value.toFixed(2) : "–");
try {
  const page = await (await browser.newContext()).newPage();
  await page.goto(`${address}empty.html`);
  const device = swiftshader();
  const shared = { prompt: PROMPT, max_tokens: tokens };
  for (let round = 1; round <= rounds; round += 1) {
    const before = native(device);
    const gpu = await page.evaluate(ours, { ...shared, worker: `${address}${folder}/worker.js`, device: "gpu" });
    const after = native(device);
    console.log(`round ${round}: decode on SwiftShader, tokens/s: native ${shown(before)} and ${shown(after)}, page ${shown(gpu.decode)}, ratio ${shown((2 * gpu.decode) / (before + after))}; host ${shown(gpu.host_ms)} ms a token; memory ${JSON.stringify(gpu.memory)}`);
    const cpu = await page.evaluate(ours, { ...shared, worker: `${address}${folder}/worker.js`, device: "cpu" });
    console.log(`round ${round}: decode on one CPU thread of the page: ${shown(cpu.decode)} tokens/s, prefill ${shown(cpu.prefill)}; memory ${JSON.stringify(cpu.memory)}`);
    if (!values.wllama) continue;
    for (const wanted of [true, false]) {
      const peer = await page.evaluate(peers, { ...shared, gpu: wanted });
      const mine = wanted ? gpu.decode : cpu.decode;
      console.log(`round ${round}: wllama ${wanted ? "with WebGPU" : "on the CPU"}: ${peer.error ?? `${shown(peer.decode)} tokens/s, ratio ${shown(mine / peer.decode)}`}`);
      for (const line of round === 1 ? (peer.log ?? []) : []) console.log(`  ${line.trim()}`);
    }
  }
} finally {
  await browser.close();
  server.closeAllConnections();
  server.close();
}
