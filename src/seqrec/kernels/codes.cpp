// Ranking of a catalogue whose vectors have codes of 8 bits. codes.py describes what it computes.

#include "best.h"

using namespace seqrec;

namespace {

constexpr int64_t WIDE = 16;   // items per block of codes: two codes of each fill half a vector
constexpr int64_t STATES = 4;  // states that share one reading of the codes

// The products of a block's codes, [pairs, WIDE, 2], with the numbers of S states, a pair per int32.
template <int S>
inline void products(const int8_t* codes, int64_t pairs, const int32_t* const* states, int32_t (*out)[WIDE]) {
#if defined(__AVX512BW__)
    __m512i sum[S];
    UNROLL(S)
    for (int s = 0; s < S; ++s) sum[s] = _mm512_setzero_si512();
    for (int64_t p = 0; p < pairs; ++p) {
        const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + p));
        UNROLL(S)
        for (int s = 0; s < S; ++s) sum[s] = _mm512_add_epi32(sum[s], _mm512_madd_epi16(wide, _mm512_set1_epi32(states[s][p])));
    }
    UNROLL(S)
    for (int s = 0; s < S; ++s) _mm512_storeu_si512(out[s], sum[s]);
#elif defined(__AVX2__)
    __m256i sum[S][2];
    UNROLL(S)
    for (int s = 0; s < S; ++s) sum[s][0] = sum[s][1] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; ++p) {
        const __m128i* half = reinterpret_cast<const __m128i*>(codes) + 2 * p;
        const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128(half)), high = _mm256_cvtepi8_epi16(_mm_loadu_si128(half + 1));
        UNROLL(S)
        for (int s = 0; s < S; ++s) {
            const __m256i pair = _mm256_set1_epi32(states[s][p]);
            sum[s][0] = _mm256_add_epi32(sum[s][0], _mm256_madd_epi16(low, pair));
            sum[s][1] = _mm256_add_epi32(sum[s][1], _mm256_madd_epi16(high, pair));
        }
    }
    UNROLL(S)
    for (int s = 0; s < S; ++s)
        for (int half = 0; half < 2; ++half) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[s]) + half, sum[s][half]);
#else
    for (int s = 0; s < S; ++s) {
        std::fill(out[s], out[s] + WIDE, 0);
        for (int64_t p = 0; p < pairs; ++p) {
            int16_t numbers[2];
            std::memcpy(numbers, states[s] + p, sizeof numbers);
            const int8_t* pair = codes + p * 2 * WIDE;
            for (int64_t i = 0; i < WIDE; ++i) out[s][i] += int32_t(pair[2 * i]) * numbers[0] + int32_t(pair[2 * i + 1]) * numbers[1];
        }
    }
#endif
}

// A bit for each of a block's products that is at least `least`.
inline uint32_t reaching(const int32_t* products, int32_t least) {
#if defined(__AVX512BW__)
    return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(products), _mm512_set1_epi32(least));
#elif defined(__AVX2__)
    const __m256i* halves = reinterpret_cast<const __m256i*>(products);
    const __m256i limit = _mm256_set1_epi32(least);
    const int low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, _mm256_loadu_si256(halves))));
    const int high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, _mm256_loadu_si256(halves + 1))));
    return ~uint32_t(low | high << 8) & 0xffff;
#else
    uint32_t bits = 0;
    for (int64_t i = 0; i < WIDE; ++i) bits |= uint32_t(products[i] >= least) << i;
    return bits;
#endif
}

struct Coded {
    int32_t product;
    int64_t item;
};

// A state in whole numbers, and how far a product with codes may be from the score, in the same unit.
struct Rounded {
    std::vector<int32_t> pairs;
    double margin;

