//! Python's methods of strings, dictionaries and lists.

use std::ops::Range;
use std::rc::Rc;

use super::arguments::Arguments;
use super::format;
use super::interpreter::Context;
use super::text::{Text, TextBuilder};
use super::value::{Outcome, Value, is_printable, is_space};

/// Calls a method of a value.
pub(super) fn call(context: &Context, on: &Value, name: &str, mut args: Arguments) -> Outcome<Value> {
    let result = match on {
        Value::Text(text) => of_text(context, text, name, &mut args)?,
        Value::Map(fields) => of_map(on, fields, name, &mut args)?,
        Value::List(items) => of_list(items, name, &mut args)?,
        _ => None,
    };
    let result = result.ok_or_else(|| format!("'{}' object has no attribute '{name}'", on.kind()))?;
    args.finish(&format!("{name}()"))?;
    Ok(result)
}

fn of_map(
    map: &Value,
    fields: &Rc<Vec<(Value, Value)>>,
    name: &str,
    args: &mut Arguments,
) -> Outcome<Option<Value>> {
    Ok(Some(match name {
        "get" => {
            let key = args.need(0, "key")?;
            let other = args.take(1, "default").unwrap_or(Value::None);
            map.field(&key).unwrap_or(other)
        }
        "items" => Value::list(
            fields.iter().map(|(key, value)| Value::list(vec![key.clone(), value.clone()])).collect(),
        ),
        "keys" => Value::list(fields.iter().map(|(key, _)| key.clone()).collect()),
        "values" => Value::list(fields.iter().map(|(_, value)| value.clone()).collect()),
        "copy" => map.clone(),
        _ => return Ok(None),
    }))
}

fn of_list(items: &Rc<Vec<Value>>, name: &str, args: &mut Arguments) -> Outcome<Option<Value>> {
    Ok(Some(match name {
        "index" => {
            let wanted = args.need(0, "value")?;
            let at = items.iter().position(|item| item.equals(&wanted));
            Value::Int(at.ok_or("the value is not in the list")? as i128)
        }
        "count" => {
            let wanted = args.need(0, "value")?;
            Value::Int(items.iter().filter(|item| item.equals(&wanted)).count() as i128)
        }
        "copy" => Value::List(items.clone()),
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" => {
            return Err(format!("a template may not change a list, as {name}() would"));
        }
        _ => return Ok(None),
    }))
}

