// Pointwise aggregated attention with a gate, as in HSTU, forward and backward. gated.py describes what it computes.
//
// Each thread takes its users through all steps, one user at a time, so that intermediate results stay in the cache. The
// gradients of the biases are sums over threads, so their last bits depend on the number of threads, as in block.cpp.
// Nothing else does.

#include "attention.h"

using namespace seqrec;

namespace {

// Filled in by gated.py, with fields in the same order.
struct Gated {
    int64_t users, dim, heads, window, kinds;  // kinds: the number of time buckets
    int32_t threshold;
    float kept, share, epsilon;
    const int64_t* offsets;
    const float* mixed;      // u, v, q and k of each token, before their activation
    const float* positions;  // the bias of each distance in positions
    const float* times;      // the bias of each bucket of times, or null
    const int32_t* buckets;  // the bucket of each pair, laid out as the scores
    const int16_t* words;    // null without dropout
    float* out;
    float* saved;  // scores, sums and means for backward, or null
    const float* by_out;
    float *by_mixed, *by_positions, *by_times;

    int64_t row() const { return 4 * dim; }
};

// The users of each thread, balanced by the cost of the computation, and where each user's scores begin.
struct Plan {
    std::vector<int64_t> first, cell;
    int64_t cells = 0, longest = 0;

    Plan(const Gated& g, int64_t threads) : first(threads + 1, g.users), cell(g.users) {
        const auto cost = [&](int64_t u) {
            const double n = double(g.offsets[u + 1] - g.offsets[u]);
            return n * (16.0 * double(g.dim) + n * double(g.dim + 16));
        };
        double all = 0, done = 0;
        for (int64_t u = 0; u < g.users; ++u) all += cost(u);
        int64_t thread = 0;
        for (int64_t u = 0; u < g.users; ++u) {
            while (thread < threads && done >= all / double(threads) * double(thread)) first[thread++] = u;
            const int64_t n = g.offsets[u + 1] - g.offsets[u];
            done += cost(u);
            cell[u] = cells, cells += n * padded(n), longest = std::max(longest, n);
        }
    }
};

// What forward leaves for backward: the scores of all heads, the attention's sums [T, D], their means and scales [T, 2].
struct Saved {
    float *scores, *sums, *means;

    Saved(float* memory, const Gated& g, int64_t tokens, int64_t cells)
        : scores(memory), sums(scores + g.heads * cells), means(sums + tokens * g.dim) {}
    static int64_t size(const Gated& g, int64_t tokens, int64_t cells) { return g.heads * cells + tokens * (g.dim + 2); }
};

inline Vector logistic(Vector x) {
    const Vector e = exponential(x < Vector{} ? x : -x), s = 1.0f / (e + 1.0f);
    return x < Vector{} ? e * s : s;
}

inline Vector silu(Vector x) { return x * logistic(x); }

inline Vector silu_slope(Vector x) {
    const Vector s = logistic(x);
    return s * (x * (1.0f - s) + 1.0f);
}

void activate(int64_t count, const float* x, float* out) {
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) store(out + k, silu(load(x + k)));
    if (k < count) Part(count - k).store(out + k, silu(Part(count - k).load(x + k)));
}

// by_x = by_x * the slope at x, in place.
void activate_backward(int64_t count, const float* x, float* by_x) {
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) store(by_x + k, load(by_x + k) * silu_slope(load(x + k)));
    const Part part(count - k);
    if (k < count) part.store(by_x + k, part.load(by_x + k) * silu_slope(part.load(x + k)));
}

// The bias of each distance, the furthest first, so that those of a row's keys are in their order. Rows end with zeros.
Room backwards(const Gated& g) {
    Room made = room(g.window + LANES);
    for (int64_t d = 0; d < g.window; ++d) made[g.window - 1 - d] = g.positions[d];
    std::fill(made.get() + g.window, made.get() + g.window + LANES, 0.0f);
    return made;
}

