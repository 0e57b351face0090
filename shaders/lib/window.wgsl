// window: convolutions as matrix products, one index of which counts pixels and another taps.
//
// A pixel is (image, row, column) of the grid whose elements the product is about; a tap is (channel, row,
// column) of a window. `under` is the element that tap meets when the window of an output pixel stands on
// the input; `above` goes the other way, from an input pixel to the output whose window meets it with tap.
// Both are zero where there is no such element.
// CPU twin: crates/cpu-backend/src/conv/mod.rs
//
// param grid_h: u32
// param grid_w: u32
// param window_h: u32
// param window_w: u32
// param image_h: u32
// param image_w: u32
// param stride_h: u32
// param stride_w: u32
// param pad_h: u32
// param pad_w: u32
// param step_n: u32
// param step_c: u32
// param step_h: u32
// param step_w: u32
// hole alias T = f32;
// hole fn image(i: u32) -> T { return T(i); }
// hole fn tap(k: u32) -> vec3<u32> { return rows_of(k, p.window_h, p.window_w); }

fn rows_of(i: u32, height: u32, width: u32) -> vec3<u32> {
    let row = i / width;
    let plane = row / height;
    return vec3<u32>(plane, row - plane * height, i - row * width);
}

fn pixel(i: u32) -> vec3<u32> {
    return rows_of(i, p.grid_h, p.grid_w);
}

fn image_at(start: u32, n: u32, c: u32, y: u32, x: u32) -> T {
    return image(start + n * p.step_n + c * p.step_c + y * p.step_h + x * p.step_w);
}

fn under(start: u32, at: vec3<u32>, t: vec3<u32>) -> T {
    // Before the image these wrap round, and are too large.
    let y = at.y * p.stride_h + t.y - p.pad_h;
    let x = at.z * p.stride_w + t.z - p.pad_w;
    if y >= p.image_h || x >= p.image_w { return T(); }
    return image_at(start, at.x, t.x, y, x);
}

fn above(start: u32, at: vec3<u32>, t: vec3<u32>) -> T {
    let y = at.y + p.pad_h;
    let x = at.z + p.pad_w;
    if y < t.y || x < t.z { return T(); }
    let i = (y - t.y) / p.stride_h;
    let j = (x - t.z) / p.stride_w;
    if i * p.stride_h != y - t.y || j * p.stride_w != x - t.z { return T(); }
    if i >= p.image_h || j >= p.image_w { return T(); }
    return image_at(start, at.x, t.x, i, j);
}
