"""Times the heavy parts of a run beside other programs, one after the other in one run.

    python -m venv venv && venv/bin/pip install numpy scipy pillow torch torch-fidelity "jax[cpu]"
    cargo build --release
    venv/bin/python tests/peers/bench.py target/release/replicate [--case CASE ...] [--quick]

The venv is best made outside the repository. Each case is run by `replicate bench` and by its
peers, one after the other, in `--pairs` rounds of `--repeats` repetitions. A peer is one process for
all rounds: it compiles once, which is not timed, and then waits for its turn. A peer that is not
ready after `--wait` seconds is ended and left out, with a line that says so; one that cannot be
imported is left out, too. Every round prints what it found. At the end comes a table: medians over
all repetitions, the median of the rounds' ratios (a machine's speed drifts between rounds, and its
two sides drift together within one), the least and the largest of them, and the peak memory of
either process. All use as many threads as there are cores.

| case | peers |
| --- | --- |
| one-step, dsm, forward, backward | PyTorch eager, torch.compile of the networks, JAX with the whole step in one jit |
| inception | torch-fidelity's network with drawn weights |
| frechet | torch-fidelity (eigenvalues of the product), SciPy (its root) |
| kid, precision-recall, precision-recall-flat | torch-fidelity, on `--rows` rows of 2048 features |
| folder | torch-fidelity with its data loader: from the start of the process to FID and IS of `--images` PNG files of 32 x 32 |

Before a case is timed, both sides have to compute the same:

- a network: with the weights of tests/parity, PyTorch's gives the outputs of EDM's code, as ours does
  in `cargo test --test reference`; the compiled ones give the outputs of eager with the same weights.
  In the timed steps sizes, batch, objective and optimiser are the same, the numbers are not;
- a metric: `replicate score` gives the peer's values for the same files.

JAX's memory has an import of PyTorch in it, which draws the weights; that of the compilers has what
they compiled with. kid and those after it run once in a round and, with the default sizes, for
minutes: precision-recall for eight on two cores, most of it torch-fidelity's.

    venv/bin/python tests/peers/bench.py target/release/replicate --device cuda:0,bf16

times the paper scale on a GPU: an iteration of DiJS (paper-step) and the teacher's
solver (heun), with a build of FEATURES=cudnn. PyTorch runs each twice: eager, and
through torch.compile; with ,bf16 under autocast and in channels-last order, without in
float32 with TF32 off. Its iteration leaves EDM's augmentation out, which ours has. Never
run on a card so far.

Nothing in `make test` runs this script. Ends with 1 if a peer is missing from the table or computes
something else.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import pathlib
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec

NETWORKS = ["eager", "compile", "jax"]
PEERS = {
    "one-step": NETWORKS,
    "dsm": NETWORKS,
    "forward": NETWORKS,
    "backward": NETWORKS,
    "inception": ["fidelity"],
    "frechet": ["fidelity", "scipy"],
    "kid": ["fidelity"],
    "precision-recall": ["fidelity"],
    "precision-recall-flat": ["fidelity"],
    "folder": ["fidelity"],
    "paper-step": ["eager", "compile"],
    "heun": ["eager", "compile"],
}
TITLES = {
    "one-step": "one iteration of DiJS, mini, batch 64",
    "dsm": "one step of score matching, mini, batch 64",
    "forward": "DDPM++ (55.7 M) forward, 4 images",
    "backward": "the same, forward and backward",
    "inception": "Inception-v3's features of 64 images",
    "frechet": "Fréchet distance of 2048 x 2048",
    "kid": "KID of {rows} x 2048, 100 subsets of 1000",
    "precision-recall": "precision and recall of {rows} x 2048, variances as 1/k",
    "precision-recall-flat": "the same, equal variances",
    "folder": "folder of {images} PNG files to FID and IS",
    "paper-step": "one iteration of DiJS, paper scale, batch 64",
    "heun": "Heun's 35 calls, 100 images",
}
NAMES = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "jax": "JAX",
    "fidelity": "torch-fidelity",
    "scipy": "SciPy",
}
GPU_CASES = ["paper-step", "heun"]
ONCE = ["kid", "precision-recall", "precision-recall-flat", "folder"]
MODULES = {"fidelity": "torch_fidelity", "scipy": "scipy", "jax": "jax"}
INCEPTION, FOLDER, FEW, REFERENCE = "inception.pth", "images", "few", "reference.npz"
# Images of the folder `FEW`, and rows of the features that both sides measure: more than dimensions,
# except for KID, which draws subsets if there are more than 1000.
FEW_IMAGES, FEW_ROWS = 48, {"kid": 1000, "frechet": 2500}
# Largest relative difference of two sides. Features of the network are float32, torch-fidelity's KID too.
METRIC_TOLERANCE = {"fid": 1e-5, "kid": 1e-3, "precision": 1e-3, "recall": 1e-3, "is": 1e-4}
NETWORK_TOLERANCE = 1e-4


def unet(size, channels, mult, blocks, attention, half=False):
    """EDM's SongUNet as DDPM++, preconditioned; `half`: the critic."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    emb_channels, skip_scale = 4 * channels, math.sqrt(0.5)

    def norm(c):
        return nn.GroupNorm(max(1, min(32, c // 4)), c, eps=1e-6)

    class Block(nn.Module):
        def __init__(self, c_in, c_out, resample=None, attend=False):
            super().__init__()
            self.resample = resample
            self.norm0, self.conv0 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
            self.affine = nn.Linear(emb_channels, c_out)
            self.norm1, self.conv1 = norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
            self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out or resample else None
            self.attend = attend
            if attend:
                self.norm2 = norm(c_out)
                self.qkv, self.proj = nn.Conv2d(c_out, 3 * c_out, 1), nn.Conv2d(c_out, c_out, 1)

        def sized(self, x):
            if self.resample == "down":
                return F.avg_pool2d(x, 2)
            if self.resample == "up":
                return F.interpolate(x, scale_factor=2, mode="nearest")
            return x

        def forward(self, x, emb):
            h = self.conv0(self.sized(F.silu(self.norm0(x))))
            h = h + self.affine(emb)[:, :, None, None]
            h = self.conv1(F.silu(self.norm1(h)))
            x = self.sized(x)
            x = (h + (self.skip(x) if self.skip else x)) * skip_scale
            if self.attend:
                b, c, height, width = x.shape
                q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, -1).unbind(2)
                w = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), dim=2)
                a = (v @ w.transpose(1, 2)).reshape(b, c, height, width)
                x = (self.proj(a) + x) * skip_scale
            return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.map0, self.map1 = nn.Linear(channels, emb_channels), nn.Linear(emb_channels, emb_channels)
            self.first = nn.Conv2d(3, channels, 3, padding=1)
            self.down, self.up, skips, c = nn.ModuleList(), nn.ModuleList(), [channels], channels
            for level, m in enumerate(mult):
                if level:
                    self.down.append(Block(c, c, "down"))
                    skips.append(c)
                for _ in range(blocks):
                    self.down.append(Block(c, channels * m, None, size >> level in attention))
                    c = channels * m
                    skips.append(c)
            if half:
                self.out_norm, self.head = norm(c), nn.Linear(c, 1)
                return
            self.takes = []
            for level, m in reversed(list(enumerate(mult))):
                if level == len(mult) - 1:
                    self.up.extend([Block(c, c, None, True), Block(c, c)])
                    self.takes += [False, False]
                else:
                    self.up.append(Block(c, c, "up"))
                    self.takes.append(False)
                for i in range(blocks + 1):
                    attend = i == blocks and size >> level in attention
                    self.up.append(Block(c + skips.pop(), channels * m, None, attend))
                    self.takes.append(True)
                    c = channels * m
            self.out_norm, self.out = norm(c), nn.Conv2d(c, 3, 3, padding=1)

        def forward(self, x, sigma):
            s = sigma[:, None, None, None]
            n = channels // 2
            freqs = (1 / 10000) ** (torch.arange(n, device=x.device) / (n - 1))
            angles = (sigma.log() / 4)[:, None] * freqs
            emb = torch.cat([angles.sin(), angles.cos()], 1)
            emb = F.silu(self.map1(F.silu(self.map0(emb))))
            h = self.first(x / (s**2 + 0.25).sqrt())
            outputs = [h]
            for block in self.down:
                h = block(h, emb)
                outputs.append(h)
            if half:
                return self.head(F.silu(self.out_norm(h)).mean((2, 3)))[:, 0]
            for block, take in zip(self.up, self.takes):
                h = block(torch.cat([h, outputs.pop()], 1) if take else h, emb)
            h = self.out(F.silu(self.out_norm(h)))
            return x * 0.25 / (s**2 + 0.25) + h * s * 0.5 / (s**2 + 0.25).sqrt()

    return Net()


