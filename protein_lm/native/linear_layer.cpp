// Linear layers in float32 on a CPU: y = f(x) W^T + b, f the identity or GELU, and their gradients.
//
// A task is a block of up to BLOCK tokens. In the backward pass each thread sums the gradients of the weights of its tasks;
// in the end they are added, in the order of the threads. Which tasks a thread has depends on the number of threads alone.

#include <vector>

#include "products.h"

constexpr int BLOCK = 128;  // tokens

extern "C" struct LinearCall {
    int32_t activates, num_threads;
    int64_t tokens, inputs, outputs;              // T, I, O; the latter are multiples of 32
    int64_t input_stride, grad_stride;            // from token to token
    const float *input, *weight, *bias;           // (T, I), (O, I), (O,) or null
    float* output;                                // (T, O)
    const float* grad_output;                     // (T, O)
    float *grad_input, *grad_weight, *grad_bias;  // (T, I), (O, I), (O,); null where nobody asks
};

// sums += left x right for `left` by columns (depth x TALL), and one strip of `right`.
static ALWAYS void accumulate_columns(Vector (&sums)[TALL][WIDE], const float* left, const float* strip, int depth) {
    for (int first = 0; first < TALL; first += AT_ONCE) {
        Vector part[AT_ONCE][WIDE];
        for (int r = 0; r < AT_ONCE; ++r)
            for (int v = 0; v < WIDE; ++v) part[r][v] = sums[first + r][v];
        for (int k = 0; k < depth; ++k) {
            Vector right[WIDE];
            for (int v = 0; v < WIDE; ++v) right[v] = load(strip + k * STRIP + v * LANES);
            for (int r = 0; r < AT_ONCE; ++r)
                for (int v = 0; v < WIDE; ++v) part[r][v] += left[k * TALL + first + r] * right[v];
        }
        for (int r = 0; r < AT_ONCE; ++r)
            for (int v = 0; v < WIDE; ++v) sums[first + r][v] = part[r][v];
    }
}

struct LinearTask {
    const LinearCall& call;
    const float* panel;  // of the weights: depth I with O columns (forward), depth O with I columns (backward)
    const int I, O, I_STRIDE, O_STRIDE;
    float *rows, *slopes, *rows_panel;         // f(x) and f'(x), (BLOCK x I); panel of depth P
    float *grads, *grads_columns;              // (BLOCK x O); (O / TALL, P, TALL)
    float *weight_sums = nullptr, *bias_sums;  // gradients of this thread, (O x I) and (O,)
    int64_t start = 0;
    int tokens = 0;

    LinearTask(const LinearCall& call, const float* panel, Arena& arena, bool backward)
        : call(call), panel(panel), I((int)call.inputs), O((int)call.outputs), I_STRIDE(I + GAP), O_STRIDE(O + GAP) {
        rows = arena.take<float>((size_t)BLOCK * I_STRIDE);
        if (!backward) return;
        slopes = call.activates ? arena.take<float>((size_t)BLOCK * I_STRIDE) : nullptr;
        grads = arena.take<float>((size_t)BLOCK * O_STRIDE);
        bias_sums = arena.take<float>(O);
        if (!call.grad_weight) return;
        rows_panel = arena.take<float>((size_t)BLOCK * I);
        grads_columns = arena.take<float>((size_t)BLOCK * O);
        weight_sums = arena.take<float>((size_t)O * I);
    }
    void begin(int64_t number) {
        start = number * BLOCK;
        tokens = (int)std::min<int64_t>(BLOCK, call.tokens - start);
    }
    void read_rows(bool with_slopes) {
        const float* input = call.input + start * call.input_stride;
        read_operands(input, call.input_stride, tokens, padded_tall(tokens), I, I, rows);
        if (!call.activates) return;
        for (int r = 0; r < tokens; ++r)
            for (int c = 0; c < I; c += LANES) {
                const size_t place = (size_t)r * I_STRIDE + c;
                const Activation activation = gelu(load(rows + place));
                store(rows + place, activation.value);
                if (with_slopes) store(slopes + place, activation.slope);
            }
    }
    void forward(int64_t number) {
        begin(number);
        read_rows(false);
        for_tiles(padded_tall(tokens), O, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            if (call.bias)
                for (int r = 0; r < TALL; ++r)
                    for (int v = 0; v < WIDE; ++v) tile[r][v] = load(call.bias + column + v * LANES);
            accumulate<Float32>(tile, rows + (size_t)r0 * I_STRIDE, I_STRIDE, panel + (size_t)column * I, I);
            for (int r = 0; r < TALL && r0 + r < tokens; ++r)
                write_row(call.output + (start + r0 + r) * O, column, O, tile[r]);
        });
    }

    void clear_sums() {
        std::memset(bias_sums, 0, sizeof(float) * O);
        if (weight_sums) std::memset(weight_sums, 0, sizeof(float) * O * I);
    }
    void backward(int64_t number) {
        begin(number);
        const float* grad_output = call.grad_output + start * call.grad_stride;
        read_operands(grad_output, call.grad_stride, tokens, padded_tall(tokens), O, O, grads);
        if (call.grad_bias)
            for (int r = 0; r < tokens; ++r)
                for (int c = 0; c < O; c += LANES) store(bias_sums + c, load(bias_sums + c) + load(grads + (size_t)r * O_STRIDE + c));
        if (call.activates || weight_sums) read_rows(true);
        if (call.grad_input) write_grad_input();
        if (weight_sums) add_to_weights();
    }
    void write_grad_input() {
        for_tiles(padded_tall(tokens), I, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Float32>(tile, grads + (size_t)r0 * O_STRIDE, O_STRIDE, panel + (size_t)column * O, O);
            for (int r = 0; r < TALL && r0 + r < tokens; ++r) {
                if (call.activates)
                    for (int v = 0; v < WIDE; ++v) tile[r][v] *= load(slopes + (size_t)(r0 + r) * I_STRIDE + column + v * LANES);
                write_row(call.grad_input + (start + r0 + r) * I, column, I, tile[r]);
            }
        });
    }
    // weight_sums += grads^T x rows.
    void add_to_weights() {
        to_panel<Float32>(rows, I_STRIDE, tokens, I, rows_panel);
        for (int n = 0; n < O; n += TALL)
            for (int r = 0; r < tokens; ++r)
                std::memcpy(grads_columns + (size_t)n * tokens + r * TALL, grads + (size_t)r * O_STRIDE + n, sizeof(float) * TALL);
        for_tiles(O, I, [&](int n, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            float* sums = weight_sums + (size_t)n * I + column;
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) tile[r][v] = load(sums + (size_t)r * I + v * LANES);
            accumulate_columns(tile, grads_columns + (size_t)n * tokens, rows_panel + (size_t)column * tokens, tokens);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) store(sums + (size_t)r * I + v * LANES, tile[r][v]);
        });
    }
};

