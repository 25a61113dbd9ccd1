// A training step of SASRec up to the gradients: embedding, blocks, final norm and loss, forward and backward.
// sasrec.py describes what it computes.
//
// Each thread takes its users all the way, a chunk of tokens at a time, so that intermediate results stay in the cache
// and nothing waits in between. The gradients of weights and shared negatives are sums over threads, so their last bits
// depend on the number of threads. Nothing else does.

#include "block.h"
#include "softmax.h"

using namespace seqrec;

namespace {

// Tokens per chunk: their states in two blocks of the usual width fit into the second level of the cache. With shared
// negatives, twice as many are faster, because each chunk adds to the gradients of all negatives.
constexpr int64_t CHUNK = 64;

// Filled in by sasrec.py, with fields in the same order.
struct Step {
    int64_t users, dim, hidden, heads, blocks, positions, candidates, shared, pairs;
    int32_t norm, threshold;
    float kept, epsilon, scale, target_less;
    double share;            // factor of the gradient of each token's loss
    const int64_t* offsets;
    const int64_t *items, *asked;  // [tokens], and rows of each token's target and own negatives, [tokens, candidates]
    const int64_t* negatives;      // [shared], or null for binary cross-entropy
    const int64_t *left_out_tokens, *left_out;  // [pairs]
    const float* log_probability;  // [shared], or null
    const float *table, *places, *gain, *bias;
    const float* const* parameters;  // PARAMETERS for each block
    const int16_t* words;            // or null without dropout
    double* losses;                  // [tokens]
    float *by_items, *by_asked;      // gradients of the looked-up rows
    float* by_shared;                // [shared, dim]
    float* by_dense;                 // of the positions, of each block's parameters, and of the final gain and bias

    Dropping dropping() const { return {threshold, kept}; }
    int64_t tokens() const { return offsets[users]; }
};

// Random words are drawn for one layer after another, in complete 64-bit numbers.
int64_t rounded(int64_t words) { return (words + 3) / 4 * 4; }

// A step's parts that all threads share.
struct Model {
    const Step& s;
    std::vector<AttentionBlock> blocks;
    Plan plan;
    int64_t weights = 0;  // most softmax weights of a chunk and a head
    int64_t dense = 0;    // numbers in `by_dense`
    std::vector<std::unique_ptr<const Weights>> matrices;  // of each block, forward and backward

    Model(const Step& s, int64_t threads) : s(s), blocks(s.blocks, AttentionBlock{}), plan(planned(threads)) {
        const int16_t* words = s.words ? s.words + rounded(s.tokens() * s.dim) : nullptr;
        for (int64_t n = 0; n < s.blocks; ++n) {
            AttentionBlock& b = blocks[n];
            b = sizes();
            for (int name = 0; name < PARAMETERS; ++name) b.parameters[name] = s.parameters[n * PARAMETERS + name];
            const int64_t counts[] = {s.heads * plan.pairs, s.tokens() * s.hidden, s.tokens() * s.dim};
            for (int layer = 0; words && layer < 3; ++layer) b.words[layer] = words, words += rounded(counts[layer]);
        }
        for (const auto& own : plan.chunks)
            for (const Chunk& c : own) {
                int64_t all = 0;
                for (int64_t u = c.user; u < c.user + c.users; ++u) {
                    const int64_t n = s.offsets[u + 1] - s.offsets[u];
                    all += n * padded(n);
                }
                weights = std::max(weights, all);
            }
        plan.stride = weights;
        dense = s.positions * s.dim + s.blocks * block_size() + 2 * s.dim;
        matrices.resize(2 * s.blocks);
    }
    AttentionBlock sizes() const {
        AttentionBlock b{};
        b.users = s.users, b.dim = s.dim, b.hidden = s.hidden, b.heads = s.heads, b.norm = s.norm;
        b.threshold = s.threshold, b.kept = s.kept, b.epsilon = s.epsilon, b.offsets = s.offsets;
        return b;
    }
    Plan planned(int64_t threads) const { return plan_of(sizes(), threads, s.negatives ? TOKENS : CHUNK); }
    int64_t block_size() const {
        int64_t all = 0;
        for (int name = 0; name < PARAMETERS; ++name) all += sizes().size(name);
        return all;
    }
    const Weights& weights_of(int64_t block, bool forward) const { return *matrices[2 * block + (forward ? 0 : 1)]; }
};

// The memory of a thread. Everything that begins with a chunk's first token has room for the longest chunk.
struct Memory {
    Room all;
    std::vector<float*> inputs;          // of each block and of the final norm
    std::vector<float*> saved, weights;  // states of each block, and its softmax weights
    float *hidden, *means, *by, *by_next, *rest;

