// The K largest logits of a chunk with their ids, in descending order (ties: lower id first), and
// the chunk's max and sum of exp(logit - max). So the host reads only a few bytes a token.
// The first stage cuts a row of logits into chunks; the second joins the chunks' results.
// One invocation a chunk. Dispatch: grid(ceil(T * chunks / 32)). Called by ops/top_k.rs.

const K: u32 = 1u;
// True if the input is the result of a first stage, false for logits.
const JOIN: bool = false;
const GRID_X: u32 = 32768u;

// First stage: `items` logits a row. Join: `items` first-stage results a row.
struct Params { tokens: u32, items: u32, chunks: u32, chunk_items: u32 }

@group(0) @binding(0) var<storage, read> input: array<u32>;           // (T, items) logits, or (T, items, 2 K + 2)
@group(0) @binding(1) var<storage, read_write> out: array<u32>;       // (T, chunks, 2 K + 2): values, ids, max, sum
@group(0) @binding(2) var<uniform> p: Params;

var<private> values: array<f32, K>;
var<private> ids: array<u32, K>;
var<private> top: f32;
var<private> sum: f32;

fn offer(value: f32, id: u32) {
    // Ids come in ascending order within equal values, so a later equal value never moves ahead.
    if !(value > values[K - 1u]) { return; }
    var at = K - 1u;
    while at > 0u {
        if !(value > values[at - 1u]) { break; }
        values[at] = values[at - 1u];
        ids[at] = ids[at - 1u];
        at -= 1u;
    }
    values[at] = value;
    ids[at] = id;
}

fn add_mass(other_top: f32, other_sum: f32) {
    let joint = max(top, other_top);
    sum = sum * exp(top - joint) + other_sum * exp(other_top - joint);
    top = joint;
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = (group.x + group.y * GRID_X) * 32u + local;
    if index >= p.tokens * p.chunks { return; }
    let token = index / p.chunks;
    let first = (index % p.chunks) * p.chunk_items;
    let last = min(first + p.chunk_items, p.items);
    for (var i = 0u; i < K; i++) {
        values[i] = -3.4e38;
        ids[i] = 0xffffffffu;
    }
    top = -3.4e38;
    sum = 0.0;
    let width = 2u * K + 2u;
    for (var item = first; item < last; item++) {
        if JOIN {
            let at = (token * p.items + item) * width;
            for (var i = 0u; i < K; i++) { offer(bitcast<f32>(input[at + i]), input[at + K + i]); }
            add_mass(bitcast<f32>(input[at + 2u * K]), bitcast<f32>(input[at + 2u * K + 1u]));
        } else {
            let value = bitcast<f32>(input[token * p.items + item]);
            offer(value, item);
            if value > top {
                sum = sum * exp(top - value) + 1.0;
                top = value;
            } else {
                sum += exp(value - top);
            }
        }
    }
    let to = index * width;
    for (var i = 0u; i < K; i++) {
        out[to + i] = bitcast<u32>(values[i]);
        out[to + K + i] = ids[i];
    }
    out[to + 2u * K] = bitcast<u32>(top);
    out[to + 2u * K + 1u] = bitcast<u32>(sum);
}
