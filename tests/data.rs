//! The data: glyphs, conversions and the picture of a grid. CIFAR's files are
//! in `cifar.rs`.

use std::collections::HashSet;

use proptest::prelude::*;
use replicate::data::grid;
use replicate::data::{Images, glyphs};

// ---- conversions -----------------------------------------------------------

#[test]
fn bytes_survive_the_way_to_the_unit_range_and_back() {
    let images = Images { channels: 1, size: 16, pixels: (0..=255).collect(), labels: vec![7] };
    let values = images.to_unit(&[0]);
    assert_eq!((values[0], values[255]), (-1.0, 1.0));
    let back = Images::from_unit(1, 16, &values);
    assert_eq!(back.pixels, images.pixels);
    assert!(back.labels.is_empty());
}

#[test]
fn values_outside_the_unit_range_are_clipped_and_fractions_truncated() {
    // 127.5 x + 128 = 127.99 and 128.01
    let values = [-7.0, 9.0, -0.01 / 127.5, 0.01 / 127.5];
    assert_eq!(Images::from_unit(1, 2, &values).pixels, [0, 255, 127, 128]);
}

#[test]
fn to_unit_takes_the_images_asked_for_in_order() {
    let images = Images { channels: 1, size: 1, pixels: vec![0, 255, 51], labels: vec![] };
    assert_eq!(images.to_unit(&[2, 0, 2]), [51.0 / 127.5 - 1.0, -1.0, 51.0 / 127.5 - 1.0]);
}

#[test]
fn one_image_of_each_class_is_from_its_middle() {
    let labels = vec![1, 0, 0, 1, 0, 2, 1];
    let images = Images { channels: 1, size: 1, pixels: (10..17).collect(), labels };
    let of = images.of_each_class(2);
    assert_eq!((of.pixels, of.labels), (vec![12, 13], vec![0, 1]));
    assert_eq!(images.of_each_class(9).labels, [0, 1, 2]);
}

#[test]
fn blocks_are_averaged_in_integers_and_rounded_half_up() {
    // Two planes of 4x4: the sums of the blocks are 1, 2, 1020 and 10; then 0, 5, 6 and 7.
    let rows = [
        [0, 0, 1, 1, 0, 1, 0, 0, 255, 255, 1, 2, 255, 255, 3, 4],
        [0, 0, 1, 1, 0, 0, 1, 2, 1, 1, 1, 2, 2, 2, 2, 2],
    ];
    let images = Images { channels: 2, size: 4, pixels: rows.concat(), labels: vec![3] };
    let half = images.halved();
    assert_eq!((half.channels, half.size, half.labels), (2, 2, vec![3]));
    assert_eq!(half.pixels, [0, 1, 255, 3, 0, 1, 2, 2]);
}

#[test]
fn the_digest_sees_shape_pixels_and_labels() {
    let base = Images { channels: 1, size: 2, pixels: vec![1, 2, 3, 4], labels: vec![5] };
    let others = [
        Images { channels: 4, size: 1, ..base.clone() },
        Images { pixels: vec![1, 2, 3, 5], ..base.clone() },
        Images { labels: vec![6], ..base.clone() },
        Images { labels: vec![], ..base.clone() },
    ];
    let digests: HashSet<String> = others.iter().chain([&base]).map(Images::digest).collect();
    assert_eq!(digests.len(), 5);
    assert_eq!(base.digest().len(), 64);
}

proptest! {
    #[test]
    fn every_value_lands_on_the_nearest_byte(x in -1.0f32..1.0) {
        let byte = Images::from_unit(1, 1, &[x]).pixels[0] as f32;
        prop_assert!((byte / 127.5 - 1.0 - x).abs() <= 0.5001 / 127.5);
    }
}

// ---- glyphs ----------------------------------------------------------------

