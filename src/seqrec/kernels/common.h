// Vectors, matrix products and exponentials for all compiled sources.
//
// The sources are compiled once for each generation of processors (see hatch_build.py), so the vector width is known at
// compile time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL(count) _Pragma("GCC unroll 16")
#else
#define UNROLL(count) _Pragma("clang loop unroll(full)")
#endif

namespace seqrec {

// LANES: numbers in a vector. ROWS: rows of a result, two vectors wide, that a product keeps in registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 6;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector values) { *reinterpret_cast<Vector*>(to) = values; }

// Access to only the first `count` numbers of a vector, so that nothing outside a row is read or written.
struct Part {
#if defined(__AVX512F__)
    __mmask16 mask;
    explicit Part(int64_t count) : mask(__mmask16((1u << count) - 1)) {}
    Vector load(const float* from) const { return Vector(_mm512_maskz_loadu_ps(mask, from)); }
    Vector load_or(const float* from, Vector other) const { return Vector(_mm512_mask_loadu_ps(__m512(other), mask, from)); }
    void store(float* to, Vector values) const { _mm512_mask_storeu_ps(to, mask, __m512(values)); }
#elif defined(__AVX2__)
    __m256i mask;
    explicit Part(int64_t count) {
        mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    Vector load(const float* from) const { return Vector(_mm256_maskload_ps(from, mask)); }
    Vector load_or(const float* from, Vector other) const {
        return Vector(_mm256_blendv_ps(__m256(other), _mm256_maskload_ps(from, mask), _mm256_castsi256_ps(mask)));
    }
    void store(float* to, Vector values) const { _mm256_maskstore_ps(to, mask, __m256(values)); }
#else
    int64_t count;
    explicit Part(int64_t count) : count(count) {}
    Vector load(const float* from) const {
        Vector values{};
        std::memcpy(&values, from, count * sizeof(float));
        return values;
    }
    Vector load_or(const float* from, Vector other) const {
        std::memcpy(&other, from, count * sizeof(float));
        return other;
    }
    void store(float* to, Vector values) const { std::memcpy(to, &values, count * sizeof(float)); }
#endif
};

// A bit for each lane, set where a > b.
#if defined(__AVX512F__)
inline uint32_t above(Vector a, Vector b) { return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_GT_OQ); }
#elif defined(__AVX2__)
inline uint32_t above(Vector a, Vector b) { return _mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_GT_OQ)); }
#else
inline uint32_t above(Vector a, Vector b) {
    uint32_t bits = 0;
    for (int l = 0; l < LANES; ++l) bits |= uint32_t(a[l] > b[l]) << l;
    return bits;
}
#endif

inline float sum_of(Vector x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(__m512(x));
#else
    for (int width = LANES / 2; width; width /= 2)  // in pairs, so that additions don't wait for each other
        for (int l = 0; l < width; ++l) x[l] += x[l + width];
    return x[0];
#endif
}

inline float highest_of(Vector x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(__m512(x));
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int l = 0; l < width; ++l) x[l] = x[l + width] > x[l] ? x[l + width] : x[l];
    return x[0];
#endif
}

// Tokens that are processed together: complete panels. Their states in a block, or a tile of their scores with its
// vectors, fit into the cache.
constexpr int64_t TOKENS = 128;

// What a product is added to: zeros, the present contents of the result, or a bias row.
enum Start { ZERO, ADD, BIAS };

// A matrix whose element (i, p) is at[i * row + p * column].
struct Matrix {
    const float* at;
    int64_t row, column;
};

// The right side of a product, in panels that are two vectors wide: row p of the panel that starts with column j is at
// at[j * panel + p * row].
struct Panels {
    const float* at;
    int64_t row, panel;
};

inline Matrix plain(const float* at, int64_t row) { return {at, row, 1}; }
inline Matrix transposed(const float* at, int64_t row) { return {at, 1, row}; }
inline Panels rows_of(const float* at, int64_t row) { return {at, row, 1}; }

// A tile of a result, of R rows and C vectors. Unless `whole`, the last vector is only a part.
template <int R, int C, Start start, bool whole>
inline void product_tile(
    int64_t depth, Matrix a, const float* b, int64_t b_row, float* out, int64_t out_row, const float* bias, Part part
) {
    Vector sum[R][C];
    UNROLL(R)
    for (int i = 0; i < R; ++i)
        UNROLL(C)
        for (int j = 0; j < C; ++j) {
            const bool all = whole || j < C - 1;
            if (start == ZERO) sum[i][j] = Vector{};
            else {
                const float* from = start == ADD ? out + i * out_row + j * LANES : bias + j * LANES;
                sum[i][j] = all ? load(from) : part.load(from);
            }
        }
#if defined(__GNUC__)
    // Hide the strides: compilers that see adjacent rows load them together and take them apart, which is half as fast.
    asm volatile("" : "+r"(a.row), "+r"(a.column));
#endif
    for (int64_t p = 0; p < depth; ++p) {
        Vector row[C];
        UNROLL(C)
        for (int j = 0; j < C; ++j) {
            const float* from = b + p * b_row + j * LANES;
            row[j] = whole || j < C - 1 ? load(from) : part.load(from);
        }
        UNROLL(R)
        for (int i = 0; i < R; ++i) {
            const float x = a.at[i * a.row + p * a.column];
            UNROLL(C)
            for (int j = 0; j < C; ++j) sum[i][j] += x * row[j];
        }
    }
    UNROLL(R)
    for (int i = 0; i < R; ++i)
        UNROLL(C)
        for (int j = 0; j < C; ++j) {
            float* to = out + i * out_row + j * LANES;
            if (whole || j < C - 1) store(to, sum[i][j]);
            else part.store(to, sum[i][j]);
        }
}

