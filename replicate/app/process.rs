//! What the whole process is set to before it computes anything. Part of what a result is
//! made from, as the sources of the arithmetic are.

/// Keeps freed memory for the next step (a fresh page costs more than the
/// arithmetic on it), and candle's own threads, which would spin beside ours,
/// out of the way.
pub fn prepare() {
    // SAFETY: nothing else runs yet.
    unsafe {
        if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
            std::env::set_var("CANDLE_NUM_THREADS", "1");
        }
        // candle leaves cuDNN its default, which rounds float32 to TF32. Whoever asks for
        // that from outside would get other results under the same name.
        #[cfg(feature = "cuda")]
        std::env::set_var("NVIDIA_TF32_OVERRIDE", "0");
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