/// Value stability: a change here is a new data set, needs a new name in
/// `glyphs.rs` and makes every golden of the `smoke` and `mini` scales void.
#[test]
fn the_glyphs_are_what_they_have_always_been() {
    let target = glyphs::images(16, glyphs::TARGET_CLASSES, 20, "train");
    let source = glyphs::images(16, glyphs::SOURCE_CLASSES, 2, "train");
    assert_eq!(
        [target.digest().as_str(), source.digest().as_str()],
        [
            "488cf625d0589ca57bf8b7584bf1c4302b47c1d733fcb478d00b8fe0b783cfb1",
            "50982258f03e4154c29c69f11841ee098b741f1ef071e64a309d5c20883b3249"
        ]
    );
}

#[test]
fn the_number_of_threads_does_not_change_a_glyph() {
    let digest = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| glyphs::images(16, 0..110, 3, "train").digest())
    };
    assert_eq!(digest(1), digest(2));
}

#[test]
fn an_image_depends_on_its_split_class_and_index_only() {
    let all = glyphs::images(8, 0..110, 4, "train");
    let some = glyphs::images(8, 8..12, 2, "train");
    assert_eq!(some.labels, [8, 9, 10, 11, 8, 9, 10, 11]);
    for (i, &class) in some.labels.iter().enumerate() {
        assert_eq!(some.image(i), all.image(i / 4 * 110 + class as usize));
    }
}

#[test]
fn no_image_is_in_two_splits_or_twice_in_one() {
    let mut seen = HashSet::new();
    for split in ["train", "reference", "heldout"] {
        let images = glyphs::images(16, 0..110, 5, split);
        for i in 0..images.len() {
            assert!(seen.insert(images.image(i).to_vec()), "image {i} of {split} was there before");
        }
    }
}

/// Mean image of each class, in grey levels.
fn class_means(images: &Images, classes: usize) -> Vec<Vec<f64>> {
    let mut means = vec![vec![0.0; images.image(0).len()]; classes];
    let per_class = images.len() / classes;
    for i in 0..images.len() {
        for (mean, &pixel) in means[i % classes].iter_mut().zip(images.image(i)) {
            *mean += pixel as f64 / per_class as f64;
        }
    }
    means
}

fn nearest(means: &[Vec<f64>], image: &[f64]) -> usize {
    let distance = |mean: &[f64]| mean.iter().zip(image).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    (0..means.len()).min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b]))).unwrap()
}

#[test]
fn an_invented_class_looks_the_same_in_every_split() {
    let train = class_means(&glyphs::images(16, glyphs::SOURCE_CLASSES, 12, "train"), 100);
    for split in ["reference", "heldout"] {
        let other = class_means(&glyphs::images(16, glyphs::SOURCE_CLASSES, 12, split), 100);
        let found = (0..100).filter(|&class| nearest(&train, &other[class]) == class).count();
        assert!(found >= 98, "{split}: {found} of 100 classes have their mean image next to train's");
    }
}

/// How far each pixel is from the border's mean colour: the strokes, whatever
/// the colours are, scaled to unit length.
fn ink(image: &[u8], size: usize) -> Vec<f64> {
    let at = |channel: usize, p: usize| image[channel * size * size + p] as f64;
    let border: Vec<usize> =
        (0..size * size).filter(|p| [p / size, p % size].iter().any(|&i| i == 0 || i == size - 1)).collect();
    let mut ink = vec![0.0; size * size];
    for channel in 0..3 {
        let ground = border.iter().map(|&p| at(channel, p)).sum::<f64>() / border.len() as f64;
        for (p, ink) in ink.iter_mut().enumerate() {
            *ink += (at(channel, p) - ground).powi(2);
        }
    }
    let norm = ink.iter().sum::<f64>().sqrt();
    ink.iter().map(|x| x.sqrt() / norm.sqrt()).collect()
}

