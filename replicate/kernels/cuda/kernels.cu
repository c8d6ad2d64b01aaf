// Everything that is neither a convolution nor a matrix product, for maps of float32 or
// bfloat16 with the channels last: (images, pixels, channels). Arithmetic and parameters
// are float32. No atomics: every sum has one order, so the same input gives the same bits.
//
// Compiled at run time without any header. Blocks are one-dimensional and have a power
// of two of at most MOST threads. Counts are below 2^31: division by 64-bit numbers would
// cost more than what the memory takes.

typedef unsigned int u32;
typedef unsigned long long u64;

#define restrict __restrict__
#define MOST 256
// Channels that a block of pixel_sums has.
#define LANE 32
#define EACH(i, n) \
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)

struct bf16 {
    unsigned short bits;
};

__device__ inline float load(const float* p, u64 i) { return p[i]; }
__device__ inline float load(const bf16* p, u64 i) { return __uint_as_float((u32)p[i].bits << 16); }
__device__ inline void store(float* p, u64 i, float v) { p[i] = v; }
// To the nearest, ties to even; a NaN stays one.
__device__ inline void store(bf16* p, u64 i, float v) {
    u32 u = __float_as_uint(v);
    p[i].bits = (unsigned short)(v != v ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

// The sum over the block, in every thread. `shared` is free again afterwards.
__device__ inline float block_sum(float v, float* shared) {
    shared[threadIdx.x] = v;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    float total = shared[0];
    __syncthreads();
    return total;
}

__device__ inline float block_max(float v, float* shared) {
    shared[threadIdx.x] = v;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    float most = shared[0];
    __syncthreads();
    return most;
}

// The part of a group norm that a block does: some whole groups of one image, side by
// side, so that what it reads of a pixel is one piece. Threads of a lane have a channel
// each, lanes share the pixels.
struct Tile {
    u32 image, first, width, per_group, channel, lane, lanes;

    __device__ inline Tile(u32 channels, u32 groups, u32 at_once) {
        u32 blocks = (groups + at_once - 1) / at_once, group = blockIdx.x % blocks * at_once;
        per_group = channels / groups;
        image = blockIdx.x / blocks;
        first = group * per_group;
        width = (groups - group < at_once ? groups - group : at_once) * per_group;
        channel = threadIdx.x % width;
        lane = threadIdx.x / width;
        lanes = blockDim.x / width;
    }

    // The place of this thread's channel in pixel 0.
    __device__ inline u64 start(u32 channels, u32 pixels) const {
        return (u64)image * pixels * channels + first + channel;
    }

    // The pixels of this thread begin here; those beyond the last lane have none.
    __device__ inline u32 from(u32 pixels) const { return lane < lanes ? lane : pixels; }

    // The sum of v over the lanes for each channel, in `shared` until the next barrier.
    __device__ inline void channel_sums(float v, float* shared) const {
        shared[threadIdx.x] = v;
        __syncthreads();
        if (lane == 0)
            for (u32 other = 1; other < lanes; other++) shared[channel] += shared[other * width + channel];
        __syncthreads();
    }

    // Of the channels' sums, times `weights` where there are some, that of this thread's group.
    __device__ inline float group_sum(const float* weights, const float* shared) const {
        float sum = 0.0f;
        for (u32 i = 0, c = channel / per_group * per_group; i < per_group; i++, c++)
            sum += weights ? weights[first + c] * shared[c] : shared[c];
        __syncthreads();
        return sum;
    }
};

// Mean and 1 / standard deviation of a thread's group.
template <typename T>
__device__ inline void statistics(const Tile& tile, const T* restrict x, u32 channels, u32 pixels, float eps,
                                  float* shared, float& mean, float& rstd) {
    float n = (float)tile.per_group * (float)pixels, sum = 0.0f, squares = 0.0f;
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) sum += load(x, (u64)p * channels);
    tile.channel_sums(sum, shared);
    mean = tile.group_sum(nullptr, shared) / n;
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        float d = load(x, (u64)p * channels) - mean;
        squares += d * d;
    }
    tile.channel_sums(squares, shared);
    rstd = 1.0f / sqrtf(tile.group_sum(nullptr, shared) / n + eps);
}