template <int R, int C, Start start, bool whole>
inline void product_rows(
    int64_t rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* out, int64_t out_row,
    const float* bias, Part part
) {
    if constexpr (R > 0) {
        if (rows == R)
            product_tile<R, C, start, whole>(depth, a, b, b_row, out, out_row, bias, part);
        else
            product_rows<R - 1, C, start, whole>(rows, depth, a, b, b_row, out, out_row, bias, part);
    }
}

template <int C, Start start, bool whole>
void product_panel(
    int64_t rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* out, int64_t out_row,
    const float* bias, int64_t columns
) {
    const Part part(whole ? 0 : columns - (C - 1) * LANES);
    for (int64_t i = 0; i < rows;) {
        const int64_t left = rows - i, some = left >= 2 * ROWS ? ROWS : left > ROWS ? (left + 1) / 2 : left;
        const Matrix below{a.at + i * a.row, a.row, a.column};
        product_rows<ROWS, C, start, whole>(some, depth, below, b, b_row, out + i * out_row, out_row, bias, part);
        i += some;
    }
}

// out[rows, columns] = start + a[rows, depth] b[depth, columns]. The terms of each number are always added in the order
// of the depth, whatever the sizes, so that a part of a product has the same bits as the complete product.
//
// BLAS libraries are slower for matrices as small as those here: their overhead exceeds the arithmetic, or they don't
// use the processor's full vector width (benchmarks/RESULTS.md).
template <Start start>
void product(
    int64_t rows, int64_t columns, int64_t depth, Matrix a, Panels b, float* out, int64_t out_row,
    const float* bias = nullptr
) {
    for (int64_t j = 0; j < columns; j += 2 * LANES) {
        const int64_t left = columns - j;
        const float* from = b.at + j * b.panel;
        const float* row = start == BIAS ? bias + j : nullptr;
        if (left >= 2 * LANES)
            product_panel<2, start, true>(rows, depth, a, from, b.row, out + j, out_row, row, left);
        else if (left > LANES)
            product_panel<2, start, false>(rows, depth, a, from, b.row, out + j, out_row, row, left);
        else
            product_panel<1, start, false>(rows, depth, a, from, b.row, out + j, out_row, row, left);
    }
}

// Size of the memory for a right side of depth by columns, in panels.
inline int64_t panel_size(int64_t depth, int64_t columns) {
    return (columns + 2 * LANES - 1) / (2 * LANES) * (2 * LANES) * depth;
}

// Copies the matrix x[depth, columns] into panels.
inline Panels panels(Matrix x, int64_t depth, int64_t columns, float* memory) {
    for (int64_t j = 0; j < columns; j += 2 * LANES) {
        float* to = memory + j * depth;
        const int64_t width = std::min<int64_t>(2 * LANES, columns - j);
        if (x.row == 1)  // x is transposed: read it in the order of its memory
            for (int64_t c = 0; c < width; ++c)
                for (int64_t p = 0; p < depth; ++p) to[p * 2 * LANES + c] = x.at[p + (j + c) * x.column];
        else
            for (int64_t p = 0; p < depth; ++p)
                for (int64_t c = 0; c < width; ++c) to[p * 2 * LANES + c] = x.at[p * x.row + (j + c) * x.column];
    }
    return {memory, 2 * LANES, depth};
}

// exp(x) for x <= 0, within 2 units in the last place of float32; 0 where the result would not be a normal number.
inline Vector exponential(Vector given) {
    const Vector least = Vector{} - 87.0f;
    const Vector x = given < least ? least : given;
    const Whole power = __builtin_convertvector(x * 1.44269504f - 0.5f, Whole);  // rounds to nearest, as conversion truncates
    const Vector rounded = __builtin_convertvector(power, Vector);
    const Vector r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
    Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const Whole bits = (power + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return given < least ? Vector{} : y * scale;
}

struct Free {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
typedef std::unique_ptr<float[], Free> Room;

// Uninitialised memory for this many numbers, aligned to a cache line.
inline Room room(int64_t numbers) {
    return Room(static_cast<float*>(::operator new[](std::max<int64_t>(numbers, 1) * sizeof(float), std::align_val_t(64))));
}

// The contiguous range of `count` pieces of work that belongs to this thread.
struct Share {
    int64_t low, high;
    explicit Share(int64_t count) {
        const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
        low = count * mine / all;
        high = count * (mine + 1) / all;
    }
};

}  // namespace seqrec