fn of_text(context: &Context, text: &Text, name: &str, args: &mut Arguments) -> Outcome<Option<Value>> {
    let held = text.as_str();
    let one = |range: Range<usize>| Value::Text(text.slice(range));
    let many = |ranges: Vec<Range<usize>>| Value::list(ranges.into_iter().map(one).collect());
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.take_text(0, "chars")?;
            let chars = chars.as_ref().map(Text::as_str);
            one(stripped(held, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let separator = args.take_text(0, "sep")?;
            let most = args.take_int(1, "maxsplit")?.and_then(|count| usize::try_from(count).ok());
            let most = most.unwrap_or(usize::MAX);
            match (&separator, name) {
                (Some(separator), _) if separator.is_empty() => return Err("the separator is empty".into()),
                (Some(separator), "split") => many(split(held, separator.as_str(), most)),
                (Some(separator), _) => many(split_back(held, separator.as_str(), most)),
                (None, "split") => many(split_space(held, most)),
                (None, _) => many(split_space_back(held, most)),
            }
        }
        "splitlines" => {
            let keep = args.take_switch(0, "keepends");
            many(lines(held, keep))
        }
        "partition" | "rpartition" => {
            let separator = args.need_text(0, "sep")?;
            let back = name == "rpartition";
            let found = if back { held.rfind(separator.as_str()) } else { held.find(separator.as_str()) };
            let whole = 0..held.len();
            let empty = 0..0;
            many(match (found, back) {
                (Some(at), _) => vec![0..at, at..at + separator.len(), at + separator.len()..held.len()],
                (None, false) => vec![whole, empty.clone(), empty],
                (None, true) => vec![empty.clone(), empty, whole],
            })
        }
        "startswith" | "endswith" => {
            let wanted = args.need(0, "prefix")?;
            let within = &held[bounds(held, args, 1)?];
            let fits = |part: &Value| match (part, name) {
                (Value::Text(part), "startswith") => Ok(within.starts_with(part.as_str())),
                (Value::Text(part), _) => Ok(within.ends_with(part.as_str())),
                (other, _) => Err(format!("{name}() takes str, not {}", other.kind())),
            };
            let mut any = false;
            match &wanted {
                Value::List(parts) => {
                    for part in parts.iter() {
                        any |= fits(part)?;
                    }
                }
                part => any = fits(part)?,
            }
            Value::Bool(any)
        }
        "find" | "rfind" | "index" | "rindex" => {
            let part = args.need_text(0, "sub")?;
            let range = bounds(held, args, 1)?;
            let within = &held[range.clone()];
            let back = name.starts_with('r');
            let found = if back { within.rfind(part.as_str()) } else { within.find(part.as_str()) };
            match found {
                Some(at) => Value::Int(held[..range.start + at].chars().count() as i128),
                None if name.ends_with("find") => Value::Int(-1),
                None => return Err("substring not found".into()),
            }
        }
        "count" => {
            let part = args.need_text(0, "sub")?;
            let within = &held[bounds(held, args, 1)?];
            Value::Int(within.matches(part.as_str()).count() as i128)
        }
        "replace" => {
            let old = args.need_text(0, "old")?;
            let new = args.need_text(1, "new")?;
            let count = args.take_int(2, "count")?.and_then(|count| usize::try_from(count).ok());
            Value::Text(text.replace(old.as_str(), &new, count))
        }
        "removeprefix" => {
            let prefix = args.need_text(0, "prefix")?;
            one(if held.starts_with(prefix.as_str()) { prefix.len()..held.len() } else { 0..held.len() })
        }
        "removesuffix" => {
            let suffix = args.need_text(0, "suffix")?;
            let cut = if held.ends_with(suffix.as_str()) { suffix.len() } else { 0 };
            one(0..held.len() - cut)
        }
        "join" => {
            let items = args.need(0, "iterable")?.items()?;
            let mut builder = TextBuilder::default();
            for (index, item) in items.iter().enumerate() {
                let Value::Text(item) = item else {
                    return Err(format!(
                        "sequence item {index}: expected str instance, {} found",
                        item.kind()
                    ));
                };
                if index > 0 {
                    builder.push(text);
                }
                builder.push(item);
            }
            Value::Text(builder.finish())
        }
        "upper" => Value::Text(upper(text)),
        "lower" => Value::Text(lower(text)),
        "casefold" => Value::Text(lower(text).replace("ß", &"ss".into(), None)),
        "swapcase" => Value::Text(text.map_characters(|_, c, to| match c.is_uppercase() {
            true => to.extend(c.to_lowercase()),
            false => to.extend(c.to_uppercase()),
        })),
        "capitalize" => Value::Text(capitalized(text)),
        "title" => Value::Text(titled(text)),
        "center" | "ljust" | "rjust" | "zfill" => {
            let width = args.need(0, "width")?.as_int().ok_or("the width must be int")?;
            let fill = if name == "zfill" { None } else { args.take_text(1, "fillchar")? };
            let fill = fill.unwrap_or_else(|| if name == "zfill" { "0" } else { " " }.into());
            if fill.as_str().chars().count() != 1 {
                return Err("the fill character must be exactly one character long".into());
            }
            Value::Text(padded(context, text, name, width, &fill)?)
        }
        "expandtabs" => {
            let size = args.take_int(0, "tabsize")?.unwrap_or(8).clamp(0, 1000) as usize;
            let mut column = 0;
            Value::Text(text.map_characters(|_, c, to| match c {
                '\t' if size > 0 => {
                    let count = size - column % size;
                    to.extend(std::iter::repeat_n(' ', count));
                    column += count;
                }
                '\t' => {}
                '\n' | '\r' => {
                    column = 0;
                    to.push(c);
                }
                _ => {
                    column += 1;
                    to.push(c);
                }
            }))
        }
        "format" => Value::Text(format::braces(context, text, args)?),
        "isalnum" => every(held, char::is_alphanumeric),
        "isalpha" => every(held, char::is_alphabetic),
        "isdecimal" | "isdigit" | "isnumeric" => every(held, char::is_numeric),
        "isspace" => every(held, is_space),
        "isascii" => Value::Bool(held.is_ascii()),
        "isprintable" => Value::Bool(held.chars().all(is_printable)),
        "isidentifier" => {
            let mut characters = held.chars();
            let first = characters.next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Value::Bool(first && characters.all(|c| c.is_alphanumeric() || c == '_'))
        }
        "islower" => {
            Value::Bool(held.chars().any(char::is_lowercase) && !held.chars().any(char::is_uppercase))
        }
        "isupper" => {
            Value::Bool(held.chars().any(char::is_uppercase) && !held.chars().any(char::is_lowercase))
        }
        "istitle" => Value::Bool(held.chars().any(char::is_uppercase) && titled(text).as_str() == held),
        _ => return Ok(None),
    }))
}

fn every(text: &str, of: impl Fn(char) -> bool) -> Value {
    Value::Bool(!text.is_empty() && text.chars().all(of))
}

/// What is left of a text without white space, or the given characters, at its ends.
pub(super) fn stripped(text: &str, chars: Option<&str>, left: bool, right: bool) -> Range<usize> {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let start = if left { text.len() - text.trim_start_matches(goes).len() } else { 0 };
    let end = if right { text.trim_end_matches(goes).len() } else { text.len() };
    start..end.max(start)
}

