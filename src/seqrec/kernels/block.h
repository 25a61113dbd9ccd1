// A complete self-attention block, as in SASRec, for a chunk of tokens. block.py describes what it computes.
#pragma once

#include "rows.h"

namespace seqrec {

constexpr int PARAMETERS = 12;

enum Norm { PAPER, PRE, POST };
enum Name { GAIN1, BIAS1, QUERY, QUERY_BIAS, KEYS, KEYS_BIAS, GAIN2, BIAS2, FIRST, FIRST_BIAS, SECOND, SECOND_BIAS };

// What block.py passes, with fields in the same order.
struct AttentionBlock {
    int64_t users, dim, hidden, heads;
    int32_t norm, last_only, threshold;
    float kept, epsilon;
    const int64_t* offsets;
    const float* x;
    const float* parameters[PARAMETERS];
    const int16_t* words[3];  // for the attention weights, the hidden layer and the output; null without dropout
    float* out;
    float* saved;  // states for backward, or null
    const float* by_out;
    float* by_x;
    float* by_parameters[PARAMETERS];

    Dropping dropping() const { return {threshold, kept}; }
    int64_t tokens() const { return offsets[users]; }
    int64_t size(int name) const {
        switch (name) {
            case QUERY: return dim * dim;
            case KEYS: return 2 * dim * dim;
            case KEYS_BIAS: return 2 * dim;
            case FIRST: case SECOND: return dim * hidden;
            case FIRST_BIAS: return hidden;
            default: return dim;
        }
    }
};

// The states that forward computes: of all tokens if backward needs them, otherwise only of the current chunk.
struct States {
    float *mean1, *mean2, *query, *keys, *sum, *hidden, *ended;

    States(float* memory, int64_t tokens, const AttentionBlock& b) {
        mean1 = memory, mean2 = mean1 + 2 * tokens;  // mean and 1 / standard deviation of each token
        query = mean2 + 2 * tokens, keys = query + tokens * b.dim, sum = keys + 2 * tokens * b.dim;
        hidden = sum + tokens * b.dim, ended = hidden + tokens * b.hidden;
    }
    static int64_t size(int64_t tokens, const AttentionBlock& b) { return tokens * (4 + 5 * b.dim + b.hidden); }
    States at(int64_t token, const AttentionBlock& b) const {
        States s = *this;
        s.mean1 += 2 * token, s.mean2 += 2 * token, s.query += token * b.dim, s.keys += 2 * token * b.dim;
        s.sum += token * b.dim, s.hidden += token * b.hidden, s.ended += token * b.dim;
        return s;
    }
};

inline Plan plan_of(const AttentionBlock& b, int64_t threads, int64_t size = TOKENS) {
    return Plan(b.offsets, b.users, threads, [&](int64_t n) { return double(n) * (3 * b.dim + 2 * b.hidden + n); }, size);
}

// x = dropout(relu(x)), in place.
inline void relu_and_drop(int64_t count, const int16_t* words, Dropping d, float* x) {
    if (words)
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) x[k] = words[k] >= d.threshold && !(x[k] <= 0) ? x[k] * d.kept : 0.0f;
    else
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) x[k] = x[k] <= 0 ? 0.0f : x[k];
}

struct Weights {
    Matrices<4> all;
    Panels query, keys, first, second;

    Weights(const AttentionBlock& b, bool forward)
        : all({{b.parameters[QUERY], b.dim, b.dim}, {b.parameters[KEYS], 2 * b.dim, b.dim},
               {b.parameters[FIRST], b.hidden, b.dim}, {b.parameters[SECOND], b.dim, b.hidden}}, forward),
          query(all.of[0]), keys(all.of[1]), first(all.of[2]), second(all.of[3]) {}
};

inline Attention attention_of(const AttentionBlock& b, const Plan& plan, const States& s, int64_t head, int64_t token, int64_t length, int64_t word) {
    const int64_t dim = b.dim / b.heads, column = head * dim;
    const float* key = s.keys + token * 2 * b.dim + column;
    return {s.query + token * b.dim + column, key, key + b.dim, b.dim, 2 * b.dim, length, dim, 1 / std::sqrt(float(dim)), true,
            b.words[0] ? b.words[0] + head * plan.pairs + word : nullptr, b.dropping()};
}

// Calls `each` for each user of a chunk and each head, with the attention and the index of its softmax weights.
template <typename Each>
void for_each_head(const AttentionBlock& b, const Plan& plan, const Chunk& c, const States& s, Each each) {
    int64_t word = c.word, weight = c.weight;
    for (int64_t u = c.user; u < c.user + c.users; ++u) {
        const int64_t first = b.offsets[u] - c.token, n = b.offsets[u + 1] - b.offsets[u];
        for (int64_t head = 0; head < b.heads && n; ++head)
            each(u, first, head, attention_of(b, plan, s, head, first, n, word), head * plan.stride + weight);
        word += n * (n + 1) / 2, weight += n * padded(n);
    }
}

