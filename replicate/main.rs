//! Parse, call, exit code.

use clap::Parser;
use replicate::cli::Cli;
use replicate::error::{EXIT_RUN, EXIT_USAGE};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn main() {
    prepare_process();
    report_lost_output();
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        _ = error.print();
        std::process::exit(if error.use_stderr() { EXIT_USAGE } else { 0 })
    });
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // A second signal ends the process at once.
        _ = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone());
        _ = signal_hook::flag::register(signal, stop.clone());
    }
    let code = replicate::commands::run(cli, &stop).unwrap_or_else(|error| {
        _ = writeln!(std::io::stderr(), "error: {error}");
        error.exit_code()
    });
    end(code)
}

#[cfg(not(feature = "cuda"))]
fn end(code: i32) -> ! {
    std::process::exit(code)
}

/// Without the destructors of this thread: cudarc's panic where a device that has
/// failed refuses to let go of cuDNN, and the exit code would be lost.
#[cfg(feature = "cuda")]
fn end(code: i32) -> ! {
    _ = std::io::stdout().flush();
    // SAFETY: what was to be written is written, and nothing runs afterwards.
    unsafe { libc::_exit(code) }
}

/// Makes an error of what `println!` panics with where nothing can be written.
fn report_lost_output() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        match text.and_then(|text| text.strip_prefix("failed printing to ")) {
            Some(lost) => {
                _ = writeln!(std::io::stderr(), "error: cannot write to {lost}\n  what was finished is kept");
                end(EXIT_RUN)
            }
            None => usual(panic),
        }
    }));
}

/// Keeps freed memory for the next step (a fresh page costs more than the
/// arithmetic on it), and candle's own threads, which would spin beside ours,
/// out of the way.
fn prepare_process() {
    // SAFETY: nothing else runs yet.
    unsafe {
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        }
        // candle leaves cuDNN its default, which rounds float32 to TF32.
        #[cfg(feature = "cuda")]
        if std::env::var_os("NVIDIA_TF32_OVERRIDE").is_none() {
            std::env::set_var("NVIDIA_TF32_OVERRIDE", "0");
        }
        // `replicate list | head` ends as other programs do.
        #[cfg(unix)]
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}
