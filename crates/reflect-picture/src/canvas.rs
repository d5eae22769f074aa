//! Pixels: filled shapes with soft edges, and text.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use image::{ImageFormat, Rgb, RgbImage};

use crate::PictureError;

/// Weights of the one typeface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Regular,
    Bold,
}

const REGULAR: &[u8] = include_bytes!("../fonts/DejaVuSans.ttf");
const BOLD: &[u8] = include_bytes!("../fonts/DejaVuSans-Bold.ttf");

/// Both weights, parsed.
pub struct Fonts([FontRef<'static>; 2]);

impl Fonts {
    pub fn new() -> Self {
        // The files are part of the program, and a test reads both.
        Self([REGULAR, BOLD].map(|bytes| FontRef::try_from_slice(bytes).expect("the fonts are whole")))
    }

    fn get(&self, weight: Weight) -> &FontRef<'static> {
        &self.0[usize::from(weight == Weight::Bold)]
    }

    /// The width of a line in units.
    pub fn width(&self, text: &str, size: f32, weight: Weight) -> f32 {
        let font = self.get(weight).as_scaled(PxScale::from(size));
        let mut last = None;
        let mut width = 0.0;
        for letter in text.chars() {
            let glyph = font.glyph_id(letter);
            width += last.map_or(0.0, |last| font.kern(last, glyph)) + font.h_advance(glyph);
            last = Some(glyph);
        }
        width
    }
}

/// An image in the making.
pub struct Canvas {
    image: RgbImage,
    /// Pixels to a unit.
    scale: f32,
    fonts: Fonts,
}

/// A rectangle in units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
}

pub type Color = [u8; 3];

impl Canvas {
    pub fn new(width: u32, height: u32, scale: f32, fill: Color) -> Self {
        Self { image: RgbImage::from_pixel(width, height, Rgb(fill)), scale, fonts: Fonts::new() }
    }

    /// Fills a rectangle with corners of `radius`.
    pub fn fill(&mut self, area: Area, radius: f32, color: Color) {
        let scaled = |value: f32| value * self.scale;
        let (left, top) = (scaled(area.x), scaled(area.y));
        let (right, bottom) = (left + scaled(area.width), top + scaled(area.height));
        let radius = scaled(radius).min((right - left) / 2.0).min((bottom - top) / 2.0);
        for y in pixels(top, bottom, self.image.height()) {
            for x in pixels(left, right, self.image.width()) {
                // How far the pixel's middle is inside the rounded edge.
                let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
                let dx = (left + radius - px).max(px - (right - radius));
                let dy = (top + radius - py).max(py - (bottom - radius));
                let outside = dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0);
                self.blend(x, y, color, (radius - outside + 0.5).clamp(0.0, 1.0));
            }
        }
    }

    /// Draws the frame of a rectangle: filled with `color`, then inside with `inner`.
    pub fn frame(&mut self, area: Area, radius: f32, color: Color, inner: Color) {
        self.fill(area, radius, color);
        let line = 1.0 / self.scale.min(1.0);
        let inside = Area {
            x: area.x + line,
            y: area.y + line,
            width: area.width - 2.0 * line,
            height: area.height - 2.0 * line,
        };
        self.fill(inside, radius - line, inner);
    }

    /// Writes a line whose letters stand on `baseline`.
    pub fn text(&mut self, text: &str, x: f32, baseline: f32, size: f32, weight: Weight, color: Color) {
        let font = self.fonts.get(weight).clone();
        let font = font.as_scaled(PxScale::from(size * self.scale));
        let (mut x, y) = (x * self.scale, baseline * self.scale);
        let mut last = None;
        for letter in text.chars() {
            let id = font.glyph_id(letter);
            x += last.map_or(0.0, |last| font.kern(last, id));
            let glyph = id.with_scale_and_position(font.scale(), point(x, y));
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                outline.draw(|dx, dy, cover| {
                    let (px, py) = (bounds.min.x + dx as f32, bounds.min.y + dy as f32);
                    if px >= 0.0 && py >= 0.0 {
                        self.blend(px as u32, py as u32, color, cover);
                    }
                });
            }
            x += font.h_advance(id);
            last = Some(id);
        }
    }

    pub fn png(self) -> Result<Vec<u8>, PictureError> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.image.write_to(&mut bytes, ImageFormat::Png)?;
        Ok(bytes.into_inner())
    }

    fn blend(&mut self, x: u32, y: u32, color: Color, cover: f32) {
        if let Some(pixel) = self.image.get_pixel_mut_checked(x, y) {
            for (channel, wanted) in pixel.0.iter_mut().zip(color) {
                let (old, new) = (f32::from(*channel), f32::from(wanted));
                *channel = (old + (new - old) * cover.clamp(0.0, 1.0)).round() as u8;
            }
        }
    }
}

/// The pixels that an interval touches.
fn pixels(from: f32, to: f32, end: u32) -> std::ops::Range<u32> {
    (from.floor().max(0.0) as u32)..(to.ceil().max(0.0) as u32).min(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fonts_are_whole_and_have_our_signs() {
        let fonts = Fonts::new();
        for weight in [Weight::Regular, Weight::Bold] {
            for letter in "aZ0→✓✗≠·é–".chars() {
                assert_ne!(fonts.get(weight).glyph_id(letter).0, 0, "{letter}");
            }
        }
        assert!(fonts.width("mmm", 10.0, Weight::Bold) > fonts.width("iii", 10.0, Weight::Bold));
    }

    #[test]
    fn shapes_have_their_place_and_corners() {
        let mut canvas = Canvas::new(20, 20, 2.0, [255; 3]);
        canvas.fill(Area { x: 1.0, y: 1.0, width: 8.0, height: 8.0 }, 3.0, [0; 3]);
        let at = |x, y| canvas.image.get_pixel(x, y).0[0];
        assert_eq!((at(10, 10), at(10, 2), at(10, 1), at(0, 0)), (0, 0, 255, 255));
        assert_eq!(at(2, 2), 255, "the corner is round");
    }
}
