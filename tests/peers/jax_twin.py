"""The U-Net of bench.py and its steps in JAX, for XLA's CPU compiler: channels last, each step in one jit."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import silu, softplus

# The default generator takes longer than the rest of a small step.
jax.config.update("jax_default_prng_impl", "rbg")
normal = jax.random.normal


def twin(net):
    """Returns the weights of one of bench.py's networks, its forward pass on images (n, height, width, 3),
    and the largest difference of that from PyTorch's, relative to the largest value."""
    names = {id(p): name for name, p in net.named_parameters()}
    weights = {}
    for name, p in net.named_parameters():
        value = jnp.asarray(p.detach().numpy())
        weights[name] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T

    def of(w, layer):
        return w[names[id(layer.weight)]], w[names[id(layer.bias)]]

    def linear(w, layer, x):
        weight, bias = of(w, layer)
        return x @ weight + bias

    def conv(w, layer, x):
        weight, bias = of(w, layer)
        if weight.shape[0] == 1:
            return x @ weight[0, 0] + bias
        return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias

    def norm(w, layer, x):
        weight, bias = of(w, layer)
        groups = x.reshape(len(x), -1, layer.num_groups, x.shape[-1] // layer.num_groups)
        centred = groups - groups.mean((1, 3), keepdims=True)
        scaled = centred * lax.rsqrt((centred**2).mean((1, 3), keepdims=True) + layer.eps)
        return scaled.reshape(x.shape) * weight + bias

    def sized(x, resample):
        n, height, width, c = x.shape
        if resample == "down":
            return x.reshape(n, height // 2, 2, width // 2, 2, c).mean((2, 4))
        if resample == "up":
            return x.repeat(2, axis=1).repeat(2, axis=2)
        return x

    def block(w, b, x, emb):
        h = conv(w, b.conv0, sized(silu(norm(w, b.norm0, x)), b.resample))
        h = h + linear(w, b.affine, emb)[:, None, None]
        h = conv(w, b.conv1, silu(norm(w, b.norm1, h)))
        x = sized(x, b.resample)
        x = (h + (conv(w, b.skip, x) if b.skip else x)) * 0.5**0.5
        if b.attend:
            n, height, width, c = x.shape
            q, k, v = jnp.moveaxis(conv(w, b.qkv, norm(w, b.norm2, x)).reshape(n, -1, c, 3), 3, 0)
            a = jax.nn.softmax(q @ k.transpose(0, 2, 1) / c**0.5) @ v
            x = (conv(w, b.proj, a.reshape(x.shape)) + x) * 0.5**0.5
        return x

    def forward(w, x, sigma):
        s, n = sigma[:, None, None, None], net.map0.in_features // 2
        angles = (jnp.log(sigma) / 4)[:, None] * (1 / 10000) ** (jnp.arange(n) / (n - 1))
        emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)
        emb = silu(linear(w, net.map1, silu(linear(w, net.map0, emb))))
        h = conv(w, net.first, x / jnp.sqrt(s**2 + 0.25))
        outputs = [h]
        for b in net.down:
            h = block(w, b, h, emb)
            outputs.append(h)
        if hasattr(net, "head"):
            return linear(w, net.head, silu(norm(w, net.out_norm, h)).mean((1, 2)))[:, 0]
        for b, take in zip(net.up, net.takes):
            h = block(w, b, jnp.concatenate([h, outputs.pop()], 3) if take else h, emb)
        h = conv(w, net.out, silu(norm(w, net.out_norm, h)))
        return x * 0.25 / (s**2 + 0.25) + h * s * 0.5 / jnp.sqrt(s**2 + 0.25)

    return weights, forward, difference(net, weights, forward)


def difference(net, weights, forward):
    import torch

    size = 32 if net.first.out_channels == 128 else 16
    x, sigma = torch.randn(2, 3, size, size), torch.tensor([0.3, 4.0])
    with torch.no_grad():
        expected = net(x, sigma).numpy()
    found = jax.jit(forward)(weights, jnp.asarray(x.numpy()).transpose(0, 2, 3, 1), jnp.asarray(sigma.numpy()))
    found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
    return float(abs(found - expected).max() / abs(expected).max())


def adam(betas):
    """Returns the first state and the update of Adam with PyTorch's defaults."""
    tree = jax.tree.map

    def start(w):
        return tree(jnp.zeros_like, w), tree(jnp.zeros_like, w), 0

    def update(w, gradient, state):
        m, v, t = state
        t = t + 1
        m = tree(lambda m, g: betas[0] * m + (1 - betas[0]) * g, m, gradient)
        v = tree(lambda v, g: betas[1] * v + (1 - betas[1]) * g * g, v, gradient)
        one, two = 1 - betas[0] ** t, 1 - betas[1] ** t
        w = tree(lambda w, m, v: w - 1e-4 * (m / one) / (jnp.sqrt(v / two) + 1e-8), w, m, v)
        return w, (m, v, t)

    return start, update


def averaged(ema, w):
    return jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, ema, w)


