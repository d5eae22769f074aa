// Sums over SUBGROUP neighbouring invocations of a workgroup, which stand in for a subgroup, through workgroup
// memory: two barriers for all sums, and a few invocations add the values that they need. The alternative is
// sums_subgroup.wgsl. The including shader declares SUMS.

var<workgroup> sum_slots: array<f32, SUMS * INVOCATIONS>;

// Takes SUMS values of each lane. All lanes of the workgroup must call it.
fn put_sums(values: array<f32, SUMS>, local: u32) {
    for (var i = 0u; i < SUMS; i++) { sum_slots[i * INVOCATIONS + local] = values[i]; }
    workgroupBarrier();
}

// The sum of value `i` over the lane's subgroup.
fn sum_of(i: u32, local: u32) -> f32 {
    let first = i * INVOCATIONS + local - local % SUBGROUP;
    var sum = 0.0;
    for (var lane = 0u; lane < SUBGROUP; lane++) { sum += sum_slots[first + lane]; }
    return sum;
}