// Keeps mean and 1 / standard deviation of every group of every image.
template <typename T>
__device__ inline void group_norm(const T* restrict x, const float* restrict gamma, const float* restrict beta,
                                  T* restrict y, float* restrict kept, u32 channels, u32 groups, u32 pixels,
                                  u32 at_once, float eps, u32 silu, float* shared) {
    Tile tile(channels, groups, at_once);
    x += tile.start(channels, pixels);
    y += tile.start(channels, pixels);
    float mean, rstd, g = gamma[tile.first + tile.channel], b = beta[tile.first + tile.channel];
    statistics(tile, x, channels, pixels, eps, shared, mean, rstd);
    if (tile.lane == 0 && tile.channel % tile.per_group == 0) {
        u64 group = (u64)tile.image * groups + (tile.first + tile.channel) / tile.per_group;
        kept[2 * group] = mean;
        kept[2 * group + 1] = rstd;
    }
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        float u = (load(x, (u64)p * channels) - mean) * rstd * g + b;
        store(y, (u64)p * channels, silu ? u * sigmoid(u) : u);
    }
}

// dx, and of every channel of every image sum du and sum du xhat, where
// u = gamma xhat + beta and du = dy f'(u): sums (2, images, channels).
template <typename T>
__device__ inline void group_norm_backward(const T* restrict x, const float* restrict gamma,
                                           const float* restrict beta, const T* restrict dy,
                                           const float* restrict kept, T* restrict dx, float* restrict sums,
                                           u32 images, u32 channels, u32 groups, u32 pixels, u32 at_once,
                                           u32 silu, float* shared) {
    Tile tile(channels, groups, at_once);
    u64 start = tile.start(channels, pixels), row = (u64)tile.image * channels + tile.first + tile.channel;
    x += start;
    dy += start;
    dx += start;
    float g = gamma[tile.first + tile.channel], b = beta[tile.first + tile.channel];
    u64 group = (u64)tile.image * groups + (tile.first + tile.channel) / tile.per_group;
    float mean = kept[2 * group], rstd = kept[2 * group + 1], du_sum = 0.0f, du_xhat_sum = 0.0f;
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        float xhat = (load(x, (u64)p * channels) - mean) * rstd, du = load(dy, (u64)p * channels);
        if (silu) du *= silu_slope(g * xhat + b);
        du_sum += du;
        du_xhat_sum += du * xhat;
    }
    float n = (float)tile.per_group * (float)pixels;
    tile.channel_sums(du_sum, shared);
    if (tile.lane == 0) sums[row] = shared[tile.channel];
    float mean_du = tile.group_sum(gamma, shared) / n;
    tile.channel_sums(du_xhat_sum, shared);
    if (tile.lane == 0) sums[(u64)images * channels + row] = shared[tile.channel];
    float mean_du_xhat = tile.group_sum(gamma, shared) / n;
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        float xhat = (load(x, (u64)p * channels) - mean) * rstd, du = load(dy, (u64)p * channels);
        if (silu) du *= silu_slope(g * xhat + b);
        store(dx, (u64)p * channels, rstd * (g * du - mean_du - xhat * mean_du_xhat));
    }
}

// softmax(scale s) of a row of n for each block, in place.
template <typename T>
__device__ inline void softmax(T* s, u32 n, float scale, float* shared) {
    s += (u64)blockIdx.x * n;
    float most = -3.4e38f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, scale * load(s, i));
    most = block_max(most, shared);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += expf(scale * load(s, i) - most);
    sum = block_sum(sum, shared);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) store(s, i, expf(scale * load(s, i) - most) / sum);
}

