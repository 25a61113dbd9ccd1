// The best candidates of a ranking, and how ties are settled.
#pragma once

#include "common.h"

namespace seqrec {

struct Candidate {
    float score;
    int64_t item;
};

inline bool better(const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// Writes the best k candidates, which may be in any order; -1 and -inf if there are fewer.
inline void keep_best(std::vector<Candidate>& all, int64_t k, int64_t* items, float* scores) {
    const int64_t some = std::min<int64_t>(k, int64_t(all.size()));
    std::partial_sort(all.begin(), all.begin() + some, all.end(), better);
    for (int64_t n = 0; n < k; ++n) {
        items[n] = n < some ? all[n].item : -1;
        scores[n] = n < some ? all[n].score : -INFINITY;
    }
}

}  // namespace seqrec
