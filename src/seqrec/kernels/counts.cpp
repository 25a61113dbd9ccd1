// Weights of items that are near each other in histories, and sums of rows of such weights. counts.py describes what each
// function computes.
//
// A result has rows of unknown lengths. Threads write them in sections, each section one row after another into room for its
// longest possible rows; then the sections are joined. Room that is never written costs no memory.

#include "common.h"

#include <cstdlib>

using namespace seqrec;

namespace {

constexpr int64_t WORK = 1 << 14;  // number of additions in a section of the rows
constexpr int32_t END = -1;        // stands between two histories
constexpr int64_t AHEAD = 8;       // number of places that are fetched before they are needed

struct Release {
    void operator()(void* memory) const { std::free(memory); }
};

// Zeros, in pages that take memory only when they are first written.
template <typename Number>
std::unique_ptr<Number[], Release> zeros(int64_t count) {
    void* memory = std::calloc(std::max<int64_t>(count, 1), sizeof(Number));
    if (memory == nullptr) throw std::bad_alloc();
    return std::unique_ptr<Number[], Release>(static_cast<Number*>(memory));
}

// One sum per item. Bits mark the items that have one, in words of 64, and other bits mark the words that have a bit.
// So reading the sums in the order of items, and clearing them, takes no sorting and no pass over the catalogue.
struct Sums {
    std::unique_ptr<double[], Release> values;
    std::unique_ptr<double[], Release> others;  // a second sum per item, where there is one
    std::unique_ptr<uint64_t[], Release> marks, groups;
    std::vector<int64_t> touched;  // words of `groups` that have a bit

    explicit Sums(int64_t items, bool two = false)
        : values(zeros<double>(items)), others(two ? zeros<double>(items) : nullptr), marks(zeros<uint64_t>(items / 64 + 1)), groups(zeros<uint64_t>(items / 4096 + 1)) {}

    void add(int64_t item, double value) {
        values[item] += value;
        mark(item);
    }

    void add_other(int64_t item, double value) {
        others[item] += value;
        mark(item);
    }

    void mark(int64_t item) {
        uint64_t& word = marks[item / 64];
        if (!word) {
            uint64_t& group = groups[item / 4096];
            if (!group) touched.push_back(item / 4096);
            group |= uint64_t(1) << item / 64 % 64;
        }
        word |= uint64_t(1) << item % 64;
    }

    // Calls `each` with every item that has a sum, in ascending order, the sum and the second sum; then there are none.
    template <typename Each>
    void take(Each each) {
        std::sort(touched.begin(), touched.end());
        for (const int64_t place : touched) {
            for (uint64_t group = groups[place]; group; group &= group - 1) {
                const int64_t word = place * 64 + __builtin_ctzll(group);
                for (uint64_t mark = marks[word]; mark; mark &= mark - 1) {
                    const int64_t item = word * 64 + __builtin_ctzll(mark);
                    each(item, values[item], others ? others[item] : 0);
                    values[item] = 0;
                    if (others) others[item] = 0;
                }
                marks[word] = 0;
            }
            groups[place] = 0;
        }
        touched.clear();
    }
};

// Rows that one thread writes, and the place in the result where their room begins.
struct Section {
    int64_t low, high, begin;
};

// Divides rows into sections of about the same work, given as the number of additions for a row. The room for a row is
// that number, but at most `most`. The last section is empty and begins where all room ends.
template <typename Additions>
std::vector<Section> divided(int64_t rows, int64_t most, Additions additions) {
    std::vector<Section> sections;
    int64_t room = 0, low = 0, begin = 0, work = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t some = additions(row);
        room += std::min(some, most), work += some + 1;
        if (work < WORK && row < rows - 1) continue;
        sections.push_back({low, row + 1, begin});
        low = row + 1, begin = room, work = 0;
    }
    sections.push_back({rows, rows, room});
    return sections;
}

