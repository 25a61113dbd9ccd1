// Products of codes of 8 bits with numbers of 8 bits. codes.cpp says what they are for.
#pragma once

#include "common.h"

namespace seqrec {

constexpr int64_t WIDE = 16;          // items per block of codes: four codes of each fill 64 bytes
constexpr int64_t QUADS = 16;         // fours of dimensions whose products are added in 16 bits
constexpr int64_t MIDDLE = 64;        // of the codes

// Codes are unsigned and numbers of states signed, because that is what the instruction multiplies: 32 or 64 products at
// once, of which it adds pairs in 16 bits. Sums of pairs may exceed 16 bits on the way. They wrap around, and the last one
// is right, as it starts at -64 times the sum of the numbers and so ends at n q, which Asked::round keeps within 16 bits.
#if defined(__AVX512BW__)
constexpr int STATES = 12, VECTORS = 1;  // states that are multiplied at once with a block; vectors in its 64 bytes
typedef __m512i Bytes;
inline Bytes read(const void* from) { return _mm512_loadu_si512(from); }
inline void write(int32_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
inline Bytes spread(int32_t x) { return _mm512_set1_epi32(x); }
inline Bytes products_and(Bytes sums, Bytes codes, Bytes numbers) {
    return _mm512_add_epi16(sums, _mm512_maddubs_epi16(codes, numbers));
}
inline Bytes in_32_bits(Bytes sums) { return _mm512_madd_epi16(sums, _mm512_set1_epi16(1)); }
inline Bytes sum_of(Bytes a, Bytes b) { return _mm512_add_epi32(a, b); }
inline uint32_t higher(Bytes a, Bytes b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline bool any(uint32_t bits) { return bits != 0; }
inline uint32_t higher(const int32_t* products, int32_t limit) { return higher(read(products), spread(limit)); }
#elif defined(__AVX2__)
constexpr int STATES = 6, VECTORS = 2;
typedef __m256i Bytes;
inline Bytes read(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void write(int32_t* to, Bytes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
inline Bytes spread(int32_t x) { return _mm256_set1_epi32(x); }
inline Bytes products_and(Bytes sums, Bytes codes, Bytes numbers) {
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, numbers));
}
inline Bytes in_32_bits(Bytes sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
inline Bytes sum_of(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }
inline Bytes higher(Bytes a, Bytes b) { return _mm256_cmpgt_epi32(a, b); }
inline bool any(Bytes bits) { return !_mm256_testz_si256(bits, bits); }
inline uint32_t bits_of(Bytes lanes) { return _mm256_movemask_ps(_mm256_castsi256_ps(lanes)); }
inline uint32_t higher(const int32_t* products, int32_t limit) {
    return bits_of(higher(read(products), spread(limit))) | bits_of(higher(read(products + 8), spread(limit))) << 8;
}
#else
constexpr int STATES = 4;
// A bit for each of a block's products that is higher than the limit.
inline uint32_t higher(const int32_t* products, int32_t limit) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < WIDE; ++i) bits |= uint32_t(products[i] > limit) << i;
    return bits;
}
#endif

// The products of a block's codes, [quads, WIDE, 4], with the numbers of S states, [quads, STATES], four in an int32.
// For every QUADS of them, `starts` has where the sums of each state start, [.., STATES], two in an int32. Returns whether
// a product may be higher than its state's `limits`.
template <int S>
inline bool products(
    const uint8_t* codes, int64_t quads, const int32_t* numbers, const int32_t* starts, const int32_t* limits,
    int32_t (*out)[WIDE]
) {
#if defined(__AVX512BW__) || defined(__AVX2__)
    for (int64_t from = 0; from < quads; from += QUADS, starts += STATES) {
        const int64_t to = std::min(from + QUADS, quads);
        Bytes sum[S][VECTORS];
        UNROLL(S)
        for (int s = 0; s < S; ++s)
            for (int v = 0; v < VECTORS; ++v) sum[s][v] = spread(starts[s]);
        for (int64_t q = from; q < to; ++q) {
            Bytes code[VECTORS];
            for (int v = 0; v < VECTORS; ++v) code[v] = read(codes + q * 4 * WIDE + v * sizeof(Bytes));
            UNROLL(S)
            for (int s = 0; s < S; ++s) {
                const Bytes four = spread(numbers[q * STATES + s]);
                for (int v = 0; v < VECTORS; ++v) sum[s][v] = products_and(sum[s][v], code[v], four);
            }
        }
        decltype(higher(spread(0), spread(0))) found{};
        UNROLL(S)
        for (int s = 0; s < S; ++s)
            for (int v = 0; v < VECTORS; ++v) {
                int32_t* into = out[s] + v * (WIDE / VECTORS);
                const Bytes all = from ? sum_of(read(into), in_32_bits(sum[s][v])) : in_32_bits(sum[s][v]);
                write(into, all);
                found |= higher(all, spread(limits[s]));
            }
        if (to == quads) return any(found);
    }
    return false;
#else
    (void)starts, (void)limits;
    for (int s = 0; s < S; ++s) {
        std::fill(out[s], out[s] + WIDE, 0);
        for (int64_t q = 0; q < quads; ++q) {
            int8_t four[4];
            std::memcpy(four, numbers + q * STATES + s, sizeof four);
            for (int64_t i = 0; i < WIDE; ++i)
                for (int64_t d = 0; d < 4; ++d) out[s][i] += (int32_t(codes[(q * WIDE + i) * 4 + d]) - MIDDLE) * four[d];
        }
    }
    return true;
#endif
}

template <int S>
inline bool products_of(
    int64_t states, const uint8_t* codes, int64_t quads, const int32_t* numbers, const int32_t* starts,
    const int32_t* limits, int32_t (*out)[WIDE]
) {
    if constexpr (S > 0) {
        if (states == S) return products<S>(codes, quads, numbers, starts, limits, out);
        return products_of<S - 1>(states, codes, quads, numbers, starts, limits, out);
    }
    return false;
}

}  // namespace seqrec