inline void choose_last(const AttentionBlock& b, const Chunk& c, const float* x, float* out) {
    for (int64_t u = 0; u < c.users; ++u)
        std::memcpy(out + u * b.dim, x + (b.offsets[c.user + u + 1] - 1 - c.token) * b.dim, b.dim * sizeof(float));
}

inline int64_t attention_memory(const AttentionBlock& b, const Plan& plan) {
    const int64_t width = padded(plan.longest);
    return panel_size(b.dim / b.heads, plan.longest) + 3 * plan.longest * width + width;
}

// Takes a chunk from `x` to `out`, both of which begin with the chunk's first token (or, for out, its first user if only
// the last tokens are computed).
inline void forward(
    const AttentionBlock& b, const Plan& plan, const Chunk& c, const Weights& w, const States& s, float* weights,
    const float* x, float* out, float* memory
) {
    const int64_t dim = b.dim, rows = b.last_only ? c.users : c.tokens, first = b.last_only ? c.user : c.token;
    const float* const* p = b.parameters;
    const float* own = x;  // the tokens that are queries
    float *chosen = memory, *normal = chosen + plan.most * dim, *second = normal + plan.most * dim;
    float *third = second + plan.most * dim, *rest = third + plan.most * dim;
    if (b.last_only) choose_last(b, c, x, chosen), own = chosen;
    const float *queries = own, *keys = x;
    if (b.norm == PAPER) {
        normalize(rows, dim, own, p[GAIN1], p[BIAS1], b.epsilon, s.mean1, normal);
        queries = normal;
    } else if (b.norm == PRE) {
        normalize(c.tokens, dim, x, p[GAIN1], p[BIAS1], b.epsilon, s.mean1, normal);
        queries = keys = normal;
        if (b.last_only) choose_last(b, c, normal, second), queries = second;
    }
    product<BIAS>(rows, dim, dim, plain(queries, dim), w.query, s.query, dim, p[QUERY_BIAS]);
    product<BIAS>(c.tokens, 2 * dim, dim, plain(keys, dim), w.keys, s.keys, 2 * dim, p[KEYS_BIAS]);
    for_each_head(b, plan, c, s, [&](int64_t user, int64_t token, int64_t head, const Attention& a, int64_t weight) {
        const int64_t column = head * a.dim;
        if (b.last_only)
            attention_last(a, s.query + (user - c.user) * dim + column, s.sum + (user - c.user) * dim + column, rest);
        else
            attention_forward(a, weights ? weights + weight : rest, s.sum + token * dim + column, dim,
                              rest + (weights ? 0 : a.length * a.width()));
    });
    add(rows * dim, b.norm == PAPER ? queries : own, s.sum);
    if (b.norm == POST) normalize(rows, dim, s.sum, p[GAIN1], p[BIAS1], b.epsilon, s.mean1, third);
    else normalize(rows, dim, s.sum, p[GAIN2], p[BIAS2], b.epsilon, s.mean2, third);
    product<BIAS>(rows, b.hidden, dim, plain(third, dim), w.first, s.hidden, b.hidden, p[FIRST_BIAS]);
    const int16_t *hidden_words = b.words[1] ? b.words[1] + first * b.hidden : nullptr;
    relu_and_drop(rows * b.hidden, hidden_words, b.dropping(), s.hidden);
    product<BIAS>(rows, dim, b.hidden, plain(s.hidden, b.hidden), w.second, second, dim, p[SECOND_BIAS]);
    drop_onto(rows * dim, second, b.norm == PRE ? s.sum : third, b.words[2] ? b.words[2] + first * dim : nullptr,
              b.dropping(), b.norm == POST ? s.ended : out);
    if (b.norm == POST) normalize(rows, dim, s.ended, p[GAIN2], p[BIAS2], b.epsilon, s.mean2, out);
}

