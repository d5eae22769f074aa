// The pictures of docs/page: the built page with its real worker and the model that comes with it.
//
//   cargo xtask web && node web/tests/pictures.mjs [FOLDER]

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { openBrowser, serve } from "../browser.mjs";

const folder = process.argv[2] ?? fileURLToPath(new URL("../../docs/page", import.meta.url));
mkdirSync(folder, { recursive: true });

const HARD = "What is 78 + 65 + 94?";
const LONG = "What is 47 * 86?";
const wide = { width: 1200, height: 860 };
const phone = { width: 390, height: 844 };
const server = await serve("dist");
const browser = await openBrowser();
// Slow enough to be seen thinking.
const slow = await openBrowser({ webgpu: true });

/** Opens the page, hands it to `act`, and keeps its last state. */
async function picture(name, act, { size = wide, dark = false, on = browser } = {}) {
  const context = await on.newContext({ viewport: size, colorScheme: dark ? "dark" : "light", hasTouch: size === phone, isMobile: size === phone, deviceScaleFactor: size === phone ? 2 : 1 });
  if (on === slow) await context.addInitScript(() => localStorage.setItem("reflect.settings", JSON.stringify({ prefer: "gpu" })));
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error(`${name}: ${error.stack}`));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForSelector('#model-button[data-state="ready"]');
  await act(page);
  await page.waitForTimeout(350);
  await page.screenshot({ path: join(folder, `${name}.png`) });
  await context.close();
}

const done = (page, run) => page.waitForSelector(`.turn[data-run="${run}"][data-status="done"]`);
const ask = async (page, text) => {
  await page.fill("#question", text);
  await page.keyboard.press("Enter");
};
const full = (text) => async (page) => {
  await ask(page, text);
  await done(page, 1);
  await page.click(".fold");
  await page.evaluate(() => scrollTo(0, 0));
};
const thinking = async (page) => {
  await ask(page, LONG);
  await page.waitForSelector(".reflection >> nth=1");
};
const counterfactual = async (page) => {
  await full(HARD)(page);
  await page.click(".counterfactual");
  await page.waitForSelector(".compare[data-state=differ], .compare[data-state=same]");
};
const probabilities = async (page) => {
  await full(HARD)(page);
  await page.click("#colours");
  await page.locator(".token.p3, .token.p4, .token.p5").first().hover();
};
const versions = async (page) => {
  await full(HARD)(page);
  await page.click(".reflection .boundary");
  await page.fill("#fork-text", " so");
  await page.click("#fork-form .main");
  await done(page, 2);
  await page.click("#tree-button");
  await page.evaluate(() => scrollTo(0, 0));
};

await picture("first-screen", async () => {});
await picture("thinking", thinking, { on: slow });
await picture("answered", full(HARD));
await picture("without-a-reflection", counterfactual);
await picture("probabilities", probabilities);
await picture("versions", versions);
await picture("dark", full(LONG), { dark: true });
await picture("phone-first-screen", async () => {}, { size: phone });
await picture("phone", full(HARD), { size: phone });

await browser.close();
await slow.close();
server.closeAllConnections();
server.close();
