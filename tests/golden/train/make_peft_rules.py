"""Which modules an adapter_config.json updates, with which rank and scale, by PEFT's own functions.

`check_target_module_exists`, `match_target_against_key` and `get_pattern_key` are taken out of the source of an unpacked or installed
peft, so that torch is not needed. What stands around them is short and repeated here: the checks of `LoraConfig.__post_init__`, what
becomes of `all-linear`, and alpha over the rank or its square root. The file lists `modules`, and for each config `targets`: ranks and
scales with the indices of their modules, or null where PEFT refuses the config.

Run: python make_peft_rules.py [FOLDER OF peft]        (peft 0.21.2; the standard library else)
"""

import ast
import importlib.util
import json
import math
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Optional, Sequence

HERE = Path(__file__).resolve().parent
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(importlib.util.find_spec("peft").origin).parent
LAYERS = 12
PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
LINEAR = [f"model.layers.{i}.{p}" for i in range(LAYERS) for p in PROJECTIONS]
MODULES = ["model.embed_tokens", *LINEAR, "lm_head"]


class _ExcludedModule:
    def __bool__(self):
        return False


def functions(file, names, scope):
    tree = ast.parse((FOLDER / file).read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert len(wanted) == len(names), file
    exec(compile(ast.Module(wanted, []), file, "exec"), scope)


scope = {"re": re, "Optional": Optional, "Sequence": Sequence, "_ExcludedModule": _ExcludedModule, "PeftConfig": object}
functions("utils/other.py", ["match_target_against_key", "get_pattern_key"], scope)
source = (FOLDER / "tuners/tuners_utils.py").read_text()
functions("tuners/tuners_utils.py", ["check_target_module_exists"], scope)
exists, pattern_key = scope["check_target_module_exists"], scope["get_pattern_key"]


def resolve(config):
    c = SimpleNamespace(**{"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "exclude_modules": None,
                           "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {},
                           "alpha_pattern": {}, "use_rslora": False, "target_parameters": None, **config})
    text = isinstance(c.target_modules, str)
    if text and (c.layers_to_transform is not None or c.layers_pattern is not None):
        return None
    if c.layers_pattern and c.layers_to_transform is None:
        return None
    if text and c.target_modules.lower() == "all-linear":
        c.target_modules = set(LINEAR)
    found = {}
    for module in MODULES:
        if exists(c, module):
            r = c.rank_pattern.get(pattern_key(c.rank_pattern.keys(), module), c.r)
            alpha = c.alpha_pattern.get(pattern_key(c.alpha_pattern.keys(), module), c.lora_alpha)
            found[module] = [r, alpha / math.sqrt(r) if c.use_rslora else alpha / r]
    return found


def some(rng, values, most):
    return rng.sample(values, rng.randint(1, most))


def config(rng):
    names = [p.split(".")[1] for p in PROJECTIONS]
    patterns = ["q_proj", "v_proj", "mlp.down_proj", "self_attn.k_proj", r"layers\.1\..*", r"layers\.(2|10)\.mlp\.\w+",
                "^model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", r".*_proj", r"[qk]_proj", "proj", "lm_head"]
    c = {"r": rng.choice([1, 4, 8, 16]), "lora_alpha": rng.choice([1, 8, 12.5, 32]), "use_rslora": rng.random() < 0.3}
    kind = rng.random()
    if kind < 0.55:
        c["target_modules"] = some(rng, names + ["self_attn.q_proj", "mlp.up_proj", "lm_head", "embed_tokens", "proj",
                                                 "model.layers.3.mlp.gate_proj", "1.self_attn.v_proj"], 5)
        if rng.random() < 0.4:
            c["layers_to_transform"] = rng.choice([0, 1, 11, [], [0], [1, 3, 11], [40], [0, 2, 4, 6, 8, 10]])
            if rng.random() < 0.5:
                c["layers_pattern"] = rng.choice(["layers", ["layers"], ["h", "layers"], "blocks", [], "", "lay.*", "model.layers"])
        elif rng.random() < 0.1:
            c["layers_pattern"] = rng.choice(["layers", []])
    elif kind < 0.65:
        c["target_modules"] = rng.choice(["all-linear", "ALL-LINEAR", "All-Linear"])
    elif kind < 0.97:
        c["target_modules"] = rng.choice([
            r".*\.(q_proj|v_proj)", r"(?:.*?(?:self_attn).*?(?:q_proj|k_proj))", r"model\.layers\.\d+\.mlp\..*", "q_proj", r".*proj",
            r".*\.self_attn\.[qkvo]_proj$", r"^(?!.*mlp).*_proj", r"(?:.*?(?:language|text).*?(?:self_attn).*?(?:q_proj))|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))",
            r".*layers\.(1[01]|[0-3])\..*(?:gate|up|down)_proj", r"lm_head|.*o_proj", r".*\.(?P<last>[a-z]_proj)", r"model.layers.[0-4].self_attn.(k|v)_proj", "nothing"])
    if rng.random() < 0.25:
        c["exclude_modules"] = rng.choice([["q_proj"], ["layers.0.self_attn.q_proj"], r".*\.0\..*", ["lm_head", "mlp.up_proj"], "", []])
    if rng.random() < 0.2:
        c["modules_to_save"] = rng.choice([["lm_head"], ["embed_tokens", "lm_head"], ["mlp"], ["layers"], []])
    if rng.random() < 0.4:
        c["rank_pattern"] = {p: rng.choice([1, 2, 3, 32]) for p in some(rng, patterns, 3)}
    if rng.random() < 0.4:
        c["alpha_pattern"] = {p: rng.choice([2, 5, 64, 0.5]) for p in some(rng, patterns, 3)}
    return c


rng = random.Random(27)
cases, seen = [], set()
while len(cases) < 240:
    one = config(rng)
    key = json.dumps(one)
    if key in seen:
        continue
    seen.add(key)
    targets = resolve(one)
    if targets is not None:
        groups = {}
        for module, (r, scale) in targets.items():
            groups.setdefault((r, scale), []).append(MODULES.index(module))
        targets = [[r, scale, modules] for (r, scale), modules in groups.items()]
    cases.append({"config": one, "targets": targets})
lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
(HERE / "peft_rules.json").write_text(f'{{"modules": {json.dumps(MODULES)},\n"cases": [\n{lines}\n]}}\n')
print(len(cases), sum(case["targets"] is None for case in cases), "refused;", sum(case["targets"] == [] for case in cases), "empty")
