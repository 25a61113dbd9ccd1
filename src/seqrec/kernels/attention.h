// Softmax attention of one user and one head, forward and backward.
#pragma once

#include "common.h"

namespace seqrec {

// out[n] = x . row(n) for n < count.
template <typename Row>
inline void dots(const float* x, Row row, int64_t count, int64_t dim, float* out) {
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) {
        const float *a = row(n), *b = row(n + 1), *c = row(n + 2), *d = row(n + 3);
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t k = 0; k < dim; ++k) {
            s0 += x[k] * a[k];
            s1 += x[k] * b[k];
            s2 += x[k] * c[k];
            s3 += x[k] * d[k];
        }
        out[n] = s0, out[n + 1] = s1, out[n + 2] = s2, out[n + 3] = s3;
    }
    for (; n < count; ++n) {
        const float* a = row(n);
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t k = 0; k < dim; ++k) s += x[k] * a[k];
        out[n] = s;
    }
}

// The same of rows that are `stride` apart.
inline void dots(const float* x, const float* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
    dots(x, [=](int64_t n) { return rows + n * stride; }, count, dim, out);
}

// The length of a row padded to complete vectors, so that loops over it have no remainder.
inline int64_t padded(int64_t length) { return (length + LANES - 1) / LANES * LANES; }

// Replaces the first `count` numbers of the row by the softmax of scale * row, and the others by 0.
inline void softmax(float* row, int64_t count, int64_t width, float scale) {
    const int64_t whole = count / LANES * LANES;
    const Vector nothing = Vector{} - INFINITY;
    if (whole < count) store(row + whole, Part(count - whole).load_or(row + whole, nothing));
    for (int64_t j = padded(count); j < width; j += LANES) store(row + j, nothing);
    Vector most = load(row), sums{};
    for (int64_t j = LANES; j < width; j += LANES) most = load(row + j) > most ? load(row + j) : most;
    const float highest = highest_of(most);
    for (int64_t j = 0; j < width; j += LANES) {
        const Vector e = exponential(scale * (load(row + j) - highest));
        store(row + j, e);
        sums += e;
    }
    const float share = 1 / sum_of(sums);
    for (int64_t j = 0; j < width; j += LANES) store(row + j, share * load(row + j));
}

struct Dropping {
    int32_t threshold;  // a number is kept if its random word is at least this
    float kept;         // factor of kept numbers

    float of(int16_t word) const { return word >= threshold ? kept : 0.0f; }
};

struct Attention {
    const float *query, *key, *value;  // rows of the user's first token
    int64_t query_row, key_row;        // distance from one token to the next
    int64_t length, dim;
    float scale;
    bool causal;
    const int16_t* words;  // random words of all pairs, or null without dropout
    Dropping dropping;

    int64_t width() const { return padded(length); }
    int64_t seen(int64_t query_at) const { return causal ? query_at + 1 : length; }
    int64_t pairs() const { return causal ? length * (length + 1) / 2 : length * length; }
    int64_t memory() const { return panel_size(dim, length) + 2 * length * width(); }
};

// The weights after dropout.
inline const float* dropped(const Attention& a, const float* weights, float* memory) {
    if (!a.words) return weights;
    const int64_t width = a.width();
    const int16_t* words = a.words;
    const Dropping dropping = a.dropping;  // a copy, which stores to memory can't change
    for (int64_t i = 0; i < a.length; ++i) {
        const int64_t seen = a.seen(i);
        const float* from = weights + i * width;
        float* to = memory + i * width;
#pragma omp simd
        for (int64_t j = 0; j < seen; ++j) to[j] = from[j] * dropping.of(words[j]);
        for (int64_t j = seen; j < width; ++j) to[j] = 0;
        words += seen;
    }
    return memory;
}

// Processes a few queries at a time, so that with a causal mask few of the products are for keys that a query must not
// see. `weights` has the size length * width().
inline void attention_forward(const Attention& a, float* weights, float* out, int64_t out_row, float* memory) {
    const int64_t n = a.length, width = a.width();
    const Panels keys = panels(transposed(a.key, a.key_row), a.dim, n, memory);
    float* rest = memory + panel_size(a.dim, n);
    for (int64_t i = 0; i < n; i += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, n - i), most = a.seen(i + rows - 1);
        product<ZERO>(rows, most, a.dim, plain(a.query + i * a.query_row, a.query_row), keys, weights + i * width, width);
        for (int64_t r = i; r < i + rows; ++r) softmax(weights + r * width, a.seen(r), width, a.scale);
    }
    const float* used = dropped(a, weights, rest);
    for (int64_t i = 0; i < n; i += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, n - i), most = a.seen(i + rows - 1);
        product<ZERO>(rows, a.dim, most, plain(used + i * width, width), rows_of(a.value, a.key_row),
                      out + i * out_row, out_row);
    }
}

// The rows of each gradient are laid out like the rows of its argument.
inline void attention_backward(
    const Attention& a, const float* weights, const float* by_out, int64_t out_row, float* by_query, float* by_key,
    float* by_value, float* memory
) {
    const int64_t n = a.length, width = a.width();
    const Panels values = panels(transposed(a.value, a.key_row), a.dim, n, memory);
    float *by_scores = memory + panel_size(a.dim, n), *rest = by_scores + n * width;
    const int16_t* words = a.words;
    const Dropping dropping = a.dropping;
    for (int64_t i = 0; i < n; i += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, n - i), most = a.seen(i + rows - 1);
        product<ZERO>(rows, most, a.dim, plain(by_out + i * out_row, out_row), values, by_scores + i * width, width);
        for (int64_t r = i; r < i + rows; ++r) {
            const int64_t seen = a.seen(r);
            const float* weight = weights + r * width;
            float* by = by_scores + r * width;
            if (words) {
#pragma omp simd
                for (int64_t j = 0; j < seen; ++j) by[j] *= dropping.of(words[j]);
                words += seen;
            }
            for (int64_t j = seen; j < width; ++j) by[j] = 0;
            Vector sums{};
            for (int64_t j = 0; j < width; j += LANES) sums += load(weight + j) * load(by + j);
            const float sum = sum_of(sums);
            for (int64_t j = 0; j < width; j += LANES)
                store(by + j, a.scale * load(weight + j) * (load(by + j) - sum));
        }
        product<ZERO>(rows, a.dim, most, plain(by_scores + i * width, width), rows_of(a.key, a.key_row),
                      by_query + i * a.query_row, a.query_row);
    }
    const float* used = dropped(a, weights, rest);
    for (int64_t j = 0; j < n; j += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, n - j), from = a.causal ? j : 0, at = from * width + j;
        product<ZERO>(rows, a.dim, n - from, transposed(by_scores + at, width),
                      rows_of(a.query + from * a.query_row, a.query_row), by_key + j * a.key_row, a.key_row);
        product<ZERO>(rows, a.dim, n - from, transposed(used + at, width), rows_of(by_out + from * out_row, out_row),
                      by_value + j * a.key_row, a.key_row);
    }
}

// Attention of only the user's last token, which sees all tokens; `memory` has the size width().
inline void attention_last(const Attention& a, const float* query, float* out, float* memory) {
    dots(query, a.key, a.key_row, a.length, a.dim, memory);
    softmax(memory, a.length, a.width(), a.scale);
    product<ZERO>(1, a.dim, a.length, plain(memory, 0), rows_of(a.value, a.key_row), out, 0);
}

}  // namespace seqrec