def levels(key):
    return jnp.exp(-1.2 + 1.2 * normal(key, (64,)))


def diffused(key, x, sigma):
    return x + sigma[:, None, None, None] * normal(key, x.shape)


def step(case, network):
    """Returns what one repetition of `case` calls, and the largest difference of its networks from
    PyTorch's; `network(half)` makes one of bench.py's networks."""
    keys = iter(jax.random.split(jax.random.key(0), 100_000))
    images = jax.random.uniform(next(keys), (1000, 16, 16, 3)) * 2 - 1
    w, forward, differs = twin(network(False))
    if case in ("forward", "backward"):
        x, sigma = normal(next(keys), (4, 32, 32, 3)), jnp.array([0.1, 0.5, 2.5, 20.0])
        if case == "backward":
            run = jax.jit(jax.grad(lambda w: (forward(w, x, sigma) ** 2).mean()))
        else:
            run = jax.jit(lambda w: forward(w, x, sigma))
        return lambda: jax.block_until_ready(run(w)), differs

    if case == "dsm":
        start, update = adam((0.9, 0.99))

        def iteration(state, key):
            w, optimiser, ema = state
            a, b, c = jax.random.split(key, 3)
            x, sigma = images[jax.random.randint(a, (64,), 0, 1000)], levels(b)
            weight = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2)[:, None, None, None]
            noisy = diffused(c, x, sigma)
            gradient = jax.grad(lambda w: (weight * (forward(w, noisy, sigma) - x) ** 2).mean())(w)
            w, optimiser = update(w, gradient, optimiser)
            return w, optimiser, averaged(ema, w)

        state = w, start(w), w
    else:
        start, update = adam((0.0, 0.99))
        c, judge, more = twin(network(True))
        differs = max(differs, more)
        fixed = jnp.full((64,), 2.5)

        def iteration(state, key):
            g, c, of_g, of_c, ema = state
            k = jax.random.split(key, 8)
            fake = forward(g, 2.5 * normal(k[0], (64, 16, 16, 3)), fixed)
            real, sigma = images[jax.random.randint(k[1], (64,), 0, 1000)], levels(k[2])
            both = jnp.concatenate([diffused(k[3], real, sigma), diffused(k[4], fake, sigma)])

            def critic_loss(c):
                logits = judge(c, both, jnp.tile(sigma, 2))
                return softplus(-logits[:64]).mean() + softplus(logits[64:]).mean()

            c, of_c = update(c, jax.grad(critic_loss)(c), of_c)
            sigma = levels(k[5])

            def generator_loss(g):
                made = forward(g, 2.5 * normal(k[6], (64, 16, 16, 3)), fixed)
                return (sigma**2 * -softplus(judge(c, diffused(k[7], made, sigma), sigma))).mean()

            g, of_g = update(g, jax.grad(generator_loss)(g), of_g)
            return g, c, of_g, of_c, averaged(ema, g)

        state = w, c, start(w), start(c), w
    run = jax.jit(iteration)

    def once():
        nonlocal state
        state = jax.block_until_ready(run(state, next(keys)))

    return once, differs
