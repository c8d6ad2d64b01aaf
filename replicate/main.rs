use replicate::{experiment::*, run::*, watch::*};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let scale = Scale::ALL.into_iter().find(|s| s.name() == args[1]).unwrap();
    let mut recipe = Recipe::of(scale);
    for set in args.iter().skip(4) { recipe.set(set).unwrap(); }
    let stop = Arc::new(AtomicBool::new(false));
    let settings = Settings { store: "store".into(), root: ".".into(), data: None, device: candle_core::Device::Cpu, from_scratch: false };
    let mut runner = Runner::new(settings, recipe, Watch::new(Mode::Lines), &stop).unwrap();
    if args[2] == "accuracy" { println!("{}", runner.classifier_accuracy().unwrap()); return; }
    let cell = cells().find(|c| c.row == args[2]).unwrap();
    for seed in args[3].split(',') {
    let t = std::time::Instant::now();
    match runner.cell(&cell, seed.parse().unwrap()) {
        Ok(o) => println!("{} {:.1}s\n{}", o.entry.dir().display(), t.elapsed().as_secs_f64(), String::from_utf8_lossy(&o.entry.read("scores.csv").unwrap())),
        Err(e) => { eprintln!("{e}"); std::process::exit(e.exit_code()) }
    }
    }
}
