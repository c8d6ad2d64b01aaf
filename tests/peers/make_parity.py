"""Remakes the fixtures of tests/parity from the reference implementations and compares.

    python -m venv venv && venv/bin/pip install numpy scipy pillow tqdm setuptools torch torch-fidelity
    git clone https://github.com/NVlabs/edm EDM_DIR    # commit 008a4e5
    venv/bin/python tests/peers/make_parity.py EDM_DIR

The venv and the clone are best made outside the repository. EDM's code is imported where
it lies: its licence forbids commercial use, and none of it is in this repository. Weights
come from the formula in tests/parity/README.md, nothing is downloaded. Takes two minutes
on two cores.

Printed for every group of arrays are the largest absolute difference from the stored
values relative to the largest stored value (for Frechet distances to the two traces,
which cancel in them), and what is allowed. `--write DIR` writes what was made to DIR.
Ends with 1 if something disagrees. Nothing in `make test` runs this script.
"""

import argparse
import importlib.util
import io
import pathlib
import pickle
import re
import sys
import types
import unittest.mock
import warnings

import numpy as np
import scipy.linalg
import torch
from score import statistics, unit, write_weights
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

STORED = pathlib.Path(__file__).parent.parent / "parity"
TINY = dict(size=16, channels=16, mult=[1, 2], blocks=1, attention=8)
CIFAR10 = dict(size=32, channels=128, mult=[2, 2, 2], blocks=4, attention=16)

# What is allowed: the first pattern that is found in "file group" decides.
TOLERANCES = [
    (r"draw$|_k3$|/(generated|reference)$|pkl|pth|txt|inception.npz images", 0),
    (r"singular/fid", 1e-6),  # roots of eigenvalues that are rounding errors
    (r"fid_|is_10", 1e-9),  # in float64
    (r"images_uint8", 1 / 255),  # one level, where a value lies between two
    # Without a first moment Adam goes by signs of gradients: half a unit in the last place
    # of the weights has moved the samples by as much as 2e-3.
    (r"train-steps", 3e-3),
    (r"", 2e-5),  # in float32
]


