//! The values of the random streams, pinned: whatever changes them changes
//! every result.

use replicate::rng::Stream;

#[test]
fn integers_and_normals_keep_their_values() {
    let mut draws = Stream::new("stability", "integers").at(3);
    let integers: Vec<u32> = (0..6).map(|_| draws.next_u32()).collect();
    assert_eq!(integers, [3060514620, 3953854837, 3807974430, 3534426299, 2171010241, 2107234610]);
    let normals: Vec<u32> =
        Stream::new("stability", "normals").normals(5, 6).iter().map(|v| v.to_bits()).collect();
    assert_eq!(normals, [1031268276, 1058253919, 1072281369, 1063706384, 1068003871, 1065598609]);
}
