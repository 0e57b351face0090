//! Runs that are prepared once and made many times.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use convoke_graph_core::{Error, FeedValue, IntoFeed, Result, Tensor, TensorViewMut};
use smallvec::SmallVec;

use crate::core::Request;
use crate::device_tensor::AllFetched;
use crate::executor::Outputs;
use crate::feeds::{self, FeedData};
use crate::fetch::{Fetch, FetchResults, Places};
use crate::metadata::RunMetadata;
use crate::prepared::Prepared;
use crate::session::{RunOptions, Session};

/// A run that is prepared: its feeds are given by place, and nothing is looked up while their shapes stay the same.
///
/// Many threads may call one callable at once. It keeps its session alive, but nothing of one that is closed. Nodes
/// that are added to the graph later are no part of it.
///
/// ```
/// # use convoke_session::{Devices, Session};
/// # use convoke_graph_core::{DType, Graph, dims};
/// # fn main() -> convoke_graph_core::Result<()> {
/// let g = Graph::new();
/// let x = g.placeholder("x", DType::F32, dims![3]);
/// let double = Session::new(&g, &Devices::cpu())?.callable(&[&x], &x * 2.0)?;
/// assert_eq!(double.call([&[1.0f32, 2.0, 3.0]])?.to_vec::<f32>()?, [2.0, 4.0, 6.0]);
/// # Ok(())
/// # }
/// ```
///
/// Source: TensorFlow's `Session.make_callable`.
pub struct Callable<F: Fetch> {
    session: Session,
    prepared: Arc<Prepared>,
    feeds: Vec<Tensor>,
    fetch: F,
    /// For each fetched tensor in order, its place among the fetches of the program.
    places: Places,
}

/// What a callable does besides what it is fed and fetches.
#[derive(Debug, Clone, Default)]
pub struct CallableOptions {
    connections: Vec<(Tensor, Tensor)>,
}

impl CallableOptions {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whoever takes `to` is given `from` instead, as if it were fed with it; nothing leaves its device for that. What
    /// computes `to` runs only if something else needs it, and fetching `to` gives `from`.
    ///
    /// # Errors
    /// In [`Session::callable_with`], `InvalidArgument`: another dtype, shapes that cannot be equal, a variable's handle, tensors of
    /// another graph or of branches and loops, a `to` that is fed or connected twice, a `from` that needs `to`;
    /// `Unimplemented` for strings of which the shape is not known to fit. In a call, `InvalidArgument` for a `from`
    /// of another shape than `to` may have.
    ///
    /// # Source
    /// TensorFlow's `CallableOptions.tensor_connection`.
    #[must_use]
    pub fn connect(mut self, from: &Tensor, to: &Tensor) -> Self {
        self.connections.push((from.clone(), to.clone()));
        self
    }
}

impl<F: Fetch> Callable<F> {
    pub(crate) fn new(
        session: Session,
        feeds: &[&Tensor],
        fetch: F,
        options: &CallableOptions,
    ) -> Result<Self> {
        session.core.check_open()?;
        let feeds: Vec<Tensor> = feeds.iter().map(|&tensor| tensor.clone()).collect();
        let mut metadata = RunMetadata::default();
        let (list, planned) = {
            let connections = &options.connections;
            session.core.planned_connected(feeds.iter(), connections, &fetch, &mut metadata)?
        };
        let places = list.into_places();
        let prepared = session.core.prepared.add(planned);
        Ok(Self { session, prepared, feeds, fetch, places })
    }

