// Ranking of a catalogue. scores.py describes what it computes.

#include "best.h"
#include "tiles.h"

using namespace seqrec;

namespace {

// Values to add to the scores of a block. Each token has a cursor into its pairs, which ascend by item, and so do the
// tiles: to sort thousands of pairs per token by tile, as Block does with the few to ignore, would take as long as the
// products.
struct Added {
    const int64_t* items;
    const float* values;
    const int64_t *begin[TOKENS], *end[TOKENS], *next[TOKENS];

    // Finds the pairs of a block among all, which are sorted by token and item. `from` is the first item to rank.
    Added(const int64_t* tokens, const int64_t* items, const float* values, int64_t pairs, const Block& block, int64_t from)
        : items(items), values(values) {
        const int64_t* low = std::lower_bound(tokens, tokens + pairs, block.first);
        for (int64_t t = 0; t < block.count; ++t) {
            const int64_t* high = std::upper_bound(low, tokens + pairs, block.first + t);
            begin[t] = items + (low - tokens), end[t] = items + (high - tokens);
            next[t] = std::lower_bound(begin[t], end[t], from);
            low = high;
        }
    }

    // Adds the values of the next tile. Pairs to ignore stay at -inf.
    void add_to(float* tile, int64_t first, int64_t count, const Block& block) {
        for (int64_t t = 0; t < block.count; ++t) {
            const int64_t* pair = next[t];
            for (; pair != end[t] && *pair < first + count; ++pair)
                tile[(*pair - first) * block.row + t] += values[pair - items];
            next[t] = pair;
        }
    }

    // The score of an item with its values: the same additions in the same order as in a tile.
    float with(float score, int64_t token, int64_t item) const {
        const int64_t* pair = std::lower_bound(begin[token], end[token], item);
        for (; pair != end[token] && *pair == item; ++pair) score += values[pair - items];
        return score;
    }
};

// The best candidates of each token of a block so far. A list collects candidates that score above the worst of the
// best k, and is cut to k when it is full; soon few candidates qualify. Items come in ascending order, so a candidate
// that ties with the worst is never better.
struct Best {
    int64_t k, room;
    std::vector<std::vector<Candidate>> found;
    float least[TOKENS];

    Best(int64_t k, int64_t count) : k(k), room(2 * k + 16), found(count) {
        std::fill(least, least + TOKENS, INFINITY);  // padding tokens collect no candidates
        std::fill(least, least + count, -INFINITY);
        for (auto& list : found) list.reserve(room);
    }

    void cut(int64_t token) {
        std::vector<Candidate>& list = found[token];
        if (int64_t(list.size()) <= k) return;
        std::nth_element(list.begin(), list.begin() + (k - 1), list.end(), better);
        list.resize(k);
        least[token] = list.back().score;
    }

    void take(const float* tile, int64_t items, int64_t first, const Block& block, const uint8_t* skipped) {
        for (int64_t i = 0; i < items; ++i) {
            if (skipped && skipped[first + i]) continue;
            const float* row = tile + i * block.row;
            for (int64_t t = 0; t < block.width; t += LANES)
                for (uint32_t bits = above(load(row + t), load(least + t)); bits; bits &= bits - 1) {
                    const int64_t token = t + __builtin_ctz(bits);
                    found[token].push_back({row[token], first + i});
                    if (int64_t(found[token].size()) >= room) cut(token);
                }
        }
    }
};

// For each token, the numbers of candidates that score above the target and equal to it, and the number of NaN scores.
struct Ranks {
    float targets[TOKENS] = {};
    int32_t greater[TOKENS] = {}, ties[TOKENS] = {}, odd[TOKENS] = {};

