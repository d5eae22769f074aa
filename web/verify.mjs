// Runs verify.html in a headless Chromium and turns its table into an exit code.
//
//   node verify.mjs [--json FILE] [--screenshot FILE] [--timeout SECONDS]
//
// Exit code 0 when every row passed, 1 when one failed, there was none, or the page could not run, 2 for wrong usage.
// The browser is $CHROMIUM or the first known name on the search path. Its software adapter is used, so that the
// result does not depend on the machine; REFLECT_WEBGPU=hardware takes the machine's own.

import { createReadStream, existsSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { delimiter, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const folder = fileURLToPath(new URL(".", import.meta.url));
const types = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

class Failure extends Error {}

function readArgs() {
  try {
    const text = { type: "string" };
    const { values } = parseArgs({ options: { json: text, screenshot: text, timeout: { ...text, default: "900" } } });
    const seconds = Number(values.timeout);
    if (!(seconds > 0)) throw new Error(`--timeout wants a number of seconds, not ${values.timeout}.`);
    return { ...values, seconds };
  } catch (error) {
    console.error(`${error.message}\nUsage: node verify.mjs [--json FILE] [--screenshot FILE] [--timeout SECONDS]`);
    process.exit(2);
  }
}

// Serves this folder on a free loopback port; nothing outside it can be asked for.
function serve() {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const file = join(folder, normalize(path));
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

async function openBrowser() {
  let playwright;
  try {
    playwright = await import("playwright-core");
  } catch {
    throw new Failure("playwright-core is not installed: run `npm ci` in web/, or `cargo xtask setup`.");
  }
  const software = process.env.REFLECT_WEBGPU === "hardware" ? [] : ["--use-webgpu-adapter=swiftshader"];
  return playwright.chromium.launch({
    executablePath: findBrowser(),
    args: [
      "--headless=new",
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      ...software,
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

// Opens the page and waits for its result. What the page logs goes to stderr: a shader that does not compile is only logged there.
async function check(browser, address, { seconds, screenshot }) {
  const page = await browser.newPage({ viewport: { width: 1000, height: 900 } });
  const failed = new Promise((_, reject) => {
    page.on("crash", () => reject(new Failure("The page crashed: most likely it ran out of memory.")));
    page.on("pageerror", (error) => reject(new Failure(`The page stopped: ${error.stack ?? error}`)));
  });
  failed.catch(() => {});
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) console.error(`page ${message.type()}: ${message.text()}`);
  });
  await page.goto(address);
  const finished = page
    .waitForFunction(() => window.result, undefined, { timeout: seconds * 1000 })
    .catch(() => {
      throw new Failure(`The page did not finish within ${seconds} s: raise --timeout, or look for an endless kernel.`);
    });
  await Promise.race([finished, failed]);
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  return page.evaluate(() => window.result);
}

function judge(result) {
  if (result.error) throw new Failure(result.error);
  const rows = result.rows ?? [];
  const bad = rows.filter((row) => !row.ok);
  const kernels = new Set(rows.map((row) => row.op)).size;
  console.log(
    `web verify: ${rows.length - bad.length} of ${rows.length} rows passed, ${kernels} kernels, ` +
      `${result.adapter.name || `${result.adapter.backend} (${result.adapter.kind})`}, ${result.seconds.toFixed(1)} s`,
  );
  for (const row of bad) {
    console.log(`  FAILED ${row.op} ${row.case}: NMSE ${row.nmse} (allowed ${row.tolerance}), max abs ${row.max_abs}`);
  }
  const answers = result.answers ?? [];
  const wrong = answers.filter((row) => !row.ok);
  console.log(`web verify: ${answers.length - wrong.length} of ${answers.length} answers of reflect-tiny have the same tokens`);
  for (const row of wrong) console.log(`  FAILED answer ${row.answer}: ${row.equal} of ${row.tokens} tokens equal`);
  if (rows.length === 0 || answers.length === 0) throw new Failure("The page checked nothing: there are no rows or no answers.");
  return bad.length === 0 && wrong.length === 0;
}

const options = readArgs();
let server;
let browser;
try {
  browser = await openBrowser();
  server = await serve();
  const result = await check(browser, `http://127.0.0.1:${server.address().port}/verify.html`, options);
  if (options.json) writeFileSync(options.json, `${JSON.stringify(result, null, 2)}\n`);
  process.exitCode = judge(result) ? 0 : 1;
} catch (error) {
  console.error(error instanceof Failure ? error.message : error);
  process.exitCode = 1;
} finally {
  await browser?.close();
  server?.closeAllConnections();
  server?.close();
}
