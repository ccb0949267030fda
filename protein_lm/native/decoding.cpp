// One token more of B sequences through the blocks of a causal model with linear attention, in float32: what
// `ProteinLM.step` does between the embedding and the final norm.
//
// A step reads every weight and every state once. With one sequence it takes as long as reading the weights does, with many as
// long as the products and reading the states do, if nothing comes between: here the threads wait for each other seven times
// per block, and for nothing else. Weights lie by columns, (inputs x outputs), so that each thread streams through those of its
// own outputs; `arranged` says why there are gaps.
//
// Names of shapes: B sequences, D width, H heads of width E, M features, X width of a row of a state.

#include <type_traits>
#include "vectors.h"

template <int N>
using Constant = std::integral_constant<int, N>;


extern "C" {
struct Linear {  // y = x weights + bias
    const float *weights, *bias;
    int64_t stride;  // from one row of weights to the next
};
struct Norm {
    const float *gain, *bias;
};
struct Block {
    Norm attention_norm, feedforward_norm;
    Linear input, output, up, down;           // (D x 3 D), (D x D), (D x inner), (inner x D)
    const float* taps;                        // (num_taps, D) or null
    const float *query_gain, *key_gain;       // (E,) or null
    Linear projection;                        // (E x M), scaled, without bias
    const float* half_norms;                  // (M,), of softmax features
    float epsilon, headroom, floor, scale;    // of the features
    int32_t map, num_taps;
    float* before;                            // (B, num_taps - 1, D)
    float *sums, *keys, *values;              // (B H, M, X), (B H, waiting slots, M), (B H, waiting slots, X)
};
struct Step {
    int32_t batch, width, heads, num_features, inner, state_width, num_blocks;
    int32_t num_waiting, num_slots, settles;  // keys that wait, slots for them, whether all that waited are added first
    int32_t num_threads;
    const float *cosines, *sines;             // (B, E / 2) or null
    float* hidden;                            // (B, D), in and out
    float* scratch;                           // (B, 5 D + inner)
    Block* blocks;
};
}

static float dot(const float* left, const float* right, int count) {
    constexpr int PARTS = 4;
    Vector sums[PARTS] = {};
    int c = 0;
    for (; c + PARTS * LANES <= count; c += PARTS * LANES)
        for (int part = 0; part < PARTS; ++part) sums[part] += load(left + c + part * LANES) * load(right + c + part * LANES);
    for (; c < count; c += LANES) sums[0] += load(left + c) * load(right + c);
    return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

constexpr int AHEAD = 32;  // rows of weights: strips lie across memory, where no processor foresees what comes next

// Some columns of y (ROWS x ...) = x weights + bias, or added to what y holds.
template <int ROWS, int VECTORS>
static ALWAYS void some_columns(const float* x, int depth, const Linear& layer, int columns, int first, float* y, bool adds) {
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            sums[r][v] = layer.bias ? load(layer.bias + first + v * LANES) : Vector{};
            if (adds) sums[r][v] += load(y + (long)r * columns + first + v * LANES);
        }
    const float* weights = layer.weights + first;
    for (int k = 0; k < depth; ++k, weights += layer.stride)
        for (int v = 0; v < VECTORS; ++v) {
            __builtin_prefetch(weights + AHEAD * layer.stride + v * LANES);
            const Vector row = load(weights + v * LANES);
            for (int r = 0; r < ROWS; ++r) sums[r][v] += x[(long)r * depth + k] * row;
        }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(y + (long)r * columns + first + v * LANES, sums[r][v]);
}
constexpr int MANY = LANES == 16 ? 16 : 8;  // vectors of sums that the registers hold
template <int VECTORS>
static void all_rows(const float* x, int rows, int depth, const Linear& layer, int columns, int first, float* y, bool adds) {
    const auto some = [&](auto tall) {
        constexpr int ROWS = decltype(tall)::value;
        if constexpr (ROWS * VECTORS <= MANY)
            for (; rows >= ROWS; rows -= ROWS, x += (long)ROWS * depth, y += (long)ROWS * columns)
                some_columns<ROWS, VECTORS>(x, depth, layer, columns, first, y, adds);
    };
    if constexpr (MANY == 16) some(Constant<8>());
    some(Constant<4>());
    some(Constant<2>());
    some(Constant<1>());
}
// The columns begin ... end of y (rows x columns): strip by strip, so that all rows find the weights in the cache.
static void linear(const float* x, int rows, int depth, const Linear& layer, int columns, int begin, int end, float* y, bool adds) {
    int first = begin;
    const auto strips = [&](auto wide) {
        constexpr int VECTORS = decltype(wide)::value;
        for (; first + VECTORS * LANES <= end; first += VECTORS * LANES)
            all_rows<VECTORS>(x, rows, depth, layer, columns, first, y, adds);
    };
    if (rows == 1) strips(Constant<MANY>());
    if (rows <= 3) strips(Constant<MANY / 2>());
    if (rows <= 7) strips(Constant<MANY / 4>());
    strips(Constant<2>());
    strips(Constant<1>());
}

