//! The moving average; Adam is held against the reference in `tests/reference.rs`.

use candle_core::Device;
use candle_nn::{Init, VarBuilder};
use replicate::network::params::{Arrays, Params, Source};
use replicate::store::Array;
use replicate::train::adam::Ema;

/// EDM's `--ema`: beta = 0.5^(batch / half-life), and no longer than 5 % of what was seen.
#[test]
fn the_average_has_its_half_life() {
    let network = |vb: VarBuilder| vb.get_with_hints(2, "w", Init::Const(1.0));
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "average" };
    let (params, _) = Params::build(&Device::Cpu, &source, network).unwrap();
    for (half_life, images, batch, beta) in [(40, 10_000, 20, 0.5f64.sqrt()), (1_000_000, 400, 20, 0.5)] {
        params.assign(&Arrays::from([("w".into(), Array { shape: vec![2], data: vec![1.0, 1.0] })])).unwrap();
        let mut ema = Ema::new(half_life, &params).unwrap();
        params
            .assign(&Arrays::from([("w".into(), Array { shape: vec![2], data: vec![3.0, -1.0] })]))
            .unwrap();
        for _ in 0..2 {
            ema.update(&params, images, batch).unwrap();
        }
        let left = beta * beta;
        let found = &ema.arrays().unwrap()["w"].data;
        for (found, expected) in found.iter().zip([3.0 - 2.0 * left, -1.0 + 2.0 * left]) {
            assert!((*found as f64 - expected).abs() < 1e-6, "{half_life}: {found}, {expected}");
        }
    }
}
