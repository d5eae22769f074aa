//! Python's two ways to put values into a text: `'%s' % value` and `'{}'.format(value)`.

use super::arguments::Arguments;
use super::interpreter::Context;
use super::methods::padded;
use super::text::{Text, TextBuilder};
use super::value::{Outcome, Value};

/// How one value is to be written.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    comma: bool,
    precision: Option<usize>,
    kind: Option<char>,
}

/// A width or precision is at most this, so that a template cannot ask for gigabytes.
const MOST: usize = 10_000;

/// `text % value`.
pub(super) fn percent(context: &Context, text: &Text, value: &Value) -> Outcome<Text> {
    let held = text.as_str();
    let values: Vec<Value> = match value {
        Value::List(items) => items.to_vec(),
        one => vec![one.clone()],
    };
    let mut next = 0;
    let mut named = false;
    let mut builder = TextBuilder::default();
    let mut at = 0;
    while let Some(found) = held[at..].find('%') {
        builder.push_range(text, at..at + found);
        let mut rest = held[at + found + 1..].chars().peekable();
        let mut taken = None;
        if rest.peek() == Some(&'(') {
            rest.next();
            let key: String = rest.by_ref().take_while(|c| *c != ')').collect();
            taken = Some(value.field(&Value::text(&key)).ok_or_else(|| format!("KeyError: '{key}'"))?);
            named = true;
        }
        let mut spec = Spec { align: Some('>'), ..Spec::default() };
        while let Some(flag) = rest.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                sign => spec.sign = Some(if spec.sign == Some('+') { '+' } else { sign }),
            }
        }
        spec.width = digits(&mut rest)?.unwrap_or(0);
        if rest.next_if_eq(&'.').is_some() {
            spec.precision = Some(digits(&mut rest)?.unwrap_or(0));
        }
        while rest.next_if(|c| "hlL".contains(*c)).is_some() {}
        let kind = rest.next().ok_or("incomplete format")?;
        at = held.len() - rest.collect::<String>().len();
        if kind == '%' {
            builder.push_str("%");
            continue;
        }
        let value = match taken {
            Some(value) => value,
            None => {
                next += 1;
                values.get(next - 1).cloned().ok_or("not enough arguments for format string")?
            }
        };
        if spec.align == Some('<') {
            spec.zero = false;
        }
        let written = match kind {
            's' => aligned(context, cut(&context.text(&value), spec.precision), &spec)?,
            'r' | 'a' => aligned(context, cut(&repr(&value), spec.precision), &spec)?,
            'c' => aligned(context, character(&value)?, &spec)?,
            'd' | 'i' | 'u' => {
                let whole = match value {
                    Value::Float(number) => Value::Int(number.trunc() as i128),
                    other => other,
                };
                spec.kind = Some('d');
                number(context, &whole, &spec)?
            }
            'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                spec.kind = Some(kind);
                number(context, &value, &spec)?
            }
            other => return Err(format!("unsupported format character '{other}'")),
        };
        builder.push(&written);
    }
    builder.push_range(text, at..held.len());
    let all_used = next >= values.len() || named || matches!(value, Value::Map(_));
    match all_used {
        true => Ok(builder.finish()),
        false => Err("not all arguments converted during string formatting".into()),
    }
}