void add_biases(const Gated& g, int64_t query, const float* distances, const int32_t* buckets, float* scores) {
    const float* of_keys = distances + g.window - 1 - query;
#pragma omp simd
    for (int64_t j = 0; j <= query; ++j) scores[j] += of_keys[j];
    if (buckets)
        for (int64_t j = 0; j <= query; ++j) scores[j] += g.times[buckets[j]];
}

// weights = share * silu(scores) of the keys that a query sees, 0 for the others up to `most`.
void weigh(int64_t seen, int64_t most, float share, const float* scores, float* weights) {
    for (int64_t j = 0; j < padded(seen); j += LANES) store(weights + j, share * silu(load(scores + j)));
    for (int64_t j = seen; j < most; ++j) weights[j] = 0;
}

// out = u * (sum - mean) / deviation, then dropout.
void gate(const Gated& g, int64_t tokens, const float* active, const float* sums, float* means, const int16_t* words, float* out) {
    const int64_t dim = g.dim;
    for (int64_t t = 0; t < tokens; ++t, active += g.row(), sums += dim, out += dim) {
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < dim; ++k) sum += sums[k];
        const float mean = sum / float(dim);
#pragma omp simd reduction(+ : squares)
        for (int64_t k = 0; k < dim; ++k) squares += (sums[k] - mean) * (sums[k] - mean);
        const float over = 1 / std::sqrt(squares / float(dim) + g.epsilon);
        means[2 * t] = mean, means[2 * t + 1] = over;
        if (words) {
#pragma omp simd
            for (int64_t k = 0; k < dim; ++k)
                out[k] = words[k] >= g.threshold ? active[k] * ((sums[k] - mean) * over) * g.kept : 0.0f;
            words += dim;
        } else {
#pragma omp simd
            for (int64_t k = 0; k < dim; ++k) out[k] = active[k] * ((sums[k] - mean) * over);
        }
    }
}

// Writes the gradients with respect to u and to the sums.
void gate_backward(
    const Gated& g, int64_t tokens, const float* active, const float* sums, const float* means, const int16_t* words,
    const float* by, float* by_active, float* by_sums
) {
    const int64_t dim = g.dim;
    for (int64_t t = 0; t < tokens; ++t, active += g.row(), by_active += g.row(), sums += dim, by += dim, by_sums += dim) {
        const float mean = means[2 * t], over = means[2 * t + 1];
        float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t k = 0; k < dim; ++k) {
            const float own = (sums[k] - mean) * over;
            const float from = !words ? by[k] : words[k] >= g.threshold ? by[k] * g.kept : 0.0f;
            const float gated = from * active[k];
            by_active[k] = from * own;
            by_sums[k] = gated;
            sum += gated;
            product += gated * own;
        }
        sum /= float(dim), product /= float(dim);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) by_sums[k] = over * (by_sums[k] - sum - (sums[k] - mean) * over * product);
        if (words) words += dim;
    }
}

// One head of one user: where its values, queries and keys are among the activated numbers, and how far rows are apart.
struct Head {
    int64_t length, dim, row, width;
    const float *value, *query, *key;

    Head(const Gated& g, int64_t head, int64_t length, const float* active)
        : length(length), dim(g.dim / g.heads), row(g.row()), width(padded(length)), value(active + g.dim + head * dim),
          query(value + g.dim), key(query + g.dim) {}
};

void attend(const Gated& g, const Head& h, const float* distances, const int32_t* buckets, float* scores, float* weights, float* sums, float* memory) {
    const Panels keys = panels(transposed(h.key, h.row), h.dim, h.length, memory);
    for (int64_t i = 0; i < h.length; i += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, h.length - i), most = i + rows;
        product<ZERO>(rows, most, h.dim, plain(h.query + i * h.row, h.row), keys, scores + i * h.width, h.width);
        for (int64_t r = i; r < most; ++r) {
            add_biases(g, r, distances, buckets ? buckets + r * h.width : nullptr, scores + r * h.width);
            weigh(r + 1, most, g.share, scores + r * h.width, weights + r * h.width);
        }
        product<ZERO>(rows, h.dim, most, plain(weights + i * h.width, h.width), rows_of(h.value, h.row), sums + i * g.dim, g.dim);
    }
}