def edm_code(directory):
    """EDM's modules. What its command lines and downloads import need not be installed."""
    for name in ("click", "requests"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = unittest.mock.MagicMock()
    sys.path.insert(0, directory)
    import generate
    from training import augment, loss, networks

    return types.SimpleNamespace(sampler=generate.edm_sampler, augment=augment, loss=loss, networks=networks)


def uniform(name, *shape):
    return torch.from_numpy(unit(name, int(np.prod(shape)))).reshape(shape)


def normal(name, *shape):
    """Of unit variance, not Gaussian."""
    return np.sqrt(3) * uniform(name, *shape)


def fill(module, prefix=""):
    for name, parameter in module.named_parameters():
        u = uniform(prefix + name, *parameter.shape)
        if parameter.dim() > 1:
            parameter.data = u * np.sqrt(3 / parameter[0].numel())
        else:
            parameter.data = 1 + 0.1 * u if name.endswith(".weight") else 0.1 * u
    return module


def network(edm, size, channels, mult, blocks, attention):
    """Dropout is off in what this gives; the snapshot keeps its rate."""
    settings = dict(img_resolution=size, img_channels=3, model_channels=channels, channel_mult=mult)
    settings |= dict(num_blocks=blocks, attn_resolutions=[attention], augment_dim=9, dropout=0.13)
    # DDPM++ with the defaults, which the snapshot names.
    settings |= dict(model_type="SongUNet", embedding_type="positional", resample_filter=[1, 1])
    settings |= dict.fromkeys(["encoder_type", "decoder_type"], "standard")
    settings |= dict(channel_mult_noise=1, channel_mult_emb=4, label_dim=0, use_fp16=False)
    return fill(edm.networks.EDMPrecond(**settings)).eval()


def augmentation(edm, p):
    """As for EDM's CIFAR-10, where the first flip is not subject to p."""
    on = dict.fromkeys(["yflip", "scale", "rotate_frac", "aniso", "translate_frac"], 1)
    return edm.augment.AugmentPipe(p=p, xflip=1e8, **on)


def one(value):
    return value.detach().float().reshape(1)


def unet(edm, config, sigma):
    net, size = network(edm, **config), config["size"]
    n, sigma = len(sigma), torch.tensor(sigma)
    image = 0.8 * uniform("input.image", n, 3, size, size)
    x = image + sigma.reshape(n, 1, 1, 1) * normal("input.noise", n, 3, size, size)
    labels = 0.5 * uniform("input.augment", n, 9)

    def probe(name):
        return lambda _module, _inputs, y: rms.update({f"act_rms/{name}": one(y.square().mean().sqrt())})

    rms, enc, dec = {}, net.model.enc, net.model.dec
    blocks = {f"enc.{name}": block for name, block in enc.items() if name not in dec}
    blocks |= {f"both.{name}": block for name, block in dec.items()}
    hooks = [block.register_forward_hook(probe(name)) for name, block in blocks.items()]
    denoised = net(x, sigma).detach()
    for hook in hooks:
        hook.remove()
    augmented = net(x, sigma, augment_labels=labels)
    loss = (augmented - image).square().mean()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    found = dict(x=x, sigma=sigma, augment_labels=labels, denoised=denoised, loss=one(loss), **rms)
    found |= dict(denoised_augmented=augmented.detach())
    # PyTorch sums a norm in float32, which costs 5e-5 in the largest tensors.
    found |= {f"grad_norm/{name}": one(value.double().norm()) for name, value in gradients.items()}
    side = f"{size}x{size}"
    whole = ["map_layer0.weight", f"enc.{side}_block0.conv0.bias", f"dec.{side}_aux_conv.weight"]
    return found | {f"grad/model.{name}": gradients[f"model.{name}"] for name in whole}


def sampler(edm):
    latents = normal("sampler.latents", 4, 3, 16, 16)
    with torch.no_grad():
        images = edm.sampler(network(edm, **TINY), latents, num_steps=18)
    return dict(latents=latents, images=images, images_uint8=(images * 127.5 + 128).clip(0, 255).byte())


# In the order in which the pipeline draws them.
DRAWS = """xflip.bit xflip.gate yflip.bit yflip.gate scale.normal scale.gate rotate.uniform rotate.gate
aniso.normal aniso.angle aniso.gate aniso.angle_gate translate.normal translate.gate""".split()


def augmented(edm, images):
    """Both sets from one stream of PyTorch's generator, every draw recorded."""
    found, drawn = dict(images=images), []

    def recorded(draw):
        return lambda *shape, **more: drawn.append(draw(*shape, **more)) or drawn[-1]

    functions = {name: recorded(getattr(torch, name)) for name in ("rand", "randn", "randint")}
    torch.manual_seed(123)
    for p in (1.0, 0.12):
        drawn.clear()
        with unittest.mock.patch.multiple(torch, **functions):
            output, labels = augmentation(edm, p)(torch.from_numpy(images))
        made = {f"draw.{name}": draw for name, draw in zip(DRAWS, drawn, strict=True)}
        made |= dict(output=output, labels=labels)
        found |= {f"p{p:.2f}/{name}": value for name, value in made.items()}
    return found


def snapshot(edm):
    """As EDM pickles it, but without EDM's source text."""
    net, loss, augment = network(edm, **TINY), edm.loss.EDMLoss(), augmentation(edm, 0.12)
    for thing in [*net.requires_grad_(False).modules(), loss, augment]:
        if hasattr(thing, "_orig_module_src"):
            type(thing)._orig_module_src = "# source text left out of this fixture\n"
    data = dict(class_name="training.dataset.ImageFolderDataset", path="cifar10-32x32.zip", max_size=50000)
    data |= dict(use_labels=False, xflip=False)
    return pickle.dumps(dict(ema=net, loss_fn=loss, augment_pipe=augment, dataset_kwargs=data), protocol=4)


class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        return dict if name == "_reconstruct_persistent_obj" else super().find_class(module, name)


def leaves(value, name=""):
    """What a pickle holds, by place."""
    value = vars(value) if isinstance(value, torch.nn.Module) else value
    if not isinstance(value, (dict, list, tuple)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: leaf for key, item in items for place, leaf in leaves(item, f"{name}.{key}").items()}


def state(edm):
    torch.save(network(edm, **TINY).state_dict(), file := io.BytesIO())
    return file.getvalue()


# ------------------------------------------------------------------- five training steps


class Critic(torch.nn.Module):
    """The U-Net's mapping and encoder, whose last output is caught, and a head."""

    def __init__(self, edm):
        super().__init__()
        self.net = network(edm, **TINY).model
        last = list(self.net.enc.values())[-1]
        last.register_forward_hook(lambda _module, _inputs, y: setattr(self, "seen", y))
        norm, head = torch.nn.GroupNorm(8, 32, eps=1e-6), torch.nn.Linear(32, 1)
        self.critic = fill(torch.nn.ModuleDict(dict(norm=norm, head=head)), "critic.")

    def forward(self, x, sigma):
        self.net(x / (sigma**2 + 0.25).sqrt(), sigma.log().flatten() / 4, None)
        return self.critic.head(F.silu(self.critic.norm(self.seen)).mean((2, 3))).flatten()


PHI = dict(dikl=lambda l: -l, dijs=lambda l: -F.softplus(l), dirm=lambda l: F.softplus(-l))


def five_steps(edm, objective):
    vsd = objective == "vsd"
    generator, teacher = network(edm, **TINY), network(edm, **TINY)
    judge = network(edm, **TINY) if vsd else Critic(edm)
    adams = [torch.optim.Adam(m.parameters(), 1e-3, betas=(0.0, 0.999), eps=1e-8) for m in (judge, generator)]
    noise = lambda name: normal(name, 4, 3, 16, 16)
    level = lambda name: (-1.2 + 1.2 * normal(name, 4, 1, 1, 1)).exp()
    generate = lambda name: generator(2.5 * noise(name), torch.tensor(2.5))
    losses = ([], [])

    def update(which, loss):
        adams[which].zero_grad()
        loss.backward()
        adams[which].step()
        losses[which].append(one(loss))

    for k in range(5):
        fake = generate(f"step{k}.critic.z").detach()
        real = 0.8 * uniform(f"step{k}.real", 4, 3, 16, 16)
        sigma = level(f"step{k}.critic.sigma")
        x_fake = fake + sigma * noise(f"step{k}.critic.noise_fake")
        x_real = real + sigma * noise(f"step{k}.critic.noise_real")
        if vsd:
            weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
            update(0, (weight * (judge(x_fake, sigma) - fake) ** 2).mean())
        else:
            update(0, F.softplus(-judge(x_real, sigma)).mean() + F.softplus(judge(x_fake, sigma)).mean())

        x, sigma = generate(f"step{k}.generator.z"), level(f"step{k}.generator.sigma")
        x = x + sigma * noise(f"step{k}.generator.noise")
        if vsd:
            d = ((judge(x, sigma) - teacher(x, sigma)) / sigma**2).detach()
            update(1, (sigma**2 * d * x).sum() / len(x))
        else:
            update(1, (sigma.flatten() ** 2 * PHI[objective](judge(x, sigma))).mean())
    found = dict(critic_loss=torch.cat(losses[0]), generator_loss=torch.cat(losses[1]))
    return found | dict(samples_after=generate("final.z").detach())


# -------------------------------------------------------------- torch-fidelity and SciPy


def inception(images):
    depths = ["64", "192", "768", "2048", "logits_unbiased", "logits"]
    write_weights(weights := io.BytesIO())
    weights.seek(0)
    net = FeatureExtractorInceptionV3("filled", depths, weights)
    x = torch.from_numpy(images)
    resized = interpolate_bilinear_2d_like_tensorflow1x(x.float(), (299, 299), align_corners=False)
    found = {f"features/{depth}": value for depth, value in zip(depths, net(x))}
    found |= dict(resized_crop=resized[:, :, 100:140, 200:240], resized_mean=resized.mean((2, 3)))
    shapes = {name: value.shape for name, value in net.state_dict().items() if "num_batches" not in name}
    keys = "".join(f"{name}\t{'x'.join(map(str, shape))}\n" for name, shape in shapes.items())
    return found | dict(images_uint8=images), keys


def metrics():
    """The arrays, and the sizes to which Frechet distances are relative."""
    found, scales = {}, {}
    for case, n, m, dim in (("well", 600, 500, 64), ("singular", 40, 50, 64), ("identical", 300, 300, 32)):
        u = lambda name, rows: uniform(f"metrics.{case}.{name}", rows, dim).double()
        a = (u("a", n) @ (torch.eye(dim) + 0.3 * u("mix", dim))).float()
        b = a if case == "identical" else (u("b", m) @ (torch.eye(dim) - 0.2 * u("mix", dim)) + 0.1).float()
        (mu, sigma), (nu, tau) = statistics(a), statistics(b)
        traces, root = np.trace(sigma) + np.trace(tau), scipy.linalg.sqrtm(sigma @ tau)
        eig = fid_statistics_to_metric(dict(mu=mu, sigma=sigma), dict(mu=nu, sigma=tau), verbose=False)
        kid = kid_features_to_metric(a[:40], b[:40], kid_subsets=1, kid_subset_size=40, verbose=False)
        prc = prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=10000, verbose=False)
        score = list(isc_features_to_metric(4 * a, splits=10, shuffle=False).values())
        values = dict(fid_sqrtm=np.square(mu - nu).sum() + traces - 2 * np.trace(root).real)
        values |= dict(fid_eig=eig["frechet_inception_distance"])
        values |= dict(mmd2_poly3_first40=kid["kernel_inception_distance_mean"])
        values |= dict(precision_k3=prc["precision"], recall_k3=prc["recall"])
        values |= dict(is_10splits_unshuffled_of_4x_generated=score)
        found |= {f"{case}/generated": a, f"{case}/reference": b}
        found |= {f"{case}/{name}": np.atleast_1d(value) for name, value in values.items()}
        scales |= {f"{case}/fid_sqrtm": traces, f"{case}/fid_eig": traces}
    return found, scales


