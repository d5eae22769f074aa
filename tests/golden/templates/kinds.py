"""Small tokenizers of the kinds that chat models have: their normalisers, patterns, added tokens with their flags and post-processors as
they are out there, over a vocabulary of a few hundred tokens learned from the templates of this folder and a few sentences.

(needs tokenizers)
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = """The moon is about 384,400 km away, and light needs 1.3 seconds to get there. How far is it to the sun?
I first add the two numbers, then I check the carry. Wait, that step is wrong: 17 + 25 is 42, not 32.
You are a helpful assistant. What is the weather in Bern today? It's 21.5 degrees, they'll say; we've asked.
def add(a, b):
    return a + b

assert add(2, 2) == 4
Réponds en français : ça va, naïve café. Grüße aus Zürich! Привет, мир. 你好，世界。東京の天気は？ مرحبا
"""
LEARNED = 170

# How the patterns of byte-level tokenizers differ, under the names of who uses them.
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama3": SHORT + "|" + LETTERS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES,
    "qwen2": SHORT + "|" + LETTERS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES,
    "tekken": CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES,
    "o200k": CASED % (SHORT + "?", SHORT + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES,
    "deepseek3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES,
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
}


def token(content, special=True, lstrip=False, rstrip=False, single_word=False, normalized=False):
    return AddedToken(content, special=special, lstrip=lstrip, rstrip=rstrip, single_word=single_word, normalized=normalized)


def tokens(names, **flags):
    return [token(name, **flags) for name in names.split()]


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bytes_of(pattern):
    """ByteLevel behind the pattern's own splits, or with GPT-2's."""
    patterns = PATTERNS[pattern] if isinstance(PATTERNS[pattern], list) else [PATTERNS[pattern]]
    return pre_tokenizers.Sequence([*(split(p) for p in patterns), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2(*before, add_prefix_space=False):
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return pre_tokenizers.Sequence([*before, level]) if before else level


def in_front(tokenizer, bos):
    """The post-processor that puts a token in front of a text, which chat templates are encoded without."""
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def byte_level(corpus, pre_tokenizer, added, normalizer=None, bos=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=256 + LEARNED, initial_alphabet=alphabet, show_progress=False))
    for one in added:
        tokenizer.add_special_tokens([one]) if one.special else tokenizer.add_tokens([one])
    if bos:
        level = processors.ByteLevel(trim_offsets=False)
        tokenizer.post_processor = processors.Sequence([level, in_front(tokenizer, bos)])
    return tokenizer


def sentencepiece(corpus, added, normalizer=None, pre_tokenizer=None, strips=True, bos="<s>", first=("<unk>", "<s>", "</s>")):
    """A BPE with byte tokens as converted from SentencePiece: `▁` for spaces, the tokens `first` before the bytes."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=330, limit_alphabet=120, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]] + [("▁", "▁"), ("▁▁", "▁▁")]
    pieces = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"], "▁▁", "▁▁▁▁"]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    model = models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    last = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    for one in added:
        tokenizer.add_special_tokens([one]) if one.special else tokenizer.add_tokens([one])
    tokenizer.post_processor = in_front(tokenizer, bos)
    return tokenizer


def legacy():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


LLAMA3 = (
    "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|> <|finetune_right_pad_id|>"
)
TAGS = "<thinking> </thinking> <reflection> </reflection> <output> </output>"
THINK = "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>"
DEEPSEEK = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜▁pad▁｜>"
DEEPSEEK_PLAIN = (
    "<｜User｜> <｜Assistant｜> <think> </think> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> "
    "<｜tool▁sep｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
)
MISTRAL = "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]"


def sentencepiece_kinds(corpus):
    basic = tokens("<unk> <s> </s>")
    metaspace = pre_tokenizers.Metaspace
    phi3 = [
        *tokens("<unk> <s>"),
        token("</s>", special=False, rstrip=True),
        token("<|endoftext|>"),
        *tokens("<|assistant|> <|system|> <|end|> <|user|>", rstrip=True),
    ]
    return {
        # Llama 2 and Mistral 7B as converted by transformers before version 4.40, then with `legacy: false`.
        "sp-legacy": sentencepiece(corpus, basic, legacy()),
        "sp-first": sentencepiece(corpus, basic + tokens(MISTRAL), pre_tokenizer=metaspace("▁", "first", False)),
        "sp-prompt": sentencepiece(
            corpus, basic + tokens(MISTRAL + " [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"), pre_tokenizer=metaspace("▁", "first", False)
        ),
        "sp-always": sentencepiece(corpus, basic, pre_tokenizer=metaspace("▁", "always", False)),
        "sp-never": sentencepiece(corpus, basic, pre_tokenizer=metaspace("▁", "never", True), strips=False),
        # `normalized` makes the spelling of a token pass through the normaliser too, here giving `▁</s>`.
        "sp-normalized": sentencepiece(corpus, tokens("<unk> <s> </s>", normalized=True), legacy()),
        "sp-chatml": sentencepiece(corpus, basic + tokens("<|im_end|> <|im_start|>"), pre_tokenizer=metaspace("▁", "first", False)),
        "phi3": sentencepiece(corpus, phi3, legacy()),
        "gemma": sentencepiece(
            corpus,
            [
                *tokens("<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> <start_of_image>"),
                *[token(t, special=False) for t in ("\n\n", "\t\t", "▁▁▁▁", "<table>")],
            ],
            normalizers.Replace(" ", "▁"),
            pre_tokenizers.Split(" ", "merged_with_previous"),
            strips=False,
            bos="<bos>",
            first=("<pad>", "<eos>", "<bos>", "<unk>"),
        ),
    }


