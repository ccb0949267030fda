// Softmax attention of blocks of queries to chosen blocks of keys, in float32 on a CPU, with its gradients; see
// attention/operations/blocks.py.
//
// A task of the forward pass is one block of queries; of the backward pass all blocks of one group, which add to gradients of
// the same keys. Blocks of keys of which nothing is seen are left out. Sums do not depend on the number of threads.
//
// Names of shapes: G groups, N blocks of C tokens, K blocks of keys per block of queries, S tokens in those of which something
// is seen, E width of queries and keys, X of values. C, E and X are multiples of 32.

#include "products.h"

extern "C" struct BlockCall {
    int32_t num_threads;
    float scale;
    int64_t groups, blocks, num_keys, block, width, value_width;
    int64_t hidden_group;        // from group to group of `hidden`; 0 if they share it
    const int64_t* key_blocks;   // (N, K)
    const uint8_t* hidden;       // (G or 1, N, C, K C)
    const float *query, *key, *value;                   // (G, N C, E) and (G, N C, X)
    float *output, *logsumexp;                          // (G, N C, X), (G, N C)
    const float *grad_output, *grad_logsumexp;          // as these
    float *grad_query, *grad_key, *grad_value;          // as their tensors; the latter two are zero before
};

constexpr float HIDDEN = -1e30f;
typedef uint8_t LooseBytes __attribute__((vector_size(LANES), aligned(1), may_alias));

struct BlockTask {
    const BlockCall& call;
    const int C, K, E, X, STRIDE;
    int64_t group = 0, number = 0;
    int num_seen = 0, S = 0;
    int64_t* seen;                        // of the K blocks, which have something to see
    float *scores, *gradients;            // (C x S), rows STRIDE apart: scores or weights; gradients of scores
    float *panel, *tall_panel;            // of one block; of S tokens
    float *queries_panel, *grads_panel;   // depth C
    float* shift;                         // (C,)

