// What a visitor does: forks, versions, sampling, keys, traces.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe } from "node:test";

import { PRODUCT, SUM, eventsOf, fixture } from "./fixtures.mjs";
import { onPage } from "./harness.mjs";

describe("forks", { concurrency: 3 }, () => {
  onPage("fork at a boundary: the prefix is kept, the text is taken, the old version stays", async (page, { done, answered, text, texts, sent, visible, count }) => {
    await answered(PRODUCT);
    await page.click(".fold");
    await page.locator(".card.corrected").first().getByRole("button", { name: "Go on differently" }).click();
    assert.match(await text("#fork-kept"), /not 252<\/reflection>\n$/);
    assert.equal(await page.inputValue("#fork-text"), "p = 47*6=282");
    assert.match(await text("#fork-hint"), /will write the same again/);
    await page.fill("#fork-text", "p = 290");
    assert.match(await text("#fork-hint"), /written again/);
    await page.press("#fork-text", "Enter");
    await done(2);
    const [first, fork] = await sent("generate");
    assert.equal(first.from, null);
    assert.deepEqual(fork.from, { run: 1, token: 74, text: "p = 290" });
    assert.deepEqual(fork.messages, [{ role: "user", content: PRODUCT }]);
    await page.click(".fold");
    assert.equal((await texts(".mine")).join(""), "p = 290");
    assert.equal(await count(".fork-mark"), 1);
    assert.match((await texts(".timeline"))[0], /p = 282[\s\S]*p = 290\nq = 47\*8=356/);
    assert.equal(await text(".pager"), "2 of 2");
    await page.getByRole("button", { name: "Previous version" }).click();
    assert.equal(await visible('.turn[data-run="1"]'), true);
    assert.equal(await count(".mine"), 0);
    assert.equal(await text(".pager"), "1 of 2");
  });

  onPage("every boundary names its token", async (page, { answered }) => {
    await answered(SUM);
    await page.click(".fold");
    const tokens = await page.locator(".boundary").evaluateAll((buttons) => buttons.map((button) => Number(button.dataset.token)));
    assert.deepEqual(tokens, [1, 35, 102], "in the thinking, before the reflection, before the closing tag");
  });

  onPage("editing the question is a fork at the root", async (page, { done, answered, text, sent }) => {
    await answered(PRODUCT);
    await page.getByRole("button", { name: "Edit", exact: true }).click();
    await page.keyboard.type(SUM);
    await page.keyboard.press("Enter");
    await done(2);
    assert.deepEqual((await sent("generate"))[1].messages, [{ role: "user", content: SUM }]);
    assert.equal((await sent("generate"))[1].from, null);
    assert.equal(await text(".turn h2"), SUM);
    assert.equal(await text(".pager"), "2 of 2");
    await page.getByRole("button", { name: "Edit", exact: true }).click();
    await page.keyboard.press("Escape");
    assert.equal(await text(".turn h2"), SUM);
  });

  onPage("a fork while it writes stops it first", async (page, { ready, ask, done, until, sent }) => {
    await ready();
    await ask("endless");
    await until(() => document.querySelectorAll(".card").length > 1);
    await page.locator(".boundary").first().click();
    await page.fill("#fork-text", "short");
    await page.press("#fork-text", "Enter");
    await until(() => window.sent.filter((message) => message.type === "generate").length === 2);
    const order = (await page.evaluate(() => window.sent.map((message) => message.type))).filter((type) => ["generate", "stop"].includes(type));
    assert.deepEqual(order, ["generate", "stop", "generate"]);
    await page.keyboard.press("Escape");
    await done(2);
    assert.equal((await sent("stop")).length, 2);
  }, { mock: "rate=800&load_ms=40", settings: { max_tokens: 100000 } });

  onPage("the tree has forks, follow-ups and versions, and leads to each", async (page, { settled, ask, done, answered, text, texts }) => {
    await answered(PRODUCT);
    await page.click(".fold");
    await page.locator(".reflection .boundary").first().click();
    await page.fill("#fork-text", "so p is 250");
    await page.press("#fork-text", "Enter");
    await done(2);
    await ask(SUM);
    await done(3);
    await page.click("#tree-button");
    assert.deepEqual((await texts("#tree .node")).map((node) => node.replace(/\s+/g, " ")), [`“${PRODUCT}” 4042`, "rewritten: “so p is 250” 4042", `“${SUM}” 1310`]);
    const depth = (index) => page.locator("#tree .node").nth(index).evaluate((node) => { let depth = 0; for (let up = node; (up = up.parentElement.closest("li")); ) depth += 1; return depth; });
    assert.deepEqual([await depth(0), await depth(1), await depth(2)], [1, 2, 3]);
    assert.equal(await page.locator("#tree [aria-current]").innerText().then((node) => node.includes(SUM)), true);
    await page.locator("#tree .node").first().click();
    const turns = async () => {
      await settled();
      return page.locator(".turn").evaluateAll((all) => all.map((turn) => turn.dataset.run));
    };
    assert.deepEqual(await turns(), ["1"]);
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    assert.deepEqual(await turns(), ["2", "3"]);
    assert.equal(await text(".pager"), "2 of 2");
  });

  onPage("many turns: the history has the whole answer, and a version of an earlier turn keeps what followed it", async (page, { ask, done, answered, texts, sent }) => {
    await answered("I have 9 coins in the drawer and 7 coins in the jar.");
    await ask("Put 5 more in the jar. What is in each?");
    await done(2);
    const [, second] = await sent("generate");
    assert.deepEqual(second.messages, [
      { role: "user", content: "I have 9 coins in the drawer and 7 coins in the jar." },
      { role: "assistant", content: "<output>drawer 9, jar 7</output>" },
      { role: "user", content: "Put 5 more in the jar. What is in each?" },
    ]);
    assert.deepEqual(await texts(".output .answer"), ["drawer 9, jar 7", "drawer 9, jar 5"]);
    await page.locator(".turn").first().getByRole("button", { name: "Edit", exact: true }).click();
    await page.keyboard.type(SUM);
    await page.keyboard.press("Enter");
    await done(3);
    assert.deepEqual(await texts(".output .answer"), ["1310"]);
    await page.getByRole("button", { name: "Previous version" }).click();
    assert.deepEqual(await texts(".output .answer"), ["drawer 9, jar 7", "drawer 9, jar 5"]);
  });

  onPage("a new conversation starts empty, the old one stays until it is forgotten", async (page, { ask, done, answered, texts, sent, visible, count }) => {
    await answered(PRODUCT);
    await page.click("#new");
    assert.equal(await visible("#intro"), true);
    await ask(SUM);
    await done(2);
    assert.deepEqual((await sent("generate"))[1].messages, [{ role: "user", content: SUM }]);
    assert.equal(await count(".pager"), 0, "other conversations are no versions");
    await page.click("#tree-button");
    assert.equal((await texts("#tree .node")).length, 2);
    await page.getByRole("button", { name: "Forget" }).nth(1).click();
    await page.waitForFunction(() => document.querySelectorAll("#tree .node").length === 1);
    assert.deepEqual(await sent("release"), [{ type: "release", run: 2 }]);
    assert.equal(await visible("#intro"), true);
  });
});

