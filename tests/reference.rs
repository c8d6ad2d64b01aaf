//! Parity with the reference implementations on formula-filled weights.

mod common;

use candle_core::{Device, Tensor, Var};
use common::{Fixture, relative_error, unit};
use replicate::app::selftest::fixture::{self, tiny};
use replicate::app::selftest::steps::CASES;
use replicate::method::sampler::edm::heun;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Config, Critic, Denoiser};

const TOLERANCE: f32 = 1e-4;

fn filled_denoiser(config: &Config) -> (Params, Denoiser) {
    fixture::filled_denoiser(config, &Compute::CPU, &unit).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn network_parity(file: &str, config: Config) -> Params {
    let fixture = Fixture::open(file);
    let (params, model) = filled_denoiser(&config);
    let (x, sigma, labels) = (fixture.get("x"), fixture.f32("sigma"), fixture.f32("augment_labels"));

    let denoised = model.forward(&x, &sigma).unwrap();
    assert!(relative_error(&flat(&denoised), &fixture.f32("denoised")) < TOLERANCE);
    let augmented = model.forward_train(&x, &sigma, Some(&labels), None).unwrap();
    assert!(relative_error(&flat(&augmented), &fixture.f32("denoised_augmented")) < TOLERANCE);
    let image: Vec<f32> = unit("input.image", x.elem_count()).into_iter().map(|u| 0.8 * u).collect();
    let image = Tensor::from_vec(image, x.shape(), &Device::Cpu).unwrap();
    let loss = (&augmented - image).unwrap().sqr().unwrap().mean_all().unwrap();
    assert!(relative_error(&flat(&loss), &fixture.f32("loss")) < TOLERANCE);

    let grads = params.gradients(&loss).unwrap();
    let gradient = |name: &str| {
        let (_, var) =
            params.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no parameter {name}"));
        flat(grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")))
    };
    let (mut norms, mut whole) = (0, 0);
    for name in fixture.names() {
        if let Some(parameter) = name.strip_prefix("grad_norm/") {
            let norm = gradient(parameter).iter().map(|v| *v as f64 * *v as f64).sum::<f64>().sqrt() as f32;
            let expected = fixture.f32(&name);
            assert!(relative_error(&[norm], &expected) < TOLERANCE, "{parameter}: {norm} for {expected:?}");
            norms += 1;
        } else if let Some(parameter) = name.strip_prefix("grad/") {
            assert!(relative_error(&gradient(parameter), &fixture.f32(&name)) < TOLERANCE, "{parameter}");
            whole += 1;
        }
    }
    assert_eq!((norms, whole), (params.iter().count(), 3));
    params
}

#[test]
fn tiny_unet() {
    assert_eq!(network_parity("edm-tiny.npz", tiny()).count(), 189_491);
}

#[test]
fn full_ddpmpp() {
    assert_eq!(network_parity("edm-cifar10.npz", Config::cifar10()).count(), 55_733_891);
}

#[test]
fn heun_sampler() {
    let fixture = Fixture::open("edm-sampler.npz");
    let (_, model) = filled_denoiser(&tiny());
    let images =
        heun(&model, &fixture.get("latents"), 18).unwrap().to_dtype(candle_core::DType::F32).unwrap();
    assert!(relative_error(&flat(&images), &fixture.f32("images")) < TOLERANCE);
    let bytes = replicate::data::Images::from_unit(3, 16, &flat(&images)).pixels;
    let expected: Vec<u8> = fixture.get("images_uint8").flatten_all().unwrap().to_vec1().unwrap();
    let off = bytes.iter().zip(&expected).filter(|(a, b)| a != b).count();
    // A value within float32 error of a rounding edge may fall on either side.
    assert!(off <= bytes.len() / 1000, "{off} of {} bytes differ", bytes.len());
    assert!(bytes.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= 1));
}

/// Every parameter of every network receives a gradient that is not zero.
#[test]
fn every_parameter_receives_a_gradient() {
    let x = Tensor::from_vec(unit("gradient.x", 2 * 768), (2, 3, 16, 16), &Device::Cpu).unwrap();
    let labels = unit("gradient.labels", 2 * 9);
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "gradients" };
    let (params, model) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&tiny(), vb)).unwrap();
    let y = model.forward_train(&x, &[0.3, 2.5], Some(&labels), None).unwrap();
    check_gradients(&params, &y);
    let (params, critic) = Params::build(&Compute::CPU, &source, |vb| Critic::new(&tiny(), vb)).unwrap();
    let y = critic.forward_train(&x, &[0.3, 2.5], Some(&labels), None).unwrap();
    check_gradients(&params, &y);
}

/// A network takes images in groups: each gets its own noise level and label, forward
/// and backward, wherever it stands.
#[test]
fn an_image_does_not_depend_on_its_batch() {
    const IMAGES: usize = 9;
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "batch" };
    let (_, denoiser) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&tiny(), vb)).unwrap();
    let (_, critic) = Params::build(&Compute::CPU, &source, |vb| Critic::new(&tiny(), vb)).unwrap();
    let x = Tensor::from_vec(unit("batch.x", IMAGES * 768), (IMAGES, 3, 16, 16), &Device::Cpu).unwrap();
    let labels = unit("batch.labels", IMAGES * 9);
    let sigma: Vec<f32> = (0..IMAGES).map(|i| 0.1 + 0.7 * i as f32).collect();
    // Outputs and the gradients of the images, of images `from` to `from + n`.
    let run = |from: usize, n: usize| -> [Vec<f32>; 4] {
        let x = Var::from_tensor(&x.narrow(0, from, n).unwrap().force_contiguous().unwrap()).unwrap();
        let (labels, sigma) = (&labels[9 * from..][..9 * n], &sigma[from..][..n]);
        let (y, c) = (
            denoiser.forward_train(&x, sigma, Some(labels), None).unwrap(),
            critic.forward_train(&x, sigma, Some(labels), None).unwrap(),
        );
        let gradient =
            |y: &Tensor| flat(y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap());
        [gradient(&y), gradient(&c), flat(&y), flat(&c)]
    };
    let whole = run(0, IMAGES);
    for image in 0..IMAGES {
        let alone = run(image, 1);
        for (whole, alone) in whole.iter().zip(&alone) {
            assert_eq!(whole[image * alone.len()..][..alone.len()], alone[..], "image {image}");
        }
    }
}

fn check_gradients(params: &Params, y: &Tensor) {
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in params.iter() {
        let g = flat(grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")));
        assert!(g.iter().any(|v| *v != 0.0), "{name} has a zero gradient");
    }
}

#[test]
fn five_training_steps() {
    let fixture = Fixture::open("train-steps.npz");
    for case in CASES.iter().filter(|case| case.file == "train-steps.npz") {
        for check in case.checks(&fixture.0, &Compute::CPU, &unit).unwrap() {
            println!("{}: {:.1e}", check.name, check.measured);
            assert!(check.passed, "{} off by {}", check.name, check.measured);
        }
    }
}