// ds = scale p (dp - sum p dp), in place of dp.
template <typename T>
__device__ inline void softmax_backward(const T* p, T* dp, u32 n, float scale, float* shared) {
    p += (u64)blockIdx.x * n;
    dp += (u64)blockIdx.x * n;
    float dot = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) dot += load(p, i) * load(dp, i);
    dot = block_sum(dot, shared);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) store(dp, i, scale * load(p, i) * (load(dp, i) - dot));
}

// N rows, `step` apart, of what `finish` does; loaded together, since one would not keep
// the memory busy.
template <u32 N, typename T>
__device__ inline void finish_rows(T* y, const float* restrict bias, const T* restrict residual, u32 row,
                                   u32 step, u32 channels, u32 pixels, u32 per_image, float scale) {
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) {
        float v[N];
        for (u32 k = 0; k < N; k++) v[k] = load(y, (u64)(row + k * step) * channels + c);
        if (residual)
            for (u32 k = 0; k < N; k++) v[k] += load(residual, (u64)(row + k * step) * channels + c);
        if (bias)
            for (u32 k = 0; k < N; k++) v[k] += bias[(per_image ? (row + k * step) / pixels * channels : 0) + c];
        for (u32 k = 0; k < N; k++) store(y, (u64)(row + k * step) * channels + c, scale * v[k]);
    }
}

// y = scale (y + bias + residual), of which bias and residual may be null. y and residual
// are (rows, channels), a row a pixel of an image; bias (channels), or (images, channels).
template <typename T>
__device__ inline void finish(T* y, const float* restrict bias, const T* restrict residual, u32 rows,
                              u32 channels, u32 pixels, u32 per_image, float scale) {
    u32 row = blockIdx.x, step = gridDim.x;
    for (; row + 3 * step < rows; row += 4 * step)
        finish_rows<4>(y, bias, residual, row, step, channels, pixels, per_image, scale);
    for (; row < rows; row += step)
        finish_rows<1>(y, bias, residual, row, step, channels, pixels, per_image, scale);
}

// The sums over the pixels of x (images, pixels, channels): (images, channels). A block
// for each LANE channels of each image.
template <typename T>
__device__ inline void pixel_sums(const T* restrict x, float* restrict sums, u32 channels, u32 pixels,
                                  float* shared) {
    u32 blocks = (channels + LANE - 1) / LANE, image = blockIdx.x / blocks;
    u32 c = blockIdx.x % blocks * LANE + threadIdx.x % LANE;
    x += (u64)image * pixels * channels + c;
    float sum = 0.0f;
    if (c < channels)
        for (u32 p = threadIdx.x / LANE; p < pixels; p += blockDim.x / LANE) sum += load(x, (u64)p * channels);
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= LANE || c >= channels) return;
    for (u32 other = LANE; other < blockDim.x; other += LANE) sum += shared[other + threadIdx.x];
    sums[(u64)image * channels + c] = sum;
}

// Of weights (outputs, channels, taps) those that cuDNN takes: (outputs, taps, channels).
template <typename T>
__device__ inline void channels_last(const float* restrict w, T* restrict y, u32 n, u32 channels, u32 taps) {
    EACH(i, n) {
        u32 c = i % channels, rest = i / channels, tap = rest % taps, output = rest / taps;
        store(y, i, w[(output * channels + c) * taps + tap]);
    }
}

// And back.
template <typename T>
__device__ inline void channels_first(const T* restrict w, float* restrict y, u32 n, u32 channels, u32 taps) {
    EACH(i, n) {
        u32 tap = i % taps, rest = i / taps, c = rest % channels, output = rest / channels;
        y[i] = load(w, (output * taps + tap) * channels + c);
    }
}

// q, k and v, each (rows, channels), of qkv (rows, channels, 3); n = 3 rows channels.
template <typename T>
__device__ inline void split3(const T* restrict qkv, T* restrict parts, u32 n) {
    EACH(i, n) parts[i] = qkv[3 * (i % (n / 3)) + i / (n / 3)];
}

