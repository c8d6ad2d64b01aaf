// Sums every column of each part of x (parts, rows, columns): n = parts * columns.
extern "C" __global__ void column_sums(const float* restrict x, float* restrict sums, u32 n, u32 rows,
                                       u32 columns) {
    EACH(i, n) {
        const float* from = x + (u64)(i / columns) * rows * columns + i % columns;
        float sum = 0.0f;
        for (u32 r = 0; r < rows; r++) sum += from[(u64)r * columns];
        sums[i] = sum;
    }
}

// Adam on many tensors, with a row of blocks for each. `table` has for each tensor the addresses of
// w, m, v and the gradient, and their length. `size` is lr / (1 - beta1^t), `correction` is
// 1 / sqrt(1 - beta2^t).
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

// Computes average = beta average + rest w. `table` has for each tensor the addresses of the
// average and of w, and their length.
extern "C" __global__ void average(const u64* table, float beta, float rest) {
    const u64* tensor = table + 3 * (u64)blockIdx.y;
    float* e = (float*)tensor[0];
    const float* w = (const float*)tensor[1];
    EACH(i, tensor[2]) e[i] = beta * e[i] + rest * w[i];
}

// Philox4x32-10 (Salmon et al. 2011), the same as on the host.
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

// Generates n standard normal numbers (Box and Muller 1958) of one step of a stream, after the
// first 4 * `before`; n is a multiple of 4.
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

// EDM's augmentation of planes (images, channels, size, size). `table` has the filter's taps, then
// a row for each image: mirror left to right, mirror top to bottom, whether pixels move, and the
// map from a pixel to its source, a matrix about the centre and a shift.
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

    // Index in the plane of pixel i of a plane that is extended by reflection, size - 1 pixels on
    // each side.
    __device__ inline u32 inside(u32 i) const {
        u32 margin = size - 1;
        return i < margin ? margin - i : i < margin + size ? i - margin : 3 * margin - i;
    }
};

// Extends each plane by reflection and doubles its resolution.
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

// Samples it at twice the resolution of the result, with a margin for the filter; 0 outside.
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
                // Compared as floats: a position far outside has no integer.
                float px = left + (float)c, py = top + (float)r;
                bool in = px >= 0.0f && py >= 0.0f && px < (float)side && py < (float)side;
                values[r] = in ? from[(int)py * side + (int)px] : 0.0f;
            }
            columns[c] = values[0] + (at_y - top) * (values[1] - values[0]);
        }
        samples[i] = columns[0] + (at_x - left) * (columns[1] - columns[0]);
    }
}

// Reduces the samples to the size of the result; planes whose pixels do not move are only mirrored.
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
