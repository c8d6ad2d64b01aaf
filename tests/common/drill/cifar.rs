//! CIFAR's archives in the authors' layout, with glyphs for pictures.

use replicate::data::{Images, glyphs};

const SIZE: usize = 32;

#[derive(Clone, Copy, PartialEq)]
pub enum Set {
    Cifar10,
    Cifar100,
}

/// The authors' training sets are 5 times as large as their test sets.
const TRAIN_PER_TEST: usize = 5;

/// The `.tar.gz` of the binary version: `per_class` training images of each
/// class and a fifth of that for the test. Digits stand for CIFAR-10's classes,
/// invented characters for the fine classes of CIFAR-100.
///
/// Panics unless `per_class` is a multiple of 5.
pub fn cifar_archive(set: Set, per_class: usize) -> Vec<u8> {
    assert!(per_class.is_multiple_of(TRAIN_PER_TEST), "{per_class} images do not make 5 batches");
    let classes = match set {
        Set::Cifar10 => glyphs::TARGET_CLASSES,
        Set::Cifar100 => glyphs::SOURCE_CLASSES,
    };
    let (first, count) = (classes.start, classes.len());
    let images = glyphs::images(SIZE, classes, per_class + per_class / TRAIN_PER_TEST, "drill");
    let records = |range: std::ops::Range<usize>| -> Vec<u8> {
        range.flat_map(|i| record(set, &images, i, images.labels[i] as usize - first)).collect()
    };
    let (train, all) = (count * per_class, images.len());
    let files: Vec<(String, Vec<u8>)> = match set {
        Set::Cifar10 => {
            let batch = |i: usize| records((i - 1) * train / 5..i * train / 5);
            // In the order of the authors' archive.
            vec![
                ("data_batch_1.bin".into(), batch(1)),
                ("batches.meta.txt".into(), format!("{}\n", lines(CIFAR10)).into()),
                ("data_batch_3.bin".into(), batch(3)),
                ("data_batch_4.bin".into(), batch(4)),
                ("test_batch.bin".into(), records(train..all)),
                ("data_batch_5.bin".into(), batch(5)),
                ("data_batch_2.bin".into(), batch(2)),
            ]
        }
        Set::Cifar100 => vec![
            ("coarse_label_names.txt".into(), lines(CIFAR100_COARSE).into()),
            ("fine_label_names.txt".into(), lines(CIFAR100_FINE).into()),
            ("test.bin".into(), records(train..all)),
            ("train.bin".into(), records(0..train)),
        ],
    };
    let directory = match set {
        Set::Cifar10 => "cifar-10-batches-bin/",
        Set::Cifar100 => "cifar-100-binary/",
    };
    gzip(&tarball(directory, &files))
}

/// Labels and pixels of image `i`.
fn record(set: Set, images: &Images, i: usize, class: usize) -> Vec<u8> {
    let labels = match set {
        Set::Cifar10 => vec![class as u8],
        Set::Cifar100 => vec![COARSE_OF_FINE[class], class as u8],
    };
    [&labels, images.image(i)].concat()
}

fn lines(names: &str) -> String {
    names.split_whitespace().map(|name| format!("{name}\n")).collect()
}

fn tarball(directory: &str, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let header = |kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    let mut archive = tar::Builder::new(Vec::new());
    let mut directory_header = header(tar::EntryType::Directory, 0o755, 0);
    archive.append_data(&mut directory_header, directory, std::io::empty()).unwrap();
    for (name, content) in files {
        let mut header = header(tar::EntryType::Regular, 0o644, content.len());
        archive.append_data(&mut header, format!("{directory}{name}"), content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Stored blocks, so that the bytes are those of the format and of no compressor
/// (RFC 1951, 3.2.4, and RFC 1952).
fn gzip(content: &[u8]) -> Vec<u8> {
    const UNKNOWN_SYSTEM: u8 = 255;
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, UNKNOWN_SYSTEM];
    let mut blocks = content.chunks(u16::MAX.into()).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        bytes.push(u8::from(blocks.peek().is_none()));
        bytes.extend(length.to_le_bytes());
        bytes.extend((!length).to_le_bytes());
        bytes.extend(block);
    }
    let mut crc = flate2::Crc::new();
    crc.update(content);
    bytes.extend(crc.sum().to_le_bytes());
    bytes.extend((content.len() as u32).to_le_bytes());
    bytes
}

const CIFAR10: &str = "airplane automobile bird cat deer dog frog horse ship truck";

const CIFAR100_COARSE: &str = "
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2";

const CIFAR100_FINE: &str = "
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
    orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
    rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm";

/// The coarse class of each fine one.
#[rustfmt::skip]
const COARSE_OF_FINE: [u8; 100] = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
];
