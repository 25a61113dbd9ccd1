// Ranking by scores that are a prior, except for few items of each state. sparse.py describes what it computes.

#include "best.h"

using namespace seqrec;

namespace {

// The scores of the prior by column, NaN for columns that nobody is shown, and those of the other columns in order.
struct Prior {
    const float* by_column;
    const int32_t* order;
    const float* descending;
    int64_t length;

    bool ranks(int64_t column) const { return by_column[column] == by_column[column]; }

    // Number of columns that score above a limit, or at least that. Subtracting a norm from sorted numbers leaves them
    // sorted, although different ones may become equal.
    int64_t above(float limit, float norm, bool or_equal) const {
        const auto is_above = [&](float x) { return x - norm > limit || (or_equal && x - norm == limit); };
        return std::partition_point(descending, descending + length, is_above) - descending;
    }

    // The place after the columns of the prior at a place.
    int64_t after(int64_t place) const {
        const float value = descending[place];
        return std::partition_point(descending + place, descending + length, [&](float x) { return x >= value; }) - descending;
    }

    // Whether the norm makes a score that is no number: the difference of two infinities of one sign.
    bool odd(float norm) const {
        if (length == 0) return false;
        const float first = descending[0] - norm, last = descending[length - 1] - norm;
        return first != first || last != last;
    }
};

// The columns of one state that have scores of their own, and those to ignore; both ascending.
struct State {
    const int64_t *begin, *end;
    const float* values;
    float norm;
    bool added;
    std::vector<int64_t> left_out;

    void leave_out(const int64_t* from, const int64_t* to) {
        left_out.assign(from, to);
        std::sort(left_out.begin(), left_out.end());
        left_out.erase(std::unique(left_out.begin(), left_out.end()), left_out.end());
    }

    bool has(int64_t column) const { return std::binary_search(begin, end, column); }
    bool ignores(int64_t column) const { return std::binary_search(left_out.begin(), left_out.end(), column); }

    float own(int64_t entry, float base) const { return added ? base + values[entry] : values[entry]; }

    float score(const Prior& prior, int64_t column) const {
        const float base = prior.by_column[column] - norm;
        const int64_t* entry = std::lower_bound(begin, end, column);
        return entry != end && *entry == column ? own(entry - begin, base) : base;
    }
};

// The best k candidates so far, and more while there is room. `least` is the score of the worst of the k.
struct Best {
    int64_t k;
    float least = -INFINITY;
    std::vector<Candidate> found;

    explicit Best(int64_t k) : k(k) { found.reserve(2 * k + 16); }

    void clear() {
        found.clear();
        least = -INFINITY;
    }

    bool full() const { return int64_t(found.size()) >= k; }

    void cut() {
        if (!full()) return;
        std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), better);
        found.resize(k);
        least = found.back().score;
    }

    void push(float score, int64_t column) {
        found.push_back({score, column});
        if (int64_t(found.size()) >= 2 * k + 16) cut();
    }
};

// Adds the best columns that score by the prior alone. Of columns of one prior, which ascend, more than k never matter.
// Those of the next prior may still tie with the worst: the norm may make different priors equal.
void add_head(const Prior& prior, const State& state, Best& best) {
    best.cut();
    for (int64_t place = 0; place < prior.length;) {
        const float value = prior.descending[place], score = value - state.norm;
        if (score == -INFINITY || (best.full() && score < best.least)) return;
        int64_t some = 0;
        for (; place < prior.length && prior.descending[place] == value && some < best.k; ++place) {
            const int64_t column = prior.order[place];
            if (state.ignores(column) || state.has(column)) continue;
            best.push(score, column);
            ++some;
        }
        if (some) best.cut();
        if (some == best.k && place < prior.length && prior.descending[place] == value) place = prior.after(place);
    }
}

// Numbers of columns that score above a limit and equal to it, and whether a score is NaN.
struct Counts {
    float limit;
    int64_t greater, ties;
    bool odd = false;

    void add(float score, int64_t times) {
        greater += score > limit ? times : 0;
        ties += score == limit ? times : 0;
    }
};

// Goes over the columns of a state once: counts them by their scores instead of by the prior, and collects the best.
Counts taken(const Prior& prior, const State& state, float limit, Best& best) {
    Counts counts{limit, prior.above(limit, state.norm, false), 0};
    counts.ties = prior.above(limit, state.norm, true) - counts.greater;
    auto ignored = state.left_out.begin();
    for (const int64_t* entry = state.begin; entry != state.end; ++entry) {
        if (!prior.ranks(*entry)) continue;
        const float base = prior.by_column[*entry] - state.norm, own = state.own(entry - state.begin, base);
        counts.add(base, -1);
        while (ignored != state.left_out.end() && *ignored < *entry) ++ignored;
        if (ignored != state.left_out.end() && *ignored == *entry) continue;
        counts.add(own, 1);
        counts.odd |= own != own;
        if (own > best.least) best.push(own, *entry);  // of ties the first stay: columns ascend
    }
    for (const int64_t column : state.left_out)
        if (prior.ranks(column) && !state.has(column)) counts.add(prior.by_column[column] - state.norm, -1);
    return counts;
}

}  // namespace

extern "C" {

// The best k columns for each state, by score and then by column; -1 and -inf if there are fewer. If targets are given,
// also the number of columns that score above the target (-1 if the target scores -inf), and the number that score the
// same, including the target (1 if it scores -inf). Returns whether a score is NaN.
int32_t seqrec_rank_sparse(
    const float* by_column, const int32_t* order, const float* descending, int64_t length,
    const int64_t* which, const float* norms, const int64_t* offsets, const int64_t* columns, const float* values,
    int32_t added, const int64_t* rows, const int64_t* left_out, int64_t pairs, int64_t count, int64_t k,
    int64_t* best_columns, float* best_scores, const int64_t* targets, int64_t* greater, int64_t* ties, int32_t threads
) {
    const Prior prior{by_column, order, descending, length};
    int32_t odd = 0;
#pragma omp parallel num_threads(threads) reduction(| : odd)
    {
        Best best(k);
        State state{};
#pragma omp for schedule(dynamic, 16)
        for (int64_t row = 0; row < count; ++row) {
            const int64_t low = offsets[which[row]], high = offsets[which[row] + 1];
            state.begin = columns + low, state.end = columns + high, state.values = values + low;
            state.norm = norms[which[row]], state.added = added != 0;
            const auto own = std::equal_range(rows, rows + pairs, row);
            state.leave_out(left_out + (own.first - rows), left_out + (own.second - rows));
            best.clear();
            if (k == 0) best.least = INFINITY;
            const float target = targets ? state.score(prior, targets[row]) : INFINITY;
            const Counts counts = taken(prior, state, target, best);
            odd |= counts.odd || prior.odd(state.norm);
            if (k) add_head(prior, state, best);
            keep_best(best.found, k, best_columns + row * k, best_scores + row * k);
            if (!targets) continue;
            const bool never = target == -INFINITY;
            greater[row] = never ? -1 : counts.greater, ties[row] = never ? 1 : counts.ties;
        }
    }
    return odd;
}

}  // extern "C"
