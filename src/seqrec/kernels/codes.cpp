// Ranking of a catalogue whose vectors have codes of 8 bits. codes.py describes what it computes.
//
// Why no item is lost. Number d of item i's vector is v = c + t (q + r): c and t are the centre and the step of the
// dimension, q = code - 64, and r is what is left, in real numbers. With y = s t for the state s, and whole numbers n for
// it, y = unit (n + e), the score is
//
//     s v = s c + sum of y q + sum of y r = s c + unit (n q + sum of e q) + sum of y r.
//
// The first term is the same for all items, so it moves no item past another. By the Cauchy-Schwarz inequality, the sums
// are at most |e| |q| and |y| |r|. The score in float32 differs from the real number by at most 2^-24 of the sum of
// |s| |v| for each of its roundings, and 2^-150 for each that is not a normal number. All of this together, divided by
// the unit, is the margin m: for every item, |score / unit - s c / unit - n q| <= m. If item i scores at least as high as
// the k-th best, j, then n q(i) >= n q(j) - 2 m, and at least k products are n q(j) or higher up to 2 m. So all items
// whose product is within 2 m of the k-th highest product are scored exactly, and the others can't be among the best k,
// nor tie with the last of them. Once some k candidates have scores of at least x, m is enough instead of 2 m: others
// that reach x have n q >= (x - s c) / unit - m.

#include "best.h"
#include "codes.h"

using namespace seqrec;

namespace {

constexpr int64_t TOGETHER = 96;      // states that share one reading of a tile of codes
constexpr int64_t TILE = 192 * 1024;  // bytes of a tile, which stays in the second cache
constexpr int64_t HIGHEST = 127;      // of a state's numbers: with codes up to 127, two products fit into 16 bits
constexpr double ROUNDING = 6e-8;     // more than 2^-24

// The catalogue's vectors and codes. `norms` are the highest norms of the q of an item: in each QUADS, of the dimensions
// whose products share a sum (the first and the second two of each four), and at the end of all dimensions.
struct Items {
    const float* vectors;
    const uint8_t* codes;
    const int64_t *order, *places;  // the item of each place among the codes, and the place of each item
    const float* reach;             // highest norm of the q of an item in each block and in those after it
    const float *centres, *steps;
    double residual;  // highest norm of the r of an item
    const double* norms;
    int64_t count, dim;
    int64_t quads = (dim + 3) / 4, parts = (quads + QUADS - 1) / QUADS;

    static int64_t sum_of(int64_t d) { return d / (4 * QUADS) * 2 + d % 4 / 2; }  // to which sum a dimension's products go
};

struct Coded {
    int32_t product, item;
};

// A state, what is to be ignored and added for it, and its numbers.
struct Asked {
    const float* state;
    std::vector<int64_t> left_out;     // sorted
    const int64_t *added, *added_end;  // items with a value to add, sorted
    const float* values;               // the value of each
    bool codes_do = false;             // whether the bound holds: nothing is infinite, or NaN
    double unit = 1, margin = 0;       // see above
    double same = 0, by_norm = 0;      // the score of the centres; 1 / the norm of the numbers
    std::vector<int8_t> numbers{};     // [quads, 4]
    std::vector<int16_t> starts{};     // [parts, 2]

    bool ignores(int64_t item) const { return std::binary_search(left_out.begin(), left_out.end(), item); }

    void round(const Items& items) {
        const int64_t dim = items.dim, sums = 2 * items.parts;
        std::vector<double> y(dim), square(sums, 0.0);
        double highest = 0, all = 0, size = 0;
        same = 0;
        for (int64_t d = 0; d < dim; ++d) {
            y[d] = double(state[d]) * items.steps[d];
            highest = std::max(highest, std::abs(y[d]));
            square[Items::sum_of(d)] += y[d] * y[d], all += y[d] * y[d];
            same += double(state[d]) * items.centres[d];
            size += std::abs(double(state[d])) * (std::abs(double(items.centres[d])) + double(MIDDLE) * items.steps[d]);
        }
        double most = 0;  // of what is added to one item
        int64_t additions = 0;
        for (const int64_t *from = added, *to = added; from != added_end; from = to) {
            double sum = 0;
            for (; to != added_end && *to == *from; ++to) sum += std::abs(double(values[to - added]));
            most = std::max(most, sum), additions = std::max<int64_t>(additions, to - from);
        }
        codes_do = dim > 0 && size + most < 1e38;
        if (!codes_do) return;
        unit = highest > 0 ? highest / HIGHEST : 1;
        // The numbers of a sum have at most the norm |y| / unit + sqrt(32) / 2, which times |q| must fit into 16 bits.
        for (int64_t sum = 0; sum < sums; ++sum)
            if (items.norms[sum] > 0) unit = std::max(unit, std::sqrt(square[sum]) / (32700 / items.norms[sum] - 2.83));
        numbers.assign(4 * items.quads, 0), starts.assign(sums, 0);
        double rest = 0, squares = 0;
        for (int64_t d = 0; d < dim; ++d) {
            const double exact = y[d] / unit;
            numbers[d] = int8_t(std::lrint(exact));
            rest += (exact - numbers[d]) * (exact - numbers[d]), squares += double(numbers[d]) * numbers[d];
            starts[Items::sum_of(d)] = int16_t(uint16_t(starts[Items::sum_of(d)]) - MIDDLE * numbers[d]);
        }
        const double rounding = ROUNDING * double(dim + additions + 2) * (size + most) + 1.2e-38 * double(dim);
        margin = std::sqrt(rest) * items.norms[sums] + (std::sqrt(all) * items.residual + rounding) / unit + 2;
        // A little less, for roundings. Of a state of zeros, all products are 0, and so are above all limits.
        by_norm = squares > 0 ? (1 - 1e-6) / std::sqrt(squares) : 1;
        codes_do = margin < 1e9;
    }

