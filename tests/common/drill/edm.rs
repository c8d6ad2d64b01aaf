//! A snapshot of EDM's training, with a network that the formula fills.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use replicate::network::unet::{Config, Denoiser};
use replicate::network::{Bypass, Variables};

use super::pickle::{Object, int, named, pickle, text};
use super::torch::{Storage, legacy_stream, ordered, row_major, tensor};
use crate::common::{edm_value, unit_of};

/// Whoever runs it finds out.
const MODULE_SRC: &str = "# The source text of EDM's classes stands here in a snapshot.\n\
    raise RuntimeError('the source text of a snapshot was executed')\n";

/// A pickle of {ema, loss_fn, augment_pipe, dataset_kwargs} with the classes and
/// the modules' dictionaries of 2022, when EDM's snapshots were published.
pub fn edm_snapshot(config: &Config) -> Vec<u8> {
    snapshot(config, "")
}

/// The same of another network: the formula reads names that begin with `sid.`.
pub fn sid_snapshot(config: &Config) -> Vec<u8> {
    snapshot(config, "sid.")
}

fn snapshot(config: &Config, prefix: &str) -> Vec<u8> {
    let mut network = Module::default();
    // It has no parameters, and is a module all the same.
    network.child("model").child("map_noise");
    for (name, shape) in parameters(config) {
        let (path, parameter) = name.rsplit_once('.').expect("a parameter lies in a module");
        let module = path.split('.').fold(&mut network, Module::child);
        let values = unit_of(&format!("{prefix}{name}"), shape.iter().product());
        let values = values.into_iter().map(edm_value(&name, &shape));
        let arguments = vec![stored(values, &shape), Object::Bool(false), ordered(vec![])];
        module
            .parameters
            .push((parameter.into(), Object::Call(("torch._utils", "_rebuild_parameter"), arguments)));
        if parameter == "weight" {
            if shape.len() == 4 {
                let resampled = path.contains("_down.") || path.contains("_up.");
                let filtered = resampled && [".conv0", ".skip"].iter().any(|conv| path.ends_with(conv));
                let filter =
                    if filtered { stored([0.25; 4].into_iter(), &[1, 1, 2, 2]) } else { Object::None };
                module.buffers.push(("resample_filter".into(), filter));
            }
            module.weight = shape;
        }
    }

    let loss = [("P_mean", -1.2), ("P_std", 1.2), ("sigma_data", 0.5)];
    #[rustfmt::skip]
    let pipe = [
        ("p", 0.12), ("xflip", 1e8), ("yflip", 1.0), ("rotate_int", 0.0), ("translate_int", 0.0),
        ("translate_int_max", 0.125), ("scale", 1.0), ("rotate_frac", 1.0), ("aniso", 1.0),
        ("translate_frac", 1.0), ("scale_std", 0.2), ("rotate_frac_max", 1.0), ("aniso_std", 0.2),
        ("aniso_rotate_prob", 0.5), ("translate_frac_std", 0.125), ("brightness", 0.0),
        ("contrast", 0.0), ("lumaflip", 0.0), ("hue", 0.0), ("saturation", 0.0),
        ("brightness_std", 0.2), ("contrast_std", 0.5), ("hue_max", 1.0), ("saturation_std", 1.0),
    ];
    let dataset = named([
        ("class_name", text("training.dataset.ImageFolderDataset")),
        ("path", text("cifar10-32x32.zip")),
        ("use_labels", Object::Bool(false)),
        ("xflip", Object::Bool(false)),
        ("max_size", int(50_000)),
    ]);
    let easy_dict = Object::New(("dnnlib.util", "EasyDict"));
    let snapshot = named([
        ("ema", network.object("", config)),
        ("loss_fn", persistent("EDMLoss", vec![], named(loss.map(float)))),
        ("augment_pipe", persistent("AugmentPipe", vec![], named(pipe.map(float)))),
        ("dataset_kwargs", Object::Filled(Box::new(easy_dict), dataset)),
    ]);
    pickle(&Object::Dict(snapshot), 4)
}

/// Name and shape of every parameter, in the order of PyTorch's `state_dict`.
fn parameters(config: &Config) -> Vec<(String, Vec<usize>)> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let backend = Box::new(Recorder { asked: asked.clone() });
    let vb = VarBuilder::from_backend(backend, DType::F32, Device::Cpu);
    Denoiser::new(config, Variables::new(vb, DType::F32, Bypass::default())).unwrap();
    let mut parameters = std::mem::take(&mut *asked.lock().unwrap());
    // EDM's noise embedding comes before the encoder, ours after it.
    parameters.sort_by_key(|(name, _): &(String, _)| !name.starts_with("model.map_"));
    parameters
}

/// Writes down what a network asks for.
struct Recorder {
    asked: Arc<Mutex<Vec<(String, Vec<usize>)>>>,
}

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.asked.lock().unwrap().push((name.into(), shape.dims().to_vec()));
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of {name} is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// A tensor whose storage is in the pickle, as a stream of its own.
fn stored(values: impl Iterator<Item = f32>, shape: &[usize]) -> Object {
    let storage = Storage::of_floats(values);
    let stream = legacy_stream(&storage.reference(0), std::slice::from_ref(&storage));
    let load = Object::Call(("torch.storage", "_load_from_bytes"), vec![Object::Bytes(stream)]);
    tensor(load, shape, &row_major(shape))
}

