// Linear layers in float32 on a CPU: y = f(x) W^T + b, f the identity or GELU, and their gradients.
//
// A task is a block of up to BLOCK tokens. In the backward pass each thread sums the gradients of the weights of its tasks;
// in the end they are added, in the order of the threads. Which tasks a thread has depends on the number of threads alone.

#include <vector>

#include "products.h"

// A tile has HIGH rows; of AVX2 more than elsewhere in the kernels: rows are tokens, of which there is any number.
constexpr int HIGH = LANES == 8 ? 6 : AT_ONCE;
constexpr int TILES = 128 / HIGH, BLOCK = TILES * HIGH;  // rows of tiles, and tokens, of a block at most
static int padded_high(int count) { return (count + HIGH - 1) / HIGH * HIGH; }
typedef Vector Tile[HIGH][WIDE];

extern "C" struct LinearCall {
    int32_t activates, num_threads;
    int64_t tokens, inputs, outputs;              // T, I, O; the latter are multiples of 32
    int64_t input_stride, grad_stride;            // from token to token
    const float *input, *weight, *bias;           // (T, I), (O, I), (O,) or null
    float* output;                                // (T, O)
    const float* grad_output;                     // (T, O)
    float *grad_input, *grad_weight, *grad_bias;  // (T, I), (O, I), (O,); null where nobody asks
};

// Calls `body(row, column)` for the tiles of a matrix, strip by strip.
template <class Body>
static ALWAYS void for_high_tiles(int rows, int columns, Body body) {
    for (int column = 0; column < columns; column += STRIP)
        for (int row = 0; row < rows; row += HIGH) body(row, column);
}

struct LinearTask {
    const LinearCall& call;
    const float* panel;  // of the weights: depth I with O columns (forward), depth O with I columns (backward)
    const int I, O, I_STRIDE, O_STRIDE;
    float *rows, *slopes, *rows_panel;         // f(x) and f'(x), (BLOCK x I); panel of depth P
    float *grads, *grads_columns;              // (BLOCK x O); by columns, (O / HIGH, P, HIGH)
    float *weight_sums = nullptr, *bias_sums;  // gradients of this thread, (O x I) and (O,), O padded
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
        grads_columns = arena.take<float>((size_t)BLOCK * padded_high(O));
        weight_sums = arena.take<float>((size_t)padded_high(O) * I);
    }
    void begin(int64_t number, int64_t num_blocks) {
        const int64_t num_tiles = (call.tokens + HIGH - 1) / HIGH;
        start = number * num_tiles / num_blocks * HIGH;
        tokens = (int)(std::min(call.tokens, (number + 1) * num_tiles / num_blocks * HIGH) - start);
    }
    void read_rows(bool with_slopes) {
        const float* input = call.input + start * call.input_stride;
        read_operands(input, call.input_stride, tokens, padded_high(tokens), I, I, rows);
        if (!call.activates) return;
        for (int r = 0; r < tokens; ++r)
            for (int c = 0; c < I; c += LANES) {
                const size_t offset = (size_t)r * I_STRIDE + c;
                const Activation activation = gelu(load(rows + offset));
                store(rows + offset, activation.value);
                if (with_slopes) store(slopes + offset, activation.slope);
            }
    }
    void forward() {
        read_rows(false);
        for_high_tiles(padded_high(tokens), O, [&](int r0, int column) __attribute__((always_inline)) {
            Tile tile = {};
            if (call.bias)
                for (int r = 0; r < HIGH; ++r)
                    for (int v = 0; v < WIDE; ++v) tile[r][v] = load(call.bias + column + v * LANES);
            accumulate_strided(tile, rows + (size_t)r0 * I_STRIDE, I_STRIDE, 1, panel + (size_t)column * I, I);
            for (int r = 0; r < HIGH && r0 + r < tokens; ++r)
                write_row(call.output + (start + r0 + r) * O, column, O, tile[r]);
        });
    }

    void clear_sums() {
        std::memset(bias_sums, 0, sizeof(float) * O);
        if (weight_sums) std::memset(weight_sums, 0, sizeof(float) * padded_high(O) * I);
    }
    void backward() {
        const float* grad_output = call.grad_output + start * call.grad_stride;
        read_operands(grad_output, call.grad_stride, tokens, padded_high(tokens), O, O, grads);
        if (call.grad_bias)
            for (int r = 0; r < tokens; ++r)
                for (int c = 0; c < O; c += LANES) store(bias_sums + c, load(bias_sums + c) + load(grads + (size_t)r * O_STRIDE + c));
        if (call.activates || weight_sums) read_rows(true);
        if (call.grad_input) write_grad_input();
        if (weight_sums) add_to_weights();
    }
    void write_grad_input() {
        for_high_tiles(padded_high(tokens), I, [&](int r0, int column) __attribute__((always_inline)) {
            Tile tile = {};
            accumulate_strided(tile, grads + (size_t)r0 * O_STRIDE, O_STRIDE, 1, panel + (size_t)column * O, O);
            for (int r = 0; r < HIGH && r0 + r < tokens; ++r) {
                if (call.activates)
                    for (int v = 0; v < WIDE; ++v) tile[r][v] *= load(slopes + (size_t)(r0 + r) * I_STRIDE + column + v * LANES);
                write_row(call.grad_input + (start + r0 + r) * I, column, I, tile[r]);
            }
        });
    }
    // weight_sums += grads^T x rows.
    void add_to_weights() {
        to_panel<Float32>(rows, I_STRIDE, tokens, I, rows_panel);
        for (int n = 0; n < O; n += HIGH)
            for (int r = 0; r < tokens; ++r)  // behind a row are zeros
                std::memcpy(grads_columns + (size_t)n * tokens + r * HIGH, grads + (size_t)r * O_STRIDE + n, sizeof(float) * HIGH);
        for_high_tiles(O, I, [&](int n, int column) __attribute__((always_inline)) {
            float* sums = weight_sums + (size_t)n * I + column;
            Tile tile;
            for (int r = 0; r < HIGH; ++r)
                for (int v = 0; v < WIDE; ++v) tile[r][v] = load(sums + (size_t)r * I + v * LANES);
            accumulate_strided(tile, grads_columns + (size_t)n * tokens, 1, HIGH, rows_panel + (size_t)column * tokens, tokens);
            for (int r = 0; r < HIGH; ++r)
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
    // As many blocks for each thread.
    const int64_t rounds = (call.tokens + BLOCK * (int64_t)call.num_threads - 1) / (BLOCK * (int64_t)call.num_threads);
    const int64_t num_blocks = rounds * call.num_threads;
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
            if (is_ready) {
                task.begin(number, num_blocks);
                backward ? task.backward() : task.forward();
            }
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
