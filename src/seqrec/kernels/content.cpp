// Checks of values in arrays, made before a loop uses them as indices: see arrays.py.

#include "common.h"

namespace {

// Adds up signs instead of comparing, so that compilers use vectors: the sign is set in a value that is negative, and
// in limit - 1 - value if the value is too large.
template <typename Value>
bool all_below(const Value* values, int64_t count, int64_t limit) {
    uint64_t signs = 0;
    for (int64_t n = 0; n < count; ++n) signs |= uint64_t(values[n]) | (uint64_t(limit - 1) - uint64_t(values[n]));
    return signs >> 63 == 0;
}

}  // namespace

extern "C" {

// Whether offsets start at 0, end at `last`, and have steps from `least` to `most`.
int32_t seqrec_rising(const int64_t* offsets, int64_t count, int64_t last, int64_t least, int64_t most) {
    if (count < 1 || offsets[0] != 0 || offsets[count - 1] != last) return 0;
    bool right = true;
    // Compare before subtracting: the difference of arbitrary numbers may overflow.
    for (int64_t n = 1; n < count; ++n) right &= offsets[n] >= offsets[n - 1] && offsets[n] <= last;
    if (!right) return 0;
    for (int64_t n = 1; n < count; ++n) {
        const int64_t step = offsets[n] - offsets[n - 1];
        right &= step >= least && step <= most;
    }
    return right;
}

// Whether all values are from 0 to `limit` - 1.
int32_t seqrec_below(const int64_t* values, int64_t count, int64_t limit) { return all_below(values, count, limit); }
int32_t seqrec_below_int32(const int32_t* values, int64_t count, int64_t limit) { return all_below(values, count, limit); }

// Whether no value is smaller than the one before it.
int32_t seqrec_sorted(const int64_t* values, int64_t count) {
    bool right = true;
    for (int64_t n = 1; n < count; ++n) right &= values[n] >= values[n - 1];
    return right;
}

// Whether no value is smaller than the one before it in the same row.
int32_t seqrec_sorted_within(const int64_t* values, int64_t count, const int64_t* rows) {
    bool right = true;
    for (int64_t n = 1; n < count; ++n) right &= values[n] >= values[n - 1] || rows[n] != rows[n - 1];
    return right;
}

}  // extern "C"
