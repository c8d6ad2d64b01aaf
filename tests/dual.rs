//! Forward mode against the reference in float32 and float64, against central differences in
//! float64, and a gradient through it.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Fixture, relative_error, unit};
use replicate::app::selftest::fixture::{filled, filled_denoiser, tiny};
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::precondition::Precondition;
use replicate::network::reference::Composed;
use replicate::network::unet::{Conditioning, Critic, Denoiser};
use replicate::network::{self, Norm, Ops, Param, Parameters, Plus, Resample, Walk, dual};
use replicate::rng::Stream;

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn random(name: &str, shape: &[usize]) -> Tensor {
    let values = Stream::new("dual", name).normals(0, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn frozen() -> Denoiser {
    let (params, _) = filled_denoiser(&tiny(), &Compute::CPU, &unit).unwrap();
    params.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap()
}

#[test]
fn the_u_net_along_image_and_level() {
    let fixture = Fixture::open("consistency.npz");
    let (x, dx) = (fixture.get("jvp/x"), fixture.get("jvp/dx"));
    let (label, dlabel) = (fixture.f32("jvp/label"), fixture.f32("jvp/dlabel"));
    let (model, conditioning) = (frozen(), Conditioning { noise: &label, ..Conditioning::default() });
    let [f, df] = model.raw_jvp([&x, &dx], &conditioning, &dlabel).unwrap();
    assert_eq!(flat(&f), flat(&model.raw(&x, &conditioning).unwrap()), "the value is the forward pass's");
    for (found, name) in [(f, "F"), (df, "dF")] {
        for (of, tolerance) in [("jvp", 4e-6), ("jvp64", 2e-6)] {
            let error = relative_error(&flat(&found), &fixture.f32(&format!("{of}/{name}")));
            println!("{of}/{name}: {error:.1e}");
            assert!(error < tolerance, "{of}/{name}: {error:e}");
        }
    }
}

/// sCT's tangent: the derivative of F along the path of fixed image and noise.
#[test]
fn the_tangent_of_sct() {
    let fixture = Fixture::open("consistency.npz");
    let (x0, z, sigma) = (fixture.get("tangent/x0"), fixture.get("tangent/z"), fixture.f32("tangent/sigma"));
    let t: Vec<f32> = sigma.iter().map(|s| (2.0 * s).atan()).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = t.iter().map(|t| (t.cos(), t.sin())).unzip();
    let minus: Vec<f32> = sin.iter().map(|s| -s).collect();
    let (xt, v) = (network::mix(&x0, &cos, &z, &sin).unwrap(), network::mix(&z, &cos, &x0, &minus).unwrap());
    let product: Vec<f32> = cos.iter().zip(&sin).map(|(c, s)| c * s).collect();
    let twice: Vec<f32> = product.iter().map(|p| 2.0 * p).collect();
    let noise: Vec<f32> = sigma.iter().map(|s| s.ln() / 4.0).collect();
    let conditioning = Conditioning { noise: &noise, ..Conditioning::default() };
    let inputs = [&(xt.clone() * 2.0).unwrap(), &network::scale_images(&v, &twice).unwrap()];
    let [f, df] = frozen().raw_jvp(inputs, &conditioning, &[0.25; 4]).unwrap();
    for r in ["0.0", "0.5", "1.0"] {
        // F here is minus the U-Net's.
        let along = (network::scale_images(&xt, &product).unwrap() - (&df * 0.5).unwrap()).unwrap();
        let squares: Vec<f32> = cos.iter().map(|c| c * c).collect();
        let matching = network::scale_images(&((f.clone() * 0.5).unwrap() + &v).unwrap(), &squares).unwrap();
        let g = (matching - (along * r.parse::<f64>().unwrap()).unwrap()).unwrap();
        for of in ["tangent", "tangent64"] {
            let error = relative_error(&flat(&g), &fixture.f32(&format!("{of}/g_r{r}")));
            println!("{of}/g_r{r}: {error:.1e}");
            assert!(error < 4e-6, "{of}/g_r{r}: {error:e}");
        }
    }
}

/// D, and its derivative along `dx` and the tangent `dsigma` of the levels, from those of F.
fn denoiser_along(model: &Denoiser, [x, dx]: [&Tensor; 2], sigma: &[f32], dsigma: &[f32]) -> [Tensor; 2] {
    let (c, slopes) = (Precondition::at(sigma), Precondition::slopes(sigma));
    let along = |slopes: &[f32]| -> Vec<f32> { slopes.iter().zip(dsigma).map(|(s, d)| s * d).collect() };
    let mix = |a: &Tensor, x: &[f32], b: &Tensor, y: &[f32]| network::mix(a, x, b, y).unwrap();
    let inputs = [&network::scale_images(x, &c.input).unwrap(), &mix(dx, &c.input, x, &along(&slopes.input))];
    let conditioning = Conditioning { noise: &c.noise, ..Conditioning::default() };
    let [f, df] = model.raw_jvp(inputs, &conditioning, &along(&slopes.noise)).unwrap();
    let (through, beside) =
        (mix(dx, &c.skip, &df, &c.out), mix(x, &along(&slopes.skip), &f, &along(&slopes.out)));
    [mix(x, &c.skip, &f, &c.out), (through + beside).unwrap()]
}

/// D along image and level, by differences of the network in float32: they are good to three
/// digits.
#[test]
fn the_denoiser_along_image_and_level() {
    let (model, sigma, dsigma) = (frozen(), [0.1f32, 0.5, 2.0, 10.0], [0.3f32, -0.2, 1.0, 4.0]);
    let (x, dx) = (random("x", &[4, 3, 16, 16]), random("dx", &[4, 3, 16, 16]));
    let [d, tangent] = denoiser_along(&model, [&x, &dx], &sigma, &dsigma);
    assert_eq!(flat(&d), flat(&model.forward(&x, &sigma).unwrap()));
    let at = |step: f32| {
        let moved: Vec<f32> = sigma.iter().zip(dsigma).map(|(s, d)| s + step * d).collect();
        model.forward(&network::mix(&x, &[1.0], &dx, &[step]).unwrap(), &moved).unwrap()
    };
    let step = 5e-3;
    let difference = ((at(step) - at(-step)).unwrap() / (2.0 * step as f64)).unwrap();
    let error = relative_error(&flat(&tangent), &flat(&difference));
    assert!(error < 1e-3, "{error:e}");
}

/// Every operation, of two inputs that share it.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Conv,
    Norm(bool),
    Attention,
    Silu,
    Resized,
    Mean,
    Leaky,
    Scale,
    Rsqrt,
    Resample,
}

const ALL: [Operation; 11] = [
    Operation::Conv,
    Operation::Norm(false),
    Operation::Norm(true),
    Operation::Attention,
    Operation::Silu,
    Operation::Resized,
    Operation::Mean,
    Operation::Leaky,
    Operation::Scale,
    Operation::Rsqrt,
    Operation::Resample,
];

impl Walk for Operation {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let (x, rows) = (&inputs[0], &inputs[1]);
        let y = match self {
            Operation::Conv => {
                let term = ops.conv(rows, Param(4), Some(Param(5)), Plus::NOTHING)?;
                let plus = Plus { term: Some(&term), residual: Some((x, 0.7)) };
                ops.conv(x, Param(0), Some(Param(1)), plus)?
            }
            Operation::Norm(silu) => {
                let norm = Norm { gamma: Param(2), beta: Param(3), groups: 3, eps: 1e-6, silu: *silu };
                ops.norm(x, &norm)?
            }
            Operation::Attention => ops.attention(x)?,
            Operation::Silu => ops.silu(x)?,
            Operation::Resized => {
                let small = ops.down2(x)?;
                let large = ops.up2(&small)?;
                ops.concat(&large, x)?
            }
            Operation::Mean => ops.mean(x)?,
            Operation::Leaky => {
                let by = ops.conv(x, Param(0), None, Plus::NOTHING)?;
                ops.leaky(x, &by, 1.3)?
            }
            Operation::Scale => ops.scale(x, rows)?,
            Operation::Rsqrt => {
                let squares = ops.scale(rows, rows)?;
                ops.rsqrt(&squares, 0.1)?
            }
            Operation::Resample => {
                ops.resample(x, &Resample { up: 2, pad: [1, 2], taps: &[0.25, 0.75, 0.5], down: 1 })?
            }
        };
        Ok(vec![y])
    }
}