describe("controls", { concurrency: 3 }, () => {
  onPage("stop, by button and by Esc, keeps what was written", async (page, { ready, ask, done, text, until, sent, visible }) => {
    await ready();
    await ask("endless");
    await until(() => document.querySelectorAll(".card").length > 0);
    assert.equal(await visible("#send"), false);
    await page.click("#stop");
    await done(1);
    assert.match(await text(".notes"), /You stopped it before it answered/);
    assert.ok((await text(".timeline")).length > 40);
    await ask("endless");
    await until(() => document.querySelectorAll('.turn[data-run="2"] .card').length > 0);
    await ask(SUM);
    assert.match(await text("#notice"), /still being written/);
    await page.keyboard.press("Escape");
    await done(2);
    assert.deepEqual(await sent("stop"), [{ type: "stop", run: 1 }, { type: "stop", run: 2 }]);
  }, { mock: "rate=500&load_ms=40", settings: { max_tokens: 100000 } });

  onPage("sampling is sent, remembered, and impossible values are put back", async (page, { ready, ask, done, text, sent }) => {
    await ready();
    await page.click("#settings-button");
    await page.getByLabel("Drawn by chance").check();
    for (const [label, value] of [["Temperature", "0.9"], ["Top-p", "0.8"], ["Top-k", "20"], ["Min-p", "0.05"], ["Seed", "8"], ["Tokens at most", "500"], ["for thinking", "100"]]) {
      await page.getByLabel(label).fill(value);
      await page.keyboard.press("Tab");
    }
    await page.getByLabel("Top-p").fill("7");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Escape");
    await ask(PRODUCT);
    await done(1);
    const [{ sampling, max_tokens, budgets }] = await sent("generate");
    assert.deepEqual(sampling, { temperature: 0.9, top_p: 0.8, top_k: 20, min_p: 0.05, seed: 8 });
    assert.deepEqual([max_tokens, budgets], [500, { thinking: 100, reflection: null, output: null }]);
    assert.equal(await text("#settings-button"), "Temperature 0.9, seed 8 · at most 500 tokens · 1 budget");
    await page.reload();
    assert.match(await text("#settings-button"), /Temperature 0.9/);
  });

  onPage("greedy without budgets by default; a budget that closes a segment is said so", async (page, { ask, done, answered, texts, sent }) => {
    await answered(PRODUCT);
    const [{ sampling, budgets }] = await sent("generate");
    assert.deepEqual([sampling.temperature, budgets], [0, null]);
    await page.click("#settings-button");
    await page.getByLabel("for thinking").fill("30");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Escape");
    await ask(PRODUCT);
    await done(2);
    await page.locator(".turn").last().locator(".fold").click();
    assert.match((await texts(".timeline .note")).join(), /closed: its token budget was used up/);
  });

  onPage("the limit of tokens is said so", async (page, { answered, text, visible }) => {
    await answered(PRODUCT);
    assert.match(await text(".notes"), /It reached the limit of 50 tokens before it answered/);
    assert.equal(await visible(".timeline"), true);
  }, { settings: { max_tokens: 50 } });

  onPage("an error of a run is shown, and the question can be asked again", async (page, { ready, ask, text, until, sent }) => {
    await ready();
    await ask("refuse");
    await until(() => /longer than the context/.test(document.querySelector(".notes")?.textContent));
    await page.getByRole("button", { name: "Ask again" }).click();
    await until(() => window.sent.filter((message) => message.type === "generate").length === 2);
    assert.equal(await text(".pager"), "2 of 2");
    assert.equal((await sent("hello")).length, 1);
  });

  onPage("the keyboard reaches everything", async (page, { settled, done, answered, text, until, sent, visible, count }) => {
    await answered(PRODUCT);
    const focus = () => page.evaluate(() => document.activeElement.className || document.activeElement.id);
    const key = async (name) => {
      await page.keyboard.press(name);
      await settled();
    };
    await key("Escape");
    await key("?");
    assert.equal(await visible("#help"), true);
    assert.equal(await count("#keys tr") >= 14, true);
    await key("Escape");
    await key("/");
    assert.equal(await focus(), "question");
    await key("?");
    assert.equal(await page.inputValue("#question"), "?", "letters in a field are letters");
    await page.fill("#question", "");
    await key("Escape");
    await key("j");
    assert.match(await focus(), /thinking/);
    await key("o");
    await key("j");
    assert.match(await focus(), /reflection/);
    await key("j");
    await key("k");
    await key("f");
    assert.equal(await visible("#fork"), true);
    await key("Escape");
    await key("w");
    await until(() => document.querySelector(".compare"));
    assert.equal((await sent("generate"))[1].from.token, 27, "of the reflection that has the focus");
    await until(() => document.querySelector(".compare").dataset.state);
    await key("v");
    await key("v");
    assert.equal(await page.getByLabel("Full").isChecked(), true);
    await key("p");
    assert.equal(await page.locator("#colours").getAttribute("aria-pressed"), "true");
    await key("t");
    assert.equal(await visible("#tree"), true);
    await key("]");
    assert.equal(await text(".pager"), "2 of 2");
    await key("[");
    assert.equal(await text(".pager"), "1 of 2");
    await key("y");
    await until(() => /Copied/.test(document.querySelector("#notice").textContent));
    await key("e");
    assert.equal(await count("form.edit textarea"), 1);
    await key("Escape");
    await key("n");
    assert.equal(await visible("#intro"), true);
  });

  onPage("single keys can be switched off", async (page, { ready, visible }) => {
    await ready();
    await page.click("#help-button");
    await page.getByLabel("Single keys work").uncheck();
    await page.keyboard.press("Escape");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("s");
    assert.equal(await visible("#settings"), false);
  });
});

