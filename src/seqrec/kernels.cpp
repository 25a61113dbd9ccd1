// Inner loops that no kept library has for packed histories: see kernels.py, which loads this and says what each
// function computes. Plain C interface, so that it is built without torch and works with every release of it.
//
// Results don't depend on the number of threads: a thread owns whole users or whole rows of a table.

#include "kernels.h"

namespace {

// e to the power of x <= 0, within 2 units of float32's last place, and 0 where that is below all normal numbers;
// written out so that compilers do many at once.
inline float exponential(float given) {
    const float x = given < -87.0f ? -87.0f : given;
    const int32_t power = int32_t(x * 1.44269504f - 0.5f);  // the nearest whole number: conversion cuts towards 0
    const float whole = float(power);
    const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const int32_t bits = (power + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return given < -87.0f ? 0.0f : y * scale;
}

// out[0 .. count) = x . rows[n], n from 0, rows `stride` apart.
inline void dots(const float* x, const float* rows, int64_t stride, int64_t count, int64_t dim, float* out) {
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) {
        const float *a = rows + n * stride, *b = a + stride, *c = b + stride, *d = c + stride;
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
        const float* a = rows + n * stride;
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t k = 0; k < dim; ++k) s += x[k] * a[k];
        out[n] = s;
    }
}

// out += sum over n of weights[n * step] * rows[n].
inline void mix(
    const float* weights, int64_t step, const float* rows, int64_t stride, int64_t count, int64_t dim, float* out
) {
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) {
        const float *a = rows + n * stride, *b = a + stride, *c = b + stride, *d = c + stride;
        const float w0 = weights[n * step], w1 = weights[(n + 1) * step];
        const float w2 = weights[(n + 2) * step], w3 = weights[(n + 3) * step];
        for (int64_t k = 0; k < dim; ++k) out[k] += w0 * a[k] + w1 * b[k] + w2 * c[k] + w3 * d[k];
    }
    for (; n < count; ++n) {
        const float* a = rows + n * stride;
        const float w = weights[n * step];
        for (int64_t k = 0; k < dim; ++k) out[k] += w * a[k];
    }
}

inline float highest_of(const float* row, int64_t count) {
    float highest = -INFINITY;
#pragma omp simd reduction(max : highest)
    for (int64_t k = 0; k < count; ++k) highest = row[k] > highest ? row[k] : highest;
    return highest;
}

// row becomes e^(row - subtracted), times the scale in the exponent; their sum.
inline float exponentials(float* row, int64_t count, float scale, float subtracted) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; ++k) {
        const float e = exponential(scale * (row[k] - subtracted));
        row[k] = e;
        sum += e;
    }
    return sum;
}

inline void softmax(float* row, int64_t count, float scale) {
    const float share = 1 / exponentials(row, count, scale, highest_of(row, count));
    for (int64_t k = 0; k < count; ++k) row[k] *= share;
}

struct Attention {
    const float *query, *key, *value;  // first token of the first user, of the first head
    int64_t query_stride, key_stride;  // between tokens
    int64_t dim;                       // of a head
    float scale;
    bool causal;
    int32_t threshold;  // a weight stays where its word is at least this
    float kept;         // and is multiplied by this
};

inline int64_t width_of(const Attention& a, int64_t length, int64_t row) { return a.causal ? row + 1 : length; }

// One user and head. `weights` holds the softmax, row after row, if there is room for it.
FOR_EACH_PROCESSOR
void forward_one(
    const Attention& a, int64_t first, int64_t length, const int16_t* words, float* weights, float* out,
    int64_t out_stride, float* memory
) {
    for (int64_t i = 0; i < length; ++i) {
        const int64_t width = width_of(a, length, i);
        float* row = weights ? weights : memory;
        dots(a.query + (first + i) * a.query_stride, a.key + first * a.key_stride, a.key_stride, width, a.dim, row);
        softmax(row, width, a.scale);
        const float* used = row;
        if (words) {
            for (int64_t j = 0; j < width; ++j) memory[j] = words[j] >= a.threshold ? row[j] * a.kept : 0.0f;
            used = memory;
            words += width;
        }
        float* result = out + (first + i) * out_stride;
        std::memset(result, 0, a.dim * sizeof(float));
        mix(used, 1, a.value + first * a.key_stride, a.key_stride, width, a.dim, result);
        if (weights) weights += width;
    }
}

