"""Compares `replicate score` with torch-fidelity's metrics and EDM's formula of FID.

    python -m venv venv && venv/bin/pip install numpy scipy torch torch-fidelity
    cargo build --release
    venv/bin/python tests/peers/score.py target/release/replicate

The venv is best made outside the repository; any torch from 1.13 on will do, and
no GPU is needed. Takes a quarter of an hour on two cores. The weights are made
from a formula, nothing is downloaded. `--images N` and `--features N` change the
sizes, `--keep DIR` keeps the files.

Three comparisons, each printed with its relative difference:

- features: N random rows of 2048 given to both, more rows than dimensions. Here
  the arithmetic alone differs, and has to agree to 1e-6;
- few features: the same with fewer rows than dimensions, where SciPy's root of a
  singular product is off and only the rest has to agree;
- images: from pixels, each side with its own resize and its own float32
  convolutions, whose features differ in the last bits: 1e-5.

Last run with PyTorch 1.13.1, torch-fidelity 0.4.0, NumPy 1.24 and SciPy 1.10.1.
Nothing in `make test` runs this script. Ends with 1 if something disagrees.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

MASK = (1 << 64) - 1


def unit(name, n):
    """n float32 values in [-1, 1) that depend on the name alone."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def write_weights(path):
    """Formula-filled weights as the published file has them: a legacy stream with
    matrices that are stored in TensorFlow's order and seen through strides."""
    state = {}
    shapes = pathlib.Path(__file__).parent.parent / "parity" / "inception-keys.txt"
    for line in shapes.read_text().splitlines():
        name, sides = line.split("\t")
        shape = [int(side) for side in sides.split("x") if side]
        u = torch.from_numpy(unit(name, int(np.prod(shape)))).reshape(shape)
        if len(shape) > 1:
            value = u * np.sqrt(np.float32(6) / np.float32(np.prod(shape[1:])))
            order = list(range(2, len(shape))) + [1, 0]
            stored = value.permute(order).contiguous()
            value = stored.permute(np.argsort(order).tolist())
        elif name.endswith("running_var"):
            value = 1 + 0.5 * u
        elif name.endswith("bn.weight"):
            value = 1 + 0.1 * u
        else:
            value = 0.1 * u
        state[name] = value
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    torch.save(state, path, _use_new_zipfile_serialization=False)