#[test]
fn all_ten_digits_are_there_and_differ_in_shape() {
    let of = |per_class, split| {
        let images = glyphs::images(16, glyphs::TARGET_CLASSES, per_class, split);
        assert_eq!(images.len(), 10 * per_class);
        let shapes: Vec<Vec<f64>> = (0..images.len()).map(|i| ink(images.image(i), 16)).collect();
        (images.labels, shapes)
    };
    let (labels, shapes) = of(120, "train");
    assert_eq!(labels.iter().copied().collect::<HashSet<u32>>(), (0..10).collect());
    let (held_labels, held) = of(20, "heldout");
    // Nearest neighbour by shape alone, without the colours: chance is 1 in 10.
    let mut right = [0; 10];
    for (label, shape) in held_labels.iter().zip(&held) {
        right[*label as usize] += usize::from(labels[nearest(&shapes, shape)] == *label);
    }
    assert!(right.iter().all(|&n| n >= 12), "of 20 each: {right:?}");
}

#[test]
fn the_pixels_have_sane_statistics_at_every_size() {
    for size in [8, 16, 32] {
        let images = glyphs::images(size, glyphs::TARGET_CLASSES, 40, "train");
        assert_eq!(images.pixels.len(), 400 * 3 * size * size);
        let values = images.to_unit(&(0..400).collect::<Vec<_>>());
        for channel in 0..3 {
            let mut of_channel = Vec::new();
            for image in values.chunks(3 * size * size) {
                of_channel.extend(&image[channel * size * size..(channel + 1) * size * size]);
            }
            let n = of_channel.len() as f32;
            let mean = of_channel.iter().sum::<f32>() / n;
            let sd = (of_channel.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
            assert!(mean.abs() < 0.15, "mean {mean} of channel {channel} at {size}");
            assert!((0.4..0.65).contains(&sd), "standard deviation {sd} of channel {channel} at {size}");
        }
    }
}

#[test]
#[should_panic(expected = "glyph classes are 0..110")]
fn there_is_no_class_110() {
    glyphs::images(8, 100..111, 1, "train");
}

// ---- grids -----------------------------------------------------------------

/// Width, height and the RGB bytes.
fn decode(png: &[u8]) -> (usize, usize, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    (info.width as usize, info.height as usize, bytes)
}

const GREY: [u8; 3] = [128; 3];

/// The pixel that a picture of `rows` should show at (x, y).
fn expected(rows: &[Vec<&[u8]>], size: usize, zoom: usize, x: usize, y: usize) -> [u8; 3] {
    let pitch = size * zoom + 1;
    let (column, row) = (x / pitch, y / pitch);
    if x % pitch == 0 || y % pitch == 0 || column >= rows[row].len() {
        return GREY;
    }
    let p = (y % pitch - 1) / zoom * size + (x % pitch - 1) / zoom;
    [0, 1, 2].map(|channel| rows[row][column][channel * size * size + p])
}

fn assert_shows(png: &[u8], rows: &[Vec<&[u8]>], size: usize, zoom: usize) {
    let (width, height, bytes) = decode(png);
    let columns = rows.iter().map(Vec::len).max().unwrap();
    assert_eq!((width, height), (columns * (size * zoom + 1) + 1, rows.len() * (size * zoom + 1) + 1));
    for y in 0..height {
        for x in 0..width {
            let at = (y * width + x) * 3;
            assert_eq!(bytes[at..at + 3], expected(rows, size, zoom, x, y), "at {x}, {y}");
        }
    }
}

#[test]
fn a_grid_shows_every_pixel_in_its_place() {
    let images = glyphs::images(8, 0..7, 1, "train");
    for zoom in [1, 3] {
        let all: Vec<&[u8]> = (0..7).map(|i| images.image(i)).collect();
        let rows: Vec<Vec<&[u8]>> = all.chunks(3).map(<[_]>::to_vec).collect();
        let picture = grid::png_grid(&images, 3, zoom);
        assert_shows(&picture, &rows, 8, zoom);
        assert_eq!(picture, grid::png_grid(&images, 3, zoom));
    }
}

#[test]
fn a_strip_has_a_row_for_each_set() {
    let (first, second) = (glyphs::images(8, 0..4, 1, "train"), glyphs::images(8, 0..2, 1, "reference"));
    let rows: Vec<Vec<&[u8]>> =
        [&first, &second].iter().map(|set| (0..set.len()).map(|i| set.image(i)).collect()).collect();
    assert_shows(&grid::png_strip(&[&first, &second], 2), &rows, 8, 2);
}