static void layer_norm(const float* x, int width, const Norm& norm, float* y) {
    Vector sum = {}, squares = {};
    for (int c = 0; c < width; c += LANES) sum += load(x + c);
    const float mean = total(sum) / width;
    for (int c = 0; c < width; c += LANES) {
        const Vector centred = load(x + c) - mean;
        squares += centred * centred;
    }
    const float factor = 1 / std::sqrt(total(squares) / width + 1e-5f);
    for (int c = 0; c < width; c += LANES)
        store(y + c, (load(x + c) - mean) * factor * load(norm.gain + c) + load(norm.bias + c));
}

// y = x + the taps' weighted sum of the tokens that end with x; `before` moves on.
static void convolve(const float* x, int width, const Block& block, float* before, float* y) {
    const int others = block.num_taps - 1;
    for (int c = 0; c < width; c += LANES) {
        const Vector now = load(x + c);
        Vector sum = now + now * load(block.taps + (long)others * width + c);
        for (int tap = 0; tap < others; ++tap)
            sum += load(before + (long)tap * width + c) * load(block.taps + (long)tap * width + c);
        for (int tap = 0; tap + 1 < others; ++tap)
            store(before + (long)tap * width + c, load(before + (long)(tap + 1) * width + c));
        if (others) store(before + (long)(others - 1) * width + c, now);
        store(y + c, sum);
    }
}

constexpr int HEADS_AT_ONCE = 8, MOST_FEATURES = 1024;  // the latter as in compiled_decoding.py

struct Heads {  // of one sequence
    const Step& step;
    const Block& block;
    const int E, M, X;

