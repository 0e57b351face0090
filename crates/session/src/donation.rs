//! Tensors that are given to a run, which may store its results where they lie.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use convoke_graph_core::{
    DType, Error, ErrorKind, FeedValue, HostTensor, IntoFeed, Resident, Result, Shape,
};

use crate::core::Planned;
use crate::device_tensor::DeviceTensor;
use crate::feeds::FeedData;

/// A tensor that one run may have for good: `x.feed(state.donate())`. See [`DeviceTensor::donate`].
///
/// Clones are the same donation. A run that succeeds consumes it, whether or not it could use the memory; feeding it
/// once more is [`ErrorKind::FailedPrecondition`] then. What has to be converted to another dtype
/// is only read, and so is what a partial run is fed.
#[derive(Clone)]
pub struct Donation(Arc<Inner>);

struct Inner {
    dtype: DType,
    shape: Shape,
    /// None once a run has it.
    tensor: Mutex<Option<DeviceTensor>>,
}

impl DeviceTensor {
    /// Gives the tensor to the run that it is fed to: a result that stays on the device, fetched by
    /// [`OnDevice`](crate::OnDevice), may be stored where it lies, so that one state that goes round takes its memory
    /// once.
    ///
    /// That is done on GPUs, for a tensor that has no other handle, whose buffer nobody was shown, and which is fed
    /// once; and for a result of as many bytes that is computed by the only segment of the run that reads the tensor, and
    /// after which no GPU has more to do.
    /// Elementwise work on it is done in place; what other kernels give is copied there at the end. Otherwise the tensor
    /// is fed as any other: so on the CPU, where two places take turns, and in runs with
    /// branches, loops or assertions and partial ones. [`RunMetadata::donations`](crate::RunMetadata::donations) counts
    /// the tensors that were overwritten.
    ///
    /// A program keeps the memory of the last tensor that it overwrote until it is overwritten by another, or its session
    /// is dropped or short of memory.
    ///
    /// If the run fails, [`Donation::take_back`] gives the tensor as it was, unless what overwrites it was done when
    /// something else failed, as a device that is lost. What the data can fail comes before: an index that is out of
    /// range leaves it as it was.
    ///
    /// ```
    /// # use convoke_session::{Devices, OnDevice, Session};
    /// # use convoke_graph_core::{DType, Graph, dims};
    /// # fn main() -> convoke_graph_core::Result<()> {
    /// let g = Graph::new();
    /// let x = g.placeholder("x", DType::F32, dims![]);
    /// let next = &x * 2.0;
    /// let session = Session::new(&g, &Devices::cpu())?;
    /// let mut state = session.run(&[x.feed(1.0)], OnDevice(&next))?;
    /// for _ in 0..3 {
    ///     state = session.run(&[x.feed(state.donate())], OnDevice(&next))?;
    /// }
    /// assert_eq!(state.to_host()?.scalar::<f32>()?, 16.0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Source: JAX's `donate_argnums`.
    #[must_use]
    pub fn donate(self) -> Donation {
        let (dtype, shape) = (self.dtype(), self.shape().clone());
        Donation(Arc::new(Inner { dtype, shape, tensor: Mutex::new(Some(self)) }))
    }
}

impl Donation {
    /// The tensor, if no run has it or has consumed it.
    pub fn take_back(&self) -> Option<DeviceTensor> {
        self.lock().take()
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.0.shape
    }

    fn lock(&self) -> MutexGuard<'_, Option<DeviceTensor>> {
        self.0.tensor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tensor, to be read.
    ///
    /// # Errors
    /// A run has it.
    pub(crate) fn tensor(&self) -> Result<DeviceTensor> {
        self.lock().clone().ok_or_else(|| {
            let message = "the tensor was donated to a run that has it or has consumed it, or it was taken back; feed \
                           what that run gave";
            Error::new(ErrorKind::FailedPrecondition, message)
        })
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes the tensor, if it is on a GPU and nobody else has it.
    fn claim(&self) -> Option<Given> {
        let tensor = self.lock().take_if(|tensor| tensor.is_sole())?;
        Some(Given { tensor, donation: self.clone(), is_used: AtomicBool::new(false) })
    }
}

impl fmt::Debug for Donation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.lock() {
            Some(tensor) => write!(f, "{tensor:?}, donated"),
            None => write!(f, "{}{}, consumed", self.0.dtype, self.0.shape),
        }
    }
}

impl Resident for Donation {
    fn dtype(&self) -> DType {
        self.0.dtype
    }

    fn to_host(&self) -> Result<HostTensor> {
        self.tensor()?.to_host()
    }
}

impl<'a> IntoFeed<'a> for Donation {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        Ok(FeedValue::Resident(Arc::new(self)))
    }
}

impl<'a> IntoFeed<'a> for &Donation {
    fn into_feed(self) -> Result<FeedValue<'a>> {
        self.clone().into_feed()
    }
}

/// A tensor on a GPU that is the run's alone. Dropping it gives it back, unless it was used.
#[derive(Debug)]
pub(crate) struct Given {
    pub tensor: DeviceTensor,
    donation: Donation,
    is_used: AtomicBool,
}

impl Given {
    /// Notes whether the elements are gone.
    pub fn set_used(&self, is_used: bool) {
        self.is_used.store(is_used, Ordering::Release);
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        if !self.is_used.load(Ordering::Acquire) {
            *self.donation.lock() = Some(self.tensor.clone());
        }
    }
}

/// The feeds of a run once it is known which of them it has for itself.
pub(crate) struct Settled<'a> {
    pub data: Vec<FeedData<'a>>,
    donations: Vec<Donation>,
}

impl<'a> Settled<'a> {
    /// The feeds of a run of `planned`; nothing if none of them is donated.
    ///
    /// # Errors
    /// A tensor that another run has consumed meanwhile.
    pub fn of(planned: &Planned, data: &[FeedData<'a>]) -> Result<Option<Self>> {
        let offered = |data: &FeedData<'_>| match data {
            FeedData::Offered(donation) => Some(donation.clone()),
            _ => None,
        };
        let donations: Vec<Donation> = data.iter().filter_map(offered).collect();
        if donations.is_empty() {
            return Ok(None);
        }
        let settle = |(at, data): (usize, &FeedData<'a>)| {
            let FeedData::Offered(donation) = data else { return Ok(data.clone()) };
            let is_fed_once = donations.iter().filter(|other| other.is(donation)).count() == 1;
            let shapes_depend = planned.plan.shape_feeds.get(at).is_none_or(|&depend| depend);
            let can = is_fed_once && !shapes_depend && planned.flow.is_none();
            match can.then(|| donation.claim()).flatten() {
                Some(given) => Ok(FeedData::Given(Arc::new(given), None)),
                None => donation.tensor().map(FeedData::of_tensor),
            }
        };
        let data = data.iter().enumerate().map(settle).collect::<Result<_>>()?;
        Ok(Some(Self { data, donations }))
    }

    /// As [`Self::of`], also where nothing is donated.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn all(planned: &Planned, data: Vec<FeedData<'a>>) -> Result<Self> {
        let settled = Self::of(planned, &data)?;
        Ok(settled.unwrap_or(Self { data, donations: Vec::new() }))
    }

    /// Consumes what was donated, since the run has succeeded.
    pub fn consume(&self) {
        for data in &self.data {
            if let FeedData::Given(given, _) = data {
                given.set_used(true);
            }
        }
        self.donations.iter().for_each(|donation| drop(donation.take_back()));
    }
}
