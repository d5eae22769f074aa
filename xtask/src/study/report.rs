//! Tables, plain words and a figure from the outcomes of all arms.

use super::arms::{Arm, Expected, Measure, QUESTIONS, Relation};
use super::{Grid, Outcome};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde_json::Value;

/// Hits of tries.
#[derive(Clone, Copy, Default)]
struct Counted {
    hits: f64,
    of: f64,
}

impl Counted {
    fn share(self) -> f64 {
        self.hits / self.of
    }

    /// Wilson's 95 % interval (Wilson 1927).
    fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        let (p, n) = (self.share(), self.of);
        let centre = p + Z * Z / (2.0 * n);
        let reach = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let whole = 1.0 + Z * Z / n;
        // No hit at all gives 0, which rounding turns into less.
        (((centre - reach) / whole).max(0.0), (centre + reach) / whole)
    }
}

/// The difference of two shares with its 95 % interval from those of the shares (Newcombe 1998, method 10).
fn difference(a: Counted, b: Counted) -> (f64, f64, f64) {
    let (p, q) = (a.share(), b.share());
    let ((a_low, a_high), (b_low, b_high)) = (a.interval(), b.interval());
    let low = ((p - a_low).powi(2) + (b_high - q).powi(2)).sqrt();
    let high = ((a_high - p).powi(2) + (q - b_low).powi(2)).sqrt();
    (p - q, p - q - low, p - q + high)
}

/// The smallest difference that two shares near `p` of `n` tries each show four times out of five.
fn detectable(p: f64, n: f64) -> f64 {
    // 1.96 for 5 % on both sides, 0.84 for a power of 80 %.
    (1.96 + 0.84) * (2.0 * p * (1.0 - p) / n).sqrt()
}

/// A rate of the report, over all seeds; none where nothing was counted.
fn counted(outcomes: &[Outcome], path: &str) -> Option<Counted> {
    let mut sum = Counted::default();
    for outcome in outcomes {
        let rate = outcome.report.pointer(path)?;
        sum.hits += rate.get("hits").and_then(Value::as_f64)?;
        sum.of += rate.get("of").and_then(Value::as_f64)?;
    }
    (sum.of > 0.0).then_some(sum)
}

impl Measure {
    fn path(self) -> &'static str {
        match self {
            Self::Accuracy => "/report/arms/tuned/accuracy",
            Self::Slips => "/report/arms/tuned/slip_rate",
            Self::Repaired => "/report/arms/tuned/correction_rate",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "right answers",
            Self::Slips => "wrong first statements",
            Self::Repaired => "of those repaired",
        }
    }
}

fn accuracy(outcomes: &[Outcome]) -> Counted {
    counted(outcomes, Measure::Accuracy.path()).unwrap_or(Counted { hits: 0.0, of: f64::NAN })
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// `61.2 (58.1 to 64.2)`.
fn cell(rate: Option<Counted>) -> String {
    rate.map_or_else(
        || "–".to_owned(),
        |rate| {
            let (low, high) = rate.interval();
            format!("{} ({} to {})", percent(rate.share()), percent(low), percent(high))
        },
    )
}

/// What the figures say about one comparison that the claim makes. A difference counts if its interval
/// leaves out zero and every seed has the same sign.
fn verdict(first: &[Outcome], second: &[Outcome], expected: &Expected) -> String {
    let of = |outcomes: &[Outcome]| counted(outcomes, expected.measure.path());
    let (Some(a), Some(b)) = (of(first), of(second)) else {
        return "– | – | nothing was counted".to_owned();
    };
    let (by, low, high) = difference(a, b);
    let single = |outcome: &Outcome| of(std::slice::from_ref(outcome)).map_or(f64::NAN, Counted::share);
    let seeds: Vec<f64> = first.iter().zip(second).map(|(a, b)| single(a) - single(b)).collect();
    let words = words(expected.relation, (low, high), &seeds);
    let point = |by: f64| format!("{:+.1}", 100.0 * by);
    let each: Vec<String> = seeds.into_iter().map(point).collect();
    format!("{} ({} to {}) | {} | {words}", point(by), point(low), point(high), each.join(", "))
}

fn words(relation: Relation, (low, high): (f64, f64), seeds: &[f64]) -> &'static str {
    let more = low > 0.0 && seeds.iter().all(|by| *by > 0.0);
    let less = high < 0.0 && seeds.iter().all(|by| *by < 0.0);
    match relation {
        Relation::More if more => "held",
        Relation::Less if less => "held",
        Relation::More if less => "the other way round",
        Relation::Less if more => "the other way round",
        Relation::Same if more => "the first has more",
        Relation::Same if less => "the second has more",
        Relation::Same => "no difference shown, as claimed",
        Relation::More | Relation::Less => "no difference shown",
    }
}

