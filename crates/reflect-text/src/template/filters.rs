//! The filters and tests of Jinja that chat templates can use.

use std::cmp::Ordering;
use std::rc::Rc;

use super::arguments::Arguments;
use super::interpreter::Context;
use super::text::{Text, TextBuilder};
use super::value::{JsonStyle, Outcome, Value};
use super::{format, methods};

/// Applies a filter.
pub(super) fn apply(context: &Context, name: &str, value: Value, mut args: Arguments) -> Outcome<Value> {
    let result = of_texts(context, name, &value, &mut args)?;
    let result = match result {
        Some(result) => Some(result),
        None => of_numbers(name, &value, &mut args)?,
    };
    let result = match result {
        Some(result) => result,
        None => of_lists(context, name, value, &mut args)?
            .ok_or_else(|| format!("there is no filter named '{name}'"))?,
    };
    args.finish(&format!("the filter {name}"))?;
    Ok(result)
}

fn of_texts(context: &Context, name: &str, value: &Value, args: &mut Arguments) -> Outcome<Option<Value>> {
    let text = || context.text(value);
    Ok(Some(match name {
        "trim" => {
            let chars = args.take_text(0, "chars")?;
            let text = text();
            let range = methods::stripped(text.as_str(), chars.as_ref().map(Text::as_str), true, true);
            Value::Text(text.slice(range))
        }
        "string" | "safe" => Value::Text(text()),
        "upper" => Value::Text(methods::upper(&text())),
        "lower" => Value::Text(methods::lower(&text())),
        "capitalize" => Value::Text(methods::capitalized(&text())),
        "title" => Value::Text(title(&text())),
        "replace" => {
            let old = args.need_text(0, "old")?;
            let new = context.text(&args.need(1, "new")?);
            let count = args.take_int(2, "count")?.and_then(|count| usize::try_from(count).ok());
            Value::Text(text().replace(old.as_str(), &new, count))
        }
        "center" => {
            let width = args.take_int(0, "width")?.unwrap_or(80);
            Value::Text(methods::padded(context, &text(), "center", width, &" ".into())?)
        }
        "indent" => {
            let width = args.take(0, "width").unwrap_or(Value::Int(4));
            let first = args.take_switch(1, "first");
            let blank = args.take_switch(2, "blank");
            let by = match &width {
                Value::Text(by) => by.clone(),
                other => spaces(context, other.as_int().ok_or("the width must be int or str")?)?,
            };
            Value::Text(indented(&text(), &by, first, blank))
        }
        "escape" | "e" => Value::Text(text().map_characters(|_, c, to| match c {
            '&' => to.push_str("&amp;"),
            '<' => to.push_str("&lt;"),
            '>' => to.push_str("&gt;"),
            '"' => to.push_str("&#34;"),
            '\'' => to.push_str("&#39;"),
            other => to.push(other),
        })),
        "truncate" => {
            let length = args.take_int(0, "length")?.unwrap_or(255);
            let whole_words = !args.take_switch(1, "killwords");
            let end = args.take_text(2, "end")?.unwrap_or_else(|| "...".into());
            let leeway = args.take_int(3, "leeway")?.unwrap_or(5);
            Value::Text(truncated(&text(), length, whole_words, &end, leeway))
        }
        "wordcount" => {
            let words = text()
                .as_str()
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .filter(|word| !word.is_empty())
                .count();
            Value::Int(words as i128)
        }
        "format" => {
            let text = text();
            let named = args.all_named();
            let values = args.rest(0);
            let values = match named.is_empty() {
                true => Value::list(values),
                false => Value::Map(Rc::new(
                    named.into_iter().map(|(key, value)| (Value::text(&key), value)).collect(),
                )),
            };
            Value::Text(format::percent(context, &text, &values)?)
        }
        "tojson" => Value::Text(to_json(context, value, args)?),
        "pprint" => {
            let mut builder = TextBuilder::default();
            value.repr_into(&mut builder);
            Value::Text(builder.finish())
        }
        _ => return Ok(None),
    }))
}

