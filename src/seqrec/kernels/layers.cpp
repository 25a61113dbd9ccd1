// Inner loops over packed histories. layers.py describes what each function computes.
//
// The interface is plain C, so that it compiles without torch and works with every release of torch. Results don't
// depend on the number of threads, because each thread processes complete users or complete columns.

#include "attention.h"

using namespace seqrec;

namespace {

// Where each user's random words and softmax weights begin.
struct Places {
    std::vector<int64_t> words, weights;
    int64_t pairs, cells, longest;

    Places(const int64_t* offsets, int64_t users, bool causal) : words(users), weights(users), pairs(0), cells(0), longest(0) {
        for (int64_t u = 0; u < users; ++u) {
            const int64_t n = offsets[u + 1] - offsets[u];
            words[u] = pairs, weights[u] = cells;
            pairs += causal ? n * (n + 1) / 2 : n * n;
            cells += n * padded(n);
            longest = std::max(longest, n);
        }
    }
};

// out = residual + dropout(relu(x)), where each of the three parts is optional. out may be the same memory as x.
void drop_some(
    const float* x, const float* residual, const int16_t* words, int64_t count, Dropping dropping, bool relu, float* out
) {
    if (relu) {
        for (int64_t k = 0; k < count; ++k) out[k] = x[k] > 0 ? x[k] : (x[k] == x[k] ? 0.0f : x[k]);
        x = out;
    }
    if (words) {
        for (int64_t k = 0; k < count; ++k) out[k] = words[k] >= dropping.threshold ? x[k] * dropping.kept : 0.0f;
        x = out;
    }
    if (residual) {
        for (int64_t k = 0; k < count; ++k) out[k] = x[k] + residual[k];
    } else if (x != out) {
        std::memcpy(out, x, count * sizeof(float));
    }
}

}  // namespace

extern "C" {

// Raise this with every change of a signature.
int32_t seqrec_kernels_version() { return 27; }

// Numbers in a vector. Rows of softmax weights are padded to a multiple of this.
int32_t seqrec_lanes(int32_t) { return LANES; }

void seqrec_attention_forward(
    const float* query, const float* key, const float* value, int64_t query_row, int64_t key_row,
    const int64_t* offsets, int64_t users, int64_t heads, int64_t dim, float scale, int32_t causal,
    const int16_t* words, int32_t threshold, float kept, float* weights, float* out, int32_t threads
) {
    const Places places(offsets, users, causal != 0);
    const int64_t out_row = heads * dim;
#pragma omp parallel num_threads(threads)
    {
        const int64_t most = places.longest * padded(places.longest);
        const auto memory = room(panel_size(dim, places.longest) + 3 * most);
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < users * heads; ++task) {
            const int64_t head = task % heads, user = task / heads, first = offsets[user];
            const Attention a{query + first * query_row + head * dim, key + first * key_row + head * dim,
                              value + first * key_row + head * dim, query_row, key_row, offsets[user + 1] - first, dim,
                              scale, causal != 0, words ? words + head * places.pairs + places.words[user] : nullptr,
                              {threshold, kept}};
            attention_forward(a, weights ? weights + head * places.cells + places.weights[user] : memory.get(),
                              out + first * out_row + head * dim, out_row, memory.get() + most);
        }
    }
}

// One query per user, in the order of the users.
void seqrec_attention_last(
    const float* query, const float* key, const float* value, int64_t query_row, int64_t key_row,
    const int64_t* offsets, int64_t users, int64_t heads, int64_t dim, float scale, float* out, int32_t threads
) {
    const Places places(offsets, users, true);
    const int64_t out_row = heads * dim;
#pragma omp parallel num_threads(threads)
    {
        const auto memory = room(padded(places.longest));
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < users * heads; ++task) {
            const int64_t head = task % heads, user = task / heads, first = offsets[user];
            const Attention a{nullptr, key + first * key_row + head * dim, value + first * key_row + head * dim, query_row,
                              key_row, offsets[user + 1] - first, dim, scale, true, nullptr, {}};
            attention_last(a, query + user * query_row + head * dim, out + user * out_row + head * dim, memory.get());
        }
    }
}