def blobs(name, n, size):
    """n RGB images with structure at several scales, so that features differ."""
    image = np.zeros((n, size, size, 3))
    for side in (1, 4, 8, size):
        u = unit(f"{name}.{side}", n * side * side * 3).reshape(n, side, side, 3)
        image += np.kron(u, np.ones((1, size // side, size // side, 1)))
    return np.clip(127.5 + 60 * image, 0, 255).astype(np.uint8)


def extract(extractor, images):
    features, logits = [], []
    for i in range(0, len(images), 16):
        batch = torch.from_numpy(images[i : i + 16]).permute(0, 3, 1, 2).contiguous()
        f, l = extractor(batch)
        features.append(f), logits.append(l)
        print(f"\rtorch-fidelity: {i + len(batch)} of {len(images)} images", end="", file=sys.stderr)
    print(file=sys.stderr)
    return torch.cat(features), torch.cat(logits)


def statistics(features):
    """As EDM's fid.py: float64 sums over batches of 64, covariance over N - 1."""
    features = features.double()
    mu = torch.zeros(features.shape[1], dtype=torch.float64)
    sigma = torch.zeros((features.shape[1],) * 2, dtype=torch.float64)
    for batch in features.split(64):
        mu += batch.sum(0)
        sigma += batch.T @ batch
    mu /= len(features)
    sigma -= mu.ger(mu) * len(features)
    sigma /= len(features) - 1
    return mu.numpy(), sigma.numpy()


def fid(a, b):
    m = np.square(a[0] - b[0]).sum()
    s, _ = scipy.linalg.sqrtm(np.dot(a[1], b[1]), disp=False)
    return float(np.real(m + np.trace(a[1] + b[1] - s * 2)))


def peers(images, reference, logits):
    """The metrics of two sets of features, in float64."""
    a, b = images.double(), reference.double()
    size = min(len(a), 1000)
    kid = kid_features_to_metric(a, b, kid_subsets=1 if size == len(a) else 100, kid_subset_size=size, verbose=False)
    prc = prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=10000, verbose=False)
    found = {
        "fid": fid(statistics(images), statistics(reference)),
        "kid": kid["kernel_inception_distance_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }
    if logits is not None:
        isc = isc_features_to_metric(logits, splits=10, shuffle=False)
        found |= {"is": isc["inception_score_mean"], "is sd": isc["inception_score_std"]}
    return found


def ours(binary, images, reference, *more):
    command = [binary, "score", images, "--ref", reference, "--json", *more]
    output = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(output)
    trial = report["trials"][0]
    found = {name: trial[name] for name in ("fid", "precision", "recall") if name in trial}
    if "kid" in trial:
        found["kid"] = trial["kid"]["mean"]
    if "is" in trial:
        found |= {"is": trial["is"]["mean"], "is sd": trial["is"]["sd"]}
    return found


def compare(title, found, expected, bounds):
    print(f"\n{title}\n  {'metric':10} {'replicate':>24} {'reference':>24} {'relative':>10} {'allowed':>10}")
    good = True
    for name, value in expected.items():
        relative = abs(found[name] - value) / max(abs(value), 1e-300)
        bound = bounds.get(name)
        good &= bound is None or relative <= bound
        allowed = "-" if bound is None else f"{bound:.0e}"
        print(f"  {name:10} {found[name]:24.16g} {value:24.16g} {relative:10.1e} {allowed:>10}")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--features", type=int, default=2500)
    parser.add_argument("--keep", type=pathlib.Path)
    options = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    dir = options.keep or pathlib.Path(temporary.name)
    dir.mkdir(parents=True, exist_ok=True)
    good = True

    def saved(name, **arrays):
        np.savez(dir / name, **arrays)
        return dir / name

    # Correlated, not negative, and with a shift between the two sides.
    mix = unit("mix", 2048 * 2048).reshape(2048, 2048) / 32
    rows = lambda name, n: np.maximum(unit(name, n * 2048).reshape(n, 2048) @ mix + 0.3, 0)
    agree = {"fid": 1e-6, "kid": 1e-6, "precision": 1e-6, "recall": 1e-6, "is": 1e-6, "is sd": 1e-6}
    for title, n in (("features", options.features), ("few features", 500)):
        a, b = rows(f"{title}.a", n), (rows(f"{title}.b", n) * np.float32(1.05)).astype(np.float32)
        logits = 4 * unit(f"{title}.logits", n * 1008).reshape(n, 1008)
        files = saved("a.npz", features=a, logits=logits), saved("b.npz", features=b)
        expected = peers(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(logits))
        bounds = dict(agree)
        if n <= 2048:
            del bounds["fid"]
        if n > 1000:
            # Each side draws its own subsets.
            del bounds["kid"]
        good &= compare(f"{title}: {n} rows of 2048", ours(options.binary, *files), expected, bounds)

    weights = dir / "inception.pth"
    write_weights(weights)
    extractor = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], str(weights))
    a, b = blobs("images.a", options.images, 32), blobs("images.b", options.images, 32)
    a[:, :, :, 0] //= 2
    files = saved("images-a.npz", arr_0=a), saved("images-b.npz", arr_0=b)
    (fa, la), (fb, _) = extract(extractor, a), extract(extractor, b)
    found = ours(options.binary, *files, "--inception", weights)
    n = options.images
    near = {**agree, "fid": 1e-5, "kid": 1e-5, "is": 1e-5, "is sd": 1e-4}
    good &= compare(f"images: {n} of 32x32, from pixels", found, peers(fa, fb, la), near)
    files = saved("fa.npz", features=fa.numpy(), logits=la.numpy()), saved("fb.npz", features=fb.numpy())
    title = f"images: {n} of 32x32, our network against theirs, our metrics"
    good &= compare(title, found, ours(options.binary, *files), near)
    bounds = dict(agree)
    del bounds["fid"]
    title = f"images: {n} of 32x32, their features given to both"
    good &= compare(title, ours(options.binary, *files), peers(fa, fb, la), bounds)
    print("\nagree" if good else "\nDISAGREE")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