    BlockTask(const BlockCall& call, Arena& arena, bool backward)
        : call(call), C((int)call.block), K((int)call.num_keys), E((int)call.width), X((int)call.value_width), STRIDE(K * C + GAP) {
        seen = arena.take<int64_t>(K);
        scores = arena.take<float>((size_t)C * STRIDE);
        panel = arena.take<float>((size_t)C * std::max(E, X));
        tall_panel = arena.take<float>((size_t)K * C * std::max(E, X));
        if (!backward) return;
        gradients = arena.take<float>((size_t)C * STRIDE);
        queries_panel = arena.take<float>((size_t)C * E);
        grads_panel = arena.take<float>((size_t)C * X);
        shift = arena.take<float>(C);
    }
    const uint8_t* hidden(int r, int64_t k) const {
        return call.hidden + group * call.hidden_group + ((number * C + r) * K + k) * C;
    }
    // First token of a block, in a tensor without its last axis.
    int64_t token(int64_t block) const { return (group * call.blocks + block) * C; }
    int64_t key_token(int s) const { return token(call.key_blocks[number * K + seen[s]]); }
    void begin(int64_t of_group, int64_t of_block) {
        group = of_group;
        number = of_block;
        num_seen = 0;
        for (int64_t k = 0; k < K; ++k) {
            bool is_seen = false;
            for (int r = 0; r < C && !is_seen; ++r) is_seen = std::memchr(hidden(r, k), 0, C) != nullptr;
            if (is_seen) seen[num_seen++] = k;
        }
        S = num_seen * C;
    }
    // Scores of the keys seen.
    void form_scores() {
        const float* queries = call.query + token(number) * E;
        for (int s = 0; s < num_seen; ++s) {
            to_transposed_panel<Float32>(call.key + key_token(s) * E, E, C, E, panel);
            for_tiles(C, C, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
                accumulate<Float32>(tile, queries + (size_t)r0 * E, E, panel + (size_t)column * E, E);
                for (int r = 0; r < TALL; ++r)
                    for (int v = 0; v < WIDE; ++v) {
                        const LooseBytes bytes = *(const LooseBytes*)(hidden(r0 + r, seen[s]) + column + v * LANES);
                        const Integers is_hidden = __builtin_convertvector(bytes, Integers) != 0;
                        const Vector score = select(is_hidden, all(HIDDEN), tile[r][v] * call.scale);
                        store(scores + (size_t)(r0 + r) * STRIDE + s * C + column + v * LANES, score);
                    }
            });
        }
    }
    // Rows of the blocks seen, of a tensor of some width, as a panel of depth S.
    void form_tall_panel(const float* tensor, int width) {
        for (int s = 0; s < num_seen; ++s) {
            const float* rows = tensor + key_token(s) * width;
            for (int column = 0; column < width; column += STRIP)
                for (int r = 0; r < C; ++r)
                    std::memcpy(tall_panel + (size_t)column * S + (s * C + r) * STRIP, rows + (size_t)r * width + column, sizeof(float) * STRIP);
        }
    }
    void forward() {
        form_scores();
        form_tall_panel(call.value, X);
        float* output = call.output + token(number) * X;
        for (int r = 0; r < C; ++r) {
            float* row = scores + (size_t)r * STRIDE;
            Vector most = all(HIDDEN), sums = {};
            for (int c = 0; c < S; c += LANES) most = greater(load(row + c), most);
            float largest = most[0];
            for (int lane = 1; lane < LANES; ++lane) largest = std::max(largest, (float)most[lane]);
            for (int c = 0; c < S; c += LANES) {
                const Vector weight = exponential(load(row + c) - largest);
                store(row + c, weight);
                sums += weight;
            }
            const float sum = S ? total(sums) : 1.0f;
            for (int c = 0; c < S; c += LANES) store(row + c, load(row + c) / sum);
            call.logsumexp[token(number) + r] = largest + std::log(sum);
        }
        for_tiles(C, X, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Float32>(tile, scores + (size_t)r0 * STRIDE, STRIDE, tall_panel + (size_t)column * S, S);
            for (int r = 0; r < TALL; ++r) write_row(output + (size_t)(r0 + r) * X, column, X, tile[r]);
        });
    }
    void backward() {
        const int64_t first = token(number);
        const float *grads = call.grad_output + first * X, *output = call.output + first * X;
        form_scores();
        for (int r = 0; r < C; ++r) {
            float* row = scores + (size_t)r * STRIDE;
            for (int c = 0; c < S; c += LANES) store(row + c, exponential(load(row + c) - call.logsumexp[first + r]));
            Vector sum = {};
            for (int c = 0; c < X; c += LANES) sum += load(grads + (size_t)r * X + c) * load(output + (size_t)r * X + c);
            shift[r] = call.grad_logsumexp[first + r] - total(sum);
        }
        // d score = weight (d weight - sum d weight weight + d logsumexp)
        for (int s = 0; s < num_seen; ++s) {
            to_transposed_panel<Float32>(call.value + key_token(s) * X, X, C, X, panel);
            for_tiles(C, C, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
                accumulate<Float32>(tile, grads + (size_t)r0 * X, X, panel + (size_t)column * X, X);
                for (int r = 0; r < TALL; ++r)
                    for (int v = 0; v < WIDE; ++v) {
                        const size_t offset = (size_t)(r0 + r) * STRIDE + s * C + column + v * LANES;
                        store(gradients + offset, (tile[r][v] + shift[r0 + r]) * load(scores + offset) * call.scale);
                    }
            });
        }
        form_tall_panel(call.key, E);
        for_tiles(C, E, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Float32>(tile, gradients + (size_t)r0 * STRIDE, STRIDE, tall_panel + (size_t)column * S, S);
            for (int r = 0; r < TALL; ++r) write_row(call.grad_query + (first + r0 + r) * E, column, E, tile[r]);
        });
        to_panel<Float32>(call.query + first * E, E, C, E, queries_panel);
        to_panel<Float32>(grads, X, C, X, grads_panel);
        for (int s = 0; s < num_seen; ++s) {
            add_columns(gradients + s * C, queries_panel, E, call.grad_key + key_token(s) * E);
            add_columns(scores + s * C, grads_panel, X, call.grad_value + key_token(s) * X);
        }
    }
    // target += left^T x right, for `left` (C x C) in rows STRIDE apart and a panel of depth C.
    void add_columns(const float* left, const float* right, int width, float* target) {
        for_tiles(C, width, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            for (int first = 0; first < TALL; first += AT_ONCE) {
                auto& part = *(Vector(*)[AT_ONCE][WIDE])&tile[first];
                accumulate_strided(part, left + r0 + first, 1, STRIDE, right + (size_t)column * C, C);
            }
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    float* cells = target + (size_t)(r0 + r) * width + column + v * LANES;
                    store(cells, load(cells) + tile[r][v]);
                }
        });
    }
};

static int run_blocks(const BlockCall& call, bool backward) {
    int failed = 0;
#pragma omp parallel num_threads(call.num_threads) reduction(+ : failed)
    {
        static thread_local Arena arena;
        arena.used = 0;
        arena.counts_only = true;
        { BlockTask counted(call, arena, backward); }
        const bool is_ready = arena.reserve();
        failed += !is_ready;
        BlockTask task(call, arena, backward);
        const int64_t at_once = backward ? call.blocks : 1, num_tasks = call.groups * call.blocks / at_once;
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < num_tasks; ++number)
            for (int64_t each = number * at_once; each < (number + 1) * at_once && is_ready; ++each) {
                task.begin(each / call.blocks, each % call.blocks);
                backward ? task.backward() : task.forward();
            }
    }
    return failed != 0;
}

extern "C" {
// 0, or 1 where there was no memory.
int protein_lm_block_attention_forward(const BlockCall* call) { return run_blocks(*call, false); }
int protein_lm_block_attention_backward(const BlockCall* call) { return run_blocks(*call, true); }
int64_t protein_lm_block_call_bytes() { return sizeof(BlockCall); }
}
