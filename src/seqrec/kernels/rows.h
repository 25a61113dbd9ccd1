// Blocks of layers over packed histories: chunks of tokens for the threads, layer norms, dropout and sums over rows.
#pragma once

#include "attention.h"

namespace seqrec {

// Consecutive users.
struct Chunk {
    int64_t user, users, token, tokens, word, weight;  // the first of each, and the numbers of users and tokens
};

// The chunks of each thread, balanced by the cost of the computation.
struct Plan {
    std::vector<std::vector<Chunk>> chunks;
    int64_t pairs = 0, weights = 0, longest = 0, most;
    int64_t stride;  // from one head's softmax weights to the next's

    // cost: of a user with so many tokens. size: tokens per chunk, if no user has more.
    template <typename Cost>
    Plan(const int64_t* offsets, int64_t users, int64_t threads, Cost cost, int64_t size = TOKENS)
        : chunks(threads), most(size) {
        double all = 0, done = 0;
        for (int64_t u = 0; u < users; ++u) all += cost(offsets[u + 1] - offsets[u]);
        for (int64_t u = 0; u < users; ++u) {
            const int64_t n = offsets[u + 1] - offsets[u];
            const int64_t thread = std::min(threads - 1, int64_t((done + cost(n) / 2) / std::max(all, 1.0) * double(threads)));
            std::vector<Chunk>& own = chunks[thread];
            if (own.empty() || own.back().tokens + n > size) own.push_back({u, 0, offsets[u], 0, pairs, weights});
            own.back().users += 1, own.back().tokens += n;
            done += cost(n), pairs += n * (n + 1) / 2, weights += n * padded(n);
            longest = std::max(longest, n), most = std::max(most, n);
        }
        stride = weights;
    }
};

// Calls each(chunk, memory) for all chunks, each thread with its own memory for so many numbers.
template <typename Each>
void for_each_chunk(const Plan& plan, int64_t threads, int64_t numbers, Each each) {
#pragma omp parallel num_threads(threads)
    {
        const auto memory = room(numbers);
        for (int64_t n = omp_get_thread_num(); n < threads; n += omp_get_num_threads())
            for (const Chunk& chunk : plan.chunks[n]) each(chunk, memory.get());
    }
}

inline void add(int64_t count, const float* x, float* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += x[k];
}

// Calls each(chunk, gradients, memory) for all chunks, which adds to the gradients of its thread, and writes their sums
// over threads. size(n): size of gradient n.
template <int COUNT, typename Size, typename Each>
void sum_gradients(const Plan& plan, int64_t threads, int64_t numbers, Size size, float* const* to, Each each) {
    int64_t starts[COUNT + 1] = {};
    for (int name = 0; name < COUNT; ++name) starts[name + 1] = starts[name] + size(name);
    const int64_t all = starts[COUNT];
    const auto sums = room(threads * all);
#pragma omp parallel num_threads(threads)
    {
        const auto memory = room(numbers);
        for (int64_t n = omp_get_thread_num(); n < threads; n += omp_get_num_threads()) {
            float* by[COUNT];
            for (int name = 0; name < COUNT; ++name) by[name] = sums.get() + n * all + starts[name];
            std::fill(by[0], by[0] + all, 0.0f);
            for (const Chunk& chunk : plan.chunks[n]) each(chunk, by, memory.get());
        }
#pragma omp barrier
        for (int name = 0; name < COUNT; ++name) {
            const Share own(size(name));
            std::memcpy(to[name] + own.low, sums.get() + starts[name] + own.low, (own.high - own.low) * sizeof(float));
            for (int64_t n = 1; n < threads; ++n) add(own.high - own.low, sums.get() + n * all + starts[name] + own.low, to[name] + own.low);
        }
    }
}

// A linear layer of shape [out, in].
struct Layer {
    const float* weight;
    int64_t out, in;
};

// The matrices of linear layers as right sides of products, shared by all threads. Forward multiplies by the transposed
// matrices, backward by the matrices themselves.
template <int COUNT>
struct Matrices {
    Room memory;
    Panels of[COUNT];

    Matrices(const Layer (&layers)[COUNT], bool forward) {
        int64_t all = 0;
        for (const Layer& l : layers) all += forward ? panel_size(l.in, l.out) : panel_size(l.out, l.in);
        memory = room(all);
        float* to = memory.get();
        for (int n = 0; n < COUNT; ++n) {
            const Layer& l = layers[n];
            of[n] = forward ? panels(transposed(l.weight, l.in), l.in, l.out, to) : panels(plain(l.weight, l.in), l.out, l.in, to);
            to += forward ? panel_size(l.in, l.out) : panel_size(l.out, l.in);
        }
    }
};

inline void normalize(int64_t rows, int64_t dim, const float* x, const float* gain, const float* bias, float epsilon, float* means, float* out) {
    for (int64_t r = 0; r < rows; ++r, x += dim, out += dim) {
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < dim; ++k) sum += x[k];
        const float mean = sum / float(dim);
#pragma omp simd reduction(+ : squares)
        for (int64_t k = 0; k < dim; ++k) squares += (x[k] - mean) * (x[k] - mean);
        const float over = 1 / std::sqrt(squares / float(dim) + epsilon);
        means[2 * r] = mean, means[2 * r + 1] = over;
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) out[k] = (x[k] - mean) * over * gain[k] + bias[k];
    }
}

// Recomputes the result of `normalize` from the saved means.
inline void normalized(int64_t rows, int64_t dim, const float* x, const float* gain, const float* bias, const float* means, float* out) {
    for (int64_t r = 0; r < rows; ++r, x += dim, out += dim) {
        const float mean = means[2 * r], over = means[2 * r + 1];
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) out[k] = (x[k] - mean) * over * gain[k] + bias[k];
    }
}

// Adds the gradient with respect to x to `by_x`, which must not be the same memory as `by`.
inline void normalize_backward(
    int64_t rows, int64_t dim, const float* x, const float* gain, const float* means, const float* by, float* by_x,
    float* by_gain, float* by_bias
) {
    for (int64_t r = 0; r < rows; ++r, x += dim, by += dim, by_x += dim) {
        const float mean = means[2 * r], over = means[2 * r + 1];
        float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t k = 0; k < dim; ++k) {
            const float own = (x[k] - mean) * over, weighted = by[k] * gain[k];
            sum += weighted;
            product += weighted * own;
            by_gain[k] += by[k] * own;
            by_bias[k] += by[k];
        }
        sum /= float(dim), product /= float(dim);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) by_x[k] += over * (by[k] * gain[k] - sum - (x[k] - mean) * over * product);
    }
}

inline void add_rows(int64_t rows, int64_t dim, const float* x, float* to) {
    for (int64_t r = 0; r < rows; ++r) add(dim, x + r * dim, to);
}

// out = base + dropout(x); base may be null.
inline void drop_onto(int64_t count, const float* x, const float* base, const int16_t* words, Dropping d, float* out) {
    if (words && base)
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) out[k] = base[k] + (words[k] >= d.threshold ? x[k] * d.kept : 0.0f);
    else if (words)
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) out[k] = words[k] >= d.threshold ? x[k] * d.kept : 0.0f;
    else if (base)
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) out[k] = base[k] + x[k];
    else
        std::memcpy(out, x, count * sizeof(float));
}

}  // namespace seqrec
