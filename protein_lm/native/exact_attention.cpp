// Softmax attention on a CPU, forward, of one processor level (see `build.py`): for heads narrower than what torch's own is
// made for, such as the 16 to 24 channels of small ESM-2 models.
//
// One task is QUERIES rows of one head of one sequence. It goes through the keys KEYS at a time, so that their panels, scores
// and probabilities stay in the first caches, and carries the largest score, the sum of exponentials and the weighted sum of
// values of each row along. Keys count from the first token of the sequence, so results depend neither on other rows of the
// batch nor on padding, nor on the number of threads.
//
// Source: Milakov & Gimelshein 2018 (arXiv 1805.02867); Dao et al. 2022 (arXiv 2205.14135).

#include <limits>
#include <vector>

#include "products.h"

constexpr int QUERIES = 512, KEYS = 512;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

extern "C" struct ExactCall {
    int32_t causal, inputs_are_bfloat16, products_are_bfloat16, num_threads;
    int64_t batch, heads, length, width, value_width, num_sequences;
    float scale;
    const int64_t* sequences;  // (N, 4) row of the batch, first token, behind the last one, unused
    const uint8_t* valid;      // (B, L) or null
    Rows query, key, value, output;
};

// 2 to the power of x, as good as the operands of the product that follows; 0 below 2^-126, NaN of NaN.
template <class Product>
static ALWAYS Vector power_of_two(Vector x) {
    const Vector shifted = x + 12582912.0f, rest = x - (shifted - 12582912.0f);
    Vector power;
    if (Product::PAIR == 2) {  // within 8e-5, a fiftieth of what bfloat16 rounds to
        power = rest * 5.517166723e-2f + 2.426111221e-1f;
        power = (power * rest + 6.932609858e-1f) * rest + 9.999280736e-1f;
    } else {  // within 2e-7
        power = rest * 1.534581182e-4f + 1.339993122e-3f;
        power = (power * rest + 9.618488958e-3f) * rest + 5.550328777e-2f;
        power = (power * rest + 2.402264689e-1f) * rest + 6.931472057e-1f;
        power = power * rest + 1.0f;
    }
    const Vector result = (Vector)((Integers)power + ((Integers)shifted << 23));
    return select(x <= all(-126.0f), Vector{}, result);
}

// A width as products take it.
template <class Product>
static int depth_of(int64_t width) {
#if defined(HAS_TILES)
    if (Product::PAIR == 2) return padded(width);
#endif
    return (int)((width + Product::PAIR - 1) / Product::PAIR * Product::PAIR);
}

static ALWAYS float sum_of(Vector values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)values);
#else
    return total(values);
#endif
}
static ALWAYS float largest_of(Vector values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)values);
#else
    float largest = values[0];
    for (int lane = 1; lane < LANES; ++lane) largest = std::max(largest, values[lane]);
    return largest;
#endif
}

template <class Product, class Input>
struct ExactTask {
    using Number = typename Product::Number;
    static constexpr int P_STRIDE = KEYS + GAP;

    const ExactCall& call;
    const int E, X;
    Number *queries, *rows, *keys_panel, *values_panel, *weights;  // (QUERIES x E), of keys or values, depth E, depth KEYS, (TALL x KEYS)
    float *scores, *hidden, *sums, *largest, *total_weight;        // (TALL x KEYS), (KEYS,), (QUERIES x X), (QUERIES,) twice

    ExactTask(const ExactCall& call, int E, int X, Arena& arena) : call(call), E(E), X(X) {
        queries = arena.take<Number>((size_t)QUERIES * (E + GAP));
        rows = arena.take<Number>((size_t)KEYS * (std::max(E, X) + GAP));
        keys_panel = arena.take<Number>((size_t)KEYS * E);
        values_panel = arena.take<Number>((size_t)KEYS * X);
        weights = arena.take<Number>((size_t)TALL * P_STRIDE);
        scores = arena.take<float>((size_t)TALL * P_STRIDE);
        hidden = arena.take<float>(KEYS);
        sums = arena.take<float>((size_t)QUERIES * X);
        largest = arena.take<float>(QUERIES);
        total_weight = arena.take<float>(QUERIES);
    }

