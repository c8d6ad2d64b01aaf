//! Every operation of a network on the CPU against the composition of candle's
//! own, forward and backward, and the same bits for one thread and two.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use candle_nn::{Init, VarBuilder};
use proptest::prelude::*;
use replicate::network;
use replicate::network::cpu::tape;
use replicate::network::device::Compute;
use replicate::network::reference::{self, Composed};
use replicate::network::{Builder, Bypass, Norm, Ops, Param, Parameters, Plus, Resample, Variables, Walk};
use replicate::rng::Stream;

fn random(name: &str, shape: &[usize]) -> Var {
    let n = shape.iter().product();
    let values = Stream::new("kernels", name).normals(0, n);
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

fn listed(parameters: &[Tensor]) -> Parameters {
    Parameters::new(parameters.to_vec(), DType::F32)
}

/// A network of the operations under test: `x` is the only input, the rest are
/// its parameters.
trait Network: Sync {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map>;

    fn on_tape(&self, x: &Tensor, parameters: &[Tensor]) -> Result<Tensor> {
        self.on_tape_with(x, &listed(parameters))
    }

    fn on_tape_with(&self, x: &Tensor, parameters: &Parameters) -> Result<Tensor> {
        Ok(tape::apply(parameters, &[x], |ops, x| Ok(vec![self.walk(ops, &x[0])?]))?.remove(0))
    }

    fn composed(&self, x: &Tensor, parameters: &[Tensor]) -> Result<Tensor> {
        self.walk(&mut Composed::new(parameters), x)
    }
}

/// Output and gradients of sum(weights * f(inputs)) with fixed random weights.
fn evaluate(inputs: &[Var], y: &Tensor) -> Vec<Vec<f32>> {
    evaluate_by(inputs, y, Tensor::backward)
}

fn evaluate_by(
    inputs: &[Var],
    y: &Tensor,
    gradients: impl Fn(&Tensor) -> Result<GradStore>,
) -> Vec<Vec<f32>> {
    let w = Tensor::from_slice(&flat(&random("weights", y.dims())), y.shape(), &Device::Cpu).unwrap();
    let grads = gradients(&(y * w).unwrap().sum_all().unwrap()).unwrap();
    let mut out = vec![flat(y)];
    out.extend(inputs.iter().map(|v| flat(grads.get(v).expect("an input without a gradient"))));
    out
}

fn compare(name: &str, a: &[Vec<f32>], b: &[Vec<f32>]) {
    for (which, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().chain(b).all(|v| v.is_finite()), "{name}, value {which} is not finite");
        let scale = (b.iter().map(|v| v * v).sum::<f32>() / b.len() as f32).sqrt().max(1e-3);
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 2e-4 * scale, "{name}, value {which}: {worst} of {scale}");
    }
}

/// The same values and gradients on the tape as composed; and the gradient of the
/// images alone where the parameters are held fixed.
fn agree(name: &str, inputs: &[Var], network: &impl Network) {
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let (x, parameters) = tensors.split_first().unwrap();
    let ours = evaluate(inputs, &network.on_tape(x, parameters).unwrap());
    let y = network.composed(x, parameters).unwrap();
    // Rows come back without their one pixel.
    let y = if y.dims()[2..] == [1, 1] { y.flatten_from(1).unwrap() } else { y };
    compare(name, &ours, &evaluate(inputs, &y));
    let fixed: Vec<Tensor> = parameters.iter().map(|p| p.detach()).collect();
    let through = evaluate(&inputs[..1], &network.on_tape(x, &fixed).unwrap());
    assert_eq!(through[..2], ours[..2], "{name} with fixed parameters");
}

struct Conv {
    term: bool,
    residual: bool,
}

impl Network for Conv {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let term = if self.term {
            let mean = ops.mean(x)?;
            Some(ops.conv(&mean, Param(2), None, Plus::NOTHING)?)
        } else {
            None
        };
        let residual = if self.residual { Some(ops.conv(x, Param(2), None, Plus::NOTHING)?) } else { None };
        let plus = Plus { term: term.as_ref(), residual: residual.as_ref().map(|r| (r, 0.7)) };
        ops.conv(x, Param(0), Some(Param(1)), plus)
    }
}

struct GroupNorm(usize, bool);

impl Network for GroupNorm {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let GroupNorm(groups, silu) = *self;
        ops.norm(x, &Norm { gamma: Param(0), beta: Param(1), groups, eps: 1e-6, silu })
    }
}

struct Attention;

impl Network for Attention {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        ops.attention(x)
    }
}

