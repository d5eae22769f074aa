//! The figures of a data file as SVG.

use plotters::prelude::*;

use super::Stats;
use crate::html::escape;

/// In pixels.
const WIDTH: u32 = 720;
const ROW: u32 = 26;

/// Axes and names: readable on white and on black.
const INK: RGBColor = RGBColor(128, 128, 128);
const BAR: RGBColor = RGBColor(70, 130, 180);

/// Every figure with its title, as HTML. One that can't be drawn is replaced by the reason.
pub(super) fn figures(stats: &Stats) -> String {
    let families: Vec<(String, usize)> =
        stats.by_family.iter().map(|(name, count)| (name.clone(), *count)).collect();
    let spans: Vec<(String, usize)> = stats
        .by_span
        .iter()
        .map(|(kind, counted)| (kind.name().replace('_', " "), counted.characters))
        .collect();
    let reflections: Vec<(String, usize)> = stats
        .reflections
        .histogram
        .iter()
        .map(|(number, answers)| (format!("{number} reflections"), *answers))
        .collect();
    let figures = [
        ("Records by family", families),
        ("Characters by span", spans),
        ("Answers by number of reflections", reflections),
    ];
    let drawn = figures.into_iter().filter(|(_, bars)| !bars.is_empty()).map(|(title, bars)| {
        let figure =
            bar_chart(&bars).unwrap_or_else(|error| format!("<p>{}</p>", escape(&error.to_string())));
        format!("<h2>{title}</h2>\n{figure}\n")
    });
    drawn.collect()
}

/// Horizontal bars with their names on the left and their values at the end.
fn bar_chart(bars: &[(String, usize)]) -> Result<String, Box<dyn std::error::Error>> {
    let height = ROW * bars.len() as u32 + 8;
    let longest = bars.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) as i32;
    let left = (8 * longest + 16).min(WIDTH as i32 / 2);
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let room = WIDTH as i32 - left - 90;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let text = TextStyle::from(("sans-serif", 14).into_font()).color(&INK);
        for (index, (name, count)) in bars.iter().enumerate() {
            let top = index as i32 * ROW as i32 + 4;
            let end = left + (room as f64 * *count as f64 / most as f64).round() as i32;
            area.draw(&Text::new(name.as_str(), (4, top + 3), text.clone()))?;
            area.draw(&Rectangle::new(
                [(left, top), (end.max(left + 1), top + ROW as i32 - 6)],
                BAR.filled(),
            ))?;
            area.draw(&Text::new(count.to_string(), (end + 6, top + 3), text.clone()))?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_carry_names_and_values() {
        let svg = bar_chart(&[("graph <1>".to_owned(), 40), ("addition".to_owned(), 20)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for part in ["graph &lt;1&gt;", "addition", "40", "20"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 2);
    }

    #[test]
    fn no_bars_are_no_error() {
        assert!(figures(&Stats::default()).is_empty());
        assert!(bar_chart(&[("none".to_owned(), 0)]).is_ok());
    }
}