def tell(**what):
    print(json.dumps(what), flush=True)


def resident_peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def serve(once, peak=resident_peak, finish=lambda: None, **ready):
    """Calls `once`, which may compile; then times as many calls as each line of the input asks for."""
    once()
    finish()
    tell(ready=ready)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            once()
            finish()
            seconds.append(time.perf_counter() - started)
        tell(seconds=seconds, peak_bytes=peak())


def worker(case, peer, device, rows):
    import torch

    if device != "cpu":
        return gpu_worker(case, device, peer == "compile")
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    if peer == "jax":
        from jax_twin import step

        if case in ("forward", "backward"):
            once, difference = step(case, lambda _: unet(32, 128, [2, 2, 2], 4, [16]))
        else:
            once, difference = step(case, lambda half: unet(16, 16, [1, 2], 1, [8], half))
        serve(once, difference=difference)
    elif peer in NETWORKS:
        once, difference = network_step(case, peer == "compile")
        serve(once, difference=difference)
    elif case == "inception":
        net, pixels = fidelity_network(), torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
        values = score_folder(FEW)
        with torch.no_grad():
            serve(lambda: net(pixels), values=values)
    elif case == "frechet":
        serve(frechet(peer), values=few_values(case, peer))
    elif case == "folder":
        tell(ready={"values": score_folder(FOLDER)})
    else:
        serve_pairwise(case, rows)