    Memory(const Model& m) {
        const Step& s = m.s;
        const int64_t most = m.plan.most, row = most * s.dim, states = States::size(most, m.sizes());
        const int64_t softmax = s.heads * m.weights, work = attention_memory(m.sizes(), m.plan) + most * (6 * s.dim + s.hidden);
        all = room((s.blocks + 1) * row + s.blocks * (states + softmax) + 3 * row + 2 * most + work);
        float* next = all.get();
        const auto take = [&](int64_t count) { return next += count, next - count; };
        for (int64_t n = 0; n <= s.blocks; ++n) inputs.push_back(take(row));
        for (int64_t n = 0; n < s.blocks; ++n) saved.push_back(take(states)), weights.push_back(take(softmax));
        hidden = take(row), by = take(row), by_next = take(row), means = take(2 * most), rest = take(work);
    }
};

// Where a thread adds up the gradients that are sums over tokens.
struct Gradients {
    float *places, *gain, *bias, *shared;
    std::vector<float*> parameters;

    Gradients(const Model& m, float* dense, float* shared) : places(dense), shared(shared) {
        dense += m.s.positions * m.s.dim;
        for (int64_t n = 0; n < m.s.blocks; ++n)
            for (int name = 0; name < PARAMETERS; ++name) parameters.push_back(dense), dense += m.blocks[n].size(name);
        gain = dense, bias = dense + m.s.dim;
    }
};

// Rows are scattered over a table that is larger than the cache, so they are asked for this many tokens ahead.
constexpr int64_t AHEAD = 4;

inline void ask_for(const Step& s, int64_t row) {
#if defined(__GNUC__)
    for (int64_t k = 0; k < s.dim; k += 16) __builtin_prefetch(s.table + row * s.dim + k);
#endif
}

// dropout(scale * item + position)
void embed(const Step& s, const Chunk& c, float* out) {
    const Dropping d = s.dropping();
    const float scale = s.scale;
    for (int64_t u = c.user; u < c.user + c.users; ++u)
        for (int64_t t = s.offsets[u]; t < s.offsets[u + 1]; ++t, out += s.dim) {
            if (t + AHEAD < c.token + c.tokens) ask_for(s, s.items[t + AHEAD]);
            const float* item = s.table + s.items[t] * s.dim;
            const float* place = s.places + (s.positions + t - s.offsets[u + 1]) * s.dim;
            const int16_t* words = s.words ? s.words + t * s.dim : nullptr;
            if (words)
#pragma omp simd
                for (int64_t k = 0; k < s.dim; ++k) {
                    const float x = (scale * item[k] + place[k]) * d.kept;
                    out[k] = words[k] >= d.threshold ? x : 0.0f;
                }
            else
#pragma omp simd
                for (int64_t k = 0; k < s.dim; ++k) out[k] = scale * item[k] + place[k];
        }
}

void embed_backward(const Step& s, const Chunk& c, const float* by, float* by_places) {
    const Dropping d = s.dropping();
    const float scale = s.scale;
    for (int64_t u = c.user; u < c.user + c.users; ++u)
        for (int64_t t = s.offsets[u]; t < s.offsets[u + 1]; ++t, by += s.dim) {
            float *by_item = s.by_items + t * s.dim, *by_place = by_places + (s.positions + t - s.offsets[u + 1]) * s.dim;
            const int16_t* words = s.words ? s.words + t * s.dim : nullptr;
#pragma omp simd
            for (int64_t k = 0; k < s.dim; ++k) {
                const float kept = !words ? by[k] : words[k] >= d.threshold ? by[k] * d.kept : 0.0f;
                by_item[k] = scale * kept;
                by_place[k] += kept;
            }
        }
}

inline float dot(int64_t dim, const float* x, const float* y) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < dim; ++k) sum += x[k] * y[k];
    return sum;
}

