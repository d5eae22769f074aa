"""Greedy answers of the checkpoints in models/ by transformers in float64, as token ids: reflect-tiny.json, reflect-micro.json.

Run: python tests/golden/tiny/make.py        (needs torch, transformers)

`gap` is the smallest lead of a chosen token's logit over the next one: where it is large, every correct program chooses the same.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
MODELS = HERE.parents[2] / "models"
MOST = 400

PROMPTS = [
    "What is 41 + 27?",
    "What is 348 + 76?",
    "What is 57 + 86 + 29?",
    "803 - 467 = ?",
    "Find 346 times 7.",
    "Work out 47 * 83.",
    "Every Lom is a Vix. Kim is a Lom. Each Vix is Red. Is Kim Red?",
    "If p is true, q is false, work out not (p and q).",
    "What is printed?\na = 7\nb = a + 5\na = b * 2\nprint(a)",
    "The number of cups is 12. There are 9 more lamps than cups. The coins are 2 times the lamps. Count the coins mod 23.",
    "I have 14 pens in the box and 6 pens in the jar. I move 5 pens from the box to the jar. What is in each?",
    "Good morning!",
]


def make(name):
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float64, attn_implementation="sdpa").eval()
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    answers = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer, gap, cache = [], float("inf"), None
        step = torch.tensor([ids])
        with torch.no_grad():
            while len(answer) < MOST:
                out = model(step, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                best = out.logits[0, -1].topk(2)
                gap = min(gap, (best.values[0] - best.values[1]).item())
                token = best.indices[0].item()
                answer.append(token)
                if token == end:
                    break
                step = torch.tensor([[token]])
        print(f"{gap:8.4f}  {tokenizer.decode(answer)!r}")
        answers.append({"prompt": ids, "answer": answer, "gap": round(gap, 6)})
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}"
    rows = ",\n".join(json.dumps(answer) for answer in answers)
    (HERE / f"{name}.json").write_text(f'{{"made_by": "{made_by}", "end": {end}, "answers": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    for name in ["reflect-tiny", "reflect-micro"]:
        make(name)
