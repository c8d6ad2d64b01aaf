"""Times the heavy parts of a run beside other programs, one after the other in one run.

    python -m venv venv && venv/bin/pip install numpy scipy torch torch-fidelity "jax[cpu]"
    cargo build --release
    venv/bin/python tests/peers/bench.py target/release/replicate [CASE ...]

The venv is best made outside the repository. Each case is run by `replicate bench` and by its
peers in processes of their own, one after the other, `--pairs` times with `--repeats`
repetitions each. Printed are the medians over all repetitions, the ratio of the medians and the
least and the largest ratio within a round, and the peak memory of either process. All use as
many threads as there are cores. The networks are the same: sizes, batch, objective, optimiser;
the numbers in them are not. Compilation is not timed.

| case | peers |
| --- | --- |
| one-step, dsm, forward, backward | PyTorch eager, torch.compile of the networks, JAX with the whole step in one jit |
| inception | torch-fidelity's network with drawn weights |
| frechet | torch-fidelity (eigenvalues of the product), SciPy (its root) |
| kid, precision-recall, precision-recall-flat | torch-fidelity, on 50,000 rows of 2048 features |
| folder | torch-fidelity with its data loader: from the start of the process to FID and IS of `--images` PNG files of 32 x 32 |

JAX's memory has an import of PyTorch in it, which draws the weights. A peer that cannot be
imported is left out. kid and those after it take minutes and run once for each of `--pairs`;
they run only if they are named.

    venv/bin/python tests/peers/bench.py target/release/replicate --device cuda:0,bf16

times the paper scale on a GPU: an iteration of DiJS (paper-step) and the teacher's
solver (heun), with a build of FEATURES=cudnn. PyTorch runs each twice: eager, and
through torch.compile; with ,bf16 under autocast and in channels-last order, without in
float32 with TF32 off. Its iteration leaves EDM's augmentation out, which ours has. Never
run on a card so far.

Nothing in `make test` runs this script.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
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
CASES = ["one-step", "dsm", "forward", "backward", "inception", "frechet"]
MINUTES = ["kid", "precision-recall", "precision-recall-flat", "folder"]
GPU_CASES = ["paper-step", "heun"]
MODULES = {"fidelity": "torch_fidelity", "scipy": "scipy", "jax": "jax"}
INCEPTION, FOLDER = "inception.pth", "images"


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


def report(seconds):
    with open("/proc/self/status") as status:
        peak = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def timed(once, repeats):
    once()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - started)
    report(seconds)


def worker(case, peer, repeats):
    import torch

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    if peer == "jax":
        from jax_twin import step

        if case in ("forward", "backward"):
            return timed(step(case, lambda _: unet(32, 128, [2, 2, 2], 4, [16])), repeats)
        return timed(step(case, lambda half: unet(16, 16, [1, 2], 1, [8], half)), repeats)
    if case in ("one-step", "dsm", "forward", "backward"):
        return timed(network_step(case, peer == "compile"), repeats)
    if case == "inception":
        net, pixels = fidelity_network(), torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            return timed(lambda: net(pixels), repeats)
    if case == "frechet":
        return timed(frechet(peer), repeats)
    if case == "folder":
        return folder()
    pairwise(case, repeats)


def network_step(case, compiled):
    import torch
    from torch.nn import functional as F

    def made(net):
        return torch.compile(net, dynamic=False) if compiled else net

    def mini(half=False):
        return made(unet(16, 16, [1, 2], 1, [8], half))

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
        generator, critic = mini(), mini(True)
        g_adam, c_adam = adam(generator, (0.0, 0.99)), adam(critic, (0.0, 0.99))
        ema, fixed = averaged(generator), torch.full((64,), 2.5)

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
        net = mini()
        optimiser, ema = adam(net, (0.9, 0.99)), averaged(net)

        def once():
            x, sigma = images[torch.randint(1000, (64,))], levels(64)
            weight = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2)[:, None, None, None]
            loss = (weight * (net(diffused(x, sigma), sigma) - x) ** 2).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            average(ema, net)

    else:
        net = made(unet(32, 128, [2, 2, 2], 4, [16]))
        x, sigma = torch.randn(4, 3, 32, 32), torch.tensor([0.1, 0.5, 2.5, 20.0])

        def once():
            if case == "forward":
                with torch.no_grad():
                    net(x, sigma)
            else:
                net.zero_grad(set_to_none=True)
                (net(x, sigma) ** 2).mean().backward()

    return once


def fidelity_network():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = os.path.join(os.environ["BENCH_FILES"], INCEPTION)
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], path)


def frechet(peer):
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((3000, 2048)) for _ in range(2))
    (ma, mb), (sa, sb) = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
    if peer == "fidelity":
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        one, two = {"mu": ma, "sigma": sa}, {"mu": mb, "sigma": sb}
        return lambda: fid_statistics_to_metric(one, two, False)

    import scipy.linalg

    def once():
        root = scipy.linalg.sqrtm(sa @ sb)
        return ((ma - mb) ** 2).sum() + np.real(np.trace(sa + sb - 2 * root))

    return once


def pairwise(case, repeats):
    """KID, precision and recall as torch-fidelity's calculate_metrics calls them."""
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    spread = torch.ones(2048) if case.endswith("flat") else torch.arange(1, 2049).rsqrt()
    a, b = (torch.randn(50_000, 2048) * spread for _ in range(2))
    # With its default for save_cpu_ram, precision and recall hold three matrices of 10 GB.
    compute, options = (kid_features_to_metric, {}) if case == "kid" else (prc_features_to_metric, {"save_cpu_ram": True})
    compute(a[:2000], b[:2000], verbose=False, **options)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        compute(a, b, verbose=False, **options)
        seconds.append(time.perf_counter() - started)
    report(seconds)


