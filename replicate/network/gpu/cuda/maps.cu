// All operations of a network that are neither a convolution nor a matrix product, for maps of
// `Value`, float32 or bfloat16, with the channels last: (images, pixels, channels). Arithmetic,
// parameters and rows of channels are float32. KERNEL(name) is the name with the type appended.
//
// A thread takes N channels at once, four if the sizes allow it, and several pixels: threads that
// read two bytes at a time could not saturate the memory.
#define BY_FOURS(fits, function, ...) ((fits) ? function<4>(__VA_ARGS__) : function<1>(__VA_ARGS__))

// True if four values can be read at once at the start of each map; a null pointer counts as true.
__device__ inline bool aligned(const Value* a, const Value* b, const Value* c = nullptr,
                               const Value* d = nullptr) {
    return ((u64)a | (u64)b | (u64)c | (u64)d) % (4 * sizeof(Value)) == 0;
}

// Computes mean and 1 / standard deviation of a thread's group in one pass over x + add. Each
// thread first computes its own mean and squares about it (Chan, Golub and LeVeque 1983).
template <u32 N>
__device__ inline void statistics(const Tile<N>& tile, const Value* restrict x, const float (&add)[N],
                                  u32 channels, u32 pixels, float eps, float* shared, float& mean,
                                  float& rstd) {
    float n = (float)tile.per_group * (float)pixels, count = 0.0f;
    float v[N], pivot[N] = {}, sum[N] = {}, squares[N] = {};
    u32 first = tile.from(pixels);
    if (first < pixels) load(pivot, x, (u64)first * channels);
#pragma unroll 4
    for (u32 p = first; p < pixels; p += tile.lanes) {
        load(v, x, (u64)p * channels);
        count += 1.0f;
        for (u32 k = 0; k < N; k++) {
            float d = v[k] - pivot[k];
            sum[k] += d;
            squares[k] += d * d;
        }
    }
    for (u32 k = 0; k < N; k++) v[k] = sum[k] + count * (pivot[k] + add[k]);
    tile.channel_sums(v, shared);
    mean = tile.group_sum(nullptr, shared) / n;
    for (u32 k = 0; k < N; k++) {
        float own = count > 0.0f ? sum[k] / count : 0.0f, off = pivot[k] + add[k] + own - mean;
        v[k] = squares[k] - sum[k] * own + count * off * off;
    }
    tile.channel_sums(v, shared);
    rstd = 1.0f / sqrtf(tile.group_sum(nullptr, shared) / n + eps);
}

// Group norm of x + shift. The shift, if not null, is (channels), or (images, channels). Keeps mean
// and 1 / standard deviation of every group of every image.
template <u32 N>
__device__ inline void group_norm(const Value* restrict x, const float* restrict shift, u32 per_image,
                                  const float* restrict gamma, const float* restrict beta, Value* restrict y,
                                  float* restrict kept, u32 channels, u32 groups, u32 pixels, u32 at_once,
                                  float eps, u32 silu, float* shared) {
    Tile<N> tile(channels, groups, at_once);
    x += tile.start(channels, pixels);
    y += tile.start(channels, pixels);
    float mean, rstd, add[N], v[N], scale[N], offset[N];
    tile.read(add, shift, channels, per_image);
    statistics(tile, x, add, channels, pixels, eps, shared, mean, rstd);
    if (tile.lane == 0 && tile.channel % tile.per_group == 0) {
        u64 group = tile.group(groups);
        kept[2 * group] = mean;
        kept[2 * group + 1] = rstd;
    }
    for (u32 k = 0; k < N; k++) {
        scale[k] = rstd * gamma[tile.first + tile.channel + k];
        offset[k] = beta[tile.first + tile.channel + k] + (add[k] - mean) * scale[k];
    }
#pragma unroll 4
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        load(v, x, (u64)p * channels);
        for (u32 k = 0; k < N; k++) {
            float u = v[k] * scale[k] + offset[k];
            v[k] = silu ? u * sigmoid(u) : u;
        }
        store(y, (u64)p * channels, v);
    }
}

extern "C" __global__ void KERNEL(group_norm)(const Value* restrict x, const float* restrict shift,
                                              u32 per_image, const float* restrict gamma,
                                              const float* restrict beta, Value* restrict y,
                                              float* restrict kept, u32 channels, u32 groups, u32 pixels,
                                              u32 at_once, float eps, u32 silu) {
    __shared__ float shared[4 * MOST];
    BY_FOURS(channels / groups % 4 == 0 && aligned(x, y), group_norm, x, shift, per_image, gamma, beta, y,
             kept, channels, groups, pixels, at_once, eps, silu, shared);
}