inline void times(int64_t count, float factor, const float* x, float* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] = factor * x[k];
}

// Binary cross-entropy of each token's target against its own negatives.
void binary_loss(const Step& s, const Chunk& c, const float* hidden, float* by_hidden) {
    const int64_t dim = s.dim, end = (c.token + c.tokens) * s.candidates;
    for (int64_t t = c.token; t < c.token + c.tokens; ++t, hidden += dim, by_hidden += dim) {
        double sum = 0, product = 1;
        for (int64_t n = 0; n < s.candidates; ++n) {
            const int64_t place = t * s.candidates + n;
            if (place + AHEAD < end) ask_for(s, s.asked[place + AHEAD]);
            const float* vector = s.table + s.asked[place] * dim;
            const float score = dot(dim, hidden, vector);
            // softplus(x) and its derivative. One logarithm is enough for the product of many factors below 2.
            const double x = n ? score : -score, e = std::exp(-std::abs(x)), slope = (x > 0 ? 1 : e) / (1 + e);
            sum += x > 0 ? x : 0, product *= 1 + e;
            if (n % 512 == 511) sum += std::log(product), product = 1;
            const float by = float(s.share * (n ? slope : -slope));
            if (n) add_times(dim, by, vector, by_hidden);
            else times(dim, by, vector, by_hidden);
            times(dim, by, hidden, s.by_asked + place * dim);
        }
        s.losses[t] = sum + std::log(product);
    }
}

// Sampled softmax of tokens against shared negatives.
struct SampledSoftmax {
    const Step& s;
    const Catalogue catalogue;
    Room kept, below, states, scaled;

    SampledSoftmax(const Step& s, const float* vectors) : s(s), catalogue(vectors, s.shared, s.dim, 1) {
        kept = room(catalogue.tiles * catalogue.height * (TOKENS + 16)), below = room(catalogue.tiles * TOKENS);
        states = room(TOKENS * s.dim), scaled = room(TOKENS * (s.dim + LANES));
    }

    // At most TOKENS tokens, from `token` on.
    void operator()(int64_t token, int64_t count, const float* hidden, float* by_hidden, float* by_vectors) {
        const int64_t dim = s.dim, size = catalogue.height * (TOKENS + 16);
        Block block(hidden, 0, count, dim);
        block.first = token;
        block.leave_out(s.left_out_tokens, s.left_out, s.pairs);
        Softmax softmax;
        softmax.begin(states.get(), count, dim);
        for (int64_t n = 0; n < catalogue.tiles; ++n) {
            catalogue.score(n, block, kept.get() + n * size);
            softmax.take(catalogue, n, block, s.log_probability, kept.get() + n * size, below.get() + n * TOKENS);
        }
        float factors[TOKENS] = {}, tops[TOKENS] = {};
        for (int64_t t = 0; t < count; ++t) {
            const float *state = hidden + t * dim, *vector = s.table + s.asked[token + t] * dim;
            float* by = by_hidden + t * dim;
            tops[t] = softmax.highest[t] > -INFINITY ? softmax.highest[t] : 0.0f;
            const Ending found(softmax.sum[t], softmax.highest[t], dot(dim, state, vector) - s.target_less, s.share);
            s.losses[token + t] = found.loss, factors[t] = found.factor;
            times(dim, factors[t], softmax.states + t * dim, by);
            add_times(dim, found.by_target, vector, by);
            times(dim, found.by_target, state, s.by_asked + (token + t) * dim);
        }
        for (int64_t n = 0; n < catalogue.tiles; ++n) {
            float scale[TOKENS];
            for (int64_t t = 0; t < TOKENS; t += LANES)
                store(scale + t, load(factors + t) * exponential(load(below.get() + n * TOKENS + t) - load(tops + t)));
            const Panels right = filled_up(block.states, count, dim, scale, scaled.get());
            product<ADD>(catalogue.items(n), dim, count, plain(kept.get() + n * size, block.row), right,
                         by_vectors + catalogue.first(n) * dim, dim);
        }
    }
};