fn of_numbers(name: &str, value: &Value, args: &mut Arguments) -> Outcome<Option<Value>> {
    Ok(Some(match name {
        "abs" => match value {
            Value::Float(number) => Value::Float(number.abs()),
            other => Value::Int(other.as_int().ok_or("abs needs a number")?.saturating_abs()),
        },
        "int" => {
            let other = args.take(0, "default").unwrap_or(Value::Int(0));
            let base = args.take_int(1, "base")?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
            let whole = match value {
                Value::Text(text) => {
                    let text = text.as_str().trim().replace('_', "");
                    let whole = (2..=36).contains(&base).then(|| i128::from_str_radix(&text, base).ok());
                    whole.flatten().or_else(|| text.parse::<f64>().ok().and_then(whole_of))
                }
                Value::Float(number) => whole_of(*number),
                other => other.as_int(),
            };
            whole.map_or(other, Value::Int)
        }
        "float" => {
            let other = args.take(0, "default").unwrap_or(Value::Float(0.0));
            let number = match value {
                Value::Text(text) => text.as_str().trim().parse().ok(),
                other => other.as_float(),
            };
            number.map_or(other, Value::Float)
        }
        "round" => {
            let places = args.take_int(0, "precision")?.unwrap_or(0).clamp(-300, 300) as i32;
            let method = args.take_text(1, "method")?;
            let number = value.as_float().ok_or("round needs a number")? * 10f64.powi(places);
            let rounded = match method.as_ref().map(Text::as_str) {
                Some("ceil") => number.ceil(),
                Some("floor") => number.floor(),
                _ => number.round_ties_even(),
            };
            Value::Float(rounded / 10f64.powi(places))
        }
        _ => return Ok(None),
    }))
}

