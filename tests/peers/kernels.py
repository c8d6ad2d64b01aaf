"""The kernels of `replicate/kernels/cuda/kernels.cu`, run by threads of the CPU and
compared with PyTorch: what can be known of them without a GPU. It says nothing of the
calls from Rust, of cuDNN and cuBLAS, or of speed.

    python3 tests/peers/kernels.py        needs g++ (C++20), NumPy and PyTorch
"""

import ctypes
import itertools
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

SOURCE = pathlib.Path(__file__).parents[2] / "replicate/kernels/cuda/kernels.cu"
# A block's threads are threads; blocks follow each other, so that what a block shares
# can be static.
HOST = """
#include <barrier>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
struct Index { unsigned x = 0, y = 0, z = 0; };
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static std::barrier<>* barrier;
static void __syncthreads() { barrier->arrive_and_wait(); }
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
#define __device__
#define __global__
#define __shared__ static
#include KERNELS_SOURCE
static void launch(const unsigned* shape, std::function<void()> kernel) {
    gridDim = {shape[0], shape[1], 1};
    blockDim = {shape[2], 1, 1};
    std::barrier<> all(shape[2]);
    barrier = &all;
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < shape[2]; i++) threads.emplace_back([&, i] {
        threadIdx = {i, 0, 0};
        for (unsigned y = 0; y < gridDim.y; y++) for (unsigned x = 0; x < gridDim.x; x++) {
            if (i == 0) blockIdx = {x, y, 0};
            all.arrive_and_wait();
            kernel();
            all.arrive_and_wait();
        }
    });
    for (auto& thread : threads) thread.join();
}
"""
NAN = float("nan")
TYPES = {"u32": ctypes.c_uint, "u64": ctypes.c_ulonglong, "float": ctypes.c_float}


class Kernels:
    """Each kernel under its name: `run(name, (blocks, rows of blocks, threads), ...)`."""

    def __init__(self, folder):
        found = subprocess.run(["g++", "-E", "-P", "-x", "c++", SOURCE], check=True, capture_output=True, text=True)
        self.signatures, self.called, wrappers = {}, set(), ""
        for name, parameters in re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', found.stdout):
            parameters = [re.match(r"(.*?)(\w+)$", p.strip(), re.S).groups() for p in parameters.split(",")]
            self.signatures[name] = [TYPES.get(kind.strip(), ctypes.c_void_p) for kind, _ in parameters]
            declared = ", ".join(f"{kind} {of}" for kind, of in parameters)
            passed = ", ".join(of for _, of in parameters)
            wrappers += (
                f'extern "C" void host_{name}(const unsigned* shape_of_launch, {declared}) '
                f"{{ launch(shape_of_launch, [=] {{ {name}({passed}); }}); }}\n"
            )
        (folder / "host.cpp").write_text(HOST + wrappers)
        library = folder / "kernels.so"
        define = f'-DKERNELS_SOURCE="{SOURCE}"'
        command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", define, "-o", library]
        subprocess.run([*command, folder / "host.cpp"], check=True)
        self.library = ctypes.CDLL(str(library))

    def run(self, name, size, *arguments):
        self.called.add(name)
        kinds = self.signatures[name]
        assert len(kinds) == len(arguments), f"{name} has {len(kinds)} parameters"
        values = [
            kind(value.data_ptr() if isinstance(value, torch.Tensor) else value)
            for kind, value in zip(kinds, arguments)
        ]
        getattr(self.library, f"host_{name}")((ctypes.c_uint * 3)(*size), *values)


def blank(like):
    """What a kernel has to write all of."""
    return torch.full_like(like, NAN)


def rows(count, n):
    return count, 1, min(256, max(32, 1 << (n - 1).bit_length()))


