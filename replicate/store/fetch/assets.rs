//! The files that can be fetched: addresses, sizes, and hashes with their reliability.

use hf_hub::RepoType;

/// A file that the project needs but does not ship.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Name in commands and on a mirror.
    pub id: &'static str,
    pub what: &'static str,
    /// Licence as its publisher states it.
    pub licence: &'static str,
    /// Size; `None` if no source states it.
    pub bytes: Option<u64>,
    pub hash: Hash,
    /// Addresses in the order in which they are tried.
    pub from: &'static [Address],
}

/// Published knowledge of an asset's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// A SHA-256 on which several independent publications agree.
    Several(&'static str),
    /// A SHA-256 from a single publication.
    OneSource(&'static str),
    /// No SHA-256 is published: the first download is trusted, and its SHA-256 recorded and required
    /// from then on.
    Unpublished,
}

/// A place of an asset.
#[derive(Clone, Copy, Debug)]
pub enum Address {
    Url(&'static str),
    Hub(HubFile),
}

/// A file of a Hugging Face repository at one commit.
#[derive(Clone, Copy, Debug)]
pub struct HubFile {
    pub kind: RepoType,
    pub repo: &'static str,
    /// Full commit hash, because a branch or a tag could move.
    pub revision: &'static str,
    pub path: &'static str,
}

impl Asset {
    /// Returns the published SHA-256.
    pub fn sha256(&self) -> Option<&'static str> {
        match self.hash {
            Hash::Several(sha256) | Hash::OneSource(sha256) => Some(sha256),
            Hash::Unpublished => None,
        }
    }
}

/// Returns every published asset, in the order of use.
pub fn assets() -> &'static [Asset] {
    ASSETS
}

/// Returns the asset with this id, including those of scale `drill`.
pub fn named(id: &str) -> Option<&'static Asset> {
    ASSETS.iter().chain(DRILL).find(|asset| asset.id == id)
}

/// Returns the licence of the file with this SHA-256.
pub fn licence_of(sha256: &str) -> Option<&'static str> {
    ASSETS.iter().chain(DRILL).find(|asset| asset.sha256() == Some(sha256)).map(|asset| asset.licence)
}

/// Licence of EDM's files, and of SiD's, which derive from them: no commercial use.
const NVIDIA: &str = "CC BY-NC-SA 4.0";
/// Licence of CIFAR. The authors ask for a citation: Krizhevsky, Learning multiple layers of features
/// from tiny images, 2009.
const NONE: &str = "none stated";
const OURS: &str = "MIT";

/// Makes an asset of CIFAR, whose SHA-256 several publications confirm.
const fn cifar(
    id: &'static str,
    what: &'static str,
    bytes: u64,
    sha256: &'static str,
    from: &'static [Address],
) -> Asset {
    Asset { id, what, licence: NONE, bytes: Some(bytes), hash: Hash::Several(sha256), from }
}