    /// Runs with these values for the tensors that the callable was made with, in their order.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](convoke_graph_core::ErrorKind::InvalidArgument) for another number of values;
    /// as [`Session::run`].
    pub fn call<'a>(&self, values: impl Arguments<'a>) -> Result<F::Output> {
        self.take(values, &RunOptions::default(), &mut RunMetadata::default())
    }

    /// As [`Self::call`], with options, and says what the run did.
    ///
    /// # Errors
    /// As [`Self::call`] and [`Session::run_with`].
    pub fn call_with<'a>(
        &self,
        values: impl Arguments<'a>,
        options: &RunOptions,
    ) -> Result<(F::Output, RunMetadata)> {
        let mut metadata = RunMetadata::default();
        let output = self.take(values, options, &mut metadata)?;
        Ok((output, metadata))
    }

    /// As [`Self::call`], and copies what is fetched, tensor by tensor, into memory of the caller. Allocates nothing
    /// where everything runs on the host.
    ///
    /// # Errors
    /// As [`Self::call`]; memory for other dtypes or sizes, before anything runs. What an error leaves in the
    /// memory is not said.
    pub fn call_into<'a>(
        &self,
        values: impl Arguments<'a>,
        outputs: &mut [TensorViewMut<'_>],
    ) -> Result<RunMetadata> {
        self.call_into_with(values, &RunOptions::default(), outputs)
    }

    /// As [`Self::call_into`], with options.
    ///
    /// # Errors
    /// As [`Self::call_into`] and [`Session::run_with`].
    pub fn call_into_with<'a>(
        &self,
        values: impl Arguments<'a>,
        options: &RunOptions,
        outputs: &mut [TensorViewMut<'_>],
    ) -> Result<RunMetadata> {
        if !self.prepared.planned.plan.signature.residents.is_empty() {
            let message = "what stays on a device does not go into memory of the caller; fetch the tensor itself";
            return Err(Error::invalid(message));
        }
        let outputs = &mut Outputs::Into(outputs, &self.places);
        let mut metadata = RunMetadata::default();
        self.run(values, options, outputs, &mut metadata)?;
        Ok(metadata)
    }

    fn take<'a>(
        &self,
        values: impl Arguments<'a>,
        options: &RunOptions,
        metadata: &mut RunMetadata,
    ) -> Result<F::Output> {
        let mut tensors = AllFetched::new();
        self.run(values, options, &mut Outputs::Tensors(&mut tensors), metadata)?;
        self.fetch.take(&mut FetchResults::new(tensors, self.places.clone()))
    }

    fn run<'a>(
        &self,
        values: impl Arguments<'a>,
        options: &RunOptions,
        outputs: &mut Outputs<'_, '_>,
        metadata: &mut RunMetadata,
    ) -> Result<()> {
        let start = Instant::now();
        let core = &self.session.core;
        let _at_work = core.enter()?;
        let values = values.values();
        if values.len() != self.feeds.len() {
            let (n, given) = (self.feeds.len(), values.len());
            return Err(Error::invalid(format!("expected values for {n} tensors, got {given}")));
        }
        let Prepared { planned, recent } = &*self.prepared;
        let data = values.iter().zip(&self.feeds).zip(planned.feed_facts());
        let data = data.map(|((value, tensor), fact)| feeds::check_value(value, fact, tensor));
        let data: SmallVec<[FeedData<'_>; 4]> = data.collect::<Result<_>>()?;
        let request =
            Request { recent: Some(recent), ..Request::new(planned, &data, options, start) };
        metadata.begin(&request);
        (metadata.plan_cached, metadata.graph_nodes) = (true, planned.n_nodes());
        core.run(&request, outputs, metadata)?;
        metadata.wall = start.elapsed();
        Ok(())
    }
}

impl<F: Fetch> fmt::Debug for Callable<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, fetched) = (self.feeds.len(), self.places.len());
        write!(f, "Callable of {n} tensors that fetches {fetched}")
    }
}

/// The values of a callable's feeds, in order: an array, a vector, or a tuple where they are of several types.
pub trait Arguments<'a> {
    /// The values.
    fn values(self) -> SmallVec<[Result<FeedValue<'a>>; 4]>;
}

impl<'a, V: IntoFeed<'a>, const N: usize> Arguments<'a> for [V; N] {
    fn values(self) -> SmallVec<[Result<FeedValue<'a>>; 4]> {
        self.into_iter().map(V::into_feed).collect()
    }
}

impl<'a, V: IntoFeed<'a>> Arguments<'a> for Vec<V> {
    fn values(self) -> SmallVec<[Result<FeedValue<'a>>; 4]> {
        self.into_iter().map(V::into_feed).collect()
    }
}

macro_rules! tuples {
    ($(($($name:ident),*)),*) => { $(
        impl<'a, $($name: IntoFeed<'a>),*> Arguments<'a> for ($($name,)*) {
            #[expect(non_snake_case, reason = "a field is named like its type")]
            fn values(self) -> SmallVec<[Result<FeedValue<'a>>; 4]> {
                let ($($name,)*) = self;
                [$($name.into_feed()),*].into_iter().collect()
            }
        }
    )* };
}

tuples! {
    (A), (A, B), (A, B, C), (A, B, C, D), (A, B, C, D, E), (A, B, C, D, E, F),
    (A, B, C, D, E, F, G), (A, B, C, D, E, F, G, H)
}

impl<'a> Arguments<'a> for () {
    fn values(self) -> SmallVec<[Result<FeedValue<'a>>; 4]> {
        SmallVec::new()
    }
}