void seqrec_attention_backward(
    const float* query, const float* key, const float* value, int64_t query_row, int64_t key_row,
    const int64_t* offsets, int64_t users, int64_t heads, int64_t dim, float scale, int32_t causal,
    const int16_t* words, int32_t threshold, float kept, const float* weights, const float* by_out, float* by_query,
    float* by_key, float* by_value, int32_t threads
) {
    const Places places(offsets, users, causal != 0);
    const int64_t out_row = heads * dim;
#pragma omp parallel num_threads(threads)
    {
        const int64_t most = places.longest * padded(places.longest);
        const auto memory = room(panel_size(dim, places.longest) + 2 * most);
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < users * heads; ++task) {
            const int64_t head = task % heads, user = task / heads, first = offsets[user];
            const int64_t by_keys = first * key_row + head * dim;
            const Attention a{query + first * query_row + head * dim, key + by_keys, value + by_keys, query_row, key_row,
                              offsets[user + 1] - first, dim, scale, causal != 0,
                              words ? words + head * places.pairs + places.words[user] : nullptr, {threshold, kept}};
            attention_backward(a, weights + head * places.cells + places.weights[user],
                               by_out + first * out_row + head * dim, out_row,
                               by_query + first * query_row + head * dim, by_key + by_keys, by_value + by_keys,
                               memory.get());
        }
    }
}

void seqrec_dropout(
    const float* x, const float* residual, const int16_t* words, int64_t count, int32_t threshold, float kept,
    int32_t relu, float* out, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t low = 0; low < count; low += 2048)  // in pieces, so that data stays in the cache between passes
        drop_some(x + low, residual ? residual + low : nullptr, words ? words + low : nullptr,
                  std::min<int64_t>(2048, count - low), {threshold, kept}, relu != 0, out + low);
}

// Backward of y = dropout(relu(x)): multiplies the gradient by `kept` where y > 0, and sets it to 0 elsewhere.
void seqrec_where_positive(const float* y, int64_t count, float kept, float* gradient, int32_t threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; ++k) gradient[k] = y[k] > 0 ? gradient[k] * kept : 0.0f;
}

// The table has a row for each position in a window of `size`. Each user's last token has the last position.
void seqrec_positions(
    const float* x, const float* table, int64_t size, const int64_t* offsets, int64_t users, int64_t dim, float scale,
    const int16_t* words, int32_t threshold, float kept, float* out, int32_t threads
) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (int64_t user = 0; user < users; ++user)
        for (int64_t t = offsets[user]; t < offsets[user + 1]; ++t) {
            const float *from = x + t * dim, *position = table + (size + t - offsets[user + 1]) * dim;
            float* to = out + t * dim;
            if (words)
#pragma omp simd
                for (int64_t k = 0; k < dim; ++k)
                    to[k] = words[t * dim + k] >= threshold ? (scale * from[k] + position[k]) * kept : 0.0f;
            else
#pragma omp simd
                for (int64_t k = 0; k < dim; ++k) to[k] = scale * from[k] + position[k];
        }
}

// Work is divided by columns, because all tokens add to the same rows of the table.
void seqrec_positions_backward(
    const float* by_out, int64_t size, const int64_t* offsets, int64_t users, int64_t dim, float scale,
    const int16_t* words, int32_t threshold, float kept, float* by_x, float* by_table, int32_t threads
) {
#pragma omp parallel num_threads(threads)
    {
        const Share own(dim);
        for (int64_t user = 0; user < users; ++user)
            for (int64_t t = offsets[user]; t < offsets[user + 1]; ++t) {
                const int64_t at = t * dim;
                float* row = by_table + (size + t - offsets[user + 1]) * dim;
#pragma omp simd
                for (int64_t k = own.low; k < own.high; ++k) {
                    const float by = !words ? by_out[at + k] : words[at + k] >= threshold ? by_out[at + k] * kept : 0.0f;
                    by_x[at + k] = scale * by;
                    row[k] += by;
                }
            }
    }
}

}  // extern "C"