def folder():
    """FID against statistics and the Inception Score of a folder, by the steps of calculate_metrics."""
    import numpy as np
    from torch_fidelity import metric_fid, metric_isc, utils

    files = os.environ["BENCH_FILES"]
    options = {
        "input1": os.path.join(files, FOLDER),
        "feature_extractor_weights_path": os.path.join(files, INCEPTION),
        "cuda": False,
        "verbose": False,
    }
    extractor = utils.create_feature_extractor("inception-v3-compat", ["2048", "logits_unbiased"], **options)
    features = utils.extract_featuresdict_from_input_id_cached(1, extractor, **options)
    metric_isc.isc_featuresdict_to_metric(features, "logits_unbiased", **options)
    reference = dict(np.load(os.path.join(files, "reference.npz")))
    metric_fid.fid_statistics_to_metric(metric_fid.fid_featuresdict_to_statistics(features, "2048"), reference, False)
    report([])


def gpu_worker(case, repeats, device, compiled):
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
    for _ in range(3):
        once()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        once()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated()}))


def write_files(directory, images):
    """Writes what the cases read: drawn weights of Inception, statistics, and a folder of `images` PNG files."""
    import numpy as np
    from PIL import Image

    os.environ["BENCH_FILES"] = directory
    inception_weights(os.path.join(directory, INCEPTION))
    if not images:
        return
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 2048))
    np.savez(os.path.join(directory, "reference.npz"), mu=rows.mean(0), sigma=np.cov(rows.T))
    os.mkdir(os.path.join(directory, FOLDER))
    for i in range(images):
        # Smooth with some noise, which PNG compresses about as it does photographs.
        base = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(base) + rng.normal(0, 8, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(directory, FOLDER, f"{i:05}.png"))


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("replicate")
    parser.add_argument("cases", nargs="*", default=[], choices=[*PEERS, []], metavar="CASE")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000, help="images of the folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:N or cuda:N,bf16")
    options = parser.parse_args()
    cases = options.cases or (CASES if options.device == "cpu" else GPU_CASES)

    def wall(command):
        started = time.perf_counter()
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        return json.loads(output), time.perf_counter() - started

    def ours(case, repeats):
        if case == "folder":
            return scored()
        command = [options.replicate, "bench", case, "--json", "--repeats", repeats, "--device", options.device]
        return wall(command)[0][case]

    def theirs(case, peer, repeats):
        found, seconds = wall([sys.executable, __file__, "--worker", case, peer, repeats, options.device])
        return found if found["seconds"] else {**found, "seconds": [seconds]}

    def scored():
        files = os.environ["BENCH_FILES"]
        folder, weights, reference = (os.path.join(files, name) for name in (FOLDER, INCEPTION, "reference.npz"))
        command = [options.replicate, "score", folder, "--ref", reference, "--metrics", "fid,is", "--inception", weights]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, "replicate score failed"
        return {"seconds": [time.perf_counter() - started], "peak_bytes": 1024 * usage.ru_maxrss}

    with tempfile.TemporaryDirectory() as directory:
        if {"inception", "folder"} & set(cases):
            write_files(directory, options.images if "folder" in cases else 0)
        print(f"{'case':22} {'peer':8} {'ours':>10} {'peer':>10} {'ratio':>6} {'rounds':>13} {'ours':>9} {'peer':>9}")
        for case in cases:
            repeats = "1" if case in MINUTES else str(options.repeats)
            peers = [peer for peer in PEERS[case] if find_spec(MODULES.get(peer, "torch"))]
            rounds = []
            for _ in range(options.pairs):
                mine = ours(case, repeats)
                rounds.append((mine, [theirs(case, peer, repeats) for peer in peers]))
            for i, peer in enumerate(peers):
                show(case, peer, [(mine, others[i]) for mine, others in rounds])


def show(case, peer, rounds):
    median = statistics.median
    a, b = (median(s for round in rounds for s in round[side]["seconds"]) for side in (0, 1))
    ratios = [median(mine["seconds"]) / median(other["seconds"]) for mine, other in rounds]
    memory = [f"{max(round[side]['peak_bytes'] for round in rounds) / 1e6:.0f} MB" for side in (0, 1)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(
        f"{case:22} {peer:8} {1e3 * a:7.1f} ms {1e3 * b:7.1f} ms {a / b:6.2f} {spread:>13} {memory[0]:>9} {memory[1]:>9}",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        case, peer, repeats, device = sys.argv[2:6]
        if device == "cpu":
            worker(case, peer, int(repeats))
        else:
            gpu_worker(case, int(repeats), device, peer == "compile")
    else:
        main()