const SHAPES: [&[usize]; 8] =
    [&[5, 12, 6, 4], &[5, 12], &[12, 12, 3, 3], &[12], &[12], &[12], &[12, 12], &[12]];

/// Inputs, tangents of both, parameters.
fn given(dtype: DType) -> ([Tensor; 2], [Tensor; 2], Vec<Tensor>) {
    let of = |name: &str, at: usize| random(&format!("{name}{at}"), SHAPES[at]).to_dtype(dtype).unwrap();
    let two = |name: &str| [of(name, 0), of(name, 1)];
    (two("x"), two("dx"), (2..8).map(|at| of("p", at)).collect())
}

#[test]
fn operations_along_a_tangent() {
    for operation in ALL {
        let (inputs, tangents, parameters) = given(DType::F64);
        let maps: Vec<Tensor> = inputs.iter().chain(&tangents).map(as_map).collect();
        let walked = dual::walk(&mut Composed::new(&parameters), &maps, &operation).unwrap();
        let moved = |step: f64| {
            let each =
                inputs.iter().zip(&tangents).map(|(x, dx)| as_map(&(x + (dx * step).unwrap()).unwrap()));
            let moved: Vec<Tensor> = each.collect();
            operation.walk(&mut Composed::new(&parameters), &moved).unwrap().remove(0)
        };
        let step = 1e-5;
        let difference = ((moved(step) - moved(-step)).unwrap() / (2.0 * step)).unwrap();
        let error = relative_error(&flat(&walked[1]), &flat(&difference));
        assert!(error < 1e-6, "{operation:?}: {error:e}");
        assert_eq!(flat(&walked[0]), flat(&moved(0.0)), "{operation:?}: the value");

        let (inputs, tangents, parameters) = given(DType::F32);
        let listed = Parameters::new(parameters, DType::F32);
        let (inputs, tangents) = ([&inputs[0], &inputs[1]], [&tangents[0], &tangents[1]]);
        let (y, dy) = network::along(&listed, &inputs, &tangents, &operation).unwrap();
        let error = relative_error(&flat(&dy[0]), &flat(&walked[1]));
        assert!(error < 2e-6, "{operation:?} on the tape: {error:e}");
        let plain = network::forward(&listed, &inputs, &operation).unwrap();
        assert_eq!(flat(&y[0]), flat(&plain[0]), "{operation:?}: the bits of the forward pass");
    }
}