/// All that has no parameters, each value with more than one user.
struct Pointwise;

impl Network for Pointwise {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let small = ops.down2(x)?;
        let large = ops.up2(&small)?;
        let active = ops.silu(x)?;
        let both = ops.concat(&active, &large)?;
        ops.concat(&both, x)
    }
}

/// Leaky ReLU, and its derivative along a constant; what a mask lets through; factors of images and of rows themselves.
struct Modulation;

impl Network for Modulation {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let rows = ops.mean(x)?;
        let rows = ops.scale(&rows, &rows)?;
        let rows = ops.rsqrt(&rows, 0.1)?;
        let y = ops.scale(x, &rows)?;
        let y = ops.leaky(&y, &y, 1.5)?;
        let along = ops.leaky(x, &y, 0.7)?;
        let kept = ops.gate(&along, x, [1.25, 0.0])?;
        ops.concat(&y, &kept)
    }
}

struct Resampling(Resample);

impl Network for Resampling {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let y = ops.resample(x, &self.0)?;
        ops.concat(&y, &y)
    }
}

/// Factors and maps as inputs of their own; maps and rows as outputs, of which one is used by
/// the other.
struct Several;

impl Walk for Several {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let y = ops.scale(&inputs[0], &inputs[2])?;
        let z = ops.conv(&inputs[1], Param(0), None, Plus { term: None, residual: Some((&y, 0.5)) })?;
        let means = ops.mean(&z)?;
        Ok(vec![z, means, y])
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn modulation(b in 1usize..11, c in 1usize..40, h in 2usize..6, w in 1usize..18) {
        agree("modulation", &[random("x", &[b, c, h, w])], &Modulation);
    }

    #[test]
    fn resampling(
        b in 1usize..6, c in 1usize..9, h in 2usize..8, w in 2usize..8,
        up in 1usize..4, down in 1usize..4, before in -1isize..4, after in -1isize..4, filter in 0usize..3,
    ) {
        let taps: &[f32] = [&[1.0][..], &[0.5, -2.0, 0.5], &[0.125, 0.375, 0.375, 0.125]][filter];
        let resample = Resample { up, pad: [before, after], taps, down };
        if resample.output(h).min(resample.output(w)) > 0 {
            agree("resampling", &[random("x", &[b, c, h, w])], &Resampling(resample));
        }
    }

    #[test]
    fn several_inputs_and_outputs(b in 1usize..11, c in 1usize..9, h in 2usize..8, fixed in 0usize..4) {
        let shapes = [&[b, c, h, h][..], &[b, 2, h, h], &[b, c], &[c, 2, 1, 1]];
        let mut inputs: Vec<Var> = shapes.map(|shape| random("input", shape)).into();
        let walked = |tape: bool| {
            // One of them without a gradient.
            let of = |(i, var): (usize, &Var)| if i == fixed { var.detach() } else { var.as_tensor().clone() };
            let tensors: Vec<Tensor> = inputs.iter().enumerate().map(of).collect();
            let (given, parameters) = ([&tensors[0], &tensors[1], &tensors[2]], &tensors[3..]);
            let outputs = if tape {
                tape::apply(&listed(parameters), &given, |ops, inputs| Several.walk(ops, inputs))
            } else {
                reference::apply(parameters, &given, |ops, inputs| Several.walk(ops, inputs))
            };
            let flat: Vec<Tensor> = outputs.unwrap().iter().map(|y| y.flatten_all().unwrap()).collect();
            Tensor::cat(&flat, 0).unwrap()
        };
        let (ours, composed) = (walked(true), walked(false));
        inputs.remove(fixed);
        compare("several", &evaluate(&inputs, &ours), &evaluate(&inputs, &composed));
    }

    #[test]
    fn conv(
        b in 1usize..11, c in 1usize..40, o in 1usize..40, h in 1usize..18, w in 1usize..18,
        k in 0usize..2, term: bool, residual: bool,
    ) {
        let k = 2 * k + 1;
        let mut inputs = vec![random("x", &[b, c, h, w]), random("w", &[o, c, k, k]), random("b", &[o])];
        if term || residual {
            inputs.push(random("m", &[o, c, 1, 1]));
        }
        agree("conv", &inputs, &Conv { term, residual });
    }

    #[test]
    fn group_norm(b in 1usize..7, g in 1usize..9, per in 1usize..6, h in 2usize..9, w in 2usize..9, silu: bool) {
        let c = g * per;
        let inputs = [random("x", &[b, c, h, w]), random("g", &[c]), random("b", &[c])];
        agree("group_norm", &inputs, &GroupNorm(g, silu));
    }

