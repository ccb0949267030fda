// Linear attention on a CPU: one function forward and one backward, of one processor level (see `build.py`).
//
// One task is one head of one sequence. A task walks its sequence in chunks of CHUNK tokens; features, masked products and
// states of a chunk stay in the thread's workspace, which fits the second-level cache. Tasks share nothing, so results do not
// depend on the number of threads. Sums are float32; the operands of products are float32 or bfloat16.
//
// Names of shapes: M features, E width of queries and keys, X width of values, both padded with zeros to multiples of 32;
// P tokens of a chunk, padded likewise. A "panel" is the right operand of a product (depth x columns) as strips of STRIP
// columns: each strip is contiguous, row after row; of bfloat16 two rows are interleaved, as the processor's products want.
//
// Source of the chunked form: Hua et al. 2022 (arXiv 2202.10447), section 3.2.

#include "products.h"

constexpr int CHUNK = 128;  // tokens, at most
// Smaller chunks are less work; but there are twice as many states, which long sequences wait for.
static int chunk_of(int64_t length) { return LANES == 8 && length <= 2048 ? 64 : CHUNK; }

enum Map : int32_t { RELU = 0, SOFTMAX = 1, ELU = 2 };

extern "C" {
struct Call {
    int32_t map, causal, inputs_are_bfloat16, products_are_bfloat16, features_are_bfloat16, num_threads;
    int64_t batch, heads, length, width, value_width, num_features, num_sequences;
    float epsilon, headroom, floor, scale;  // of the map; `scale` is what the projection is multiplied with
    const float* projection;                // (M, E), scaled
    const float* half_norms;                // (M,) |w|^2 / 2 of unscaled rows; of SOFTMAX
    const int64_t* sequences;               // (N, 4) row of the batch, first token, behind the last one, first state
    const uint8_t* valid;                   // (B, L) or null
    float* normalizer;                      // (B, H, L)
    void* states;                           // (states, H, M, X) operands: what chunks start from; null if not kept
    float* sums;                            // (states, H, M)
    Rows query, key, value, output, grad_output, grad_query, grad_key, grad_value;
};
}

// The projection as operands; of one call.
template <class Feature>
struct Projection {
    using Number = typename Feature::Number;
    Number *rows, *transposed, *panel;  // (M x E); panel of depth E with M columns; panel of depth M with E columns
    int stride;
    void form(Arena& arena, const Call& call, int num_features, int width) {
        stride = width + GAP;
        rows = arena.take<Number>((size_t)num_features * stride);
        transposed = arena.take<Number>((size_t)num_features * width);
        panel = arena.take<Number>((size_t)num_features * width);
        if (arena.counts_only) return;
        for (int m = 0; m < num_features; ++m)
            for (int e = 0; e < stride; ++e)
                store(rows + (size_t)m * stride + e, e < call.width ? call.projection[m * call.width + e] : 0.0f);
        to_transposed_panel<Feature>(rows, stride, num_features, width, transposed);
        to_panel<Feature>(rows, stride, num_features, width, panel);
    }
};

template <class Product, class Feature, class Input>
struct Task {
    using Number = typename Product::Number;
    using FeatureNumber = typename Feature::Number;
    static constexpr int TOKENS = CHUNK + GAP;  // stride of matrices with a column per token

    const Call& call;
    const Projection<Feature>& projection;
    const int M, E, X, M_STRIDE, E_STRIDE, X_STRIDE;
    int64_t batch = 0, head = 0;
    int step = CHUNK;       // tokens of a chunk of the sequence
    int tokens = 0, P = 0;  // of the chunk: real ones, and with padding

    // Inputs as operands.
    FeatureNumber *rows, *rows_panel;     // of queries or keys (P x E); transposed panel, depth E
    Number *values, *values_panel;        // (P x X); panel of depth P (forward), transposed, of depth X (backward)
    // Features.
    Number *queries, *queries_t, *queries_panel, *queries_t_panel;  // (P x M), (M x P), panels of depths P and M
    Number *keys, *keys_t, *keys_panel, *keys_t_panel;
    float* exponents;                     // (P x M) or (M x P)
    float *largest, *half_squares, *is_seen;  // (P,)
    // What is seen inside the chunk.
    Number *weights, *weights_t;          // (P x P)
    float *divisor, *partial;             // (P,); (P, LANES)
    // States and their gradient.
    float *state, *state_sums;            // (M x X), (M,)
    Number *state_panel, *state_t_panel;  // depth M; depth X
    // Gradients.
    Number *grads, *grads_panel, *grads_t_panel;  // of the numerator, (P x X), depths P and X
    float* shift;                         // (P,) of the divisor
    FeatureNumber* grad_features;         // (P x M)

