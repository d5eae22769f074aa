//! The log of a run as a page with plots.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;

use plotters::prelude::*;
use reflect_data::{
    html::{escape, page},
    sample::SpanKind,
};

use crate::trainer::Record;

/// In pixels.
const SIZE: (u32, u32) = (860, 360);
/// Room for the numbers on the left and below.
const LEFT: i32 = 64;
const BELOW: i32 = 34;
const ABOVE: i32 = 12;
const RIGHT: i32 = 16;

/// Axes and numbers: readable on white and on black.
const INK: RGBColor = RGBColor(128, 128, 128);

/// A line of a plot.
struct Series {
    name: String,
    color: RGBColor,
    /// Steps and values.
    points: Vec<(f64, f64)>,
}

/// The page of a log. `title` names the run.
pub fn html(title: &str, log: &[Record]) -> String {
    let mut body = String::new();
    let steps = || {
        log.iter().filter_map(|record| match record {
            Record::Step(record) => Some(record),
            Record::HeldOut(_) => None,
        })
    };
    let looks = || {
        log.iter().filter_map(|record| match record {
            Record::HeldOut(record) => Some(record),
            Record::Step(_) => None,
        })
    };
    if let Some(last) = steps().next_back() {
        let look = looks().next_back().map(|look| {
            format!(
                "; held out: loss {:.4}, {:.1} % of the tokens right, {:.1} % of the answers right in every token",
                look.loss,
                100.0 * look.token_accuracy,
                100.0 * look.answer_accuracy
            )
        });
        // Writing into a string can't fail.
        let _ = writeln!(
            body,
            "<p>Step {}, {} tokens, loss {:.4}{}.</p>",
            last.step,
            last.all_tokens,
            last.loss,
            look.unwrap_or_default()
        );
    }
    let losses: Vec<(f64, f64)> = steps().map(|record| (record.step as f64, record.loss)).collect();
    let held_out = looks().map(|record| (record.step as f64, record.loss)).collect();
    let figures = [
        (
            "Loss",
            Axis::Logarithmic,
            vec![
                Series { name: "batch".into(), color: RGBColor(150, 160, 170), points: losses.clone() },
                Series {
                    name: "mean of batches".into(),
                    color: RGBColor(44, 127, 184),
                    points: smooth(&losses),
                },
                Series { name: "held out".into(), color: RGBColor(208, 56, 43), points: held_out },
            ],
        ),
        (
            "Held-out loss by span",
            Axis::Logarithmic,
            by_kind(looks().map(|record| (record.step, &record.by_kind))),
        ),
        (
            "Held-out accuracy",
            Axis::Linear,
            vec![
                Series {
                    name: "tokens".into(),
                    color: RGBColor(44, 127, 184),
                    points: looks().map(|record| (record.step as f64, record.token_accuracy)).collect(),
                },
                Series {
                    name: "whole answers".into(),
                    color: RGBColor(42, 145, 71),
                    points: looks().map(|record| (record.step as f64, record.answer_accuracy)).collect(),
                },
            ],
        ),
        (
            "Gradient norm",
            Axis::Logarithmic,
            vec![Series {
                name: "before clipping".into(),
                color: RGBColor(164, 69, 196),
                points: steps().map(|record| (record.step as f64, record.norm)).collect(),
            }],
        ),
    ];
    for (name, axis, series) in figures {
        let series: Vec<Series> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
        if series.is_empty() {
            continue;
        }
        let figure =
            draw(&series, axis).unwrap_or_else(|error| format!("<p>{}</p>", escape(&error.to_string())));
        let legend: String = series
            .iter()
            .map(|Series { name, color: RGBColor(r, g, b), .. }| {
                format!("<span style=\"color:rgb({r},{g},{b})\">━</span> {} ", escape(name))
            })
            .collect();
        let _ = writeln!(body, "<h2>{name}</h2>\n<p><small>{legend}</small></p>\n{figure}");
    }
    page(title, "", &body)
}

