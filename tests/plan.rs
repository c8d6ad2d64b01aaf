//! The counts behind the estimates, against hand, against the shapes of the
//! networks' parameters, and against what a run leaves on the disk.

use candle_core::{DType, Device, Tensor};
use replicate::app::machine::Card;
use replicate::data::Images;
use replicate::data::grid::GRID;
use replicate::experiment::plan;
use replicate::experiment::{Data, Initialization, Recipe, Row, Scale, TABLE1, TABLE2, all_rows};
use replicate::measure::classifier::{Classifier, Layout};
use replicate::method::one_step::one_step;
use replicate::network::count::Count;
use replicate::network::device::Compute;
use replicate::network::params::{Params, Source, outline};
use replicate::network::unet::{Config, Critic, Denoiser};
use replicate::rng::Stream;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn row(name: &str) -> Row {
    *TABLE1.iter().chain(TABLE2).find(|cell| cell.id == name).unwrap()
}

const TEACHER: Initialization = Initialization::MultiLevel(Data::Target);

/// One block of 4 channels in each half, 4 x 4 grey pixels, no attention but
/// the decoder's first block's.
fn tiny() -> Config {
    Config {
        size: 4,
        image_channels: 1,
        model_channels: 4,
        channel_mult: vec![1],
        blocks: 1,
        attention_sizes: vec![],
        augment_labels: 0,
    }
}

#[test]
fn a_tiny_network_by_hand() {
    // Multiply-adds; 16 pixels, embedding of 16.
    let embedding = 4 * 16 + 16 * 16;
    let block = |inputs: u64| inputs * 4 * 9 * 16 + 16 * 4 + 4 * 4 * 9 * 16;
    let encoder = embedding + 4 * 9 * 16 + block(4);
    let attention = 4 * 12 * 16 + 4 * 4 * 16 + 2 * (4 * 16 * 16);
    let skip = 8 * 4 * 16;
    let decoder = (block(4) + attention) + block(4) + 2 * (block(8) + skip) + 4 * 9 * 16;
    assert_eq!((encoder, decoder), (5_568, 27_968));
    let (generator, critic) = (2.0 * 33_536.0, 2.0 * (5_568.0 + 4.0));
    assert_eq!(plan::forward(&tiny()), generator);
    // Scalars: U-Net 2801, critic 785.
    let recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Smoke) };
    assert_eq!(plan::pretraining(&recipe, TEACHER).parameters, 2801);
    let dijs = plan::row(&recipe, &row("dijs"));
    assert_eq!(dijs.step_flop, recipe.budget.batch as f64 * dijs_flop(generator, critic));
    assert_eq!(dijs.parameters, 2801 + 785);
    assert_eq!(plan::row(&recipe, &row("diff-instruct")).parameters, 2 * 2801);
    assert_eq!(plan::row(&recipe, &row("edm")).parameters, 0);
}

/// Of a step on one image, by those of the two networks' forward passes: fakes, and the
/// critic forward and backward on data and on fakes; the generator forward and backward,
/// through the critic's inputs.
fn dijs_flop(generator: f64, critic: f64) -> f64 {
    (generator + 2.0 * 3.0 * critic) + (3.0 * generator + 2.0 * critic)
}

/// Scalars, and operations of one forward pass: every weight once for each
/// pixel of its output, of which a U-Net's names tell the number ("16x16_in0").
fn walk(shapes: &BTreeMap<String, Vec<usize>>, pixels_of: impl Fn(&str) -> usize) -> (u64, f64) {
    let (mut scalars, mut flop) = (0, 0);
    for (name, shape) in shapes {
        let n: usize = shape.iter().product();
        scalars += n;
        // The paper's one-step networks are given no augmentation label.
        if name.contains("map_augment") || !name.ends_with("weight") {
            continue;
        }
        match shape.len() {
            2 => flop += 2 * n,
            4 => flop += 2 * n * pixels_of(name),
            _ => {}
        }
        if name.ends_with("qkv.weight") {
            let (channels, pixels) = (shape[0] / 3, pixels_of(name));
            flop += 2 * 2 * channels * pixels * pixels;
        }
    }
    (scalars as u64, flop as f64)
}

fn pixels_in_name(name: &str) -> usize {
    let size: usize = name.split(['.', '_', 'x']).find_map(|part| part.parse().ok()).unwrap();
    size * size
}