// And back.
template <typename T>
__device__ inline void join3(const T* restrict parts, T* restrict qkv, u32 n) {
    EACH(i, n) qkv[i] = parts[i % 3 * (n / 3) + i / 3];
}

// y (rows, w, channels) = weight times the sums of 2 x 2 pixels of x (2 rows, 2w, channels).
template <typename T>
__device__ inline void down2(const T* restrict x, T* restrict y, u32 n, u32 w, u32 channels, float weight) {
    EACH(i, n) {
        u32 pixel = i / channels, below = 2 * w * channels;
        u32 at = (pixel / w * 4 * w + pixel % w * 2) * channels + i % channels;
        float top = load(x, at) + load(x, at + channels);
        float bottom = load(x, at + below) + load(x, at + below + channels);
        store(y, i, weight * (top + bottom));
    }
}

// y (2 rows, 2w, channels) = weight times each pixel of x (rows, w, channels) four times.
template <typename T>
__device__ inline void up2(const T* restrict x, T* restrict y, u32 n, u32 w, u32 channels, float weight) {
    EACH(i, n) {
        u32 pixel = i / channels, row = pixel / (2 * w), column = pixel % (2 * w);
        store(y, i, weight * load(x, (row / 2 * w + column / 2) * channels + i % channels));
    }
}

// y = a x for each image, of `each` values; a has one value for all unless `many`.
template <typename T>
__device__ inline void scale_images(const T* restrict x, const float* restrict a, T* restrict y, u32 n,
                                    u32 each, u32 many) {
    EACH(i, n) store(y, i, a[many ? i / each : 0] * load(x, i));
}

template <typename T>
__device__ inline void mix(const T* restrict x, const float* restrict a, u32 many_a, const T* restrict z,
                           const float* restrict c, u32 many_c, T* restrict y, u32 n, u32 each) {
    EACH(i, n) {
        u32 image = i / each;
        store(y, i, a[many_a ? image : 0] * load(x, i) + c[many_c ? image : 0] * load(z, i));
    }
}

template <typename T>
__device__ inline void scaled(const T* restrict x, T* restrict y, u32 n, float scale) {
    EACH(i, n) store(y, i, scale * load(x, i));
}

template <typename T>
__device__ inline void silu(const T* restrict x, T* restrict y, u32 n) {
    EACH(i, n) {
        float v = load(x, i);
        store(y, i, v * sigmoid(v));
    }
}

template <typename T>
__device__ inline void silu_backward(const T* restrict x, const T* restrict dy, T* restrict dx, u32 n) {
    EACH(i, n) store(dx, i, load(dy, i) * silu_slope(load(x, i)));
}