const ASSETS: &[Asset] = &[
    Asset {
        id: "edm",
        what: "EDM's unconditional VP checkpoint for CIFAR-10 (pickle)",
        licence: NVIDIA,
        bytes: Some(223_173_327),
        // A public download script and its audit log, one author.
        hash: Hash::OneSource("4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da"),
        from: &[Address::Url(
            "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl",
        )],
    },
    Asset {
        id: "inception",
        what: "Inception weights of 2015 as converted by pytorch-fid (PyTorch, legacy format)",
        licence: "Apache-2.0",
        bytes: Some(95_628_359),
        // The file's own name begins with it; LFS pointers and several evaluation codes agree.
        hash: Hash::Several("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        from: &[
            Address::Url(
                "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            ),
            Address::Url(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            ),
        ],
    },
    Asset {
        id: "fid-reference",
        what: "EDM's FID reference statistics of CIFAR-10 (npz: mu, sigma)",
        licence: NVIDIA,
        bytes: None,
        // There is a copy in github.com/Zyriix/GDD at e9267e8, refs/, git blob
        // 85281fdbac54dcfc88d0071d6c4d5d9bcb85cf8b; it was not compared with the original.
        hash: Hash::Unpublished,
        from: &[Address::Url("https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz")],
    },
    // md5, from the authors' page: c32a1d4ab5d03f1284b67883e8d87530.
    cifar(
        "cifar10",
        "CIFAR-10, the authors' binary archive",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        &[
            Address::Url("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
            Address::Url(
                "https://storage.googleapis.com/mirror.tensorflow.org/www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            ),
        ],
    ),
    // md5, from the authors' page: 03b5dce01913d631647c71ecec9e9cb8.
    cifar(
        "cifar100",
        "CIFAR-100, the authors' binary archive",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        &[Address::Url("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz")],
    ),
    // md5, from torchvision: c58f30108f718f92721af3b95e74349a.
    cifar(
        "cifar10-python",
        "CIFAR-10, the authors' archive of Python pickles",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        &[
            Address::Url("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
            Address::Url(
                "https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz",
            ),
        ],
    ),
    // md5, from torchvision: eb9058c3a382ffc7106e4002c42a8d85.
    cifar(
        "cifar100-python",
        "CIFAR-100, the authors' archive of Python pickles",
        169_001_437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        &[Address::Url("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz")],
    ),
    cifar(
        "cifar10-parquet-train",
        "CIFAR-10 training images as PNG in parquet",
        119_705_255,
        "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
        &[cifar10_parquet("plain_text/train-00000-of-00001.parquet")],
    ),
    cifar(
        "cifar10-parquet-test",
        "CIFAR-10 test images as PNG in parquet",
        23_940_850,
        "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
        &[cifar10_parquet("plain_text/test-00000-of-00001.parquet")],
    ),
    cifar(
        "cifar100-parquet-train",
        "CIFAR-100 training images as PNG in parquet",
        118_518_617,
        "694865d6b990e234804f01268586c41e88bcbbb75e20858432c05ad4081aca23",
        &[cifar100_parquet("cifar100/train-00000-of-00001.parquet")],
    ),
    cifar(
        "cifar100-parquet-test",
        "CIFAR-100 test images as PNG in parquet",
        23_772_751,
        "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68",
        &[cifar100_parquet("cifar100/test-00000-of-00001.parquet")],
    ),
    Asset {
        id: "sid",
        what: "SiD's published one-step generator for CIFAR-10 (pickle): SiD²A starts from it; to cross-check FID and IS",
        licence: NVIDIA,
        bytes: Some(223_165_173),
        // The hub's own record of the file.
        hash: Hash::OneSource("13cb3be19dd92c67f423db24839919c92b23179d8bce9c9a7badd508f99ff15b"),
        from: &[Address::Hub(HubFile {
            kind: RepoType::Model,
            repo: "UT-Austin-PML/SiD",
            revision: "d564808b12073ecc9612a0a8d5ac0c2aec63988c",
            path: "cifar10-uncond/alpha1.2/network-snapshot-1.200000-403968.pkl",
        })],
    },
];

/// Small files of the same formats for the scale `drill`. tests/common/drill.rs makes them, and only
/// the mirror that a test starts has them.
const DRILL: &[Asset] = &[
    drill("drill-edm", "a small network as an EDM snapshot", DRILL_EDM),
    drill("drill-sid", "another small network as an EDM snapshot", DRILL_SID),
    drill("drill-inception", "Inception-v3 filled by a formula (PyTorch, legacy format)", DRILL_INCEPTION),
    Asset {
        id: "drill-fid-reference",
        what: "reference statistics of the small CIFAR-10 (npz: mu, sigma)",
        licence: OURS,
        bytes: None,
        hash: Hash::Unpublished,
        from: &[],
    },
    drill("drill-cifar10", "glyphs as a CIFAR-10 binary archive", DRILL_CIFAR10),
    drill("drill-cifar100", "glyphs as a CIFAR-100 binary archive", DRILL_CIFAR100),
];

const DRILL_EDM: &str = "2866c9f457dc1c79d71b1f7818ef652c3c51ae3d9ceff92d58038068bb28a0e1";
const DRILL_SID: &str = "490e8b84d47c082a6a01e240799e8689bf1c9f72dbf2581531000ad13ba217d5";
const DRILL_INCEPTION: &str = "99e43ca863a7ffe122b5212197078482c7854499abfe686b6c991211be86f082";
const DRILL_CIFAR10: &str = "165b9c5be5de9ad32332f78102d44661da2aa88500df8e790de371e75f45582d";
const DRILL_CIFAR100: &str = "c7a095a929159525947113d40f2808704ee6f4864ebc0f87eacadb417a00e98c";

const fn drill(id: &'static str, what: &'static str, sha256: &'static str) -> Asset {
    Asset { id, what, licence: OURS, bytes: None, hash: Hash::Several(sha256), from: &[] }
}

const fn cifar10_parquet(path: &'static str) -> Address {
    let revision = "0b2714987fa478483af9968de7c934580d0bb9a2";
    Address::Hub(HubFile { kind: RepoType::Dataset, repo: "uoft-cs/cifar10", revision, path })
}

const fn cifar100_parquet(path: &'static str) -> Address {
    let revision = "aadb3af77e9048adbea6b47c21a81e47dd092ae5";
    Address::Hub(HubFile { kind: RepoType::Dataset, repo: "uoft-cs/cifar100", revision, path })
}
