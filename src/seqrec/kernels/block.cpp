// A complete self-attention block, as in SASRec, forward and backward. block.py describes what it computes.
//
// Each thread takes its users through the complete block, a chunk of tokens at a time, so that intermediate results
// stay in the cache. The gradients of the weights are sums over threads, so their last bits depend on the number of
// threads, as in torch's matrix products. Nothing else does.

#include "block.h"

using namespace seqrec;

extern "C" {

// Number of floats that forward saves for backward.
int64_t seqrec_block_saves(const AttentionBlock* b, int32_t threads) {
    return States::size(b->tokens(), *b) + b->heads * plan_of(*b, threads).weights;
}

void seqrec_block_forward(const AttentionBlock* given, int32_t threads) {
    const AttentionBlock& b = *given;
    const Plan plan = plan_of(b, threads);
    const Weights weights(b, true);
    const int64_t numbers = 4 * plan.most * b.dim + attention_memory(b, plan);
    for_each_chunk(plan, threads, numbers + (b.saved ? 0 : States::size(plan.most, b)), [&](const Chunk& chunk, float* memory) {
        const States states(b.saved ? b.saved : memory, b.saved ? b.tokens() : plan.most, b);
        float* softmax = b.saved ? b.saved + States::size(b.tokens(), b) : nullptr;
        forward(b, plan, chunk, weights, b.saved ? states.at(chunk.token, b) : states, softmax, b.x + chunk.token * b.dim,
                b.out + (b.last_only ? chunk.user : chunk.token) * b.dim, memory + (b.saved ? 0 : States::size(plan.most, b)));
    });
}

void seqrec_block_backward(const AttentionBlock* given, int32_t threads) {
    const AttentionBlock& b = *given;
    const Plan plan = plan_of(b, threads);
    const Weights weights(b, false);
    const States states(b.saved, b.tokens(), b);
    const int64_t numbers = plan.most * (6 * b.dim + b.hidden) + attention_memory(b, plan);
    const auto size = [&](int name) { return b.size(name); };
    sum_gradients<PARAMETERS>(plan, threads, numbers, size, b.by_parameters, [&](const Chunk& chunk, float* const* by, float* memory) {
        const int64_t first = chunk.token * b.dim;
        backward(b, plan, chunk, weights, states.at(chunk.token, b), b.saved + States::size(b.tokens(), b), b.x + first,
                 b.by_out + first, by, b.by_x + first, memory);
    });
}

}  // extern "C"
