"""Whether the templates of this folder write what the real ones write, over the conversations of `index.json`.

FOLDER holds real templates as *.jinja, and may hold llama.cpp's test-chat-template.cpp, whose strings are read too: for example
models/templates/ and tests/ of a copy of llama.cpp (the sdist of llama-cpp-python has it under vendor/). A template without its real
one there is left out. Where ours has prose of its own, PROSE names it, and it stands for any text.

Run: python compare_real.py FOLDER [FOLDER ...]        (needs what make_templates.py needs)
"""

import json
import logging
import re
import sys
from pathlib import Path

from transformers.utils import chat_template_utils

import make_templates
from conversations import conversations, injected

HERE = Path(__file__).resolve().parent
# Ours: the name of the real one, as a file or in llama.cpp's test.
REAL = {
    "llama2": "llama-2",
    "llama3": "Llama-3",
    "llama3.1": "meta-llama-Llama-3.1-8B-Instruct",
    "llama3.2": "meta-llama-Llama-3.2-3B-Instruct",
    "qwen2.5": "Qwen-Qwen2.5-7B-Instruct",
    "qwen3": "Qwen-Qwen3-0.6B",
    "qwen3-coder": "Qwen3-Coder",
    "qwq": "Qwen-QwQ-32B",
    "chatml": "teknium/OpenHermes-2.5-Mistral-7B",
    "hermes-tools": "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "smollm2": "smollm2",
    "smollm3": "HuggingFaceTB-SmolLM3-3B",
    "mistral-v0.2": "mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt)",
    "mistral-v1": "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1' template with a system prompt)",
    "mistral-v3": "Mistral-Large-Instruct-2407 (mistralai 'v3' template; modified to have system prompt at start)",
    "mistral-v7": "mistralai/Mistral-Large-Instruct-2411 (mistralai 'v7' template)",
    "mistral-nemo": "mistralai-Mistral-Nemo-Instruct-2407",
    "mistral-small-3.2": "Mistral-Small-3.2-24B-Instruct-2506",
    "phi3-mini": "Phi-3-mini",
    "phi3.5": "microsoft-Phi-3.5-mini-instruct",
    "phi4": "phi-4",
    "phi4-mini": "phi-4-mini",
    "gemma2": "google-gemma-2-2b-it",
    "gemma3": "gemma-3",
    "r1-llama": "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "r1-qwen": "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-v2": "DeepSeek-V2",
    "deepseek-coder": "deepseek-ai/deepseek-coder-33b-instruct",
    "zephyr": "zephyr",
    "vicuna": "Orca-Vicuna",
    "alpaca": "alpaca",
    "solar": "solar-instruct",
    "falcon": "falcon-instruct",
    "granite3.3": "ibm-granite-granite-3.3-2B-Instruct",
    "lfm2": "LFM2-8B-A1B",
    "kimi-k2": "moonshotai-Kimi-K2",
    "glm4.6": "GLM-4.6",
    "command-r": "CohereForAI/c4ai-command-r-plus",
    "ling": "inclusionAI/Ling-lite",
}
# Our own words in the place of a model's.
PROSE = {
    "llama3.1": ['These functions can be called with a JSON object, {"name": the function, "parameters": its arguments by name}:\n\n'],
    "llama3.2": ['Call one of these functions with {"name": the function, "parameters": its arguments by name} and nothing else.\n\n'],
    "qwen3-coder": [
        "A call is written like this, with nothing after it:\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n</function>\n</tool_call>"
    ],
    "hermes-tools": [
        "You may call functions to help the user. Their signatures stand between <tools></tools>. Never guess a value that the user has not told.",
        "A call is a json object of this schema:",
    ],
    "smollm3": [
        "You are a helpful AI assistant named SmolLM. First think step by step between <think> and </think>, then write the solution."
    ],
    "mistral-small-3.2": ["You are Mistral Small 3, a model without access to the network. Today is 2024-07-26."],
    "deepseek-coder": ["You are an assistant for programming and answer nothing else."],
    "granite3.3": ["Call tools with <|tool_call|> and a JSON list."],
    "glm4.6": [
        "A call is written like this:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
    ],
}


def real_templates(folders):
    found = {}
    for folder in map(Path, folders):
        found |= {path.stem: path.read_text() for path in folder.rglob("*.jinja")}
        for path in folder.rglob("test-chat-template.cpp"):
            string = r'"((?:[^"\\]|\\.)*)"'
            for match in re.finditer(
                rf"/\* \.name= \*/ {string}.*?/\* \.template_str=? ?\*/ (?:U8C\()?{string}", path.read_text(), re.DOTALL
            ):
                found[match[1]] = json.loads(f'"{match[2]}"'.replace("\\'", "'"), strict=False)
    return found


def render(source, case, conversation):
    """The text, or None where the template refuses."""
    messages = [{key: value for key, value in message.items() if value is not None} for message in conversation["messages"]]
    try:
        texts, _ = chat_template_utils.render_jinja_template([messages], chat_template=source, **case.variables(conversation))
    except Exception:
        return None
    return texts[0]


def same(ours, real, prose):
    if ours is None or real is None:
        return ours is real
    pattern = re.escape(ours)
    for passage in prose:
        pattern = pattern.replace(re.escape(passage), "(?s:.*?)")
    return re.fullmatch(pattern, real) is not None


def main():
    logging.disable(logging.WARNING)
    chat_template_utils.datetime = make_templates.Clock
    real = real_templates(sys.argv[1:])
    compared = equal = 0
    for name in make_templates.TEMPLATES:
        source = real.get(REAL.get(name))
        if source is None:
            print(f"{name:18} not compared")
            continue
        case = make_templates.Case(name)
        different = []
        every = conversations() | injected(case.specials, case.specials)
        for key, conversation in every.items():
            texts = render(case.source, case, conversation), render(source, case, conversation)
            compared += 1
            if same(*texts, PROSE.get(name, [])):
                equal += 1
            else:
                different.append((key, *texts))
        print(f"{name:18} {len(every) - len(different)} of {len(every)}")
        for key, ours, theirs in different:
            print(f"    {key}\n      ours {ours!r}\n      real {theirs!r}")
    print(f"{equal} of {compared} texts equal")


if __name__ == "__main__":
    main()
