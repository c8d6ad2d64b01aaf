// A stand-in for the CUDA driver, cuBLAS, cuDNN and cuRAND on a machine without a GPU: it
// runs on the CPU what the program launches. Memory of the "device" is the host's, filled
// with NaN before it is handed out and when it is given back, with a margin behind each
// piece that must stay as it was. Every call that the program links and that is not here
// ends it with the call's name. With STANDIN_COUNT nothing is computed: calls, memory traffic
// and operations are counted.
#include <cublas_v2.h>
#include <cuda.h>
#include <cudnn.h>
#include <curand.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

[[noreturn]] void stop(const std::string& why) {
    fprintf(stderr, "stand-in: %s\n", why.c_str());
    abort();
}

constexpr size_t MARGIN = 256;
constexpr uint64_t CAPACITY = 80ull << 30;
bool failed = false;
std::mutex memory;
std::map<uint64_t, size_t> pieces;
uint64_t used, most;
const bool counting = getenv("STANDIN_COUNT");

CUresult allocate(CUdeviceptr* out, size_t bytes) {
    std::lock_guard lock(memory);
    if (failed) return CUDA_ERROR_LAUNCH_FAILED;
    const char* limit = getenv("STANDIN_MEMORY");
    if (used + bytes > (limit ? strtoull(limit, nullptr, 10) : CAPACITY)) return CUDA_ERROR_OUT_OF_MEMORY;
    char* p = static_cast<char*>(aligned_alloc(256, (bytes + MARGIN + 255) / 256 * 256));
    if (!p) return CUDA_ERROR_OUT_OF_MEMORY;
    if (!counting) memset(p, 0xff, bytes + MARGIN);
    *out = reinterpret_cast<CUdeviceptr>(p);
    pieces[*out] = bytes;
    used += bytes;
    most = std::max(most, used);
    return CUDA_SUCCESS;
}

CUresult release(CUdeviceptr at) {
    std::lock_guard lock(memory);
    auto piece = pieces.find(at);
    if (piece == pieces.end()) stop("memory is given back that was not handed out, or twice");
    char* p = reinterpret_cast<char*>(at);
    for (size_t i = 0; i < MARGIN && !counting; i++)
        if (static_cast<unsigned char>(p[piece->second + i]) != 0xff)
            stop("a kernel wrote behind a piece of " + std::to_string(piece->second) + " bytes");
    if (!counting) memset(p, 0xff, piece->second);
    used -= piece->second;
    pieces.erase(piece);
    free(p);
    return CUDA_SUCCESS;
}

struct Extent {
    unsigned x, y, z;
};
using Launch = void (*)(Extent, Extent, uint32_t, void**);
// Of a kernel's parameter its bytes, and whether what it points to is read or written.
struct Parameter {
    int bytes;
    bool reads, writes;
};
struct Function {
    std::string name;
    Launch launch;
    std::vector<Parameter> parameters;
};
struct Module {
    std::string ptx;
    std::map<std::string, Function> functions;
};

// The kernel through ptx.py and gcc.
Function compile(const Module& module, const std::string& name) {
    static int count = 0;
    const char *translator = getenv("STANDIN_PTX"), *directory = getenv("STANDIN_KERNELS");
    if (!translator || !directory) stop("it is started by tests/standin/run");
    const std::string base = std::string(directory) + "/" + std::to_string(count++);
    std::ofstream(base + ".ptx") << module.ptx;
    std::string command =
        "unset LD_LIBRARY_PATH; python3 '" + std::string(translator) + "' " + base + ".ptx " + name;
    if (counting)
        command += " --parameters > " + base + ".txt";
    else
        command += " > " + base +
                   ".c && gcc -w -O2 -march=native -ffp-contract=off -fno-strict-aliasing -fopenmp -shared "
                   "-fPIC -o " +
                   base + ".so " + base + ".c -lm";
    if (system(command.c_str()) != 0) stop("the kernel " + name + " was not translated");
    if (counting) {
        Function function{name, nullptr, {}};
        std::ifstream file(base + ".txt");
        for (std::pair<int, std::string> of; file >> of.first >> of.second;)
            function.parameters.push_back({of.first, of.second.find('r') != std::string::npos,
                                           of.second.find('w') != std::string::npos});
        return function;
    }
    void* library = dlopen((base + ".so").c_str(), RTLD_NOW);
    if (!library) stop(dlerror());
    return {name, reinterpret_cast<Launch>(dlsym(library, "launch")), {}};
}