fn of_lists(context: &Context, name: &str, value: Value, args: &mut Arguments) -> Outcome<Option<Value>> {
    Ok(Some(match name {
        "default" | "d" => {
            let other = args.take(0, "default_value").unwrap_or_else(|| Value::text(""));
            let falsy = args.take_switch(1, "boolean") && !value.is_true();
            if matches!(value, Value::Undefined) || falsy { other } else { value }
        }
        "length" | "count" => Value::Int(value.length()? as i128),
        "first" => value.items()?.into_iter().next().unwrap_or_default(),
        "last" => value.items()?.into_iter().next_back().unwrap_or_default(),
        "list" => Value::list(value.items()?),
        "items" => match &value {
            Value::Undefined => Value::list(Vec::new()),
            Value::Map(_) => methods::call(context, &value, "items", Arguments::default())?,
            _ => return Err("Can only get item pairs from a mapping".into()),
        },
        "reverse" => {
            let mut items = value.items()?;
            items.reverse();
            match value {
                Value::Text(_) => Value::Text(joined(context, &items, &Text::default())),
                _ => Value::list(items),
            }
        }
        "join" => {
            let between = args.take(0, "d").map(|value| context.text(&value)).unwrap_or_default();
            let attribute = args.take(1, "attribute");
            let items: Vec<Value> =
                value.items()?.iter().map(|item| attribute_of(context, item, attribute.as_ref())).collect();
            Value::Text(joined(context, &items, &between))
        }
        "map" => mapped(context, &value, args)?,
        "select" | "reject" => {
            let test = args.take_text(0, "test")?;
            let rest = args.rest(1);
            chosen(context, &value, name == "select", None, test, rest)?
        }
        "selectattr" | "rejectattr" => {
            let attribute = args.need(0, "attribute")?;
            let test = args.take_text(1, "test")?;
            let rest = args.rest(2);
            chosen(context, &value, name == "selectattr", Some(&attribute), test, rest)?
        }
        "attr" => {
            let name = args.need(0, "name")?;
            context.item(&value, &name)
        }
        "sum" => {
            let attribute = args.take(0, "attribute");
            let mut total = args.take(1, "start").unwrap_or(Value::Int(0));
            for item in value.items()? {
                let item = attribute_of(context, &item, attribute.as_ref());
                total = context.add(&total, &item)?;
            }
            total
        }
        "min" | "max" => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let case = args.take_switch(0, "case_sensitive");
            let attribute = args.take(1, "attribute");
            let mut best: Option<Value> = None;
            for item in value.items()? {
                let better = match &best {
                    None => true,
                    Some(held) => {
                        let key = |item: &Value| sort_key(context, item, attribute.as_ref(), case);
                        key(&item).order(&key(held))? == wanted
                    }
                };
                if better {
                    best = Some(item);
                }
            }
            best.unwrap_or_default()
        }
        "sort" => {
            let reverse = args.take_switch(0, "reverse");
            let case = args.take_switch(1, "case_sensitive");
            let attribute = args.take(2, "attribute");
            Value::list(sorted(context, value.items()?, reverse, case, attribute.as_ref())?)
        }
        "dictsort" => {
            let case = args.take_switch(0, "case_sensitive");
            let by = args.take_text(1, "by")?;
            let reverse = args.take_switch(2, "reverse");
            let place = Value::Int(i128::from(by.is_some_and(|by| by.as_str() == "value")));
            let pairs = methods::call(context, &value, "items", Arguments::default())?.items()?;
            Value::list(sorted(context, pairs, reverse, case, Some(&place))?)
        }
        "unique" => {
            let case = args.take_switch(0, "case_sensitive");
            let attribute = args.take(1, "attribute");
            let mut seen: Vec<Value> = Vec::new();
            let mut kept = Vec::new();
            for item in value.items()? {
                let key = sort_key(context, &item, attribute.as_ref(), case);
                if !seen.iter().any(|other| other.equals(&key)) {
                    seen.push(key);
                    kept.push(item);
                }
            }
            Value::list(kept)
        }
        "groupby" => {
            let attribute = args.need(0, "attribute")?;
            let other = args.take(1, "default");
            let key = |item: &Value| match (attribute_of(context, item, Some(&attribute)), &other) {
                (Value::Undefined, Some(other)) => other.clone(),
                (key, _) => key,
            };
            let items = sorted(context, value.items()?, false, true, Some(&attribute))?;
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            for item in items {
                let key = key(&item);
                match groups.last_mut().filter(|(held, _)| held.equals(&key)) {
                    Some((_, group)) => group.push(item),
                    None => groups.push((key, vec![item])),
                }
            }
            let group = |(key, items)| Value::list(vec![key, Value::list(items)]);
            Value::list(groups.into_iter().map(group).collect())
        }
        "batch" => {
            let size = args.take_int(0, "linecount")?.and_then(|size| usize::try_from(size).ok());
            let size = size.filter(|size| *size > 0).ok_or("batch needs a number above 0")?;
            let fill = args.take(1, "fill_with");
            let items = value.items()?;
            let rows = items.chunks(size).map(|row| {
                let mut row = row.to_vec();
                if let Some(fill) = &fill {
                    row.extend(std::iter::repeat_n(fill.clone(), size.min(items.len() + size) - row.len()));
                }
                Value::list(row)
            });
            Value::list(rows.collect())
        }
        _ => return Ok(None),
    }))
}