/// (B, C) as maps of one pixel.
fn as_map(x: &Tensor) -> Tensor {
    match *x.dims() {
        [b, c] => x.reshape((b, c, 1, 1)).unwrap(),
        _ => x.clone(),
    }
}

/// A sum of squares of a directional derivative, as in R1: its gradient, of everything on
/// candle's operations and of what is linear in pieces on the tape.
#[test]
fn a_gradient_through_the_derivative() {
    struct Pieces;
    impl Walk for Pieces {
        fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
            let y = ops.conv(&inputs[0], Param(0), Some(Param(1)), Plus::NOTHING)?;
            let y = ops.leaky(&y, &y, 1.3)?;
            let y = ops.scale(&y, &inputs[1])?;
            let y = ops.conv(&y, Param(0), None, Plus { term: None, residual: Some((&y, 0.5)) })?;
            Ok(vec![ops.mean(&y)?])
        }
    }
    struct Smooth;
    impl Walk for Smooth {
        fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
            let y = Operation::Norm(true).walk(ops, inputs)?.remove(0);
            let y = Operation::Conv.walk(ops, &[y, inputs[1].clone()])?.remove(0);
            Operation::Attention.walk(ops, &[y, inputs[1].clone()])
        }
    }
    let (inputs, tangents, parameters) = given(DType::F64);
    let maps: Vec<Tensor> = inputs.iter().chain(&tangents).map(as_map).collect();
    fn penalty(network: &impl Walk, maps: &[Tensor], parameters: &[Tensor]) -> Tensor {
        let walked = dual::walk(&mut Composed::new(parameters), maps, network).unwrap();
        walked[1].sqr().unwrap().sum_all().unwrap()
    }
    fn check(network: &impl Walk, maps: &[Tensor], parameters: &[Tensor]) -> Vec<f32> {
        let weight = Var::from_tensor(&parameters[0]).unwrap();
        let with = |w: &Tensor| [std::slice::from_ref(w), &parameters[1..]].concat();
        let loss = penalty(network, maps, &with(&weight));
        let gradient = loss.backward().unwrap().get(&weight).unwrap().clone();
        let direction = random("direction", SHAPES[2]).to_dtype(DType::F64).unwrap();
        let at = |step: f64| {
            let moved = (&parameters[0] + (&direction * step).unwrap()).unwrap();
            penalty(network, maps, &with(&moved)).to_scalar::<f64>().unwrap()
        };
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        let slope = (&gradient * direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((slope - difference).abs() < 1e-6 * difference.abs(), "{slope} {difference}");
        flat(&gradient)
    }
    check(&Smooth, &maps, &parameters);
    let expected = check(&Pieces, &maps, &parameters);
    let (inputs, tangents, parameters) = given(DType::F32);
    let weight = Var::from_tensor(&parameters[0]).unwrap();
    let parameters = [std::slice::from_ref(weight.as_tensor()), &parameters[1..]].concat();
    let listed = Parameters::new(parameters, DType::F32);
    let (inputs, tangents) = ([&inputs[0], &inputs[1]], [&tangents[0], &tangents[1]]);
    let (_, dy) = network::along(&listed, &inputs, &tangents, &Pieces).unwrap();
    let gradients = dy[0].sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let error = relative_error(&flat(gradients.get(&weight).unwrap()), &expected);
    assert!(error < 1e-5, "{error:e}");
    let refused = network::along(&listed, &inputs, &tangents, &Smooth).unwrap_err();
    assert!(refused.to_string().contains("derivative of a norm"), "{refused}");
}

