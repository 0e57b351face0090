//! The state of a reader as bytes: a name, two numbers and a checksum, each number of 8 little-endian bytes.

/// What it begins with.
const NAME: &[u8; 16] = b"convoke reader 1";

/// The bytes of these numbers.
pub(super) fn of(numbers: [u64; 2]) -> Vec<u8> {
    let mut bytes = NAME.to_vec();
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(checksum(&bytes).to_le_bytes());
    bytes
}

/// The numbers of these bytes, if they are a state.
pub(super) fn parsed(bytes: &[u8]) -> Option<[u64; 2]> {
    let rest = bytes.strip_prefix(NAME)?;
    let (words, []) = rest.as_chunks::<8>() else { return None };
    let &[first, second, sum] = words else { return None };
    let covered = bytes.len().checked_sub(8).and_then(|len| bytes.get(..len))?;
    let numbers = [u64::from_le_bytes(first), u64::from_le_bytes(second)];
    (checksum(covered) == u64::from_le_bytes(sum)).then_some(numbers)
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
