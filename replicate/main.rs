//! Parse, call, exit code.

use clap::Parser;
use replicate::app::cli::Cli;
use replicate::app::process;
use replicate::error::{EXIT_RUN, EXIT_USAGE, printable};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[global_allocator]
static MEMORY: process::Memory = process::Memory;

fn main() {
    process::prepare();
    process::with_stack(program)
}

fn program() {
    report_lost_output();
    let (threads, wanted) = process::start_threads();
    if threads < wanted {
        _ = writeln!(std::io::stderr(), "note: the system gives {threads} of {wanted} threads (ulimit -u)");
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        _ = error.print();
        std::process::exit(if error.use_stderr() { EXIT_USAGE } else { 0 })
    });
    let stop = Arc::new(AtomicBool::new(false));
    if cli.command.stops_by_itself() {
        process::stop_at_signals(&stop);
    }
    let code = replicate::app::commands::run(cli, &stop).unwrap_or_else(|error| {
        _ = writeln!(std::io::stderr(), "error: {}", printable(&error.to_string()));
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