    #[test]
    fn attention(b in 1usize..7, c in 1usize..20, h in 1usize..8, w in 1usize..8) {
        agree("attention", &[random("qkv", &[b, 3 * c, h, w])], &Attention);
    }

    #[test]
    fn linear(b in 1usize..70, i in 1usize..20, o in 1usize..20) {
        let inputs = [random("x", &[b, i, 1, 1]), random("w", &[o, i]), random("b", &[o])];
        agree("linear", &inputs, &Conv { term: false, residual: false });
    }

    #[test]
    fn pointwise(b in 1usize..7, c in 1usize..20, h in 1usize..6, w in 1usize..6) {
        agree("pointwise", &[random("x", &[b, c, 2 * h, 2 * w])], &Pointwise);
    }

    #[test]
    fn mix(b in 1usize..7, c in 1usize..4, h in 1usize..6) {
        let a: Vec<f32> = (0..b).map(|i| 0.5 + i as f32).collect();
        let inputs = [random("x", &[b, c, h, h]), random("y", &[b, c, h, h])];
        let factors = Tensor::from_slice(&a, (b, 1, 1, 1), &Device::Cpu).unwrap();
        let ours = network::mix(&inputs[0], &a, &inputs[1], &[2.0]).unwrap();
        let plain = (inputs[0].broadcast_mul(&factors).unwrap() + (inputs[1].as_tensor() * 2.0).unwrap()).unwrap();
        compare("mix", &evaluate(&inputs, &ours), &evaluate(&inputs, &plain));
        let ours = network::scale_images(&inputs[0], &a).unwrap();
        let plain = inputs[0].broadcast_mul(&factors).unwrap();
        compare("scale_images", &evaluate(&inputs[..1], &ours), &evaluate(&inputs[..1], &plain));
    }
}

/// Softmax weights of large logits stay finite and sum to one.
#[test]
fn attention_survives_large_logits() {
    let qkv = (random("qkv", &[2, 12, 4, 4]).as_tensor() * 100.0).unwrap();
    let a = Attention.on_tape(&qkv, &[]).unwrap();
    assert!(flat(&a).iter().all(|v| v.is_finite()));
    let ones = Tensor::ones((2, 12, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let a = Attention.on_tape(&ones, &[]).unwrap();
    assert!(flat(&a).iter().all(|v| (v - 1.0).abs() < 1e-6));
}

/// A convolution, a norm and attention.
struct Three;

impl Network for Three {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let y = Conv { term: false, residual: false }.walk(ops, x)?;
        let y = GroupNorm(3, true).walk_with(ops, &y)?;
        ops.attention(&y)
    }
}

impl GroupNorm {
    fn walk_with<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let norm = Norm { gamma: Param(2), beta: Param(3), groups: self.0, eps: 1e-6, silu: self.1 };
        ops.norm(x, &norm)
    }
}

/// `wide`: enough channels for Winograd's convolution.
fn three(wide: bool) -> Vec<Var> {
    let (c, o): (usize, usize) = if wide { (24, 30) } else { (7, 6) };
    let shapes: [(&str, &[usize]); 5] =
        [("x", &[42, c, 11, 11]), ("w", &[o, c, 3, 3]), ("b", &[o]), ("g", &[o]), ("beta", &[o])];
    shapes.into_iter().map(|(name, shape)| random(name, shape)).collect()
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    for wide in [false, true] {
        let inputs = three(wide);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
                evaluate(&inputs, &Three.on_tape(&tensors[0], &tensors[1..]).unwrap())
            })
        };
        let bits = |v: Vec<Vec<f32>>| v.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let one = bits(on(1));
        assert_eq!(one, bits(on(2)));
        assert_eq!(one, bits(on(5)));
    }
}

/// More than 2,000,000 parameters: convolutions with few and with many channels, and a weight and a bias
/// that are read twice.
struct Large;

impl Network for Large {
    fn walk<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let h = ops.conv(x, Param(0), Some(Param(1)), Plus::NOTHING)?;
        let norm = Norm { gamma: Param(2), beta: Param(3), groups: 5, eps: 1e-6, silu: true };
        let h = ops.norm(&h, &norm)?;
        let mean = ops.mean(&h)?;
        let term = ops.conv(&mean, Param(4), None, Plus::NOTHING)?;
        let skip = ops.conv(&h, Param(4), Some(Param(5)), Plus::NOTHING)?;
        let plus = Plus { term: Some(&term), residual: Some((&skip, 0.7)) };
        ops.conv(&h, Param(6), Some(Param(5)), plus)
    }
}