def difference(found, expected):
    """Largest difference of two arrays relative to the largest value."""
    return float(abs(found - expected).max() / abs(expected).max())


def difference_from_edm(net, size):
    """That of a network with the weights of tests/parity from the outputs of EDM's code."""
    import numpy as np
    import torch
    from score import unit

    name = "edm-cifar10.npz" if size == 32 else "edm-tiny.npz"
    stored = np.load(pathlib.Path(__file__).parent.parent / "parity" / name)
    net, group = copy.deepcopy(net), "grad_norm/"
    names = [key[len(group) :] for key in stored if key.startswith(group) and "map_augment" not in key]
    with torch.no_grad():
        for name, p in zip(names, net.parameters(), strict=True):
            u = torch.from_numpy(unit(name, p.numel())).reshape(p.shape)
            around = 1 if name.endswith(".weight") else 0
            p.copy_(u * math.sqrt(3 / p[0].numel()) if p.ndim > 1 else around + 0.1 * u)
        found = net(torch.from_numpy(stored["x"]), torch.from_numpy(stored["sigma"])).numpy()
    return difference(found, stored["denoised"])


def network_step(case, compiled):
    import torch
    from torch.nn import functional as F

    def made(net):
        return torch.compile(net, dynamic=False) if compiled else net

    def mini(half=False):
        return unet(16, 16, [1, 2], 1, [8], half)

    def differing(net, run, *inputs):
        """Computes by how much a compiled network differs from eager, or eager from EDM's."""
        if not compiled:
            return difference_from_edm(net, inputs[0].shape[-1])
        found = run(*inputs).detach()
        with torch.no_grad():
            return difference(found.numpy(), net(*inputs).numpy())

    def levels(n):
        return (-1.2 + 1.2 * torch.randn(n)).exp()

    def adam(net, betas):
        return torch.optim.Adam(net.parameters(), lr=1e-4, betas=betas, foreach=True)

    def averaged(net):
        return [p.detach().clone() for p in net.parameters()]

    def average(ema, net):
        with torch.no_grad():
            torch._foreach_mul_(ema, 0.99)
            torch._foreach_add_(ema, list(net.parameters()), alpha=0.01)

    def diffused(x, sigma):
        return x + sigma[:, None, None, None] * torch.randn_like(x)

    images = torch.rand(1000, 3, 16, 16) * 2 - 1
    if case == "one-step":
        plain, critic = mini(), made(mini(True))
        generator = made(plain)
        g_adam, c_adam = adam(generator, (0.0, 0.99)), adam(critic, (0.0, 0.99))
        ema, fixed = averaged(generator), torch.full((64,), 2.5)
        with torch.no_grad():
            differs = differing(plain, generator, 2.5 * torch.randn(64, 3, 16, 16), fixed)

        def once():
            with torch.no_grad():
                fake = generator(2.5 * torch.randn(64, 3, 16, 16), fixed)
            real, sigma = images[torch.randint(1000, (64,))], levels(64)
            logits = critic(torch.cat([diffused(real, sigma), diffused(fake, sigma)]), sigma.repeat(2))
            c_adam.zero_grad(set_to_none=True)
            (F.softplus(-logits[:64]).mean() + F.softplus(logits[64:]).mean()).backward()
            c_adam.step()
            sigma = levels(64)
            critic.requires_grad_(False)
            logits = critic(diffused(generator(2.5 * torch.randn(64, 3, 16, 16), fixed), sigma), sigma)
            g_adam.zero_grad(set_to_none=True)
            (sigma**2 * -F.softplus(logits)).mean().backward()
            critic.requires_grad_(True)
            g_adam.step()
            average(ema, generator)

    elif case == "dsm":
        plain = mini()
        net = made(plain)
        optimiser, ema = adam(net, (0.9, 0.99)), averaged(net)
        differs = differing(plain, net, diffused(images[:64], levels(64)), levels(64))

        def once():
            x, sigma = images[torch.randint(1000, (64,))], levels(64)
            weight = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2)[:, None, None, None]
            loss = (weight * (net(diffused(x, sigma), sigma) - x) ** 2).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            average(ema, net)

    else:
        plain = unet(32, 128, [2, 2, 2], 4, [16])
        net = made(plain)
        x, sigma = torch.randn(4, 3, 32, 32), torch.tensor([0.1, 0.5, 2.5, 20.0])
        with torch.set_grad_enabled(case == "backward"):
            differs = differing(plain, net, x, sigma)

        def once():
            if case == "forward":
                with torch.no_grad():
                    net(x, sigma)
            else:
                net.zero_grad(set_to_none=True)
                (net(x, sigma) ** 2).mean().backward()

    return once, differs


