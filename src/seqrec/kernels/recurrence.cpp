// A block of LRURec, forward and backward: a linear recurrence with complex states and a point-wise network.
// recurrence.py describes what it computes.
//
// Each thread takes its users through the complete block, a chunk of tokens at a time, as in block.cpp.

#include "rows.h"

using namespace seqrec;

namespace {

constexpr int PARAMETERS = 13;

enum Name {
    FACTORS, INPUT, INPUT_BIAS, OUTPUT, OUTPUT_BIAS, GAIN1, BIAS1, FIRST, FIRST_BIAS, SECOND, SECOND_BIAS, GAIN2, BIAS2
};

// Filled in by recurrence.py, with fields in the same order. A complex number is a pair of real ones, `width` = 2 N in
// all: a row of states has the N real parts, then the N imaginary parts.
struct Block {
    int64_t users, dim, width, hidden;
    int32_t last_only, threshold;
    float kept, epsilon;
    const int64_t* offsets;
    const float* x;
    const float* parameters[PARAMETERS];
    const int16_t* words[3];  // for the output of the recurrence, the hidden layer and the output; null without dropout
    float* out;
    float* saved;  // states for backward, or null
    const float* by_out;
    float* by_x;
    float* by_parameters[PARAMETERS];

    Dropping dropping() const { return {threshold, kept}; }
    int64_t tokens() const { return offsets[users]; }
    int64_t size(int name) const {
        switch (name) {
            case FACTORS: case INPUT_BIAS: return width;
            case INPUT: case OUTPUT: return width * dim;
            case FIRST: case SECOND: return dim * hidden;
            case FIRST_BIAS: return hidden;
            default: return dim;
        }
    }
};

// The states that forward computes: of all tokens if backward needs them, otherwise only of the current chunk.
struct States {
    float *mean1, *mean2, *states, *sum, *hidden, *slope, *ended;

    States(float* memory, int64_t tokens, const Block& b) {
        mean1 = memory, mean2 = mean1 + 2 * tokens;  // mean and 1 / standard deviation of each token
        states = mean2 + 2 * tokens, sum = states + tokens * b.width, hidden = sum + tokens * b.dim;
        slope = hidden + tokens * b.hidden, ended = slope + tokens * b.hidden;
    }
    static int64_t size(int64_t tokens, const Block& b) { return tokens * (4 + b.width + 2 * b.dim + 2 * b.hidden); }
    States at(int64_t token, const Block& b) const {
        States s = *this;
        s.mean1 += 2 * token, s.mean2 += 2 * token, s.states += token * b.width, s.sum += token * b.dim;
        s.hidden += token * b.hidden, s.slope += token * b.hidden, s.ended += token * b.dim;
        return s;
    }
};

Plan plan_of(const Block& b, int64_t threads) {
    return Plan(b.offsets, b.users, threads, [](int64_t n) { return double(n); });
}

struct Weights {
    Matrices<4> all;
    Panels input, output, first, second;

    Weights(const Block& b, bool forward)
        : all({{b.parameters[INPUT], b.width, b.dim}, {b.parameters[OUTPUT], b.dim, b.width},
               {b.parameters[FIRST], b.hidden, b.dim}, {b.parameters[SECOND], b.dim, b.hidden}}, forward),
          input(all.of[0]), output(all.of[1]), first(all.of[2]), second(all.of[3]) {}
};

// h_t = factor * h_(t-1) + x_t for each user of a chunk, in place of the inputs x.
void recur(const Block& b, const Chunk& c, float* x) {
    const int64_t n = b.width / 2;
    const float *real = b.parameters[FACTORS], *imaginary = real + n;
    for (int64_t u = c.user; u < c.user + c.users; ++u)
        for (int64_t t = b.offsets[u] + 1; t < b.offsets[u + 1]; ++t) {
            float* to = x + (t - c.token) * b.width;
            const float* before = to - b.width;
#pragma omp simd
            for (int64_t k = 0; k < n; ++k) {
                const float r = before[k], i = before[n + k];
                to[k] += real[k] * r - imaginary[k] * i;
                to[n + k] += real[k] * i + imaginary[k] * r;
            }
        }
}

// The gradient of `recur`, in place of that of the states: from the last token to the first, with conjugate factors.
void recur_backward(const Block& b, const Chunk& c, const float* states, float* by, float* by_factors) {
    const int64_t n = b.width / 2;
    const float *real = b.parameters[FACTORS], *imaginary = real + n;
    float *by_real = by_factors, *by_imaginary = by_factors + n;
    for (int64_t u = c.user; u < c.user + c.users; ++u)
        for (int64_t t = b.offsets[u + 1] - 2; t >= b.offsets[u]; --t) {
            float* to = by + (t - c.token) * b.width;
            const float *after = to + b.width, *state = states + (t - c.token) * b.width;
#pragma omp simd
            for (int64_t k = 0; k < n; ++k) {
                const float r = after[k], i = after[n + k];
                to[k] += real[k] * r + imaginary[k] * i;
                to[n + k] += real[k] * i - imaginary[k] * r;
                by_real[k] += r * state[k] + i * state[n + k];
                by_imaginary[k] += i * state[k] - r * state[n + k];
            }
        }
}

// x = gelu(x), in place, and its slope, for one vector. The normal distribution is within 1e-7 (Abramowitz & Stegun
// 7.1.26), and its tail keeps its relative precision.
inline void gelu(Vector& x, Vector& slope) {
    const Vector size = x < Vector{} ? -x : x, bell = exponential(-0.5f * x * x);
    const Vector t = 1.0f / (1.0f + 0.231641888f * size);
    const Vector tail = bell * t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f))));
    const Vector below = x < Vector{} ? tail : 1.0f - tail;
    slope = below + 0.39894228f * x * bell;
    x = x * below;
}