    // The score of item i with the vector v and the codes q, v = steps * (q + r), is x = sum of state * steps * (q + r).
    // With y = state * steps = unit * (n + d), |d| <= 1/2, it is unit * (n q) up to |y| |r| + unit / 2 * sum of |q|, and
    // up to the rounding of the float32 score itself.
    Rounded(const float* state, const float* steps, int64_t dim, int64_t most, double residual, int64_t total)
        : pairs((dim + 1) / 2) {
        double highest = 0, square = 0, sum = 0;
        for (int64_t d = 0; d < dim; ++d) {
            const double y = std::abs(double(state[d]) * steps[d]);
            highest = std::max(highest, y), square += y * y, sum += y;
        }
        const double unit = highest > 0 ? highest / double(most) : 1;
        std::vector<int16_t> numbers(2 * pairs.size());
        for (int64_t d = 0; d < dim; ++d) numbers[d] = int16_t(std::lrint(double(state[d]) * steps[d] / unit));
        std::memcpy(pairs.data(), numbers.data(), 2 * numbers.size());
        margin = (std::sqrt(square) * residual + 128 * sum * 6e-8 * double(dim + 2)) / unit + double(total) / 2 + 1;
    }
};

// Candidates of one state in a part of the catalogue: all whose score may be among the k highest.
struct Likely {
    int64_t k, room;
    double margin;
    std::vector<Coded> found;
    int32_t least = INT32_MIN;

    Likely(int64_t k, double margin) : k(k), room(4 * k + 64), margin(margin) { found.reserve(room); }

    // Drops the candidates that are too far below the k-th highest product to reach it.
    void cut() {
        if (int64_t(found.size()) <= k) return;
        std::nth_element(found.begin(), found.begin() + (k - 1), found.end(),
                         [](const Coded& a, const Coded& b) { return a.product > b.product; });
        const double low = std::floor(double(found[k - 1].product) - 2 * margin);
        least = int32_t(std::max(low, double(INT32_MIN)));
        found.erase(std::remove_if(found.begin(), found.end(), [this](const Coded& c) { return c.product < least; }), found.end());
        room = std::max(room, 2 * int64_t(found.size()));
    }

    void take(const Coded& candidate) {
        found.push_back(candidate);
        if (int64_t(found.size()) >= room) cut();
    }
};

// What is known of one state before its candidates are sought.
struct Asked {
    const float* state;
    Rounded rounded;
    std::vector<int64_t> left_out;                // sorted
    const int64_t *added, *added_end;             // items with a value to add, sorted
    const float* values;                          // the value of each

    bool ignores(int64_t item) const { return std::binary_search(left_out.begin(), left_out.end(), item); }
    bool adds(int64_t item) const { return std::binary_search(added, added_end, item); }
};

// The scores of some items, with the same bits as in a tile of rank.cpp.
void score_items(const float* state, const float* vectors, int64_t dim, const std::vector<Coded>& items, float* scores) {
    const int64_t some = 8 * ROWS;
    const auto rows = room(some * dim);
    for (int64_t start = 0; start < int64_t(items.size()); start += some) {
        const int64_t count = std::min(some, int64_t(items.size()) - start);
        for (int64_t n = 0; n < count; ++n) std::copy_n(vectors + items[start + n].item * dim, dim, rows.get() + n * dim);
        product<ZERO>(count, 1, dim, plain(rows.get(), dim), rows_of(state, 1), scores + start, 1);
    }
}

}  // namespace

