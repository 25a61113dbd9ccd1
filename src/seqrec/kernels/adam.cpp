// Inner loops of Adam. adam.py and training/optim.py describe what each function computes.

#include "common.h"

namespace {

struct Adam {
    float rest1, beta2, rest2;  // rest = 1 - beta, computed in double because float32 loses digits near 1
    float rate, epsilon;        // the rate includes the bias correction of the first moment
    float root;                 // square root of the bias correction of the second moment
};

// Updates the moments and weights of one row with the gradient g.
void adam_row(const Adam& a, int64_t dim, const float* g, float* weight, float* first, float* second) {
    const float over = 1 / a.root;
    for (int64_t k = 0; k < dim; ++k) {
        const float m = first[k] + a.rest1 * (g[k] - first[k]);
        const float v = a.beta2 * second[k] + a.rest2 * g[k] * g[k];
        first[k] = m;
        second[k] = v;
        weight[k] -= a.rate * m / (std::sqrt(v) * over + a.epsilon);
    }
}

// The updates that a row missed: weight -= size * m / (sqrt(v) + epsilon), and the moments decay.
void drift_row(
    int64_t dim, float size, float epsilon, float decay1, float decay2, float* weight, float* first, float* second
) {
    for (int64_t k = 0; k < dim; ++k) {
        weight[k] -= size * first[k] / (std::sqrt(second[k]) + epsilon);
        first[k] *= decay1;
        second[k] *= decay2;
    }
}

void add_row(int64_t dim, const float* x, float* out) {
    for (int64_t k = 0; k < dim; ++k) out[k] += x[k];
}

// Parameters and tables for the updates that rows missed; see Drifts in adam.py.
struct Drift {
    double beta1, beta2, rate, epsilon;
    const double* steps;   // by step: the drift from this step on, and beta2 to the power of the step
    const double* missed;  // by number of missed steps: four powers
    int64_t known;         // number of rows in `missed`
};

struct Powers {
    double share, decay1, decay2, rest;
};

// Powers are the most expensive part of an update, so those for small numbers of missed steps are looked up.
inline Powers powers_of(const Drift& d, int64_t missed) {
    if (missed < d.known) {
        const double* at = d.missed + 4 * missed;
        return {at[0], at[1], at[2], at[3]};
    }
    const double ratio = d.beta1 / std::sqrt(d.beta2), count = double(missed), share = std::pow(ratio, count);
    return {share, std::pow(d.beta1, count), std::pow(d.beta2, count),
            std::pow(d.beta2, 1 / (1 - ratio) - count * share / (1 - share))};
}

inline bool bring_up_to_date(
    const Drift& d, int64_t dim, int64_t step, int64_t row, float* weight, float* first, float* second, int32_t* last
) {
    const int64_t from = last[row];
    if (from >= step || from <= 0) return false;
    const Powers p = powers_of(d, step - from);
    const double factor = d.steps[2 * from] - p.share * d.steps[2 * step];
    const double root = std::sqrt(1 - d.steps[2 * from + 1] * p.rest);
    const int64_t at = row * dim;
    drift_row(dim, float(d.rate * factor), float(d.epsilon * root), float(p.decay1), float(p.decay2), weight + at,
              first + at, second + at);
    last[row] = int32_t(step);
    return true;
}

// Rows are scattered over tables that are larger than any cache, so they are prefetched this many rows ahead.
constexpr int64_t AHEAD = 4;

inline void ask_for(const float* weight, const float* first, const float* second, int64_t row, int64_t dim) {
#if defined(__GNUC__)
    for (int64_t k = 0; k < dim; k += 16) {
        __builtin_prefetch(weight + row * dim + k, 1);
        __builtin_prefetch(first + row * dim + k, 1);
        __builtin_prefetch(second + row * dim + k, 1);
    }
#endif
}

Adam of_step(double beta1, double beta2, double rate, double epsilon, double step) {
    return {float(1 - beta1), float(beta2), float(1 - beta2), float(rate / (1 - std::pow(beta1, step))), float(epsilon),
            float(std::sqrt(1 - std::pow(beta2, step)))};
}

}  // namespace

