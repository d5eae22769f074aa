// Sums over the TEAM lanes of a team that are the lanes of a subgroup, in their order. The alternative is
// team_workgroup.wgsl.

fn team_add(value: f32, index: u32) -> f32 { return subgroupAdd(value); }
