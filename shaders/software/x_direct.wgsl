// Loads the vectors of a unit of x where they are used. All lanes load the same vector, which an adapter may
// detect. The alternative is x_shuffle.wgsl; the including shader declares `x_at`.

struct X { base: u32, first: u32 }

fn load_x(base: u32, unit: u32, lane: u32) -> X { return X(base, unit * 8u); }

// Placeholders for a norm, which this variant does not support: its lanes hold no part of x.
fn x_vector(unit: u32, lane: u32) -> u32 { return 0u; }
fn x_squares(v: X, lane: u32) -> f32 { return 0.0; }
fn x_over_lanes(part: f32) -> f32 { return part; }
fn x_times(v: X, gains: vec4<f32>) -> X { return v; }

// Vector `j` of the unit.
fn x_vec4(v: X, j: u32) -> vec4<f32> { return x_at(v.base, v.first + j); }

// Sum of the unit.
fn x_total(v: X, lane: u32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < 8u; j++) { sum += x_at(v.base, v.first + j); }
    return dot(sum, vec4<f32>(1.0));
}