def elements(n):
    return max(1, min(65_536, -(-n // 256))), 1, 256


class Checks:
    def __init__(self):
        self.failed = 0

    def say(self, good, what):
        self.failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {what}")

    def same(self, name, found, expected):
        self.say(torch.equal(found, expected), f"{name}: the same bits")

    def within(self, name, found, expected, most):
        worst = (found.double() - expected).abs().max().item()
        self.say(worst <= most, f"{name}: {worst:.1e} of {most:.0e} at the worst number")

    def close(self, name, found, expected, tolerance):
        found, expected = found.double(), expected.double()
        error = ((found - expected).norm() / expected.norm()).item()
        self.say(error <= tolerance, f"{name}: {error:.1e} of {tolerance:.0e}")


def by_type(kernels, check, dtype, suffix):
    """Everything that is made for both types; the reference is float32."""
    near = 2e-6 if dtype == torch.float32 else 6e-3
    run = lambda name, *rest: kernels.run(f"{name}_{suffix}", *rest)
    images, channels, groups = 3, 12, 3
    for silu, (h, w) in itertools.product((0, 1), ((2, 2), (6, 10), (16, 16))):
        x, dy = ((2 * torch.randn(images, channels, h, w) + 1).to(dtype) for _ in range(2))
        gamma, beta = (torch.randn(channels, requires_grad=True) for _ in range(2))
        y, dx, sums = blank(x), blank(x), torch.full((2, images, channels), NAN)
        size, told = rows(images * groups, channels // groups * h * w), (channels, groups, h * w, 1e-6, silu)
        run("group_norm", size, x, gamma, beta, y, *told)
        run("group_norm_backward", size, x, gamma, beta, dy, dx, sums, images, *told)
        totals = torch.full((2, channels), NAN)
        for part in (0, 1):
            kernels.run("column_sums", elements(channels), sums[part], totals[part], images, channels)
        exact = x.float().requires_grad_()
        expected = F.group_norm(exact, groups, gamma, beta, 1e-6)
        expected = F.silu(expected) if silu else expected
        expected.backward(dy.float())
        name = f"{suffix} group norm{' and SiLU' if silu else ''} {h}x{w}"
        check.close(name, y, expected.detach(), near)
        check.close(f"{name}, dx", dx, exact.grad, near)
        check.close(f"{name}, dbeta", totals[0], beta.grad, 2e-6)
        check.close(f"{name}, dgamma", totals[1], gamma.grad, 2e-6)
    for n in (4, 36, 256, 300):
        scores, scale = (5 * torch.randn(7, n)).to(dtype), 0.3
        p = scores.clone()
        run("softmax", rows(7, n), p, n, scale)
        check.close(f"{suffix} softmax of {n}", p, torch.softmax(scale * scores.float(), 1), near)
        dp = torch.randn(7, n).to(dtype)
        ds, dot = dp.clone(), (p.float() * dp.float()).sum(1, keepdim=True)
        run("softmax_backward", rows(7, n), p, ds, n, scale)
        expected = scale * p.float() * (dp.float() - dot)
        check.close(f"{suffix} softmax of {n}, backward", ds, expected, near)
    images, channels, h, w = 3, 5, 4, 6
    x, z = (torch.randn(images, channels, h, w).to(dtype) for _ in range(2))
    n = x.numel()
    for per_image in (0, 1):
        bias, y = torch.randn(images if per_image else 1, channels), x.clone()
        run("add_bias", elements(n), y, bias, n, channels, h * w, per_image)
        check.close(f"{suffix} bias {per_image}", y, x.float() + bias[:, :, None, None], near)
    sums = torch.full((images, channels), NAN)
    run("row_sums", rows(images * channels, h * w), x, sums, h * w)
    check.close(f"{suffix} row sums", sums, x.float().sum((2, 3)), 2e-6)
    y = torch.full((images, channels, h // 2, w // 2), NAN, dtype=dtype)
    run("down2", elements(y.numel()), x, y, y.numel(), w // 2, 0.25)
    check.close(f"{suffix} halving", y, F.avg_pool2d(x.float(), 2), near)
    y = torch.full((images, channels, 2 * h, 2 * w), NAN, dtype=dtype)
    run("up2", elements(y.numel()), x, y, y.numel(), w, 1.0)
    check.close(f"{suffix} doubling", y, F.interpolate(x.float(), scale_factor=2), near)
    for many in itertools.product((0, 1), (0, 1)):
        a, c = (torch.randn(images if m else 1) for m in many)
        # Half way between two bfloat16 numbers.
        a[0], x[0, 0, 0, 0] = 1 + 2**-8, 1.0
        y, scaled = blank(x), blank(x)
        run("mix", elements(n), x, a, many[0], z, c, many[1], y, n, n // images)
        run("scale_images", elements(n), x, a, scaled, n, n // images, many[0])
        ax, cz = (f[:, None, None, None] * t.float() for f, t in ((a, x), (c, z)))
        check.close(f"{suffix} mix {many}", y, ax + cz, near)
        # One product: what is stored is rounded as PyTorch rounds it.
        check.same(f"{suffix} scale {many[0]}", scaled, ax.to(dtype))
    exact = x.float().requires_grad_()
    F.silu(exact).backward(z.float())
    y, dx = blank(x), blank(x)
    run("silu", elements(n), x, y, n)
    run("silu_backward", elements(n), x, z, dx, n)
    check.close(f"{suffix} SiLU", y, F.silu(x.float()), near)
    check.close(f"{suffix} SiLU, backward", dx, exact.grad, near)


def table(*columns):
    """For each parameter the addresses of its tensors, and their length."""
    return torch.tensor([[t.data_ptr() for t in row] + [row[0].numel()] for row in zip(*columns)])


def updates(kernels, check):
    reference = [torch.nn.Parameter(torch.randn(n)) for n in (5, 1000, 3)]
    optimiser = torch.optim.Adam(reference, lr=1e-1, betas=(0.5, 0.999), eps=1e-8)
    weights = [p.detach().clone() for p in reference]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for t in range(1, 6):
        gradients = [torch.randn_like(w) for w in weights]
        for p, gradient in zip(reference, gradients):
            p.grad = gradient.clone()
        optimiser.step()
        addresses = table(weights, first, second, gradients)
        numbers = (0.5, 0.5, 0.999, 0.001, 1e-8, 1e-1 / (1 - 0.5**t), 1 / math.sqrt(1 - 0.999**t))
        kernels.run("adam", (2, len(weights), 256), addresses, *numbers)
    for i, w in enumerate(weights):
        check.close(f"Adam, five steps, parameter {i}", w, reference[i].detach(), 1e-6)
    averages = [torch.randn_like(w) for w in weights]
    expected = [0.7 * e + 0.3 * w for e, w in zip(averages, weights)]
    kernels.run("average", (2, len(weights), 256), table(averages, weights), 0.7, 0.3)
    for i, average in enumerate(averages):
        check.close(f"moving average, parameter {i}", average, expected[i], 1e-6)


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011)."""
    c, (k0, k1), low, half = [x.astype(np.uint64) for x in counter], key, np.uint64(2**32 - 1), np.uint64(32)
    for round in range(10):
        if round > 0:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> half) ^ c[1] ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c[3] ^ np.uint64(k1), p0 & low]
    return c


def noise(kernels, check):
    blocks, key, step = 250_000, (7, 2**31 + 9), 2**32 + 5
    out = torch.full((blocks, 4), NAN)
    kernels.run("normals", elements(blocks), out, 4 * blocks, *key, step)
    at = np.arange(blocks)
    c = philox([at, 0 * at, 0 * at + step % 2**32, 0 * at + step // 2**32], key)
    expected = np.empty((blocks, 4))
    for pair in (0, 1):
        top = [(c[2 * pair + i] >> np.uint64(8)).astype(float) for i in (0, 1)]
        radius, angle = np.sqrt(-2 * np.log((top[0] + 1) / 2**24)), 2 * np.pi * top[1] / 2**24
        expected[:, 2 * pair], expected[:, 2 * pair + 1] = radius * np.cos(angle), radius * np.sin(angle)
    check.within("normals", out, torch.from_numpy(expected), 4e-6)


def main():
    torch.manual_seed(0)
    check = Checks()
    with tempfile.TemporaryDirectory() as folder:
        kernels = Kernels(pathlib.Path(folder))
        for dtype, suffix in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
            by_type(kernels, check, dtype, suffix)
        updates(kernels, check)
        noise(kernels, check)
    never = sorted(set(kernels.signatures) - kernels.called)
    print(f"{len(kernels.called)} kernels, {check.failed} checks failed" + f", never called: {never}" * bool(never))
    sys.exit(1 if check.failed or never or not kernels.called else 0)


if __name__ == "__main__":
    main()
