//! The operators of a template, as Python has them.

use minijinja::machinery::ast::{BinOpKind, CompareOpKind};

use super::arguments::Arguments;
use super::interpreter::Context;
use super::text::TextBuilder;
use super::value::{Outcome, Value};
use super::{format, methods};

/// Jinja's sandbox has the same bound on `range`.
const LONGEST_RANGE: i128 = 100_000;

/// `a operator b`, for operators that look at both sides.
pub(super) fn apply(context: &Context, kind: BinOpKind, a: &Value, b: &Value) -> Outcome<Value> {
    let compared = |kind| compare(kind, a, b).map(Value::Bool);
    match kind {
        BinOpKind::Eq => compared(CompareOpKind::Eq),
        BinOpKind::Ne => compared(CompareOpKind::Ne),
        BinOpKind::Lt => compared(CompareOpKind::Lt),
        BinOpKind::Lte => compared(CompareOpKind::Lte),
        BinOpKind::Gt => compared(CompareOpKind::Gt),
        BinOpKind::Gte => compared(CompareOpKind::Gte),
        BinOpKind::In => compared(CompareOpKind::In),
        BinOpKind::Concat => {
            let (a, b) = (context.text(a), context.text(b));
            context.spend(a.len() + b.len())?;
            Ok(Value::Text(a.concat(&b)))
        }
        BinOpKind::Add => context.add(a, b),
        BinOpKind::Sub => arithmetic("-", a, b, i128::checked_sub, |a, b| a - b),
        BinOpKind::Mul => match (a, b) {
            (Value::Text(_) | Value::List(_), count) => repeated(context, a, count),
            (count, Value::Text(_) | Value::List(_)) => repeated(context, b, count),
            _ => arithmetic("*", a, b, i128::checked_mul, |a, b| a * b),
        },
        BinOpKind::Div => {
            not_zero(b)?;
            arithmetic("/", &float(a), &float(b), |_, _| None, |a, b| a / b)
        }
        BinOpKind::FloorDiv => {
            not_zero(b)?;
            arithmetic("//", a, b, floor_div, |a, b| (a / b).floor())
        }
        BinOpKind::Rem => match a {
            Value::Text(text) => format::percent(context, text, b).map(Value::Text),
            _ => {
                not_zero(b)?;
                let whole = |a: i128, b: i128| a.checked_sub(floor_div(a, b)?.checked_mul(b)?);
                arithmetic("%", a, b, whole, |a, b| a - (a / b).floor() * b)
            }
        },
        BinOpKind::Pow => {
            let power = b.as_int().map(u32::try_from);
            match (a.as_int(), power) {
                (Some(base), Some(Ok(power))) => {
                    base.checked_pow(power).map(Value::Int).ok_or_else(|| "the power is too large".into())
                }
                _ => arithmetic("**", &float(a), &float(b), |_, _| None, f64::powf),
            }
        }
        BinOpKind::ScAnd => Ok(if a.is_true() { b.clone() } else { a.clone() }),
        BinOpKind::ScOr => Ok(if a.is_true() { a.clone() } else { b.clone() }),
    }
}

/// A number as a float; anything else as it is.
fn float(value: &Value) -> Value {
    value.as_float().map_or_else(|| value.clone(), Value::Float)
}

/// A bound on the work with a value: the bytes of a text, the items of a list.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.len(),
        Value::Map(fields) => fields.len(),
        _ => 1,
    }
}

pub(super) fn compare(kind: CompareOpKind, a: &Value, b: &Value) -> Outcome<bool> {
    Ok(match kind {
        CompareOpKind::Eq => a.equals(b),
        CompareOpKind::Ne => !a.equals(b),
        CompareOpKind::Lt => a.order(b)?.is_lt(),
        CompareOpKind::Lte => a.order(b)?.is_le(),
        CompareOpKind::Gt => a.order(b)?.is_gt(),
        CompareOpKind::Gte => a.order(b)?.is_ge(),
        CompareOpKind::In => b.contains(a)?,
        CompareOpKind::NotIn => !b.contains(a)?,
    })
}