    // A product with what is added to the item, rounded down. Clamping keeps the order, so no item is lost by it.
    int32_t with(int32_t product, const int64_t* from, const int64_t* to) const {
        double sum = 0;
        for (; from != to; ++from) sum += values[from - added];
        return int32_t(std::min(std::max(std::floor(product + sum / unit), -1e9), 1e9));
    }
};

// Candidates of one state in a part of the catalogue: all whose score may be among the k highest.
struct Likely {
    int64_t room, most;
    double margin;
    std::vector<int32_t> highest;  // the k highest products, or the lowest number where there are fewer
    std::vector<Coded> found;
    int32_t limit = INT32_MIN;     // of products: those up to this one are too far below the k-th highest
    bool too_many = false;

    Likely(int64_t k, int64_t most, double margin) : room(8 * k + 64), most(most), margin(margin), highest(k, INT32_MIN) {
        found.reserve(room);
    }

    void take(int32_t product, int64_t item) {
        found.push_back({product, int32_t(item)});
        if (product > highest.back()) {
            highest.pop_back();
            highest.insert(std::upper_bound(highest.begin(), highest.end(), product, std::greater<int32_t>()), product);
            limit = int32_t(std::max(std::floor(highest.back() - 2 * margin) - 1, double(INT32_MIN)));
        }
        if (int64_t(found.size()) >= room) cut();
    }

    // Drops the candidates that are too low by now.
    void cut() {
        const auto low = [this](const Coded& c) { return c.product <= limit; };
        found.erase(std::remove_if(found.begin(), found.end(), low), found.end());
        room = std::max(room, 2 * int64_t(found.size()));
        if (int64_t(found.size()) > most) too_many = true, found.clear(), limit = INT32_MAX;
    }
};

// Appends the scores of candidates, with the same bits as in a tile of rank.cpp.
void score_items(const Items& items, const Asked& one, const Coded* found, int64_t count, std::vector<Candidate>& scored) {
    const int64_t some = 8 * ROWS, dim = items.dim;
    const auto rows = room(some * dim);
    std::vector<float> scores(some);
    for (; count > 0; found += some, count -= some) {
        const int64_t now = std::min(some, count);
        for (int64_t n = 0; n < now; ++n)
            std::copy_n(items.vectors + int64_t(found[n].item) * dim, dim, rows.get() + n * dim);
        product<ZERO>(now, 1, dim, plain(rows.get(), dim), rows_of(one.state, 1), scores.data(), 1);
        for (int64_t n = 0; n < now; ++n) {
            const int64_t item = found[n].item, *pair = std::lower_bound(one.added, one.added_end, item);
            for (; pair != one.added_end && *pair == item; ++pair) scores[n] += one.values[pair - one.added];
            scored.push_back({scores[n], item});
        }
    }
}

// The place of an item with a value to add, and its first pair.
struct Place {
    int64_t place;
    const int64_t* pair;
};

// The states of a task, in groups that are multiplied together.
struct Group {
    int64_t count;
    std::vector<int32_t> numbers, starts;  // [quads, STATES], [parts, STATES]
    const Asked* asked[STATES];
    Likely* likely[STATES];
    int32_t limits[STATES];        // the likely candidates have higher products
    std::vector<Place> added[STATES];  // the items with a value to add, those that come first at the end
    int64_t next;                      // the first of their places
    double needed = -1;                // an item whose q has a norm of at most this is not likely