// Moves the rows of all sections together, and turns their lengths, offsets[row + 1], into offsets. Returns the last one.
template <typename Item>
int64_t joined(const std::vector<Section>& sections, int64_t* offsets, Item* items, float* values) {
    int64_t end = offsets[0] = 0;
    for (const Section& section : sections) {
        const int64_t start = end;
        for (int64_t row = section.low; row < section.high; ++row) end = offsets[row + 1] += end;
        if (end == start) continue;  // the arrays may have no memory
        std::memmove(items + start, items + section.begin, (end - start) * sizeof(Item));
        std::memmove(values + start, values + section.begin, (end - start) * sizeof(float));
    }
    return end;
}

// Number of places that Places takes for the histories.
int64_t length_of(const int64_t* ranges, int64_t histories) {
    int64_t all = histories + 1;
    for (int64_t m = 0; m < histories; ++m) all += ranges[2 * m + 1] - ranges[2 * m];
    return all;
}

// Number of times that each item occurs in the histories, which are ranges of `items`.
std::vector<int64_t> occurrences(const int32_t* items, const int64_t* ranges, int64_t histories, int64_t catalogue) {
    std::vector<int64_t> counts(catalogue);
    for (int64_t m = 0; m < histories; ++m)
        for (int64_t n = ranges[2 * m]; n < ranges[2 * m + 1]; ++n) ++counts[items[n]];
    if (catalogue) counts[0] = 0;  // the padding
    return counts;
}

// The histories one after another, with END around each, and the places of each item among them.
struct Places {
    std::vector<int32_t> stream;
    std::vector<int64_t> starts;    // the places of an item are places[starts[item]:starts[item + 1]]
    std::vector<uint32_t> places;

    Places(const int32_t* items, const int64_t* ranges, int64_t histories, const std::vector<int64_t>& counts)
        : starts(counts.size() + 1) {
        stream.reserve(length_of(ranges, histories));
        stream.push_back(END);
        for (size_t item = 0; item < counts.size(); ++item) starts[item + 1] = starts[item] + counts[item];
        places.resize(starts.back());
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (int64_t m = 0; m < histories; ++m) {
            for (int64_t n = ranges[2 * m]; n < ranges[2 * m + 1]; ++n) {
                if (items[n] != 0) places[next[items[n]]++] = uint32_t(stream.size());
                stream.push_back(items[n]);
            }
            stream.push_back(END);
        }
    }
};

// Calls `each` with the items on one side of a place and their distances from 0, up to the end of the history.
template <typename Each>
void walk(const int32_t* at, int64_t step, int64_t distances, Each each) {
    const int32_t item = *at;
    for (int64_t d = 0; d < distances; ++d) {
        const int32_t other = *(at += step);
        if (other == END) return;
        if (other != item && other != 0) each(other, d);
    }
}

// What a pair of items weighs.
struct Weights {
    const float *after, *beside, *gains, *factors;
    int64_t steps_after, steps_beside;

    // Adds the pairs of the item at one place.
    void add(const int32_t* at, Sums& sums) const {
        walk(at, 1, steps_after, [&](int32_t other, int64_t d) { sums.add(other, after[d]); });
        if (steps_beside == 0) return;
        const auto add_beside = [&](int32_t other, int64_t d) { sums.add_other(other, beside[d]); };
        walk(at, 1, steps_beside, add_beside);
        walk(at, -1, steps_beside, add_beside);
    }

    float of(int64_t item, int64_t other, double counted_after, double counted_beside) const {
        return float(std::log1p(counted_after * gains[other]) + counted_beside * factors[item] * factors[other]);
    }
};

struct Entry {
    float value;
    int32_t item;
};

// Writes the weights of the pairs of an item, or of more than `most` the highest.
int64_t write_highest(
    const Weights& weights, int64_t item, Sums& sums, int64_t most, std::vector<Entry>& row, int32_t* items, float* values
) {
    row.clear();
    sums.take([&](int64_t other, double after, double beside) {
        row.push_back({weights.of(item, other, after, beside), int32_t(other)});
    });
    if (int64_t(row.size()) > most) {
        std::nth_element(row.begin(), row.begin() + (most - 1), row.end(), [](const Entry& a, const Entry& b) {
            return a.value > b.value || (a.value == b.value && a.item < b.item);
        });
        row.resize(most);
        std::sort(row.begin(), row.end(), [](const Entry& a, const Entry& b) { return a.item < b.item; });
    }
    for (size_t n = 0; n < row.size(); ++n) items[n] = row[n].item, values[n] = row[n].value;
    return int64_t(row.size());
}