    Task(const Call& call, const Projection<Feature>& projection, int M, int E, int X, Arena& arena, bool backward)
        : call(call), projection(projection), M(M), E(E), X(X), M_STRIDE(M + GAP), E_STRIDE(E + GAP), X_STRIDE(X + GAP) {
        rows = arena.take<FeatureNumber>((size_t)CHUNK * E_STRIDE);
        rows_panel = arena.take<FeatureNumber>((size_t)CHUNK * E);
        values = arena.take<Number>((size_t)CHUNK * X_STRIDE);
        values_panel = arena.take<Number>((size_t)CHUNK * X);
        exponents = call.map == SOFTMAX ? arena.take<float>((size_t)std::max(CHUNK * M_STRIDE, M * TOKENS)) : nullptr;
        largest = arena.take<float>(CHUNK);
        half_squares = arena.take<float>(CHUNK);
        is_seen = arena.take<float>(CHUNK);
        divisor = arena.take<float>(CHUNK);
        partial = arena.take<float>((size_t)CHUNK * LANES);
        state = arena.take<float>((size_t)M * X);
        state_sums = arena.take<float>(M);
        state_panel = arena.take<Number>((size_t)M * X);
        weights = arena.take<Number>((size_t)CHUNK * TOKENS);
        if (!backward) {
            queries = arena.take<Number>((size_t)CHUNK * M_STRIDE);
            keys_t = arena.take<Number>((size_t)M * TOKENS);
            keys_t_panel = arena.take<Number>((size_t)M * CHUNK);
            return;
        }
        queries_t = arena.take<Number>((size_t)M * TOKENS);
        queries_panel = arena.take<Number>((size_t)M * CHUNK);
        queries_t_panel = arena.take<Number>((size_t)M * CHUNK);
        keys = arena.take<Number>((size_t)CHUNK * M_STRIDE);
        keys_panel = arena.take<Number>((size_t)M * CHUNK);
        weights_t = arena.take<Number>((size_t)CHUNK * TOKENS);
        state_t_panel = arena.take<Number>((size_t)M * X);
        grads = arena.take<Number>((size_t)CHUNK * X_STRIDE);
        grads_panel = arena.take<Number>((size_t)CHUNK * X);
        grads_t_panel = arena.take<Number>((size_t)CHUNK * X);
        shift = arena.take<float>(CHUNK);
        grad_features = arena.take<FeatureNumber>((size_t)CHUNK * M_STRIDE);
    }

    // ---- Rows of tensors ----

    Input* row(const Rows& tensor, int64_t token) const {
        return (Input*)tensor.data + batch * tensor.batch + head * tensor.head + token * tensor.token;
    }
    // Tokens from `start` on as operands (P x padded width), zeros where there are none.
    template <class To>
    void read(const Rows& tensor, int64_t start, int width, int padded_width, To* to) const {
        read_operands(row(tensor, start), tensor.token, tokens, P, width, padded_width, to);
    }
    void begin_chunk(int64_t start, int64_t end) {
        tokens = (int)std::min<int64_t>(step, end - start);
        P = padded(tokens);
        for (int r = 0; r < P; ++r)
            is_seen[r] = r < tokens && (!call.valid || call.valid[batch * call.length + start + r]) ? 1.0f : 0.0f;
    }
    void read_values(int64_t start) { read(call.value, start, (int)call.value_width, X, values); }
    void read_rows(const Rows& tensor, int64_t start) {
        read(tensor, start, (int)call.width, E, rows);
        if (call.map != SOFTMAX) return;
        const float factor = call.scale * call.scale / 2;
        for (int r = 0; r < P; ++r) {
            Vector sum = {};
            for (int c = 0; c < E; c += LANES) {
                const Vector values = load(rows + (size_t)r * E_STRIDE + c);
                sum += values * values;
            }
            half_squares[r] = factor * total(sum);
        }
    }