// target = the sum of what threads have of it, for `count` numbers from `first` on.
static void add_up(const std::vector<float*>& parts, size_t first, int count, float* target) {
    for (int c = 0; c < count; c += LANES) {
        Vector sum = {};
        for (const float* part : parts)
            if (part) sum += load(part + first + c);
        store(target + first + c, sum);
    }
}

static int run_linear(const LinearCall& call, bool backward) {
    static thread_local Arena shared;  // of the calling thread
    const int I = (int)call.inputs, O = (int)call.outputs;
    shared.used = 0;
    shared.counts_only = true;
    shared.take<float>((size_t)I * O);
    if (!shared.reserve()) return 1;
    float* const panel = shared.take<float>((size_t)I * O);
    std::vector<float*> weight_sums(call.num_threads), bias_sums(call.num_threads);
    const int64_t num_blocks = (call.tokens + BLOCK - 1) / BLOCK;
    int failed = 0;
#pragma omp parallel num_threads(call.num_threads) reduction(+ : failed)
    {
        static thread_local Arena arena;
        arena.used = 0;
        arena.counts_only = true;
        { LinearTask counted(call, panel, arena, backward); }
        const bool is_ready = arena.reserve();
        failed += !is_ready;
        LinearTask task(call, panel, arena, backward);
        if (backward && is_ready) {
            task.clear_sums();
            weight_sums[omp_get_thread_num()] = task.weight_sums;
            bias_sums[omp_get_thread_num()] = task.bias_sums;
        }
#pragma omp for schedule(static)
        for (int column = 0; column < (backward ? I : O); column += STRIP) {
            if (backward) to_panel<Float32>(call.weight + column, I, O, STRIP, panel + (size_t)column * O);
            else to_transposed_panel<Float32>(call.weight + (size_t)column * I, I, STRIP, I, panel + (size_t)column * I);
        }
#pragma omp for schedule(static)
        for (int64_t number = 0; number < num_blocks; ++number)
            if (is_ready) backward ? task.backward(number) : task.forward(number);
        if (backward && call.grad_weight) {
#pragma omp for schedule(static)
            for (int n = 0; n < O; ++n) add_up(weight_sums, (size_t)n * I, I, call.grad_weight);
        }
        if (backward && call.grad_bias) {
#pragma omp single
            add_up(bias_sums, 0, O, call.grad_bias);
        }
    }
    return failed != 0;
}

extern "C" {
// 0, or 1 where there was no memory.
int protein_lm_linear_forward(const LinearCall* call) { return run_linear(*call, false); }
int protein_lm_linear_backward(const LinearCall* call) { return run_linear(*call, true); }
int64_t protein_lm_linear_call_bytes() { return sizeof(LinearCall); }
}
