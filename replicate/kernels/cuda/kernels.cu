// Everything that is neither a convolution nor a matrix product, for tensors of float32
// or bfloat16 in C order. Arithmetic and parameters are float32. No atomics: every sum
// has one order, so the same input gives the same bits.
//
// Compiled at run time without any header. Blocks are one-dimensional and have a power
// of two of at most MOST threads.

typedef unsigned int u32;
typedef unsigned long long u64;

#define MOST 256
#define EACH(i, n) \
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (u64)gridDim.x * blockDim.x)

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

// Mean and 1 / standard deviation of n values.
template <typename T>
__device__ inline void statistics(const T* x, u64 n, float eps, float* shared, float& mean, float& rstd) {
    float sum = 0.0f;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) sum += load(x, i);
    mean = block_sum(sum, shared) / (float)n;
    float squares = 0.0f;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) {
        float d = load(x, i) - mean;
        squares += d * d;
    }
    rstd = 1.0f / sqrtf(block_sum(squares, shared) / (float)n + eps);
}

// A block for each group of each image.
template <typename T>
__device__ inline void group_norm(const T* x, const float* gamma, const float* beta, T* y, u32 channels,
                                  u32 groups, u32 pixels, float eps, u32 silu, float* shared) {
    u32 per_group = channels / groups, first = blockIdx.x % groups * per_group;
    u64 n = (u64)per_group * pixels;
    x += blockIdx.x * n;
    y += blockIdx.x * n;
    float mean, rstd;
    statistics(x, n, eps, shared, mean, rstd);
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) {
        u32 c = first + (u32)(i / pixels);
        float u = (load(x, i) - mean) * rstd * gamma[c] + beta[c];
        store(y, i, silu ? u * sigmoid(u) : u);
    }
}