describe("traces", { concurrency: 3 }, () => {
  onPage("what is saved can be opened again, without a model, and be continued with one", async (page, { done, answered, text, texts, until, sent }) => {
    await answered(PRODUCT);
    await page.click(".fold");
    await page.locator(".reflection .boundary").first().click();
    await page.fill("#fork-text", "so p is 250");
    await page.press("#fork-text", "Enter");
    await done(2);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#more summary").then(() => page.getByRole("button", { name: "Save as JSON" }).click())]);
    assert.equal(download.suggestedFilename(), "reflect-trace.json");
    const file = readFileSync(await download.path(), "utf8");
    const trace = JSON.parse(file);
    assert.deepEqual([trace.format, trace.version, trace.model.name, trace.shown, trace.runs.length], ["reflect-trace", 1, "reflect-tiny", 2, 2]);
    assert.deepEqual(trace.runs[1].from, { run: 1, token: 27, text: "so p is 250" });
    assert.deepEqual(Object.keys(trace.runs[0]), ["run", "after", "messages", "from", "sampling", "banned", "events"]);
    const before = await texts(".turn");
    await page.reload();
    await page.setInputFiles("#trace-file", { name: "t.json", mimeType: "application/json", buffer: Buffer.from(file) });
    await page.waitForSelector('.turn[data-status="done"]');
    const whole = (words) => words.replace(/first token after[^·]*· |\d+ ms|[\d,]+ tokens\/s|[\d.]+ MB of memory · CPU| · $/g, "").replace(/[\s·]+/g, " ").trim();
    assert.equal(whole((await texts(".turn"))[0]), whole(before[0]));
    assert.equal(await text(".pager"), "2 of 2");
    await until(() => document.querySelector('#model-button[data-state="ready"]'));
    await page.getByRole("button", { name: "Previous version" }).click();
    await page.click(".fold");
    await page.click(".counterfactual");
    await page.waitForSelector(".compare[data-state=differ]");
    const fork = (await sent("generate")).at(-1);
    assert.equal(fork.from.token_ids.length, 27, "the worker has never seen this run: it gets its tokens");
  });

  onPage("a stream of events, one a line, can be opened", async (page, { text, texts }) => {
    await page.setInputFiles("#trace-file", { name: "run.jsonl", mimeType: "", buffer: Buffer.from(fixture("graph")) });
    await page.waitForSelector('.turn[data-status="done"]');
    assert.deepEqual(await texts(".output .answer"), ["15"]);
    assert.equal(await text(".turn h2"), "A stream without its question");
  });

  onPage("a trace of another model is shown, but not continued in the middle", async (page, { ready, text, sent }) => {
    await ready();
    const trace = { format: "reflect-trace", version: 1, model: { name: "other-1b" }, runs: [{ run: 4, messages: [{ role: "user", content: SUM }], from: null, sampling: {}, banned: [], events: eventsOf("add") }], shown: 4 };
    await page.setInputFiles("#trace-file", { name: "t.json", mimeType: "", buffer: Buffer.from(JSON.stringify(trace)) });
    await page.waitForSelector(".turn");
    await page.click(".fold");
    await page.click(".counterfactual");
    assert.match(await text("#notice"), /written by other-1b, and reflect-tiny is loaded/);
    assert.equal((await sent("generate")).length, 0);
  });

  onPage("a hostile trace stays text, a broken one is refused", async (page, { text, until, count }) => {
    const nasty = "<img src=x onerror=window.broken=1>";
    const events = eventsOf("add").map((event) => (event.before ? { ...event, before: nasty, after: nasty } : event.text === "a" ? { ...event, text: nasty } : event));
    const trace = { format: "reflect-trace", version: 1, model: { name: nasty }, runs: [{ run: 1, messages: [{ role: "user", content: nasty }], from: null, sampling: {}, banned: [], events }], shown: 1 };
    await page.setInputFiles("#trace-file", { name: "t.json", mimeType: "", buffer: Buffer.from(JSON.stringify(trace)) });
    await page.waitForSelector(".turn");
    await page.click("#tree-button");
    assert.equal(await count("#page img"), 0);
    assert.equal(await page.evaluate(() => window.broken), undefined);
    assert.equal(await text(".turn h2"), nasty);
    await page.setInputFiles("#trace-file", { name: "t.json", mimeType: "", buffer: Buffer.from("{}") });
    await until(() => /neither a trace/.test(document.querySelector("#notice").textContent));
  });

  onPage("an image is made by the worker and handed over", async (page, { answered, sent }) => {
    await answered(SUM);
    await page.click("#more summary");
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as an image" }).click()]);
    assert.deepEqual([...readFileSync(await download.path()).subarray(1, 4)], [...Buffer.from("PNG")]);
    const [{ trace, theme, width }] = await sent("png");
    assert.deepEqual([trace.runs.length, trace.shown, theme, width], [1, 1, "dark", 720]);
  }, { colorScheme: "dark" });
});