extern "C" {

// The best k candidates for each state, as seqrec_rank finds them, and how many candidates were scored. Returns whether
// a score is NaN. Threads divide groups of states among them, and if there are few, the candidates too.
int32_t seqrec_rank_by_codes(
    const float* states, const float* vectors, const int8_t* codes, const float* steps, double residual, int64_t total,
    const int64_t* rows, const int64_t* left_out, int64_t pairs, const int64_t* added_rows, const int64_t* added_items,
    const float* added_values, int64_t added_pairs, const uint8_t* skipped, int64_t count, int64_t items, int64_t dim,
    int64_t k, int64_t* best_items, float* best_scores, int64_t* scored, int32_t threads
) {
    const int64_t half = (dim + 1) / 2, blocks = (items + WIDE - 1) / WIDE;
    const int64_t most = std::min<int64_t>(INT16_MAX, INT32_MAX / (128 * 2 * half));  // so that no product overflows
    std::vector<std::unique_ptr<Asked>> asked(count);
    for (int64_t row = 0; row < count; ++row) {
        const int64_t *low = std::lower_bound(rows, rows + pairs, row), *high = std::upper_bound(low, rows + pairs, row);
        const int64_t *from = std::lower_bound(added_rows, added_rows + added_pairs, row),
                      *to = std::upper_bound(from, added_rows + added_pairs, row);
        const float* state = states + row * dim;
        asked[row].reset(new Asked{
            state, Rounded(state, steps, dim, most, residual, total),
            std::vector<int64_t>(left_out + (low - rows), left_out + (high - rows)), added_items + (from - added_rows),
            added_items + (to - added_rows), added_values + (from - added_rows)});
        std::sort(asked[row]->left_out.begin(), asked[row]->left_out.end());
    }
    const int64_t groups = (count + STATES - 1) / STATES;
    const int64_t parts = std::max<int64_t>(1, std::min(blocks, threads / std::max<int64_t>(groups, 1)));
    std::vector<std::unique_ptr<Likely>> likely(count * parts);
    int32_t odd = 0;
#pragma omp parallel num_threads(threads) reduction(| : odd)
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < groups * parts; ++task) {
            const int64_t first = task / parts * STATES, part = task % parts, some = std::min(STATES, count - first);
            const int32_t* numbers[STATES];
            Likely* lists[STATES];
            for (int64_t s = 0; s < some; ++s) {
                const Rounded& rounded = asked[first + s]->rounded;
                numbers[s] = rounded.pairs.data();
                likely[(first + s) * parts + part] = std::make_unique<Likely>(k, rounded.margin);
                lists[s] = likely[(first + s) * parts + part].get();
            }
            int32_t out[STATES][WIDE];
            for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
                const int8_t* block = codes + b * half * 2 * WIDE;
                if (some == 4) products<4>(block, half, numbers, out);
                else if (some == 3) products<3>(block, half, numbers, out);
                else if (some == 2) products<2>(block, half, numbers, out);
                else products<1>(block, half, numbers, out);
                for (int64_t s = 0; s < some; ++s)
                    for (uint32_t bits = reaching(out[s], lists[s]->least); bits; bits &= bits - 1) {
                        const int64_t lane = __builtin_ctz(bits), item = b * WIDE + lane;
                        const Asked& one = *asked[first + s];
                        if (item >= items || (skipped && skipped[item]) || one.ignores(item) || one.adds(item)) continue;
                        lists[s]->take({out[s][lane], item});
                    }
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < count; ++row) {
            const Asked& one = *asked[row];
            Likely all(k, one.rounded.margin);
            for (int64_t part = 0; part < parts; ++part) {
                const auto& found = likely[row * parts + part]->found;
                all.found.insert(all.found.end(), found.begin(), found.end());
            }
            all.cut();
            const int64_t without = int64_t(all.found.size());
            std::vector<float> added(without, 0.0f);
            for (const int64_t* item = one.added; item != one.added_end; ++item) {
                if ((skipped && skipped[*item]) || one.ignores(*item)) continue;
                if (int64_t(all.found.size()) > without && all.found.back().item == *item) continue;  // given twice
                all.found.push_back({0, *item});
            }
            std::vector<float> scores(all.found.size());
            score_items(one.state, vectors, dim, all.found, scores.data());
            std::vector<Candidate> best(scores.size());
            const int64_t* pair = one.added;
            for (int64_t n = 0; n < int64_t(best.size()); ++n) {
                best[n] = {scores[n], all.found[n].item};
                if (n >= without)
                    for (pair = std::lower_bound(pair, one.added_end, best[n].item); pair != one.added_end && *pair == best[n].item; ++pair)
                        best[n].score += one.values[pair - one.added];
                if (best[n].score != best[n].score) odd = 1, best[n].score = -INFINITY;
            }
            scored[row] = int64_t(best.size());
            keep_best(best, k, best_items + row * k, best_scores + row * k);
        }
    }
    return odd;
}

}  // extern "C"