/// Whether a test holds.
pub(super) fn test(context: &Context, name: &str, value: &Value, mut args: Arguments) -> Outcome<bool> {
    let ordered = |args: &mut Arguments, holds: fn(Ordering) -> bool| {
        Ok::<bool, String>(holds(value.order(&args.need(0, "other")?)?))
    };
    let divided = |by: i128| value.as_int().map(|number| by != 0 && number % by == 0);
    let holds = match name {
        "defined" => !matches!(value, Value::Undefined),
        "undefined" => matches!(value, Value::Undefined),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Map(_)),
        "sequence" | "iterable" => {
            matches!(value, Value::Text(_) | Value::List(_) | Value::Map(_) | Value::Undefined)
        }
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_)),
        "escaped" => false,
        "eq" | "equalto" | "==" | "sameas" => value.equals(&args.need(0, "other")?),
        "ne" | "!=" => !value.equals(&args.need(0, "other")?),
        "lt" | "lessthan" | "<" => ordered(&mut args, Ordering::is_lt)?,
        "le" | "<=" => ordered(&mut args, Ordering::is_le)?,
        "gt" | "greaterthan" | ">" => ordered(&mut args, Ordering::is_gt)?,
        "ge" | ">=" => ordered(&mut args, Ordering::is_ge)?,
        "in" => args.need(0, "seq")?.contains(value)?,
        "even" => divided(2).ok_or("'even' needs a whole number")?,
        "odd" => !divided(2).ok_or("'odd' needs a whole number")?,
        "divisibleby" => {
            let by = args.take_int(0, "num")?.ok_or("'divisibleby' needs a number")?;
            divided(by).ok_or("'divisibleby' needs a whole number")?
        }
        "lower" => context.text(value).as_str().chars().all(|c| !c.is_uppercase()),
        "upper" => context.text(value).as_str().chars().all(|c| !c.is_lowercase()),
        _ => return Err(format!("there is no test named '{name}'")),
    };
    args.finish(&format!("the test {name}"))?;
    Ok(holds)
}

/// `json.dumps`, with the arguments that Hugging Face's `tojson` takes.
fn to_json(context: &Context, value: &Value, args: &mut Arguments) -> Outcome<Text> {
    let ascii = args.take_switch(0, "ensure_ascii");
    let indent = match args.take(1, "indent") {
        None | Some(Value::None | Value::Undefined) => None,
        Some(Value::Text(by)) => Some(by.as_str().to_owned()),
        Some(other) => {
            let width = other.as_int().ok_or("indent must be int or str")?;
            Some(spaces(context, width)?.as_str().to_owned())
        }
    };
    let separators = match args.take(2, "separators") {
        None | Some(Value::None | Value::Undefined) => None,
        Some(pair) => match pair.items()?.as_slice() {
            [Value::Text(comma), Value::Text(colon)] => {
                Some((comma.as_str().to_owned(), colon.as_str().to_owned()))
            }
            _ => return Err("separators must be two texts".into()),
        },
    };
    let sorted = args.take_switch(3, "sort_keys");
    let (comma, colon) = separators.unwrap_or_else(|| {
        let comma = if indent.is_some() { "," } else { ", " };
        (comma.to_owned(), ": ".to_owned())
    });
    let style = JsonStyle { indent, comma, colon, ascii, sorted };
    let mut builder = TextBuilder::default();
    style.write(value, 0, &mut builder)?;
    context.spend(builder.len())?;
    Ok(builder.finish())
}

/// The whole part of a number that is one.
fn whole_of(number: f64) -> Option<i128> {
    number.is_finite().then_some(number.trunc() as i128)
}

fn spaces(context: &Context, width: i128) -> Outcome<Text> {
    methods::padded(context, &Text::default(), "ljust", width, &" ".into())
}

fn mapped(context: &Context, value: &Value, args: &mut Arguments) -> Outcome<Value> {
    let items = value.items()?;
    let mut named = args.all_named();
    let mut take = |name: &str| {
        let at = named.iter().position(|(other, _)| other == name)?;
        Some(named.remove(at).1)
    };
    if let Some(attribute) = take("attribute") {
        let other = take("default");
        let of = |item: &Value| match (attribute_of(context, item, Some(&attribute)), &other) {
            (Value::Undefined, Some(other)) => other.clone(),
            (held, _) => held,
        };
        return Ok(Value::list(items.iter().map(of).collect()));
    }
    let filter = args.need_text(0, "filter")?;
    let rest = args.rest(1);
    let mut mapped = Vec::new();
    for item in items {
        let mut args = Arguments::default();
        rest.iter().for_each(|value| args.push(value.clone()));
        for (name, value) in &named {
            args.push_named(name, value.clone())?;
        }
        mapped.push(apply(context, filter.as_str(), item, args)?);
    }
    Ok(Value::list(mapped))
}