// What was asked for since the last synchronisation.
struct Count {
    long calls;
    double read, written, operations;
};
std::map<std::string, Count> asked;

void count(const std::string& name, double read, double written, double operations = 0) {
    if (!counting) return;
    Count& sum = asked[name];
    sum.calls++;
    sum.read += read;
    sum.written += written;
    sum.operations += operations;
}

// Writes down what was counted, and begins again.
void end_section() {
    if (asked.empty()) return;
    Count all{};
    std::vector<std::pair<std::string, Count>> rows(asked.begin(), asked.end());
    std::sort(rows.begin(), rows.end(), [](auto& a, auto& b) {
        return a.second.read + a.second.written > b.second.read + b.second.written;
    });
    for (auto& [name, c] : rows)
        all = {all.calls + c.calls, all.read + c.read, all.written + c.written,
               all.operations + c.operations};
    rows.push_back({"all", all});
    FILE* file = fopen(getenv("STANDIN_COUNT"), "w");
    if (!file) stop("STANDIN_COUNT names no file that can be written");
    fprintf(file, "%-34s %7s %9s %9s %9s\n", "", "calls", "GB read", "written", "GFLOP");
    for (auto& [name, c] : rows)
        fprintf(file, "%-34s %7ld %9.3f %9.3f %9.1f\n", name.c_str(), c.calls, c.read / 1e9, c.written / 1e9,
                c.operations / 1e9);
    fprintf(file, "most memory until here: %.2f GB\n", most / 1e9);
    fclose(file);
    asked.clear();
}

// The bytes from a place to the end of its piece; 0 where there is none.
double behind(uint64_t at) {
    auto next = pieces.upper_bound(at);
    if (next == pieces.begin()) return 0;
    auto piece = std::prev(next);
    return at < piece->first + piece->second ? piece->first + piece->second - at : 0;
}

// Of a kernel every piece that it reads or writes, once, however often it does.
void count(const Function& function, unsigned rows, void** values) {
    double read = 0, written = 0;
    auto value = [&](int i) { return *static_cast<const uint64_t*>(values[i]); };
    if (function.name.starts_with("copy2d")) {
        // From a part of a piece into a part of another: so many rows and columns.
        auto side = [&](int i) { return double(*static_cast<const uint32_t*>(values[i])); };
        const double bytes = side(2) * side(3) * (function.name.ends_with("_f32") ? 4 : 2);
        return count(function.name, bytes, bytes);
    }
    if (function.name == "adam" || function.name == "average") {
        // Tables of addresses: what is written comes first, the length last.
        const int n = function.name == "adam" ? 5 : 3;
        const auto* table = reinterpret_cast<const uint64_t*>(value(0));
        for (unsigned i = 0; i < rows; i++, table += n) {
            read += (n - 1) * 4.0 * table[n - 1];
            written += (n - 2) * 4.0 * table[n - 1];
        }
        return count(function.name, read, written);
    }
    for (size_t i = 0; i < function.parameters.size(); i++) {
        const Parameter& p = function.parameters[i];
        if (p.bytes != 8) continue;
        const double bytes = behind(value(i));
        read += p.reads * bytes;
        written += p.writes * bytes;
    }
    count(function.name, read, written);
}

int token;
template <typename T>
T handle() {
    return reinterpret_cast<T>(&token);
}