extern "C" {

// Returns the number of rows that changed. Row numbers outside the table of `size` rows are skipped: the look-up that
// follows in torch raises the error.
int64_t seqrec_adam_catch_up(
    const int64_t* rows, int64_t count, int64_t size, int64_t step, int64_t dim, double beta1, double beta2,
    double rate, double epsilon, const double* steps, const double* missed, int64_t known, float* weight, float* first, float* second, int32_t* last,
    int32_t threads
) {
    const Drift d{beta1, beta2, rate, epsilon, steps, missed, known};
    int64_t moved = 0;
#pragma omp parallel num_threads(threads) reduction(+ : moved)
    {
        const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
        const auto own = [&](int64_t n) { return rows[n] >= 0 && rows[n] < size && rows[n] % all == mine; };
        for (int64_t n = 0; n < count; ++n) {
            const int64_t soon = std::min(n + AHEAD, count - 1);
            if (own(soon) && last[rows[soon]] > 0 && last[rows[soon]] < step)
                ask_for(weight, first, second, rows[soon], dim);
            if (own(n)) moved += bring_up_to_date(d, dim, step, rows[n], weight, first, second, last);
        }
    }
    return moved;
}

// `slots`, one per row of the table, may hold any values: the slot of a row is valid only if `touched` at that slot is
// the row. `summed` has the size count * dim, `touched` the size count.
void seqrec_adam_step(
    const int64_t* rows, const float* gradients, int64_t count, int64_t step, int64_t dim, double beta1, double beta2,
    double rate, double epsilon, const double* steps, const double* missed, int64_t known, float* weight, float* first, float* second, int32_t* last,
    int32_t* slots, float* summed, int64_t* touched, int32_t threads
) {
    const Drift d{beta1, beta2, rate, epsilon, steps, missed, known};
    const Adam a = of_step(beta1, beta2, rate, epsilon, double(step));
    int64_t unique = 0;
    std::vector<const float*> sums(count);  // of each slot; rows that occur once need no memory of their own
    for (int64_t n = 0; n < count; ++n) {
        const int64_t row = rows[n], slot = slots[row];
        if (slot < 0 || slot >= unique || touched[slot] != row) {
            slots[row] = int32_t(unique);
            sums[unique] = gradients + n * dim;
            touched[unique++] = row;
        }
    }
#pragma omp parallel num_threads(threads)
    {
        const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t low = unique * mine / all, high = unique * (mine + 1) / all;
        for (int64_t n = 0, next = 0; n < count; ++n) {
            const int64_t slot = slots[rows[n]];
            if (slot == next) {  // slots are numbered in the order of the rows' first appearance
                ++next;
                continue;
            }
            if (slot < low || slot >= high) continue;
            float* sum = summed + slot * dim;
            if (sums[slot] != sum) std::memcpy(sum, sums[slot], dim * sizeof(float));
            sums[slot] = sum;
            add_row(dim, gradients + n * dim, sum);
        }
        for (int64_t slot = low; slot < high; ++slot) {
            if (slot + AHEAD < high) ask_for(weight, first, second, touched[slot + AHEAD], dim);
            const int64_t row = touched[slot], at = row * dim;
            bring_up_to_date(d, dim, step - 1, row, weight, first, second, last);
            adam_row(a, dim, sums[slot], weight + at, first + at, second + at);
            last[row] = int32_t(step);
        }
    }
}

// The distinct rows in the order of their first appearance, and the sum of each one's gradients. Returns their number.
int64_t seqrec_adam_sum(
    const int64_t* rows, const float* gradients, int64_t count, int64_t dim, int32_t* slots, float* summed,
    int64_t* touched, int32_t
) {
    int64_t unique = 0;
    for (int64_t n = 0; n < count; ++n) {
        const int64_t row = rows[n], slot = slots[row];
        if (slot < 0 || slot >= unique || touched[slot] != row) {
            slots[row] = int32_t(unique);
            touched[unique] = row;
            std::memcpy(summed + unique++ * dim, gradients + n * dim, dim * sizeof(float));
        } else {
            add_row(dim, gradients + n * dim, summed + slot * dim);
        }
    }
    return unique;
}

// Dense tensors, each with its own size and step counter.
void seqrec_adam_dense(
    float* const* weights, const float* const* gradients, float* const* firsts, float* const* seconds,
    float* const* steps, const int64_t* sizes, int64_t count, double beta1, double beta2, double rate, double epsilon,
    int32_t threads
) {
    for (int64_t n = 0; n < count; ++n) *steps[n] += 1;
#pragma omp parallel num_threads(threads)
    for (int64_t n = 0; n < count; ++n) {
        const Adam a = of_step(beta1, beta2, rate, epsilon, double(*steps[n]));
#pragma omp for schedule(static) nowait
        for (int64_t low = 0; low < sizes[n]; low += 2048)
            adam_row(a, std::min<int64_t>(2048, sizes[n] - low), gradients[n] + low, weights[n] + low, firsts[n] + low,
                     seconds[n] + low);
    }
}

}  // extern "C"
