// emit_bool: one invocation stores four bools, which are one word.
//
// The word is written whole, so that no two invocations touch the same. Bytes after the last element are 0.
// Twin: lib/emit.wgsl, for wider results.
//
// hole fn value(i: u32) -> bool { return true; }
// hole fn store_word(i: u32, word: u32) { }
// param len: u32

fn emit(item: u32) {
    let i = item * 4u;
    var word = u32(value(i));
    if i + 1u < p.len { word |= u32(value(i + 1u)) << 8u; }
    if i + 2u < p.len { word |= u32(value(i + 2u)) << 16u; }
    if i + 3u < p.len { word |= u32(value(i + 3u)) << 24u; }
    store_word(item, word);
}
