// Scores of a catalogue, a tile at a time.
//
// Products with a catalogue are computed in tiles, with a row per item and a column per token. A tile is still in the
// cache for the next operation, and sums over items add rows, without sums across a vector.
#pragma once

#include "common.h"

namespace seqrec {

constexpr int64_t ITEMS = 240;   // highest number of items per tile: a multiple of ROWS on every processor

// An item to ignore for a token. Tokens count from the first one of the block.
struct Pair {
    int64_t item, token;
};

// A block of tokens: their states, as given and in panels padded with zeros, and the items to ignore for them.
struct Block {
    int64_t first, count, width;  // width: count padded to complete panels
    int64_t row;                  // row length of a tile; not a power of two, so that rows fall into different cache sets
    const float* states;
    Room memory;
    Panels across;
    std::vector<Pair> left_out;  // sorted by item

    Block(const float* all, int64_t first, int64_t count, int64_t dim) : first(first), count(count) {
        width = panel_size(1, count);
        row = width + 16;
        states = all + first * dim;
        memory = room(width * dim);
        std::fill(memory.get(), memory.get() + width * dim, 0.0f);
        across = panels(transposed(states, dim), dim, count, memory.get());
    }

    // Picks the pairs of this block from those of all tokens, which are sorted by token.
    void leave_out(const int64_t* tokens, const int64_t* items, int64_t pairs) {
        const int64_t* low = std::lower_bound(tokens, tokens + pairs, first);
        const int64_t* high = std::lower_bound(low, tokens + pairs, first + count);
        for (const int64_t* at = low; at < high; ++at) left_out.push_back({items[at - tokens], *at - first});
        std::sort(left_out.begin(), left_out.end(), [](const Pair& a, const Pair& b) { return a.item < b.item; });
    }
};

// The items' vectors, in tiles of about the same height, whose number is a multiple of the number of threads.
struct Catalogue {
    const float* vectors;
    int64_t count, dim, height, tiles;

    Catalogue(const float* vectors, int64_t count, int64_t dim, int64_t threads) : vectors(vectors), count(count), dim(dim) {
        const int64_t each = (count + ITEMS * threads - 1) / (ITEMS * threads) * threads;
        height = std::max<int64_t>((count + each - 1) / std::max<int64_t>(each, 1) + ROWS - 1, ROWS) / ROWS * ROWS;
        tiles = (count + height - 1) / height;
    }
    int64_t first(int64_t tile) const { return tile * height; }
    int64_t items(int64_t tile) const { return std::min(height, count - first(tile)); }
    const float* of(int64_t tile) const { return vectors + first(tile) * dim; }

    // The scores of a tile, items by tokens; -inf for pairs to ignore.
    void score(int64_t tile, const Block& block, float* out) const {
        product<ZERO>(items(tile), block.width, dim, plain(of(tile), dim), block.across, out, block.row);
        for_pairs(tile, block, [&](int64_t item, int64_t token) { out[item * block.row + token] = -INFINITY; });
    }

    // Calls `each` for the pairs of a block that are in a tile, with their row and column in the tile.
    template <typename Each>
    void for_pairs(int64_t tile, const Block& block, Each each) const {
        const int64_t from = first(tile);
        auto pair = std::lower_bound(block.left_out.begin(), block.left_out.end(), from,
                                     [](const Pair& a, int64_t item) { return a.item < item; });
        for (; pair != block.left_out.end() && pair->item < from + items(tile); ++pair) each(pair->item - from, pair->token);
    }
};

// One score, with the same additions in the same order as in a tile, so that the bits are the same.
inline float score_of(const float* state, const float* vector, int64_t dim) {
    float score;
    product<ZERO>(1, 1, dim, plain(vector, 0), rows_of(state, 1), &score, 1);
    return score;
}

}  // namespace seqrec