    void take(const float* tile, int64_t items, int64_t first, const Block& block, const uint8_t* skipped, bool ranked) {
        for (int64_t t = 0; t < block.width; t += LANES) {
            const Vector target = load(targets + t);
            Whole above{}, equal{}, none{};
            for (int64_t i = 0; i < items; ++i) {
                if (skipped && skipped[first + i]) continue;
                const Vector x = load(tile + i * block.row + t);
                none -= x != x;
                if (ranked) above -= x > target, equal -= x == target;
            }
            for (int l = 0; l < LANES; ++l) greater[t + l] += above[l], ties[t + l] += equal[l], odd[t + l] += none[l];
        }
    }
};

}  // namespace

extern "C" {

// The best k candidates for each state, by score and then by index; -1 and -inf if there are fewer. Scores are dot
// products, plus the added values of pairs of a row and an item. If targets are given, also the number of candidates that score above the target (-1 if the target scores -inf), and the number that
// score the same, including the target (1 if it scores -inf). Returns whether a score is NaN. Threads divide the states
// among them, and if there are few states, the candidates too.
int32_t seqrec_rank(
    const float* states, const float* vectors, const int64_t* rows, const int64_t* left_out, int64_t pairs,
    const int64_t* added_rows, const int64_t* added_items, const float* added_values, int64_t added_pairs,
    const uint8_t* skipped, int64_t count, int64_t items, int64_t dim, int64_t k, int64_t* best_items, float* best_scores,
    const int64_t* targets, int64_t* greater, int64_t* ties, int32_t threads
) {
    const Catalogue catalogue(vectors, items, dim, threads);
    const int64_t blocks = (count + TOKENS - 1) / TOKENS, tiles = catalogue.tiles;
    const int64_t parts = std::max<int64_t>(1, std::min(tiles, threads / std::max<int64_t>(blocks, 1)));
    std::vector<std::unique_ptr<Best>> bests(blocks * parts);
    std::vector<std::unique_ptr<Ranks>> ranks(blocks * parts);
    int32_t odd = 0;
#pragma omp parallel num_threads(threads) reduction(| : odd)
    {
        const auto tile = room(ITEMS * (TOKENS + 16));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < blocks * parts; ++task) {
            const int64_t first = task / parts * TOKENS, part = task % parts;
            Block block(states, first, std::min(TOKENS, count - first), dim);
            block.leave_out(rows, left_out, pairs);
            bests[task] = std::make_unique<Best>(k, block.count), ranks[task] = std::make_unique<Ranks>();
            Best& best = *bests[task];
            Ranks& rank = *ranks[task];
            const int64_t low = tiles * part / parts, high = tiles * (part + 1) / parts;
            Added added(added_rows, added_items, added_values, added_pairs, block, catalogue.first(low));
            for (int64_t t = 0; targets && t < block.count; ++t) {
                const int64_t target = targets[first + t];
                rank.targets[t] = added.with(score_of(block.states + t * dim, vectors + target * dim, dim), t, target);
            }
            for (int64_t n = low; n < high; ++n) {
                catalogue.score(n, block, tile.get());
                if (added_pairs) added.add_to(tile.get(), catalogue.first(n), catalogue.items(n), block);
                if (k) best.take(tile.get(), catalogue.items(n), catalogue.first(n), block, skipped);
                rank.take(tile.get(), catalogue.items(n), catalogue.first(n), block, skipped, targets != nullptr);
            }
            for (int64_t t = 0; t < block.count; ++t) odd |= rank.odd[t] != 0;
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < count; ++row) {
            const int64_t task = row / TOKENS * parts, token = row % TOKENS;
            std::vector<Candidate> all;
            for (int64_t part = 0; part < parts; ++part) {
                const auto& found = bests[task + part]->found[token];
                all.insert(all.end(), found.begin(), found.end());
            }
            keep_best(all, k, best_items + row * k, best_scores + row * k);
            if (!targets) continue;
            greater[row] = ties[row] = 0;
            for (int64_t part = 0; part < parts; ++part) {
                greater[row] += ranks[task + part]->greater[token];
                ties[row] += ranks[task + part]->ties[token];
            }
            if (ranks[task]->targets[token] == -INFINITY) greater[row] = -1, ties[row] = 1;
        }
    }
    return odd;
}

}  // extern "C"
