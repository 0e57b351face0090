// cover: where the windows of pooling stand.
//
// Elements lie as `(plane, row, column, lane)`: planes are images and channels, or images with their
// channels as lanes, so that one kernel serves both orders of axes.
// CPU twin: PoolGeometry::cover in crates/graph-core/src/ops/window.rs
//
// param in_h: u32
// param in_w: u32
// param out_h: u32
// param out_w: u32
// param lanes: u32
// param window_h: u32
// param window_w: u32
// param stride_h: u32
// param stride_w: u32
// param pad_h: u32
// param pad_w: u32

fn place_of(i: u32, height: u32, width: u32) -> vec4<u32> {
    let column = i / p.lanes;
    let row = column / width;
    let plane = row / height;
    return vec4<u32>(plane, row - plane * height, column - row * width, i - column * p.lanes);
}

fn at_in(place: vec4<u32>, y: u32, x: u32) -> u32 {
    return ((place.x * p.in_h + y) * p.in_w + x) * p.lanes + place.w;
}

fn at_out(place: vec4<u32>, i: u32, j: u32) -> u32 {
    return ((place.x * p.out_h + i) * p.out_w + j) * p.lanes + place.w;
}

// What of `size` elements lies under window i: the first, and the one after the last.
fn cover(i: u32, stride: u32, window: u32, pad: u32, size: u32) -> vec2<u32> {
    let begin = i * stride;
    let end = begin + window;
    return vec2<u32>(min(max(begin, pad) - pad, size), min(max(end, pad) - pad, size));
}

fn cover_rows(i: u32) -> vec2<u32> {
    return cover(i, p.stride_h, p.window_h, p.pad_h, p.in_h);
}

fn cover_columns(j: u32) -> vec2<u32> {
    return cover(j, p.stride_w, p.window_w, p.pad_w, p.in_w);
}

// The windows, of `count`, that element y lies under: the first, and the one after the last.
fn windows(y: u32, stride: u32, window: u32, pad: u32, count: u32) -> vec2<u32> {
    let at = y + pad;
    let before = max(at + 1u, window) - window;
    return vec2<u32>((before + stride - 1u) / stride, min(at / stride + 1u, count));
}