// With u = gamma xhat + beta and du = dy_scale dy f'(u): computes dx, adds plus_scale plus if plus
// is not null, and for every channel of every image the sums of du, of du xhat and, as the gradient
// of the shift, of dx alone: sums (3, images, channels).
template <u32 N>
__device__ inline void group_norm_backward(const Value* restrict x, const float* restrict shift,
                                           u32 per_image, const float* restrict gamma,
                                           const float* restrict beta, const Value* restrict dy,
                                           const float* restrict kept, const Value* restrict plus,
                                           Value* restrict dx, float* restrict sums, u32 images, u32 channels,
                                           u32 groups, u32 pixels, u32 at_once, u32 silu, float dy_scale,
                                           float plus_scale, float* shared) {
    Tile<N> tile(channels, groups, at_once);
    u64 start = tile.start(channels, pixels), row = tile.row(channels), group = tile.group(groups);
    x += start;
    dy += start;
    dx += start;
    float n = (float)tile.per_group * (float)pixels, mean = kept[2 * group], rstd = kept[2 * group + 1];
    float g[N], b[N], add[N], xhat[N], du[N], du_sum[N] = {}, du_xhat_sum[N] = {}, dx_sum[N] = {};
    tile.read(add, shift, channels, per_image);
    for (u32 k = 0; k < N; k++) {
        g[k] = gamma[tile.first + tile.channel + k];
        b[k] = beta[tile.first + tile.channel + k];
        add[k] -= mean;
    }
    // Reads xhat and du of a pixel.
    auto read = [&](u32 p) {
        load(xhat, x, (u64)p * channels);
        load(du, dy, (u64)p * channels);
        for (u32 k = 0; k < N; k++) {
            xhat[k] = (xhat[k] + add[k]) * rstd;
            du[k] *= dy_scale;
            if (silu) du[k] *= silu_slope(g[k] * xhat[k] + b[k]);
        }
    };
#pragma unroll 4
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        read(p);
        for (u32 k = 0; k < N; k++) {
            du_sum[k] += du[k];
            du_xhat_sum[k] += du[k] * xhat[k];
        }
    }
    tile.channel_sums(du_sum, shared);
    if (tile.lane == 0)
        for (u32 k = 0; k < N; k++) sums[row + k] = shared[tile.channel + k];
    float mean_du = tile.group_sum(gamma, shared) / n;
    tile.channel_sums(du_xhat_sum, shared);
    if (tile.lane == 0)
        for (u32 k = 0; k < N; k++) sums[(u64)images * channels + row + k] = shared[tile.channel + k];
    float mean_du_xhat = tile.group_sum(gamma, shared) / n;
#pragma unroll 4
    for (u32 p = tile.from(pixels); p < pixels; p += tile.lanes) {
        float d[N], more[N];
        read(p);
        for (u32 k = 0; k < N; k++) {
            d[k] = rstd * (g[k] * du[k] - mean_du - xhat[k] * mean_du_xhat);
            dx_sum[k] += d[k];
        }
        if (plus) {
            load(more, plus, start + (u64)p * channels);
            for (u32 k = 0; k < N; k++) d[k] += plus_scale * more[k];
        }
        store(dx, (u64)p * channels, d);
    }
    if (!shift) return;
    tile.channel_sums(dx_sum, shared);
    if (tile.lane == 0)
        for (u32 k = 0; k < N; k++) sums[(u64)2 * images * channels + row + k] = shared[tile.channel + k];
}

extern "C" __global__ void KERNEL(group_norm_backward)(const Value* restrict x, const float* restrict shift,
                                                       u32 per_image, const float* restrict gamma,
                                                       const float* restrict beta, const Value* restrict dy,
                                                       const float* restrict kept, const Value* restrict plus,
                                                       Value* restrict dx, float* restrict sums, u32 images,
                                                       u32 channels, u32 groups, u32 pixels, u32 at_once,
                                                       u32 silu, float dy_scale, float plus_scale) {
    __shared__ float shared[4 * MOST];
    BY_FOURS(channels / groups % 4 == 0 && aligned(x, dy, plus, dx), group_norm_backward, x, shift, per_image,
             gamma, beta, dy, kept, plus, dx, sums, images, channels, groups, pixels, at_once, silu, dy_scale,
             plus_scale, shared);
}

// Computes softmax(scale s) of a row of n in each block, in place.
extern "C" __global__ void KERNEL(softmax)(Value* s, u32 n, float scale) {
    __shared__ float shared[MOST];
    s += (u64)blockIdx.x * n;
    float most = -3.4e38f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, scale * load(s, i));
    most = block_max(most, shared);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += expf(scale * load(s, i) - most);
    sum = block_sum(sum, shared);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) store(s, i, expf(scale * load(s, i) - most) / sum);
}

