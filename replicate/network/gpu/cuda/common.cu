// Code shared by the kernels. They are compiled at run time without any header: this file, then
// `maps.cu` for float32 and for bfloat16, then `others.cu`.
//
// There are no atomics: every sum has a fixed order, so the same input gives the same bits. Blocks
// are one-dimensional; the number of threads is a power of two, at most MOST. Counts are below
// 2^31, because a 64-bit division would take longer than the memory accesses.

typedef unsigned int u32;
typedef unsigned long long u64;

#define restrict __restrict__
#define MOST 256
// Channels that a block of pixel_sums takes.
#define LANE 32
#define EACH(i, n) for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)

struct bf16 {
    unsigned short bits;
};

// Adjacent values that are read or written by one instruction.
template <u32 N, typename T>
struct alignas(N * sizeof(T)) Pack {
    T of[N];
};

__device__ inline float load(const float* p, u64 i) { return p[i]; }
__device__ inline float load(const bf16* p, u64 i) { return __uint_as_float((u32)p[i].bits << 16); }
__device__ inline void store(float* p, u64 i, float v) { p[i] = v; }
// Rounds to the nearest, ties to even; a NaN stays one.
__device__ inline void store(bf16* p, u64 i, float v) {
    u32 u = __float_as_uint(v);
    p[i].bits = (unsigned short)(v != v ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

template <u32 N, typename T>
__device__ inline void load(float (&values)[N], const T* p, u64 i) {
    Pack<N, T> pack = *(const Pack<N, T>*)(p + i);
    for (u32 k = 0; k < N; k++) values[k] = load(pack.of, k);
}
template <u32 N, typename T>
__device__ inline void store(T* p, u64 i, const float (&values)[N]) {
    Pack<N, T> pack;
    for (u32 k = 0; k < N; k++) store(pack.of, k, values[k]);
    *(Pack<N, T>*)(p + i) = pack;
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

// Returns the sum over the block in every thread. `shared` is free again afterwards.
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

// The part of a group norm that one block computes: some whole groups of one image, contiguous in
// each pixel. A thread has N channels of one group; the threads of a lane have all channels of a
// pixel, and the lanes divide the pixels.
template <u32 N>
struct Tile {
    u32 image, first, width, per_group, channel, lane, lanes;

    __device__ inline Tile(u32 channels, u32 groups, u32 at_once) {
        u32 blocks = (groups + at_once - 1) / at_once, group = blockIdx.x % blocks * at_once;
        per_group = channels / groups;
        image = blockIdx.x / blocks;
        first = group * per_group;
        width = (groups - group < at_once ? groups - group : at_once) * per_group;
        channel = threadIdx.x % (width / N) * N;
        lane = threadIdx.x / (width / N);
        lanes = blockDim.x / (width / N);
    }

    // Index of this thread's channels in pixel 0 of maps; then in rows with one row for each image.
    __device__ inline u64 start(u32 channels, u32 pixels) const {
        return (u64)image * pixels * channels + first + channel;
    }
    __device__ inline u64 row(u32 channels) const { return (u64)image * channels + first + channel; }
    __device__ inline u64 group(u32 groups) const {
        return (u64)image * groups + (first + channel) / per_group;
    }

    // First pixel of this thread; threads beyond the last lane have none.
    __device__ inline u32 from(u32 pixels) const { return lane < lanes ? lane : pixels; }

    // Reads the shift of this thread's channels: 0, one row for all images, or one for each.
    __device__ inline void read(float (&values)[N], const float* shift, u32 channels, u32 per_image) const {
        for (u32 k = 0; k < N; k++)
            values[k] = shift ? shift[(per_image ? (u64)image * channels : 0) + first + channel + k] : 0.0f;
    }

    // Sums v over the lanes for each channel; the sums stay in `shared` until the next barrier.
    __device__ inline void channel_sums(const float (&v)[N], float* shared) const {
        float* mine = shared + lane * width + channel;
        if (lane < lanes)
            for (u32 k = 0; k < N; k++) mine[k] = v[k];
        __syncthreads();
        for (u32 left = lanes; left > 1; left = (left + 1) / 2) {
            if (lane < left / 2)
                for (u32 k = 0; k < N; k++) mine[k] += mine[(left + 1) / 2 * width + k];
            __syncthreads();
        }
    }

    // Sums the channels of this thread's group, multiplied by `weights` if given.
    __device__ inline float group_sum(const float* weights, const float* shared) const {
        float sum = 0.0f;
        for (u32 i = 0, c = channel / per_group * per_group; i < per_group; i++, c++)
            sum += weights ? weights[first + c] * shared[c] : shared[c];
        __syncthreads();
        return sum;
    }
};
