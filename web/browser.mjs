// The web folder on a loopback port, and a headless Chromium to look at it: what verify.mjs and the tests share.

import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { delimiter, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL(".", import.meta.url));
const types = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/** What went wrong, as a sentence for the person at the terminal. */
export class Failure extends Error {}

/** Serves this folder on a free loopback port; nothing outside it can be asked for. @returns {Promise<import("node:http").Server>} */
export function serve() {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const file = join(folder, normalize(path === "/" ? "index.html" : path));
    if (!file.startsWith(folder) || !existsSync(file) || !statSync(file).isFile()) {
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { "content-type": types[extname(file)] ?? "application/octet-stream" });
    createReadStream(file).pipe(response);
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

function findBrowser() {
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const folders = (process.env.PATH ?? "").split(delimiter);
  const found = names.flatMap((name) => folders.map((at) => join(at, name))).find((file) => existsSync(file));
  const browser = process.env.CHROMIUM || found;
  if (!browser || !existsSync(browser)) {
    throw new Failure(`No Chromium${browser ? ` at ${browser}` : ""}: install it, or set CHROMIUM to its program file.`);
  }
  return browser;
}

/** Starts a headless browser. @param {{webgpu?: boolean}} [options] with WebGPU: the machine's adapter if REFLECT_WEBGPU=hardware, else a software one */
export async function openBrowser({ webgpu = false } = {}) {
  let playwright;
  try {
    playwright = await import("playwright-core");
  } catch {
    throw new Failure("playwright-core is not installed: run `npm ci` in web/, or `cargo xtask setup`.");
  }
  const adapter = process.env.REFLECT_WEBGPU === "hardware" ? [] : ["--use-webgpu-adapter=swiftshader"];
  return playwright.chromium.launch({
    executablePath: findBrowser(),
    args: [
      "--headless=new",
      "--no-sandbox",
      ...(webgpu ? ["--enable-unsafe-webgpu", ...adapter] : []),
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