/// `text.format(…)`.
pub(super) fn braces(context: &Context, text: &Text, args: &mut Arguments) -> Outcome<Text> {
    let positional = args.rest(0);
    let named = args.all_named();
    let held = text.as_str();
    let mut builder = TextBuilder::default();
    let mut automatic = 0;
    let mut at = 0;
    while let Some(found) = held[at..].find(['{', '}']) {
        let here = at + found;
        builder.push_range(text, at..here);
        if held[here..].starts_with("{{") || held[here..].starts_with("}}") {
            builder.push_range(text, here..here + 1);
            at = here + 2;
            continue;
        }
        if held[here..].starts_with('}') {
            return Err("Single '}' encountered in format string".into());
        }
        let length = held[here..].find('}').ok_or("expected '}' before end of string")?;
        let field = &held[here + 1..here + length];
        at = here + length + 1;
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (field, conversion) = field.split_once('!').unwrap_or((field, ""));
        let end = field.find(['.', '[']).unwrap_or(field.len());
        let (name, path) = field.split_at(end);
        let mut value = match name.parse::<usize>() {
            Ok(place) => positional.get(place).cloned(),
            Err(_) if name.is_empty() => {
                automatic += 1;
                positional.get(automatic - 1).cloned()
            }
            Err(_) => named.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone()),
        }
        .ok_or_else(|| format!("format() has no argument for '{{{name}}}'"))?;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let step = step.trim_end_matches(']');
            let key = step.parse().map_or_else(|_| Value::text(step), Value::Int);
            value = context.item(&value, &key);
        }
        let value = match conversion {
            "" => value,
            "s" => Value::Text(context.text(&value)),
            "r" | "a" => Value::Text(repr(&value)),
            other => return Err(format!("unknown conversion '{other}'")),
        };
        builder.push(&by_spec(context, &value, &parse(spec)?)?);
    }
    builder.push_range(text, at..held.len());
    Ok(builder.finish())
}

fn by_spec(context: &Context, value: &Value, spec: &Spec) -> Outcome<Text> {
    match (value, spec.kind) {
        (Value::Int(_) | Value::Float(_), kind) if kind != Some('s') => number(context, value, spec),
        (_, None | Some('s')) => aligned(context, cut(&context.text(value), spec.precision), spec),
        (Value::Bool(_), Some(_)) => number(context, value, spec),
        (other, Some(kind)) => Err(format!("unknown format code '{kind}' for {}", other.kind())),
    }
}

/// `[[fill]align][sign][#][0][width][,][.precision][type]`.
fn parse(text: &str) -> Outcome<Spec> {
    let mut spec = Spec::default();
    let characters: Vec<char> = text.chars().collect();
    let is_align = |c: Option<&char>| c.is_some_and(|c| "<>^=".contains(*c));
    let mut skip = 0;
    if is_align(characters.get(1)) {
        (spec.fill, spec.align, skip) = (Some(characters[0]), Some(characters[1]), 2);
    } else if is_align(characters.first()) {
        (spec.align, skip) = (Some(characters[0]), 1);
    }
    let mut rest = characters[skip..].iter().copied().peekable();
    spec.sign = rest.next_if(|c| "+- ".contains(*c)).filter(|c| *c != '-');
    spec.alternate = rest.next_if_eq(&'#').is_some();
    spec.zero = rest.next_if_eq(&'0').is_some();
    spec.width = digits(&mut rest)?.unwrap_or(0);
    spec.comma = rest.next_if(|c| ",_".contains(*c)).is_some();
    if rest.next_if_eq(&'.').is_some() {
        spec.precision = Some(digits(&mut rest)?.ok_or("Format specifier missing precision")?);
    }
    spec.kind = rest.next();
    match rest.next() {
        None => Ok(spec),
        Some(_) => Err(format!("Invalid format specifier '{text}'")),
    }
}

fn digits(rest: &mut std::iter::Peekable<impl Iterator<Item = char>>) -> Outcome<Option<usize>> {
    let mut found = None;
    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
        let number = found.unwrap_or(0) * 10 + digit as usize - '0' as usize;
        if number > MOST {
            return Err(format!("a width of a format is over {MOST}"));
        }
        found = Some(number);
    }
    Ok(found)
}

fn repr(value: &Value) -> Text {
    let mut builder = TextBuilder::default();
    value.repr_into(&mut builder);
    builder.finish()
}

fn cut(text: &Text, most: Option<usize>) -> Text {
    let end = most.and_then(|most| text.as_str().char_indices().nth(most)).map(|(at, _)| at);
    text.slice(0..end.unwrap_or(text.len()))
}

fn character(value: &Value) -> Outcome<Text> {
    match value {
        Value::Text(text) if text.as_str().chars().count() == 1 => Ok(text.clone()),
        other => {
            let code = other.as_int().and_then(|code| u32::try_from(code).ok());
            let character = code.and_then(char::from_u32).ok_or("%c requires int or char")?;
            Ok(Text::plain(character.encode_utf8(&mut [0; 4])))
        }
    }
}