/// An object of EDM's; `kwargs` are its attributes, too.
fn persistent(class: &str, mut state: Vec<(String, Object)>, kwargs: Vec<(String, Object)>) -> Object {
    state.extend(kwargs.clone());
    state.extend(named([("_init_args", Object::Tuple(vec![])), ("_init_kwargs", Object::Dict(kwargs))]));
    let meta = Object::Dict(named([
        ("type", text("class")),
        ("version", int(6)),
        ("module_src", text(MODULE_SRC)),
        ("class_name", text(class)),
        ("state", Object::Dict(state)),
    ]));
    Object::Call(("torch_utils.persistence", "_reconstruct_persistent_obj"), vec![meta])
}

fn float((name, value): (&str, f64)) -> (&str, Object) {
    (name, Object::Float(value))
}

/// `numpy.float64(value)`.
fn numpy(value: f64) -> Object {
    let dtype = Object::Call(("numpy", "dtype"), vec![text("f8"), Object::Bool(false), Object::Bool(true)]);
    let [none, unknown] = [Object::None, Object::Int(-1)];
    let state = vec![int(3), text("<"), none.clone(), none.clone(), none, unknown.clone(), unknown, int(0)];
    let dtype = Object::Built(Box::new(dtype), Box::new(Object::Tuple(state)));
    let bytes = Object::Bytes(value.to_le_bytes().into());
    Object::Call(("numpy.core.multiarray", "scalar"), vec![dtype, bytes])
}

#[derive(Default)]
struct Module {
    parameters: Vec<(String, Object)>,
    buffers: Vec<(String, Object)>,
    children: Vec<(String, Module)>,
    /// Shape of the parameter `weight`; empty where there is none.
    weight: Vec<usize>,
}

impl Module {
    /// The child of this name, which is made where it is new.
    fn child(&mut self, name: &str) -> &mut Module {
        let at = self.children.iter().position(|(child, _)| child == name).unwrap_or_else(|| {
            self.children.push((name.into(), Module::default()));
            self.children.len() - 1
        });
        &mut self.children[at].1
    }

    /// The module as its parent, who calls it `name`, pickles it.
    fn object(self, name: &str, config: &Config) -> Object {
        let no = Object::Bool(false);
        let (class, kwargs) = match (name, self.weight.as_slice()) {
            ("", _) => (
                "EDMPrecond",
                named([
                    ("img_resolution", int(config.size)),
                    ("img_channels", int(config.image_channels)),
                    ("label_dim", int(0)),
                    ("use_fp16", no),
                    ("sigma_min", int(0)),
                    ("sigma_max", Object::Float(f64::INFINITY)),
                    ("sigma_data", Object::Float(0.5)),
                ]),
            ),
            ("model", _) => ("SongUNet", named([("label_dropout", int(0))])),
            ("enc" | "dec", _) => {
                let empty = Object::New(("torch.nn.modules.container", "ModuleDict"));
                return Object::Built(Box::new(empty), Box::new(Object::Dict(self.state(config))));
            }
            ("map_noise", _) => (
                "PositionalEmbedding",
                named([("num_channels", int(config.model_channels)), ("endpoint", Object::Bool(true))]),
            ),
            (_, [outputs, inputs]) => {
                ("Linear", named([("in_features", int(*inputs)), ("out_features", int(*outputs))]))
            }
            (_, [outputs, inputs, ..]) => {
                ("Conv2d", named([("in_channels", int(*inputs)), ("out_channels", int(*outputs))]))
            }
            (_, [channels]) => (
                "GroupNorm",
                named([("num_groups", int((channels / 4).clamp(1, 32))), ("eps", Object::Float(1e-6))]),
            ),
            (_, []) => (
                "UNetBlock",
                named([
                    ("dropout", Object::Float(0.13)),
                    ("skip_scale", numpy(0.5f64.sqrt())),
                    ("adaptive_scale", no),
                ]),
            ),
        };
        persistent(class, self.state(config), kwargs)
    }

    /// What PyTorch keeps of every module.
    fn state(self, config: &Config) -> Vec<(String, Object)> {
        let children = self.children.into_iter();
        let children = children.map(|(name, module)| {
            let object = module.object(&name, config);
            (name, object)
        });
        named([
            ("training", Object::Bool(false)),
            ("_parameters", ordered(self.parameters)),
            ("_buffers", ordered(self.buffers)),
            ("_non_persistent_buffers_set", Object::EmptySet),
            ("_backward_hooks", ordered(vec![])),
            ("_is_full_backward_hook", Object::None),
            ("_forward_hooks", ordered(vec![])),
            ("_forward_pre_hooks", ordered(vec![])),
            ("_state_dict_hooks", ordered(vec![])),
            ("_load_state_dict_pre_hooks", ordered(vec![])),
            ("_modules", ordered(children.collect())),
        ])
    }
}