// x = dropout(gelu(x)), in place, and the factor of its gradient.
void gelu_and_drop(int64_t count, const int16_t* words, Dropping d, float* x, float* slope) {
    const int64_t whole = count / LANES * LANES;
    for (int64_t k = 0; k < count; k += LANES) {
        const Part part(k < whole ? 0 : count - whole);
        Vector value = k < whole ? load(x + k) : part.load(x + k), steep;
        gelu(value, steep);
        if (k < whole) store(x + k, value), store(slope + k, steep);
        else part.store(x + k, value), part.store(slope + k, steep);
    }
    if (words)
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) {
            const float factor = words[k] >= d.threshold ? d.kept : 0.0f;
            x[k] *= factor, slope[k] *= factor;
        }
}

// The rows of the users' last tokens.
void choose_last(const Block& b, const Chunk& c, int64_t width, const float* x, float* out) {
    for (int64_t u = 0; u < c.users; ++u)
        std::memcpy(out + u * width, x + (b.offsets[c.user + u + 1] - 1 - c.token) * width, width * sizeof(float));
}

void forward(const Block& b, const Plan& plan, const Chunk& c, const Weights& w, const States& s, float* memory) {
    const int64_t dim = b.dim, rows = b.last_only ? c.users : c.tokens, first = b.last_only ? c.user : c.token;
    const float* const* p = b.parameters;
    float *mixed = memory, *normal = mixed + plan.most * dim, *chosen = normal + plan.most * dim;
    const float *x = b.x + c.token * dim, *states = s.states;
    product<BIAS>(c.tokens, b.width, dim, plain(x, dim), w.input, s.states, b.width, p[INPUT_BIAS]);
    recur(b, c, s.states);
    if (b.last_only) {
        choose_last(b, c, dim, x, chosen), x = chosen;
        choose_last(b, c, b.width, states, chosen + plan.most * dim), states = chosen + plan.most * dim;
    }
    const auto words = [&](int n, int64_t size) { return b.words[n] ? b.words[n] + first * size : nullptr; };
    product<BIAS>(rows, dim, b.width, plain(states, b.width), w.output, mixed, dim, p[OUTPUT_BIAS]);
    drop_onto(rows * dim, mixed, x, words(0, dim), b.dropping(), s.sum);
    normalize(rows, dim, s.sum, p[GAIN1], p[BIAS1], b.epsilon, s.mean1, normal);
    product<BIAS>(rows, b.hidden, dim, plain(normal, dim), w.first, s.hidden, b.hidden, p[FIRST_BIAS]);
    gelu_and_drop(rows * b.hidden, words(1, b.hidden), b.dropping(), s.hidden, s.slope);
    product<BIAS>(rows, dim, b.hidden, plain(s.hidden, b.hidden), w.second, mixed, dim, p[SECOND_BIAS]);
    drop_onto(rows * dim, mixed, normal, words(2, dim), b.dropping(), s.ended);
    normalize(rows, dim, s.ended, p[GAIN2], p[BIAS2], b.epsilon, s.mean2, b.out + first * dim);
}