// Values of float32 or bfloat16 at a distance.
float load(const void* p, int64_t i, bool half) {
    if (!half) return static_cast<const float*>(p)[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[i]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void store(void* p, int64_t i, bool half, float value) {
    if (!half) {
        static_cast<float*>(p)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    static_cast<uint16_t*>(p)[i] = value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <typename T, typename Load, typename Store>
void gemm(bool ta, bool tb, int m, int n, int k, T alpha, T beta, int lda, int64_t sa, int ldb, int64_t sb,
          int ldc, int64_t sc, int batch, Load&& at_a, Load&& at_b, Load&& at_c, Store&& put) {
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m)
        stop("a leading dimension is smaller than its matrix");
#pragma omp parallel for collapse(2)
    for (int image = 0; image < batch; image++)
        for (int j = 0; j < n; j++) {
            std::vector<T> column(m, 0);
            for (int l = 0; l < k; l++) {
                const T y = at_b(image * sb + (tb ? j + int64_t(l) * ldb : l + int64_t(j) * ldb));
                for (int i = 0; i < m; i++)
                    column[i] += at_a(image * sa + (ta ? l + int64_t(i) * lda : i + int64_t(l) * lda)) * y;
            }
            for (int i = 0; i < m; i++) {
                const int64_t at = image * sc + i + int64_t(j) * ldc;
                put(at, alpha * column[i] + (beta == 0 ? 0 : beta * at_c(at)));
            }
        }
}

cublasStatus_t product(bool ta, bool tb, int m, int n, int k, float alpha, const void* a, int lda, int64_t sa,
                       const void* b, int ldb, int64_t sb, float beta, void* c, int ldc, int64_t sc,
                       int batch, bool half) {
    const double bytes = half ? 2 : 4, all = batch;
    count("cuBLAS", bytes * all * (double(m) * k + double(k) * n), bytes * all * m * n,
          2.0 * all * m * n * k);
    if (counting) return CUBLAS_STATUS_SUCCESS;
    auto of = [half](const void* p) { return [p, half](int64_t i) { return load(p, i, half); }; };
    gemm<float>(ta, tb, m, n, k, alpha, beta, lda, sa, ldb, sb, ldc, sc, batch, of(a), of(b), of(c),
                [=](int64_t i, float v) { store(c, i, half, v); });
    return CUBLAS_STATUS_SUCCESS;
}

bool transposed(cublasOperation_t operation) { return operation != CUBLAS_OP_N; }

struct Tensor {
    bool half, last;
    int sides[4];    // N, C, H, W
    int strides[4];  // of each
    void set(cudnnDataType_t type, bool channels_last, const int* of) {
        last = channels_last;
        if (type != CUDNN_DATA_FLOAT && type != CUDNN_DATA_BFLOAT16) stop("a cuDNN type that is not known");
        half = type == CUDNN_DATA_BFLOAT16;
        std::copy(of, of + 4, sides);
        const int c = of[1], h = of[2], w = of[3];
        const int planes[4] = {c * h * w, h * w, w, 1}, pixels[4] = {c * h * w, 1, w * c, c};
        std::copy(last ? pixels : planes, (last ? pixels : planes) + 4, strides);
    }
    int64_t at(int n, int c, int h, int w) const {
        return int64_t(n) * strides[0] + c * strides[1] + h * strides[2] + w * strides[3];
    }
    double bytes() const { return double(count()) * (half ? 2 : 4); }
    int64_t count() const { return int64_t(sides[0]) * sides[1] * sides[2] * sides[3]; }
};
struct Convolution {
    int pad[2], step[2];
    cudnnMathType_t math;
};

// In C order, as float32; and back.
std::vector<float> read(const Tensor& t, const void* p) {
    std::vector<float> out(t.count());
    int64_t i = 0;
    for (int n = 0; n < t.sides[0]; n++)
        for (int c = 0; c < t.sides[1]; c++)
            for (int h = 0; h < t.sides[2]; h++)
                for (int w = 0; w < t.sides[3]; w++) out[i++] = load(p, t.at(n, c, h, w), t.half);
    return out;
}

void write(const Tensor& t, void* p, const std::vector<float>& values) {
    int64_t i = 0;
    for (int n = 0; n < t.sides[0]; n++)
        for (int c = 0; c < t.sides[1]; c++)
            for (int h = 0; h < t.sides[2]; h++)
                for (int w = 0; w < t.sides[3]; w++) store(p, t.at(n, c, h, w), t.half, values[i++]);
}

struct Sizes {
    int b, c, o, h, w, oh, ow, kh, kw;
    Convolution v;
    Sizes(const Tensor& x, const Tensor& f, const Tensor& y, const Convolution& v)
        : b(x.sides[0]),
          c(x.sides[1]),
          o(y.sides[1]),
          h(x.sides[2]),
          w(x.sides[3]),
          oh(y.sides[2]),
          ow(y.sides[3]),
          kh(f.sides[2]),
          kw(f.sides[3]),
          v(v) {
        if (f.sides[0] != o || f.sides[1] != c || y.sides[0] != b ||
            oh != (h + 2 * v.pad[0] - kh) / v.step[0] + 1 || ow != (w + 2 * v.pad[1] - kw) / v.step[1] + 1)
            stop("the sizes of a convolution do not belong together");
        if (x.half != f.half || x.half != y.half) stop("the types of a convolution do not belong together");
        if (x.last != f.last || x.last != y.last) stop("the layouts of a convolution do not belong together");
    }
    // True where it is only counted.
    bool count(const char* pass, const Tensor& a, const Tensor& b, const Tensor& result) const {
        const double products = double(this->b) * o * oh * ow * c * kh * kw;
        ::count(std::string("cuDNN ") + pass, a.bytes() + b.bytes(), result.bytes(), 2 * products);
        return counting;
    }
    // For each row of y what the tap (u, v) meets inside of x: places in y and x, and their count.
    template <typename Row>
    void rows(int up, int left, Row&& row) const {
        const int dy = up - v.pad[0], dx = left - v.pad[1],
                  from = dx < 0 ? (-dx + v.step[1] - 1) / v.step[1] : 0;
        const int to = w - dx <= 0 ? 0 : std::min(ow, (w - dx - 1) / v.step[1] + 1);
        for (int i = 0; i < oh; i++) {
            const int at = i * v.step[0] + dy;
            if (at >= 0 && at < h && to > from) row(i * ow + from, at * w + from * v.step[1] + dx, to - from);
        }
    }
};

}  // namespace

extern "C" {

// The driver.
// NVRTC asks for it.
CUresult cuGetExportTable(const void**, const CUuuid*) { return CUDA_ERROR_NOT_FOUND; }
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* v) { return *v = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* n) { return *n = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* d, int i) { return *d = i, i == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceGetName(char* name, int n, CUdevice) {
    return snprintf(name, n, "no GPU: the CPU in its place"), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) {
    const char* major = getenv("STANDIN_CAPABILITY");
    switch (a) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
            *v = major ? atoi(major) : 9;
            break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
            *v = 0;
            break;
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
            *v = 1;
            break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
            *v = 32;
            break;
        default:
            *v = 1024;
    }
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { return *c = handle<CUcontext>(), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { return *c = handle<CUcontext>(), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return end_section(), CUDA_SUCCESS; }
CUresult cuStreamCreate(CUstream* s, unsigned) { return *s = handle<CUstream>(), CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) {
    end_section();
    return failed ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
}
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* s) {
    return *s = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent* e, unsigned) { return *e = handle<CUevent>(), CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent, CUstream) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult e, const char** s) {
    return *s = e == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "an error", CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char** s) {
    return *s = e == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error", CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* p, size_t n) { return allocate(p, n); }
CUresult cuMemAllocAsync(CUdeviceptr* p, size_t n, CUstream) { return allocate(p, n); }
CUresult cuMemFree(CUdeviceptr p) { return release(p); }
CUresult cuMemFreeAsync(CUdeviceptr p, CUstream) { return release(p); }
CUresult cuMemGetInfo(size_t* unused, size_t* all) {
    return *all = CAPACITY, *unused = CAPACITY - used, CUDA_SUCCESS;
}
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* p, CUdevice) {
    return *p = handle<CUmemoryPool>(), CUDA_SUCCESS;
}
CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void*) { return CUDA_SUCCESS; }
CUresult cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute a, void* v) {
    return *static_cast<uint64_t*>(v) = a == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? most : used, CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t n, CUstream) {
    count("from the host", 0, n);
    return memcpy(reinterpret_cast<void*>(to), from, n), CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t n, CUstream) {
    if (failed) return CUDA_ERROR_LAUNCH_FAILED;
    count("to the host", n, 0);
    return memcpy(to, reinterpret_cast<void*>(from), n), CUDA_SUCCESS;
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream) {
    count("copied", n, n);
    if (counting) return CUDA_SUCCESS;
    return memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n), CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char v, size_t n, CUstream) {
    count("set", 0, n);
    if (counting) return CUDA_SUCCESS;
    return memset(reinterpret_cast<void*>(to), v, n), CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* m, const void* image) {
    return *m = reinterpret_cast<CUmodule>(new Module{static_cast<const char*>(image), {}}), CUDA_SUCCESS;
}
CUresult cuModuleLoad(CUmodule* m, const char* path) {
    std::ifstream file(path);
    return *m = reinterpret_cast<CUmodule>(new Module{{std::istreambuf_iterator<char>(file), {}}, {}}),
           CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
    Module& module = *reinterpret_cast<Module*>(m);
    auto known = module.functions.find(name);
    if (known == module.functions.end()) {
        if (module.ptx.find(".entry " + std::string(name) + "(") == std::string::npos)
            return CUDA_ERROR_NOT_FOUND;
        known = module.functions.insert({name, compile(module, name)}).first;
    }
    return *f = reinterpret_cast<CUfunction>(&known->second), CUDA_SUCCESS;
}
// After STANDIN_LAUNCHES of them the device has failed, as one does that left the bus.
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream, void** parameters, void**) {
    const Function& function = *reinterpret_cast<Function*>(f);
    if (!gx || gy - 1u >= 65535 || gz - 1u >= 65535 || !bx || !by || !bz || bx * by * bz > 1024 ||
        shared > 49152)
        return CUDA_ERROR_INVALID_VALUE;
    static long left = getenv("STANDIN_LAUNCHES") ? atol(getenv("STANDIN_LAUNCHES")) : -1;
    if (left == 0) failed = true;
    if (failed) return CUDA_ERROR_LAUNCH_FAILED;
    left -= left > 0;
    if (getenv("STANDIN_TRACE"))
        fprintf(stderr, "%s <%u %u %u, %u %u %u>\n", function.name.c_str(), gx, gy, gz, bx, by, bz);
    if (counting)
        count(function, gy, parameters);
    else
        function.launch({gx, gy, gz}, {bx, by, bz}, shared, parameters);
    return CUDA_SUCCESS;
}

