// The softmax of a block of tokens over a catalogue, a tile at a time, and its loss.
#pragma once

#include "tiles.h"

namespace seqrec {

// Replaces -inf, the maximum over no items, by 0, so that exponentials below it are 0 instead of NaN.
inline Vector finite(Vector highest) { return highest > Vector{} - INFINITY ? highest : Vector{}; }

// Subtracts `less` of each item from the logits of a tile, and updates the maximum of each token.
inline void highest_of(float* tile, int64_t items, const Block& block, const float* less, float* highest) {
    for (int64_t i = 0; i < items; ++i) {
        float* row = tile + i * block.row;
        const float off = less ? less[i] : 0.0f;
        for (int64_t t = 0; t < block.width; t += LANES) {
            const Vector x = load(row + t) - off, most = load(highest + t);
            store(row + t, x);
            store(highest + t, x > most ? x : most);
        }
    }
}

inline void exponentials(float* tile, int64_t items, const Block& block, const float* below, float* sums) {
    for (int64_t i = 0; i < items; ++i) {
        float* row = tile + i * block.row;
        for (int64_t t = 0; t < block.width; t += LANES) {
            const Vector e = exponential(load(row + t) - load(below + t));
            store(row + t, e);
            store(sums + t, load(sums + t) + e);
        }
    }
}

// The running softmax of each token of a block over the tiles so far: the highest logit, the sum of exponentials
// relative to it, and the sum of the items' vectors weighted by these exponentials.
struct Softmax {
    float highest[TOKENS];
    double sum[TOKENS];
    float* states;  // [tokens, dim]

    void begin(float* memory, int64_t count, int64_t dim) {
        std::fill(highest, highest + TOKENS, -INFINITY);
        std::fill(sum, sum + TOKENS, 0.0);
        states = memory;
        std::fill(states, states + count * dim, 0.0f);
    }

    // Adds a tile. Its logits are replaced by exponentials relative to `below`, which is set to the new maxima.
    void take(const Catalogue& c, int64_t tile, const Block& block, const float* less, float* logits, float* below) {
        float before[TOKENS], share[TOKENS], sums[TOKENS] = {};
        std::copy(highest, highest + TOKENS, before);
        highest_of(logits, c.items(tile), block, less ? less + c.first(tile) : nullptr, highest);
        for (int64_t t = 0; t < TOKENS; t += LANES) {
            store(below + t, finite(load(highest + t)));
            store(share + t, exponential(load(before + t) - load(below + t)));
        }
        for (int64_t t = 0; t < block.count; ++t) {
            if (!(highest[t] > before[t])) continue;
            sum[t] *= share[t];
            for (int64_t k = 0; k < c.dim; ++k) states[t * c.dim + k] *= share[t];
        }
        exponentials(logits, c.items(tile), block, below, sums);
        for (int64_t t = 0; t < TOKENS; ++t) sum[t] += sums[t];
        product<ADD>(block.count, c.dim, c.items(tile), transposed(logits, block.row), rows_of(c.of(tile), c.dim), states,
                     c.dim);
    }
};

// Copies rows, multiplied by a factor each if `factors` is given, and pads them with zeros to complete vectors.
inline Panels filled_up(const float* rows, int64_t count, int64_t dim, const float* factors, float* memory) {
    const int64_t wide = (dim + LANES - 1) / LANES * LANES;
    for (int64_t n = 0; n < count; ++n) {
        const float *from = rows + n * dim, factor = factors ? factors[n] : 1.0f;
        float* to = memory + n * wide;
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) to[k] = from[k] * factor;
        for (int64_t k = dim; k < wide; ++k) to[k] = 0;
    }
    return rows_of(memory, wide);
}

inline void add_times(int64_t count, float factor, const float* x, float* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += factor * x[k];
}

// The loss of a token, and the factors of its gradients that are the same for all items.
struct Ending {
    float by_target, factor;
    double loss;

    Ending(double sum, float highest, float target, double scale) {
        // softplus(excess) and its derivative.
        const double excess = std::log(sum) + (highest > -INFINITY ? highest : 0.0f) - target;
        loss = excess > 0 ? excess + std::log1p(std::exp(-excess)) : std::log1p(std::exp(excess));
        const double share = scale / (1 + std::exp(-excess));
        by_target = float(-share);
        factor = float(sum > 0 ? share / sum : sum);  // NaN stays NaN
    }
};

}  // namespace seqrec