# ---------------------------------------------------------------------------- comparison


def error(found, stored, scale=None):
    if found.shape != stored.shape or found.dtype != stored.dtype or not np.isfinite(found).all():
        return np.inf
    found, stored = found.astype(np.float64), stored.astype(np.float64)
    return np.abs(found - stored).max() / (scale or max(np.abs(stored).max(), 1e-30))


class Comparison:
    def __init__(self, out):
        self.out, self.good = out, True
        print(f"{'file':18} {'arrays':48} {'number':>6} {'error':>8} {'allowed':>8}")

    def line(self, file, what, errors):
        allowed = next(bound for pattern, bound in TOLERANCES if re.search(pattern, f"{file} {what}"))
        worst = max(errors)
        self.good &= worst <= allowed
        note = "" if worst <= allowed else "  DISAGREES"
        print(f"{file:18} {what:48} {len(errors):6} {worst:8.1e} {allowed:8.1e}{note}", flush=True)

    def arrays(self, file, found, scales=None, given=None):
        found = {name: np.asarray(value) for name, value in found.items()}
        with np.load(STORED / file) as npz:
            stored, groups = dict(npz), {}
        for name in (stored | found).keys() - {given}:
            both = name in stored and name in found
            worst = error(found[name], stored[name], (scales or {}).get(name)) if both else np.inf
            group = re.sub(r"^(act_rms|grad_norm|grad)/.*|(/draw)\..*", r"\1\2", name)
            groups.setdefault(group, []).append(worst)
        for group, errors in sorted(groups.items()):
            self.line(file, group, errors)
        if self.out:
            np.savez_compressed(self.out / file, **found)

    def values(self, file, found, read):
        """Of a file whose bytes may be others: a pickle holds addresses, an archive its name."""
        a, b = read(found), read((STORED / file).read_bytes())
        same = lambda x, y: torch.equal(x, y) if torch.is_tensor(x) and torch.is_tensor(y) else x == y
        good = [name in a and name in b and same(a[name], b[name]) for name in a | b]
        self.line(file, "values", [0.0 if same else np.inf for same in good])
        if self.out:
            (self.out / file).write_bytes(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("edm", metavar="EDM_DIR", help="a clone of NVlabs/edm")
    parser.add_argument("--write", type=pathlib.Path, metavar="DIR", help="where to put what was made")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    edm = edm_code(options.edm)
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
    compare = Comparison(options.write)
    # The only array that is taken from a file: nobody knows how it was drawn.
    images = np.load(STORED / "edm-augment.npz")["images"]
    features, keys = inception(((images[:4] + 1) * 127.5).round().astype(np.uint8))

    compare.arrays("inception.npz", features)
    compare.values("inception-keys.txt", keys.encode(), lambda file: dict(enumerate(file.splitlines())))
    compare.arrays("metrics.npz", *metrics())
    compare.arrays("edm-tiny.npz", unet(edm, TINY, [0.002, 0.5, 2.5, 80.0]))
    compare.values("edm-tiny.pkl", snapshot(edm), lambda file: leaves(Reader(io.BytesIO(file)).load()))
    compare.values("edm-tiny-state.pth", state(edm), lambda file: torch.load(io.BytesIO(file)))
    compare.arrays("edm-cifar10.npz", unet(edm, CIFAR10, [0.02, 2.5, 40.0]))
    compare.arrays("edm-sampler.npz", sampler(edm))
    compare.arrays("edm-augment.npz", augmented(edm, images), given="images")
    steps = {name: five_steps(edm, name) for name in ("dikl", "dijs", "dirm", "vsd")}
    compare.arrays("train-steps.npz", {f"{a}/{b}": value for a in steps for b, value in steps[a].items()})
    print("agree" if compare.good else "DISAGREE")
    return 0 if compare.good else 1


if __name__ == "__main__":
    sys.exit(main())
