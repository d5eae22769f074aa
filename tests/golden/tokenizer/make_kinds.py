"""Small tokenizers of every kind that Llama folders have, and the ids that Hugging Face `tokenizers` gives for some texts.

kinds.json: [{"name", "tokenizer": the tokenizer.json, "exact": whether the lists of a GGUF vocabulary can say all of it,
"ids": [...]}] after {"texts": [...]}; special tokens inside the texts are parsed, none are added. The merges are made up.

Run: python make_kinds.py        (needs tokenizers)
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers

HERE = Path(__file__).resolve().parent
SPACE = "\u2581"
TEXTS = [
    "hello world 123 12", " leading", "hi\n\n hi", "x<tool>y <|end|> z", "\u00e9\u00c9 na\u00efve \u4e2d\u6587 e\u0301", "I'll DON'T Hi", "  two  spaces ", "",
    "hi<s>hi", "ab 12ab", "1234567",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def added(content, id, special=True, **flags):
    return dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=special) | flags


def file(vocab, merges, specials, pre, normalizer=None, decoder=None, **model):
    base = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False)
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": specials, "normalizer": normalizer, "pre_tokenizer": pre,
        "post_processor": None, "decoder": decoder, "model": base | model | {"vocab": {t: i for i, t in enumerate(vocab)}, "merges": merges},
    }


def byte_level(pre, flags={}, normalizer=None, **model):
    merges = [["h", "i"], ["H", "i"], ["1", "2"], ["12", "3"], ["l", "l"], ["\u0120", "hi"], ["\u0120", "\u0120"], ["hi", "\u010a"], ["a", "b"], ["12", "ab"], ["\u00c3", "\u012b"]]
    vocab = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(m) for m in merges]
    n = len(vocab)
    specials = [added("<s>", n), added("<|end|>", n + 1), added("<tool>", n + 2, special=False)]
    for token in specials:
        token.update(flags.get(token["content"], {}))
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return file(vocab, merges, specials, pre, normalizer, decoder, **model)


def pieces(pre, normalizer, strip=True, merges=None):
    # Every way to join a token is listed, the ways of one token together, as converters of sentencepiece models list them.
    merges = merges or [["h", "i"], [SPACE, "hi"], ["l", "l"], ["1", "2"], [SPACE, SPACE], ["a", "b"], ["1", "ll"]]
    vocab = ["<unk>", "<s>", "</s>", "<|end|>", "<tool>"] + [f"<0x{b:02X}>" for b in range(256)] + [SPACE] + list("helowrdxyzi1ab23") + ["".join(m) for m in merges]
    specials = [added(t, i) for i, t in enumerate(vocab[:4])] + [added("<tool>", 4, special=False)]
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    return file(vocab, merges, specials, pre, normalizer, {"type": "Sequence", "decoders": steps}, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def main():
    def level(use_regex=True, space=False):
        return {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": use_regex}

    def sequence(*steps):
        return {"type": "Sequence", "pretokenizers": list(steps)}

    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    both = {"type": "Sequence", "normalizers": [prepend, replace]}

    def metaspace(scheme, split):
        return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}

    kinds = [
        ("ByteLevel alone", True, byte_level(level())),
        ("ByteLevel in a sequence", True, byte_level(sequence(level()))),
        ("Llama 3", True, byte_level(sequence(split(LLAMA3), level(False)), ignore_merges=True)),
        ("Llama 3, merging", True, byte_level(sequence(split(LLAMA3), level(False)))),
        ("SmolLM", True, byte_level(sequence({"type": "Digits", "individual_digits": True}, level()))),
        ("Qwen 2", True, byte_level(sequence(split(QWEN2), level(False)))),
        ("Qwen 2 with NFC", False, byte_level(sequence(split(QWEN2), level(False)), normalizer={"type": "NFC"})),
        ("GPT-4o", False, byte_level(sequence(split(GPT4O, "Removed", True), level(False)))),
        ("a space in front", False, byte_level(level(space=True))),
        ("flags of added tokens", False, byte_level(level(), {"<tool>": {"lstrip": True, "single_word": True}, "<|end|>": {"rstrip": True}})),
        ("Llama 2", True, pieces(None, both)),
        ("spaces replaced alone", True, pieces(None, replace, strip=False)),
        ("Metaspace, first", False, pieces(metaspace("first", False), None)),
        ("Metaspace, always", False, pieces(metaspace("always", True), None)),
        ("Metaspace, never", True, pieces(metaspace("never", False), None, strip=False)),
        ("merges that leave ways out", False, pieces(None, both, merges=[["h", "i"], [SPACE, "h"], [SPACE, "hi"], ["l", "l"], ["1", "2"]])),
    ]
    rows = []
    for name, exact, tokenizer in kinds:
        loaded = Tokenizer.from_str(json.dumps(tokenizer))
        ids = [loaded.encode(text, add_special_tokens=False).ids for text in TEXTS]
        rows.append({"name": name, "exact": exact, "tokenizer": tokenizer, "ids": ids})
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    texts = json.dumps(TEXTS, ensure_ascii=False)
    (HERE / "kinds.json").write_text('{"texts": ' + texts + ', "kinds": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{len(rows)} tokenizers, {len(TEXTS)} texts")


main()
