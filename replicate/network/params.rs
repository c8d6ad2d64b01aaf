//! Named parameters of a network, sorted by name.
//!
//! A network is a plain function of [`Variables`]; this module is the backend of their `VarBuilder`.
//! It draws a parameter from a keyed random stream or takes it from given arrays. Loading is strict: a
//! missing array or a wrong shape is an error that names the parameter.

use crate::network::device::Compute;
use crate::network::{Bypass, Variables};
use crate::rng::Stream;
use crate::store::Array;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Arrays by name.
pub type Arrays = BTreeMap<String, Array>;

/// The trainable parameters of one network.
pub struct Params {
    vars: BTreeMap<String, Var>,
    compute: Compute,
    bypass: Bypass,
}

/// Source of the initial values.
pub struct Source<'a> {
    /// Values by name.
    pub given: &'a Arrays,
    /// Names of parameters that are drawn even if they are given: those that start with one of
    /// these prefixes, at the beginning or after a dot.
    pub drawn: &'a [&'a str],
    /// Key of the random streams.
    pub cell: &'a str,
}

impl Params {
    /// Builds a network and its parameters. Ignores given arrays that the network does not have;
    /// for example a critic takes only the encoder of a U-Net.
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn build<M>(
        compute: &Compute,
        source: &Source,
        network: impl FnOnce(Variables) -> Result<M>,
    ) -> Result<(Params, M)> {
        let made = Arc::new(Mutex::new(BTreeMap::new()));
        let backend = Creator {
            given: source.given.clone(),
            drawn: source.drawn.iter().map(|s| s.to_string()).collect(),
            cell: source.cell.to_string(),
            made: made.clone(),
        };
        let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, compute.device.clone());
        let bypass = Bypass::default();
        let model = network(Variables::new(vb, compute.maps(), bypass.clone()))?;
        let vars = std::mem::take(&mut *made.lock().expect("no thread panicked while building"));
        Ok((Params { vars, compute: compute.clone(), bypass }, model))
    }

    /// Builds the network on the same parameters without gradients. It follows every update of
    /// them.
    pub fn frozen<M>(&self, network: impl FnOnce(Variables) -> Result<M>) -> Result<M> {
        self.replaced(&self.vars, network)
    }

    /// Builds the network on `vars`, which replace the parameters, without gradients. It follows
    /// every update of them.
    pub fn replaced<M>(
        &self,
        vars: &BTreeMap<String, Var>,
        network: impl FnOnce(Variables) -> Result<M>,
    ) -> Result<M> {
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &self.compute.device);
        network(Variables::new(vb, self.compute.maps(), self.bypass.clone()))
    }

    /// Parameters by name, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.vars.iter()
    }

    /// Number of scalar parameters.
    pub fn count(&self) -> usize {
        self.vars.values().map(|v| v.elem_count()).sum()
    }

    /// Returns the parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// Computes the gradients of `loss` for these parameters, and for what else candle tracks. The
    /// parameters of other networks may lack theirs.
    ///
    /// # Errors
    /// See [`Bypass::gradients`].
    pub fn gradients(&self, loss: &Tensor) -> Result<GradStore> {
        self.bypass.gradients(loss)
    }

    /// Multiplies the gradients of a loss by `factor`, a scalar.
    pub fn scaled_gradients(&self, mut gradients: GradStore, factor: &Tensor) -> Result<GradStore> {
        for var in self.vars.values() {
            if let Some(gradient) = gradients.remove(var) {
                gradients.insert(var, gradient.broadcast_mul(factor)?.detach());
            }
        }
        Ok(gradients)
    }

    /// Returns the sum of two sets of gradients; `sum` is `None` for the first.
    pub fn add_gradients(&self, sum: Option<GradStore>, mut more: GradStore) -> Result<GradStore> {
        let Some(sum) = sum else { return Ok(more) };
        for var in self.vars.values() {
            let Some(before) = sum.get(var) else { continue };
            let both = match more.get(var) {
                Some(now) => (before + now)?.detach(),
                None => before.clone(),
            };
            more.insert(var, both);
        }
        Ok(more)
    }

    /// Copies the parameters to the host, by name.
    pub fn arrays(&self) -> Result<Arrays> {
        self.vars.iter().map(|(name, var)| Ok((name.clone(), to_array(var)?))).collect()
    }

    /// Overwrites every parameter.
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn assign(&self, arrays: &Arrays) -> Result<()> {
        for (name, var) in &self.vars {
            var.set(&from_array(name, arrays, var.shape(), &self.compute.device)?)?;
        }
        Ok(())
    }
}

/// Copies a tensor to the host.
pub fn to_array(tensor: &Tensor) -> Result<Array> {
    Ok(Array { shape: tensor.dims().to_vec(), data: tensor.flatten_all()?.to_vec1::<f32>()? })
}

/// Copies the array `name` to `device`.
///
/// # Errors
/// If the array is missing or does not have this `shape`.
pub fn from_array(name: &str, arrays: &Arrays, shape: &Shape, device: &Device) -> Result<Tensor> {
    let Some(array) = arrays.get(name) else { bail!("the parameter {name} is missing") };
    if array.shape != shape.dims() {
        bail!("the parameter {name} has shape {:?}, the network needs {:?}", array.shape, shape.dims());
    }
    Tensor::from_slice(&array.data, shape, device)
}

/// Builds a network only to learn the names and shapes of its parameters. Each parameter is a
/// single broadcast zero, so it takes no memory.
pub fn outline<M>(network: impl FnOnce(Variables) -> Result<M>) -> Result<(M, BTreeMap<String, Vec<usize>>)> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let backend = Recorder { seen: seen.clone() };
    let vb = VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu);
    let model = network(Variables::new(vb, DType::F32, Bypass::default()))?;
    let shapes = std::mem::take(&mut *seen.lock().expect("no thread panicked while building"));
    Ok((model, shapes))
}

struct Recorder {
    seen: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let dims = shape.dims().to_vec();
        self.seen.lock().expect("no thread panicked while building").insert(name.to_string(), dims);
        Tensor::zeros((), DType::F32, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("the shape of {name} is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

struct Creator {
    given: Arrays,
    drawn: Vec<String>,
    cell: String,
    made: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl SimpleBackend for Creator {
    fn get(&self, shape: Shape, name: &str, init: Init, _: DType, device: &Device) -> Result<Tensor> {
        let tensor = if self.draws(name) {
            draw(&self.cell, name, &shape, init, device)?
        } else {
            from_array(name, &self.given, &shape, device)?
        };
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        self.made.lock().expect("no thread panicked while building").insert(name.to_string(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("the shape of {name} is not known")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.given.contains_key(name) || self.draws(name)
    }
}

impl Creator {
    fn draws(&self, name: &str) -> bool {
        let mut ends = std::iter::successors(Some(name), |end| Some(end.split_once('.')?.1));
        ends.any(|end| self.drawn.iter().any(|start| end.starts_with(start)))
    }
}

fn draw(cell: &str, name: &str, shape: &Shape, init: Init, device: &Device) -> Result<Tensor> {
    let mut draws = Stream::new(cell, name).at(0);
    let n = shape.elem_count();
    let values: Vec<f32> = match init {
        Init::Const(value) => vec![value as f32; n],
        Init::Uniform { lo, up } => (0..n).map(|_| lo as f32 + (up - lo) as f32 * draws.uniform()).collect(),
        Init::Randn { mean, stdev } => (0..n).map(|_| mean as f32 + stdev as f32 * draws.normal()).collect(),
        other => bail!("the initialisation {other:?} of {name} is not used here"),
    };
    Tensor::from_vec(values, shape, device)
}
