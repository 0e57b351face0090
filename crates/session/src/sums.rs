//! Sums of runs that store at one time: what each adds is kept.

use convoke_graph_core::{DType, Element, Error, Result};

/// Adds what a run added, `now` less `before`, to the elements in `bytes`.
///
/// # Errors
/// Elements that are no numbers.
pub(crate) fn add_difference(
    dtype: DType,
    bytes: &mut [u8],
    before: &[u8],
    now: &[u8],
) -> Result<()> {
    fn each<T: Element>(
        bytes: &mut [u8],
        before: &[u8],
        now: &[u8],
        add: impl Fn(T, T, T) -> T,
    ) -> Result<()> {
        let misfit = |_| Error::internal("elements are not aligned");
        let before: &[T] = bytemuck::checked::try_cast_slice(before).map_err(misfit)?;
        let now: &[T] = bytemuck::checked::try_cast_slice(now).map_err(misfit)?;
        let size = size_of::<T>();
        for ((to, &before), &now) in bytes.chunks_exact_mut(size).zip(before).zip(now) {
            // Infinity less itself is no number.
            if bytemuck::bytes_of(&before) == bytemuck::bytes_of(&now) {
                continue;
            }
            let sum = add(bytemuck::checked::pod_read_unaligned(to), before, now);
            to.copy_from_slice(bytemuck::bytes_of(&sum));
        }
        Ok(())
    }
    macro_rules! by_dtype {
        ($($integer:ident $int:ty),*; $($half:ident $h:ty),*) => {
            match dtype {
                DType::F32 => each::<f32>(bytes, before, now, |c, b, n| c + (n - b)),
                DType::F64 => each::<f64>(bytes, before, now, |c, b, n| c + (n - b)),
                $(DType::$half => each::<$h>(bytes, before, now, |c, b, n| {
                    <$h>::from_f32(c.to_f32() + (n.to_f32() - b.to_f32()))
                }),)*
                $(DType::$integer => each::<$int>(bytes, before, now, |c, b, n| {
                    c.wrapping_add(n.wrapping_sub(b))
                }),)*
                other => Err(Error::internal(format!("nothing is added to {other}"))),
            }
        };
    }
    by_dtype!(
        I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64;
        F16 half::f16, BF16 half::bf16
    )
}