// dx, and of every channel of every image sum du and sum du xhat, where
// u = gamma xhat + beta and du = dy f'(u): sums (2, images, channels).
template <typename T>
__device__ inline void group_norm_backward(const T* x, const float* gamma, const float* beta, const T* dy,
                                           T* dx, float* sums, u32 images, u32 channels, u32 groups,
                                           u32 pixels, float eps, u32 silu, float* shared) {
    u32 per_group = channels / groups, first = blockIdx.x % groups * per_group;
    u64 n = (u64)per_group * pixels, row = (u64)(blockIdx.x / groups) * channels + first;
    x += blockIdx.x * n;
    dy += blockIdx.x * n;
    dx += blockIdx.x * n;
    float mean, rstd;
    statistics(x, n, eps, shared, mean, rstd);
    float mean_du = 0.0f, mean_du_xhat = 0.0f;
    for (u32 c = 0; c < per_group; c++) {
        float g = gamma[first + c], b = beta[first + c], du_sum = 0.0f, du_xhat_sum = 0.0f;
        for (u32 p = threadIdx.x; p < pixels; p += blockDim.x) {
            u64 i = (u64)c * pixels + p;
            float xhat = (load(x, i) - mean) * rstd, du = load(dy, i);
            if (silu) du *= silu_slope(g * xhat + b);
            du_sum += du;
            du_xhat_sum += du * xhat;
        }
        du_sum = block_sum(du_sum, shared);
        du_xhat_sum = block_sum(du_xhat_sum, shared);
        if (threadIdx.x == 0) {
            sums[row + c] = du_sum;
            sums[(u64)images * channels + row + c] = du_xhat_sum;
        }
        mean_du += g * du_sum;
        mean_du_xhat += g * du_xhat_sum;
    }
    mean_du /= (float)n;
    mean_du_xhat /= (float)n;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) {
        u32 c = first + (u32)(i / pixels);
        float xhat = (load(x, i) - mean) * rstd, du = load(dy, i);
        if (silu) du *= silu_slope(gamma[c] * xhat + beta[c]);
        store(dx, i, rstd * (gamma[c] * du - mean_du - xhat * mean_du_xhat));
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

// Adds bias (channels), or (images, channels), to y (images, channels, pixels).
template <typename T>
__device__ inline void add_bias(T* y, const float* bias, u64 n, u32 channels, u32 pixels, u32 per_image) {
    EACH(i, n) {
        u64 row = i / pixels;
        store(y, i, load(y, i) + bias[per_image ? row : row % channels]);
    }
}

// The sum of a row of n for each block.
template <typename T>
__device__ inline void row_sums(const T* x, float* sums, u32 n, float* shared) {
    x += (u64)blockIdx.x * n;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += load(x, i);
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// y (planes, h, w) = weight times the sums of 2 x 2 pixels of x (planes, 2h, 2w); n = planes h w.
template <typename T>
__device__ inline void down2(const T* x, T* y, u64 n, u32 w, float weight) {
    EACH(i, n) {
        u64 at = 4 * (i / w) * w + 2 * (i % w);
        float top = load(x, at) + load(x, at + 1), bottom = load(x, at + 2 * w) + load(x, at + 2 * w + 1);
        store(y, i, weight * (top + bottom));
    }
}

// y (planes, 2h, 2w) = weight times each pixel of x (planes, h, w) four times; n = planes 4 h w.
template <typename T>
__device__ inline void up2(const T* x, T* y, u64 n, u32 w, float weight) {
    EACH(i, n) {
        u64 row = i / (2 * w), column = i % (2 * w);
        store(y, i, weight * load(x, row / 2 * w + column / 2));
    }
}

// y = a x for each image, of `each` values; a has one value for all unless `many`.
template <typename T>
__device__ inline void scale_images(const T* x, const float* a, T* y, u64 n, u64 each, u32 many) {
    EACH(i, n) store(y, i, a[many ? i / each : 0] * load(x, i));
}

template <typename T>
__device__ inline void mix(const T* x, const float* a, u32 many_a, const T* z, const float* c, u32 many_c, T* y,
                           u64 n, u64 each) {
    EACH(i, n) {
        u64 image = i / each;
        store(y, i, a[many_a ? image : 0] * load(x, i) + c[many_c ? image : 0] * load(z, i));
    }
}

template <typename T>
__device__ inline void silu(const T* x, T* y, u64 n) {
    EACH(i, n) {
        float v = load(x, i);
        store(y, i, v * sigmoid(v));
    }
}

template <typename T>
__device__ inline void silu_backward(const T* x, const T* dy, T* dx, u64 n) {
    EACH(i, n) store(dx, i, load(dy, i) * silu_slope(load(x, i)));
}

#define KERNELS(T, suffix)                                                                                      \
    extern "C" __global__ void group_norm_##suffix(const T* x, const float* gamma, const float* beta, T* y,     \
                                                   u32 channels, u32 groups, u32 pixels, float eps, u32 silu) { \
        __shared__ float shared[MOST];                                                                          \
        group_norm(x, gamma, beta, y, channels, groups, pixels, eps, silu, shared);                             \
    }                                                                                                           \
    extern "C" __global__ void group_norm_backward_##suffix(                                                    \
        const T* x, const float* gamma, const float* beta, const T* dy, T* dx, float* sums, u32 images,         \
        u32 channels, u32 groups, u32 pixels, float eps, u32 silu) {                                            \
        __shared__ float shared[MOST];                                                                          \
        group_norm_backward(x, gamma, beta, dy, dx, sums, images, channels, groups, pixels, eps, silu, shared); \
    }                                                                                                           \
    extern "C" __global__ void softmax_##suffix(T* s, u32 n, float scale) {                                     \
        __shared__ float shared[MOST];                                                                          \
        softmax(s, n, scale, shared);                                                                           \
    }                                                                                                           \
    extern "C" __global__ void softmax_backward_##suffix(const T* p, T* dp, u32 n, float scale) {               \
        __shared__ float shared[MOST];                                                                          \
        softmax_backward(p, dp, n, scale, shared);                                                              \
    }                                                                                                           \
    extern "C" __global__ void add_bias_##suffix(T* y, const float* bias, u64 n, u32 channels, u32 pixels,      \
                                                 u32 per_image) {                                               \
        add_bias(y, bias, n, channels, pixels, per_image);                                                      \
    }                                                                                                           \
    extern "C" __global__ void row_sums_##suffix(const T* x, float* sums, u32 n) {                              \
        __shared__ float shared[MOST];                                                                          \
        row_sums(x, sums, n, shared);                                                                           \
    }                                                                                                           \
    extern "C" __global__ void down2_##suffix(const T* x, T* y, u64 n, u32 w, float weight) {                   \
        down2(x, y, n, w, weight);                                                                              \
    }                                                                                                           \
    extern "C" __global__ void up2_##suffix(const T* x, T* y, u64 n, u32 w, float weight) {                     \
        up2(x, y, n, w, weight);                                                                                \
    }                                                                                                           \
    extern "C" __global__ void scale_images_##suffix(const T* x, const float* a, T* y, u64 n, u64 each,         \
                                                     u32 many) {                                                \
        scale_images(x, a, y, n, each, many);                                                                   \
    }                                                                                                           \
    extern "C" __global__ void mix_##suffix(const T* x, const float* a, u32 many_a, const T* z, const float* c, \
                                            u32 many_c, T* y, u64 n, u64 each) {                                \
        mix(x, a, many_a, z, c, many_c, y, n, each);                                                            \
    }                                                                                                           \
    extern "C" __global__ void silu_##suffix(const T* x, T* y, u64 n) { silu(x, y, n); }                        \
    extern "C" __global__ void silu_backward_##suffix(const T* x, const T* dy, T* dx, u64 n) {                  \
        silu_backward(x, dy, dx, n);                                                                            \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

// The sum of every column of x (rows, columns).
extern "C" __global__ void column_sums(const float* x, float* sums, u32 rows, u32 columns) {
    EACH(c, columns) {
        float sum = 0.0f;
        for (u32 r = 0; r < rows; r++) sum += x[(u64)r * columns + c];
        sums[c] = sum;
    }
}

// Adam on many tensors: a row of blocks for each. `table` has for each tensor the
// addresses of w, m, v and the gradient, and their length. `size` is lr / (1 - beta1^t),
// `correction` 1 / sqrt(1 - beta2^t).
extern "C" __global__ void adam(const u64* table, float beta1, float rest1, float beta2, float rest2, float eps,
                                float size, float correction) {
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

// The numbers 0 to n of one step of a stream, standard normal (Box and Muller 1958); n is
// a multiple of 4.
extern "C" __global__ void normals(float* out, u64 n, u32 k0, u32 k1, u64 step) {
    EACH(block, n / 4) {
        u32 c[4] = {(u32)block, (u32)(block >> 32), (u32)step, (u32)(step >> 32)};
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
