//! What the U-Net gives beside D: the means of its encoder's last map, and the gradient with
//! respect to the noise level.

mod common;

use candle_core::{DType, Device, Tensor, Var};
use common::{Fixture, relative_error, unit};
use replicate::app::selftest::fixture::{filled_denoiser, tiny};
use replicate::network::device::Compute;
use replicate::network::params::Params;
use replicate::network::unet::Denoiser;

fn filled() -> (Params, Denoiser) {
    filled_denoiser(&tiny(), &Compute::CPU, &unit).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn gradient(params: &Params, name: &str, loss: &Tensor) -> Option<Vec<f32>> {
    let var = params.iter().find(|(n, _)| *n == name).unwrap().1;
    loss.backward().unwrap().get(var).map(flat)
}

/// The way back through D to the image and to the noise level.
#[test]
fn gradients_of_image_and_level() {
    let fixture = Fixture::open("samplers.npz");
    let model = filled().0.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap();
    let (x, sigma) = (fixture.get("vjp/x"), fixture.get("vjp/sigma"));
    let (x, sigma) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&sigma).unwrap());
    let (denoised, features) = model.tracked(&x, &sigma).unwrap();
    let (d, f) = model.with_features(&x, &fixture.f32("vjp/sigma"), None, None).unwrap();
    assert_eq!(
        (flat(&denoised), flat(&features)),
        (flat(&d), flat(&f)),
        "values with and without a gradient"
    );
    let loss = (fixture.get("vjp/cotangent") * &denoised).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let gradient = |of: &Var| flat(gradients.get(of).unwrap());
    for (name, found) in
        [("denoised", flat(&denoised)), ("grad_x", gradient(&x)), ("grad_sigma", gradient(&sigma))]
    {
        let error = relative_error(&found, &fixture.f32(&format!("vjp/{name}")));
        println!("{name}: {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:e}");
    }
    // Levels in float64, as the samplers have them.
    let sigma = Var::from_tensor(&sigma.to_dtype(DType::F64).unwrap()).unwrap();
    let loss = model.tracked(&x, &sigma).unwrap().1.sqr().unwrap().sum_all().unwrap();
    let slope = loss.backward().unwrap().get(&sigma).unwrap().to_vec1::<f64>().unwrap();
    let at = |step: f64| {
        let levels: Vec<f32> = sigma.to_vec1::<f64>().unwrap().iter().map(|s| (s * step) as f32).collect();
        let squares = model.features(&x, &levels, None, None).unwrap().sqr().unwrap();
        squares
            .flatten_from(1)
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .sum(1)
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    let (above, below) = (at(1.01), at(0.99));
    for (i, sigma) in sigma.to_vec1::<f64>().unwrap().into_iter().enumerate() {
        let difference = (above[i] - below[i]) / (0.02 * sigma);
        assert!((slope[i] - difference).abs() < 2e-3 * (1.0 + difference.abs()), "{} {difference}", slope[i]);
    }
}

/// What AMED's predictor sees, of calls in the middle of a sampling.
#[test]
fn features_are_those_that_amed_pools() {
    let fixture = Fixture::open("samplers.npz");
    let model = filled().0.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap();
    for (interval, call) in [(1, 1), (2, 3)] {
        let of = |name: &str, at: usize| fixture.get(&format!("amed5/{name}")).get(at).unwrap();
        let x = of("call_x", call).to_dtype(DType::F32).unwrap();
        let sigma = of("call_sigma", call).to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let pooled = flat(&of("pooled", interval).to_dtype(DType::F32).unwrap());
        let (d, features) = model.with_features(&x, &sigma, None, None).unwrap();
        assert_eq!(features.dims(), [2, 8, 8]);
        assert!(relative_error(&flat(&features), &pooled) < 1e-5, "interval {interval}");
        let denoised = flat(&of("call_denoised", call).to_dtype(DType::F32).unwrap());
        assert!(relative_error(&flat(&d), &denoised) < 1e-5, "call {call}");
        assert_eq!(flat(&d), flat(&model.forward(&x, &sigma).unwrap()), "with and without features");
        assert_eq!(
            flat(&features),
            flat(&model.features(&x, &sigma, None, None).unwrap()),
            "the encoder alone"
        );
    }
}

/// Both outputs have gradients, also of what they share; the encoder alone has none for the
/// decoder.
#[test]
fn gradients_go_through_both_outputs() {
    let (params, model) = filled();
    let x = Tensor::from_vec(unit("encoder.x", 5 * 768), (5, 3, 16, 16), &Device::Cpu).unwrap();
    let sigma = [0.1, 0.5, 1.0, 5.0, 40.0];
    let (shared, decoder) = ("model.enc.8x8_block0.conv1.weight", "model.dec.8x8_in0.conv0.weight");
    let sum = |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let squares = |y: Tensor| y.sqr().unwrap().sum_all().unwrap();
    let alone = squares(model.features(&x, &sigma, None, None).unwrap());
    let denoised = squares(model.forward(&x, &sigma).unwrap());
    let (d, features) = model.with_features(&x, &sigma, None, None).unwrap();
    let both = (squares(d) + squares(features)).unwrap();
    assert_eq!(gradient(&params, decoder, &alone), None);
    let of_features =
        gradient(&params, shared, &squares(model.features(&x, &sigma, None, None).unwrap())).unwrap();
    let expected = sum(of_features, gradient(&params, shared, &denoised).unwrap());
    assert!(relative_error(&gradient(&params, shared, &both).unwrap(), &expected) < 1e-5);
    let (d, features) = model.with_features(&x, &sigma, None, None).unwrap();
    let denoised = squares(model.forward(&x, &sigma).unwrap());
    let found = gradient(&params, decoder, &(squares(d) + squares(features)).unwrap()).unwrap();
    assert_eq!(found, gradient(&params, decoder, &denoised).unwrap());
}
