//! Lookup tables: what stands for keys, which never changes.
//!
//! Source: TensorFlow's `tf.contrib.lookup.HashTable` with a `KeyValueTensorInitializer`.

use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::op::{SharedOp, arity, one};
use crate::ops::call::HostCall;
use crate::ops::control::Refused;
use crate::ops::registry::Decode;
use crate::{
    AlignedBytes, Attributes, Backward, Class, DType, Error, Fact, Flow, Graph, HostTensor, Op,
    OpError, Result, Tensor,
};

/// Values by keys, on the host. Clones are the same table.
#[derive(Debug, Clone)]
pub struct LookupTable(Arc<Entries>);

struct Entries {
    keys: HostTensor,
    values: HostTensor,
    places: Places,
}

enum Places {
    Integers(FxHashMap<i128, usize>),
    Strings(FxHashMap<Vec<u8>, usize>),
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, values) = (self.keys.dtype(), self.values.dtype());
        write!(f, "{} from {keys} to {values}", self.keys.len())
    }
}

impl LookupTable {
    /// A table of these keys, integers or strings, and a value for each.
    ///
    /// # Errors
    /// Keys of another dtype, other lengths, or a key that is there twice with different values.
    pub fn new(keys: impl Into<HostTensor>, values: impl Into<HostTensor>) -> Result<Self> {
        let (keys, values) = (keys.into(), values.into());
        if keys.shape().rank() != 1 || values.dims() != keys.dims() {
            let (keys, values) = (keys.shape(), values.shape());
            let message =
                format!("expected a list of keys and a value for each, got {keys} and {values}");
            return Err(Error::invalid(message));
        }
        let places = match keys.dtype() {
            DType::String => Places::Strings(places(keys.as_strings()?.iter().cloned(), &values)?),
            dtype if dtype.is_int() => {
                Places::Integers(places(keys.to_i128s()?.into_iter(), &values)?)
            }
            dtype => {
                return Err(Error::invalid(format!(
                    "expected keys of integers or strings, got {dtype}"
                )));
            }
        };
        Ok(Self(Arc::new(Entries { keys, values, places })))
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        match &self.0.places {
            Places::Integers(places) => places.len(),
            Places::Strings(places) => places.len(),
        }
    }

    /// True if it has no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values of `keys`, a tensor of any shape, with `default` where there is no such key. Computed on the host.
    ///
    /// # Errors
    /// Recorded: keys or a default of other dtypes than the table's, or a default of more than one element.
    #[track_caller]
    pub fn lookup(&self, keys: &Tensor, default: impl Into<HostTensor>) -> Tensor {
        let (default, values) = (default.into(), self.0.values.dtype());
        if default.dtype() != values || default.len() != 1 {
            let (dtype, shape) = (default.dtype(), default.shape());
            let reason = OpError::Invalid(format!(
                "expected a default of one {values}, as the table has, got {dtype}{shape}"
            ));
            return keys.apply(Refused(reason), &[keys]);
        }
        keys.apply(Lookup { table: self.clone(), default }, &[keys])
    }
}

impl Graph {
    /// The number of keys of a table, as an i64 scalar.
    #[track_caller]
    pub fn table_size(&self, table: &LookupTable) -> Tensor {
        self.constant(table.len() as i64)
    }
}

/// The place of each key.
fn places<K: std::hash::Hash + Eq + fmt::Debug>(
    keys: impl Iterator<Item = K>,
    values: &HostTensor,
) -> Result<FxHashMap<K, usize>> {
    let mut places = FxHashMap::default();
    for (place, key) in keys.enumerate() {
        if let Some(&before) = places.get(&key)
            && !is_same(values, before, place)?
        {
            return Err(Error::invalid(format!("the key {key:?} has two values")));
        }
        places.entry(key).or_insert(place);
    }
    Ok(places)
}

fn is_same(values: &HostTensor, a: usize, b: usize) -> Result<bool> {
    if values.dtype() == DType::String {
        let strings = values.as_strings()?;
        return Ok(strings[a] == strings[b]);
    }
    let n = values.dtype().n_bytes();
    Ok(values.bytes()[a * n..][..n] == values.bytes()[b * n..][..n])
}

#[derive(Debug, Clone)]
struct Lookup {
    table: LookupTable,
    default: HostTensor,
}

impl Op for Lookup {
    fn name(&self) -> &str {
        "lookup"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let [keys] = arity(inputs)?;
        let expected = self.table.0.keys.dtype();
        if keys.dtype != expected {
            let found = keys.dtype;
            let message = format!("expected keys of {expected}, as the table has, got {found}");
            return Err(OpError::Invalid(message));
        }
        one(Fact::new(self.default.dtype(), keys.dims.clone()))
    }

    fn eval(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Ok(self.call(inputs)?)
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Flow(Flow::Call(self))
    }

    fn encode(&self) -> Option<Attributes> {
        let Entries { keys, values, .. } = &*self.table.0;
        let attributes = Attributes::of("lookup").with("default", self.default.clone());
        Some(attributes.with("keys", keys.clone()).with("values", values.clone()))
    }
}

impl HostCall for Lookup {
    fn call(&self, inputs: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>> {
        let [keys] = arity(inputs)?;
        let found: Vec<Option<usize>> = match &self.table.0.places {
            Places::Integers(places) => {
                keys.to_i128s()?.iter().map(|key| places.get(key).copied()).collect()
            }
            Places::Strings(places) => {
                keys.as_strings()?.iter().map(|key| places.get(key).copied()).collect()
            }
        };
        let (values, default) = (&self.table.0.values, &self.default);
        if values.dtype() == DType::String {
            let (all, default) = (values.as_strings()?, &default.as_strings()?[0]);
            let strings = found.iter().map(|place| place.map_or(default, |place| &all[place]));
            return Ok(SmallVec::from_iter([HostTensor::strings(keys.dims(), strings.cloned())?]));
        }
        let n = values.dtype().n_bytes();
        let mut bytes = AlignedBytes::zeroed(keys.len().saturating_mul(n))?;
        for (to, place) in bytes.chunks_exact_mut(n).zip(found) {
            to.copy_from_slice(match place {
                Some(place) => &values.bytes()[place * n..][..n],
                None => default.bytes(),
            });
        }
        let results = HostTensor::from_bytes(values.dtype(), keys.shape().clone(), bytes)?;
        Ok(SmallVec::from_iter([results]))
    }
}

/// How a file's operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("lookup", |a| {
    let table = LookupTable::new(a.tensor("keys")?, a.tensor("values")?)?;
    let default = a.tensor("default")?;
    if default.dtype() != table.0.values.dtype() || default.len() != 1 {
        let shape = default.shape();
        return Err(OpError::Invalid(format!("a default of {}{shape}", default.dtype())));
    }
    let op: SharedOp = Arc::new(Lookup { table, default });
    Ok(op)
})];