// The user's last token alone looks at all.
FOR_EACH_PROCESSOR
void last_one(
    const float* query, const float* key, const float* value, int64_t stride, int64_t length, int64_t dim, float scale,
    float* out, float* memory
) {
    dots(query, key, stride, length, dim, memory);
    softmax(memory, length, scale);
    std::memset(out, 0, dim * sizeof(float));
    mix(memory, 1, value, stride, length, dim, out);
}

// Gradients of one user and head. `memory` has room for two matrices of length * length.
FOR_EACH_PROCESSOR
void backward_one(
    const Attention& a, int64_t first, int64_t length, const int16_t* words, const float* weights, const float* by_out,
    int64_t out_stride, float* by_query, float* by_key, float* by_value, float* memory
) {
    float *by_scores = memory, *used = memory + length * length;
    for (int64_t i = 0; i < length; ++i) {
        const int64_t width = width_of(a, length, i);
        float *row = by_scores + i * length, *mixed = used + i * length;
        dots(by_out + (first + i) * out_stride, a.value + first * a.key_stride, a.key_stride, width, a.dim, row);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; ++j) {
            const float keep = !words || words[j] >= a.threshold ? a.kept : 0.0f;
            mixed[j] = weights[j] * keep;
            row[j] *= keep;
            sum += weights[j] * row[j];
        }
        for (int64_t j = 0; j < width; ++j) row[j] = a.scale * weights[j] * (row[j] - sum);
        float* result = by_query + (first + i) * a.query_stride;
        std::memset(result, 0, a.dim * sizeof(float));
        mix(row, 1, a.key + first * a.key_stride, a.key_stride, width, a.dim, result);
        weights += width;
        if (words) words += width;
    }
    for (int64_t j = 0; j < length; ++j) {
        const int64_t from = a.causal ? j : 0;
        float *key = by_key + (first + j) * a.key_stride, *value = by_value + (first + j) * a.key_stride;
        std::memset(key, 0, a.dim * sizeof(float));
        std::memset(value, 0, a.dim * sizeof(float));
        const int64_t cell = from * length + j;
        mix(by_scores + cell, length, a.query + (first + from) * a.query_stride, a.query_stride, length - from, a.dim,
            key);
        mix(used + cell, length, by_out + (first + from) * out_stride, out_stride, length - from, a.dim, value);
    }
}

// Where each user's pairs begin, `users + 1` numbers; how many there are.
int64_t pair_starts(const int64_t* offsets, int64_t users, bool causal, int64_t* starts) {
    starts[0] = 0;
    for (int64_t u = 0; u < users; ++u) {
        const int64_t n = offsets[u + 1] - offsets[u];
        starts[u + 1] = starts[u] + (causal ? n * (n + 1) / 2 : n * n);
    }
    return starts[users];
}

// out = residual + dropout(relu(x)), with what is asked for of it; x may be out.
FOR_EACH_PROCESSOR
void drop_some(
    const float* x, const float* residual, const int16_t* words, int64_t count, int32_t threshold, float kept,
    bool relu, float* out
) {
    if (relu) {
        for (int64_t k = 0; k < count; ++k) out[k] = x[k] > 0 ? x[k] : (x[k] == x[k] ? 0.0f : x[k]);
        x = out;
    }
    if (words) {
        for (int64_t k = 0; k < count; ++k) out[k] = words[k] >= threshold ? x[k] * kept : 0.0f;
        x = out;
    }
    if (residual) {
        for (int64_t k = 0; k < count; ++k) out[k] = x[k] + residual[k];
    } else if (x != out) {
        std::memcpy(out, x, count * sizeof(float));
    }
}

// The gradient where dropout(relu(x)) is above 0, times `kept`.
FOR_EACH_PROCESSOR
void where_positive(const float* y, int64_t count, float kept, float* gradient) {
    for (int64_t k = 0; k < count; ++k) gradient[k] = y[k] > 0 ? gradient[k] * kept : 0.0f;
}

// out = dropout(scale * x + position) of one token.
FOR_EACH_PROCESSOR
void position_row(
    const float* x, const float* position, int64_t dim, float scale, const int16_t* words, int32_t threshold,
    float kept, float* out
) {
    for (int64_t k = 0; k < dim; ++k) out[k] = scale * x[k] + position[k];
    if (words)
        for (int64_t k = 0; k < dim; ++k) out[k] = words[k] >= threshold ? out[k] * kept : 0.0f;
}

