"""The conversations of make_templates.py, those in which nobody types special tokens and those in which somebody does."""


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def call(arguments, name="get_weather", id="a1b2c3d4e"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "days": {"type": "integer", "description": "How many", "minimum": 1},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "get_time", "description": 'It\'s "now", <UTC>.', "parameters": {"type": "object", "properties": {}}},
}


def conversations():
    """The conversations without injected tokens: name, then what it holds and says beside an added generation prompt."""
    return {
        "plain": dict(messages=[said("user", "How far is the moon?")]),
        "turns": dict(
            messages=[
                said("system", "You are a helpful assistant."),
                said("user", "Hi, what's 17 + 25?"),
                said("assistant", "It is 42."),
                said("user", "And 1234567 / 3?"),
            ]
        ),
        "system": dict(messages=[said("system", "Nobody is here.")]),
        "nothing": dict(messages=[]),
        "tools": dict(
            tools=[WEATHER, CLOCK],
            messages=[
                said("system", "Use tools."),
                said("user", "Weather in Zürich?"),
                said("assistant", "", tool_calls=[call({"city": "Zürich", "days": 2})]),
                said("tool", "21.5 °C, <clear> & dry", tool_call_id="a1b2c3d4e", name="get_weather"),
                said("assistant", "21.5 °C and clear."),
                said("user", "Thanks!"),
            ],
        ),
        "parallel": dict(
            tools=[WEATHER],
            messages=[
                said("user", "Bern and Zürich?"),
                said(
                    "assistant",
                    "",
                    tool_calls=[
                        call({"city": "Bern"}),
                        call({"city": "Zürich", "exact": True, "at": None, "days": [1.5, {"a": "ä\n"}]}, id="f6g7h8i9j"),
                    ],
                ),
                said("tool", "rain", tool_call_id="a1b2c3d4e"),
                said("tool", '{"sky": "clear"}', tool_call_id="f6g7h8i9j"),
            ],
        ),
        "parts": dict(
            messages=[
                said("user", [{"type": "text", "text": 'What is this? It\'s "here":\n'}, {"type": "text", "text": " two  words "}]),
                said("assistant", "Text in parts."),
                said("user", [{"type": "text", "text": "Right."}]),
            ]
        ),
        "null": dict(
            tools=[WEATHER],
            messages=[
                said("user", "Weather in Bern?"),
                said("assistant", None, tool_calls=[call('{"city": "Bern"}')]),
                said("tool", "rain", tool_call_id="a1b2c3d4e", name="get_weather"),
            ],
        ),
        "spaces": dict(
            messages=[
                said("system", "  padded \n"),
                said("user", "\n\n  two\tlines  \r\n\r\nmore\u00a0 \t\n"),
                said("assistant", ""),
                said("user", " "),
                said("assistant", "\n\nok\n "),
                said("user", "    x    y\n\n\n\nz"),
            ]
        ),
        "unicode": dict(
            messages=[
                said("user", "e\u0301 \u00e9 \ufb01 \u0130stanbul 👩\u200d🚀🇨🇭 东京は? مرحبا \u2028\ufeff\u0000\u1e9b\u0323 ﷽ 😀"),
                said("assistant", "Ça va, “naïve” — Ωmega ½ ①"),
                said("user", "ok 🙂"),
            ]
        ),
        "thoughts": dict(
            prompt=False,
            messages=[
                said("user", "2 + 2?"),
                said("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
                said("user", "And 3 + 3?"),
                said("assistant", "<thinking>Three, <reflection>yes.</reflection></thinking><think>\nSix, I think.</think>\n<output>6"),
            ],
        ),
    }


def injected(specials, own):
    """The conversations in which somebody types special tokens: `specials` are their spellings, or what stands for them, in texts of users
    and tools, `own` in those of the system and the assistant."""
    frames = ["a{}b", " {} ", "\n{}\n", "{}{}", "«{}»"]
    everything = "".join(frames[i % 5].replace("{}", t) for i, t in enumerate(specials))
    first, last = specials[0], specials[-1]
    own_first, own_last = own[0], own[-1]
    half = len(last) // 2
    return {
        "injected": dict(
            messages=[
                said("user", "Say" + everything),
                said("assistant", f"I say{own_last} that."),
                said("user", last),
                said("assistant", own_first),
                said("user", f"{first} hi{last}"),
            ]
        ),
        "injected-system": dict(messages=[said("system", f" {own_first}Be {own_last} kind.{own_last}"), said("user", "Hello.")]),
        "injected-tools": dict(
            tools=[WEATHER],
            messages=[
                said("system", f"{own_last}Use {own_first} tools."),
                said("user", f"Weather in{first}?"),
                said("assistant", "I look.", tool_calls=[call({"city": f"B{first}ern{last}", f"k{last}": [f"{first}"]})]),
                said("tool", f'rain{last}{first} "x" {everything}', tool_call_id="a1b2c3d4e", name="get_weather"),
                said("assistant", "Rain."),
                said("user", f"{last}Thanks{first}"),
            ],
        ),
        "injected-parts": dict(
            messages=[
                said("user", [{"type": "text", "text": f"half {last[:half]}"}, {"type": "text", "text": f"{last[half:]} whole {first}"}]),
                said("assistant", "Text."),
                said("user", [{"type": "text", "text": last}]),
            ]
        ),
    }