    Group(const Items& items, int64_t count)
        : count(count), numbers(items.quads * STATES), starts(items.parts * STATES), next(items.count) {}

    // The codes of the task are those of the places from `first` on, below `last`.
    void put(int64_t s, const Asked* one, Likely* list, int64_t first, int64_t last, const Items& items) {
        asked[s] = one, likely[s] = list, limits[s] = list->limit;
        for (const int64_t* pair = one->added; pair != one->added_end; ++pair) {
            const int64_t place = items.places[*pair];
            if (place < first || place >= last || (pair != one->added && *pair == *(pair - 1))) continue;
            added[s].push_back({place, pair});
        }
        std::sort(added[s].begin(), added[s].end(), [](const Place& a, const Place& b) { return a.place > b.place; });
        if (!added[s].empty()) next = std::min(next, added[s].back().place);
        for (int64_t q = 0; q < items.quads; ++q) std::memcpy(&numbers[q * STATES + s], &one->numbers[4 * q], 4);
        for (int64_t p = 0; p < items.parts; ++p) std::memcpy(&starts[p * STATES + s], &one->starts[2 * p], 4);
    }

    // Takes the likely candidates of the blocks from `low` on, below `high`.
    void take(const Items& items, const uint8_t* skipped, int64_t low, int64_t high) {
        int32_t out[STATES][WIDE];
        for (int64_t b = low; b < high; ++b) {
            if (items.reach[b] <= needed && next == items.count) return;
            const uint8_t* codes = items.codes + b * items.quads * 4 * WIDE;
            const bool found = products_of<STATES>(count, codes, items.quads, numbers.data(), starts.data(), limits, out);
            if (!found && next >= (b + 1) * WIDE) continue;
            uint32_t others[STATES];
            std::fill(others, others + count, (1u << std::min(WIDE, items.count - b * WIDE)) - 1);
            if (next < (b + 1) * WIDE) take_added(out, b, items, skipped, others);
            for (int64_t s = 0; s < count; ++s) {
                for (uint32_t bits = higher(out[s], limits[s]) & others[s]; bits; bits &= bits - 1) {
                    const int64_t lane = __builtin_ctz(bits);
                    const int64_t item = items.order[b * WIDE + lane];
                    // Nothing else checks the order: that would take as long as the products for a few states.
                    if (item >= 0 && item < items.count) take_one(s, out[s][lane], item, skipped);
                }
            }
            // By the Cauchy-Schwarz inequality, a product is at most the norms of the numbers and of q, multiplied.
            needed = INFINITY;
            for (int64_t s = 0; s < count; ++s) needed = std::min(needed, limits[s] * asked[s]->by_norm);
        }
    }

    void take_one(int64_t s, int32_t product, int64_t item, const uint8_t* skipped) {
        if (product <= limits[s] || (skipped && skipped[item]) || asked[s]->ignores(item)) return;
        likely[s]->take(product, item);
        limits[s] = likely[s]->limit;
    }

    // Takes the likely candidates of a block that have a value to add, and clears their bits.
    void take_added(const int32_t (*out)[WIDE], int64_t b, const Items& items, const uint8_t* skipped, uint32_t* others) {
        next = items.count;
        for (int64_t s = 0; s < count; ++s) {
            for (; !added[s].empty() && added[s].back().place < (b + 1) * WIDE; added[s].pop_back()) {
                const auto [place, from] = added[s].back();
                const int64_t* to = from;
                while (to != asked[s]->added_end && *to == *from) ++to;
                others[s] &= ~(1u << (place - b * WIDE));
                take_one(s, asked[s]->with(out[s][place - b * WIDE], from, to), *from, skipped);
            }
            if (!added[s].empty()) next = std::min(next, added[s].back().place);
        }
    }
};

// The best k of a state's candidates in all parts, and how many were scored, or -1 if that would be too many.
int64_t finish(
    const Items& items, const Asked& one, const std::unique_ptr<Likely>* likely, int64_t parts, int64_t k,
    int64_t* best_items, float* best_scores
) {
    if (!one.codes_do) return -1;
    Likely all(k, likely[0]->most, one.margin);
    for (int64_t part = 0; part < parts; ++part) {
        if (likely[part]->too_many) return -1;
        if (parts == 1) all = std::move(*likely[part]);
        else for (const Coded& c : likely[part]->found)
            if (c.product > all.limit) all.take(c.product, c.item);
    }
    all.cut();
    if (all.too_many) return -1;
    // The scores of the k highest products tell how high the product of another item has to be.
    const auto begin = all.found.begin(), end = all.found.end();
    const int64_t first = std::min(k, end - begin);
    std::vector<Candidate> best;
    if (first < end - begin)
        std::nth_element(begin, begin + first, end, [](const Coded& a, const Coded& b) { return a.product > b.product; });
    score_items(items, one, all.found.data(), first, best);
    if (first < end - begin) {
        float lowest = INFINITY;
        for (const Candidate& candidate : best) lowest = std::min(lowest, candidate.score);
        const double limit = (double(lowest) - one.same) / one.unit - one.margin;
        const auto likely_end = std::remove_if(begin + first, end, [limit](const Coded& c) { return c.product < limit; });
        score_items(items, one, all.found.data() + first, likely_end - begin - first, best);
    }
    const int64_t count = int64_t(best.size());
    keep_best(best, k, best_items, best_scores);
    return count;
}

}  // namespace