// cuBLAS.
cublasStatus_t cublasCreate(cublasHandle_t* h) {
    return *h = handle<cublasHandle_t>(), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m,
                                         int n, int k, const float* alpha, const float* a, int lda,
                                         long long sa, const float* b, int ldb, long long sb,
                                         const float* beta, float* c, int ldc, long long sc, int batch) {
    return product(transposed(ta), transposed(tb), m, n, k, *alpha, a, lda, sa, b, ldb, sb, *beta, c, ldc, sc,
                   batch, false);
}
cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m,
                                         int n, int k, const double* alpha, const double* a, int lda,
                                         long long sa, const double* b, int ldb, long long sb,
                                         const double* beta, double* c, int ldc, long long sc, int batch) {
    if (counting) stop("products of float64 are not counted");
    auto of = [](const double* p) { return [p](int64_t i) { return p[i]; }; };
    gemm<double>(transposed(ta), transposed(tb), m, n, k, *alpha, *beta, lda, sa, ldb, sb, ldc, sc, batch,
                 of(a), of(b), of(static_cast<const double*>(c)), [=](int64_t i, double v) { c[i] = v; });
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m,
                                          int n, int k, const void* alpha, const void* a, cudaDataType at,
                                          int lda, long long sa, const void* b, cudaDataType bt, int ldb,
                                          long long sb, const void* beta, void* c, cudaDataType ct, int ldc,
                                          long long sc, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t) {
    if (at != bt || at != ct || (at != CUDA_R_16BF && at != CUDA_R_32F) || compute != CUBLAS_COMPUTE_32F)
        stop("a product of other types");
    return product(transposed(ta), transposed(tb), m, n, k, *static_cast<const float*>(alpha), a, lda, sa, b,
                   ldb, sb, *static_cast<const float*>(beta), c, ldc, sc, batch, at == CUDA_R_16BF);
}