fn chosen(
    context: &Context,
    value: &Value,
    keep: bool,
    attribute: Option<&Value>,
    name: Option<Text>,
    rest: Vec<Value>,
) -> Outcome<Value> {
    let mut kept = Vec::new();
    for item in value.items()? {
        let looked_at = attribute_of(context, &item, attribute);
        let holds = match &name {
            None => looked_at.is_true(),
            Some(name) => {
                let mut args = Arguments::default();
                rest.iter().for_each(|value| args.push(value.clone()));
                test(context, name.as_str(), &looked_at, args)?
            }
        };
        if holds == keep {
            kept.push(item);
        }
    }
    Ok(Value::list(kept))
}

/// An attribute by its name or its path with dots; the value itself without one.
fn attribute_of(context: &Context, value: &Value, attribute: Option<&Value>) -> Value {
    match attribute {
        None | Some(Value::None | Value::Undefined) => value.clone(),
        Some(Value::Text(path)) => path.as_str().split('.').fold(value.clone(), |held, step| {
            let key = step.parse().map_or_else(|_| Value::text(step), Value::Int);
            context.item(&held, &key)
        }),
        Some(key) => context.item(value, key),
    }
}

fn sort_key(context: &Context, item: &Value, attribute: Option<&Value>, case: bool) -> Value {
    match attribute_of(context, item, attribute) {
        Value::Text(text) if !case => Value::Text(methods::lower(&text)),
        other => other,
    }
}

fn sorted(
    context: &Context,
    items: Vec<Value>,
    reverse: bool,
    case: bool,
    attribute: Option<&Value>,
) -> Outcome<Vec<Value>> {
    let mut refused = None;
    let mut keyed: Vec<(Value, Value)> =
        items.into_iter().map(|item| (sort_key(context, &item, attribute, case), item)).collect();
    keyed.sort_by(|(a, _), (b, _)| {
        let order = a.order(b).unwrap_or_else(|problem| {
            refused.get_or_insert(problem);
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    match refused {
        Some(problem) => Err(problem),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn joined(context: &Context, items: &[Value], between: &Text) -> Text {
    let mut builder = TextBuilder::default();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            builder.push(between);
        }
        builder.push(&context.text(item));
    }
    builder.finish()
}

/// Jinja's own `title`: words after white space, hyphens and opening brackets begin in upper case.
fn title(text: &Text) -> Text {
    let mut begins = true;
    text.map_characters(|_, c, to| {
        match begins {
            true => to.extend(c.to_uppercase()),
            false => to.extend(c.to_lowercase()),
        }
        begins = c.is_whitespace() || "-({[<".contains(c);
    })
}

fn indented(text: &Text, by: &Text, first: bool, blank: bool) -> Text {
    let mut builder = TextBuilder::default();
    let mut at = 0;
    for (index, line) in text.as_str().split('\n').enumerate() {
        if index > 0 {
            builder.push_str("\n");
        }
        let line = line.strip_suffix('\r').unwrap_or(line);
        if (index > 0 || first) && (blank || !line.is_empty()) {
            builder.push(by);
        }
        builder.push_range(text, at..at + line.len());
        at += text.as_str()[at..].find('\n').map_or(line.len(), |length| length + 1);
    }
    builder.finish()
}

fn truncated(text: &Text, length: i128, whole_words: bool, end: &Text, leeway: i128) -> Text {
    let places = methods::places(text.as_str());
    let count = places.len() as i128 - 1;
    if count <= length.saturating_add(leeway) {
        return text.clone();
    }
    let kept = (length - end.as_str().chars().count() as i128).clamp(0, count) as usize;
    let mut cut = places[kept];
    if whole_words {
        cut = text.as_str()[..cut].rfind(' ').unwrap_or(cut);
    }
    text.slice(0..cut).concat(end)
}
