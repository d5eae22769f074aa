// Sums over the TEAM lanes of a team that are the lanes of a subgroup, in their order. The alternative is
// team_workgroup.wgsl. The including shader declares SUMS.

var<private> team_sums: array<f32, SUMS>;

// Takes SUMS values of each lane. All lanes of the workgroup must call it.
fn team_put(values: array<f32, SUMS>, index: u32) {
    for (var i = 0u; i < SUMS; i++) { team_sums[i] = subgroupAdd(values[i]); }
}

// The sum of value `i` over the lane's team.
fn team_sum(i: u32, index: u32) -> f32 { return team_sums[i]; }