    // ---- Features ----

    ALWAYS Vector elementwise(Vector x) const {
        if (call.map == RELU) return greater(x + call.epsilon, all(call.epsilon));
        const Vector low = greater(select(x > Vector{}, Vector{}, x), all(-40.0f));
        return select(x > Vector{}, x + 1.0f, exponential(low));
    }
    ALWAYS Vector of_key(Vector x, Vector half_norms, Vector half_squares) const {
        if (call.map != SOFTMAX) return elementwise(x);
        return exponential(greater(x + (call.headroom - half_norms) - half_squares, all(call.floor)));
    }
    // Derivative of features by their projected rows, times `gradient`.
    ALWAYS Vector through_feature(Vector gradient, Vector feature, bool is_key) const {
        if (call.map == RELU) return select(feature > all(call.epsilon), gradient, Vector{});
        if (call.map == ELU) return gradient * select(feature > all(1.0f), all(1.0f), feature);
        const Vector result = gradient * feature;
        if (!is_key) return result;
        return select(feature > all(std::exp(call.floor) * 1.01f), result, Vector{});
    }

    // keys_t and its panel out of `rows`; sums over the chunk are added to `sums` (M,) if asked for.
    void form_keys_t(float* sums) {
        to_transposed_panel<Feature>(rows, E_STRIDE, P, E, rows_panel);
        for (int m = 0; m < M; m += TALL) {
            Vector row_sums[TALL] = {};
            for (int column = 0; column < P; column += STRIP) {
                Vector tile[TALL][WIDE] = {};
                accumulate<Feature>(tile, projection.rows + (size_t)m * projection.stride, projection.stride,
                                    rows_panel + (size_t)column * E, E);
                for (int r = 0; r < TALL; ++r)
                    for (int v = 0; v < WIDE; ++v) {
                        const int c = column + v * LANES;
                        const Vector norm = call.map == SOFTMAX ? all(call.half_norms[m + r]) : Vector{};
                        tile[r][v] = of_key(tile[r][v], norm, load(half_squares + c)) * load(is_seen + c);
                        store(keys_t + (size_t)(m + r) * TOKENS + c, tile[r][v]);
                        row_sums[r] += Product::as_stored(tile[r][v]);
                    }
                Product::store_panel(keys_t_panel + (size_t)column * M, m, tile);
            }
            if (sums)
                for (int r = 0; r < TALL; ++r) sums[m + r] += total(row_sums[r]);
        }
    }
    // queries out of `rows`; what they see of a state with these sums (M,), or nothing, goes to `partial`.
    void form_queries(const float* sums) {
        if (call.map == SOFTMAX) {
            for_tiles(P, M, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
                accumulate<Feature>(tile, rows + (size_t)r0 * E_STRIDE, E_STRIDE, projection.transposed + (size_t)column * E, E);
                for (int r = 0; r < TALL; ++r)
                    for (int v = 0; v < WIDE; ++v) {
                        const int c = column + v * LANES;
                        store(exponents + (size_t)(r0 + r) * M_STRIDE + c, tile[r][v] + load(call.half_norms + c));
                    }
            });
            for (int r = 0; r < P; ++r) {
                const float* row = exponents + (size_t)r * M_STRIDE;
                Vector most = load(row), seen = {};
                for (int c = LANES; c < M; c += LANES) most = greater(most, load(row + c));
                float limit = most[0];
                for (int lane = 1; lane < LANES; ++lane) limit = std::max(limit, (float)most[lane]);
                for (int c = 0; c < M; c += LANES) {
                    const Vector feature = exponential(load(row + c) - limit);
                    store(queries + (size_t)r * M_STRIDE + c, feature);
                    if (sums) seen += Product::as_stored(feature) * load(sums + c);
                }
                store(partial + r * LANES, seen);
            }
            return;
        }
        std::memset(partial, 0, sizeof(float) * P * LANES);
        for_tiles(P, M, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Feature>(tile, rows + (size_t)r0 * E_STRIDE, E_STRIDE, projection.transposed + (size_t)column * E, E);
            for (int r = 0; r < TALL; ++r) {
                Vector seen = load(partial + (r0 + r) * LANES);
                for (int v = 0; v < WIDE; ++v) {
                    const int c = column + v * LANES;
                    const Vector feature = elementwise(tile[r][v]);
                    store(queries + (size_t)(r0 + r) * M_STRIDE + c, feature);
                    if (sums) seen += Product::as_stored(feature) * load(sums + c);
                }
                store(partial + (r0 + r) * LANES, seen);
            }
        });
    }
    // queries_t and its two panels, out of `rows`; for the backward pass.
    void form_queries_t() {
        to_transposed_panel<Feature>(rows, E_STRIDE, P, E, rows_panel);
        if (call.map == SOFTMAX)
            for (int c = 0; c < P; ++c) largest[c] = -INFINITY;
        for_tiles(M, P, [&](int m, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Feature>(tile, projection.rows + (size_t)m * projection.stride, projection.stride,
                                rows_panel + (size_t)column * E, E);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    const int c = column + v * LANES;
                    if (call.map == SOFTMAX) {
                        const Vector exponent = tile[r][v] + call.half_norms[m + r];
                        store(exponents + (size_t)(m + r) * TOKENS + c, exponent);
                        store(largest + c, greater(load(largest + c), exponent));
                        continue;
                    }
                    tile[r][v] = elementwise(tile[r][v]);
                    store(queries_t + (size_t)(m + r) * TOKENS + c, tile[r][v]);
                }
            if (call.map != SOFTMAX) Product::store_panel(queries_t_panel + (size_t)column * M, m, tile);
        });
        if (call.map == SOFTMAX)
            for_tiles(M, P, [&](int m, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
                for (int r = 0; r < TALL; ++r)
                    for (int v = 0; v < WIDE; ++v) {
                        const int c = column + v * LANES;
                        tile[r][v] = exponential(load(exponents + (size_t)(m + r) * TOKENS + c) - load(largest + c));
                        store(queries_t + (size_t)(m + r) * TOKENS + c, tile[r][v]);
                    }
                Product::store_panel(queries_t_panel + (size_t)column * M, m, tile);
            });
        to_transposed_panel<Product>(queries_t, TOKENS, M, P, queries_panel);
    }
    // keys and their panel, out of `rows`; for the backward pass.
    void form_keys() {
        for_tiles(P, M, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Feature>(tile, rows + (size_t)r0 * E_STRIDE, E_STRIDE, projection.transposed + (size_t)column * E, E);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    const int c = column + v * LANES;
                    const Vector norms = call.map == SOFTMAX ? load(call.half_norms + c) : Vector{};
                    tile[r][v] = of_key(tile[r][v], norms, all(half_squares[r0 + r])) * is_seen[r0 + r];
                    store(keys + (size_t)(r0 + r) * M_STRIDE + c, tile[r][v]);
                }
            Product::store_panel(keys_panel + (size_t)column * P, r0, tile);
        });
    }

    // ---- States ----

    // state += left x right, (M x tokens) and a panel of depth `tokens`; as operand in state_panel, and in `kept` (M x X).
    void add_to_state(const Number* left, const Number* right, Number* kept) {
        for_tiles(M, X, [&](int m, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) tile[r][v] = load(state + (size_t)(m + r) * X + column + v * LANES);
            accumulate<Product>(tile, left + (size_t)m * TOKENS, TOKENS, right + (size_t)column * P, P);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    store(state + (size_t)(m + r) * X + column + v * LANES, tile[r][v]);
                    if (kept) store(kept + (size_t)(m + r) * X + column + v * LANES, tile[r][v]);
                }
            Product::store_panel(state_panel + (size_t)column * M, m, tile);
        });
    }
    void clear_state() {
        std::memset(state, 0, sizeof(float) * M * X);
        std::memset(state_sums, 0, sizeof(float) * M);
    }
    Number* kept_state(int64_t number) const {
        return call.states ? (Number*)call.states + ((number * call.heads + head) * M) * X : nullptr;
    }
    float* kept_sums(int64_t number) const { return call.sums + (number * call.heads + head) * M; }

    // ---- Forward ----

    void write_output(int64_t start, bool has_inside, bool has_state) {
        for (int r = 0; r < P; ++r) divisor[r] = total(load(partial + r * LANES));
        float* normalizer = call.normalizer + (batch * call.heads + head) * call.length + start;
        for (int r = 0; r < tokens; ++r) {
            if (divisor[r] == 0) divisor[r] = 1;
            normalizer[r] = divisor[r];
        }
        for_tiles(padded_tall(tokens), X, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            if (has_inside)
                accumulate<Product>(tile, weights + (size_t)r0 * TOKENS, TOKENS, values_panel + (size_t)column * P, r0 + TALL);
            if (has_state)
                accumulate<Product>(tile, queries + (size_t)r0 * M_STRIDE, M_STRIDE, state_panel + (size_t)column * M, M);
            for (int r = 0; r < TALL && r0 + r < tokens; ++r) {
                Vector values[WIDE];
                for (int v = 0; v < WIDE; ++v) values[v] = tile[r][v] / divisor[r0 + r];
                write_row(row(call.output, start + r0 + r), column, (int)call.value_width, values);
            }
        });
    }

    void forward_causal(int64_t begin, int64_t end, int64_t first_state) {
        clear_state();
        for (int64_t start = begin; start < end; start += step) {
            const bool has_state = start > begin, goes_on = start + step < end;
            begin_chunk(start, end);
            read_rows(call.query, start);
            form_queries(has_state ? state_sums : nullptr);
            read_rows(call.key, start);
            form_keys_t(goes_on ? state_sums : nullptr);
            read_values(start);
            to_panel<Product>(values, X_STRIDE, P, X, values_panel);
            for (int column = 0; column < P; column += STRIP)
                for (int r0 = column / TALL * TALL; r0 < P; r0 += TALL) {
                    Vector tile[TALL][WIDE] = {};
                    accumulate<Product>(tile, queries + (size_t)r0 * M_STRIDE, M_STRIDE, keys_t_panel + (size_t)column * M, M);
                    for (int r = 0; r < TALL; ++r) {
                        Vector seen = load(partial + (r0 + r) * LANES);
                        for (int v = 0; v < WIDE; ++v) {
                            const Integers index = lanes() + (column + v * LANES);
                            const Vector weight = select(index <= r0 + r, tile[r][v], Vector{});
                            store(weights + (size_t)(r0 + r) * TOKENS + column + v * LANES, weight);
                            seen += Product::as_stored(weight);
                        }
                        store(partial + (r0 + r) * LANES, seen);
                    }
                }
            write_output(start, true, has_state);
            if (goes_on) {
                const int64_t number = first_state + (start - begin) / step;
                add_to_state(keys_t, values_panel, kept_state(number));
                if (call.states) std::memcpy(kept_sums(number), state_sums, sizeof(float) * M);
            }
        }
    }
    void forward_bidirectional(int64_t begin, int64_t end, int64_t first_state) {
        clear_state();
        for (int64_t start = begin; start < end; start += step) {
            begin_chunk(start, end);
            read_rows(call.key, start);
            form_keys_t(state_sums);
            read_values(start);
            to_panel<Product>(values, X_STRIDE, P, X, values_panel);
            add_to_state(keys_t, values_panel, start + step < end ? nullptr : kept_state(first_state));
        }
        if (call.states) std::memcpy(kept_sums(first_state), state_sums, sizeof(float) * M);
        for (int64_t start = begin; start < end; start += step) {
            begin_chunk(start, end);
            read_rows(call.query, start);
            form_queries(state_sums);
            write_output(start, false, true);
        }
    }

    // ---- Backward ----

    // grads = gradient of the numerators, shift = that of the divisors.
    void read_grads(int64_t start) {
        read(call.grad_output, start, (int)call.value_width, X, grads);
        const float* normalizer = call.normalizer + (batch * call.heads + head) * call.length + start;
        const int width = (int)call.value_width;
        for (int r = 0; r < P; ++r) {
            shift[r] = 0;
            if (r >= tokens) continue;
            const float factor = 1 / normalizer[r];
            const Input *given = row(call.grad_output, start + r), *output = row(call.output, start + r);
            Number* target = grads + (size_t)r * X_STRIDE;
            Vector sums = {};
            int c = 0;
            for (; c + LANES <= width; c += LANES) {
                const Vector scaled = load(given + c) * factor;
                sums += scaled * load(output + c);
                store(target + c, scaled);
            }
            float sum = total(sums);
            for (; c < width; ++c) {
                const float scaled = number(given[c]) * factor;
                sum += scaled * number(output[c]);
                store(target + c, scaled);
            }
            shift[r] = -sum;
        }
        to_panel<Product>(grads, X_STRIDE, P, X, grads_panel);
    }
    // Gradient of `rows` out of that of their features.
    void write_grad_rows(const Rows& tensor, int64_t start, bool is_key) {
        if (!tensor.data) return;
        const bool subtracts = is_key && call.map == SOFTMAX;
        if (subtracts)
            for (int r = 0; r < tokens; ++r) {
                Vector sum = {};
                for (int c = 0; c < M; c += LANES) sum += load(grad_features + (size_t)r * M_STRIDE + c);
                largest[r] = total(sum) * call.scale * call.scale;
            }
        for_tiles(padded_tall(tokens), E, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            accumulate<Feature>(tile, grad_features + (size_t)r0 * M_STRIDE, M_STRIDE, projection.panel + (size_t)column * M, M);
            for (int r = 0; r < TALL && r0 + r < tokens; ++r) {
                if (subtracts)
                    for (int v = 0; v < WIDE; ++v)
                        tile[r][v] -= load(rows + (size_t)(r0 + r) * E_STRIDE + column + v * LANES) * largest[r0 + r];
                write_row(row(tensor, start + r0 + r), column, (int)call.width, tile[r]);
            }
        });
    }
    ALWAYS void write_grad_values(int64_t start, int r0, int column, const Vector (&tile)[TALL][WIDE]) {
        for (int r = 0; r < TALL && r0 + r < tokens; ++r) {
            Vector values[WIDE];
            for (int v = 0; v < WIDE; ++v) values[v] = tile[r][v] * is_seen[r0 + r];
            write_row(row(call.grad_value, start + r0 + r), column, (int)call.value_width, values);
        }
    }
    // state_sums += queries x shift.
    void add_to_sums() {
        for (int m = 0; m < M; ++m) {
            Vector sum = {};
            for (int c = 0; c < P; c += LANES) sum += load(queries_t + (size_t)m * TOKENS + c) * load(shift + c);
            state_sums[m] += total(sum);
        }
    }
    // The state's operand (M x X), row by row in `scratch`, as a panel of depth X.
    void transpose_state(const float* from, Number* scratch) {
        for (size_t c = 0; c < (size_t)M * X; c += LANES) store(scratch + c, load(from + c));
        to_transposed_panel<Product>(scratch, X, M, X, state_t_panel);
    }
    // Gradient of query features: what `inside` (P x P) weighs, and a kept state with its sums.
    void form_grad_queries(const Number* inside, const float* sums) {
        for_tiles(P, M, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            if (inside)
                accumulate<Product>(tile, inside + (size_t)r0 * TOKENS, TOKENS, keys_panel + (size_t)column * P, r0 + TALL);
            if (sums)
                accumulate<Product>(tile, grads + (size_t)r0 * X_STRIDE, X_STRIDE, state_t_panel + (size_t)column * X, X);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    const int c = column + v * LANES;
                    if (sums) tile[r][v] += shift[r0 + r] * load(sums + c);
                    const Vector feature = Product::panel_row(queries_panel + (size_t)column * P, r0 + r, v);
                    store(grad_features + (size_t)(r0 + r) * M_STRIDE + c, through_feature(tile[r][v], feature, false));
                }
        });
    }
    // Gradient of key features: of the queries of the chunk by `inside` (P x P), and of the gradient of the state.
    void form_grad_keys(const Number* inside, bool has_state) {
        for_tiles(P, M, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
            if (inside)
                accumulate<Product>(tile, inside + (size_t)r0 * TOKENS + r0, TOKENS,
                                    queries_panel + (size_t)column * P + (size_t)r0 * STRIP, P - r0);
            if (has_state)
                accumulate<Product>(tile, values + (size_t)r0 * X_STRIDE, X_STRIDE, state_t_panel + (size_t)column * X, X);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    const int c = column + v * LANES;
                    if (has_state) tile[r][v] += load(state_sums + c);
                    const Vector feature = load(keys + (size_t)(r0 + r) * M_STRIDE + c);
                    const Vector gradient = through_feature(tile[r][v], feature, true) * is_seen[r0 + r];
                    store(grad_features + (size_t)(r0 + r) * M_STRIDE + c, gradient);
                }
        });
    }

    void backward_causal(int64_t begin, int64_t end, int64_t first_state) {
        clear_state();
        const int64_t num_chunks = (end - begin + step - 1) / step;
        for (int64_t chunk = num_chunks - 1; chunk >= 0; --chunk) {
            const int64_t start = begin + chunk * step;
            const bool has_later = chunk + 1 < num_chunks;
            begin_chunk(start, end);
            read_grads(start);
            to_transposed_panel<Product>(grads, X_STRIDE, P, X, grads_t_panel);
            read_values(start);
            to_transposed_panel<Product>(values, X_STRIDE, P, X, values_panel);
            read_rows(call.query, start);
            form_queries_t();
            read_rows(call.key, start);
            form_keys();
            // Keys (rows) as seen by queries (columns), and the gradient of that.
            for (int column = 0; column < P; column += STRIP)
                for (int r0 = 0; r0 < column + STRIP; r0 += TALL) {
                    Vector tile[TALL][WIDE] = {}, gradient[TALL][WIDE] = {};
                    accumulate<Product>(tile, keys + (size_t)r0 * M_STRIDE, M_STRIDE, queries_t_panel + (size_t)column * M, M);
                    accumulate<Product>(gradient, values + (size_t)r0 * X_STRIDE, X_STRIDE, grads_t_panel + (size_t)column * X, X);
                    for (int r = 0; r < TALL; ++r)
                        for (int v = 0; v < WIDE; ++v) {
                            const int c = column + v * LANES;
                            const Integers sees = lanes() + c >= r0 + r;
                            store(weights_t + (size_t)(r0 + r) * TOKENS + c, select(sees, tile[r][v], Vector{}));
                            const Vector all_of_it = gradient[r][v] + load(shift + c);
                            store(weights + (size_t)(r0 + r) * TOKENS + c, select(sees, all_of_it, Vector{}));
                        }
                }
            for_tiles(padded_tall(tokens), X, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
                accumulate<Product>(tile, weights_t + (size_t)r0 * TOKENS + r0, TOKENS,
                                    grads_panel + (size_t)column * P + (size_t)r0 * STRIP, P - r0);
                if (has_later)
                    accumulate<Product>(tile, keys + (size_t)r0 * M_STRIDE, M_STRIDE, state_panel + (size_t)column * M, M);
                write_grad_values(start, r0, column, tile);
            });
            form_grad_keys(weights, has_later);
            write_grad_rows(call.grad_key, start, true);
            // Queries (rows) as they see keys (columns): the gradient of that.
            for (int column = 0; column < P; column += STRIP)
                for (int r0 = column / TALL * TALL; r0 < P; r0 += TALL) {
                    Vector tile[TALL][WIDE] = {};
                    accumulate<Product>(tile, grads + (size_t)r0 * X_STRIDE, X_STRIDE, values_panel + (size_t)column * X, X);
                    for (int r = 0; r < TALL; ++r)
                        for (int v = 0; v < WIDE; ++v) {
                            const Integers index = lanes() + (column + v * LANES);
                            const Vector value = select(index <= r0 + r, tile[r][v] + shift[r0 + r], Vector{});
                            store(weights + (size_t)(r0 + r) * TOKENS + column + v * LANES, value);
                        }
                }
            if (chunk > 0) to_transposed_panel<Product>(kept_state(first_state + chunk - 1), X, M, X, state_t_panel);
            form_grad_queries(weights, chunk > 0 ? kept_sums(first_state + chunk - 1) : nullptr);
            write_grad_rows(call.grad_query, start, false);
            if (chunk > 0) {
                add_to_state(queries_t, grads_panel, (Number*)nullptr);
                add_to_sums();
                transpose_state(state, keys);
            }
        }
    }
    void backward_bidirectional(int64_t begin, int64_t end, int64_t first_state) {
        clear_state();
        to_transposed_panel<Product>(kept_state(first_state), X, M, X, state_t_panel);
        for (int64_t start = begin; start < end; start += step) {
            begin_chunk(start, end);
            read_grads(start);
            read_rows(call.query, start);
            form_queries_t();
            form_grad_queries(nullptr, kept_sums(first_state));
            write_grad_rows(call.grad_query, start, false);
            add_to_state(queries_t, grads_panel, (Number*)nullptr);
            add_to_sums();
        }
        transpose_state(state, keys);
        for (int64_t start = begin; start < end; start += step) {
            begin_chunk(start, end);
            read_values(start);
            read_rows(call.key, start);
            form_keys();
            for_tiles(padded_tall(tokens), X, [&](int r0, int column, Vector(&tile)[TALL][WIDE]) __attribute__((always_inline)) {
                accumulate<Product>(tile, keys + (size_t)r0 * M_STRIDE, M_STRIDE, state_panel + (size_t)column * M, M);
                write_grad_values(start, r0, column, tile);
            });
            form_grad_keys(nullptr, true);
            write_grad_rows(call.grad_key, start, true);
        }
    }

    void run(int64_t number, bool backward) {
        const int64_t* sequence = call.sequences + 4 * (number / call.heads);
        batch = sequence[0];
        step = chunk_of(sequence[2] - sequence[1]);
        head = number % call.heads;
        if (backward)
            call.causal ? backward_causal(sequence[1], sequence[2], sequence[3])
                        : backward_bidirectional(sequence[1], sequence[2], sequence[3]);
        else
            call.causal ? forward_causal(sequence[1], sequence[2], sequence[3])
                        : forward_bidirectional(sequence[1], sequence[2], sequence[3]);
    }
};

