"""Prompts of 41 chat templates for 15 conversations: what transformers makes of them.

The templates beside this file are written for it; README.md says whose format each has. `index.json` holds the conversations and which
tokenizer of tokenizers/ (kinds.py) belongs to which template, `golden.jsonl` a line for each template and conversation:

text       what the template renders
error      what it says where it refuses: "raised" by the template itself, else by Python, as templates that know neither lists of parts nor
           absent contents do. The rest of the line is then that of the same conversation with one text as each content (a line end between parts),
           which is what a program may make of it instead of refusing.
ids        of `apply_chat_template(tokenize=True)`. Where somebody typed special tokens ("injected") no implementation has the right ids, so
           they are those of a tokenizer whose special tokens are spelled with private characters, which the template's own tokens are replaced
           with. Everywhere else the two agree, which is asserted.
control    where injected: the special ids that transformers gives for the same conversation with a harmless word for each typed token
ranges     [message, start, end]: the bytes of `text` that come unchanged from the content of a message
decoded    what `tokenizers` decodes the ids to, where it is not `text`

The content of the system and of the assistant may hold the six reflection tags as tokens. Tokens that were added without being special
are recognised in every content, as they are by transformers, and are not injected.

Run: python make_templates.py        (needs tokenizers, transformers, jinja2)
"""

import datetime
import itertools
import json
import logging
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import kinds
import provenance
from conversations import conversations, injected