FOR_EACH_PROCESSOR
void position_row_backward(
    const float* by_out, int64_t dim, float scale, const int16_t* words, int32_t threshold, float kept, float* by_x,
    float* by_position
) {
    for (int64_t k = 0; k < dim; ++k) {
        const float by = !words ? by_out[k] : words[k] >= threshold ? by_out[k] * kept : 0.0f;
        by_x[k] = scale * by;
        by_position[k] += by;
    }
}

// One row of negatives' logits: the loss against the target; the logits become their gradients but for a factor, which
// is cheaper to give to what they are multiplied by.
FOR_EACH_PROCESSOR
double softmax_row(
    float* row, int64_t count, const float* log_probability, float target, float scale, float* by_target, float* factor
) {
    if (log_probability)
        for (int64_t k = 0; k < count; ++k) row[k] -= log_probability[k];
    float highest = highest_of(row, count);
    if (highest == -INFINITY) highest = 0;  // where all are left out, the sum is 0
    double sum = 0;
    for (int64_t low = 0; low < count; low += 1024)  // a million float32 added one after another lose digits
        sum += exponentials(row + low, std::min<int64_t>(1024, count - low), 1, highest);
    // softplus(excess) and its derivative.
    const double excess = std::log(sum) + highest - target;
    const double loss = excess > 0 ? excess + std::log1p(std::exp(-excess)) : std::log1p(std::exp(excess));
    const double share = scale / (1 + std::exp(-excess));
    *by_target = float(-share);
    *factor = float(sum > 0 ? share / sum : sum);  // what is no number stays so
    return loss;
}

// The products of one row with its candidates, and their gradients.
FOR_EACH_PROCESSOR
void score_row(const float* hidden, const float* vectors, int64_t count, int64_t dim, float* out) {
    dots(hidden, vectors, dim, count, dim, out);
}

FOR_EACH_PROCESSOR
void score_row_backward(
    const float* hidden, const float* vectors, const float* by_out, int64_t count, int64_t dim, float* by_hidden,
    float* by_vectors
) {
    std::memset(by_hidden, 0, dim * sizeof(float));
    mix(by_out, 1, vectors, dim, count, dim, by_hidden);
    for (int64_t c = 0; c < count; ++c)
        for (int64_t k = 0; k < dim; ++k) by_vectors[c * dim + k] = by_out[c] * hidden[k];
}

}  // namespace

extern "C" {

// Changes with every change of a signature.
int32_t seqrec_kernels_version() { return 10; }

void seqrec_attention_forward(
    const float* query, const float* key, const float* value, int64_t query_stride, int64_t key_stride,
    const int64_t* offsets, int64_t users, int64_t heads, int64_t dim, float scale, int32_t causal,
    const int16_t* words, int32_t threshold, float kept, int64_t* starts, float* scratch, int64_t scratch_size,
    float* weights, float* out, int32_t threads
) {
    const int64_t pairs = pair_starts(offsets, users, causal != 0, starts), out_stride = heads * dim;
#pragma omp parallel num_threads(threads)
    {
        float* memory = scratch + omp_get_thread_num() * scratch_size;
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < users * heads; ++task) {
            const int64_t head = task % heads, user = task / heads, cell = head * pairs + starts[user];
            const Attention a{query + head * dim, key + head * dim, value + head * dim, query_stride, key_stride,
                              dim, scale, causal != 0, threshold, kept};
            forward_one(a, offsets[user], offsets[user + 1] - offsets[user], words ? words + cell : nullptr,
                        weights ? weights + cell : nullptr, out + head * dim, out_stride, memory);
        }
    }
}

// One query a user, in the order of users.
void seqrec_attention_last(
    const float* query, const float* key, const float* value, int64_t query_stride, int64_t key_stride,
    const int64_t* offsets, int64_t users, int64_t heads, int64_t dim, float scale, float* scratch,
    int64_t scratch_size, float* out, int32_t threads
) {
    const int64_t out_stride = heads * dim;
#pragma omp parallel num_threads(threads)
    {
        float* memory = scratch + omp_get_thread_num() * scratch_size;
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < users * heads; ++task) {
            const int64_t head = task % heads, user = task / heads, first = offsets[user] * key_stride + head * dim;
            last_one(query + user * query_stride + head * dim, key + first, value + first, key_stride,
                     offsets[user + 1] - offsets[user], dim, scale, out + user * out_stride + head * dim, memory);
        }
    }
}

