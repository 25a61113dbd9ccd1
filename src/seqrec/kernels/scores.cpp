// Scores of candidates and losses over them. scores.py describes what each function computes.

#include "attention.h"
#include "softmax.h"

using namespace seqrec;

namespace {

constexpr int64_t AHEAD = 8;       // number of candidates that are fetched before their turn
constexpr int64_t KEPT = 1 << 22;  // highest number of exponentials kept for backward: 16 MiB

// Gradients of the dot products of one state with its own candidates.
void score_gradients(
    const float* state, const float* candidates, const float* by, int64_t count, int64_t dim, float* by_state,
    float* by_candidates
) {
    product<ZERO>(1, dim, count, plain(by, 0), rows_of(candidates, dim), by_state, 0);
    for (int64_t c = 0; c < count; ++c)
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) by_candidates[c * dim + k] = by[c] * state[k];
}

}  // namespace

extern "C" {

// The matrix product that everything here uses, for tests and for measurements of the machine's speed.
void seqrec_product(
    const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t b_column, int64_t rows,
    int64_t columns, int64_t depth, float* out, int32_t threads
) {
    const auto memory = room(panel_size(depth, columns));
    const Panels right = panels({b, b_row, b_column}, depth, columns, memory.get());
#pragma omp parallel num_threads(threads)
    {
        const Share own(rows);
        product<ZERO>(own.high - own.low, columns, depth, {a + own.low * a_row, a_row, a_column}, right,
                      out + own.low * columns, columns);
    }
}

// Dot products of each row with its own candidates, and their gradients.
void seqrec_score(
    const float* hidden, const float* vectors, int64_t rows, int64_t count, int64_t dim, float* out, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; ++n) dots(hidden + n * dim, vectors + n * count * dim, dim, count, dim, out + n * count);
}

void seqrec_score_backward(
    const float* hidden, const float* vectors, const float* by_out, int64_t rows, int64_t count, int64_t dim,
    float* by_hidden, float* by_vectors, int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; ++n)
        score_gradients(hidden + n * dim, vectors + n * count * dim, by_out + n * count, count, dim, by_hidden + n * dim,
                        by_vectors + n * count * dim);
}

// Dot products of each row with some of the items. Their vectors are scattered, so they are fetched before their turn.
void seqrec_score_items(
    const float* hidden, const float* vectors, const int64_t* items, int64_t rows, int64_t count, int64_t dim, float* out,
    int32_t threads
) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; ++n) {
        const int64_t* own = items + n * count;
        const auto row = [=](int64_t c) {
            const float* later = vectors + own[std::min(c + AHEAD, count - 1)] * dim;
            for (int64_t k = 0; k < dim; k += 16) __builtin_prefetch(later + k);
            return vectors + own[c] * dim;
        };
        dots(hidden + n * dim, row, count, dim, out + n * count);
    }
}

// Binary cross-entropy of each row's first candidate against the others, and the gradients of the mean.
void seqrec_binary_loss(
    const float* hidden, const float* vectors, int64_t rows, int64_t count, int64_t dim, double* losses, float* by_hidden,
    float* by_vectors, int32_t threads
) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> by(count);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; ++n) {
            const float *state = hidden + n * dim, *candidates = vectors + n * count * dim;
            dots(state, candidates, dim, count, dim, by.data());
            losses[n] = 0;
            for (int64_t c = 0; c < count; ++c) {
                const double x = c ? by[c] : -by[c], e = std::exp(-std::abs(x));  // softplus(x) and its derivative
                losses[n] += std::log1p(e) + (x > 0 ? x : 0);
                const double share = (x > 0 ? 1 : e) / (1 + e);
                by[c] = float((c ? share : -share) / double(rows));
            }
            score_gradients(state, candidates, by.data(), count, dim, by_hidden + n * dim, by_vectors + n * count * dim);
        }
    }
}