HERE = Path(__file__).resolve().parent
NOW = datetime.datetime(2024, 7, 26)
TAGS = set(kinds.TAGS.split())
# template: tokenizer, bos, eos
TEMPLATES = {
    "llama2": ("sp-legacy", "<s>", "</s>"),
    "llama3": ("llama3", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3.1": ("llama3", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3.2": ("llama3", "<|begin_of_text|>", "<|eot_id|>"),
    "reflection": ("reflection", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2.5": ("qwen2", None, "<|im_end|>"),
    "qwen3": ("qwen3", None, "<|im_end|>"),
    "qwen3-coder": ("qwen3", None, "<|im_end|>"),
    "qwq": ("qwen3", None, "<|im_end|>"),
    "chatml": ("sp-chatml", "<s>", "<|im_end|>"),
    "hermes-tools": ("llama3-chatml", "<|begin_of_text|>", "<|im_end|>"),
    "smollm2": ("smollm2", "<|im_start|>", "<|im_end|>"),
    "smollm3": ("llama3-chatml", None, "<|im_end|>"),
    "mistral-v0.2": ("sp-always", "<s>", "</s>"),
    "mistral-v1": ("sp-legacy", "<s>", "</s>"),
    "mistral-v3": ("sp-first", "<s>", "</s>"),
    "mistral-v7": ("sp-prompt", "<s>", "</s>"),
    "mistral-nemo": ("tekken", "<s>", "</s>"),
    "mistral-small-3.2": ("tekken", "<s>", "</s>"),
    "phi3-mini": ("phi3", "<s>", "<|endoftext|>"),
    "phi3.5": ("phi3", "<s>", "<|endoftext|>"),
    "phi4": ("phi4", "<|endoftext|>", "<|im_end|>"),
    "phi4-mini": ("phi4-mini", "<|endoftext|>", "<|endoftext|>"),
    "gemma2": ("gemma", "<bos>", "<eos>"),
    "gemma3": ("gemma", "<bos>", "<eos>"),
    "r1-llama": ("r1-llama", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "r1-qwen": ("r1-qwen", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-v2": ("deepseek", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-coder": ("deepseek-coder", "<｜begin▁of▁sentence｜>", "<|EOT|>"),
    "zephyr": ("sp-first", "<s>", "</s>"),
    "vicuna": ("sp-normalized", "<s>", "</s>"),
    "alpaca": ("sp-never", "<s>", "</s>"),
    "solar": ("sp-legacy", "<s>", "</s>"),
    "falcon": ("falcon", None, "<|endoftext|>"),
    "granite3.3": ("granite", "<|end_of_text|>", "<|end_of_text|>"),
    "lfm2": ("lfm2", "<|startoftext|>", "<|im_end|>"),
    "kimi-k2": ("kimi", "[BOS]", "<|im_end|>"),
    "glm4.6": ("glm", None, "<|endoftext|>"),
    "command-r": ("command", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "ling": ("prefix", "<|startoftext|>", "<|endoftext|>"),
    "features": ("prefix", "<|startoftext|>", "<|endoftext|>"),
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


class Case:
    """A template with its tokenizer."""

    def __init__(self, name):
        self.kind, self.bos, self.eos = TEMPLATES[name]
        self.source = (HERE / name / "chat_template.jinja").read_text()
        path = HERE / "tokenizers" / f"{self.kind}.json"
        self.json = json.loads(path.read_text())
        self.added = {token["content"]: token for token in self.json["added_tokens"]}
        self.specials = [token for token, flags in self.added.items() if flags["special"]]
        of = {t.content: t for t in kinds.Tokenizer.from_file(str(path)).get_added_tokens_decoder().values()}
        named = {key: of[value] for key, value in (("bos_token", self.bos), ("eos_token", self.eos)) if value}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False, **named)
        self.tokenizer.chat_template = self.source
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        if backend["added_tokens"] != self.json["added_tokens"]:
            raise SystemExit(f"{name}: transformers changed the added tokens")
        self.hidden, self.private = self._hidden()

    def _hidden(self):
        """The tokenizer with its special tokens spelled with private characters."""
        changed, private = json.loads(json.dumps(self.json)), {}
        for i, token in enumerate(changed["added_tokens"]):
            if token["special"]:
                # Two characters, because a model would find one in its vocabulary by itself.
                private[token["content"]] = token["content"] = chr(0xF0000 + i) + chr(0x100000 + i)
        vocab = changed["model"]["vocab"]
        changed["model"]["vocab"] = {private.get(piece, piece): id for piece, id in vocab.items()}
        if "unk_token" in changed["model"]:
            changed["model"]["unk_token"] = private.get(changed["model"]["unk_token"], changed["model"]["unk_token"])
        changed["post_processor"] = None
        return kinds.Tokenizer.from_str(json.dumps(changed)), private

    def variables(self, conversation):
        names = {"bos_token": self.bos, "eos_token": self.eos}
        fixed = {"tools": conversation.get("tools"), "documents": None, "add_generation_prompt": conversation.get("prompt", True)}
        return {name: value for name, value in names.items() if value} | fixed

    def render(self, conversation):
        """The text with its origins, checked against that of transformers."""
        # As transformers does it first.
        messages = [{key: value for key, value in message.items() if value is not None} for message in conversation["messages"]]
        variables = self.variables(conversation)
        texts, _ = chat_template_utils.render_jinja_template([messages], chat_template=self.source, **variables)
        tracked = provenance.render(self.source, messages, variables, NOW)
        if str.__str__(tracked) != texts[0]:
            raise SystemExit(f"two renderings differ:\n{texts[0]!r}\n{str.__str__(tracked)!r}")
        return tracked

    def own_ids(self, tracked, roles):
        """The ids with every special token that the template wrote, and no other."""
        written, at = [], 0
        plain = str.__str__(tracked)
        longest_first = sorted(self.private, key=len, reverse=True)
        while at < len(plain):
            for token in longest_first:
                if plain.startswith(token, at) and writes(token, tracked.at[at : at + len(token)], roles):
                    written.append((self.private[token], token))
                    at += len(token)
                    break
            else:
                written.append((plain[at], None))
                at += 1
        # A token that is not recognised where it stands, because of its flags, is text.
        while True:
            encoding = self.hidden.encode("".join(piece for piece, _ in written), add_special_tokens=False)
            found = {at for (start, end), id in zip(encoding.offsets, encoding.ids) for at in range(start, end) if self._is_special(id)}
            starts = itertools.accumulate((len(piece) for piece, _ in written), initial=0)
            lost = next((i for i, ((_, token), at) in enumerate(zip(written, starts)) if token and at not in found), None)
            if lost is None:
                return encoding.ids
            written[lost : lost + 1] = [(character, None) for character in written[lost][1]]

    def _is_special(self, id):
        return any(flags["id"] == id and flags["special"] for flags in self.added.values())

    def template_ids(self, conversation):
        messages, tools = conversation["messages"], conversation.get("tools")
        prompt = conversation.get("prompt", True)
        return self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=True, return_dict=False)


def writes(token, at, roles):
    """Whether these characters may be a special token: the template's, or a tag in a content of the system or the assistant."""
    if all(origin is None for origin in at):
        return True
    what, message = at[0] or (None, None)
    return token in TAGS and what == "content" and roles[message] in ("system", "assistant") and all(origin == at[0] for origin in at)


def ranges(tracked):
    found, at = [], 0
    for character, origin in zip(str.__iter__(tracked), tracked.at):
        end = at + len(character.encode())
        if origin and origin[0] == "content":
            if found and found[-1][0] == origin[1] and found[-1][2] == at:
                found[-1][2] = end
            else:
                found.append([origin[1], at, end])
        at = end
    return found


def flattened(conversation):
    """The conversation with every content as one text, a line end between the parts."""

    def flat(content):
        return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""

    return conversation | {"messages": [message | {"content": flat(message["content"])} for message in conversation["messages"]]}


def row(case, conversation, neutral=None):
    """What one template makes of one conversation."""
    try:
        tracked = case.render(conversation)
        # A template that knows no parts may print Python's spelling of the list. That is no prompt: as where it fails.
        if "[{'type': " not in tracked:
            return of_text(case, conversation, tracked, neutral)
        refusal = {"error": "the template prints a list of parts", "raised": False}
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"error": str(error), "raised": True}
        refusal = {"error": f"{type(error).__name__}: {error}", "raised": False}
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        refusal = {"error": f"{type(error).__name__}: {error}", "raised": False}
    flat = flattened(conversation)
    if flat != conversation:
        refusal |= row(case, flat, neutral and flattened(neutral))
    return refusal


def of_text(case, conversation, tracked, neutral):
    roles = [message["role"] for message in conversation["messages"]]
    ids = case.own_ids(tracked, roles)
    made = {"text": str.__str__(tracked), "ids": ids}
    if neutral:
        made["control"] = [id for id in case.template_ids(neutral) if case._is_special(id)]
        if made["control"] != [id for id in ids if case._is_special(id)]:
            raise SystemExit("the control tokens differ from those of the neutral conversation")
    elif conversation["messages"] and case.template_ids(conversation) != ids:
        raise SystemExit("the two ways to the ids differ")
    made["ranges"] = ranges(tracked)
    decoded = case.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    if decoded != made["text"]:
        made["decoded"] = decoded
    return made


def corpus():
    sources = [path.read_text() for path in sorted(HERE.glob("*/chat_template.jinja"))]
    return [kinds.SENTENCES * 8, *sources]


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    logging.disable(logging.WARNING)
    chat_template_utils.datetime = Clock
    (HERE / "tokenizers").mkdir(exist_ok=True)
    for kind, tokenizer in kinds.build(corpus()).items():
        (HERE / "tokenizers" / f"{kind}.json").write_text(compact(json.loads(tokenizer.to_str())) + "\n")
    index = {"today": NOW.date().isoformat(), "templates": {}, "conversations": conversations(), "injected": {}}
    lines = []
    for name in TEMPLATES:
        case = Case(name)
        index["templates"][name] = {"tokenizer": case.kind, "bos": case.bos, "eos": case.eos}
        typed = injected(case.specials, case.specials)
        index["injected"][case.kind] = typed
        words = ["word"] * len(case.specials)
        neutral = injected(words, [token if token in TAGS else "word" for token in case.specials])
        rows = [(key, row(case, value)) for key, value in index["conversations"].items()]
        rows += [(key, row(case, value, neutral[key])) for key, value in typed.items()]
        lines += [compact({"template": name, "conversation": key, **made}) for key, made in rows]
        print(f"{name:18} {case.kind:14} refuses {' '.join(key for key, made in rows if 'error' in made)}")
    (HERE / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=1) + "\n")
    (HERE / "golden.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