#define KERNELS(T, suffix)                                                                                      \
    extern "C" __global__ void group_norm_##suffix(const T* restrict x, const float* restrict gamma,            \
                                                   const float* restrict beta, T* restrict y,                   \
                                                   float* restrict kept, u32 channels, u32 groups, u32 pixels,  \
                                                   u32 at_once, float eps, u32 silu) {                          \
        __shared__ float shared[MOST];                                                                          \
        group_norm(x, gamma, beta, y, kept, channels, groups, pixels, at_once, eps, silu, shared);              \
    }                                                                                                           \
    extern "C" __global__ void group_norm_backward_##suffix(const T* restrict x, const float* restrict gamma,   \
                                                            const float* restrict beta, const T* restrict dy,   \
                                                            const float* restrict kept, T* restrict dx,         \
                                                            float* restrict sums, u32 images, u32 channels,     \
                                                            u32 groups, u32 pixels, u32 at_once, u32 silu) {    \
        __shared__ float shared[MOST];                                                                          \
        group_norm_backward(x, gamma, beta, dy, kept, dx, sums, images, channels, groups, pixels, at_once, silu,\
                            shared);                                                                            \
    }                                                                                                           \
    extern "C" __global__ void softmax_##suffix(T* s, u32 n, float scale) {                                     \
        __shared__ float shared[MOST];                                                                          \
        softmax(s, n, scale, shared);                                                                           \
    }                                                                                                           \
    extern "C" __global__ void softmax_backward_##suffix(const T* p, T* dp, u32 n, float scale) {               \
        __shared__ float shared[MOST];                                                                          \
        softmax_backward(p, dp, n, scale, shared);                                                              \
    }                                                                                                           \
    extern "C" __global__ void finish_##suffix(T* restrict y, const float* restrict bias,                       \
                                               const T* restrict residual, u32 rows, u32 channels, u32 pixels,  \
                                               u32 per_image, float scale) {                                    \
        finish(y, bias, residual, rows, channels, pixels, per_image, scale);                                    \
    }                                                                                                           \
    extern "C" __global__ void pixel_sums_##suffix(const T* restrict x, float* restrict sums, u32 channels,     \
                                                   u32 pixels) {                                                \
        __shared__ float shared[MOST];                                                                          \
        pixel_sums(x, sums, channels, pixels, shared);                                                          \
    }                                                                                                           \
    extern "C" __global__ void channels_last_##suffix(const float* restrict w, T* restrict y, u32 n,            \
                                                      u32 channels, u32 taps) {                                 \
        channels_last(w, y, n, channels, taps);                                                                 \
    }                                                                                                           \
    extern "C" __global__ void channels_first_##suffix(const T* restrict w, float* restrict y, u32 n,           \
                                                       u32 channels, u32 taps) {                                \
        channels_first(w, y, n, channels, taps);                                                                \
    }                                                                                                           \
    extern "C" __global__ void split3_##suffix(const T* restrict qkv, T* restrict parts, u32 n) {               \
        split3(qkv, parts, n);                                                                                  \
    }                                                                                                           \
    extern "C" __global__ void join3_##suffix(const T* restrict parts, T* restrict qkv, u32 n) {                \
        join3(parts, qkv, n);                                                                                   \
    }                                                                                                           \
    extern "C" __global__ void down2_##suffix(const T* restrict x, T* restrict y, u32 n, u32 w, u32 channels,   \
                                              float weight) {                                                   \
        down2(x, y, n, w, channels, weight);                                                                    \
    }                                                                                                           \
    extern "C" __global__ void up2_##suffix(const T* restrict x, T* restrict y, u32 n, u32 w, u32 channels,     \
                                            float weight) {                                                     \
        up2(x, y, n, w, channels, weight);                                                                      \
    }                                                                                                           \
    extern "C" __global__ void scale_images_##suffix(const T* restrict x, const float* restrict a,              \
                                                     T* restrict y, u32 n, u32 each, u32 many) {                \
        scale_images(x, a, y, n, each, many);                                                                   \
    }                                                                                                           \
    extern "C" __global__ void mix_##suffix(const T* restrict x, const float* restrict a, u32 many_a,           \
                                            const T* restrict z, const float* restrict c, u32 many_c,           \
                                            T* restrict y, u32 n, u32 each) {                                   \
        mix(x, a, many_a, z, c, many_c, y, n, each);                                                            \
    }                                                                                                           \
    extern "C" __global__ void scaled_##suffix(const T* restrict x, T* restrict y, u32 n, float scale) {        \
        scaled(x, y, n, scale);                                                                                 \
    }                                                                                                           \
    extern "C" __global__ void silu_##suffix(const T* restrict x, T* restrict y, u32 n) { silu(x, y, n); }      \
    extern "C" __global__ void silu_backward_##suffix(const T* restrict x, const T* restrict dy,                \
                                                      T* restrict dx, u32 n) {                                  \
        silu_backward(x, dy, dx, n);                                                                            \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

// The sum of every column of each part of x (parts, rows, columns): n = parts columns.
extern "C" __global__ void column_sums(const float* restrict x, float* restrict sums, u32 n, u32 rows,
                                       u32 columns) {
    EACH(i, n) {
        const float* from = x + (u64)(i / columns) * rows * columns + i % columns;
        float sum = 0.0f;
        for (u32 r = 0; r < rows; r++) sum += from[(u64)r * columns];
        sums[i] = sum;
    }
}

// Adam on many tensors: a row of blocks for each. `table` has for each tensor the
// addresses of w, m, v and the gradient, and their length. `size` is lr / (1 - beta1^t),
// `correction` 1 / sqrt(1 - beta2^t).
extern "C" __global__ void adam(const u64* table, float beta1, float rest1, float beta2, float rest2,
                                float eps, float size, float correction) {
    const u64* tensor = table + 5 * (u64)blockIdx.y;
    float *w = (float*)tensor[0], *m = (float*)tensor[1], *v = (float*)tensor[2];
    const float* g = (const float*)tensor[3];
    EACH(i, tensor[4]) {
        float first = beta1 * m[i] + rest1 * g[i], second = beta2 * v[i] + rest2 * g[i] * g[i];
        m[i] = first;
        v[i] = second;
        w[i] -= first / (sqrtf(second) * correction + eps) * size;
    }
}

// average = beta average + rest w; `table` has for each tensor the addresses of the
// average and of w, and their length.
extern "C" __global__ void average(const u64* table, float beta, float rest) {
    const u64* tensor = table + 3 * (u64)blockIdx.y;
    float* e = (float*)tensor[0];
    const float* w = (const float*)tensor[1];
    EACH(i, tensor[2]) e[i] = beta * e[i] + rest * w[i];
}

// Philox4x32-10 (Salmon et al. 2011), as the host has it.
__device__ inline void philox(u32 c[4], u32 k0, u32 k1) {
    for (int round = 0; round < 10; round++) {
        if (round > 0) {
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        u64 p0 = (u64)0xD2511F53u * c[0], p1 = (u64)0xCD9E8D57u * c[2];
        u32 c1 = c[1], c3 = c[3];
        c[0] = (u32)(p1 >> 32) ^ c1 ^ k0;
        c[1] = (u32)p1;
        c[2] = (u32)(p0 >> 32) ^ c3 ^ k1;
        c[3] = (u32)p0;
    }
}

// n numbers of one step of a stream, after `before` fours, standard normal (Box and
// Muller 1958); n is a multiple of 4.
extern "C" __global__ void normals(float* restrict out, u32 n, u64 before, u32 k0, u32 k1, u64 step) {
    EACH(block, n / 4) {
        u64 at = before + block;
        u32 c[4] = {(u32)at, (u32)(at >> 32), (u32)step, (u32)(step >> 32)};
        philox(c, k0, k1);
        for (int pair = 0; pair < 2; pair++) {
            float u = (float)((c[2 * pair] >> 8) + 1u) * (1.0f / 16777216.0f);
            float angle = (float)(c[2 * pair + 1] >> 8) * (6.2831855f / 16777216.0f);
            float radius = sqrtf(-2.0f * logf(u)), sine, cosine;
            sincosf(angle, &sine, &cosine);
            out[4 * block + 2 * pair] = radius * cosine;
            out[4 * block + 2 * pair + 1] = radius * sine;
        }
    }
}

// EDM's augmentation, of planes (images, channels, size, size). `table` has the filter's
// taps, then a row for each image: mirrored left to right, top to bottom, whether pixels
// move, and from a pixel to where it comes from a matrix about the centre and a shift.
#define TAPS 12

struct Row {
    const float *taps, *row;
    u32 size;

    __device__ inline Row(const float* table, u32 plane, u32 channels, u32 size)
        : taps(table), row(table + TAPS + 9 * (plane / channels)), size(size) {}

    __device__ inline bool moves() const { return row[2] != 0.0f; }

    // The plane's pixel at (x, y) after mirroring.
    __device__ inline float pixel(const float* plane, u32 x, u32 y) const {
        if (row[0] != 0.0f) x = size - 1 - x;
        if (row[1] != 0.0f) y = size - 1 - y;
        return plane[y * size + x];
    }

    // Of a plane with size - 1 more pixels on every side: what is reflected there.
    __device__ inline u32 inside(u32 i) const {
        u32 margin = size - 1;
        return i < margin ? margin - i : i < margin + size ? i - margin : 3 * margin - i;
    }
};

// Each plane reflected outwards, at twice the resolution.
extern "C" __global__ void enlarged(const float* restrict table, const float* restrict planes,
                                    float* restrict fine, u32 n, u32 channels, u32 size) {
    u32 padded = 3 * size - 2, side = 2 * padded;
    EACH(i, n) {
        u32 column = i % side, line = i / side % side, plane = i / side / side;
        Row row(table, plane, channels, size);
        float sum = 0.0f;
        if (row.moves())
            for (u32 l = 0; l < TAPS / 2; l++) {
                u32 x = column / 2 + column % 2 + l - TAPS / 4;
                if (x >= padded) continue;
                float along = 0.0f;
                for (u32 k = 0; k < TAPS / 2; k++) {
                    u32 y = line / 2 + line % 2 + k - TAPS / 4;
                    if (y >= padded) continue;
                    float value = row.pixel(planes + (u64)plane * size * size, row.inside(x), row.inside(y));
                    along += row.taps[TAPS - 1 - 2 * k - line % 2] * value;
                }
                sum += row.taps[TAPS - 1 - 2 * l - column % 2] * along;
            }
        fine[i] = sum;
    }
}

// Those at twice the resolution of the result and a filter's reach around it; 0 beyond.
extern "C" __global__ void sampled(const float* restrict table, const float* restrict fine,
                                   float* restrict samples, u32 n, u32 channels, u32 size) {
    u32 reach = 2 * (size - 1) + TAPS;
    int side = 2 * (3 * (int)size - 2);
    float centre = 0.5f * (float)(size - 1), margin = (float)(size - 1);
    EACH(i, n) {
        u32 column = i % reach, line = i / reach % reach, plane = i / reach / reach;
        Row row(table, plane, channels, size);
        if (!row.moves()) continue;
        const float *m = row.row + 3, *from = fine + (u64)plane * side * side;
        float x = 0.5f * (float)column - 2.5f - m[4] - centre, y = 0.5f * (float)line - 2.5f - m[5] - centre;
        float at_x = 2.0f * (centre + m[0] * x + m[1] * y + margin);
        float at_y = 2.0f * (centre + m[2] * x + m[3] * y + margin);
        float left = floorf(at_x), top = floorf(at_y), columns[2];
        for (int c = 0; c < 2; c++) {
            float values[2];
            for (int r = 0; r < 2; r++) {
                // As floats: what lies far outside has no number.
                float px = left + (float)c, py = top + (float)r;
                bool in = px >= 0.0f && py >= 0.0f && px < (float)side && py < (float)side;
                values[r] = in ? from[(int)py * side + (int)px] : 0.0f;
            }
            columns[c] = values[0] + (at_y - top) * (values[1] - values[0]);
        }
        samples[i] = columns[0] + (at_x - left) * (columns[1] - columns[0]);
    }
}

// Brought down again; a plane whose pixels do not move is mirrored only.
extern "C" __global__ void reduced(const float* restrict table, const float* restrict planes,
                                   const float* restrict samples, float* restrict out, u32 n, u32 channels,
                                   u32 size) {
    u32 reach = 2 * (size - 1) + TAPS;
    EACH(i, n) {
        u32 x = i % size, y = i / size % size, plane = i / size / size;
        Row row(table, plane, channels, size);
        if (!row.moves()) {
            out[i] = row.pixel(planes + (u64)plane * size * size, x, y);
            continue;
        }
        const float* from = samples + (u64)plane * reach * reach + 2 * y * reach + 2 * x;
        float sum = 0.0f;
        for (u32 l = 0; l < TAPS; l++) {
            float along = 0.0f;
            for (u32 k = 0; k < TAPS; k++) along += row.taps[k] * from[k * reach + l];
            sum += row.taps[l] * along;
        }
        out[i] = sum;
    }
}
