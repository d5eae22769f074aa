"""Strings that know where each of their characters came from, and a Jinja environment that keeps them.

A second implementation of what the renderer of crates/reflect-text does, by another method: a subclass of `str`. Its texts are checked
against those of transformers.

(needs jinja2)
"""

import datetime
import itertools
import json
import string

import jinja2
import jinja2.ext
import jinja2.runtime


class Text(str):
    """A string with the origin of each character in `at`: None for the template, else (what, index of the message)."""

    def __str__(self):
        return self

    def __add__(self, other):
        return join([self, other])

    def __radd__(self, other):
        return join([other, self])

    def __mul__(self, times):
        return join([self] * times)

    def __rmod__(self, pattern):
        before, after = pattern.split("%s")
        return join([before, self, after])

    def __getitem__(self, key):
        return text(str.__getitem__(self, key), self.at[key] if isinstance(key, slice) else [self.at[key]])

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def strip(self, chars=None):
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars=None):
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars=None):
        return self[: len(str.rstrip(self, chars))]

    def split(self, *args):
        return self._located(str.split(self, *args))

    def rsplit(self, *args):
        return self._located(str.rsplit(self, *args))

    def splitlines(self, *args):
        return self._located(str.splitlines(self, *args))

    def _located(self, pieces):
        found, cursor = [], 0
        for piece in pieces:
            cursor = str.index(self, piece, cursor)
            found.append(self[cursor : cursor + len(piece)])
            cursor += len(piece)
        return found

    def replace(self, old, new, count=-1):
        # What stands for a character comes from where that character came from.
        if not old:
            raise NotImplementedError("an empty text cannot be replaced here")
        parts, cursor = [], 0
        while count != 0 and (hit := str.find(self, old, cursor)) >= 0:
            parts += [self[cursor:hit], text(new, [rewritten(self.at[hit])] * len(new))]
            cursor = hit + len(old)
            count -= 1
        return join(parts + [self[cursor:]])

    def _same_length(self, other):
        if len(other) != len(self):
            raise NotImplementedError("this change of case changes the length")
        return text(other, [at if c == o else rewritten(at) for c, o, at in zip(str.__iter__(self), str.__iter__(other), self.at)])

    def upper(self):
        return escaped(self, str.upper)

    def lower(self):
        return self._same_length(str.lower(self))

    def title(self):
        return self._same_length(str.title(self))

    def capitalize(self):
        return self._same_length(str.capitalize(self))


def text(value, at):
    value = Text(value)
    value.at = list(at)
    return value


def join(parts):
    parts = [as_text(part) for part in parts]
    return text("".join(parts), itertools.chain.from_iterable(origins(part) for part in parts))


def rewritten(origin):
    """Still somebody's text, but not as it was given."""
    return origin and ("rewritten", origin[1])


def as_text(value):
    return value if isinstance(value, str) else python_repr(value) if isinstance(value, (dict, list)) else str(value)


def origins(value):
    return value.at if isinstance(value, Text) else [None] * len(value)


def mark(value, origin):
    """The value with every string in it, the keys included, coming from `origin`."""
    if isinstance(value, str):
        return text(value, [origin] * len(value))
    if isinstance(value, list):
        return [mark(item, origin) for item in value]
    if isinstance(value, dict):
        return {mark(key, origin): mark(item, origin) for key, item in value.items()}
    return value


def mark_message(message, index):
    """Roles and the types of parts choose what the template writes; everything else is somebody's text."""
    marked = {key: mark(value, ("other", index)) for key, value in message.items() if key not in ("role", "content")}
    content = message.get("content")
    if isinstance(content, list):
        marked["content"] = [
            {key: value if key == "type" else mark(value, ("content", index)) for key, value in part.items()} for part in content
        ]
    elif content is not None:
        marked["content"] = mark(content, ("content", index))
    # The order of the keys is that of the message.
    return {key: message[key] if key == "role" else marked[key] for key in message if key == "role" or key in marked}


def escaped(value, escape):
    parts = []
    for character, at in zip(str.__iter__(value), origins(value)):
        becomes = escape(character)
        parts.append(text(becomes, [at if becomes == character else rewritten(at)] * len(becomes)))
    return join(parts)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False, depth=0):
    comma, colon = separators or (", " if indent is None else ",", ": ")

    def inner(item):
        return to_json(item, ensure_ascii, indent, separators, sort_keys, depth + 1)

    def listed(opens, items, closes):
        if not items:
            return opens + closes
        line = "" if indent is None else "\n" + " " * (indent * (depth + 1))
        end = "" if indent is None else "\n" + " " * (indent * depth)
        parts = [opens]
        for i, item in enumerate(items):
            parts += [comma if i else "", line, item]
        return join(parts + [end, closes])

    if isinstance(value, str):
        return join(['"', escaped(value, lambda c: json.dumps(c, ensure_ascii=ensure_ascii)[1:-1]), '"'])
    if isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        return listed("{", [join([inner(key), colon, inner(item)]) for key, item in items], "}")
    if isinstance(value, (list, tuple)):
        return listed("[", [inner(item) for item in value], "]")
    return json.dumps(value)


def python_repr(value):
    if isinstance(value, str):
        quote = repr(str.__str__(value))[0]
        return join([quote, escaped(value, lambda c: "\\" + c if c == quote else c if c in "'\"" else repr(c)[1:-1]), quote])
    if isinstance(value, dict):
        return join(["{", *separated([join([python_repr(k), ": ", python_repr(v)]) for k, v in value.items()]), "}"])
    if isinstance(value, list):
        return join(["[", *separated([python_repr(item) for item in value]), "]"])
    return repr(value)


def separated(parts):
    return [piece for i, part in enumerate(parts) for piece in ([", "] if i else []) + [part]]


def formatted(pattern, *values):
    rest = iter(values)
    parts = []
    for before, field, _, _ in string.Formatter().parse(pattern):
        parts += [before, "" if field is None else next(rest)]
    return join(parts)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

    def _print(self, caller):
        return caller()


class Tracking(jinja2.Environment):
    concat = staticmethod(join)

    def getattr(self, obj, attribute):
        if isinstance(obj, str) and attribute == "format":
            return lambda *values: formatted(obj, *values)
        if isinstance(obj, str) and attribute == "join":
            return lambda parts: join_with(parts, obj)
        return super().getattr(obj, attribute)


def join_with(parts, separator="", attribute=None):
    parts = [part[attribute] if attribute else part for part in parts]
    return join([piece for i, part in enumerate(parts) for piece in ([separator] if i else []) + [part]])


def environment(now: datetime.datetime):
    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    made = Tracking(trim_blocks=True, lstrip_blocks=True, finalize=as_text, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters |= {
        "tojson": to_json,
        "join": join_with,
        "safe": lambda value: value,
        "string": as_text,
        "trim": lambda value: as_text(value).strip(),
    }
    made.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    return made


# The `~` operator.
jinja2.runtime.str_join = join


def render(source, messages, variables, now):
    """The text of a conversation, as a `Text`."""
    marked = [mark_message(message, i) for i, message in enumerate(messages)]
    rendered = environment(now).from_string(source).render(messages=marked, **variables)
    return rendered if isinstance(rendered, Text) else text(rendered, origins(rendered))
