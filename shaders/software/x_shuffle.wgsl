// The eight vectors of a unit of x, spread over the lanes of a subgroup of exactly LANES lanes, a
// power of two from 8 upwards. On a software adapter a load has one cost for one address or for many,
// so eight loads become one; a shuffle from a known lane is a move between registers.
// The including shader declares `x_at` and `LANES`; all lanes must be active.

alias X = vec4<f32>;

fn load_x(base: u32, unit: u32, lane: u32) -> X {
    let j = lane % 8u;
    return fit_x(x_at(base, unit * 8u + j), j);
}

// The vector of x that a lane loads for `unit`.
fn x_vector(unit: u32, lane: u32) -> u32 { return unit * 8u + lane % 8u; }

// The lane's part of the squares of the unit, and the sum of these parts over all lanes. Every eight lanes hold
// the same vectors.
fn x_squares(v: X, lane: u32) -> f32 { return unfit_squares(v, lane % 8u); }

fn x_over_lanes(part: f32) -> f32 { return subgroupAdd(part) * (8.0 / f32(LANES)); }

// Multiplies by `gains`, vector `x_vector` of a row.
fn x_times(v: X, gains: vec4<f32>) -> X { return v * gains; }

// Vector `j` of the unit.
fn x_vec4(v: X, j: u32) -> vec4<f32> { return subgroupShuffle(v, j); }

// Sum of the unit.
fn x_total(v: X, lane: u32) -> f32 {
    let part = unfit_sum(v, lane % 8u);
    var sum = 0.0;
    for (var j = 0u; j < 8u; j++) { sum += subgroupShuffle(part, j); }
    return sum;
}