// cuRAND, of which candle makes a handle.
curandStatus_t curandCreateGenerator(curandGenerator_t* g, curandRngType_t) {
    return *g = handle<curandGenerator_t>(), CURAND_STATUS_SUCCESS;
}
curandStatus_t curandDestroyGenerator(curandGenerator_t) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetStream(curandGenerator_t, cudaStream_t) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t, unsigned long long) {
    return CURAND_STATUS_SUCCESS;
}

// cuDNN.
size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* h) { return *h = handle<cudnnHandle_t>(), CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroy(cudnnHandle_t) { return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t) { return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* d) {
    return *d = reinterpret_cast<cudnnTensorDescriptor_t>(new Tensor{}), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t d) {
    return delete reinterpret_cast<Tensor*>(d), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t d, cudnnTensorFormat_t format,
                                         cudnnDataType_t type, int n, int c, int h, int w) {
    const int sides[4] = {n, c, h, w};
    return reinterpret_cast<Tensor*>(d)->set(type, format == CUDNN_TENSOR_NHWC, sides), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* d) {
    return *d = reinterpret_cast<cudnnFilterDescriptor_t>(new Tensor{}), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t d) {
    return delete reinterpret_cast<Tensor*>(d), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t d, cudnnDataType_t type,
                                         cudnnTensorFormat_t format, int k, int c, int h, int w) {
    const int sides[4] = {k, c, h, w};
    return reinterpret_cast<Tensor*>(d)->set(type, format == CUDNN_TENSOR_NHWC, sides), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* d) {
    return *d = reinterpret_cast<cudnnConvolutionDescriptor_t>(new Convolution{}), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t d) {
    return delete reinterpret_cast<Convolution*>(d), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t d, int ph, int pw, int u, int v,
                                              int dh, int dw, cudnnConvolutionMode_t mode,
                                              cudnnDataType_t type) {
    if (dh != 1 || dw != 1 || mode != CUDNN_CROSS_CORRELATION || type != CUDNN_DATA_FLOAT)
        stop("another convolution");
    return *reinterpret_cast<Convolution*>(d) = {{ph, pw}, {u, v}, CUDNN_DEFAULT_MATH}, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t d, cudnnMathType_t math) {
    return reinterpret_cast<Convolution*>(d)->math = math, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t,
                                                      const cudnnFilterDescriptor_t,
                                                      const cudnnConvolutionDescriptor_t,
                                                      const cudnnTensorDescriptor_t,
                                                      cudnnConvolutionFwdAlgo_t, size_t* n) {
    return *n = 4096, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetConvolutionBackwardDataWorkspaceSize(cudnnHandle_t, const cudnnFilterDescriptor_t,
                                                           const cudnnTensorDescriptor_t,
                                                           const cudnnConvolutionDescriptor_t,
                                                           const cudnnTensorDescriptor_t,
                                                           cudnnConvolutionBwdDataAlgo_t, size_t* n) {
    return *n = 8192, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetConvolutionBackwardFilterWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t,
                                                             const cudnnTensorDescriptor_t,
                                                             const cudnnConvolutionDescriptor_t,
                                                             const cudnnFilterDescriptor_t,
                                                             cudnnConvolutionBwdFilterAlgo_t, size_t* n) {
    return *n = 0, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t,
                                                     const cudnnFilterDescriptor_t,
                                                     const cudnnConvolutionDescriptor_t,
                                                     const cudnnTensorDescriptor_t, int, int* n,
                                                     cudnnConvolutionFwdAlgoPerf_t* found) {
    *found = {};
    found->algo = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
    return *n = 1, CUDNN_STATUS_SUCCESS;
}
#define OF(type, d) (*reinterpret_cast<const type*>(d))
// What our own convolutions, with the channels last, must ask for: sums in one order, and
// float32 that is not rounded.
static void exact(const Sizes& s, const Tensor& x, bool pinned) {
    if (!x.last) return;
    if (!pinned) stop("a convolution by an algorithm whose sums have no order");
    if (!x.half && s.v.math != CUDNN_FMA_MATH) stop("a convolution in TF32");
}
static void ones_and_zeros(const void* alpha, const void* beta) {
    if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0)
        stop("a convolution that is scaled or added");
}
cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t, const void* alpha, const cudnnTensorDescriptor_t xd,
                                      const void* x, const cudnnFilterDescriptor_t wd, const void* w,
                                      const cudnnConvolutionDescriptor_t cd,
                                      cudnnConvolutionFwdAlgo_t algorithm, void*, size_t space,
                                      const void* beta, const cudnnTensorDescriptor_t yd, void* y) {
    if (space < 4096) return CUDNN_STATUS_BAD_PARAM;
    ones_and_zeros(alpha, beta);
    const Sizes s(OF(Tensor, xd), OF(Tensor, wd), OF(Tensor, yd), OF(Convolution, cd));
    if (s.count("forward", OF(Tensor, xd), OF(Tensor, wd), OF(Tensor, yd))) return CUDNN_STATUS_SUCCESS;
    exact(s, OF(Tensor, xd), algorithm == CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM);
    const auto xs = read(OF(Tensor, xd), x), ws = read(OF(Tensor, wd), w);
    const int pixels = s.h * s.w, outputs = s.oh * s.ow, step = s.v.step[1];
    std::vector<float> ys(OF(Tensor, yd).count(), 0.0f);
#pragma omp parallel for collapse(2)
    for (int n = 0; n < s.b; n++)
        for (int o = 0; o < s.o; o++)
            for (int c = 0; c < s.c; c++)
                for (int u = 0; u < s.kh; u++)
                    for (int v = 0; v < s.kw; v++) {
                        const float f = ws[((o * s.c + c) * s.kh + u) * s.kw + v];
                        float* to = &ys[(int64_t(n) * s.o + o) * outputs];
                        const float* from = &xs[(int64_t(n) * s.c + c) * pixels];
                        s.rows(u, v, [=](int a, int b, int n) {
                            for (int i = 0; i < n; i++) to[a + i] += f * from[b + i * step];
                        });
                    }
    return write(OF(Tensor, yd), y, ys), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t, const void* alpha, const cudnnFilterDescriptor_t wd,
                                           const void* w, const cudnnTensorDescriptor_t yd, const void* dy,
                                           const cudnnConvolutionDescriptor_t cd,
                                           cudnnConvolutionBwdDataAlgo_t algorithm, void*, size_t space,
                                           const void* beta, const cudnnTensorDescriptor_t xd, void* dx) {
    if (space < 8192) return CUDNN_STATUS_BAD_PARAM;
    ones_and_zeros(alpha, beta);
    const Sizes s(OF(Tensor, xd), OF(Tensor, wd), OF(Tensor, yd), OF(Convolution, cd));
    if (s.count("data", OF(Tensor, yd), OF(Tensor, wd), OF(Tensor, xd))) return CUDNN_STATUS_SUCCESS;
    exact(s, OF(Tensor, xd), algorithm == CUDNN_CONVOLUTION_BWD_DATA_ALGO_1);
    const auto dys = read(OF(Tensor, yd), dy), ws = read(OF(Tensor, wd), w);
    const int pixels = s.h * s.w, outputs = s.oh * s.ow, step = s.v.step[1];
    std::vector<float> dxs(OF(Tensor, xd).count(), 0.0f);
#pragma omp parallel for collapse(2)
    for (int n = 0; n < s.b; n++)
        for (int c = 0; c < s.c; c++)
            for (int o = 0; o < s.o; o++)
                for (int u = 0; u < s.kh; u++)
                    for (int v = 0; v < s.kw; v++) {
                        const float f = ws[((o * s.c + c) * s.kh + u) * s.kw + v];
                        const float* from = &dys[(int64_t(n) * s.o + o) * outputs];
                        float* to = &dxs[(int64_t(n) * s.c + c) * pixels];
                        s.rows(u, v, [=](int a, int b, int n) {
                            for (int i = 0; i < n; i++) to[b + i * step] += f * from[a + i];
                        });
                    }
    return write(OF(Tensor, xd), dx, dxs), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t, const void* alpha,
                                             const cudnnTensorDescriptor_t xd, const void* x,
                                             const cudnnTensorDescriptor_t yd, const void* dy,
                                             const cudnnConvolutionDescriptor_t cd,
                                             cudnnConvolutionBwdFilterAlgo_t algorithm, void*, size_t,
                                             const void* beta, const cudnnFilterDescriptor_t wd, void* dw) {
    ones_and_zeros(alpha, beta);
    const Sizes s(OF(Tensor, xd), OF(Tensor, wd), OF(Tensor, yd), OF(Convolution, cd));
    if (s.count("filter", OF(Tensor, xd), OF(Tensor, yd), OF(Tensor, wd))) return CUDNN_STATUS_SUCCESS;
    exact(s, OF(Tensor, xd), algorithm == CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1);
    const auto xs = read(OF(Tensor, xd), x), dys = read(OF(Tensor, yd), dy);
    const int pixels = s.h * s.w, outputs = s.oh * s.ow, step = s.v.step[1];
    std::vector<float> dws(OF(Tensor, wd).count(), 0.0f);
#pragma omp parallel for collapse(2)
    for (int o = 0; o < s.o; o++)
        for (int c = 0; c < s.c; c++)
            for (int u = 0; u < s.kh; u++)
                for (int v = 0; v < s.kw; v++) {
                    float sum = 0;
                    for (int n = 0; n < s.b; n++) {
                        const float *a_ = &dys[(int64_t(n) * s.o + o) * outputs],
                                    *b_ = &xs[(int64_t(n) * s.c + c) * pixels];
                        s.rows(u, v, [&](int a, int b, int n) {
                            for (int i = 0; i < n; i++) sum += a_[a + i] * b_[b + i * step];
                        });
                    }
                    dws[((o * s.c + c) * s.kh + u) * s.kw + v] = sum;
                }
    return write(OF(Tensor, wd), dw, dws), CUDNN_STATUS_SUCCESS;
}
}