void whole_way(const Model& m, const Chunk& given, const Memory& memory, const Gradients& to, SampledSoftmax* softmax) {
    const Step& s = m.s;
    const int64_t dim = s.dim, count = given.tokens * dim;
    Chunk c = given;
    c.weight = 0;  // the memory has the weights of one chunk
    Plan const& plan = m.plan;
    embed(s, c, memory.inputs[0]);
    for (int64_t n = 0; n < s.blocks; ++n)
        forward(m.blocks[n], plan, c, m.weights_of(n, true), States(memory.saved[n], plan.most, m.blocks[n]), memory.weights[n],
                memory.inputs[n], memory.inputs[n + 1], memory.rest);
    const float* last = memory.inputs[s.blocks];
    normalize(c.tokens, dim, last, s.gain, s.bias, s.epsilon, memory.means, memory.hidden);
    if (softmax)
        for (int64_t t = 0; t < c.tokens; t += TOKENS)
            (*softmax)(c.token + t, std::min(TOKENS, c.tokens - t), memory.hidden + t * dim, memory.by_next + t * dim, to.shared);
    else binary_loss(s, c, memory.hidden, memory.by_next);
    std::fill(memory.by, memory.by + count, 0.0f);
    normalize_backward(c.tokens, dim, last, s.gain, memory.means, memory.by_next, memory.by, to.gain, to.bias);
    float *by = memory.by, *next = memory.by_next;
    for (int64_t n = s.blocks - 1; n >= 0; --n, std::swap(by, next))
        backward(m.blocks[n], plan, c, m.weights_of(n, false), States(memory.saved[n], plan.most, m.blocks[n]), memory.weights[n],
                 memory.inputs[n], by, to.parameters.data() + n * PARAMETERS, next, memory.rest);
    embed_backward(s, c, by, to.places);
}

}  // namespace

extern "C" {

void seqrec_sasrec_gradients(const Step* given, int32_t threads) {
    const Step& s = *given;
    Model m(s, threads);
    const int64_t shared = s.shared * s.dim, all = m.dense + shared;
    const auto vectors = room(shared), sums = room((threads - 1) * all);  // the first thread adds to the result itself
#pragma omp parallel num_threads(threads)
    {
        const int64_t mine = omp_get_thread_num(), crew = omp_get_num_threads();
#pragma omp for schedule(static) nowait
        for (int64_t n = 0; n < 2 * s.blocks; ++n) m.matrices[n] = std::make_unique<Weights>(m.blocks[n / 2], n % 2 == 0);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.shared; ++n)
            std::memcpy(vectors.get() + n * s.dim, s.table + s.negatives[n] * s.dim, s.dim * sizeof(float));
        const Memory memory(m);
        std::unique_ptr<SampledSoftmax> softmax;
        if (s.negatives) softmax = std::make_unique<SampledSoftmax>(s, vectors.get());
        for (int64_t n = mine; n < threads; n += crew) {
            float* dense = n ? sums.get() + (n - 1) * all : s.by_dense;
            float* by_shared = n ? dense + m.dense : s.by_shared;
            std::fill(dense, dense + m.dense, 0.0f);
            if (shared) std::fill(by_shared, by_shared + shared, 0.0f);
            const Gradients to(m, dense, by_shared);
            for (const Chunk& c : m.plan.chunks[n]) whole_way(m, c, memory, to, softmax.get());
        }
#pragma omp barrier
        const Share own(m.dense), of_shared(shared);
        for (int64_t n = 1; n < threads; ++n) {
            const float* from = sums.get() + (n - 1) * all;
            add(own.high - own.low, from + own.low, s.by_dense + own.low);
            add(of_shared.high - of_shared.low, from + m.dense + of_shared.low, s.by_shared + of_shared.low);
        }
    }
}

}  // extern "C"