// Computes ds = scale p (dp - sum p dp), in place of dp.
extern "C" __global__ void KERNEL(softmax_backward)(const Value* p, Value* dp, u32 n, float scale) {
    __shared__ float shared[MOST];
    p += (u64)blockIdx.x * n;
    dp += (u64)blockIdx.x * n;
    float dot = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) dot += load(p, i) * load(dp, i);
    dot = block_sum(dot, shared);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) store(dp, i, scale * load(p, i) * (load(dp, i) - dot));
}

// Computes z = y + scale (shift + residual). Shift and residual may be null; z may be y. All but
// the shift are (rows, channels) with a row for each pixel of each image; the shift is (channels),
// or (images, channels).
template <u32 N>
__device__ inline void finish(const Value* y, Value* z, const float* restrict shift,
                              const Value* restrict residual, u32 rows, u32 channels, u32 pixels,
                              u32 per_image, float scale) {
    u32 across = channels / N;
    EACH(i, rows * across) {
        u32 row = i / across, c = i % across * N;
        u64 at = (u64)row * channels + c, from = (per_image ? row / pixels * channels : 0) + c;
        float v[N], r[N] = {};
        load(v, y, at);
        if (residual) load(r, residual, at);
        for (u32 k = 0; k < N; k++) v[k] += scale * (r[k] + (shift ? shift[from + k] : 0.0f));
        store(z, at, v);
    }
}

extern "C" __global__ void KERNEL(finish)(const Value* y, Value* z, const float* restrict shift,
                                          const Value* restrict residual, u32 rows, u32 channels, u32 pixels,
                                          u32 per_image, float scale) {
    BY_FOURS(channels % 4 == 0 && aligned(y, z, residual), finish, y, z, shift, residual, rows, channels,
             pixels, per_image, scale);
}

// Computes scale times the sums over the pixels of x (images, pixels, channels): (images,
// channels). There is a block for each LANE channels of each image.
template <u32 N>
__device__ inline void pixel_sums(const Value* restrict x, float* restrict sums, u32 channels, u32 pixels,
                                  float scale, float* shared) {
    u32 blocks = (channels + LANE - 1) / LANE, image = blockIdx.x / blocks, across = LANE / N;
    u32 c = blockIdx.x % blocks * LANE + threadIdx.x % across * N, lane = threadIdx.x / across;
    x += (u64)image * pixels * channels + c;
    float v[N], sum[N] = {}, *mine = shared + threadIdx.x * N;
    if (c < channels)
#pragma unroll 4
        for (u32 p = lane; p < pixels; p += blockDim.x / across) {
            load(v, x, (u64)p * channels);
            for (u32 k = 0; k < N; k++) sum[k] += v[k];
        }
    for (u32 k = 0; k < N; k++) mine[k] = sum[k];
    __syncthreads();
    for (u32 half = blockDim.x / across / 2; half > 0; half /= 2) {
        if (lane < half)
            for (u32 k = 0; k < N; k++) mine[k] += mine[half * LANE + k];
        __syncthreads();
    }
    if (lane == 0 && c < channels)
        for (u32 k = 0; k < N; k++) sums[(u64)image * channels + c + k] = scale * mine[k];
}

extern "C" __global__ void KERNEL(pixel_sums)(const Value* restrict x, float* restrict sums, u32 channels,
                                              u32 pixels, float scale) {
    __shared__ float shared[4 * MOST];
    BY_FOURS(channels % 4 == 0 && aligned(x, x), pixel_sums, x, sums, channels, pixels, scale, shared);
}

// Converts scale times weights (outputs, channels, taps) to cuDNN's layout (outputs, taps,
// channels).
extern "C" __global__ void KERNEL(channels_last)(const float* restrict w, Value* restrict y, u32 n,
                                                 u32 channels, u32 taps, float scale) {
    EACH(i, n) {
        u32 c = i % channels, rest = i / channels, tap = rest % taps, output = rest / taps;
        store(y, i, scale * w[(output * channels + c) * taps + tap]);
    }
}

// The inverse of channels_last.
extern "C" __global__ void KERNEL(channels_first)(const Value* restrict w, float* restrict y, u32 n,
                                                  u32 channels, u32 taps, float scale) {
    EACH(i, n) {
        u32 tap = i % taps, rest = i / taps, c = rest % channels, output = rest / channels;
        y[i] = scale * load(w, (output * taps + tap) * channels + c);
    }
}

// Separates q, k and v, each (images, pixels, channels), from qkv (images, pixels, channels, 3).
// Adds the shift if it is not null: (channels, 3), or (images, channels, 3). n is
// images * pixels * channels.
extern "C" __global__ void KERNEL(split3)(const Value* restrict qkv, const float* restrict shift,
                                          u32 per_image, Value* restrict parts, u32 n, u32 channels,
                                          u32 pixels) {
    EACH(i, n) {
        u32 from = 3 * ((per_image ? i / channels / pixels * channels : 0) + i % channels);
        for (u32 k = 0; k < 3; k++)
            store(parts, k * n + i, load(qkv, 3 * i + k) + (shift ? shift[from + k] : 0.0f));
    }
}

