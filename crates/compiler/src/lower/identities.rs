//! Operations that give one of their arguments as it is, bit for bit, whatever that holds: NaN, infinities and
//! the sign of zero included.
//!
//! `x + 0` is none of them: of -0 it gives 0.

use convoke_graph_core::{DType, Elementwise, HostTensor};

use super::Form;
use super::fold::splat;

/// Which argument an operation gives, of those of the result's dtype.
pub(super) fn identity(op: Elementwise, args: &[&Form], dtype: DType) -> Option<usize> {
    let known = |at: usize| args.get(at).and_then(|form| splat(form));
    let is = |at: usize, x: f64| known(at).is_some_and(|scalar| is_number(&scalar, x));
    let given = match op {
        Elementwise::Row(row) => match row.name {
            "mul" if is(1, 1.0) => 0,
            "mul" if is(0, 1.0) => 1,
            "div" if is(1, 1.0) => 0,
            "sub" if is(1, 0.0) => 0,
            "add" if is(1, -0.0) => 0,
            "add" if is(0, -0.0) => 1,
            // Of integers there is one zero.
            "add" if !dtype.is_float() && is(1, 0.0) => 0,
            "add" if !dtype.is_float() && is(0, 0.0) => 1,
            _ => return None,
        },
        Elementwise::Select => {
            let condition = known(0)?;
            if *condition.as_slice::<bool>().ok()?.first()? { 1 } else { 2 }
        }
        _ => return None,
    };
    Some(given)
}

/// Whether a scalar is a number with this sign.
fn is_number(scalar: &HostTensor, x: f64) -> bool {
    let own = scalar.to_f64s().ok().and_then(|xs| xs.first().copied());
    let is_float = scalar.dtype().is_float();
    own.is_some_and(|own| own == x && (!is_float || own.is_sign_negative() == x.is_sign_negative()))
}
