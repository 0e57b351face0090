// matmul: the sum over k of a[z, i, k] * b[z, k, j].
//
// A workgroup of SIDE * SIDE invocations computes a tile of 4 SIDE rows and columns of one matrix z, or, with
// several splits, its sum over one part of k; split s of z is matrix s * batches + z of the result. An
// invocation keeps 4 rows of 4 columns in named registers; 16 steps of k at a time go through workgroup
// memory, where 4 rows of a, or 4 columns of b, are a vector.
// CPU twin: crates/graph-core/src/ops/matmul.rs
// Source: the register tile of tfjs-backend-webgpu's packed matmul.
//
// param k: u32
// param batches: u32
// param splits: u32
// param split: u32
// param tiles_m: u32
// param tiles_n: u32
// hole const SIDE = 8u;
// hole const PER = 1u;
// hole alias T = f32;
// hole fn a_start(z: u32) -> u32 { return z; }
// hole fn b_start(z: u32) -> u32 { return z; }
// import place, tiles

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = linear(group, groups);
    let matrix = tile / (p.tiles_n * p.tiles_m);
    if matrix >= p.batches * p.splits { return; } // The whole workgroup leaves, before any barrier.
    let i = tile / p.tiles_n % p.tiles_m * (4u * SIDE);
    let j = tile % p.tiles_n * (4u * SIDE);
    let a = a_start(matrix % p.batches);
    let b = b_start(matrix % p.batches);
    let begin = matrix / p.batches * p.split;
    let end = min(p.k, begin + p.split);
    let row = lane / SIDE;
    let column = lane % SIDE;

    var c0 = vec4<T>();
    var c1 = vec4<T>();
    var c2 = vec4<T>();
    var c3 = vec4<T>();
    for (var k = begin; k < end; k += DEPTH) {
        fetch(lane, a, b, i, j, k, end);
        workgroupBarrier();
        for (var step = 0u; step < DEPTH; step += 4u) {
            let a0 = tile_a[row * STEPS_A + step];
            let a1 = tile_a[row * STEPS_A + step + 1u];
            let a2 = tile_a[row * STEPS_A + step + 2u];
            let a3 = tile_a[row * STEPS_A + step + 3u];
            let b0 = tile_b[step * SIDE + column];
            let b1 = tile_b[(step + 1u) * SIDE + column];
            let b2 = tile_b[(step + 2u) * SIDE + column];
            let b3 = tile_b[(step + 3u) * SIDE + column];
            c0 += a0.x * b0 + a1.x * b1 + a2.x * b2 + a3.x * b3;
            c1 += a0.y * b0 + a1.y * b1 + a2.y * b2 + a3.y * b3;
            c2 += a0.z * b0 + a1.z * b1 + a2.z * b2 + a3.z * b3;
            c3 += a0.w * b0 + a1.w * b1 + a2.w * b2 + a3.w * b3;
        }
        workgroupBarrier();
    }

    let r = i + row * 4u;
    let s = j + column * 4u;
    store_four(matrix, r, s, c0);
    store_four(matrix, r + 1u, s, c1);
    store_four(matrix, r + 2u, s, c2);
    store_four(matrix, r + 3u, s, c3);
}