// The sections of a result of weigh_pairs.
std::vector<Section> sections_of(
    const std::vector<int64_t>& counts, const uint8_t* wanted, int64_t distances, int64_t most
) {
    const int64_t items = int64_t(counts.size());
    return divided(items, std::min(most, items), [&](int64_t item) {
        return wanted && !wanted[item] ? 0 : counts[item] * distances;
    });
}

// A table of rows by item, from a file that may hold anything, so each index is checked where it is used: a table is
// large, and a call reads few of its rows.
struct Table {
    const int64_t* offsets;
    const int32_t* items;
    const float* values;
    int64_t entries, catalogue;

    // The number of entries of a row; -1 if they are not all in the table.
    int64_t length(int32_t row) const {
        const int64_t low = offsets[row], high = offsets[row + 1];
        return 0 <= low && low <= high && high <= entries ? high - low : -1;
    }

    // Adds a row, multiplied. Returns false if one of its items is not in the catalogue.
    bool add(int32_t row, double times, Sums& sums) const {
        bool right = true;
        for (int64_t n = offsets[row]; n < offsets[row + 1]; ++n) {
            if (items[n] >= 0 && items[n] < catalogue) sums.add(items[n], times * values[n]);
            else right = false;
        }
        return right;
    }

    // Sections of the sums of rows; the last one begins at -1 if a row is not in the table.
    std::vector<Section> sections(const int64_t* sums, const int32_t* rows, int64_t count) const {
        bool right = true;
        auto sections = divided(count, catalogue, [&](int64_t sum) {
            int64_t all = 0;
            for (int64_t n = sums[sum]; n < sums[sum + 1]; ++n) {
                const int64_t some = length(rows[n]);
                right &= some >= 0;
                all += std::max<int64_t>(some, 0);
            }
            return all;
        });
        if (!right) sections.back().begin = -1;
        return sections;
    }
};

}  // namespace

extern "C" {

// Room for the result of seqrec_weigh_pairs.
int64_t seqrec_weigh_pairs_room(
    const int32_t* items, const int64_t* ranges, int64_t histories, int64_t catalogue, const uint8_t* wanted,
    int64_t distances, int64_t most, int32_t threads
) {
    (void)threads;
    return sections_of(occurrences(items, ranges, histories, catalogue), wanted, distances, most).back().begin;
}

// Returns the number of pairs, or -1 if there is too little room or there are more places than 32 bits can tell.
int64_t seqrec_weigh_pairs(
    const int32_t* items, const int64_t* ranges, int64_t histories, int64_t catalogue, const uint8_t* wanted,
    const float* after, int64_t steps_after, const float* beside, int64_t steps_beside, const float* gains,
    const float* factors, int64_t most, int64_t* offsets, int32_t* others, float* values, int64_t room, int32_t threads
) {
    const Weights weights{after, beside, gains, factors, steps_after, steps_beside};
    const std::vector<int64_t> counts = occurrences(items, ranges, histories, catalogue);
    const std::vector<Section> sections = sections_of(counts, wanted, steps_after + 2 * steps_beside, most);
    if (sections.back().begin > room || length_of(ranges, histories) > int64_t(UINT32_MAX)) return -1;
    const Places found(items, ranges, histories, counts);
    const int32_t* stream = found.stream.data();
#pragma omp parallel num_threads(threads)
    {
        Sums sums(catalogue, steps_beside > 0);
        std::vector<Entry> row;
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < int64_t(sections.size()); ++n) {
            int64_t end = sections[n].begin;
            for (int64_t item = sections[n].low; item < sections[n].high; ++item) {
                const uint32_t *place = found.places.data() + found.starts[item], *last = place + counts[item];
                if (wanted && !wanted[item]) last = place;
                for (; place != last; ++place) {
                    if (place + AHEAD < found.places.data() + found.places.size()) __builtin_prefetch(stream + place[AHEAD]);
                    weights.add(stream + *place, sums);
                }
                offsets[item + 1] = write_highest(weights, item, sums, most, row, others + end, values + end);
                end += offsets[item + 1];
            }
        }
    }
    return joined(sections, offsets, others, values);
}