template <class Product, class Feature, class Input>
static int run_all(const Call& call, bool backward) {
    static thread_local Arena shared;  // of the calling thread
    const int M = (int)call.num_features, E = padded(call.width), X = padded(call.value_width);
    Projection<Feature> projection;
    shared.used = 0;
    shared.counts_only = true;
    projection.form(shared, call, M, E);
    if (!shared.reserve()) return 1;
    projection.form(shared, call, M, E);
    const int64_t num_tasks = call.num_sequences * call.heads;
    int failed = 0;
#pragma omp parallel num_threads(call.num_threads) reduction(+ : failed)
    {
        static thread_local Arena arena;
        arena.used = 0;
        arena.counts_only = true;
        { Task<Product, Feature, Input> counted(call, projection, M, E, X, arena, backward); }
        begin_tiles();
        const bool is_ready = arena.reserve();
        failed += !is_ready;
        Task<Product, Feature, Input> task(call, projection, M, E, X, arena, backward);
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < num_tasks; ++number)
            if (is_ready) task.run(number, backward);
        end_tiles();
    }
    return failed != 0;
}

static int dispatch(const Call& call, bool backward) {
#if defined(__AVX512BF16__)
    if (call.products_are_bfloat16) {
        if (call.features_are_bfloat16) return run_all<BFloat16, BFloat16, Half>(call, backward);
        if (call.inputs_are_bfloat16) return run_all<BFloat16, Float32, Half>(call, backward);
        return run_all<BFloat16, Float32, float>(call, backward);
    }
#endif
    if (call.inputs_are_bfloat16) return run_all<Float32, Float32, Half>(call, backward);
    return run_all<Float32, Float32, float>(call, backward);
}

extern "C" {
// 0, or 1 where there was no memory.
int protein_lm_linear_attention_forward(const Call* call) { return dispatch(*call, false); }
int protein_lm_linear_attention_backward(const Call* call) { return dispatch(*call, true); }
int protein_lm_chunk(int64_t length) { return chunk_of(length); }
// 1 if states are bfloat16 where products are.
int protein_lm_has_bfloat16() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}
int64_t protein_lm_call_bytes() { return sizeof(Call); }
}
