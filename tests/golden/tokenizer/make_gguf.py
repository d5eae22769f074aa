"""What llama.cpp makes of GGUF vocabularies: ids by every splitting rule, by scores with ties, and the tokens that end an answer.

The byte-level vocabulary was trained on the strings of ../smollm2/tokens.jsonl without any splitting, so that its merges cross
every place where a rule may split: ids tell where it did. The SentencePiece vocabularies are random, with few different scores.

gguf.json: {"tokens", "merges", "texts", "rules": [{"names": [...], "ids": [[...] for each text]}], "scored": [{"tokens",
"types", "scores", "texts", "ids"}], "ends": {"tokens", "ids"}}. Rules with the same ids stand together. No BOS is added, special
tokens are not parsed.

Run: PEERS_DIR=FOLDER python make_gguf.py        (needs tokenizers, gguf, and node-llama-cpp in PEERS_DIR/node_modules)
"""

import json
import random
import subprocess
import tempfile
from pathlib import Path

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
NAMES = (
    "default llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano smaug-bpe dbrx glm4 chatglm-bpe smollm starcoder "
    "refact command-r codeshell exaone minerva-7b mellum2 gpt-2 mpt olmo phi-2 jais trillion granite-docling exaone4 gigachat "
    "a.x-4.0 mellum modern-bert jina-es jina-de jina-v2-es jina-v2-de qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 "
    "solar-open grok-2 qwen35 falcon tekken gpt-4o llama4 kanana2 talkie minimax-m2 deepseek-llm deepseek-coder deepseek-v3 "
    "hunyuan-dense joyai-llm hy_v4 spark2_5 poro-chat bloom gpt3-finnish viking superbpe bailingmoe bailingmoe2 llada-moe seed-coder "
    "jais-2 kimi-k2 ufakzeka exaone-moe minicpm5 laguna"
).split()
ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> "
    "<end_of_utterance> <eos> <|fim_pad|> <|repo_name|> <|file_sep|> <unk> <s> <pad> <|im_start|> <|user|> <|assistant|> <think> </think>"
).split()
TEXTS = ["I'll DON'T we'VE it's", "12345678 1,234.5 x12y", "a  b   c\t\td\n\n e \r\n f ", "École ÉCOLE éÉ naïveté", "中文字123カタカナ가나다", "!!! ?? -- ==>", "  \n\n  x", "HTTPServer iPhone", "हिन्दी भाषा में", "ภาษาไทยดีที่", "e\u0301le\u0300ve"]
SCRIPT = """
import fs from "node:fs";
const {loadNodeLlamaCpp} = await import(process.argv[2]);
const {module} = await loadNodeLlamaCpp();
const llama = await module.getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: "error"});
const out = [];
for (const [file, texts, eog] of JSON.parse(fs.readFileSync(0, "utf8"))) {
    try {
        const model = await llama.loadModel({modelPath: file, gpuLayers: 0, vocabOnly: true});
        out.push(eog ? eog.filter((id) => model.isEogToken(id)) : texts.map((text) => model.tokenize(text, false)));
        await model.dispose();
    } catch (error) {
        out.push(null);
    }
}
console.log(JSON.stringify(out));
await llama.dispose();
"""


def write(path, model, pre, tokens, types, merges=None, scores=None, **ids):
    w = gguf.GGUFWriter(str(path), "llama")
    for key, value in [("context_length", 64), ("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 32)]:
        w.add_uint32(f"llama.{key}", value)
    w.add_uint32("llama.attention.head_count", 1)
    w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    w.add_string("tokenizer.ggml.model", model)
    w.add_string("tokenizer.ggml.pre", pre)
    w.add_array("tokenizer.ggml.tokens", tokens)
    w.add_array("tokenizer.ggml.token_type", types)
    if merges:
        w.add_array("tokenizer.ggml.merges", merges)
    if scores:
        w.add_array("tokenizer.ggml.scores", scores)
    w.add_bool("tokenizer.ggml.add_bos_token", False)
    for name, value in ids.items():
        w.add_uint32(f"tokenizer.ggml.{name}_token_id", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return str(path)


def train(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def scored(rng):
    """A SentencePiece vocabulary of random pieces, and texts of the same letters."""
    pieces = {"".join(rng.choices("abc\u2581", k=rng.randint(2, 4))) for _ in range(40)}
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + list("\u2581abc") + sorted(pieces)
    types = [2, 3, 3] + [6] * 256 + [1] * (4 + len(pieces))
    scores = [0.0] * 263 + [float(-rng.randint(1, 3)) for _ in pieces]
    texts = ["".join(rng.choices("aabbcc d", k=rng.randint(1, 24))) for _ in range(25)] + ["h\u00e9 a", " a  b", "\u2581a"]
    return {"tokens": tokens, "types": types, "scores": scores, "texts": texts}


def main():
    rng = random.Random(20261126)
    rows = [json.loads(line)[0] for line in (HERE.parent / "smollm2" / "tokens.jsonl").read_text().split("\n") if line]
    tokens, merges = train(rows)
    # llama.cpp takes a text for tokens with types; the last one ends an answer.
    types = [1] * len(tokens)
    short = [text for text in rows if 3 < len(text) <= 48]
    texts = TEXTS + rng.sample(short, 110)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        jobs = [[write(folder / f"{at}.gguf", "gpt2", name, tokens, types, merges, eos=0), texts, None] for at, name in enumerate(NAMES)]
        vocabularies = [scored(rng) for _ in range(4)]
        for at, v in enumerate(vocabularies):
            jobs.append([write(folder / f"s{at}.gguf", "llama", "default", v["tokens"], v["types"], scores=v["scores"], eos=2, bos=1, unknown=0), v["texts"], None])
        all_ends = tokens[:256] + ENDS
        jobs.append([write(folder / "e.gguf", "gpt2", "gpt-2", all_ends, [1] * len(all_ends), ["a b"], eos=0), [], list(range(256, len(all_ends)))])
        peers = str(HERE.parent.parent / "peers" / "load.mjs")
        script = folder / "ids.mjs"
        script.write_text(SCRIPT)
        done = subprocess.run(["node", script, peers], input=json.dumps(jobs), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        results = json.loads(done.stdout.splitlines()[-1])
    rules = []
    for name, ids in zip(NAMES, results):
        if ids is None:
            print(f"llama.cpp does not know {name}")
            continue
        same = next((rule for rule in rules if rule["ids"] == ids), None)
        if same:
            same["names"].append(name)
        else:
            rules.append({"names": [name], "ids": ids})
    for v, ids in zip(vocabularies, results[len(NAMES):]):
        v["ids"] = ids
    out = {"tokens": tokens, "merges": merges, "texts": texts, "rules": rules, "scored": vocabularies, "ends": {"tokens": ENDS, "ids": [i - 256 for i in results[-1]]}}
    text = json.dumps(out, ensure_ascii=False, separators=(",", ":"))
    (HERE / "gguf.json").write_text(text.replace('{"names"', '\n{"names"') + "\n")
    print(f"{len(rules)} different rules of {len(NAMES)} names, {len(text)} characters")


main()