def fidelity_network():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = os.path.join(os.environ["BENCH_FILES"], INCEPTION)
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], path)


def few_values(case, peer):
    """What a peer measures of the stored features."""
    import numpy as np
    import torch

    rows = [np.load(file)["features"] for file in few_features(case)]
    if case == "frechet":
        rows = [r.astype(np.float64) for r in rows]
        return {"fid": float(distance(peer, [(r.mean(0), np.cov(r.T)) for r in rows])())}
    found = pairwise(case)(*(torch.from_numpy(r) for r in rows))
    names = {"kernel_inception_distance_mean": "kid", "precision": "precision", "recall": "recall"}
    return {ours: float(found[name]) for name, ours in names.items() if name in found}


def frechet(peer):
    import numpy as np

    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((3000, 2048)) for _ in range(2)]
    return distance(peer, [(r.mean(0), np.cov(r.T)) for r in rows])


def distance(peer, moments):
    """Returns what computes the Fréchet distance of two pairs of mean and covariance."""
    import numpy as np

    (ma, sa), (mb, sb) = moments
    if peer == "fidelity":
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        one, two = {"mu": ma, "sigma": sa}, {"mu": mb, "sigma": sb}
        return lambda: fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]

    import scipy.linalg

    def once():
        root = scipy.linalg.sqrtm(sa @ sb)
        return ((ma - mb) ** 2).sum() + np.real(np.trace(sa + sb - 2 * root))

    return once


