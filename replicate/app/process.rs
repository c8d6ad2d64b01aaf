//! Sets up the process before any computation: its memory, its threads, and its stop signals.

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use signal_hook::flag;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::ErrorKind;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

/// Sets environment and allocator. Freed memory is kept for the next step, because a fresh page
/// costs more than the arithmetic on it. Candle gets one thread, because its own would spin beside
/// ours.
pub fn prepare() {
    // SAFETY: no other thread runs yet.
    unsafe {
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        }
        // By default candle's cuDNN rounds float32 to TF32, which would give different results
        // under the same name. This overrides the variable from outside, too.
        #[cfg(feature = "cuda")]
        std::env::set_var("NVIDIA_TF32_OVERRIDE", "0");
        // Exits silently on a broken pipe, as in `replicate list | head`.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // Turns a limit of file sizes into an error of the write, like a full disk.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}

/// Least stack of the first thread: what Rust gives to others. The command line alone takes 100 kB.
const LEAST_STACK: u64 = 2 << 20;
/// Usual limit of systems.
const STACK: usize = 8 << 20;

/// Runs the program on this thread, or on one with a larger stack if the limit (`ulimit -s`) is low.
pub fn with_stack(program: fn()) {
    // SAFETY: zeros are a limit, which is written before it is read.
    let limit = unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        libc::getrlimit(libc::RLIMIT_STACK, &mut limit);
        limit.rlim_cur
    };
    if limit >= LEAST_STACK {
        return program();
    }
    match thread::Builder::new().name("main".into()).stack_size(STACK).spawn(program) {
        Ok(thread) => match thread.join() {
            Ok(()) => {}
            // The exit code of a panic.
            Err(_) => std::process::exit(101),
        },
        Err(error) => {
            eprintln!(
                "error: the system refuses a thread with {STACK} bytes of stack: {error}\n  raise its limits \
                 (ulimit -s, -u or -v)"
            );
            std::process::exit(crate::error::EXIT_RUN)
        }
    }
}

/// Sets `stop` on the signals with which people, terminals and batch systems stop a program, and on
/// that of a pipe whose reader is gone. A signal that was ignored at the start (`nohup`) stays ignored.
pub fn stop_at_signals(stop: &Arc<AtomicBool>) {
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2, SIGXCPU] {
        if is_ignored(signal) {
            continue;
        }
        // A second interrupt or termination exits at once. Other signals can repeat on their own.
        if [SIGINT, SIGTERM].contains(&signal) {
            let again = Arc::new(AtomicBool::new(false));
            _ = flag::register_conditional_shutdown(signal, 128 + signal, again.clone());
            _ = flag::register(signal, again);
        }
        _ = flag::register(signal, stop.clone());
    }
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: nothing is changed, and `action` is written before it is read.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// More threads are of no use, and could take everything that the system has.
const MOST_THREADS: usize = 1024;

/// Starts the threads of all computations, as many as the system allows; results do not depend on
/// their number. Returns the number started and the number wanted.
pub fn start_threads() -> (usize, usize) {
    let variable = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    let here = || thread::available_parallelism().map_or(1, usize::from);
    let wanted = variable.filter(|n| *n > 0).unwrap_or_else(here).min(MOST_THREADS);
    let (sender, receiver) = mpsc::channel::<ThreadBuilder>();
    let receiver = Arc::new(Mutex::new(receiver));
    // Starts them before rayon gets them, because rayon's own attempt cannot be repeated.
    let threads = (0..wanted)
        .take_while(|_| {
            let receiver = receiver.clone();
            let work = move || receiver.lock().ok()?.recv().ok();
            thread::Builder::new().spawn(move || work().map(ThreadBuilder::run)).is_ok()
        })
        .count();
    let pool = ThreadPoolBuilder::new().num_threads(threads.max(1));
    _ = match threads {
        0 => pool.use_current_thread().build_global(),
        _ => pool.spawn_handler(|work| sender.send(work).map_err(|_| ErrorKind::Other.into())).build_global(),
    };
    (threads.max(1), wanted)
}

/// The system's allocator. If it fails, the process prints an error and exits with an exit code,
/// while Rust would abort.
pub struct Memory;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        given(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[inline]
fn given(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        refused(bytes);
    }
    pointer
}

/// Prints the error without allocating memory.
#[cold]
fn refused(bytes: usize) -> ! {
    use std::io::Write;
    let mut text = [0; 200];
    let mut rest = &mut text[..];
    _ = write!(
        rest,
        "error: the system refuses {bytes} bytes of memory\n  free some, or raise the limit (ulimit -v); what was \
         finished is kept\n"
    );
    let length = 200 - rest.len();
    // SAFETY: the bytes are there, and nothing runs afterwards.
    unsafe {
        libc::write(2, text.as_ptr().cast(), length);
        libc::_exit(crate::error::EXIT_RUN)
    }
}
