// Checks of values in arrays, made before a loop uses them as indices: see arrays.py.

#include "common.h"

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
int32_t seqrec_below(const int64_t* values, int64_t count, int64_t limit) {
    bool right = true;
    for (int64_t n = 0; n < count; ++n) right &= values[n] >= 0 && values[n] < limit;
    return right;
}

// Whether no value is smaller than the one before it.
int32_t seqrec_sorted(const int64_t* values, int64_t count) {
    bool right = true;
    for (int64_t n = 1; n < count; ++n) right &= values[n] >= values[n - 1];
    return right;
}

}  // extern "C"