extern "C" {

// The best k candidates for each state, as seqrec_rank finds them, and how many candidates were scored. -1: nothing was
// found for this state, because too many candidates are likely, or because its scores may not be finite. Threads divide
// groups of states among them, and if there are few, the candidates too.
void seqrec_rank_by_codes(
    const float* states, const float* vectors, const uint8_t* codes, const int64_t* order, const int64_t* places,
    const float* reach, const float* centres, const float* steps, double residual, const double* norms,
    const int64_t* rows, const int64_t* left_out, int64_t pairs,
    const int64_t* added_rows, const int64_t* added_items, const float* added_values, int64_t added_pairs,
    const uint8_t* skipped, int64_t count, int64_t items, int64_t dim, int64_t k, int64_t* best_items, float* best_scores,
    int64_t* scored, int32_t threads
) {
    const Items all{vectors, codes, order, places, reach, centres, steps, residual, norms, items, dim};
    const int64_t blocks = (items + WIDE - 1) / WIDE;
    const int64_t tile = std::max<int64_t>(1, TILE / std::max<int64_t>(1, all.quads * 4 * WIDE));
    const int64_t most = std::max(4 * k + 64, items / 16);  // with more, scoring all is faster
    const int64_t tasks = (count + TOGETHER - 1) / TOGETHER;
    const int64_t parts = std::max<int64_t>(1, std::min(blocks, threads / std::max<int64_t>(tasks, 1)));
    std::vector<std::unique_ptr<Asked>> asked(count);
    std::vector<std::unique_ptr<Likely>> likely(count * parts);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < count; ++row) {
            const int64_t *low = std::lower_bound(rows, rows + pairs, row), *high = std::upper_bound(low, rows + pairs, row);
            const int64_t *from = std::lower_bound(added_rows, added_rows + added_pairs, row),
                          *to = std::upper_bound(from, added_rows + added_pairs, row);
            asked[row].reset(new Asked{
                states + row * dim, std::vector<int64_t>(left_out + (low - rows), left_out + (high - rows)),
                added_items + (from - added_rows), added_items + (to - added_rows), added_values + (from - added_rows)});
            std::sort(asked[row]->left_out.begin(), asked[row]->left_out.end());
            asked[row]->round(all);
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks * parts; ++task) {
            const int64_t first = task / parts * TOGETHER, last = std::min(first + TOGETHER, count), part = task % parts;
            const int64_t low = blocks * part / parts, high = blocks * (part + 1) / parts;
            std::vector<int64_t> able;
            for (int64_t row = first; row < last; ++row)
                if (asked[row]->codes_do) able.push_back(row);
            std::vector<Group> groups;
            for (int64_t at = 0; at < int64_t(able.size()); ++at) {
                const Asked& one = *asked[able[at]];
                if (at % STATES == 0) groups.emplace_back(all, std::min<int64_t>(STATES, int64_t(able.size()) - at));
                auto& list = likely[able[at] * parts + part];
                list = std::make_unique<Likely>(k, most, one.margin);
                groups.back().put(at % STATES, &one, list.get(), low * WIDE, std::min(high * WIDE, items), all);
            }
            for (int64_t from = low; from < high; from += tile)
                for (Group& group : groups) group.take(all, skipped, from, std::min(from + tile, high));
            if (parts > 1) continue;
            for (int64_t row = first; row < last; ++row) {  // at once, so that little memory is needed
                scored[row] = finish(all, *asked[row], &likely[row], 1, k, best_items + row * k, best_scores + row * k);
                likely[row].reset();
            }
        }
        if (parts > 1) {
#pragma omp for schedule(dynamic)
            for (int64_t row = 0; row < count; ++row)
                scored[row] = finish(
                    all, *asked[row], &likely[row * parts], parts, k, best_items + row * k, best_scores + row * k);
        }
    }
}

}  // extern "C"
