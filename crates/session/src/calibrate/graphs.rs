//! The graphs of the probes. Each computes from variables that are resident, and most store into one, so that nothing
//! crosses, but for the probes of links.

use convoke_graph_core::{
    Conv2d, DType, Graph, HostTensor, Init, Operation, Padding, Pool, Result, Shape, Tensor,
    Variable,
};

use super::measure::TINY;
use super::probe::Probe;

/// Kernels of a chain that can't become one.
pub(super) const CHAIN: usize = 32;
/// Elements of a row.
const ROW: usize = 256;
/// Rows of a table, and their elements.
const TABLE: usize = 4096;
const SLICE: usize = 64;
/// Images of the convolution's probe, and their channels; those of a pooling.
const IMAGE: usize = 28;
const CHANNELS: [usize; 2] = [32, 64];

fn variable(g: &Graph, name: &str, sizes: &[usize]) -> Variable {
    g.untrained_variable(name, Init::Constant(0.5), DType::F32, sizes)
}

/// Stores what `f` makes of two variables of `sizes` into one of `made`.
fn stored(
    sizes: [&[usize]; 2],
    made: &[usize],
    f: impl FnOnce(&Tensor, &Tensor) -> Tensor,
) -> Probe {
    let g = Graph::new();
    let (a, b) = (variable(&g, "a", sizes[0]), variable(&g, "b", sizes[1]));
    let result = f(a.value(), b.value());
    let target = assigned(&g, &result, made);
    let n = sizes.iter().map(|sizes| sizes.iter().product()).max().unwrap_or(0);
    let before = anew(&[&a, &b], n);
    Probe { before, ..Probe::stores(g, target) }
}

fn assigned(g: &Graph, result: &Tensor, sizes: &[usize]) -> Operation {
    let out = g.untrained_variable("out", Init::zeros(), DType::F32, sizes);
    out.assign(result).operation()
}

/// Makes the elements of variables of `n` anew. Of next to none it matters not who has them.
fn anew(variables: &[&Variable], n: usize) -> Vec<Operation> {
    let negated = |x: &&Variable| x.assign(-x.value()).operation();
    variables.iter().filter(|_| n > TINY).map(negated).collect()
}

/// One elementwise operation on `n` elements.
pub(super) fn sum_of_two(n: usize) -> Result<Probe> {
    Ok(stored([&[n], &[n]], &[n], |a, b| a + b))
}

/// The same, of which one operand is fed.
pub(super) fn fed(n: usize) -> Result<Probe> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, convoke_graph_core::dims![n]);
    let a = variable(&g, "a", &[n]);
    let target = assigned(&g, &(&x + a.value()), &[n]);
    let before = anew(&[&a], n);
    let value = HostTensor::with_shape(Shape::new(&[n])?, vec![0.5f32; n])?;
    Ok(Probe { feeds: vec![(x, value)], before, ..Probe::stores(g, target) })
}

/// The same, fetched.
pub(super) fn fetched(n: usize) -> Result<Probe> {
    let g = Graph::new();
    let (a, b) = (variable(&g, "a", &[n]), variable(&g, "b", &[n]));
    let fetch = Some(a.value() + b.value());
    let before = anew(&[&a, &b], n);
    Ok(Probe { graph: g, feeds: Vec::new(), fetch, target: None, before })
}

/// A scalar fed, and fetched with 1 added: a run that does next to nothing.
pub(super) fn smallest(_: usize) -> Result<Probe> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, convoke_graph_core::dims![]);
    let fetch = Some(&x + 1.0);
    let feeds = vec![(x, HostTensor::from(2.0f32))];
    Ok(Probe { graph: g, feeds, fetch, target: None, before: Vec::new() })
}

/// `n` small kernels, each of what the one before gives.
pub(super) fn chain(n: usize) -> Result<Probe> {
    let sizes = [1, 1, 8, 8];
    let pool = Pool { stride: [1, 1], padding: Padding::Same, ..Pool::default() };
    Ok(stored([&sizes, &[1]], &sizes, |a, _| (0..n).fold(a.clone(), |x, _| x.max_pool(pool))))
}

/// 24 additions and multiplications on each of `n` elements.
pub(super) fn arithmetic(n: usize) -> Result<Probe> {
    let step = |a: &Tensor, b: &Tensor| (0..12).fold(a.clone(), |x, _| x * b + a);
    Ok(stored([&[n], &[n]], &[n], step))
}

/// 6 functions of each of `n` elements, cheap and dear ones.
pub(super) fn functions(n: usize) -> Result<Probe> {
    let step = |x: Tensor, i: usize| if i.is_multiple_of(2) { x.tanh() } else { x.exp() };
    Ok(stored([&[n], &[1]], &[n], |a, _| (0..6).fold(a.clone(), step)))
}

/// The variance of each of `n` rows: two reductions, the second of what the first gives.
pub(super) fn rows(n: usize) -> Result<Probe> {
    let variance = |a: &Tensor| (a - a.mean_keep(-1)).square().mean(-1);
    Ok(stored([&[n, ROW], &[1]], &[n], |a, _| variance(a)))
}

/// The sums of [`ROW`] columns of `n` rows.
pub(super) fn columns(n: usize) -> Result<Probe> {
    Ok(stored([&[n, ROW], &[1]], &[ROW], |a, _| a.sum(0)))
}

/// A product of square matrices.
pub(super) fn product(n: usize) -> Result<Probe> {
    Ok(stored([&[n, n], &[n, n]], &[n, n], |a, b| a.matmul(b)))
}

/// A vector times a matrix, which stays as it is: most such are weights of a network that answers.
pub(super) fn thin_product(n: usize) -> Result<Probe> {
    let mut probe = stored([&[1, n], &[n, 128]], &[1, 128], |a, b| a.matmul(b));
    probe.before.truncate(1);
    Ok(probe)
}

/// Convolutions of `n` images with filters of 3x3.
pub(super) fn convolution(n: usize) -> Result<Probe> {
    let (images, made) = ([n, CHANNELS[0], IMAGE, IMAGE], [n, CHANNELS[1], IMAGE, IMAGE]);
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let filters = [CHANNELS[1], CHANNELS[0], 3, 3];
    Ok(stored([&images, &filters], &made, |a, b| a.conv2d(b, conv)))
}

/// Poolings of `n` images.
pub(super) fn pooling(n: usize) -> Result<Probe> {
    let made = [n, CHANNELS[0], IMAGE / 2, IMAGE / 2];
    let images = [n, CHANNELS[0], IMAGE, IMAGE];
    Ok(stored([&images, &[1]], &made, |a, _| a.max_pool(Pool::default())))
}

/// `n` rows of a table.
pub(super) fn gather(n: usize) -> Result<Probe> {
    let g = Graph::new();
    let table = variable(&g, "table", &[TABLE, SLICE]);
    // Far apart, as words of a text are.
    let rows: Vec<i32> = (0..n).map(|i| (i * 1237 % TABLE) as i32).collect();
    let rows = Init::Value(HostTensor::with_shape(Shape::new(&[n])?, rows)?);
    let rows = g.untrained_variable("rows", rows, DType::I32, [n]);
    // It may fail: a variable would take it when it is known that it did not, by a copy that would be timed too.
    let target = table.value().gather(rows.value(), 0).operation();
    Ok(Probe::stores(g, target))
}

/// `n` random elements.
pub(super) fn random(n: usize) -> Result<Probe> {
    let g = Graph::new();
    let target = assigned(&g, &g.random_uniform(&[n], DType::F32, 7), &[n]);
    Ok(Probe::stores(g, target))
}
