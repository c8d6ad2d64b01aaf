//! How far two generators are apart as maps from latents to images, the
//! quantity of the paper's function-space hypothesis (Section 3).

/// Root mean square difference of the images that two generators make of the
/// same latents, divided by that of the images which `reference` makes of
/// different latents (each image against the next one): 0 is the same map, 1 is
/// as far apart as the images of two unrelated latents. `a` and `reference`
/// hold n images of `len` pixels one after the other, in the same order.
///
/// # Panics
/// If the two are not equally long, or there are fewer than two images.
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