/// The gradient of a derivative, which R1 needs: by differences over all parameters at once.
#[test]
fn the_critics_derivative_has_an_exact_gradient() {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "dual critic" };
    let (params, critic) = Params::build(&Compute::CPU, &source, |vb| Critic::new(&tiny(), vb)).unwrap();
    params.assign(&filled(&params, &unit)).unwrap();
    let sigma = [0.002f32, 0.1, 0.5, 3.0];
    let (x, dx) = (random("critic x", &[4, 3, 16, 16]), random("critic dx", &[4, 3, 16, 16]));
    let along = || critic.jvp([&x, &dx], &sigma).unwrap();
    let [l, dl] = along();
    assert!(relative_error(&flat(&l), &flat(&critic.forward(&x, &sigma).unwrap())) < 1e-5);
    let h = 1e-2;
    let beside = |sign: f64| {
        let moved = (&x + (&dx * (sign * h)).unwrap()).unwrap();
        critic.forward(&moved, &sigma).unwrap()
    };
    let differences = ((beside(1.0) - beside(-1.0)).unwrap() / (2.0 * h)).unwrap();
    assert!(relative_error(&flat(&dl), &flat(&differences)) < 1e-2);

    let gradients = dl.sum_all().unwrap().backward().unwrap();
    let sum = |t: Tensor| t.sum_all().unwrap().to_scalar::<f32>().unwrap() as f64;
    let (weights, mut expected) = (params.arrays().unwrap(), 0.0);
    let mut steps = Vec::new();
    for (name, var) in params.iter() {
        let step = (random(name, var.dims()) * 1e-3).unwrap();
        // No derivative depends on the last bias, and nothing is told about augmentation.
        let Some(gradient) = gradients.get(var) else {
            assert!(["critic.head.bias", "model.map_augment.weight"].contains(&name.as_str()), "{name}");
            continue;
        };
        expected += sum((gradient * &step).unwrap());
        steps.push((var.clone(), step));
    }
    let at = |sign: f64| {
        params.assign(&weights).unwrap();
        for (var, step) in &steps {
            var.set(&(var.as_tensor() + (step * sign).unwrap()).unwrap()).unwrap();
        }
        sum(along()[1].clone())
    };
    let found = (at(1.0) - at(-1.0)) / 2.0;
    println!("along the parameters: {expected:.6}, by differences {found:.6}");
    assert!((found - expected).abs() < 2e-2 * expected.abs(), "{expected} and {found}");
}