/// A line for each kind of span.
fn by_kind<'a>(looks: impl Iterator<Item = (u64, &'a BTreeMap<SpanKind, f64>)>) -> Vec<Series> {
    let mut points: BTreeMap<SpanKind, Vec<(f64, f64)>> = BTreeMap::new();
    for (step, kinds) in looks {
        for (kind, loss) in kinds {
            points.entry(*kind).or_default().push((step as f64, *loss));
        }
    }
    let color = |kind| match kind {
        SpanKind::Thinking => RGBColor(122, 135, 148),
        SpanKind::Mistake => RGBColor(208, 56, 43),
        SpanKind::CorrectiveReflection => RGBColor(164, 69, 196),
        SpanKind::ConfirmingReflection => RGBColor(44, 127, 184),
        SpanKind::Correction => RGBColor(42, 145, 71),
        SpanKind::Output => RGBColor(184, 134, 11),
    };
    let series = points.into_iter().map(|(kind, points)| Series {
        name: kind.name().replace('_', " "),
        color: color(kind),
        points,
    });
    series.collect()
}

/// Means over a window of a hundredth of the points.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = (points.len() / 100).max(1);
    points
        .chunks(window)
        .map(|chunk| {
            let mean = chunk.iter().map(|(_, value)| value).sum::<f64>() / chunk.len() as f64;
            (chunk[chunk.len() - 1].0, mean)
        })
        .collect()
}

/// How values are laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    /// From zero.
    Linear,
    /// Losses fall by factors.
    Logarithmic,
}

/// Lines over steps.
fn draw(series: &[Series], axis: Axis) -> Result<String, Box<dyn Error>> {
    let last = series.iter().flat_map(|series| &series.points).map(|(step, _)| *step).fold(1.0, f64::max);
    let values = || series.iter().flat_map(|series| &series.points).map(|(_, v)| *v);
    let high = values().filter(|v| v.is_finite()).fold(1e-6, f64::max);
    let low = match axis {
        Axis::Linear => 0.0,
        // A thousandth of the top is low enough, and nothing is shown below it.
        Axis::Logarithmic => values().filter(|v| *v > 0.0).fold(high, f64::min).max(high / 1000.0) / 1.1,
    };
    let (width, height) = (SIZE.0 as i32 - LEFT - RIGHT, SIZE.1 as i32 - ABOVE - BELOW);
    let share = |value: f64| match axis {
        Axis::Linear => value / high,
        Axis::Logarithmic => (value.max(low) / low).ln() / (high / low).ln(),
    };
    let at = |share: f64| match axis {
        Axis::Linear => high * share,
        Axis::Logarithmic => low * (high / low).powf(share),
    };
    let place = |(step, value): (f64, f64)| {
        let y = share(value).clamp(0.0, 1.0);
        (LEFT + (f64::from(width) * step / last) as i32, ABOVE + (f64::from(height) * (1.0 - y)) as i32)
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let text = TextStyle::from(("sans-serif", 13).into_font()).color(&INK);
        let thin = ShapeStyle::from(&INK.mix(0.35)).stroke_width(1);
        for part in 0..=4 {
            let (step, value) = (last * f64::from(part) / 4.0, at(f64::from(part) / 4.0));
            let (left, y) = place((0.0, value));
            area.draw(&PathElement::new(vec![(left, y), (left + width, y)], thin))?;
            area.draw(&Text::new(number(value), (6, y - 7), text.clone()))?;
            let (x, bottom) = place((step, low));
            area.draw(&Text::new(format!("{step:.0}"), (x - 10, bottom + 10), text.clone()))?;
        }
        for line in series {
            let style = ShapeStyle::from(&line.color).stroke_width(2);
            let points: Vec<(i32, i32)> = line.points.iter().copied().map(place).collect();
            if let [point] = points.as_slice() {
                area.draw(&Circle::new(*point, 3, style.filled()))?;
            }
            area.draw(&PathElement::new(points, style))?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Three digits that matter.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}
