//! The blocks of k-quants whose numbers are known to come from such a block: they are found again, so that
//! widening a file and packing it anew changes no number. Weights that were never packed fit no such
//! block, which the first few of them show.

use half::f16;

use super::{SUPER, UNIT};

/// What rounding to f32 may do to a sum of weights, as a share of the largest weight.
const ROUNDING: f32 = 1e-6;

/// Scales, minima and quants of a super-block of q4_k or q5_k.
pub(super) struct Lines {
    pub d: f16,
    pub dmin: f16,
    /// Scale and minimum of each unit, six bits each.
    pub scales: [(u8, u8); SUPER],
    pub quants: Vec<u8>,
}

/// Scales and quants of a super-block of q6_k.
pub(super) struct Signed {
    pub d: f16,
    pub scales: [i8; 16],
    /// The quants, from -32 to 31.
    pub quants: Vec<i8>,
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0f32, |top, v| top.max(v.abs()))
}

/// How many times `unit` a value is, where that is a whole number but for rounding.
fn multiple(value: f32, unit: f32, rounding: f32) -> Option<f32> {
    let count = if unit == 0.0 { 0.0 } else { (value / unit).round() };
    ((count * unit - value).abs() <= rounding).then_some(count)
}

/// The largest step of which all `values` are whole multiples, where the largest of them is at most `most`
/// steps; 0 where all are 0.
fn step(values: impl Iterator<Item = f32> + Clone, most: u8, rounding: f32) -> Option<f32> {
    let extreme = largest(values.clone());
    let fits = |step: &f32| values.clone().all(|v| multiple(v, *step, rounding).is_some());
    (1..=most).map(|count| extreme / f32::from(count)).find(fits)
}

/// The scales in f16 of which all `steps` are whole multiples, the largest of them at most `most` times.
fn units(steps: &[f32], most: u8, rounding: f32) -> impl Iterator<Item = f16> {
    let extreme = largest(steps.iter().copied());
    let unit = move |count: u8| f16::from_f32(extreme / f32::from(count));
    let fits = move |d: &f16| steps.iter().all(|step| multiple(step.abs(), d.to_f32(), rounding).is_some());
    (1..=most).map(unit).filter(fits)
}

/// The super-block of q4_k (`most` 15) or q5_k (31) that widens to exactly `block`.
pub(super) fn lines(block: &[f32], most: u8) -> Option<Lines> {
    let rounding = ROUNDING * largest(block.iter().copied());
    let (mut lows, mut steps) = (Vec::with_capacity(SUPER), Vec::with_capacity(SUPER));
    for unit in block.chunks_exact(UNIT) {
        let low = unit.iter().copied().fold(f32::INFINITY, f32::min);
        steps.push(step(unit.iter().map(|v| v - low), most, rounding)?);
        lows.push(low);
    }
    units(&steps, 63, rounding).find_map(|d| {
        let d_value = d.to_f32();
        let scales: Vec<f32> =
            steps.iter().map(|&step| multiple(step, d_value, rounding).unwrap_or(0.0)).collect();
        let steps: Vec<f32> = scales.iter().map(|scale| d_value * scale).collect();
        let mins = Minima { lows: &lows, steps: &steps, most, rounding };
        mins.units().find_map(|dmin| {
            let mut found =
                Lines { d, dmin, scales: [(0, 0); SUPER], quants: Vec::with_capacity(block.len()) };
            for (at, unit) in block.chunks_exact(UNIT).enumerate() {
                let quants = |min: u8| {
                    let min = dmin.to_f32() * f32::from(min);
                    exact_quants(unit, steps[at], min, f32::from(most))
                };
                let (min, quants) = mins.counts(at, dmin).find_map(|min| Some((min, quants(min)?)))?;
                found.scales[at] = (scales[at] as u8, min);
                found.quants.extend(quants);
            }
            Some(found)
        })
    })
}

/// The quants of a unit of which `step q - min` is exactly each weight.
fn exact_quants(unit: &[f32], step: f32, min: f32, most: f32) -> Option<Vec<u8>> {
    let quant = |&v: &f32| {
        let q = if step == 0.0 { 0.0 } else { ((v + min) / step).round() };
        ((0.0..=most).contains(&q) && step * q - min == v).then_some(q as u8)
    };
    unit.iter().map(quant).collect()
}

/// The minima that units with these smallest weights and steps may have: the smallest weight may have any quant.
struct Minima<'a> {
    lows: &'a [f32],
    steps: &'a [f32],
    most: u8,
    rounding: f32,
}

impl Minima<'_> {
    fn of(&self, at: usize) -> impl Iterator<Item = f32> {
        let (low, step) = (self.lows[at], self.steps[at]);
        let quants = if step == 0.0 { 0..=0 } else { 0..=self.most };
        quants.map(move |quant| f32::from(quant) * step - low)
    }

    /// How many times `dmin` the minimum of a unit may be.
    fn counts(&self, at: usize, dmin: f16) -> impl Iterator<Item = u8> {
        let rounding = self.rounding;
        let count = move |min| multiple(min, dmin.to_f32(), rounding).filter(|n| (0.0..=63.0).contains(n));
        self.of(at).filter_map(count).map(|count| count as u8)
    }

    /// The values of `dmin` that suit all units.
    fn units(&self) -> impl Iterator<Item = f16> {
        let of_unit = |at: usize| {
            let mins = self.of(at).filter(|min| *min > self.rounding);
            mins.flat_map(|min| (1..=63u8).map(move |count| f16::from_f32(min / f32::from(count))))
        };
        let fits = |dmin: &f16| (0..self.lows.len()).all(|at| self.counts(at, *dmin).next().is_some());
        std::iter::once(f16::ZERO).chain((0..self.lows.len()).flat_map(of_unit)).filter(fits)
    }
}

/// The super-block of q6_k that widens to exactly `block`.
pub(super) fn signed(block: &[f32]) -> Option<Signed> {
    let rounding = ROUNDING * largest(block.iter().copied());
    let mut steps = Vec::with_capacity(16);
    for part in block.chunks_exact(16) {
        let found = step(part.iter().copied(), 32, rounding)?;
        // 32 steps are only below zero.
        let up = part.iter().any(|v| found > 0.0 && (v / found).round() > 31.0);
        steps.push(if up { -found } else { found });
    }
    let signs = [1.0, -1.0];
    let signed = |d: f16| signs.map(|sign| f16::from_f32(sign * d.to_f32()));
    units(&steps, 128, rounding).flat_map(signed).find_map(|d| {
        let mut found = Signed { d, scales: [0; 16], quants: Vec::with_capacity(block.len()) };
        for (at, part) in block.chunks_exact(16).enumerate() {
            let count = multiple(steps[at], d.to_f32(), rounding)?;
            // A scale of 128 is only below zero; its quants may change their signs.
            let count = if count == 128.0 { -count } else { count };
            found.scales[at] = (-128.0..=127.0).contains(&count).then_some(count as i8)?;
            let step = d.to_f32() * count;
            for &v in part {
                let q = if step == 0.0 { 0.0 } else { (v / step).round() };
                if !(-32.0..=31.0).contains(&q) || step * q != v {
                    return None;
                }
                found.quants.push(q as i8);
            }
        }
        Some(found)
    })
}
