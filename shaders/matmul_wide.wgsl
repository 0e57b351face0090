// matmul_wide: the sum over k of a[z, i, k] * b[z, k, j], as matmul.wgsl, with four times as many elements for each
// invocation.
//
// A workgroup of SIDE * SIDE invocations computes a tile of 8 SIDE rows and columns of one matrix z, or, with
// several splits, its sum over one part of k; split s of z is matrix s * batches + z of the result. An
// invocation keeps 8 rows of 8 columns in named registers; 16 steps of k at a time go through workgroup
// memory, where 4 rows of a, or 4 columns of b, are a vector.
// Twin: matmul.wgsl, whose invocations need fewer registers.
// CPU twin: crates/graph-core/src/ops/matmul.rs
//
// param k: u32
// param batches: u32
// param splits: u32
// param split: u32
// param tiles_m: u32
// param tiles_n: u32
// hole const SIDE = 8u;
// hole const PER = 2u;
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
    let i = tile / p.tiles_n % p.tiles_m * (8u * SIDE);
    let j = tile % p.tiles_n * (8u * SIDE);
    let a = a_start(matrix % p.batches);
    let b = b_start(matrix % p.batches);
    let begin = matrix / p.batches * p.split;
    let end = min(p.k, begin + p.split);
    let row = lane / SIDE;
    let column = lane % SIDE;

    // Rows 0 to 3 and 4 to 7 are SIDE vectors apart, and so are columns: neighbours read neighbours.
    var c0 = vec4<T>(); var d0 = vec4<T>();
    var c1 = vec4<T>(); var d1 = vec4<T>();
    var c2 = vec4<T>(); var d2 = vec4<T>();
    var c3 = vec4<T>(); var d3 = vec4<T>();
    var c4 = vec4<T>(); var d4 = vec4<T>();
    var c5 = vec4<T>(); var d5 = vec4<T>();
    var c6 = vec4<T>(); var d6 = vec4<T>();
    var c7 = vec4<T>(); var d7 = vec4<T>();
    for (var k = begin; k < end; k += DEPTH) {
        fetch(lane, a, b, i, j, k, end);
        workgroupBarrier();
        for (var step = 0u; step < DEPTH; step++) {
            let a0 = tile_a[row * STEPS_A + step];
            let a1 = tile_a[(row + SIDE) * STEPS_A + step];
            let b0 = tile_b[step * VECTORS + column];
            let b1 = tile_b[step * VECTORS + column + SIDE];
            c0 += a0.x * b0; d0 += a0.x * b1;
            c1 += a0.y * b0; d1 += a0.y * b1;
            c2 += a0.z * b0; d2 += a0.z * b1;
            c3 += a0.w * b0; d3 += a0.w * b1;
            c4 += a1.x * b0; d4 += a1.x * b1;
            c5 += a1.y * b0; d5 += a1.y * b1;
            c6 += a1.z * b0; d6 += a1.z * b1;
            c7 += a1.w * b0; d7 += a1.w * b1;
        }
        workgroupBarrier();
    }

    let r = i + row * 4u;
    let s = j + column * 4u;
    let t = r + 4u * SIDE;
    let u = s + 4u * SIDE;
    store_four(matrix, r, s, c0); store_four(matrix, r, u, d0);
    store_four(matrix, r + 1u, s, c1); store_four(matrix, r + 1u, u, d1);
    store_four(matrix, r + 2u, s, c2); store_four(matrix, r + 2u, u, d2);
    store_four(matrix, r + 3u, s, c3); store_four(matrix, r + 3u, u, d3);
    store_four(matrix, t, s, c4); store_four(matrix, t, u, d4);
    store_four(matrix, t + 1u, s, c5); store_four(matrix, t + 1u, u, d5);
    store_four(matrix, t + 2u, s, c6); store_four(matrix, t + 2u, u, d6);
    store_four(matrix, t + 3u, s, c7); store_four(matrix, t + 3u, u, d7);
}
