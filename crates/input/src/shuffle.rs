//! Examples in another order, from a buffer, by a seed.

use std::iter::FusedIterator;

use convoke_graph_core::philox::philox;

/// The items of an iterator, each once, each drawn from a buffer of up to `n` of them.
///
/// The buffer is filled before the first is drawn, and is kept full until the iterator ends. So no item
/// comes more than `n - 1` places earlier than in the iterator, and the order is a uniform one if `n` is
/// at least the number of items. The same seed gives the same order, everywhere; for a different order
/// in each epoch, let the epoch be a part of the seed.
///
/// Errors are items as any other, and lose their place too: take them out before.
///
/// # Source
/// `tf.RandomShuffleQueue` with a `min_after_dequeue` of `n - 1`, closed at the iterator's end.
#[derive(Debug)]
pub struct Shuffled<I: Iterator> {
    /// `None` at the end.
    source: Option<I>,
    n: usize,
    buffer: Vec<I::Item>,
    seed: u64,
    drawn: u64,
}

impl<I: Iterator> Shuffled<I> {
    /// Draws from a buffer of `n`; 0 is 1, which keeps the order.
    pub fn new(source: impl IntoIterator<IntoIter = I>, n: usize, seed: u64) -> Self {
        let (source, n) = (Some(source.into_iter()), n.max(1));
        Self { source, n, buffer: Vec::new(), seed, drawn: 0 }
    }

    fn fill(&mut self) {
        while self.buffer.len() < self.n {
            match self.source.as_mut().and_then(Iterator::next) {
                Some(item) => self.buffer.push(item),
                None => {
                    self.source = None;
                    break;
                }
            }
        }
    }

    /// Below `len`, which is no 0. The bias is below `len / 2^64`.
    fn draw(&mut self, len: usize) -> usize {
        let [low, high, ..] =
            philox(self.seed, [self.drawn as u32, (self.drawn >> 32) as u32, 0, 0]);
        self.drawn = self.drawn.wrapping_add(1);
        let word = u128::from(high) << 32 | u128::from(low);
        ((word * len as u128) >> 64) as usize
    }
}

impl<I: Iterator> Iterator for Shuffled<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.fill();
        match self.buffer.len() {
            0 => None,
            len => {
                let drawn = self.draw(len);
                Some(self.buffer.swap_remove(drawn))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.source.as_ref().map_or((0, Some(0)), Iterator::size_hint);
        let held = self.buffer.len();
        (least.saturating_add(held), most.and_then(|most| most.checked_add(held)))
    }
}

impl<I: Iterator> FusedIterator for Shuffled<I> {}
