//! Where elements lie: index arithmetic from layouts, as WGSL functions whose numbers are params.
//!
//! Axes that lie one after the other for all operands are merged, so that the text depends only on how many
//! are left and on the pattern of each operand: packed, scalar or strided.

use convoke_graph_core::Layout;
use convoke_shaders::Kernel;
use smallvec::SmallVec;

/// Merged axes, and the strides of each operand along them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Axes {
    /// The sizes, none of which is 1.
    pub dims: SmallVec<[usize; 6]>,
    /// For each operand, a step in elements for each size.
    pub strides: SmallVec<[SmallVec<[isize; 6]>; 4]>,
}

impl Axes {
    /// Merges what can be merged of `dims`, along which each operand has `strides`.
    pub(crate) fn merge(dims: &[usize], strides: &[&[isize]]) -> Axes {
        let mut axes = Axes {
            dims: SmallVec::new(),
            strides: strides.iter().map(|_| SmallVec::new()).collect(),
        };
        for (axis, &dim) in dims.iter().enumerate().filter(|&(_, &dim)| dim != 1) {
            let packed = |(own, from): (&SmallVec<[isize; 6]>, &&[isize])| {
                own.last().is_some_and(|&before| before == from[axis] * dim as isize)
            };
            let mergeable = !axes.dims.is_empty() && axes.strides.iter().zip(strides).all(packed);
            if let (true, Some(last)) = (mergeable, axes.dims.last_mut()) {
                *last *= dim;
            } else {
                axes.dims.push(dim);
            }
            for (own, from) in axes.strides.iter_mut().zip(strides) {
                if mergeable {
                    own.pop();
                }
                own.push(from[axis]);
            }
        }
        axes
    }

    /// As [`Self::merge`], of whole layouts of one shape.
    pub(crate) fn of(layouts: &[&Layout]) -> Axes {
        let dims = layouts.first().map_or(&[][..], |layout| layout.shape().dims());
        let strides: SmallVec<[&[isize]; 4]> = layouts.iter().map(|l| l.strides()).collect();
        Axes::merge(dims, &strides)
    }

    /// Whether an operand lies without gaps.
    pub(crate) fn is_packed(&self, operand: usize) -> bool {
        match (self.dims.as_slice(), self.strides[operand].as_slice()) {
            ([], _) | ([_], [1]) => true,
            ([..], _) => false,
        }
    }

    /// Adds the sizes as params `{name}0`, `{name}1`, ..
    pub(crate) fn size_params(&self, kernel: &mut Kernel, name: &str) {
        // The first size is never divided by.
        for (axis, &dim) in self.dims.iter().enumerate().skip(1) {
            kernel.size(format!("{name}{axis}"), dim as u32);
        }
    }

    /// Adds the strides of an operand as params, and gives the statements that return where the element with
    /// index `i` along the merged axes lies, `start` being where the first is.
    pub(crate) fn address(
        &self,
        kernel: &mut Kernel,
        operand: usize,
        sizes: &str,
        name: &str,
        start: &str,
    ) -> String {
        let strides = &self.strides[operand];
        if strides.iter().all(|&stride| stride == 0) {
            return format!("return {start};");
        }
        if self.is_packed(operand) {
            return format!("return {start} + i;");
        }
        for (axis, &stride) in strides.iter().enumerate() {
            kernel.size(format!("{name}{axis}"), stride as u32);
        }
        let mut body = format!("var at = {start}; var rest = i;");
        for axis in (1..strides.len()).rev() {
            body.push_str(&format!(
                " at += rest % p.{sizes}{axis} * p.{name}{axis}; rest /= p.{sizes}{axis};"
            ));
        }
        body.push_str(&format!(" return at + rest * p.{name}0;"));
        body
    }
}

#[cfg(test)]
mod tests {
    use super::Axes;

    #[test]
    fn axes_that_lie_one_after_the_other_are_merged() {
        let axes = Axes::merge(&[2, 3, 4], &[&[12, 4, 1]]);
        assert_eq!(axes.dims.as_slice(), [24]);
        assert!(axes.is_packed(0));
        let axes = Axes::merge(&[2, 3, 4], &[&[12, 4, 1], &[0, 4, 1]]);
        assert_eq!(axes.dims.as_slice(), [2, 12]);
        assert_eq!(axes.strides[1].as_slice(), [0, 1]);
        let axes = Axes::merge(&[1, 5, 1], &[&[7, 1, 3]]);
        assert_eq!((axes.dims.as_slice(), axes.is_packed(0)), (&[5][..], true));
        let axes = Axes::merge(&[2, 3], &[&[1, 2]]);
        assert_eq!(axes.dims.as_slice(), [2, 3]);
        assert!(!axes.is_packed(0));
        let axes = Axes::merge(&[4, 3], &[&[-3, -1]]);
        assert_eq!((axes.dims.as_slice(), axes.strides[0].as_slice()), (&[12][..], &[-1][..]));
        assert!(Axes::merge(&[1], &[&[0]]).is_packed(0));
    }
}