pub(super) fn arithmetic(
    sign: &str,
    a: &Value,
    b: &Value,
    whole: impl Fn(i128, i128) -> Option<i128>,
    real: impl Fn(f64, f64) -> f64,
) -> Outcome<Value> {
    if let Some((a, b)) = a.as_int().zip(b.as_int()) {
        return whole(a, b).map(Value::Int).ok_or_else(|| format!("{a} {sign} {b} is out of range"));
    }
    match a.as_float().zip(b.as_float()) {
        Some((a, b)) => Ok(Value::Float(real(a, b))),
        None => Err(format!("unsupported operand type(s) for {sign}: '{}' and '{}'", a.kind(), b.kind())),
    }
}

fn not_zero(value: &Value) -> Outcome<()> {
    match value.as_float() == Some(0.0) {
        true => Err("division by zero".into()),
        false => Ok(()),
    }
}

fn floor_div(a: i128, b: i128) -> Option<i128> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

fn repeated(context: &Context, over: &Value, count: &Value) -> Outcome<Value> {
    let count = count
        .as_int()
        .ok_or_else(|| format!("can't multiply sequence by non-int of type '{}'", count.kind()))?;
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    context.spend(size(over).max(1).saturating_mul(count))?;
    Ok(match over {
        Value::Text(text) => {
            let mut builder = TextBuilder::default();
            (0..count).for_each(|_| builder.push(text));
            Value::Text(builder.finish())
        }
        other => {
            let items = other.items()?;
            Value::list(std::iter::repeat_n(items, count).flatten().collect())
        }
    })
}

pub(super) fn range(context: &Context, args: &mut Arguments) -> Outcome<Value> {
    let first = args.take_int(0, "start")?.ok_or("range() needs a number")?;
    let second = args.take_int(1, "stop")?;
    let step = args.take_int(2, "step")?.unwrap_or(1);
    let (start, stop) = second.map_or((0, first), |stop| (first, stop));
    if step == 0 {
        return Err("range() arg 3 must not be zero".into());
    }
    let length = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let stride = step.saturating_abs();
    let count = length.saturating_add(stride - 1) / stride;
    if count > LONGEST_RANGE {
        return Err(format!("range() may give {LONGEST_RANGE} numbers at most"));
    }
    context.spend(usize::try_from(count).unwrap_or(0))?;
    Ok(Value::list((0..count.max(0)).map(|index| Value::Int(start + index * step)).collect()))
}

/// `value[start:stop:step]`, as Python counts.
pub(super) fn sliced(value: &Value, [start, stop, step]: [Option<i128>; 3]) -> Outcome<Value> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err("slice step cannot be zero".into());
    }
    let places = value.as_str().map(methods::places);
    let items = match (value, &places) {
        (_, Some(_)) => Vec::new(),
        (Value::List(_), _) => value.items()?,
        (other, _) => return Err(format!("'{}' object cannot be sliced", other.kind())),
    };
    let length = places.as_ref().map_or(items.len(), |places| places.len() - 1) as i128;
    let (least, most) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let at = |index: Option<i128>, other: i128| {
        index.map_or(other, |index| {
            (if index < 0 { index.saturating_add(length) } else { index }).clamp(least, most)
        })
    };
    let (start, stop) = match step > 0 {
        true => (at(start, 0), at(stop, length)),
        false => (at(start, length - 1), at(stop, -1)),
    };
    if let (Value::Text(text), Some(places), 1) = (value, &places, step) {
        let (start, stop) = (start as usize, stop.max(start) as usize);
        return Ok(Value::Text(text.slice(places[start]..places[stop])));
    }
    let mut chosen = Vec::new();
    let mut index = start;
    while (step > 0 && index < stop) || (step < 0 && index > stop) {
        chosen.push(index as usize);
        index += step;
    }
    Ok(match (value, &places) {
        (Value::Text(text), Some(places)) => {
            let mut builder = TextBuilder::default();
            chosen.iter().for_each(|at| builder.push_range(text, places[*at]..places[at + 1]));
            Value::Text(builder.finish())
        }
        _ => Value::list(chosen.iter().map(|at| items[*at].clone()).collect()),
    })
}
