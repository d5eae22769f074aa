// Sums over the TEAM lanes of a team, through workgroup memory. All lanes of the workgroup must call it.
// The alternative is team_subgroup.wgsl.

var<workgroup> team_slots: array<f32, LANES>;

fn team_add(value: f32, index: u32) -> f32 {
    let lane = index % TEAM;
    workgroupBarrier();
    team_slots[index] = value;
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {
        if lane < half { team_slots[index] += team_slots[index + half]; }
        workgroupBarrier();
    }
    return team_slots[index - lane];
}