void backward(
    const Block& b, const Plan& plan, const Chunk& c, const Weights& w, const States& s, float* const* by, float* memory
) {
    const int64_t dim = b.dim, width = b.width, hidden = b.hidden, rows = c.tokens, count = rows * dim;
    const float* const* p = b.parameters;
    const float *x = b.x + c.token * dim, *by_out = b.by_out + c.token * dim;
    float *one = memory, *two = one + plan.most * dim, *normal = two + plan.most * dim;
    float *by_states = normal + plan.most * dim, *by_hidden = by_states + plan.most * width, *by_x = b.by_x + c.token * dim;
    const auto words = [&](int n) { return b.words[n] ? b.words[n] + c.token * dim : nullptr; };
    // The network.
    std::fill(one, one + count, 0.0f);
    normalize_backward(rows, dim, s.ended, p[GAIN2], s.mean2, by_out, one, by[GAIN2], by[BIAS2]);
    drop_onto(count, one, nullptr, words(2), b.dropping(), two);
    add_rows(rows, dim, two, by[SECOND_BIAS]);
    product<ADD>(dim, hidden, rows, transposed(two, dim), rows_of(s.hidden, hidden), by[SECOND], hidden);
    product<ZERO>(rows, hidden, dim, plain(two, dim), w.second, by_hidden, hidden);
#pragma omp simd
    for (int64_t k = 0; k < rows * hidden; ++k) by_hidden[k] *= s.slope[k];
    add_rows(rows, hidden, by_hidden, by[FIRST_BIAS]);
    normalized(rows, dim, s.sum, p[GAIN1], p[BIAS1], s.mean1, normal);  // computed again instead of saved
    product<ADD>(hidden, dim, rows, transposed(by_hidden, hidden), rows_of(normal, dim), by[FIRST], dim);
    product<ADD>(rows, dim, hidden, plain(by_hidden, hidden), w.first, one, dim);
    // The recurrence.
    std::fill(by_x, by_x + count, 0.0f);
    normalize_backward(rows, dim, s.sum, p[GAIN1], s.mean1, one, by_x, by[GAIN1], by[BIAS1]);
    drop_onto(count, by_x, nullptr, words(0), b.dropping(), two);
    add_rows(rows, dim, two, by[OUTPUT_BIAS]);
    product<ADD>(dim, width, rows, transposed(two, dim), rows_of(s.states, width), by[OUTPUT], width);
    product<ZERO>(rows, width, dim, plain(two, dim), w.output, by_states, width);
    recur_backward(b, c, s.states, by_states, by[FACTORS]);
    add_rows(rows, width, by_states, by[INPUT_BIAS]);
    product<ADD>(width, dim, rows, transposed(by_states, width), rows_of(x, dim), by[INPUT], dim);
    product<ADD>(rows, dim, width, plain(by_states, width), w.input, by_x, dim);
}

}  // namespace

extern "C" {

// Number of floats that forward saves for backward, per token.
int64_t seqrec_recurrent_saves(const Block* b, int32_t) { return States::size(1, *b); }

void seqrec_recurrent_forward(const Block* given, int32_t threads) {
    const Block& b = *given;
    const Plan plan = plan_of(b, threads);
    const Weights weights(b, true);
    const int64_t own = b.saved ? 0 : States::size(plan.most, b), numbers = plan.most * (3 * b.dim + b.width);
    for_each_chunk(plan, threads, own + numbers, [&](const Chunk& chunk, float* memory) {
        const States states(b.saved ? b.saved : memory, b.saved ? b.tokens() : plan.most, b);
        forward(b, plan, chunk, weights, b.saved ? states.at(chunk.token, b) : states, memory + own);
    });
}

void seqrec_recurrent_backward(const Block* given, int32_t threads) {
    const Block& b = *given;
    const Plan plan = plan_of(b, threads);
    const Weights weights(b, false);
    const States states(b.saved, b.tokens(), b);
    const int64_t numbers = plan.most * (3 * b.dim + b.width + b.hidden);
    const auto size = [&](int name) { return b.size(name); };
    sum_gradients<PARAMETERS>(plan, threads, numbers, size, b.by_parameters, [&](const Chunk& chunk, float* const* by, float* memory) {
        backward(b, plan, chunk, weights, states.at(chunk.token, b), by, memory);
    });
}

}  // extern "C"