// `by` is laid out as the head's own numbers, and `memory` takes the panels, then the gradients of the scores.
void attend_backward(
    const Gated& g, const Head& h, const int32_t* buckets, const float* scores, const float* by_sums, const Head& by,
    float* by_positions, float* by_times, float* weights, float* memory
) {
    const int64_t n = h.length, width = h.width;
    const Panels values = panels(transposed(h.value, h.row), h.dim, n, memory);
    float* by_scores = memory + panel_size(h.dim, n);
    float *by_value = const_cast<float*>(by.value), *by_query = const_cast<float*>(by.query), *by_key = const_cast<float*>(by.key);
    for (int64_t i = 0; i < n; i += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, n - i), most = i + rows;
        product<ZERO>(rows, most, h.dim, plain(by_sums + i * g.dim, g.dim), values, by_scores + i * width, width);
        for (int64_t r = i; r < most; ++r) {
            float* row = by_scores + r * width;
            weigh(r + 1, most, g.share, scores + r * width, weights + r * width);
            for (int64_t j = 0; j < padded(r + 1); j += LANES)
                store(row + j, g.share * load(row + j) * silu_slope(load(scores + r * width + j)));
            for (int64_t j = r + 1; j < most; ++j) row[j] = 0;
            float* to = by_positions + g.window - 1 - r;
#pragma omp simd
            for (int64_t j = 0; j <= r; ++j) to[j] += row[j];
            if (buckets)
                for (int64_t j = 0; j <= r; ++j) by_times[buckets[r * width + j]] += row[j];
        }
        product<ZERO>(rows, h.dim, most, plain(by_scores + i * width, width), rows_of(h.key, h.row), by_query + i * h.row, h.row);
    }
    for (int64_t j = 0; j < n; j += ROWS) {
        const int64_t rows = std::min<int64_t>(ROWS, n - j), at = j * width + j;
        product<ZERO>(rows, h.dim, n - j, transposed(by_scores + at, width), rows_of(h.query + j * h.row, h.row), by_key + j * h.row, h.row);
        product<ZERO>(rows, h.dim, n - j, transposed(weights + at, width), rows_of(by_sums + j * g.dim, g.dim), by_value + j * h.row, h.row);
    }
}

void add(int64_t count, const float* x, float* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += x[k];
}

}  // namespace

