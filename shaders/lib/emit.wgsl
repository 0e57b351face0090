// emit: one invocation stores one element of 4 bytes (or 2, of f16).
//
// Twin: lib/emit_bool.wgsl, for results of bool.
//
// hole fn value(i: u32) -> u32 { return i; }
// hole fn place(i: u32) -> u32 { return i; }
// hole fn store(i: u32, v: u32) { }

fn emit(item: u32) {
    store(place(item), value(item));
}