    static Input* row(const Rows& tensor, int64_t batch, int64_t head, int64_t token) {
        return (Input*)tensor.data + batch * tensor.batch + head * tensor.head + token * tensor.token;
    }

    // Queries [first, last) of a sequence [begin, end).
    void run(int64_t batch, int64_t head, int64_t begin, int64_t end, int64_t first, int64_t last) {
        const int num_queries = (int)(last - first), tall = (num_queries + TALL - 1) / TALL * TALL;
        read_operands(row(call.query, batch, head, first), call.query.token, num_queries, tall, (int)call.width, E, queries);
        std::fill(sums, sums + (size_t)tall * X, 0.0f);
        std::fill(largest, largest + tall, NOTHING);
        std::fill(total_weight, total_weight + tall, 0.0f);
        const int64_t seen = call.causal ? last : end;
        for (int64_t start = begin; start < seen; start += KEYS) {
            const int tokens = (int)std::min<int64_t>(KEYS, seen - start), P = padded(tokens);
            const int first_hidden = hide(batch, start, tokens, P);
            read_keys(batch, head, start, tokens, P);
            for (int r = 0; r < tall; r += TALL) {
                const int64_t last_seen = first + r + TALL - 1;  // by the last of these rows
                if (call.causal && start > last_seen) continue;
                const bool on_diagonal = call.causal && start + P > first + r + 1;
                const int width = call.causal ? std::min(P, padded(std::min<int64_t>(P, last_seen + 1 - start))) : P;
                score(r, width, first_hidden, on_diagonal ? (int)(first + r - start) : KEYS);
                weigh(r, width, P);
            }
        }
        for (int r = 0; r < num_queries; ++r) {
            const float factor = total_weight[r] == 0 ? 0 : 1 / total_weight[r];  // NaN stays
            Input* to = row(call.output, batch, head, first + r);
            for (int column = 0; column < X; column += STRIP) {
                Vector values[WIDE];
                for (int v = 0; v < WIDE; ++v) values[v] = load(sums + (size_t)r * X + column + v * LANES) * factor;
                write_row(to, column, (int)call.value_width, values);
            }
        }
    }

private:
    // 0 for keys that are seen, below 0 for others. Returns the first of the others.
    int hide(int64_t batch, int64_t start, int tokens, int P) {
        int first_hidden = P;
        for (int k = P - 1; k >= 0; --k) {
            const bool is_seen = k < tokens && (!call.valid || call.valid[batch * call.length + start + k]);
            hidden[k] = is_seen ? 0.0f : -1.0f;
            if (!is_seen) first_hidden = k;
        }
        return first_hidden;
    }

    void read_keys(int64_t batch, int64_t head, int64_t start, int tokens, int P) {
        read_operands(row(call.key, batch, head, start), call.key.token, tokens, P, (int)call.width, E, rows);
        to_transposed_panel<Product>(rows, E + GAP, P, E, keys_panel);
        read_operands(row(call.value, batch, head, start), call.value.token, tokens, P, (int)call.value_width, X, rows);
        for (int k = 0; k < tokens; ++k)  // 0 times what is not finite would be seen
            if (hidden[k] != 0) std::memset((void*)(rows + (size_t)k * (X + GAP)), 0, sizeof(Number) * X);
        to_panel<Product>(rows, X + GAP, P, X, values_panel);
    }