#[test]
fn every_scale_by_the_shapes_of_its_parameters() {
    for scale in Scale::ALL {
        let recipe = Recipe::of(scale);
        let config = &recipe.network;
        let (_, shapes) = outline(|vb| Denoiser::new(config, vb)).unwrap();
        let (generator, flop) = walk(&shapes, pixels_in_name);
        assert_eq!(plan::forward(config), flop, "{scale}");
        assert_eq!(plan::pretraining(&recipe, TEACHER).parameters, generator, "{scale}");
        let (_, shapes) = outline(|vb| Critic::new(config, vb)).unwrap();
        let (critic, critic_flop) = walk(&shapes, pixels_in_name);
        let dijs = plan::row(&recipe, &row("dijs"));
        assert_eq!(dijs.step_flop, recipe.budget.batch as f64 * dijs_flop(flop, critic_flop), "{scale}");
        assert_eq!(dijs.parameters, generator + critic, "{scale}");
    }
}

#[test]
fn the_feature_network_by_the_shapes_of_its_parameters() {
    let (_, shapes) = outline(|vb| Classifier::new(Layout::GLYPHS, vb)).unwrap();
    let pixels = |name: &str| match name {
        "layer0.weight" | "layer1.weight" => 16 * 16,
        "layer2.weight" | "layer3.weight" => 8 * 8,
        "layer4.weight" => 4 * 4,
        other => panic!("{other} is not counted"),
    };
    assert_eq!(plan::classifier_forward(Layout::GLYPHS, 16), walk(&shapes, pixels).1);
}

/// Counted apart from this code, for the published network: 42.4 GFLOP
/// forward, 17.9 TFLOP for an iteration at batch 64, 55,733,891 parameters.
#[test]
fn the_published_network() {
    let recipe = Recipe::of(Scale::Paper);
    let giga = plan::forward(&recipe.network) / 1e9;
    assert!((giga - 42.4).abs() < 0.05, "{giga} GFLOP");
    let dijs = plan::row(&recipe, &row("dijs"));
    assert_eq!(recipe.budget.batch, 64);
    assert!((dijs.step_flop / 1e12 - 17.9).abs() < 0.05, "{} TFLOP", dijs.step_flop / 1e12);
    assert_eq!(plan::pretraining(&recipe, TEACHER).parameters, 55_733_891);
}

#[test]
fn a_step_is_the_networks_that_it_runs() {
    let mut recipe = Recipe::of(Scale::Smoke);
    let (g, batch) = (plan::forward(&recipe.network), recipe.budget.batch as f64);
    // Fakes g; fake score 3g; generator 3g; both scores 2g.
    assert_eq!(plan::row(&recipe, &row("diff-instruct")).step_flop, batch * 9.0 * g);
    // Of one step, with one look before it and one after.
    recipe.until(recipe.budget.batch as u64);
    recipe.pretraining.batch = recipe.budget.batch;
    let features = plan::classifier_forward(Layout::GLYPHS, 16);
    let e = recipe.evaluation.clone();
    let (grid, quick, samples) = (100.0, e.quick_samples as f64, e.samples as f64);
    let dijs = plan::row(&recipe, &row("dijs"));
    let scores = (e.reference as f64 + samples) * features;
    let looks = 2.0 * ((grid + quick) * g + quick * features);
    assert_eq!(dijs.steps, 1);
    assert_eq!(dijs.flop, dijs.step_flop + looks + (grid + samples) * g + scores);
    assert_eq!(plan::row(&recipe, &row("edm")).flop, 35.0 * (grid + samples) * g + scores);
    let teacher = plan::pretraining(&recipe, TEACHER);
    assert_eq!(teacher.flop, batch * 3.0 * g + 2.0 * grid * g);
    assert_eq!(plan::pretraining(&recipe, Initialization::Random), plan::Cost::default());
}