def pairwise(case):
    """KID, precision and recall as torch-fidelity's calculate_metrics calls them."""
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    def kid(a, b):
        # One subset that is the whole set is not drawn at random, and so is the same on both sides.
        return kid_features_to_metric(a, b, verbose=False, kid_subsets=1 if len(a) == 1000 else 100)

    # With its default for save_cpu_ram, precision and recall hold three matrices of 10 GB.
    return kid if case == "kid" else lambda a, b: prc_features_to_metric(a, b, verbose=False, save_cpu_ram=True)


def serve_pairwise(case, rows):
    import torch

    values, compute = few_values(case, "fidelity"), pairwise(case)
    spread = torch.ones(2048) if case.endswith("flat") else torch.arange(1, 2049).rsqrt()
    sets = [torch.randn(rows, 2048).mul_(spread) for _ in range(2)]
    calls = iter([[rows[:1000] for rows in sets]])
    # The first call warms up with few rows.
    serve(lambda: compute(*next(calls, sets)), values=values)


def score_folder(name):
    """FID against statistics and the Inception Score of a folder, by the steps of calculate_metrics."""
    import numpy as np
    from torch_fidelity import metric_fid, metric_isc, utils

    files = os.environ["BENCH_FILES"]
    options = {
        "input1": os.path.join(files, name),
        "feature_extractor_weights_path": os.path.join(files, INCEPTION),
        "cuda": False,
        "verbose": False,
        "isc_splits": 10,
        "samples_shuffle": False,
    }
    extractor = utils.create_feature_extractor("inception-v3-compat", ["2048", "logits_unbiased"], **options)
    features = utils.extract_featuresdict_from_input_id_cached(1, extractor, **options)
    score = metric_isc.isc_featuresdict_to_metric(features, "logits_unbiased", **options)
    statistics = metric_fid.fid_featuresdict_to_statistics(features, "2048")
    stored = np.load(os.path.join(files, REFERENCE))
    reference = {key: stored[key].astype(statistics[key].dtype) for key in ("mu", "sigma")}
    fid = metric_fid.fid_statistics_to_metric(statistics, reference, False)
    return {"fid": float(fid["frechet_inception_distance"]), "is": float(score["inception_score_mean"])}


def gpu_worker(case, device, compiled):
    import torch
    from torch.nn import functional as F

    place, _, precision = device.partition(",")
    bf16 = precision == "bf16"
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True

    def network(half=False):
        net = unet(32, 128, [2, 2, 2], 4, [16], half).to(place)
        if bf16:
            net = net.to(memory_format=torch.channels_last)
        return net, torch.compile(net) if compiled else net

    def autocast():
        return torch.autocast("cuda", torch.bfloat16, enabled=bf16)

    def noise(n):
        return torch.randn(n, 3, 32, 32, device=place)

    def levels(n):
        return (-1.2 + 1.2 * torch.randn(n, device=place)).exp()

    def diffused(x, sigma):
        return x + sigma[:, None, None, None] * torch.randn_like(x)

    generator, generate = network()
    if case == "paper-step":
        critic, judge = network(True)
        g_adam, c_adam = (
            torch.optim.Adam(net.parameters(), lr=1e-5, betas=(0.0, 0.999), fused=True)
            for net in (generator, critic)
        )
        ema = [p.detach().clone() for p in generator.parameters()]
        images = torch.rand(1000, 3, 32, 32, device=place) * 2 - 1
        fixed = torch.full((64,), 2.5, device=place)

        def once():
            with torch.no_grad(), autocast():
                fake = generate(2.5 * noise(64), fixed).float()
            real, sigma = images[torch.randint(1000, (64,), device=place)], levels(64)
            with autocast():
                both = torch.cat([diffused(real, sigma), diffused(fake, sigma)])
                logits = judge(both, sigma.repeat(2)).float()
                loss = F.softplus(-logits[:64]).mean() + F.softplus(logits[64:]).mean()
            c_adam.zero_grad(set_to_none=True)
            loss.backward()
            c_adam.step()
            sigma = levels(64)
            critic.requires_grad_(False)
            with autocast():
                logits = judge(diffused(generate(2.5 * noise(64), fixed), sigma), sigma).float()
                loss = (sigma**2 * -F.softplus(logits)).mean()
            g_adam.zero_grad(set_to_none=True)
            loss.backward()
            critic.requires_grad_(True)
            g_adam.step()
            with torch.no_grad():
                torch._foreach_mul_(ema, 0.999)
                torch._foreach_add_(ema, list(generator.parameters()), alpha=0.001)

    else:
        ramp = torch.arange(18, dtype=torch.float64, device=place) / 17
        steps = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        steps = [*steps.tolist(), 0.0]

        def slope(x, sigma):
            with torch.no_grad(), autocast():
                d = generate(x.float(), torch.full((100,), sigma, device=place))
            return (x - d.double()) / sigma

        def once():
            x = noise(100).double() * steps[0]
            for now, after in zip(steps, steps[1:]):
                d = slope(x, now)
                euler = x + (after - now) * d
                x = x + (after - now) * (d + slope(euler, after)) / 2 if after else euler

    # Compilation and the choice of algorithms are not timed.
    once()
    once()
    serve(once, torch.cuda.max_memory_allocated, torch.cuda.synchronize)


