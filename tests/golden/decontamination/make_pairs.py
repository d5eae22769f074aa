"""Writes pairs.jsonl: pairs of a training text and a test item, each read by a person and labelled.

Usage: make_pairs.py DATA, a folder with gsm8k/{train,test}.jsonl (openai/grade-school-math, MIT) and
decontamination/rephrase_gsm8k.jsonl (lm-sys/llm-decontaminator, Apache-2.0). Only Python's own library is used.

`same` says whether the two are the same problem: one comes from the other by rewording, or by other names, things and
numbers with the same relations and the same question. A like topic, a like phrase or a like calculation is not enough.
The pairs of GSM8K's two sets are all those with a Jaccard similarity of words and word pairs from 0.28 on, 26 drawn from
0.18 to 0.28, and the ones whose numbers agree best; the rephrasings are 40 drawn from all."""
import json
import sys
from pathlib import Path

SAME = [(5162, 602), (1314, 602), (20, 632), (3726, 824), (1781, 448), (7285, 918), (4240, 979), (3052, 302),
        (2578, 579), (138, 308), (1892, 1008), (3757, 566), (6828, 387), (6065, 907), (4665, 787), (2311, 1281),
        (4887, 773), (936, 1291), (4894, 918), (3252, 918), (1763, 684)]
OTHER = [(407, 595), (3427, 496), (4970, 595), (2600, 974), (6655, 597), (2228, 487), (2441, 1201), (3963, 279),
         (2716, 279), (6679, 1114), (6148, 623), (5054, 536), (6186, 182), (4338, 1201), (796, 989), (6290, 355),
         (4046, 179), (6119, 487), (3174, 320), (3403, 595), (5685, 566), (1177, 893), (4775, 566), (3858, 1128),
         (4929, 595), (3978, 486), (3916, 690), (3019, 204), (1101, 238), (2313, 595), (406, 581), (2822, 496),
         (2760, 595), (7349, 116), (6910, 893), (6130, 279), (403, 996), (5792, 329), (535, 117), (5605, 595),
         (6015, 595), (3061, 179), (5352, 167), (2883, 1060), (3928, 527), (2888, 308), (5102, 178), (1484, 1072),
         (4616, 572), (4507, 32), (2059, 1268), (3007, 1115), (5701, 360), (1307, 182), (5604, 1175), (2208, 1039),
         (7151, 1217), (5556, 533), (4341, 820), (1306, 410), (108, 497), (4533, 2), (6558, 853), (794, 1271),
         (5374, 376), (7149, 258), (2957, 893), (725, 508), (767, 376), (5056, 1280), (646, 1216), (2485, 830),
         (5749, 1318), (5903, 1200), (1481, 65), (2376, 711), (6967, 6), (1950, 661), (4637, 1238), (1964, 1163)]
REPHRASED = [3, 10, 26, 59, 106, 147, 208, 231, 259, 270, 284, 322, 327, 340, 341, 373, 408, 429, 442, 444, 505, 511,
             524, 573, 593, 643, 737, 764, 782, 800, 838, 914, 957, 964, 1089, 1117, 1179, 1268, 1269, 1279]


def rows(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


data = Path(sys.argv[1])
train = [row["question"] for row in rows(data / "gsm8k/train.jsonl")]
test = [row["question"] for row in rows(data / "gsm8k/test.jsonl")]
texts = [row["text"] for row in rows(data / "decontamination/rephrase_gsm8k.jsonl")]
reworded = [text.split("Answer:")[0].removeprefix("Question:").strip() for text in texts]
pairs = [("rephrased", reworded[at], test[at], True) for at in REPHRASED]
pairs += [("gsm8k", train[a], test[b], True) for a, b in SAME]
pairs += [("gsm8k", train[a], test[b], False) for a, b in OTHER]
with open(Path(__file__).with_name("pairs.jsonl"), "w", encoding="utf-8") as out:
    for source, training, item, same in pairs:
        row = {"source": source, "training": training, "test": item, "same": same}
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
