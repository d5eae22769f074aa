// Sums over a subgroup, which has SUBGROUP lanes, by subgroup operations. The alternative is sums_workgroup.wgsl. The
// including shader declares SUMS.

var<private> subgroup_sums: array<f32, SUMS>;

// Takes SUMS values of each lane. All lanes of the workgroup must call it.
fn put_sums(values: array<f32, SUMS>, local: u32) {
    for (var i = 0u; i < SUMS; i++) { subgroup_sums[i] = subgroupAdd(values[i]); }
}

// The sum of value `i` over the lane's subgroup.
fn sum_of(i: u32, local: u32) -> f32 { return subgroup_sums[i]; }