// The inverse of split3.
extern "C" __global__ void KERNEL(join3)(const Value* restrict parts, Value* restrict qkv, u32 n) {
    EACH(i, n)
    for (u32 k = 0; k < 3; k++) qkv[3 * i + k] = parts[k * n + i];
}

// Computes y (rows, w, channels) = weight times the sums of 2 x 2 pixels of x (2 rows, 2w,
// channels); n is the number of values of y.
template <u32 N>
__device__ inline void down2(const Value* restrict x, Value* restrict y, u32 n, u32 w, u32 channels,
                             float weight) {
    u32 across = channels / N, below = 2 * w * channels;
    EACH(i, n / N) {
        u32 pixel = i / across, at = (pixel / w * 4 * w + pixel % w * 2) * channels + i % across * N;
        float left[N], right[N], sum[N];
        load(left, x, at);
        load(right, x, at + channels);
        for (u32 k = 0; k < N; k++) sum[k] = left[k] + right[k];
        load(left, x, at + below);
        load(right, x, at + below + channels);
        for (u32 k = 0; k < N; k++) sum[k] = weight * (sum[k] + (left[k] + right[k]));
        store(y, (u64)i * N, sum);
    }
}

extern "C" __global__ void KERNEL(down2)(const Value* restrict x, Value* restrict y, u32 n, u32 w,
                                         u32 channels, float weight) {
    BY_FOURS(channels % 4 == 0 && aligned(x, y), down2, x, y, n, w, channels, weight);
}

// Computes y (2 rows, 2w, channels) = weight times each pixel of x (rows, w, channels), repeated in
// 2 x 2 pixels; n is the number of values of y.
template <u32 N>
__device__ inline void up2(const Value* restrict x, Value* restrict y, u32 n, u32 w, u32 channels,
                           float weight) {
    u32 across = channels / N;
    EACH(i, n / N) {
        u32 pixel = i / across, row = pixel / (2 * w), column = pixel % (2 * w);
        float v[N];
        load(v, x, (row / 2 * w + column / 2) * channels + i % across * N);
        for (u32 k = 0; k < N; k++) v[k] *= weight;
        store(y, (u64)i * N, v);
    }
}

extern "C" __global__ void KERNEL(up2)(const Value* restrict x, Value* restrict y, u32 n, u32 w, u32 channels,
                                       float weight) {
    BY_FOURS(channels % 4 == 0 && aligned(x, y), up2, x, y, n, w, channels, weight);
}

// Computes y = a x for each image of `each` values; a has one value for all images unless `many`.
extern "C" __global__ void KERNEL(scale_images)(const Value* restrict x, const float* restrict a,
                                                Value* restrict y, u32 n, u32 each, u32 many) {
    EACH(i, n) store(y, i, a[many ? i / each : 0] * load(x, i));
}

extern "C" __global__ void KERNEL(mix)(const Value* restrict x, const float* restrict a, u32 many_a,
                                       const Value* restrict z, const float* restrict c, u32 many_c,
                                       Value* restrict y, u32 n, u32 each) {
    EACH(i, n) {
        u32 image = i / each;
        store(y, i, a[many_a ? image : 0] * load(x, i) + c[many_c ? image : 0] * load(z, i));
    }
}

// Computes y = a x + b z.
template <u32 N>
__device__ inline void weighted_sum(const Value* restrict x, float a, const Value* restrict z, float b,
                                    Value* restrict y, u32 n) {
    EACH(i, n / N) {
        float v[N], w[N];
        load(v, x, (u64)i * N);
        load(w, z, (u64)i * N);
        for (u32 k = 0; k < N; k++) v[k] = a * v[k] + b * w[k];
        store(y, (u64)i * N, v);
    }
}

extern "C" __global__ void KERNEL(weighted_sum)(const Value* restrict x, float a, const Value* restrict z,
                                                float b, Value* restrict y, u32 n) {
    BY_FOURS(n % 4 == 0 && aligned(x, z, y), weighted_sum, x, a, z, b, y, n);
}

extern "C" __global__ void KERNEL(silu)(const Value* restrict x, Value* restrict y, u32 n) {
    EACH(i, n) {
        float v = load(x, i);
        store(y, i, v * sigmoid(v));
    }
}

extern "C" __global__ void KERNEL(silu_backward)(const Value* restrict x, const Value* restrict dy,
                                                 Value* restrict dx, u32 n) {
    EACH(i, n) store(dx, i, load(dy, i) * silu_slope(load(x, i)));
}

#undef BY_FOURS