/// The bytes of the characters from an optional start to an optional end, the arguments at `place`
/// and after it.
fn bounds(text: &str, args: &mut Arguments, place: usize) -> Outcome<Range<usize>> {
    let (start, end) = (args.take_int(place, "start")?, args.take_int(place + 1, "end")?);
    if start.is_none() && end.is_none() {
        return Ok(0..text.len());
    }
    let places = places(text);
    let count = places.len() as i128 - 1;
    let at =
        |index: i128| (if index < 0 { index.saturating_add(count) } else { index }).clamp(0, count) as usize;
    let (start, end) = (at(start.unwrap_or(0)), at(end.unwrap_or(count)));
    Ok(places[start]..places[end.max(start)])
}

/// The byte at which each character begins, and the end.
pub(super) fn places(text: &str) -> Vec<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).collect()
}

fn split(text: &str, separator: &str, most: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(separator).take(most) {
        parts.push(start..at);
        start = at + separator.len();
    }
    parts.push(start..text.len());
    parts
}

fn split_back(text: &str, separator: &str, most: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut end = text.len();
    for (at, _) in text.rmatch_indices(separator).take(most) {
        parts.push(at + separator.len()..end);
        end = at;
    }
    parts.push(0..end);
    parts.reverse();
    parts
}

fn split_space(text: &str, most: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut at = stripped(text, None, true, false).start;
    while at < text.len() {
        let word = text[at..].find(is_space).map_or(text.len(), |length| at + length);
        if parts.len() == most {
            parts.push(at..text.len());
            break;
        }
        parts.push(at..word);
        at = word + stripped(&text[word..], None, true, false).start;
    }
    parts
}

fn split_space_back(text: &str, most: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut end = stripped(text, None, false, true).end;
    while end > 0 {
        let before = text[..end].char_indices().rev().find(|(_, c)| is_space(*c));
        let word = before.map_or(0, |(at, c)| at + c.len_utf8());
        if parts.len() == most {
            parts.push(0..end);
            break;
        }
        parts.push(word..end);
        end = stripped(&text[..word], None, false, true).end;
    }
    parts.reverse();
    parts
}

fn lines(text: &str, keep: bool) -> Vec<Range<usize>> {
    let breaks = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut parts = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let Some(length) = text[start..].find(breaks) else {
            parts.push(start..text.len());
            break;
        };
        let end = start + length;
        let rest = &text[end..];
        let after = if rest.starts_with("\r\n") { 2 } else { rest.chars().next().map_or(0, char::len_utf8) };
        parts.push(start..if keep { end + after } else { end });
        start = end + after;
    }
    parts
}

pub(super) fn upper(text: &Text) -> Text {
    text.map_characters(|_, c, to| to.extend(c.to_uppercase()))
}

/// Lower case. A capital sigma at the end of a word becomes the final one, which only the whole
/// text tells.
pub(super) fn lower(text: &Text) -> Text {
    let whole = text.as_str().to_lowercase();
    let mut rest = whole.chars();
    text.map_characters(|_, c, to| to.extend(rest.by_ref().take(c.to_lowercase().count())))
}

/// The first character in upper case, the others in lower case.
pub(super) fn capitalized(text: &Text) -> Text {
    let first = text.as_str().chars().next().map_or(0, char::len_utf8);
    upper(&text.slice(0..first)).concat(&lower(&text.slice(first..text.len())))
}

/// Python's `str.title`: a letter after something else in upper case, the others in lower case.
fn titled(text: &Text) -> Text {
    let mut in_word = false;
    text.map_characters(|_, c, to| {
        match in_word {
            true => to.extend(c.to_lowercase()),
            false => to.extend(c.to_uppercase()),
        }
        in_word = c.is_alphabetic();
    })
}

/// A text filled up to a width.
pub(super) fn padded(context: &Context, text: &Text, how: &str, width: i128, fill: &Text) -> Outcome<Text> {
    let length = text.as_str().chars().count() as i128;
    let missing = usize::try_from(width - length).unwrap_or(0);
    context.spend(missing)?;
    let (left, right) = match how {
        "ljust" => (0, missing),
        // Python puts the odd one to the left where the width is odd.
        "center" => {
            let left = missing / 2 + (missing & width as usize & 1);
            (left, missing - left)
        }
        _ => (missing, 0),
    };
    let sign = usize::from(how == "zfill" && text.as_str().starts_with(['+', '-']));
    let mut builder = TextBuilder::default();
    builder.push_range(text, 0..sign);
    (0..left).for_each(|_| builder.push(fill));
    builder.push_range(text, sign..text.len());
    (0..right).for_each(|_| builder.push(fill));
    Ok(builder.finish())
}