    void prepare(float* x, const float* gain, const float* cosines, const float* sines) const {
        if (gain) {
            const float factor = 1 / std::sqrt(dot(x, x, E) / E + 1e-6f);
            for (int c = 0; c < E; c += LANES) store(x + c, load(x + c) * factor * load(gain + c));
        }
        if (!cosines) return;
        for (int c = 0; c < E / 2; ++c) {
            const float first = x[c], second = x[c + E / 2];
            x[c] = first * cosines[c] - second * sines[c];
            x[c + E / 2] = second * cosines[c] + first * sines[c];
        }
    }
    // Features (count x M) of queries or keys x (count x E), which are prepared.
    void features(const float* x, int count, bool is_key, float* to) const {
        if (block.map == 2) {
            for (int c = 0; c < count * E; c += LANES) {
                const Vector value = load(x + c);
                const Vector low = greater(select(value > Vector{}, Vector{}, value), all(-40.0f));
                store(to + c, select(value > Vector{}, value + 1.0f, exponential(low)));
            }
            return;
        }
        linear(x, count, E, block.projection, M, 0, M, to, false);
        for (int head = 0; head < count; ++head, x += E, to += M) {
            if (block.map == 0)
                for (int m = 0; m < M; m += LANES) store(to + m, greater(load(to + m) + block.epsilon, all(block.epsilon)));
            else if (is_key)
                key_exponentials(dot(x, x, E) * block.scale * block.scale / 2, to);
            else
                query_exponentials(to);
        }
    }
    void key_exponentials(float half_square, float* to) const {
        for (int m = 0; m < M; m += LANES) {
            const Vector exponent = load(to + m) + (block.headroom - load(block.half_norms + m)) - half_square;
            store(to + m, exponential(greater(exponent, all(block.floor))));
        }
    }
    void query_exponentials(float* to) const {
        Vector largest = all(-INFINITY);
        for (int m = 0; m < M; m += LANES) {
            const Vector sum = load(to + m) + load(block.half_norms + m);
            largest = greater(largest, sum);
            store(to + m, sum);
        }
        float limit = largest[0];
        for (int lane = 1; lane < LANES; ++lane) limit = std::max(limit, (float)largest[lane]);
        for (int m = 0; m < M; m += LANES) store(to + m, exponential(load(to + m) - limit));
    }
    // Adds the waiting keys and values to the sums.
    void settle(const float* keys, const float* values, float* sums) const {
        constexpr int ROWS = 4;  // M comes in multiples of it
        for (int m = 0; m < M; m += ROWS) {
            float* rows = sums + (long)m * X;
            int first = 0;
            for (; first + 4 * LANES <= E; first += 4 * LANES) settle_columns<ROWS, 4>(keys + m, values + first, rows + first);
            for (; first < E; first += LANES) settle_columns<ROWS, 1>(keys + m, values + first, rows + first);
            for (int r = 0; r < ROWS; ++r)
                for (int slot = 0; slot < step.num_slots; ++slot)
                    rows[r * X + E] += keys[(long)slot * M + m + r] * values[(long)slot * X + E];
        }
    }
    template <int ROWS, int VECTORS>
    ALWAYS void settle_columns(const float* keys, const float* values, float* rows) const {
        Vector sums[ROWS][VECTORS];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = load(rows + r * X + v * LANES);
        for (int slot = 0; slot < step.num_slots; ++slot, keys += M, values += X)
            for (int v = 0; v < VECTORS; ++v) {
                const Vector value = load(values + v * LANES);
                for (int r = 0; r < ROWS; ++r) sums[r][v] += keys[r] * value;
            }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) store(rows + r * X + v * LANES, sums[r][v]);
    }
    // to (E,) += weights x rows (count x X), and the same of the column behind their values.
    void weigh(const float* weights, int count, const float* rows, float* to, float& divisor) const {
        int first = 0;
        for (; first + 4 * LANES <= E; first += 4 * LANES) weigh_columns<4>(weights, count, rows + first, to + first);
        for (; first < E; first += LANES) weigh_columns<1>(weights, count, rows + first, to + first);
        float parts[4] = {};
        for (int slot = 0; slot < count; ++slot) parts[slot % 4] += weights[slot] * rows[(long)slot * X + E];
        divisor += (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
    template <int VECTORS>
    void weigh_columns(const float* weights, int count, const float* rows, float* to) const {
        Vector sums[VECTORS];
        for (int v = 0; v < VECTORS; ++v) sums[v] = load(to + v * LANES);
        for (int slot = 0; slot < count; ++slot, rows += X)
            for (int v = 0; v < VECTORS; ++v) sums[v] += weights[slot] * load(rows + v * LANES);
        for (int v = 0; v < VECTORS; ++v) store(to + v * LANES, sums[v]);
    }
    // Output (count x E) of some heads of a sequence, for their queries, keys and values (count x E), of which the first two
    // are changed; the keys and the values wait with the others.
    void attend(int sequence, int first, int count, float* query, float* key, const float* value, float* to) const {
        alignas(64) float query_features[HEADS_AT_ONCE * MOST_FEATURES], key_features[HEADS_AT_ONCE * MOST_FEATURES];
        const float* cosines = step.cosines ? step.cosines + (long)sequence * E / 2 : nullptr;
        const float* sines = step.sines ? step.sines + (long)sequence * E / 2 : nullptr;
        for (int head = 0; head < count; ++head) {
            prepare(query + head * E, block.query_gain, cosines, sines);
            prepare(key + head * E, block.key_gain, cosines, sines);
        }
        features(query, count, false, query_features);
        features(key, count, true, key_features);
        for (int head = 0; head < count; ++head) {
            const long group = (long)sequence * step.heads + first + head;
            float* keys = block.keys + group * step.num_slots * M;
            float* values = block.values + group * step.num_slots * X;
            float* sums = block.sums + group * M * X;
            if (step.settles) settle(keys, values, sums);
            std::memcpy(keys + (long)step.num_waiting * M, key_features + head * M, sizeof(float) * M);
            std::memcpy(values + (long)step.num_waiting * X, value + head * E, sizeof(float) * E);
            weigh_all(query_features + head * M, keys, values, sums, to + head * E);
        }
    }
    void weigh_all(const float* query, const float* keys, const float* values, const float* sums, float* to) const {
        float seen[64];  // there are at most that many slots
        const int num_seen = step.num_waiting + 1;
        for (int slot = 0; slot < num_seen; ++slot) seen[slot] = dot(query, keys + (long)slot * M, M);
        for (int c = 0; c < E; c += LANES) store(to + c, Vector{});
        float divisor = 0;
        weigh(query, M, sums, to, divisor);
        weigh(seen, num_seen, values, to, divisor);
        for (int c = 0; c < E; c += LANES) store(to + c, load(to + c) / divisor);
    }
};

// The part of `count` units that belongs to a thread.
struct Share {
    int begin, end;
    Share(int count, int unit) {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const int units = (count + unit - 1) / unit;
        begin = std::min(count, (int)((long)units * thread / threads) * unit);
        end = std::min(count, (int)((long)units * (thread + 1) / threads) * unit);
    }
};

extern "C" {
// All threads go through all blocks together.
void protein_lm_decode(const Step* given) {
    const Step& step = *given;
    const int B = step.batch, D = step.width, E = D / step.heads;
#pragma omp parallel num_threads(step.num_threads)
    {
        float* normed = step.scratch;
        float *mixed = normed + (long)B * D, *projected = mixed + (long)B * D, *inner = projected + (long)B * 3 * D;
        for (int number = 0; number < step.num_blocks; ++number) {
            const Block& block = step.blocks[number];
            const Share rows(B, 1);
            for (int b = rows.begin; b < rows.end; ++b) {
                float* row = (block.taps ? mixed : normed) + (long)b * D;
                layer_norm(step.hidden + (long)b * D, D, block.attention_norm, row);
                if (block.taps) convolve(row, D, block, block.before + (long)b * (block.num_taps - 1) * D, normed + (long)b * D);
            }
#pragma omp barrier
            const Share of_input(3 * D, STRIP);
            linear(normed, B, D, block.input, 3 * D, of_input.begin, of_input.end, projected, false);
#pragma omp barrier
            const Share groups(B * step.heads, 1);
            const Heads heads{step, block, E, step.num_features, step.state_width};
            for (int group = groups.begin, count; group < groups.end; group += count) {
                const int b = group / step.heads, first = group % step.heads;
                count = std::min({HEADS_AT_ONCE, step.heads - first, groups.end - group});
                float* query = projected + (long)b * 3 * D + first * E;
                heads.attend(b, first, count, query, query + D, query + 2 * D, mixed + (long)b * D + first * E);
            }
#pragma omp barrier
            const Share of_output(D, STRIP);
            linear(mixed, B, D, block.output, D, of_output.begin, of_output.end, step.hidden, true);
#pragma omp barrier
            for (int b = rows.begin; b < rows.end; ++b)
                layer_norm(step.hidden + (long)b * D, D, block.feedforward_norm, normed + (long)b * D);
#pragma omp barrier
            const Share of_up(step.inner, STRIP);
            linear(normed, B, D, block.up, step.inner, of_up.begin, of_up.end, inner, false);
            for (int b = 0; b < B; ++b)
                for (int c = of_up.begin; c < of_up.end; c += LANES) {
                    float* cells = inner + (long)b * step.inner + c;
                    store(cells, gelu(load(cells)).value);
                }
#pragma omp barrier
            linear(inner, B, step.inner, block.down, D, of_output.begin, of_output.end, step.hidden, true);
#pragma omp barrier
        }
    }
}
int64_t protein_lm_block_bytes() { return sizeof(Block); }
int64_t protein_lm_step_bytes() { return sizeof(Step); }
}
