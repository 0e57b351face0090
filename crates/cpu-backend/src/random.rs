//! Random elements, bit-equal to `graph_core::philox` rounded to the dtype.

use bytemuck::cast_slice_mut;
use convoke_compiler::{Group, Program};
use convoke_graph_core::{DType, Random, Result, philox};
use half::{bf16, f16};

use crate::elements::FromF64;
use crate::fast::wide;
use crate::threads::Threads;
use crate::{malformed, unsupported};

/// Elements from which threads share the work.
const PARALLEL: usize = 1 << 12;

/// Elements of one distribution, compiled.
pub(crate) struct RandomFill {
    random: Random,
    dtype: DType,
    len: usize,
    offset: usize,
}

impl RandomFill {
    /// Compiles a group.
    pub fn compile(program: &Program, group: &Group, random: Random) -> Result<Self> {
        let ([draws], [output]) = (group.inputs.as_slice(), group.outputs.as_slice()) else {
            return Err(malformed("random", "expected one input and one output"));
        };
        let value = program.value(*output);
        if program.value(draws.value).dtype != DType::U32 || draws.layout.shape().len() != 1 {
            return Err(malformed("random", "expected the count of draws as one u32"));
        }
        if !value.dtype.is_float() {
            return Err(unsupported(&format!("random elements of {}", value.dtype)));
        }
        let (dtype, len, offset) = (value.dtype, value.shape.len(), draws.layout.offset());
        Ok(Self { random, dtype, len, offset })
    }

    /// About as many as a sample takes.
    pub fn flops(&self) -> u64 {
        self.len as u64 * 100
    }

    /// Computes the group.
    pub fn run(
        &self,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        threads: &Threads,
    ) -> Result<()> {
        let draws: &[u32] = bytemuck::cast_slice(inputs[0]);
        let run = draws[self.offset];
        let widths = [self.dtype.n_bytes()];
        let parallel = self.len >= PARALLEL;
        threads.split(parallel, 1024, (outputs, &widths), self.len, &|range, outputs| {
            let (first, out) = (range.start as u64, &mut *outputs[0]);
            match self.dtype {
                DType::F16 => self.fill::<f16>(first, run, cast_slice_mut(out)),
                DType::BF16 => self.fill::<bf16>(first, run, cast_slice_mut(out)),
                DType::F32 => self.fill::<f32>(first, run, cast_slice_mut(out)),
                _ => self.fill::<f64>(first, run, cast_slice_mut(out)),
            }
            Ok(())
        })
    }

    fn fill<T: FromF64>(&self, first: u64, run: u32, out: &mut [T]) {
        let Random { distribution, key } = self.random;
        wide(
            #[inline(always)]
            || {
                let firsts = (first..).step_by(philox::LANES);
                for (first, out) in firsts.zip(out.chunks_mut(philox::LANES)) {
                    let samples = philox::samples(distribution, key, first, run);
                    for (out, sample) in out.iter_mut().zip(samples) {
                        *out = T::from_f64(sample);
                    }
                }
            },
        );
    }
}