/// The images of a large network go back together, and its gradients do not pass through candle.
#[test]
fn a_large_network_as_composed_and_with_the_same_bits_on_any_threads() {
    let (c, o) = (500, 520);
    let shapes: [&[usize]; 8] =
        [&[5, 7, 6, 5], &[c, 7, 3, 3], &[c], &[c], &[c], &[o, c, 1, 1], &[o], &[o, c, 3, 3]];
    let inputs: Vec<Var> = (0..).zip(shapes).map(|(i, shape)| random(&format!("{i}"), shape)).collect();
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let (x, parameters) = (&tensors[0], listed(&tensors[1..]));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = Large.on_tape_with(x, &parameters).unwrap();
            evaluate_by(&inputs, &y, |loss| parameters.bypass().gradients(loss))
        })
    };
    let one = on(1);
    compare("large", &one, &evaluate(&inputs, &Large.composed(x, &parameters).unwrap()));
    for threads in [2, 5] {
        assert!(one == on(threads), "{threads} threads");
    }
    let fixed: Vec<Tensor> = parameters.iter().map(|p| p.detach()).collect();
    let through = evaluate(&inputs[..1], &Large.on_tape(x, &fixed).unwrap());
    assert!(through[..2] == one[..2], "with fixed parameters");
}

/// An image gives the same bits alone and in a batch.
#[test]
fn a_batch_does_not_change_its_images() {
    let tensors: Vec<Tensor> = three(true).iter().map(|v| v.detach()).collect();
    let (x, parameters) = tensors.split_first().unwrap();
    let all = Three.on_tape(x, parameters).unwrap();
    for image in [0, 5, 41] {
        let one = Three.on_tape(&x.narrow(0, image, 1).unwrap(), parameters).unwrap();
        assert_eq!(flat(&all.narrow(0, image, 1).unwrap()), flat(&one), "image {image}");
    }
}