extern "C" {

// The bucket of the time between each pair of a query and a key: the number of `edges` up to it. The rows of the queries
// are padded as those of the scores, with zeros.
void seqrec_time_buckets(
    const int64_t* times, const int64_t* offsets, int64_t users, const int64_t* edges, int64_t count, int32_t* out,
    int32_t threads
) {
    int32_t below[65];  // the number of edges up to the smallest number of so many bits
    for (int bits = 0; bits < 65; ++bits) {
        const int64_t least = bits == 0 ? 0 : bits > 63 ? INT64_MAX : int64_t(1) << (bits - 1);
        below[bits] = int32_t(std::upper_bound(edges, edges + count, least) - edges);
    }
    std::vector<int64_t> cell(users + 1, 0);
    for (int64_t u = 0; u < users; ++u) cell[u + 1] = cell[u] + (offsets[u + 1] - offsets[u]) * padded(offsets[u + 1] - offsets[u]);
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (int64_t u = 0; u < users; ++u) {
        const int64_t n = offsets[u + 1] - offsets[u], width = padded(n);
        const int64_t* own = times + offsets[u];
        for (int64_t i = 0; i < n; ++i) {
            int32_t* row = out + cell[u] + i * width;
            for (int64_t j = 0; j <= i; ++j) {
                const uint64_t there = uint64_t(own[i]) - uint64_t(own[j]);
                const int64_t apart = int64_t(int64_t(there) < 0 ? -there : there);
                int32_t bucket = apart < 0 ? 0 : below[apart == 0 ? 0 : 64 - __builtin_clzll(uint64_t(apart))];
                while (bucket < count && edges[bucket] <= apart) ++bucket;
                row[j] = bucket;
            }
            std::fill(row + i + 1, row + width, 0);
        }
    }
}

void seqrec_gated_forward(const Gated* given, int32_t threads) {
    const Gated& g = *given;
    const Plan plan(g, threads);
    const Room distances = backwards(g);
    const int64_t tokens = g.offsets[g.users], most = plan.longest, square = most * padded(most);
#pragma omp parallel num_threads(threads)
    {
        const int64_t parts[] = {most * g.row(), square, g.saved ? 0 : Saved::size(g, most, square), panel_size(g.dim / g.heads, most)};
        const auto memory = room(parts[0] + parts[1] + parts[2] + parts[3]);
        float *active = memory.get(), *weights = active + parts[0], *rest = weights + parts[1] + parts[2];
        const Saved all = g.saved ? Saved(g.saved, g, tokens, plan.cells) : Saved(weights + parts[1], g, most, square);
        for (int64_t n = omp_get_thread_num(); n < threads; n += omp_get_num_threads())
            for (int64_t u = plan.first[n]; u < plan.first[n + 1]; ++u) {
                const int64_t first = g.offsets[u], length = g.offsets[u + 1] - first, token = g.saved ? first : 0;
                activate(length * g.row(), g.mixed + first * g.row(), active);
                for (int64_t head = 0; head < g.heads && length; ++head) {
                    const Head own(g, head, length, active);
                    float* scores = all.scores + (g.saved ? head * plan.cells + plan.cell[u] : 0);
                    attend(g, own, distances.get(), g.buckets ? g.buckets + plan.cell[u] : nullptr, scores, weights,
                           all.sums + token * g.dim + head * own.dim, rest);
                }
                gate(g, length, active, all.sums + token * g.dim, all.means + 2 * token,
                     g.words ? g.words + first * g.dim : nullptr, g.out + first * g.dim);
            }
    }
}

void seqrec_gated_backward(const Gated* given, int32_t threads) {
    const Gated& g = *given;
    const Plan plan(g, threads);
    const int64_t most = plan.longest, square = most * padded(most), biases = g.window + g.kinds;
    const Saved all(g.saved, g, g.offsets[g.users], plan.cells);
    const auto sums = room(threads * biases);
#pragma omp parallel num_threads(threads)
    {
        const auto memory = room(most * (g.row() + g.dim) + 2 * square + panel_size(g.dim / g.heads, most));
        float *active = memory.get(), *by_sums = active + most * g.row(), *weights = by_sums + most * g.dim, *rest = weights + square;
        for (int64_t n = omp_get_thread_num(); n < threads; n += omp_get_num_threads()) {
            float *by_positions = sums.get() + n * biases, *by_times = by_positions + g.window;
            std::fill(by_positions, by_positions + biases, 0.0f);
            for (int64_t u = plan.first[n]; u < plan.first[n + 1]; ++u) {
                const int64_t first = g.offsets[u], length = g.offsets[u + 1] - first;
                const float* mixed = g.mixed + first * g.row();
                float* by_mixed = g.by_mixed + first * g.row();
                activate(length * g.row(), mixed, active);
                gate_backward(g, length, active, all.sums + first * g.dim, all.means + 2 * first,
                              g.words ? g.words + first * g.dim : nullptr, g.by_out + first * g.dim, by_mixed, by_sums);
                for (int64_t head = 0; head < g.heads && length; ++head) {
                    const Head own(g, head, length, active), by(g, head, length, by_mixed);
                    attend_backward(g, own, g.buckets ? g.buckets + plan.cell[u] : nullptr,
                                    all.scores + head * plan.cells + plan.cell[u], by_sums + head * own.dim, by,
                                    by_positions, by_times, weights, rest);
                }
                activate_backward(length * g.row(), mixed, by_mixed);
            }
        }
    }
    for (int64_t n = 1; n < threads; ++n) add(biases, sums.get() + n * biases, sums.get());
    for (int64_t d = 0; d < g.window; ++d) g.by_positions[d] = sums[g.window - 1 - d];
    if (g.by_times) std::memcpy(g.by_times, sums.get() + g.window, g.kinds * sizeof(float));
}

}  // extern "C"
