// The reductions of reduce_workgroup.wgsl by subgroup operations: one round through workgroup
// memory instead of one a doubling. Subgroups are identified by their first invocation, since neither
// their size nor the order of their invocations is known.

var<workgroup> reduce_slots: array<f32, INVOCATIONS>;

fn reduce_add(value: f32, local: u32) -> f32 {
    let sum = subgroupAdd(value);
    let leader = subgroupMin(local);
    workgroupBarrier();
    reduce_slots[local] = select(0.0, sum, local == leader);
    workgroupBarrier();
    var total = 0.0;
    let step = subgroupAdd(1u);
    if step * (INVOCATIONS / step) == INVOCATIONS && leader % step == 0u {
        for (var i = 0u; i < INVOCATIONS; i += step) { total += reduce_slots[i]; }
    } else {
        for (var i = 0u; i < INVOCATIONS; i++) { total += reduce_slots[i]; }
    }
    return total;
}

fn reduce_max(value: f32, local: u32) -> f32 {
    let top = subgroupMax(value);
    workgroupBarrier();
    reduce_slots[local] = top;
    workgroupBarrier();
    var total = reduce_slots[0];
    for (var i = 1u; i < INVOCATIONS; i++) { total = max(total, reduce_slots[i]); }
    return total;
}