def write_images(folder, images, rng):
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for i in range(images):
        # Smooth with some noise, which PNG compresses about as it does photographs.
        base = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(base) + rng.normal(0, 8, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.png")


def write_files(directory, cases, images):
    """Writes what the cases read: drawn weights of Inception, statistics, features, and folders of PNG files."""
    import numpy as np

    directory, rng = pathlib.Path(directory), np.random.default_rng(0)
    os.environ["BENCH_FILES"] = str(directory)
    if {"inception", "folder"} & set(cases):
        inception_weights(directory / INCEPTION)
        rows = rng.standard_normal((3000, 2048))
        np.savez(directory / REFERENCE, mu=rows.mean(0), sigma=np.cov(rows.T))
        write_images(directory / FEW, FEW_IMAGES, rng)
        if "folder" in cases:
            write_images(directory / FOLDER, images, rng)
    for n in {FEW_ROWS.get(case, 1000) for case in set(cases) & {"frechet", *ONCE} - {"folder"}}:
        # Correlated, not negative, and with a shift between the two sides.
        mix = rng.random((2048, 2048), dtype=np.float32) / 32 - 1 / 64
        for side in "ab":
            rows = rng.standard_normal((n, 2048), dtype=np.float32) @ mix + np.float32(0.4)
            rows = np.maximum(rows if side == "a" else np.float32(1.05) * rows, 0)
            np.savez(directory / f"{n}-{side}.npz", features=rows)


def few_features(case):
    return [os.path.join(os.environ["BENCH_FILES"], f"{FEW_ROWS.get(case, 1000)}-{side}.npz") for side in "ab"]


def inception_weights(path):
    """torch-fidelity's network with weights as drawn by PyTorch."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    load = torch.load
    try:
        # The constructor wants a file: it gets an empty one, and keeps what it drew.
        torch.load = lambda *_, **__: {}
        strict = torch.nn.Module.load_state_dict
        torch.nn.Module.load_state_dict = lambda self, state, **_: None
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], __file__)
    finally:
        torch.load, torch.nn.Module.load_state_dict = load, strict
    torch.save(net.state_dict(), path)


class Left(Exception):
    """Why a peer is left out."""


class Peer:
    """A process that prepares a case and then repeats it whenever it is asked to."""

    def __init__(self, case, name, options):
        self.name, self.started, self.lines = name, time.perf_counter(), queue.Queue()
        command = [sys.executable, __file__, "--worker", case, name, options.device, str(options.rows)]
        # With a group of its own it can be ended together with the compilers that it starts.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            # Libraries print, too.
            if line.startswith("{"):
                self.lines.put(json.loads(line))
        self.lines.put(None)

    def answer(self, seconds, late):
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise Left(f"{late} within {seconds} s") from None
        if line is None:
            raise Left(f"ended with {self.process.wait()}")
        return line

    def measure(self, repeats, seconds):
        self.process.stdin.write(f"{repeats}\n")
        self.process.stdin.flush()
        return self.answer(seconds, "did not finish a round")

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def milliseconds(seconds):
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"


class Bench:
    def __init__(self, options):
        self.options, self.table, self.left = options, [], []

    def say(self, case, text):
        print(f"{time.strftime('%T')} {case}: {text}", flush=True)

    def leave(self, case, name, why):
        self.left.append(f"{TITLES[case]}: {NAMES[name]} {why}")
        self.say(case, f"{NAMES[name]} {why}")

    def ours(self, case, repeats):
        if case == "folder":
            return self.scored(FOLDER)
        command = [self.options.replicate, "bench", case, "--json", "--repeats", str(repeats)]
        command += ["--device", self.options.device, "--rows", str(self.options.rows)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[case]

    def scored(self, folder):
        """Time, memory and values of `replicate score` on a folder."""
        files = pathlib.Path(os.environ["BENCH_FILES"])
        weights = ["--inception", files / INCEPTION, "--metrics", "fid,is"]
        return self.score(files / folder, "--ref", files / REFERENCE, *weights)

    def score(self, *arguments):
        started = time.perf_counter()
        command = [self.options.replicate, "score", *arguments, "--json"]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"failed: {' '.join(map(str, command))}")
        seconds, trial = [time.perf_counter() - started], json.loads(output)["trials"][0]
        values = {name: value["mean"] if isinstance(value, dict) else value for name, value in trial.items()}
        return {"seconds": seconds, "peak_bytes": 1024 * usage.ru_maxrss, "values": values}

    def agree(self, case, name, ready):
        """Compares what a peer computed with what it should be."""
        if "difference" in ready:
            beside = "EDM's" if name == "eager" else "eager's"
            found, bound = ready["difference"], NETWORK_TOLERANCE
            self.say(case, f"{NAMES[name]}'s outputs differ from {beside} by {found:.1e}")
            if not found <= bound:
                raise Left(f"computes something else: {found:.1e} is more than {bound:.0e}")
        if "values" in ready:
            if case in ("inception", "folder"):
                mine = self.scored(FEW if case == "inception" else FOLDER)
            else:
                a, b = few_features(case)
                mine = self.score(a, "--ref", b, "--metrics", {"frechet": "fid", "kid": "kid"}.get(case, "pr"))
            self.compare(case, name, mine["values"], ready["values"])

    def compare(self, case, name, mine, theirs):
        for metric, value in theirs.items():
            relative = abs(mine[metric] - value) / max(abs(value), 1e-9)
            self.say(case, f"{metric} {mine[metric]:.7g}, {NAMES[name]}'s {value:.7g}")
            # Without more images than dimensions the peer's roots of rounding errors are in it.
            bound = 1e-2 if (case, metric) == ("inception", "fid") else METRIC_TOLERANCE[metric]
            if not relative <= bound:
                raise Left(f"computes something else: {relative:.1e} is more than {bound:.0e}")

    def run(self, case):
        names = [name for name in PEERS[case] if find_spec(MODULES.get(name, "torch"))]
        for name in set(PEERS[case]) - set(names):
            self.leave(case, name, "is not installed")
        measure = self.folder if case == "folder" else self.rounds
        for name, rounds in measure(case, names).items():
            if rounds:
                self.table.append(self.line(case, name, rounds))

    def rounds(self, case, names):
        """Returns the rounds of each peer: what we took, and what it took."""
        repeats, peers = 1 if case in ONCE else self.options.repeats, {}
        found = {name: [] for name in names}
        try:
            for name in names:
                self.say(case, f"{NAMES[name]} {'compiles' if name in ('compile', 'jax') else 'starts'}")
                peer = Peer(case, name, self.options)
                try:
                    ready = peer.answer(self.options.wait, "did not compile or get ready")["ready"]
                    self.say(case, f"{NAMES[name]} is ready after {time.perf_counter() - peer.started:.0f} s")
                    self.agree(case, name, ready)
                    peers[name] = peer
                except Left as why:
                    peer.end()
                    self.leave(case, name, why)
            for k in range(self.options.pairs):
                mine = self.ours(case, repeats)
                self.say(case, f"round {k + 1}: ours {milliseconds(statistics.median(mine['seconds']))}")
                for name, peer in list(peers.items()):
                    try:
                        theirs = peer.measure(repeats, 4 * self.options.wait)
                        found[name].append((mine, theirs))
                        self.say_round(case, k, name, mine, theirs)
                    except Left as why:
                        peers.pop(name).end()
                        self.leave(case, name, why)
        finally:
            for peer in peers.values():
                peer.end()
        return found

    def folder(self, case, names):
        """Does the same for whole processes, whose start is timed."""
        found = {name: [] for name in names}
        for k in range(self.options.pairs):
            mine = self.scored(FOLDER)
            self.say(case, f"round {k + 1}: ours {milliseconds(mine['seconds'][0])}")
            for name in names:
                peer = Peer(case, name, self.options)
                try:
                    values = peer.answer(4 * self.options.wait, "did not finish")["ready"]["values"]
                    _, status, usage = os.wait4(peer.process.pid, 0)
                    seconds = [time.perf_counter() - peer.started]
                    theirs = {"seconds": seconds, "peak_bytes": 1024 * usage.ru_maxrss}
                    self.compare(case, name, mine["values"], values)
                    found[name].append((mine, theirs))
                    self.say_round(case, k, name, mine, theirs)
                except Left as why:
                    peer.end()
                    self.leave(case, name, why)
        return found

    def say_round(self, case, k, name, mine, theirs):
        a, b = (statistics.median(side["seconds"]) for side in (mine, theirs))
        self.say(case, f"round {k + 1}: {NAMES[name]} {milliseconds(b)}, ratio {a / b:.2f}")

    def line(self, case, name, rounds):
        median = statistics.median
        a, b = (median(s for round in rounds for s in round[side]["seconds"]) for side in (0, 1))
        ratios = [median(mine["seconds"]) / median(other["seconds"]) for mine, other in rounds]
        memory = [max(round[side]["peak_bytes"] for round in rounds) / 1e6 for side in (0, 1)]
        title = TITLES[case].format(rows=self.options.rows, images=self.options.images)
        times = f"{milliseconds(a)} | {milliseconds(b)} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        line = f"| {title} | {NAMES[name]} | {times} | {memory[0]:.0f} of {memory[1]:.0f} MB |"
        print(line, flush=True)
        return line

    def show(self):
        print("\n| | peer | ours | peer's | ratio | rounds | peak memory |\n| --- | --- | --- | --- | --- | --- | --- |")
        print("\n".join(self.table))
        for line in self.left:
            print(f"\nNot in the table: {line}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("replicate")
    parser.add_argument("--case", nargs="+", choices=PEERS, metavar="CASE", help="default: all of the device")
    parser.add_argument("--pairs", type=int, default=3, help="rounds")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions in a round")
    parser.add_argument("--images", type=int, default=10_000, help="images of the folder")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of features of KID, precision and recall")
    parser.add_argument("--wait", type=int, default=300, help="seconds for a peer to compile and get ready")
    parser.add_argument("--quick", action="store_true", help="2 repetitions in 1 round, 500 images, 5000 rows")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:N or cuda:N,bf16")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.repeats, options.images, options.rows = 1, 2, 500, 5000
    every = GPU_CASES if options.device != "cpu" else [case for case in PEERS if case not in GPU_CASES]
    bench, cases = Bench(options), options.case or every
    with tempfile.TemporaryDirectory() as directory:
        write_files(directory, cases, options.images)
        try:
            for case in cases:
                bench.run(case)
        finally:
            bench.show()
    return 1 if bench.left else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        case, peer, device, rows = sys.argv[2:6]
        worker(case, peer, device, int(rows))
    else:
        sys.exit(main())
