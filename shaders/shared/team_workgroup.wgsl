// Sums over the TEAM lanes of a team, through workgroup memory: two barriers for all of them, and a few lanes
// add up what they need. The alternative is team_subgroup.wgsl. The including shader declares SUMS.

var<workgroup> team_slots: array<f32, SUMS * LANES>;

// Takes SUMS values of each lane. All lanes of the workgroup must call it.
fn team_put(values: array<f32, SUMS>, index: u32) {
    for (var i = 0u; i < SUMS; i++) { team_slots[i * LANES + index] = values[i]; }
    workgroupBarrier();
}

// The sum of value `i` over the lane's team.
fn team_sum(i: u32, index: u32) -> f32 {
    let first = i * LANES + index - index % TEAM;
    var sum = 0.0;
    for (var lane = 0u; lane < TEAM; lane++) { sum += team_slots[first + lane]; }
    return sum;
}
