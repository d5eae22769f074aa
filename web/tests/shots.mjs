// Pictures of the page in its states, for people to look at.
//
//   node tests/shots.mjs FOLDER

import { mkdirSync } from "node:fs";
import { join } from "node:path";

import { openBrowser, serve } from "../browser.mjs";

const folder = process.argv[2];
if (!folder) {
  console.error("Usage: node tests/shots.mjs FOLDER");
  process.exit(2);
}
mkdirSync(folder, { recursive: true });

const wide = { width: 1200, height: 860 };
const phone = { width: 390, height: 844 };
const server = await serve();
const browser = await openBrowser();

/** Opens the page with the mock and hands it to `act`, whose last state is the picture. */
async function shot(name, act, { size = wide, dark = false, worker = "rate=2000&load_ms=150", full = false } = {}) {
  const page = await browser.newPage({ viewport: size, colorScheme: dark ? "dark" : "light", hasTouch: size === phone, isMobile: size === phone, deviceScaleFactor: size === phone ? 2 : 1 });
  page.on("pageerror", (error) => console.error(`${name}: ${error.stack}`));
  await page.goto(`http://127.0.0.1:${server.address().port}/?worker=${encodeURIComponent(`tests/mock-worker.js?${worker}`)}`);
  await act(page);
  await page.waitForTimeout(350);
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: full });
  await page.close();
}

const ready = (page) => page.waitForSelector('#model-button[data-state="ready"]');
const done = (page, run) => page.waitForSelector(`.turn[data-run="${run}"][data-status="done"]`);
const ask = async (page, text) => {
  await page.fill("#question", text);
  await page.keyboard.press("Enter");
};
const answered = (text) => async (page) => {
  await ready(page);
  await ask(page, text);
  await done(page, 1);
};
const product = answered("What is 47 * 86?");
const unfolded = (text) => async (page) => {
  await answered(text)(page);
  await page.click(".fold");
};
const colours = async (page) => {
  await unfolded("What is 47 * 86?")(page);
  await page.click("#colours");
  await page.hover(".token.p5");
};
const forked = async (page) => {
  await unfolded("What is 47 * 86?")(page);
  await page.click(".reflection .boundary");
  await page.fill("#fork-text", "so p is about 250");
  await page.click("#fork-form .main");
  await done(page, 2);
  await page.click(".fold");
  await page.locator(".counterfactual").last().click();
  await page.waitForFunction(() => document.querySelector(".compare[data-state=differ]"));
  await ask(page, "What is 346 + 964?");
  await done(page, 4);
  await page.locator(".edit").last().click();
  await page.keyboard.type("What is 35 + 43?");
  await page.keyboard.press("Enter");
  await done(page, 5);
  await page.click("#tree-button");
  await page.evaluate(() => scrollTo(0, 0));
};
const counterfactual = async (page) => {
  await unfolded("What is 346 + 964?")(page);
  await page.click(".counterfactual");
  await page.waitForSelector(".compare[data-state=differ]");
};
const tooLarge = async (page) => {
  await ready(page);
  await page.click("#model-button");
  await page.fill("#models-source", "https://example.org/reflection-70b-q4_0.gguf");
  await page.click("#models-form .main");
  await page.waitForSelector("#models-fit .bad");
};
const crashed = async (page) => {
  await ready(page);
  await ask(page, "What is 35 + 43?");
  await done(page, 1);
  await ask(page, "What is 47 * 86, until you crash?");
  await page.waitForSelector("#crash:not([hidden])");
};
const live = async (page) => {
  await ready(page);
  await ask(page, "What is 47 * 86?");
  await page.waitForSelector(".reflection >> nth=1");
  await page.waitForTimeout(700);
};

for (const [mode, options] of [["light", {}], ["dark", { dark: true }], ["phone", { size: phone }]]) {
  await shot(`${mode}-1-first-screen`, ready, options);
  await shot(`${mode}-2-thinking`, live, { ...options, worker: "rate=45&load_ms=100" });
  await shot(`${mode}-3-answered`, product, options);
  await shot(`${mode}-4-full`, unfolded("What is 47 * 86?"), options);
  await shot(`${mode}-5-confirmed`, unfolded("There are 7 bags. There are 4 times as many cups as bags. How many cups are there, mod 23?"), options);
  await shot(`${mode}-6-probabilities`, mode === "phone" ? async (page) => { await unfolded("What is 47 * 86?")(page); await page.click("#colours"); await page.tap(".token.p5"); } : colours, options);
  await shot(`${mode}-7-versions`, forked, options);
  await shot(`${mode}-8-counterfactual`, counterfactual, options);
  await shot(`${mode}-9-loading`, async (page) => { await ask(page, "What is 47 * 86?"); await page.waitForTimeout(900); }, { ...options, worker: "load_ms=3000" });
  await shot(`${mode}-10-too-large`, tooLarge, options);
  await shot(`${mode}-11-crashed`, crashed, { ...options, worker: "rate=300&load_ms=100" });
  await shot(`${mode}-12-fork`, async (page) => { await unfolded("What is 47 * 86?")(page); await page.click(".timeline > .boundary"); }, options);
  await shot(`${mode}-13-settings`, async (page) => { await ready(page); await page.click("#settings-button"); }, options);
  await shot(`${mode}-14-help`, async (page) => { await ready(page); await page.click("#help-button"); }, options);
  await shot(`${mode}-15-models`, async (page) => { await ready(page); await page.click("#model-button"); }, options);
}

await browser.close();
server.closeAllConnections();
server.close();
