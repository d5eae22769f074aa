// One greedy answer of llama.cpp through node-llama-cpp, with the chat template of the file.
//
// node llama_answer.mjs MODEL.gguf PROMPT
//
// It prints the answer.

import os from "node:os";
import {loadNodeLlamaCpp} from "./load.mjs";

const [modelPath, prompt, ...rest] = process.argv.slice(2);
if (prompt === undefined || rest.length > 0) {
    console.error("usage: llama_answer.mjs MODEL.gguf PROMPT");
    process.exit(2);
}
const {module} = await loadNodeLlamaCpp();
// Without a number llama.cpp may start more threads than the machine has cores, and each token then takes a second.
const llama = await module.getLlama({gpu: false, build: "never", maxThreads: os.availableParallelism(), logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 1024});
const session = new module.LlamaChatSession({contextSequence: context.getSequence()});
console.log(await session.prompt(prompt, {temperature: 0, maxTokens: 128}));
await llama.dispose();
