//! What a case is fed and what its variables hold, for peers in this process and in others.

use std::collections::BTreeMap;
use std::path::Path;

use convoke::cases::Ready;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

use crate::Failure;

/// Sizes and elements by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The tensors of a case. Labels and indices are whole numbers as f32.
pub struct Data {
    /// What is fed.
    pub feeds: Tensors,
    /// What variables hold at the start.
    pub weights: Tensors,
}

impl Data {
    /// Those of a case that has just been made ready.
    pub fn of(ready: &Ready) -> Result<Self, Failure> {
        let floats = |tensor: &convoke::HostTensor| -> Result<_, Failure> {
            let elements = tensor.to_f64s()?.into_iter().map(|x| x as f32).collect();
            Ok((tensor.dims().to_vec(), elements))
        };
        let feeds = ready.case().feeds().map(|(name, tensor)| Ok((name, floats(tensor)?)));
        let feeds = feeds.collect::<Result<_, Failure>>()?;
        let mut weights = Tensors::new();
        for variable in ready.session().graph().global_variables() {
            let value = ready.session().run(&[], &variable)?;
            weights.insert(variable.name().to_string(), floats(&value)?);
        }
        Ok(Self { feeds, weights })
    }

    /// Writes `feeds.safetensors` and `weights.safetensors`.
    pub fn save(&self, dir: &Path) -> Result<(), Failure> {
        for (file, tensors) in [("feeds", &self.feeds), ("weights", &self.weights)] {
            let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
                .iter()
                .map(|(name, (sizes, xs))| {
                    (name, sizes, xs.iter().flat_map(|x| x.to_le_bytes()).collect())
                })
                .collect();
            let views = bytes.iter().map(|(name, sizes, bytes)| {
                Ok((name.as_str(), TensorView::new(Dtype::F32, sizes.to_vec(), bytes)?))
            });
            let views = views.collect::<Result<Vec<_>, Failure>>()?;
            serialize_to_file(views, None, &dir.join(format!("{file}.safetensors")))?;
        }
        Ok(())
    }
}

/// Reads a file of f32 tensors.
pub fn read(path: &Path) -> Result<Tensors, Failure> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let floats = |view: &TensorView<'_>| {
        let words = view.data().chunks_exact(4);
        words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    Ok(file.iter().map(|(name, v)| (name.to_owned(), (v.shape().to_vec(), floats(&v)))).collect())
}