// Room for the result of seqrec_sum_rows; -1 if a row is not in the table.
int64_t seqrec_sum_rows_room(
    const int64_t* table_offsets, const int32_t* others, const float* values, int64_t entries, int64_t catalogue,
    const int64_t* offsets, const int32_t* rows, int64_t count, int32_t threads
) {
    (void)threads;
    return Table{table_offsets, others, values, entries, catalogue}.sections(offsets, rows, count).back().begin;
}

// Returns the number of sums, or -1 if a row or an item of the table is out of range.
int64_t seqrec_sum_rows(
    const int64_t* table_offsets, const int32_t* others, const float* values, int64_t entries, int64_t catalogue,
    const int64_t* offsets, const int32_t* rows, const float* coefficients, int64_t count, int64_t* out_offsets,
    int64_t* columns, float* out, int64_t room, int32_t threads
) {
    const Table table{table_offsets, others, values, entries, catalogue};
    const std::vector<Section> sections = table.sections(offsets, rows, count);
    if (sections.back().begin < 0 || sections.back().begin > room) return -1;
    bool right = true;
    threads = int32_t(std::min<int64_t>(threads, int64_t(sections.size())));
#pragma omp parallel num_threads(threads) reduction(&& : right)
    {
        Sums sums(catalogue);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < int64_t(sections.size()); ++n) {
            int64_t end = sections[n].begin;
            for (int64_t sum = sections[n].low; sum < sections[n].high; ++sum) {
                const int64_t start = end;
                for (int64_t e = offsets[sum]; e < offsets[sum + 1]; ++e)
                    right = table.add(rows[e], coefficients[e], sums) && right;
                sums.take([&](int64_t item, double value, double) { columns[end] = item, out[end++] = float(value); });
                out_offsets[sum + 1] = end - start;
            }
        }
    }
    return right ? joined(sections, out_offsets, columns, out) : -1;
}

// Sums of rows at some items only, which need no list of the others. Returns 0, or -1 as seqrec_sum_rows does.
int64_t seqrec_sums_at(
    const int64_t* table_offsets, const int32_t* others, const float* values, int64_t entries, int64_t catalogue,
    const int64_t* offsets, const int32_t* rows, const float* coefficients, int64_t count, const int64_t* asked,
    int64_t width, float* out, int32_t threads
) {
    const Table table{table_offsets, others, values, entries, catalogue};
    bool right = true;
#pragma omp parallel num_threads(threads) reduction(&& : right)
    {
        // 1 + the place of each asked item among the sums. Most entries of the rows are of items that nobody asked for.
        const auto places = zeros<int32_t>(catalogue);
        std::vector<double> sums(width + 1);
#pragma omp for schedule(dynamic, 32)
        for (int64_t row = 0; row < count; ++row) {
            const int64_t* own = asked + row * width;
            for (int64_t n = 0; n < width; ++n) places[own[n]] = int32_t(n + 1), sums[n + 1] = 0;
            for (int64_t e = offsets[row]; e < offsets[row + 1]; ++e) {
                const int64_t first = table_offsets[rows[e]], length = table.length(rows[e]);
                right = right && length >= 0;
                for (int64_t n = first; n < first + length; ++n) {
                    if (others[n] < 0 || others[n] >= catalogue) right = false;
                    else if (const int32_t place = places[others[n]]) sums[place] += double(coefficients[e]) * values[n];
                }
            }
            for (int64_t n = 0; n < width; ++n) out[row * width + n] = float(sums[places[own[n]]]);
            for (int64_t n = 0; n < width; ++n) places[own[n]] = 0;
        }
    }
    return right ? 0 : -1;
}

}  // extern "C"