// The way back from `by`, the gradient with respect to the output, to `by_x`, for a chunk.
inline void backward(
    const AttentionBlock& b, const Plan& plan, const Chunk& c, const Weights& w, const States& s, const float* weights,
    const float* x, const float* by, float* const* by_parameter, float* by_x, float* memory
) {
    const int64_t dim = b.dim, hidden = b.hidden, rows = c.tokens, count = rows * dim, room = plan.most * dim;
    const float* const* p = b.parameters;
    float *one = memory, *two = one + room, *three = two + room, *by_query = three + room, *by_keys = by_query + room;
    float *by_hidden = by_keys + 2 * room, *rest = by_hidden + plan.most * hidden;
    if (b.norm == POST) {
        std::fill(three, three + count, 0.0f);
        normalize_backward(rows, dim, s.ended, p[GAIN2], s.mean2, by, three, by_parameter[GAIN2], by_parameter[BIAS2]);
        by = three;
    }
    const bool post = b.norm == POST;
    const float *gain = p[post ? GAIN1 : GAIN2], *bias = p[post ? BIAS1 : BIAS2], *means = post ? s.mean1 : s.mean2;
    // The network. Its input is computed again instead of saved.
    drop_onto(count, by, nullptr, b.words[2] ? b.words[2] + c.token * dim : nullptr, b.dropping(), one);
    add_rows(rows, dim, one, by_parameter[SECOND_BIAS]);
    product<ADD>(dim, hidden, rows, transposed(one, dim), rows_of(s.hidden, hidden), by_parameter[SECOND], hidden);
    product<ZERO>(rows, hidden, dim, plain(one, dim), w.second, by_hidden, hidden);
    const float kept = b.words[1] ? b.kept : 1.0f;
#pragma omp simd
    for (int64_t k = 0; k < rows * hidden; ++k) by_hidden[k] = s.hidden[k] > 0 ? by_hidden[k] * kept : 0.0f;
    add_rows(rows, hidden, by_hidden, by_parameter[FIRST_BIAS]);
    normalized(rows, dim, s.sum, gain, bias, means, one);
    product<ADD>(hidden, dim, rows, transposed(by_hidden, hidden), rows_of(one, dim), by_parameter[FIRST], dim);
    if (b.norm == PRE) {
        product<ZERO>(rows, dim, hidden, plain(by_hidden, hidden), w.first, one, dim);
        std::memcpy(two, by, count * sizeof(float));
    } else {
        std::memcpy(one, by, count * sizeof(float));
        product<ADD>(rows, dim, hidden, plain(by_hidden, hidden), w.first, one, dim);
        std::fill(two, two + count, 0.0f);
    }
    normalize_backward(rows, dim, s.sum, gain, means, one, two, by_parameter[post ? GAIN1 : GAIN2], by_parameter[post ? BIAS1 : BIAS2]);
    // `two` is now the gradient with respect to the sum of the attention's output and the residual.
    for_each_head(b, plan, c, s, [&](int64_t, int64_t token, int64_t head, const Attention& a, int64_t weight) {
        const int64_t column = head * a.dim, key = token * 2 * dim + column;
        attention_backward(a, weights + weight, two + token * dim + column, dim, by_query + token * dim + column,
                           by_keys + key, by_keys + key + dim, rest);
    });
    const float *queries = x, *keys = x;
    if (!post) normalized(rows, dim, x, p[GAIN1], p[BIAS1], s.mean1, one), queries = one;
    if (b.norm == PRE) keys = one;
    add_rows(rows, dim, by_query, by_parameter[QUERY_BIAS]);
    add_rows(rows, 2 * dim, by_keys, by_parameter[KEYS_BIAS]);
    product<ADD>(dim, dim, rows, transposed(by_query, dim), rows_of(queries, dim), by_parameter[QUERY], dim);
    product<ADD>(2 * dim, dim, rows, transposed(by_keys, 2 * dim), rows_of(keys, dim), by_parameter[KEYS], dim);
    if (b.norm == PAPER) {
        product<ADD>(rows, dim, dim, plain(by_query, dim), w.query, two, dim);
        product<ZERO>(rows, dim, 2 * dim, plain(by_keys, 2 * dim), w.keys, by_x, dim);
        normalize_backward(rows, dim, x, p[GAIN1], s.mean1, two, by_x, by_parameter[GAIN1], by_parameter[BIAS1]);
        return;
    }
    float* by_both = b.norm == PRE ? one : two;
    if (b.norm == PRE) product<ZERO>(rows, dim, dim, plain(by_query, dim), w.query, by_both, dim);
    else product<ADD>(rows, dim, dim, plain(by_query, dim), w.query, by_both, dim);
    product<ADD>(rows, dim, 2 * dim, plain(by_keys, 2 * dim), w.keys, by_both, dim);
    std::memcpy(by_x, two, count * sizeof(float));
    if (b.norm == PRE)
        normalize_backward(rows, dim, x, p[GAIN1], s.mean1, one, by_x, by_parameter[GAIN1], by_parameter[BIAS1]);
}

}  // namespace seqrec
