// Reductions over a workgroup of INVOCATIONS (a power of two), through workgroup memory alone.
// Every invocation must call them, and every one gets the result.

var<workgroup> reduce_slots: array<f32, INVOCATIONS>;

fn reduce_add(value: f32, local: u32) -> f32 {
    workgroupBarrier();
    reduce_slots[local] = value;
    workgroupBarrier();
    for (var half = INVOCATIONS / 2u; half > 0u; half = half / 2u) {
        if local < half { reduce_slots[local] += reduce_slots[local + half]; }
        workgroupBarrier();
    }
    return reduce_slots[0];
}

fn reduce_max(value: f32, local: u32) -> f32 {
    workgroupBarrier();
    reduce_slots[local] = value;
    workgroupBarrier();
    for (var half = INVOCATIONS / 2u; half > 0u; half = half / 2u) {
        if local < half { reduce_slots[local] = max(reduce_slots[local], reduce_slots[local + half]); }
        workgroupBarrier();
    }
    return reduce_slots[0];
}
