// Gathers the rows of the token ids from a packed table and widens them to f32.
// One invocation a unit of 32 columns. Dispatch: grid(ceil(T * units / 64)).

const GRID_X: u32 = 32768u;

struct Params { tokens: u32, cols: u32, units: u32, row_vec4: u32, first_row: u32, rows: u32 }

@group(0) @binding(0) var<storage, read> weights: array<Packed>;        // (rows, row_vec4)
@group(0) @binding(1) var<storage, read> batch: array<u32>;          // token ids first
@group(0) @binding(2) var<storage, read_write> out: array<f32>;      // (T, cols)
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = (group.x + group.y * GRID_X) * 64u + local;
    let token = index / p.units;
    let unit = index % p.units;
    if token >= p.tokens { return; }
    // A table split by rows is gathered part by part; each part skips the tokens of the others.
    let row = batch[token] - p.first_row;
    if batch[token] < p.first_row || row >= p.rows { return; }
    let v = load_unit(row * p.row_vec4, p.units, unit);
    let first = unit * 32u;
    for (var j = 0u; j < 8u; j++) {
        for (var c = 0u; c < 4u; c++) {
            let col = first + 4u * j + c;
            if col < p.cols { out[token * p.cols + col] = v[j][c]; }
        }
    }
}