// If the exponentials of a block of tokens fit into KEPT, they are kept between forward and backward, for as many
// blocks at a time as fit. Otherwise they are computed again, and all tokens are processed together, so that each tile
// of a large catalogue is loaded into the cache twice per call and not twice per block. Threads divide the catalogue
// among them.
//
// Targets are given in one of two ways. `target_items` are rows of `vectors`: the pairs to ignore must then be exactly
// the targets, and the targets' gradients are added to those of the states and vectors. `targets` are logits.
void seqrec_softmax_loss(
    const float* hidden, const float* vectors, const float* targets, const int64_t* target_items,
    const float* log_probability, const int64_t* tokens, const int64_t* left_out, int64_t pairs, int64_t count,
    int64_t items, int64_t dim, double* losses, float* by_hidden, float* by_vectors, float* by_targets, int32_t threads
) {
    const Catalogue catalogue(vectors, items, dim, threads);
    std::vector<Block> blocks;
    for (int64_t first = 0; first < count; first += TOKENS) {
        blocks.emplace_back(hidden, first, std::min(TOKENS, count - first), dim);
        blocks.back().leave_out(tokens, left_out, pairs);
    }
    const int64_t all = int64_t(blocks.size()), tiles = catalogue.tiles, tile_size = catalogue.height * (TOKENS + 16);
    const int64_t fit = KEPT / std::max<int64_t>(items * TOKENS, 1);
    const bool keep = fit > 0;
    const int64_t together = std::max<int64_t>(keep ? std::min(fit, all) : all, 1);
    const auto kept = room(keep ? together * tiles * tile_size : 0);
    const auto references = room(keep ? together * tiles * TOKENS : 0);  // maxima that a kept tile's exponentials are relative to
    std::vector<Softmax> softmaxes(threads * together);
    const auto memory = room(threads * together * TOKENS * dim);
    const auto factors = room(2 * together * TOKENS);
    float* tops = factors.get() + together * TOKENS;

#pragma omp parallel num_threads(threads)
    for (int64_t begin = 0; begin < all; begin += together) {
        const int64_t end = std::min(begin + together, all), mine = omp_get_thread_num(), crew = omp_get_num_threads();
        const Share own(tiles);
        const auto own_tile = room(keep ? 0 : tile_size);
        const auto scaled = room(TOKENS * (dim + LANES));
        Softmax* softmax = softmaxes.data() + mine * together;
        for (int64_t b = 0; b < end - begin; ++b)
            softmax[b].begin(memory.get() + (mine * together + b) * TOKENS * dim, blocks[begin + b].count, dim);
        const auto of_tile = [&](int64_t n, int64_t b) {
            return keep ? kept.get() + ((b - begin) * tiles + n) * tile_size : own_tile.get();
        };
        for (int64_t n = own.low; n < own.high; ++n)
            for (int64_t b = begin; b < end; ++b) {
                float* tile = of_tile(n, b);
                float below[TOKENS];
                catalogue.score(n, blocks[b], tile);
                softmax[b - begin].take(catalogue, n, blocks[b], log_probability, tile, below);
                if (keep) std::copy(below, below + TOKENS, references.get() + ((b - begin) * tiles + n) * TOKENS);
            }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t at = 0; at < (end - begin) * TOKENS; ++at) {
            const int64_t b = at / TOKENS, t = at % TOKENS, token = blocks[begin + b].first + t;
            float highest = -INFINITY;
            for (int64_t c = 0; c < crew; ++c) highest = std::max(highest, softmaxes[c * together + b].highest[t]);
            tops[at] = highest > -INFINITY ? highest : 0.0f, factors[at] = 0;  // also for padding tokens
            if (t >= blocks[begin + b].count) continue;
            double sum = 0;
            for (int64_t c = 0; c < crew; ++c) {
                const Softmax& part = softmaxes[c * together + b];
                sum += part.sum[t] * std::exp(double(part.highest[t]) - tops[at]);
            }
            const float* vector = target_items ? vectors + target_items[token] * dim : nullptr;
            const float target = vector ? score_of(hidden + token * dim, vector, dim) : targets[token];
            const Ending found(sum, highest, target, 1.0 / double(count));
            losses[token] = found.loss, by_targets[token] = found.by_target, factors[at] = found.factor;
            float* by = by_hidden + token * dim;
            std::fill(by, by + dim, 0.0f);
            for (int64_t c = 0; c < crew; ++c) {
                const Softmax& part = softmaxes[c * together + b];
                add_times(dim, factors[at] * std::exp(part.highest[t] - tops[at]), part.states + t * dim, by);
            }
            if (vector) add_times(dim, found.by_target, vector, by);
        }
        for (int64_t n = own.low; n < own.high; ++n)
            for (int64_t b = begin; b < end; ++b) {
                const Block& block = blocks[b];
                const int64_t some = catalogue.items(n);
                const float *factor = factors.get() + (b - begin) * TOKENS, *top = tops + (b - begin) * TOKENS;
                float *tile = of_tile(n, b), *by = by_vectors + catalogue.first(n) * dim;
                float scale[TOKENS];
                std::copy(factor, factor + TOKENS, scale);
                if (keep) {
                    const float* below = references.get() + ((b - begin) * tiles + n) * TOKENS;
                    for (int64_t t = 0; t < TOKENS; t += LANES)
                        store(scale + t, load(scale + t) * exponential(load(below + t) - load(top + t)));
                } else {
                    float highest[TOKENS], sums[TOKENS] = {};
                    catalogue.score(n, block, tile);
                    highest_of(tile, some, block, log_probability ? log_probability + catalogue.first(n) : nullptr, highest);
                    exponentials(tile, some, block, top, sums);
                }
                const Panels states = filled_up(block.states, block.count, dim, scale, scaled.get());
                if (b == 0) product<ZERO>(some, dim, block.count, plain(tile, block.row), states, by, dim);
                else product<ADD>(some, dim, block.count, plain(tile, block.row), states, by, dim);
                if (target_items)
                    catalogue.for_pairs(n, block, [&](int64_t item, int64_t t) {
                        add_times(dim, by_targets[block.first + t], block.states + t * dim, by + item * dim);
                    });
            }
    }
}

}  // extern "C"