/// The whole report; `results` has the outcomes by question, arm and seed.
pub fn markdown(grid: &Grid, results: &[Vec<Vec<Outcome>>]) -> String {
    let runs: usize = results.iter().flatten().map(Vec::len).sum();
    let seeds = grid.seeds.len();
    let tries = (grid.evaluated * seeds) as f64;
    let mut text = format!(
        "# What reflection data is worth to a small model\n\n\
         Written by `cargo xtask study --grid {}`. {runs} runs: models of {} M parameters from nothing, {} M tokens each, \
         {seeds} seeds for data and weights, {} held-out problems for each, greedy answers. Rates are per cent over all \
         seeds, with Wilson's 95 % intervals; differences of accuracy are in points, with Newcombe's. Near 50 % such a \
         difference has to be {:.1} points, near 90 % {:.1}, to be seen four times out of five; smaller ones are not decided \
         here. Intervals know the chance of problems, not that of training: hence the column of seeds. A difference counts if its \
         interval leaves out zero and every seed agrees.\n\n![Accuracy of every arm](reflection-study.svg)\n",
        grid.name,
        grid.weights,
        grid.tokens,
        grid.evaluated,
        100.0 * detectable(0.5, tries),
        100.0 * detectable(0.9, tries),
    );
    for (question, of_question) in QUESTIONS.iter().zip(results) {
        text.push_str(&format!("\n## {}\n\n{}\n\n", question.title, question.claim));
        text.push_str(&format!("Data: {}.\n\n", described(&question.arms[0])));
        text.push_str("| arm | right answers | wrong first statements | of those repaired | injected repaired | tokens |\n");
        text.push_str("| --- | ---: | ---: | ---: | ---: | ---: |\n");
        for (arm, outcomes) in question.arms.iter().zip(of_question) {
            let tokens: f64 = outcomes
                .iter()
                .filter_map(|outcome| outcome.report.pointer("/report/arms/tuned/tokens_mean/all")?.as_f64())
                .sum();
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {:.0} |\n",
                arm.name,
                cell(Some(accuracy(outcomes))),
                cell(counted(outcomes, Measure::Slips.path())),
                cell(counted(outcomes, Measure::Repaired.path())),
                cell(counted(outcomes, "/report/injected")),
                tokens / outcomes.len() as f64,
            ));
        }
        text.push_str("\n| by the claim | difference | each seed | |\n| --- | ---: | ---: | --- |\n");
        for expected in question.expected {
            let figures = verdict(&of_question[expected.first], &of_question[expected.second], expected);
            let arms = [expected.first, expected.second].map(|arm| question.arms[arm].name);
            let relation = match expected.relation {
                Relation::More => "above",
                Relation::Less => "below",
                Relation::Same => "as",
            };
            let measure = expected.measure.name();
            text.push_str(&format!("| {measure}: {} {relation} {} | {figures} |\n", arms[0], arms[1]));
        }
    }
    text
}

fn described(arm: &Arm) -> String {
    let mix: Vec<&str> = arm.mix.split(' ').collect();
    let families = arm.families.replace(',', ", ");
    let shares = mix.join(" : ");
    format!(
        "{families}; easy, moderate and hard problems {shares}, {} of them unless an arm says otherwise",
        arm.problems
    )
}

/// Accuracy of every arm with its interval, as SVG.
pub fn figure(results: &[Vec<Vec<Outcome>>]) -> Result<String> {
    const WIDTH: i32 = 760;
    const ROW: i32 = 22;
    const LEFT: i32 = 190;
    const RIGHT: i32 = 60;
    // Grey is readable on white and on black.
    let ink = RGBColor(128, 128, 128);
    let bar = RGBColor(70, 130, 180);
    let rows: usize = QUESTIONS.iter().map(|question| question.arms.len() + 2).sum();
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (WIDTH as u32, rows as u32 * ROW as u32)).into_drawing_area();
        let failed = |error: DrawingAreaErrorKind<_>| anyhow!("The figure could not be drawn: {error}");
        let text = TextStyle::from(("sans-serif", 14).into_font()).color(&ink);
        let title = TextStyle::from(("sans-serif", 15, FontStyle::Bold).into_font()).color(&ink);
        let x = |share: f64| LEFT + ((WIDTH - LEFT - RIGHT) as f64 * share).round() as i32;
        let mut y = 4;
        for (question, of_question) in QUESTIONS.iter().zip(results) {
            area.draw(&Text::new(question.title, (4, y), title.clone())).map_err(failed)?;
            y += ROW;
            for (arm, outcomes) in question.arms.iter().zip(of_question) {
                let rate = accuracy(outcomes);
                let (low, high) = rate.interval();
                let middle = y + ROW / 2 - 4;
                area.draw(&Text::new(arm.name, (4, y), text.clone())).map_err(failed)?;
                area.draw(&Rectangle::new([(x(0.0), y), (x(rate.share()), y + ROW - 8)], bar.filled()))
                    .map_err(failed)?;
                area.draw(&PathElement::new([(x(low), middle), (x(high), middle)], ink.stroke_width(2)))
                    .map_err(failed)?;
                let value = format!("{} %", percent(rate.share()));
                area.draw(&Text::new(value, (x(high) + 6, y), text.clone())).map_err(failed)?;
                y += ROW;
            }
            y += ROW;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_if_every_seed_agrees() {
        use Relation::{Less, More, Same};
        let above = ((0.01, 0.03), [0.01, 0.02]);
        for (relation, (interval, seeds), expected) in [
            (More, above, "held"),
            (Less, above, "the other way round"),
            (Same, above, "the first has more"),
            (More, ((0.01, 0.03), [0.04, -0.01]), "no difference shown"),
            (Less, ((-0.03, -0.01), [-0.01, -0.02]), "held"),
            (Same, ((-0.03, 0.01), [-0.01, -0.02]), "no difference shown, as claimed"),
        ] {
            assert_eq!(words(relation, interval, &seeds), expected);
        }
    }

    #[test]
    fn intervals_are_those_of_the_papers() {
        // Newcombe 1998, Statistics in Medicine 17, 873, table II (a): 56/70 and 48/80, method 10.
        let (by, low, high) = difference(Counted { hits: 56.0, of: 70.0 }, Counted { hits: 48.0, of: 80.0 });
        assert!((by - 0.2).abs() < 1e-12);
        assert!((low - 0.0524).abs() < 5e-5 && (high - 0.3339).abs() < 5e-5, "{low} {high}");
    }
}
