//! Distance between two generators as maps from latents to images. It tests the paper's
//! function-space hypothesis (Section 3).

/// Computes the root mean square difference between the images of two generators for the same
/// latents, divided by that between images of `reference` for different latents (each image against
/// the next). 0 means the same map; 1 means as different as the images of two unrelated latents.
/// `a` and `reference` hold n images of `len` values one after the other, in the same order.
///
/// # Panics
/// If the two differ in length, or if there are fewer than two images.
pub fn map_distance(a: &[u8], reference: &[u8], len: usize) -> f64 {
    assert_eq!(a.len(), reference.len(), "one image of each generator for every latent");
    assert!(len > 0 && a.len() % len == 0 && a.len() >= 2 * len, "two images at least");
    let between = squares(a, reference);
    let (first, rest) = reference.split_at(len);
    let within = squares(rest, &reference[..rest.len()]) + squares(first, &reference[rest.len()..]);
    (between as f64 / within as f64).sqrt()
}

fn squares(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(&a, &b)| (a as i64 - b as i64).pow(2) as u64).sum()
}