/// A network of one block in each half, whose outputs can be counted by hand.
#[test]
fn memory_is_weights_and_the_outputs_of_operations() {
    let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Smoke) };
    recipe.budget.batch = 1000;
    let maps = 4 * 16;
    // The noise's row, two linear layers of 16 and SiLU after each.
    let embedding = 4 + 4 * 16;
    // Of the embedding, then norm, convolution, norm, convolution, sum.
    let block = |inputs: u64| 4 + (inputs / 4 + 4) * maps;
    let encoder = embedding + maps + block(4);
    let attention = (1 + 3 + 1 + 2) * maps;
    // Blocks that take a skip: the concatenation, twice the channels, a projection.
    let decoder = block(4) + attention + block(4) + 2 * (block(8) + 3 * maps) + maps;
    let generator = encoder + decoder + 16;
    // A norm, its mean and the logit.
    let critic = encoder + maps + 4 + 1;
    // Two passes of the critic, or one and the generator.
    let outputs = (2 * critic).max(generator + critic);
    let expected = 4 * (5 * 2801 + 4 * 785 + 1000 * outputs) * 3 / 2;
    let found = plan::memory(&recipe, &row("dijs"));
    assert_eq!(found, expected);
    assert!(plan::memory(&recipe, &row("diff-instruct")) > 4 * 1000 * generator);
}

/// Passes that are not of every iteration, or not of one number, follow the settings.
#[test]
fn counted_passes_follow_the_settings() {
    let cost = |id: &str, changes: &[&str]| {
        let mut recipe = Recipe::of(Scale::Smoke);
        changes.iter().for_each(|change| recipe.set(change).unwrap());
        let row = all_rows().find(|row| row.id == id).unwrap();
        (plan::row(&recipe, &row).step_flop / recipe.budget.batch as f64, plan::memory(&recipe, &row))
    };
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
    let unet = plan::forward(&Recipe::of(Scale::Smoke).network);
    // Without its penalty a row costs what the row without R1 does; with it twice as often, ...
    let penalty = |row: &str, without: &str| cost(row, &[]).0 - cost(without, &[]).0;
    for (row, without) in [
        ("diff-gan", "diff-gan-no-r1"),
        ("diff-gan-near-r1", "diff-gan-no-r1"),
        ("diff-gan-unet", "diff-gan-unet-no-r1"),
    ] {
        let plain = cost(without, &[]).0;
        near(cost(row, &["gan_gamma=0"]).0, plain);
        near(cost(row, &["gan_penalty_every=8"]).0 - plain, 2.0 * penalty(row, without));
    }
    // ... and differences of logits take two passes instead of a slope and two.
    let plain = "diff-gan-no-r1";
    near(penalty("diff-gan-near-r1", plain), penalty("diff-gan", plain) * 6.0 / 8.0);
    // A setting of other rows changes nothing.
    assert_eq!(cost("diff-gan-unet", &["critic_steps=3"]), cost("diff-gan-unet", &[]));
    assert_eq!(cost("dijs", &["critic_steps=2"]).1, cost("dijs", &[]).1);
    // 9 + 2 calls without a gradient and 3 with one; of four intervals 12 + 3 and 4.
    near(cost("amed-plugin", &[]).0, (11.0 + 2.0 * 3.0) * unet);
    near(cost("amed-plugin", &["amed_calls=7"]).0, (15.0 + 2.0 * 4.0) * unet);
    // One of those with a gradient is held at a time.
    assert_eq!(cost("amed-plugin", &["amed_calls=7"]).1, cost("amed-plugin", &[]).1);
    let activations = Count::denoiser(&Recipe::of(Scale::Smoke).network).activations;
    let more = cost("amed-plugin", &["batch=17"]).1 - cost("amed-plugin", &["batch=16"]).1;
    assert_eq!(more, 6 * activations);
}

#[test]
fn a_time_is_operations_over_a_rate() {
    let dijs = plan::row(&Recipe::of(Scale::Mini), &row("dijs"));
    let rate = dijs.rate(0.5);
    let (steps, all) = (dijs.steps as f64 * 0.5, plan::seconds(&dijs, rate));
    // Samples, scores and looks are a fraction of the 300 steps.
    assert!(all > steps && all < 1.3 * steps, "{all} s of which {steps} in steps");
    assert_eq!(plan::seconds(&dijs, 2.0 * rate), all / 2.0);
}

