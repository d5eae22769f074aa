//! The figures of an evaluation as SVG.

use std::error::Error;

use plotters::prelude::*;
use reflect_data::html::escape;

/// In pixels.
const WIDTH: i32 = 760;
const ROW: i32 = 18;
const LEFT: i32 = 130;
const RIGHT: i32 = 70;
/// Between groups.
const GAP: i32 = 10;

/// Names and whiskers: readable on white and on black.
const INK: RGBColor = RGBColor(128, 128, 128);
/// Colours of the arms in their order, by Okabe and Ito 2008, which colour-blind people can tell apart.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(240, 228, 66),
    RGBColor(153, 153, 153),
];

/// A bar with its 95 % interval, where it has one.
pub(super) struct Bar {
    pub(super) value: f64,
    pub(super) interval: Option<[f64; 2]>,
    pub(super) label: String,
}

/// Bars that belong together, one for each arm.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<Option<Bar>>,
}

/// Horizontal bars in groups, with a legend of the arms; why not, if they can't be drawn.
pub(super) fn figure(arms: &[&str], groups: &[Group]) -> String {
    drawn(arms, groups).unwrap_or_else(|error| format!("<p>{}</p>", escape(&error.to_string())))
}

fn drawn(arms: &[&str], groups: &[Group]) -> Result<String, Box<dyn Error>> {
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = rows as i32 * ROW + (groups.len() as i32 + 1) * GAP + 2 * ROW;
    let all = || groups.iter().flat_map(|group| group.bars.iter().flatten());
    let most = all().map(|bar| bar.interval.map_or(bar.value, |[_, high]| high)).fold(0.0, f64::max);
    let x = |value: f64| LEFT + (f64::from(WIDTH - LEFT - RIGHT) * value / most.max(1e-9)).round() as i32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        let text = TextStyle::from(("sans-serif", 13).into_font()).color(&INK);
        let color = |arm: usize| COLORS[arm % COLORS.len()];
        let mut left = LEFT;
        for (arm, name) in arms.iter().enumerate() {
            area.draw(&Rectangle::new([(left, 4), (left + 10, 14)], color(arm).filled()))?;
            area.draw(&Text::new(*name, (left + 15, 3), text.clone()))?;
            left += 32 + 8 * name.chars().count() as i32;
        }
        let mut y = ROW + GAP;
        for group in groups {
            area.draw(&Text::new(group.name.as_str(), (4, y), text.clone()))?;
            for (arm, bar) in group.bars.iter().enumerate() {
                if let Some(bar) = bar {
                    let ends = [(LEFT, y), (x(bar.value).max(LEFT + 1), y + ROW - 5)];
                    area.draw(&Rectangle::new(ends, color(arm).filled()))?;
                    if let Some([low, high]) = bar.interval {
                        let middle = y + (ROW - 5) / 2;
                        let whisker = [(x(low), middle), (x(high), middle)];
                        area.draw(&PathElement::new(whisker, INK.stroke_width(2)))?;
                    }
                    let end = x(bar.interval.map_or(bar.value, |[_, high]| high));
                    area.draw(&Text::new(bar.label.as_str(), (end + 6, y), text.clone()))?;
                }
                y += ROW;
            }
            y += GAP;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_drawn_with_its_label() {
        let bar = |value: f64| {
            let interval = Some([value * 0.9, value * 1.1]);
            Some(Bar { value, interval, label: format!("{value} %") })
        };
        let groups = [
            Group { name: "easy".to_owned(), bars: vec![bar(50.0), bar(100.0)] },
            Group { name: "hard".to_owned(), bars: vec![None, bar(25.0)] },
        ];
        let svg = figure(&["tuned", "twin"], &groups);
        for text in ["easy", "hard", "50 %", "100 %", "25 %", "tuned", "twin"] {
            assert!(svg.contains(text), "{text}");
        }
        // Two squares of the legend and three bars, of which one is half as long as another.
        assert_eq!(svg.matches("<rect").count(), 5);
    }
}