/// NaN and infinite logits reach the output: a run that has diverged must say so.
#[test]
fn nan_is_not_hidden() {
    for value in [f32::NAN, 1e20] {
        let qkv = (Tensor::ones((2, 12, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap()
            * value as f64)
            .unwrap();
        let a = Attention.on_tape(&qkv, &[]).unwrap();
        assert!(flat(&a).iter().all(|v| v.is_nan()), "{value}");
    }
    let x = (random("x", &[5, 32, 6, 6]).as_tensor() * f64::NAN).unwrap();
    let parameters = [random("w", &[32, 32, 3, 3]).detach(), random("b", &[32]).detach()];
    let y = Conv { term: false, residual: false }.on_tape(&x, &parameters).unwrap();
    assert!(flat(&y).iter().all(|v| v.is_nan()));
    let parameters = [random("g", &[32]).detach(), random("b", &[32]).detach()];
    let y = GroupNorm(8, true).on_tape(&x, &parameters).unwrap();
    assert!(flat(&y).iter().all(|v| v.is_nan()));
}

/// What does not fit together is an error that says so, not a wrong number.
#[test]
fn sizes_that_do_not_fit_are_errors() {
    let x = random("x", &[6, 8, 4, 4]).detach();
    let error = |network: &dyn Fn(&[Tensor]) -> Result<Tensor>, shapes: &[&[usize]]| {
        let parameters: Vec<Tensor> = shapes.iter().map(|shape| random("p", shape).detach()).collect();
        network(&parameters).map(|y| y.dims().to_vec()).unwrap_err().to_string()
    };
    let conv = |p: &[Tensor]| Conv { term: false, residual: false }.on_tape(&x, p);
    for shapes in
        [[&[5usize, 7, 3, 3][..], &[5]], [&[5, 8, 3, 3], &[4]], [&[5, 8, 5, 5], &[5]], [&[5, 8, 1, 3], &[5]]]
    {
        assert!(!error(&conv, &shapes).is_empty(), "{shapes:?}");
    }
    let norm = |p: &[Tensor]| GroupNorm(4, true).on_tape(&x, p);
    for shapes in [[&[16usize][..], &[8]], [&[8], &[4]]] {
        assert!(error(&norm, &shapes).contains("group norm"), "{shapes:?}");
    }
    let eight = random("g", &[8]).detach();
    assert!(GroupNorm(3, true).on_tape(&x, &[eight.clone(), eight]).is_err());
    assert!(Attention.on_tape(&x, &[]).unwrap_err().to_string().contains("attention"));
    assert!(Pointwise.on_tape(&random("odd", &[2, 3, 5, 4]).detach(), &[]).is_err());
    assert!(Pointwise.on_tape(&x.narrow(0, 0, 0).unwrap(), &[]).is_err());
}

/// The same network's gradient is asked for twice: an error, not half a gradient.
#[test]
fn a_second_backward_is_an_error() {
    let inputs = three(false);
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let y = Three.on_tape(&tensors[0], &tensors[1..]).unwrap().sum_all().unwrap();
    assert!(y.backward().is_ok());
    assert!(y.backward().unwrap_err().to_string().contains("once"));
}

/// x + 1. Candle passes its gradient to x; each backward pass leaves `left` as that of `parameter`.
struct Beside {
    parameter: Tensor,
    left: f32,
    bypass: Bypass,
}

impl CustomOp1 for Beside {
    fn name(&self) -> &'static str {
        "beside"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = x.as_slice::<f32>()?;
        Ok((CpuStorage::F32(x.iter().map(|x| x + 1.0).collect()), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.bypass.leave([(self.parameter.clone(), Tensor::new(&[self.left], &Device::Cpu)?)]);
        Ok(Some(dy.clone()))
    }
}

/// The gradients that passes of a GPU leave beside candle.
#[test]
fn gradients_beside_candle_join_those_of_candle() {
    let var = |value: f32| Var::new(&[value], &Device::Cpu).unwrap();
    let (x, shared, source, other) = (var(1.0), var(2.0), var(3.0), var(4.0));
    let (bypass, theirs) = (Bypass::default(), Bypass::default());
    let beside = |x: &Tensor, parameter: &Tensor, left, bypass: &Bypass| {
        x.apply_op1(Beside { parameter: parameter.clone(), left, bypass: bypass.clone() }).unwrap()
    };
    // Left by a backward pass that failed.
    bypass.leave([(shared.as_tensor().clone(), Tensor::new(&[100f32], &Device::Cpu).unwrap())]);
    let made = (source.as_tensor() * 5.0).unwrap();
    let y = beside(&x, &shared, 10.0, &bypass);
    let y = beside(&y, &shared, 20.0, &bypass);
    let y = beside(&y, &made, 7.0, &bypass);
    let y = beside(&y, &other, 9.0, &theirs);
    let loss = (y * shared.as_tensor()).unwrap().sum_all().unwrap();
    let value = |gradients: &GradStore, of: &Var| gradients.get(of).map(|gradient| flat(gradient)[0]);
    let gradients = bypass.gradients(&loss).unwrap();
    assert_eq!(value(&gradients, &x), Some(2.0));
    // Candle's is x + 4.
    assert_eq!(value(&gradients, &shared), Some(5.0 + 10.0 + 20.0));
    assert_eq!(value(&gradients, &source), Some(5.0 * 7.0));
    assert_eq!(value(&gradients, &other), None, "that of another network");
    let again = theirs.gradients(&loss).unwrap();
    assert_eq!([&x, &shared, &other].map(|of| value(&again, of)), [Some(2.0), Some(5.0), Some(9.0)]);
}

/// The type of a GPU's activations goes from where parameters are read to where a network runs, and
/// changes nothing on a CPU.
#[test]
fn the_type_of_activations_follows_the_parameters() {
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let builder = Builder::new(Variables::new(vb, DType::BF16, Bypass::default()).pp("a")).pp("b");
    builder.get(2, "c", Init::Const(0.0)).unwrap();
    let read = builder.parameters();
    assert_eq!((read.maps(), read.len(), read[0].dtype()), (DType::BF16, 1, DType::F32));
    assert_eq!(read.part(Vec::new()).maps(), DType::BF16);
    assert_eq!(read.in_float32().maps(), DType::F32);
    let (x, w) = (random("x", &[2, 3, 4, 4]), random("w", &[5, 3, 3, 3]));
    let y = |maps| {
        let parameters = Parameters::new(vec![w.as_tensor().clone()], maps);
        flat(&network::forward(&parameters, &[&x], &Plain).unwrap()[0])
    };
    assert_eq!(y(DType::BF16), y(DType::F32));
    assert_eq!(Compute::CPU.maps(), DType::F32);
    assert!(Compute::CPU.in_bfloat16().is_none() && !Compute::CPU.bfloat16());
}

struct Plain;

impl Walk for Plain {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        Ok(vec![ops.conv(&inputs[0], Param(0), None, Plus::NOTHING)?])
    }
}