/// Untrained networks sample what is close to noise.
#[test]
fn a_grid_of_noise_is_within_the_bound() {
    for scale in [Scale::Mini, Scale::Paper] {
        let recipe = Recipe::of(scale);
        let (channels, size) = (recipe.network.image_channels, recipe.network.size);
        let mut draws = Stream::new("plan", "noise").at(0);
        let n = GRID.0 * GRID.0 * channels * size * size;
        let pixels = (0..n).map(|_| draws.below(256) as u8).collect();
        let noise = Images { channels, size, pixels, labels: Vec::new() };
        let found = replicate::data::grid::png_grid(&noise, GRID.0, GRID.1).len() as u64;
        let bound = plan::row(&recipe, &row("edm")).disk_bytes;
        assert!(found <= bound && bound <= 2 * found, "{scale}: {found} bytes, bound {bound}");
    }
}

/// Bytes of all files below `dir`; a file that goes meanwhile does not count.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(children) = std::fs::read_dir(dir) else { return 0 };
    children
        .flatten()
        .map(|child| match child.metadata() {
            Ok(data) if data.is_dir() => bytes_below(&child.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The bytes of the entries of `label`: of its scores, and of its weights.
fn entry(store: &Path, label: &str) -> u64 {
    let weights = format!("{label}-weights");
    let children = std::fs::read_dir(store).into_iter().flatten().flatten();
    let named = |name: &str| name.ends_with(label) || name.ends_with(&weights);
    let dirs = children.filter(|c| named(&c.file_name().to_string_lossy()));
    dirs.map(|dir| bytes_below(&dir.path())).sum()
}

#[test]
fn a_smoke_run_stays_within_the_estimated_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let recipe = Recipe::of(Scale::Smoke);
    let expected = [
        ("smoke-pretrain-multi-level-target", plan::pretraining(&recipe, TEACHER)),
        ("smoke-dijs-s0", plan::row(&recipe, &row("dijs"))),
        ("smoke-diff-instruct-s0", plan::row(&recipe, &row("diff-instruct"))),
        ("smoke-edm-s0", plan::row(&recipe, &row("edm"))),
    ];
    let mut run = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(["run", "dijs", "diff-instruct", "edm", "--scale", "smoke", "--watch", "none", "--store"])
        .arg(&store)
        .arg("--output")
        .arg(dir.path().join("report"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = expected.map(|_| 0);
    let status = loop {
        for (peak, (label, _)) in peak.iter_mut().zip(&expected) {
            *peak = entry(&store, label).max(*peak);
        }
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    for (peak, (label, cost)) in peak.into_iter().zip(expected) {
        let stays = entry(&store, label);
        let text =
            format!("{label}: {stays} of {} bytes, peak {peak} of {}", cost.disk_bytes, cost.peak_disk_bytes);
        println!("{text}");
        assert!(stays <= cost.disk_bytes && cost.disk_bytes <= 3 * stays, "{text}");
        assert!(peak <= cost.peak_disk_bytes && cost.peak_disk_bytes <= 3 * peak, "{text}");
    }
}

/// Against forward passes timed here. Other processes may get in between: one
/// of five tries must agree.
#[test]
fn the_probe_measures_this_device() {
    let config = Recipe::of(Scale::Mini).network;
    let none = Default::default();
    let source = Source { given: &none, drawn: &[""], cell: "plan" };
    let (params, _) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config, vb)).unwrap();
    let network = params.frozen(|vb| Denoiser::new(&config, vb)).unwrap();
    let z = Tensor::zeros((64, config.image_channels, config.size, config.size), DType::F32, &Device::Cpu);
    let z = z.unwrap();
    let forward = || {
        let (started, mut passes) = (Instant::now(), 0.0);
        while started.elapsed() < Duration::from_millis(300) {
            one_step(&network, &z, 2.5).unwrap();
            passes += 64.0;
        }
        passes * plan::forward(&config) / started.elapsed().as_secs_f64()
    };
    let agrees = |_| {
        let before = forward();
        let probed = plan::probe(&Compute::CPU).unwrap();
        let after = forward();
        println!("probe {probed:.2e} FLOP/s, forward passes {before:.2e} and {after:.2e}");
        probed > before.min(after) / 5.0 && probed < before.max(after) * 2.0
    };
    assert!((0..5).any(agrees), "see the rates above");
}

#[test]
fn times_and_sizes_for_people() {
    let times = [
        (0.0, "0s"),
        (45.2, "45s"),
        (59.7, "1m00s"),
        (90.0, "1m30s"),
        (299.4, "4m59s"),
        (299.6, "5 min"),
        (480.0, "8 min"),
        (5390.0, "90 min"),
        (5400.0, "1.5 h"),
        (35_900.0, "10 h"),
        (154_800.0, "43 h"),
        (2_678_400.0, "31 days"),
        (536_500_000.0, "17 years"),
        (f64::NAN, "unknown"),
        (1.0 / 0.0, "unknown"),
    ];
    for (seconds, text) in times {
        assert_eq!(plan::duration(seconds), text);
    }
    let sizes = [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_960, "10 kB"),
        (999_600, "1.0 MB"),
        (3_100_000, "3.1 MB"),
        (223_000_000, "223 MB"),
        (1_240_000_000, "1.2 GB"),
    ];
    for (n, text) in sizes {
        assert_eq!(plan::bytes(n), text);
    }
    for (n, text) in
        [(0.0, "0.0 FLOP"), (17.93e12, "18 TFLOP"), (9.94e15, "9.9 PFLOP"), (999.6e18, "1.0 ZFLOP")]
    {
        assert_eq!(plan::operations(n), text);
    }
}

/// Against what a process takes; half a minute on two cores:
/// `cargo test --release --test plan takes -- --ignored --nocapture`.
#[test]
#[ignore = "takes half a minute"]
fn memory_is_what_a_process_takes() {
    for name in ["dijs", "diff-instruct"] {
        let dir = tempfile::tempdir().unwrap();
        let changes = ["--until", "2048", "--set", "batch=512"];
        let mut run = Command::new(env!("CARGO_BIN_EXE_replicate"))
            .args(["run", name, "--scale", "mini", "--watch", "none", "--store"])
            .arg(dir.path())
            .args(changes)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0;
        while run.try_wait().unwrap().is_none() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", run.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
            peak = peak.max(line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0) * 1024);
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut recipe = Recipe::of(Scale::Mini);
        recipe.budget.batch = 512;
        let estimate = plan::memory(&recipe, &row(name));
        println!(
            "{name}: {peak} bytes taken, {estimate} estimated, {:.2} of it",
            peak as f64 / estimate as f64
        );
        assert!(peak < estimate && estimate < 2 * peak, "{name}");
    }
}

/// README's hours of a row on an H200, as the plan counts them.
#[test]
fn readme_has_the_plans_hours() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let recipe = Recipe::of(Scale::Paper);
    let hours = |flop: f64, bfloat16: bool| {
        let hours = flop / Card::H200.rate(bfloat16).0 / 3600.0;
        if hours < 9.95 { format!("{hours:.1}") } else { format!("{hours:.0}") }
    };
    let table = readme.split("| one seed on an H200 |").nth(1).unwrap().lines().skip(2);
    let mut lines = 0;
    for line in table.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let names: Vec<&str> = cells[1].split('`').skip(1).step_by(2).collect();
        let costs: Vec<f64> = match names[..] {
            [] => vec![plan::pretraining(&recipe, Initialization::SingleLevel).flop],
            _ => names.iter().map(|name| plan::row(&recipe, &row(name)).flop).collect(),
        };
        for flop in costs {
            let found = [plan::operations(flop), hours(flop, false), hours(flop, true)];
            assert_eq!(cells[2..5], found.each_ref().map(String::as_str), "{line}");
            lines += 1;
        }
    }
    assert!(lines > 10, "{lines}");
}

/// A row from random weights of a method that has no pre-training sees the images of both stages;
/// the same method from the teacher's weights, and a ratio from random weights, those of one.
#[test]
fn rows_without_pre_training_see_the_images_of_both_stages() {
    let recipe = Recipe::of(Scale::Mini);
    let images = |id: &str| recipe.images_of(&all_rows().find(|row| row.id == id).unwrap());
    for id in ["diff-gan", "ict", "bcm", "diff-gan-unet-none", "diff-gan-unet-none-no-r1"] {
        assert_eq!(images(id), recipe.pretraining.images + recipe.budget.images, "{id}");
    }
    for id in ["dijs", "init-none", "sct", "diff-gan-unet", "diff-gan-unet-no-r1"] {
        assert_eq!(images(id), recipe.budget.images, "{id}");
    }
}