void seqrec_attention_backward(
    const float* query, const float* key, const float* value, int64_t query_stride, int64_t key_stride,
    const int64_t* offsets, int64_t users, int64_t heads, int64_t dim, float scale, int32_t causal,
    const int16_t* words, int32_t threshold, float kept, int64_t* starts, float* scratch, int64_t scratch_size,
    const float* weights, const float* by_out, float* by_query, float* by_key, float* by_value, int32_t threads
) {
    const int64_t pairs = pair_starts(offsets, users, causal != 0, starts), out_stride = heads * dim;
#pragma omp parallel num_threads(threads)
    {
        float* memory = scratch + omp_get_thread_num() * scratch_size;
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < users * heads; ++task) {
            const int64_t head = task % heads, user = task / heads, cell = head * pairs + starts[user];
            const Attention a{query + head * dim, key + head * dim, value + head * dim, query_stride, key_stride,
                              dim, scale, causal != 0, threshold, kept};
            backward_one(a, offsets[user], offsets[user + 1] - offsets[user], words ? words + cell : nullptr,
                         weights + cell, by_out + head * dim, out_stride, by_query + head * dim, by_key + head * dim,
                         by_value + head * dim, memory);
        }
    }
}

void seqrec_dropout(
    const float* x, const float* residual, const int16_t* words, int64_t count, int32_t threshold, float kept,
    int32_t relu, float* out, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t low = 0; low < count; low += 2048)  // so that a part stays in the cache between its passes
        drop_some(x + low, residual ? residual + low : nullptr, words ? words + low : nullptr,
                  std::min<int64_t>(2048, count - low), threshold, kept, relu != 0, out + low);
}

void seqrec_where_positive(const float* y, int64_t count, float kept, float* gradient, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t low = 0; low < count; low += 2048)
        where_positive(y + low, std::min<int64_t>(2048, count - low), kept, gradient + low);
}

// The table has a row for each place of a window of `size`, whose last one is that of a user's last token.
void seqrec_positions(
    const float* x, const float* table, int64_t size, const int64_t* offsets, int64_t users, int64_t dim, float scale,
    const int16_t* words, int32_t threshold, float kept, float* out, int32_t threads
) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (int64_t user = 0; user < users; ++user)
        for (int64_t t = offsets[user]; t < offsets[user + 1]; ++t)
            position_row(x + t * dim, table + (size + t - offsets[user + 1]) * dim, dim, scale,
                         words ? words + t * dim : nullptr, threshold, kept, out + t * dim);
}

// A thread owns columns, as all tokens share the table.
void seqrec_positions_backward(
    const float* by_out, int64_t size, const int64_t* offsets, int64_t users, int64_t dim, float scale,
    const int16_t* words, int32_t threshold, float kept, float* by_x, float* by_table, int32_t threads
) {
#pragma omp parallel num_threads(threads)
    {
        const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t low = dim * mine / all, width = dim * (mine + 1) / all - low;
        for (int64_t user = 0; user < users; ++user)
            for (int64_t t = offsets[user]; t < offsets[user + 1]; ++t) {
                const int64_t at = t * dim + low;
                position_row_backward(by_out + at, width, scale, words ? words + at : nullptr, threshold, kept,
                                      by_x + at, by_table + (size + t - offsets[user + 1]) * dim + low);
            }
    }
}

void seqrec_score(
    const float* hidden, const float* vectors, int64_t rows, int64_t count, int64_t dim, float* out, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; ++n)
        score_row(hidden + n * dim, vectors + n * count * dim, count, dim, out + n * count);
}

void seqrec_score_backward(
    const float* hidden, const float* vectors, const float* by_out, int64_t rows, int64_t count, int64_t dim,
    float* by_hidden, float* by_vectors, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; ++n)
        score_row_backward(hidden + n * dim, vectors + n * count * dim, by_out + n * count, count, dim,
                           by_hidden + n * dim, by_vectors + n * count * dim);
}

// Rows without a gap; a logit of -inf is left out. `losses` are those of the rows, which are not scaled.
void seqrec_softmax_rows(
    float* logits, int64_t rows, int64_t count, const float* log_probability, const float* targets, float scale,
    float* by_targets, float* factors, double* losses, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; ++n)
        losses[n] =
            softmax_row(logits + n * count, count, log_probability, targets[n], scale, by_targets + n, factors + n);
}

}  // extern "C"