    // Scores, in powers of two, of TALL rows; the row `diagonal` + k is the first that sees key k.
    ALWAYS void score(int r0, int width, int first_hidden, int diagonal) {
        const float scale = call.scale * 1.44269504088896341f;
        Vector most[TALL];
        for (int r = 0; r < TALL; ++r) most[r] = all(NOTHING);
        for (int column = 0; column < width; column += STRIP) {
            Vector tile[TALL][WIDE] = {};
            accumulate<Product>(tile, queries + (size_t)r0 * (E + GAP), E + GAP, keys_panel + (size_t)column * E, E);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) {
                    const int index = column + v * LANES;
                    Vector values = tile[r][v] * scale;
                    if (first_hidden < index + LANES) values = select(load(hidden + index) < Vector{}, all(NOTHING), values);
                    if (diagonal + r < index + LANES) {
                        const Integers is_later = lanes() + (index - diagonal - r) > 0;
                        values = select(is_later, all(NOTHING), values);
                    }
                    store(scores + r * P_STRIDE + index, values);
                    most[r] = greater(most[r], values);
                }
        }
        for (int r = 0; r < TALL; ++r) exponentiate(r0 + r, scores + r * P_STRIDE, weights + r * P_STRIDE, width, most[r]);
    }

    ALWAYS void exponentiate(int row, const float* from, Number* to, int width, Vector most) {
        const float before = largest[row], now = std::max(before, largest_of(most));
        const float shift = now == NOTHING ? 0.0f : now;
        Vector sum = {};
        for (int column = 0; column < width; column += LANES) {
            const Vector weight = power_of_two<Product>(load(from + column) - shift);
            store(to + column, weight);
            sum += weight;
        }
        largest[row] = now;
        const float factor = before == NOTHING || before == now ? 1.0f : std::exp2(before - now);
        total_weight[row] = total_weight[row] * factor + sum_of(sum);
        if (factor == 1.0f) return;
        for (int column = 0; column < X; column += LANES)
            store(sums + (size_t)row * X + column, load(sums + (size_t)row * X + column) * factor);
    }

    // Adds the values, as the weights of TALL rows have it.
    ALWAYS void weigh(int r0, int width, int panel_depth) {
        for (int column = 0; column < X; column += STRIP) {
            Vector tile[TALL][WIDE];
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) tile[r][v] = load(sums + (size_t)(r0 + r) * X + column + v * LANES);
            accumulate<Product>(tile, weights, P_STRIDE, values_panel + (size_t)column * panel_depth, width);
            for (int r = 0; r < TALL; ++r)
                for (int v = 0; v < WIDE; ++v) store(sums + (size_t)(r0 + r) * X + column + v * LANES, tile[r][v]);
        }
    }
};

struct ExactPart {
    int64_t batch, head, begin, end, first, last;
};

template <class Product, class Input>
static int run_all(const ExactCall& call) {
    const int E = depth_of<Product>(call.width), X = padded(call.value_width);
    std::vector<ExactPart> parts;
    for (int64_t number = 0; number < call.num_sequences; ++number) {
        const int64_t* sequence = call.sequences + 4 * number;
        for (int64_t head = 0; head < call.heads; ++head)
            for (int64_t first = sequence[1]; first < sequence[2]; first += QUERIES)
                parts.push_back({sequence[0], head, sequence[1], sequence[2], first, std::min(first + QUERIES, sequence[2])});
    }
    int failed = 0;
#pragma omp parallel num_threads(call.num_threads) reduction(+ : failed)
    {
        static thread_local Arena arena;
        arena.used = 0;
        arena.counts_only = true;
        { ExactTask<Product, Input> counted(call, E, X, arena); }
        begin_tiles();
        const bool is_ready = arena.reserve();
        failed += !is_ready;
        ExactTask<Product, Input> task(call, E, X, arena);
#pragma omp for schedule(dynamic, 1)
        for (size_t number = 0; number < parts.size(); ++number) {
            const ExactPart& part = parts[number];
            if (is_ready) task.run(part.batch, part.head, part.begin, part.end, part.first, part.last);
        }
        end_tiles();
    }
    return failed != 0;
}

extern "C" {
// 0, or 1 where there was no memory.
int protein_lm_exact_attention(const ExactCall* call) {
#if defined(__AVX512BF16__)
    if (call->products_are_bfloat16)
        return call->inputs_are_bfloat16 ? run_all<BFloat16, Half>(*call) : run_all<BFloat16, float>(*call);
#endif
    return call->inputs_are_bfloat16 ? run_all<Float32, Half>(*call) : run_all<Float32, float>(*call);
}
int64_t protein_lm_exact_call_bytes() { return sizeof(ExactCall); }
}
