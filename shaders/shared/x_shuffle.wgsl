// The eight vectors of a unit of x, spread over the lanes of a subgroup of exactly LANES lanes, a
// power of two from 8 upwards. A load costs a CPU adapter the same whether its lanes want one address
// or many, so eight loads become one, and a shuffle from a known lane is a move between registers.
// The including shader declares `x_at` and `LANES`; all lanes must be active.

alias X = vec4<f32>;

fn load_x(base: u32, unit: u32, lane: u32) -> X {
    let j = lane % 8u;
    return fit_x(x_at(base, unit * 8u + j), j);
}

// Vector `j` of the unit.
fn x_vec4(v: X, j: u32) -> vec4<f32> { return subgroupShuffle(v, j); }

// Sum of the unit.
fn x_total(v: X, lane: u32) -> f32 {
    let part = unfit_sum(v, lane % 8u);
    var sum = 0.0;
    for (var j = 0u; j < 8u; j++) { sum += subgroupShuffle(part, j); }
    return sum;
}