fn aligned(context: &Context, text: Text, spec: &Spec) -> Outcome<Text> {
    let fill = Text::plain(spec.fill.unwrap_or(' ').encode_utf8(&mut [0; 4]));
    let how = match spec.align {
        Some('>') => "rjust",
        Some('^') => "center",
        _ => "ljust",
    };
    if how == "center" {
        // Unlike `str.center`, a format puts the odd one to the right.
        let missing = spec.width.saturating_sub(text.as_str().chars().count());
        let text = padded(context, &text, "rjust", (spec.width - missing + missing / 2) as i128, &fill)?;
        return padded(context, &text, "ljust", spec.width as i128, &fill);
    }
    padded(context, &text, how, spec.width as i128, &fill)
}

fn number(context: &Context, value: &Value, spec: &Spec) -> Outcome<Text> {
    let bad = || format!("a number is required, not {}", value.kind());
    let kind = spec.kind.unwrap_or(if matches!(value, Value::Float(_)) { 'r' } else { 'd' });
    let (negative, mut body) = match kind {
        'd' | 'x' | 'X' | 'o' | 'b' | 'n' | 'c' => {
            let whole = value.as_int().ok_or_else(bad)?;
            let size = whole.unsigned_abs();
            let text = match kind {
                'x' if spec.alternate => format!("{size:#x}"),
                'x' => format!("{size:x}"),
                'X' if spec.alternate => format!("0X{size:X}"),
                'X' => format!("{size:X}"),
                'o' if spec.alternate => format!("{size:#o}"),
                'o' => format!("{size:o}"),
                'b' if spec.alternate => format!("{size:#b}"),
                'b' => format!("{size:b}"),
                'c' => return aligned(context, character(value)?, spec),
                _ => size.to_string(),
            };
            (whole < 0, text)
        }
        _ => {
            let number = value.as_float().ok_or_else(bad)?;
            (number.is_sign_negative() && !number.is_nan(), float(number.abs(), kind, spec)?)
        }
    };
    if spec.comma {
        body = grouped(&body);
    }
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(_)) => " ",
        _ => "",
    };
    if spec.zero || spec.align == Some('=') {
        let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
        let missing = spec.width.saturating_sub(sign.len() + body.chars().count());
        let filled: String = std::iter::repeat_n(fill, missing).collect();
        return Ok(Text::plain(&format!("{sign}{filled}{body}")));
    }
    let right =
        Spec { align: spec.align.or(Some('>')), fill: spec.fill, width: spec.width, ..Spec::default() };
    aligned(context, Text::plain(&format!("{sign}{body}")), &right)
}

/// A number that is not negative, by C's conversions.
fn float(number: f64, kind: char, spec: &Spec) -> Outcome<String> {
    if !number.is_finite() {
        return Ok(if number.is_nan() { "nan" } else { "inf" }.to_owned());
    }
    let precision = spec.precision.unwrap_or(6);
    let text = match kind {
        'f' | 'F' => format!("{number:.precision$}"),
        '%' => format!("{:.precision$}%", number * 100.0),
        'e' | 'E' => exponent(&format!("{number:.precision$e}")),
        'g' | 'G' => general(number, precision.max(1)),
        'r' => match spec.precision {
            Some(precision) => general(number, precision.max(1)),
            None => super::value::python_float(number),
        },
        other => return Err(format!("unknown format code '{other}' for float")),
    };
    Ok(if kind.is_ascii_uppercase() { text.to_uppercase() } else { text })
}

/// The shorter of both forms with so many digits, without zeros at the end.
fn general(number: f64, precision: usize) -> String {
    let scientific = format!("{number:.*e}", precision - 1);
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        return exponent(&format!("{}e{power}", trimmed(digits)));
    }
    trimmed(&format!("{number:.*}", (precision as i32 - 1 - power).max(0) as usize))
}

/// Rust's exponent in C's spelling: a sign and two digits at least.
fn exponent(text: &str) -> String {
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

/// A comma before each three digits of the whole part.
fn grouped(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut out = String::new();
    for (index, digit) in text[..end].chars().enumerate() {
        if index > 0 && (end - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + &text[end..]
}