def byte_level_kinds(corpus):
    nfc = normalizers.NFC
    llama3 = bytes_of("llama3")
    qwen = tokens("<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>")
    digits = pre_tokenizers.Digits(True)
    command = "<PAD> <UNK> <BOS_TOKEN> <EOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>"
    smollm2 = "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <file_sep> <filename> <jupyter_start>"
    phi4_mini = [
        token("<|endoftext|>"),
        *tokens("<|assistant|> <|end|> <|user|> <|system|>", rstrip=True),
        *tokens("<|tool|> <|/tool|>", special=False),
    ]
    kimi = "[BOS] [EOS] <|im_end|> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> <|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_argument_begin|> <|tool_call_end|>"
    glm = tokens("<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|>") + tokens(
        THINK + " <arg_key> </arg_key> <arg_value> </arg_value> /nothink", special=False
    )
    falcon_splits = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Digits(False), split("[0-9][0-9][0-9]")]
    return {
        "llama3": byte_level(corpus, llama3, tokens(LLAMA3), bos="<|begin_of_text|>", ignore_merges=True),
        "reflection": byte_level(corpus, llama3, tokens(LLAMA3 + " " + TAGS), bos="<|begin_of_text|>", ignore_merges=True),
        "llama3-chatml": byte_level(
            corpus,
            llama3,
            tokens("<|begin_of_text|> <|end_of_text|> <|im_start|> <|im_end|>") + tokens(THINK, special=False),
            bos="<|begin_of_text|>",
            ignore_merges=True,
        ),
        "r1-llama": byte_level(
            corpus, llama3, tokens(DEEPSEEK) + tokens(DEEPSEEK_PLAIN, special=False), bos="<｜begin▁of▁sentence｜>", ignore_merges=True
        ),
        "r1-qwen": byte_level(
            corpus, bytes_of("qwen2"), tokens(DEEPSEEK) + tokens(DEEPSEEK_PLAIN, special=False), nfc(), bos="<｜begin▁of▁sentence｜>"
        ),
        "deepseek": byte_level(
            corpus, bytes_of("deepseek3"), tokens(DEEPSEEK, normalized=True), normalizers.Sequence([]), bos="<｜begin▁of▁sentence｜>"
        ),
        "deepseek-coder": byte_level(
            corpus,
            bytes_of("deepseek-coder"),
            tokens("<｜begin▁of▁sentence｜> <|EOT|>", normalized=True) + tokens("<｜fim▁hole｜>", special=False),
            normalizers.Sequence([]),
            bos="<｜begin▁of▁sentence｜>",
        ),
        "qwen2": byte_level(corpus, bytes_of("qwen2"), qwen + tokens("<tool_call> </tool_call>", special=False), nfc()),
        "qwen3": byte_level(corpus, bytes_of("qwen2"), qwen + tokens(THINK, special=False), nfc()),
        "tekken": byte_level(
            corpus,
            bytes_of("tekken"),
            tokens("<unk> <s> </s> " + MISTRAL + " [IMG] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT] [CALL_ID] [ARGS]"),
            bos="<s>",
            ignore_merges=True,
        ),
        "smollm2": byte_level(corpus, gpt2(digits), tokens(smollm2)),
        "phi4": byte_level(
            corpus, llama3, tokens("<|endoftext|> <|fim_prefix|> <|im_start|> <|im_end|> <|im_sep|>", lstrip=True, rstrip=True)
        ),
        "phi4-mini": byte_level(corpus, bytes_of("o200k"), phi4_mini),
        "granite": byte_level(corpus, gpt2(digits), tokens("<|end_of_text|> <fim_prefix> <|start_of_role|> <|end_of_role|> <|tool_call|>")),
        "glm": byte_level(corpus, llama3, glm, ignore_merges=True),
        "lfm2": byte_level(
            corpus,
            llama3,
            tokens(
                "<|pad|> <|startoftext|> <|endoftext|> <|im_start|> <|im_end|> <|tool_list_start|> <|tool_list_end|> <|tool_response_start|> <|tool_response_end|>"
            ),
            bos="<|startoftext|>",
        ),
        "kimi": byte_level(corpus, bytes_of("o200k"), tokens(kimi)),
        "command": byte_level(corpus, gpt2(digits), tokens(command, normalized=True), nfc(), bos="<BOS_TOKEN>"),
        "falcon": byte_level(
            corpus,
            gpt2(*falcon_splits),
            [
                *tokens("<|endoftext|> >>TITLE<<"),
                token("<mask>", lstrip=True),
                token("NOTE", single_word=True),
                token("stop", special=False, single_word=True),
            ],
        ),
        "prefix": byte_level(
            corpus,
            gpt2(add_prefix_space=True),
            [
                *tokens("<role> </role> <|startoftext|> <|endoftext|> <|im_start|> <|im_end|>"),
                token("<mask>", lstrip=True, normalized=True),
            ],
        ),
    }


def build(corpus):
    return sentencepiece_kinds(corpus) | byte_level_kinds(corpus)
